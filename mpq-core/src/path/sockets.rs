//! The sockets under one endpoint: one for each local address, closable and reopenable in place.
//!
//! noq sees a single IPv6 socket that never goes away. Below it, each local address has a socket
//! of its own, bound to its interface, so that a datagram leaves by the interface its path belongs
//! to with no `ip rule`. IPv4 addresses are shown to noq in their IPv6-mapped form, so that a
//! connection can move between the families.
//!
//! A server that is to be frozen closes them all ([`Sockets::close`]) and opens others when it
//! thaws; in between, what is sent is dropped, as on a network that is down. Errors in sending
//! never reach noq, which would end the connection for them: they are counted.
//!
//! Replies to [probes](super::probe) are picked out of what is received.
//!
//! A client can have its datagrams redirected ([`Sockets::redirect`]): what noq sends to one
//! address goes to another, and what comes from there is shown to noq as if it came from the first.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll, Waker, ready};

use noq::udp::{RecvMeta, Transmit, UdpSocketState, is_msg_size_err};
use noq::{AsyncUdpSocket, UdpSender};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

use super::probe::{self, Token};

/// Asked of the kernel for each socket, bytes; it grants what `net.core.*mem_max` allows. A burst
/// at 1 Gbit/s must fit in while the process waits for a core.
const BUFFER_SIZE: usize = 4 << 20;
/// How many of the largest datagrams (64 KiB) the kernel joins into one (GRO): no more than one.
const MAX_SEGMENTS: NonZeroUsize = NonZeroUsize::MIN;
/// Probe answers waiting to be read; more are dropped, as a network would.
const ANSWERS: usize = 64;
/// How many senders are [noted](Sockets::note_senders): anybody can feign more of them.
const SENDERS: usize = 1 << 16;

/// What to bind one socket to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Local address; port 0 for any free one. An unspecified IPv6 address is dual-stack.
    pub address: SocketAddr,
    /// Interface that the datagrams must leave by (`SO_BINDTODEVICE`).
    pub device: Option<String>,
}

impl From<SocketAddr> for Bind {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            device: None,
        }
    }
}

/// Somebody answers at `remote`: a Version Negotiation packet, or a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The local address that it came to.
    pub local: IpAddr,
    /// Who it came from.
    pub remote: SocketAddr,
    /// Which of the tokens listened for it carries.
    pub token: Token,
}

/// What happened to datagrams below QUIC, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Send calls that failed; the datagrams are lost.
    pub send_errors: u64,
    /// Datagrams (or batches) dropped since no socket was open to send them from.
    pub unsent: u64,
}

/// Handle to the sockets of an endpoint; clones share them.
#[derive(Clone)]
pub struct Sockets(Arc<Shared>);

struct Shared {
    bound: RwLock<Vec<Arc<Bound>>>,
    /// The task that reads; woken when the sockets are replaced.
    reader: Mutex<Option<Waker>>,
    redirection: RwLock<Option<Redirection>>,
    /// The local address of the socket for what has no source.
    preferred: RwLock<Option<IpAddr>>,
    listening: Mutex<Vec<Token>>,
    /// Who has sent something since they are noted.
    senders: Mutex<Option<HashSet<SocketAddr>>>,
    answers: mpsc::Sender<Answer>,
    send_errors: AtomicU64,
    unsent: AtomicU64,
}

/// What noq knows as `from` is at `to`, or nowhere.
#[derive(Clone, Copy)]
struct Redirection {
    from: SocketAddr,
    to: Option<SocketAddr>,
}

struct Bound {
    address: SocketAddr,
    io: UdpSocket,
    state: UdpSocketState,
    /// Whether noq is told to which address of ours a datagram came. It need not be if there is only
    /// one, as at a server that listens on a specific address; and then a path after a move is, to
    /// noq, from where the client was known before, and needs no validation of the client's
    /// address anew.
    shows_local: bool,
    /// Tells senders that wait for this socket to let go of it.
    closing: Notify,
}

impl Sockets {
    /// Opens a socket for each of `binds`. The receiver yields the [`Answer`]s.
    ///
    /// # Errors
    /// Those of the system calls; `PermissionDenied` or `NoDevice` for a device.
    pub fn open(binds: &[Bind]) -> io::Result<(Self, mpsc::Receiver<Answer>)> {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let sockets = Self(Arc::new(Shared {
            bound: RwLock::default(),
            reader: Mutex::default(),
            redirection: RwLock::default(),
            preferred: RwLock::default(),
            listening: Mutex::default(),
            senders: Mutex::default(),
            answers,
            send_errors: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
        }));
        sockets.reopen(binds)?;
        Ok((sockets, receiver))
    }

