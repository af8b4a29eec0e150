//! Two processes at one socket: the *heir*, which has taken over, receives; its *elder* sends by its own descriptor of the
//! same socket, and gets what is for its connections from the heir, by a stream between the two.
//!
//! Neither waits for the other. What the stream has no room for is lost, as in a network. If the elder ends, nothing is
//! passed on any more; if the heir ends, its elder receives by the socket itself again.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use noq::udp::{EcnCodepoint, RecvMeta};
use socket2::SockRef;
use tokio::net::UnixStream as Readable;

use super::address::mapped;
use crate::proto::ownership::{Elders, Parted};

/// Asked of the kernel for the stream, bytes; it grants what `net.core.wmem_max` allows.
const BUFFER_SIZE: usize = 4 << 20;
/// What is read of the stream at a time, bytes.
const READ_SIZE: usize = 256 << 10;
/// Before the datagrams of a sender: how many bytes they have, how long each is, from where and to where they came, and
/// the mark of congestion.
const HEADER: usize = 4 + 2 + ADDRESS + 16 + 1;
/// An IPv6 address, its scope and a port.
const ADDRESS: usize = 16 + 4 + 2;

/// Who was at the socket before, and who is after.
#[derive(Debug, Default)]
pub(super) struct Succession {
    pub(super) elder: Option<Elder>,
    pub(super) heir: Option<Heir>,
}

/// The process that had the socket before, and has connections yet.
#[derive(Debug)]
pub(super) struct Elder {
    ids: Elders,
    stream: UnixStream,
    /// The rest of what was begun to be written.
    rest: Mutex<Vec<u8>>,
}

/// What became of datagrams that are for an elder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassedOn {
    /// There were none, or they are on their way.
    Done,
    /// There was no room.
    Lost,
    /// It has ended.
    Gone,
}

impl Elder {
    /// # Errors
    /// Those of the system calls.
    pub(super) fn new(stream: UnixStream, ids: Elders) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Larger buffers are worth asking for, not worth failing for.
        let _ = SockRef::from(&stream).set_send_buffer_size(BUFFER_SIZE);
        let rest = Mutex::default();
        Ok(Self { ids, stream, rest })
    }

    /// What its datagrams are known by.
    pub(super) fn ids(&self) -> &Elders {
        &self.ids
    }

    /// Whether it is there, as far as is known at once.
    pub(super) fn is_there(&self) -> bool {
        // It says nothing, and so there is nothing to be read but its end.
        let read = (&self.stream).read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Takes out of a received buffer what is for it.
    pub(super) fn pass_on(&self, meta: &mut RecvMeta, buffer: &mut [u8]) -> PassedOn {
        match self.ids.part(&mut buffer[..meta.len], meta.stride) {
            Parted::Own => PassedOn::Done,
            Parted::Elders => {
                let passed_on = self.send(meta, &buffer[..meta.len]);
                meta.len = 0;
                passed_on
            }
            Parted::Both { own, elders } => {
                meta.len = own;
                self.send(meta, &elders)
            }
        }
    }

    fn send(&self, meta: &RecvMeta, datagrams: &[u8]) -> PassedOn {
        let mut rest = self.rest.lock().unwrap();
        if !rest.is_empty() {
            match self.write(&[IoSlice::new(&rest)]) {
                Ok(written) => drop(rest.drain(..written)),
                Err(passed_on) => return passed_on,
            }
            if !rest.is_empty() {
                return PassedOn::Lost;
            }
        }
        let header = header(meta, datagrams.len());
        match self.write(&[IoSlice::new(&header), IoSlice::new(datagrams)]) {
            Ok(0) => PassedOn::Lost,
            Ok(written) => {
                let unwritten = header.iter().chain(datagrams).skip(written);
                rest.extend(unwritten);
                PassedOn::Done
            }
            Err(passed_on) => passed_on,
        }
    }

    /// How much of it was written, without waiting.
    fn write(&self, parts: &[IoSlice<'_>]) -> Result<usize, PassedOn> {
        match (&self.stream).write_vectored(parts) {
            Ok(written) => Ok(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(PassedOn::Gone),
        }
    }
}

/// The process that has taken over.
#[derive(Debug)]
pub(super) struct Heir {
    stream: Readable,
    /// What was read, and not yet given to noq.
    read: Mutex<Vec<u8>>,
}

impl Heir {
    /// # Errors
    /// Those of the system calls.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Readable::from_std(stream)?,
            read: Mutex::default(),
        })
    }

    /// How many buffers it has filled; none if it has ended, or says what cannot be understood.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<Option<usize>> {
        let mut read = self.read.lock().unwrap();
        loop {
            let mut count = 0;
            for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()) {
                match take(&mut read, buffer) {
                    Ok(Some(taken)) => *meta = taken,
                    Ok(None) => break,
                    Err(Malformed) => return Poll::Ready(None),
                }
                count += 1;
            }
            if count > 0 {
                return Poll::Ready(Some(count));
            }
            if ready!(self.stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(None);
            }
            let start = read.len();
            read.resize(start + READ_SIZE, 0);
            let came = self.stream.try_read(&mut read[start..]);
            read.truncate(start + *came.as_ref().unwrap_or(&0));
            match came {
                Ok(0) => return Poll::Ready(None),
                Ok(_) => {}
                // It was not ready after all, and is waited for again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(None),
            }
        }
    }
}

/// What comes by the stream is not what an heir writes.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

