//! What the interfaces of a host send and receive, packet by packet.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mpq_lab::system::host::{inside, unix};
use socket2::{Domain, Protocol, Socket, Type};

/// A UDP datagram that was seen.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// Unix time, in seconds.
    #[allow(dead_code, reason = "not every test wants it")]
    pub(crate) at: f64,
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) length: usize,
    /// The version of a packet with a long header (RFC 8999 §5.1).
    pub(crate) version: Option<[u8; 4]>,
}

impl Datagram {
    /// Of an IPv4 packet; `None` if it is another.
    fn parse(at: f64, packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let is_udp = packet[0] >> 4 == 4 && *packet.get(9)? == 17;
        let (source, destination) = (packet.get(12..16)?, packet.get(16..20)?);
        let udp = packet.get(header..)?;
        let port = |offset| Some(u16::from_be_bytes(*udp.get(offset..)?.first_chunk()?));
        let address = |ip: &[u8], port| {
            let ip: [u8; 4] = ip.try_into().ok()?;
            Some(SocketAddrV4::new(ip.into(), port))
        };
        let payload = udp.get(8..)?;
        let is_long = payload.first()? & 0x80 != 0;
        let version = payload.get(1..)?.first_chunk().copied();
        is_udp.then_some(Datagram {
            at,
            from: address(source, port(0)?)?,
            to: address(destination, port(2)?)?,
            length: payload.len(),
            version: version.filter(|_| is_long),
        })
    }

    /// Whether it is meant to be answered by Version Negotiation only (RFC 9000 §15).
    pub(crate) fn is_probe(&self) -> bool {
        let reserved = |version: [u8; 4]| version.iter().all(|byte| byte & 0x0f == 0x0a);
        self.version.is_some_and(reserved)
    }
}

/// A thread that keeps what the interfaces of a host send and receive.
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Datagram>>>,
}

impl Capture {
    /// In a network namespace, given as a file.
    pub(crate) fn start(namespace: PathBuf) -> io::Result<Self> {
        // Protocols of packet sockets are in the network's order of bytes.
        let all = i32::from((nix::libc::ETH_P_ALL as u16).to_be());
        let mut socket = inside(&namespace, || {
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all)))
        })?;
        socket.set_recv_buffer_size(64 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match socket.read(&mut buffer) {
                    Ok(length) => seen.extend(Datagram::parse(unix(), &buffer[..length])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(seen)
        });
        Ok(Capture { stop, thread })
    }

    pub(crate) fn finish(self) -> io::Result<Vec<Datagram>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread has not panicked")
    }
}