    /// What noq takes as its socket.
    pub fn for_endpoint(&self) -> Box<dyn AsyncUdpSocket> {
        Box::new(Receiver {
            shared: self.0.clone(),
            next: 0,
        })
    }

    /// Opens sockets in addition to those that are open.
    ///
    /// # Errors
    /// As [`Sockets::open`]; none is added then.
    pub fn reopen(&self, binds: &[Bind]) -> io::Result<()> {
        let new = binds.iter().map(|b| Bound::open(b).map(Arc::new));
        let new = new.collect::<io::Result<Vec<_>>>()?;
        self.0.bound.write().unwrap().extend(new);
        self.0.wake_reader();
        Ok(())
    }

    /// Closes all sockets; they are closed when this returns.
    pub async fn close(&self) {
        let old = std::mem::take(&mut *self.0.bound.write().unwrap());
        self.0.wake_reader();
        for bound in old {
            // Whoever is in the midst of a system call on it lets go of it right after.
            while Arc::strong_count(&bound) > 1 {
                bound.closing.notify_waiters();
                tokio::task::yield_now().await;
            }
        }
    }

    /// Closes the sockets of one local address, as soon as nobody uses them.
    pub fn close_local(&self, ip: IpAddr) {
        self.0.bound.write().unwrap().retain(|b| {
            let stays = b.address.ip() != ip;
            if !stays {
                b.closing.notify_waiters();
            }
            stays
        });
        self.0.wake_reader();
    }

    /// The addresses that the open sockets are bound to, with their real ports.
    pub fn locals(&self) -> Vec<SocketAddr> {
        self.0
            .bound
            .read()
            .unwrap()
            .iter()
            .map(|b| b.address)
            .collect()
    }

    /// Sends one datagram outside of QUIC. Like the network, it promises nothing.
    pub fn send(&self, local: Option<IpAddr>, remote: SocketAddr, contents: &[u8]) {
        let transmit = Transmit {
            destination: remote,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: local,
        };
        match self.0.pick(&transmit) {
            Some(bound) => match bound.send(&transmit) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => self.0.count_error(&e),
                _ => {}
            },
            None => self.0.count_unsent(),
        }
    }

    /// Has noq's datagrams to `from` go to `to`, or to nobody, instead. Then nothing from `from`
    /// itself reaches noq; as long as there is no `to`, it does.
    pub fn redirect(&self, from: SocketAddr, to: Option<SocketAddr>) {
        let redirection = Redirection { from, to };
        let needed = (to != Some(from)).then_some(redirection);
        *self.0.redirection.write().unwrap() = needed;
    }

    /// Has datagrams without a source leave from this address, rather than from the first.
    pub fn prefer(&self, local: IpAddr) {
        *self.0.preferred.write().unwrap() = Some(local);
    }

    /// Which tokens make a Version Negotiation packet an [`Answer`]; all others go to noq.
    pub fn listen_for(&self, tokens: &[Token]) {
        *self.0.listening.lock().unwrap() = tokens.to_vec();
    }

    /// Notes from now on who sends packets of connections (RFC 9000 §17.3); or does so no more. noq may
    /// come to know a datagram only after the socket that it came by was closed.
    pub fn note_senders(&self, noted: bool) {
        *self.0.senders.lock().unwrap() = noted.then(HashSet::new);
    }

    /// Whether a packet of a connection came from there, so far as senders are noted.
    pub fn has_heard(&self, remote: SocketAddr) -> bool {
        let senders = self.0.senders.lock().unwrap();
        let heard = |senders: &HashSet<_>| senders.len() >= SENDERS || senders.contains(&remote);
        senders.as_ref().is_some_and(heard)
    }

    /// Losses below QUIC.
    pub fn counters(&self) -> Counters {
        Counters {
            send_errors: self.0.send_errors.load(Ordering::Relaxed),
            unsent: self.0.unsent.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sockets").field(&self.locals()).finish()
    }
}

impl Shared {
    /// The socket for a datagram: the one of its source address, or any of its family.
    fn pick(&self, transmit: &Transmit<'_>) -> Option<Arc<Bound>> {
        let bound = self.bound.read().unwrap();
        let reaches = |b: &&Arc<Bound>| b.reaches(transmit.destination);
        let source = transmit.src_ip.map(|ip| ip.to_canonical());
        let source = source.or_else(|| *self.preferred.read().unwrap());
        let of_source = bound
            .iter()
            .filter(reaches)
            .find(|b| Some(b.address.ip()) == source);
        of_source.or_else(|| bound.iter().find(reaches)).cloned()
    }