fn header(meta: &RecvMeta, length: usize) -> Vec<u8> {
    let SocketAddr::V6(remote) = mapped(meta.addr) else {
        unreachable!("it is mapped");
    };
    let local = match meta.dst_ip {
        None => Ipv6Addr::UNSPECIFIED,
        Some(IpAddr::V4(ip)) => ip.to_ipv6_mapped(),
        Some(IpAddr::V6(ip)) => ip,
    };
    let mut header = Vec::with_capacity(HEADER);
    header.extend((length as u32).to_be_bytes());
    header.extend((meta.stride.min(length) as u16).to_be_bytes());
    header.extend(remote.ip().octets());
    header.extend(remote.scope_id().to_be_bytes());
    header.extend(remote.port().to_be_bytes());
    header.extend(local.octets());
    header.push(meta.ecn.map_or(0, |mark| mark as u8));
    header
}

/// Takes the datagrams that come first, if all of them are there.
fn take(read: &mut Vec<u8>, buffer: &mut [u8]) -> Result<Option<RecvMeta>, Malformed> {
    let Some((header, rest)) = read.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let mut fields = &header[..];
    let len = u32::from_be_bytes(field(&mut fields)) as usize;
    let stride = u16::from_be_bytes(field(&mut fields)).into();
    let ip = Ipv6Addr::from(field::<16>(&mut fields));
    let scope = u32::from_be_bytes(field(&mut fields));
    let port = u16::from_be_bytes(field(&mut fields));
    let local = Ipv6Addr::from(field::<16>(&mut fields));
    let [ecn] = field(&mut fields);
    let into = buffer.get_mut(..len).ok_or(Malformed)?;
    let Some(datagrams) = rest.get(..len) else {
        return Ok(None);
    };
    into.copy_from_slice(datagrams);
    read.drain(..HEADER + len);
    let local = (!local.is_unspecified()).then(|| IpAddr::from(local).to_canonical());
    let mut meta = RecvMeta::default();
    meta.addr = SocketAddrV6::new(ip, port, 0, scope).into();
    (meta.len, meta.stride) = (len, stride);
    meta.ecn = EcnCodepoint::from_bits(ecn);
    meta.dst_ip = local;
    Ok(Some(meta))
}

fn field<const LENGTH: usize>(fields: &mut &[u8]) -> [u8; LENGTH] {
    let (field, rest) = fields.split_first_chunk().expect("the header has it");
    *fields = rest;
    *field
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use super::*;
    use crate::proto::ownership::IdKey;

    async fn receive(heir: &Heir) -> (RecvMeta, Vec<u8>) {
        let mut buffer = vec![0; 65_536];
        let mut metas = [RecvMeta::default()];
        let count = poll_fn(|cx| {
            let mut buffers = [IoSliceMut::new(&mut buffer)];
            heir.poll_recv(cx, &mut buffers, &mut metas)
        });
        assert_eq!(count.await, Some(1));
        buffer.truncate(metas[0].len);
        (metas[0], buffer)
    }

    /// Also after some were lost, and one was begun that there was no room for.
    #[tokio::test]
    async fn what_there_is_room_for_comes_whole_and_as_it_came() {
        let (one, other) = UnixStream::pair().unwrap();
        let key = IdKey::new([1; 32]);
        let elder = Elder::new(one, Elders::new(vec![key.clone()])).unwrap();
        let heir = Heir::new(other).unwrap();
        let addresses = ["10.0.0.1:443", "[fe80::1%2]:50000"].map(|text| text.parse().unwrap());
        let locals = [None, Some("192.0.2.1".parse().unwrap())];
        let marks = [None, Some(EcnCodepoint::Ce)];
        let mut sent = VecDeque::new();
        for round in 0..6 {
            loop {
                let which = sent.len() % 2;
                let text = vec![round; 30_000 + sent.len()];
                let mut datagram = [&[0x40][..], &key.id([1, 2, 3]), &text].concat();
                let mut meta = RecvMeta::default();
                meta.addr = addresses[which];
                (meta.len, meta.stride) = (datagram.len(), datagram.len());
                (meta.dst_ip, meta.ecn) = (locals[which], marks[which]);
                let before = (meta, datagram.clone());
                match elder.pass_on(&mut meta, &mut datagram) {
                    PassedOn::Done => sent.push_back(before),
                    PassedOn::Lost => break,
                    PassedOn::Gone => panic!("it is there"),
                }
                assert_eq!(meta.len, 0, "it is nobody else's");
            }
            assert!(elder.is_there());
            let is_begun = !elder.rest.lock().unwrap().is_empty();
            while sent.len() > usize::from(is_begun) {
                let (meta, datagram) = receive(&heir).await;
                let (before, expected) = sent.pop_front().unwrap();
                assert!(datagram == expected);
                assert_eq!(meta.addr, mapped(before.addr));
                assert_eq!((meta.dst_ip, meta.ecn), (before.dst_ip, before.ecn));
                assert_eq!(meta.stride, before.stride);
            }
        }
        drop(heir);
        assert!(!elder.is_there());
    }

    #[tokio::test]
    async fn what_no_heir_writes_is_the_end_of_it() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let heir = Heir::new(other).unwrap();
        one.write_all(&[0xff; HEADER]).unwrap();
        let mut buffer = [0; 1500];
        let mut metas = [RecvMeta::default()];
        let came = poll_fn(|cx| {
            let mut buffers = [IoSliceMut::new(&mut buffer)];
            heir.poll_recv(cx, &mut buffers, &mut metas)
        });
        assert_eq!(came.await, None);
    }
}