    /// A datagram of noq's as it is to be sent; `None` if to nobody.
    fn redirected<'a>(&self, transmit: &Transmit<'a>) -> Option<Transmit<'a>> {
        let mut transmit = transmit.clone();
        if let Some(Redirection { from, to }) = *self.redirection.read().unwrap()
            && canonical(transmit.destination) == from
        {
            transmit.destination = mapped(to?);
        }
        Some(transmit)
    }

    /// Who noq is to take for the sender of what came from `remote`; `None` if it is not for noq.
    fn shown(&self, remote: SocketAddr) -> Option<SocketAddr> {
        match *self.redirection.read().unwrap() {
            Some(Redirection { from, to: Some(to) }) if remote == to => Some(from),
            Some(Redirection { from, to: Some(_) }) if remote == from => None,
            _ => Some(remote),
        }
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.wake();
        }
    }

    fn count_error(&self, error: &io::Error) {
        // Path MTU discovery means to send what is too large.
        if !is_msg_size_err(error) {
            self.send_errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "datagram not sent");
        }
    }

    fn count_unsent(&self) {
        self.unsent.fetch_add(1, Ordering::Relaxed);
    }

    fn note_sender(&self, meta: &RecvMeta, buffer: &[u8]) {
        let mut senders = self.senders.lock().unwrap();
        let Some(senders) = senders.as_mut().filter(|senders| senders.len() < SENDERS) else {
            return;
        };
        let mut packets = buffer[..meta.len].chunks(meta.stride.max(1));
        if packets.any(|packet| !probe::has_long_header(packet)) {
            senders.insert(canonical(meta.addr));
        }
    }

    /// Takes answers to probes out of a received buffer: it is left with length 0.
    fn take_answers(&self, local: IpAddr, meta: &mut RecvMeta, buffer: &[u8]) {
        for packet in buffer[..meta.len].chunks(meta.stride.max(1)) {
            let Some(token) = probe::answered(packet) else {
                return;
            };
            if !self.listening.lock().unwrap().contains(&token) {
                return;
            }
            let answer = Answer {
                local,
                remote: canonical(meta.addr),
                token,
            };
            let _ = self.answers.try_send(answer);
        }
        meta.len = 0;
    }
}

impl Bind {
    /// A socket bound so, which does not block, with large buffers.
    ///
    /// # Errors
    /// Those of the system calls; `PermissionDenied` or `NoDevice` for a device.
    pub fn open(&self) -> io::Result<std::net::UdpSocket> {
        let address = canonical(self.address);
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.set_nonblocking(true)?;
        // Larger buffers are worth asking for, not worth failing for.
        let _ = socket.set_recv_buffer_size(BUFFER_SIZE);
        let _ = socket.set_send_buffer_size(BUFFER_SIZE);
        socket.bind(&address.into())?;
        Ok(socket.into())
    }
}

impl Bound {
    fn open(bind: &Bind) -> io::Result<Self> {
        let socket = bind.open()?;
        let state = UdpSocketState::new((&socket).into())?;
        let io = UdpSocket::from_std(socket)?;
        Ok(Self {
            address: io.local_addr()?,
            io,
            state,
            shows_local: bind.device.is_some() || bind.address.ip().is_unspecified(),
            closing: Notify::new(),
        })
    }

    fn reaches(&self, destination: SocketAddr) -> bool {
        let dual_stack = self.address.is_ipv6() && self.address.ip().is_unspecified();
        dual_stack || self.address.is_ipv4() == canonical(destination).is_ipv4()
    }

    /// As [`Bound::send`], and remembers a full socket for `writable` to wait for.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.send(transmit))
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A socket bound to one address needs no source; one that had another host's address
        // pinned (from before a move) must not use it.
        let own = self.address.ip();
        let src_ip = transmit
            .src_ip
            .map(|ip| ip.to_canonical())
            .filter(|_| own.is_unspecified());
        let destination = match self.address {
            SocketAddr::V4(_) => canonical(transmit.destination),
            SocketAddr::V6(_) => mapped(transmit.destination),
        };
        let transmit = Transmit {
            src_ip,
            destination,
            ..transmit.clone()
        };
        self.state.try_send((&self.io).into(), &transmit)
    }
}

/// The IPv4 form of an IPv6-mapped address.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The form in which noq knows an address: IPv6, mapped where it is IPv4.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(_) => address,
    }
}

struct Receiver {
    shared: Arc<Shared>,
    /// Whose turn it is, so that a busy socket does not starve the others.
    next: usize,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver")
    }
}

impl AsyncUdpSocket for Receiver {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        let shared = self.shared.clone();
        Box::pin(Sender {
            shared,
            waiting: None,
            segments: AtomicUsize::new(0),
        })
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        *self.shared.reader.lock().unwrap() = Some(cx.waker().clone());
        let bound = self.shared.bound.read().unwrap();
        for turn in 0..bound.len() {
            let socket = &bound[(self.next + turn) % bound.len()];
            while let Poll::Ready(Ok(())) = socket.io.poll_recv_ready(cx) {
                let received = socket.io.try_io(Interest::READABLE, || {
                    socket.state.recv((&socket.io).into(), bufs, meta)
                });
                // Clears the readiness if it was stale, and is tried again.
                let Ok(count) = received else { continue };
                for (meta, buf) in meta.iter_mut().zip(bufs.iter()).take(count) {
                    self.shared.note_sender(meta, buf);
                    self.shared.take_answers(socket.address.ip(), meta, buf);
                    match self.shared.shown(canonical(meta.addr)) {
                        Some(remote) => meta.addr = mapped(remote),
                        None => meta.len = 0,
                    }
                    let shown = meta.dst_ip.filter(|_| socket.shows_local);
                    meta.dst_ip = shown.map(|ip| ip.to_canonical());
                }
                self.next = self.next.wrapping_add(turn + 1);
                return Poll::Ready(Ok(count));
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let bound = self.shared.bound.read().unwrap();
        let first = bound.first().ok_or(io::ErrorKind::NotConnected)?;
        Ok(mapped(first.address))
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        MAX_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.shared
            .bound
            .read()
            .unwrap()
            .iter()
            .any(|b| b.state.may_fragment())
    }
}

struct Sender {
    shared: Arc<Shared>,
    /// Ready when the socket that was full can be written to, or is closed.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// The last answer of `max_transmit_segments`, for while no socket is open.
    segments: AtomicUsize,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

impl UdpSender for Sender {
    fn poll_send(
        mut self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            let redirected = self.shared.redirected(transmit);
            let bound = redirected.as_ref().and_then(|t| self.shared.pick(t));
            let (Some(transmit), Some(bound)) = (redirected, bound) else {
                self.shared.count_unsent();
                return Poll::Ready(Ok(()));
            };
            match bound.try_send(&transmit) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting = Some(Box::pin(async move {
                        tokio::select! {
                            _ = bound.io.writable() => {}
                            () = bound.closing.notified() => {}
                        }
                    }));
                }
                Err(e) => {
                    self.shared.count_error(&e);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        let bound = self.shared.bound.read().unwrap();
        let least = bound.iter().map(|b| b.state.max_gso_segments()).min();
        if let Some(least) = least {
            self.segments.store(least.get(), Ordering::Relaxed);
        }
        NonZeroUsize::new(self.segments.load(Ordering::Relaxed)).unwrap_or(NonZeroUsize::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = *b"token678";

    fn loopback(ip: &str) -> Bind {
        SocketAddr::new(ip.parse().unwrap(), 0).into()
    }

    async fn receive(socket: &mut Box<dyn AsyncUdpSocket>) -> (Vec<u8>, RecvMeta) {
        let mut buffer = vec![0; 65536];
        std::future::poll_fn(|cx| {
            loop {
                let mut meta = [RecvMeta::default()];
                let mut bufs = [IoSliceMut::new(&mut buffer)];
                ready!(socket.poll_recv(cx, &mut bufs, &mut meta)).unwrap();
                if meta[0].len > 0 {
                    return Poll::Ready((buffer[..meta[0].len].to_vec(), meta[0]));
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn datagrams_leave_from_the_address_asked_for() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1"), loopback("127.0.0.2")]).unwrap();
        let only = loopback("127.0.0.3");
        let one_of_several = Bind {
            device: Some("lo".to_owned()),
            ..only.clone()
        };
        for (bind, shown) in [(one_of_several, Some("127.0.0.3")), (only, None)] {
            let (b, _answers) = Sockets::open(&[bind]).unwrap();
            let mut socket = b.for_endpoint();
            for local in a.locals().into_iter().rev() {
                a.send(Some(local.ip()), b.locals()[0], b"hello");
                let (contents, meta) = receive(&mut socket).await;
                assert_eq!(
                    (contents.as_slice(), canonical(meta.addr)),
                    (&b"hello"[..], local)
                );
                assert_eq!(meta.dst_ip, shown.map(|ip| ip.parse().unwrap()));
            }
        }
    }

    #[tokio::test]
    async fn closed_means_closed_and_reopened_goes_on_under_the_same_endpoint() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let mut socket = b.for_endpoint();
        let address = b.locals()[0];
        b.close().await;
        assert_eq!(b.locals(), []);
        // The port is free again: nobody holds the old socket.
        let other = std::net::UdpSocket::bind(address).unwrap();
        drop(other);
        b.send(None, a.locals()[0], b"lost");
        assert_eq!(b.counters().unsent, 1);
        b.reopen(&[address.into()]).unwrap();
        a.send(None, address, b"again");
        assert_eq!(receive(&mut socket).await.0, b"again");
    }

    #[tokio::test]
    async fn senders_are_noted_by_what_they_send_once_a_connection_is_made() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let mut socket = b.for_endpoint();
        let (from, to) = (a.locals()[0], b.locals()[0]);
        let mut heard = async |first: u8| {
            a.send(None, to, &[first]);
            receive(&mut socket).await;
            b.has_heard(from)
        };
        assert!(!heard(0x40).await, "nobody is noted yet");
        b.note_senders(true);
        assert!(!heard(0xc0).await, "a probe");
        assert!(heard(0x40).await);
        b.note_senders(true);
        assert!(!heard(0xc0).await, "it was before");
    }

    #[tokio::test]
    async fn a_waiting_reader_sees_sockets_that_are_opened_later() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, _answers) = Sockets::open(&[]).unwrap();
        let mut socket = b.for_endpoint();
        let reader = tokio::spawn(async move { receive(&mut socket).await.0 });
        tokio::task::yield_now().await;
        b.reopen(&[loopback("127.0.0.2")]).unwrap();
        a.send(None, b.locals()[0], b"later");
        assert_eq!(reader.await.unwrap(), b"later");
    }

    #[tokio::test]
    async fn answers_are_picked_out_if_their_token_is_listened_for() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, mut answers) = Sockets::open(&[loopback("127.0.0.2")]).unwrap();
        let mut socket = b.for_endpoint();
        let (from, to) = (a.locals()[0], b.locals()[0]);
        b.listen_for(&[TOKEN]);
        a.send(None, to, &probe::knock(*b"stranger"));
        a.send(None, to, &probe::knock(TOKEN));
        a.send(None, to, b"end");
        assert_eq!(receive(&mut socket).await.0, probe::knock(*b"stranger"));
        assert_eq!(receive(&mut socket).await.0, b"end");
        let expected = Answer {
            local: to.ip(),
            remote: from,
            token: TOKEN,
        };
        assert_eq!(answers.try_recv().unwrap(), expected);
        assert!(answers.try_recv().is_err());
    }

    #[tokio::test]
    async fn redirected_datagrams_go_elsewhere_and_come_as_from_where_they_were_to_go() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, _answers) = Sockets::open(&[loopback("127.0.0.2")]).unwrap();
        let (c, _answers) = Sockets::open(&[loopback("127.0.0.3")]).unwrap();
        let (mut at_a, mut at_b) = (a.for_endpoint(), b.for_endpoint());
        let (origin, elsewhere) = (c.locals()[0], b.locals()[0]);
        let send = async |contents: &[u8]| {
            let mut sender = at_a.create_sender();
            let transmit = Transmit {
                destination: mapped(origin),
                ecn: None,
                contents,
                segment_size: None,
                src_ip: None,
            };
            std::future::poll_fn(|cx| sender.as_mut().poll_send(&transmit, cx))
                .await
                .unwrap();
        };
        a.redirect(origin, None);
        send(b"to nobody").await;
        assert_eq!(a.counters().unsent, 1);
        a.redirect(origin, Some(elsewhere));
        send(b"to b").await;
        assert_eq!(receive(&mut at_b).await.0, b"to b");
        // The old place is not heard any more.
        c.send(None, a.locals()[0], b"from c");
        b.send(None, a.locals()[0], b"from b");
        let (contents, meta) = receive(&mut at_a).await;
        assert_eq!(contents, b"from b");
        assert_eq!(canonical(meta.addr), origin);
        a.redirect(origin, Some(origin));
        c.send(None, a.locals()[0], b"from c");
        assert_eq!(receive(&mut at_a).await.0, b"from c");
    }

    #[tokio::test]
    async fn failed_sends_are_counted_not_reported() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        // Not reachable from a loopback source.
        a.send(None, "192.0.2.1:9".parse().unwrap(), b"x");
        assert_eq!(a.counters().send_errors, 1);
        a.send(None, "[2001:db8::1]:9".parse().unwrap(), b"x");
        assert_eq!(a.counters().unsent, 1);
    }
}
