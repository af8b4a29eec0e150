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
//! Replies to [probes](crate::proto::probe) are picked out of what is received.
//!
//! A server that has moved may have clients that are [forwarded](Sockets::expect_forwarder): noq knows them by their
//! own addresses, and the network by those of the forwarder's sockets.
//!
//! A server can [hand over](Sockets::hand_over) to another process, which [succeeds](Sockets::succeed) it.
//!
//! A client can have its datagrams redirected ([`Sockets::redirect`]): what noq sends to one
//! address goes to another, and what comes from there is shown to noq as if it came from the first.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use noq::AsyncUdpSocket;
use noq::udp::Transmit;
use tokio::sync::mpsc;

use super::address::canonical;
use super::forwarded::Forwarded;
use super::noq_udp::Receiver;
use super::old_paths::OldPaths;
use super::socket::{Bind, Bound};
use super::socket_set::{Answer, Redirection, SocketSet};
use super::succession::{Elder, Heir};
use crate::proto::forward::ForwardKey;
use crate::proto::ownership::{Elders, IdKey};
use crate::proto::probe::Recogniser;

/// Probe answers waiting to be read; more are dropped, as a network would.
const ANSWER_CAPACITY: usize = 64;

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
pub(crate) struct Sockets(Arc<SocketSet>);

impl Sockets {
    /// Opens a socket for each of `binds`. The receiver yields the [`Answer`]s.
    ///
    /// # Errors
    /// Those of the system calls; `PermissionDenied` or `NoDevice` for a device.
    pub(crate) fn open(binds: &[Bind]) -> io::Result<(Self, mpsc::Receiver<Answer>)> {
        let (answers, receiver) = mpsc::channel(ANSWER_CAPACITY);
        let sockets = Self(Arc::new(SocketSet::new(answers)));
        sockets.add(binds)?;
        Ok((sockets, receiver))
    }

    /// Has this socket, which is bound.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn adopt(socket: std::net::UdpSocket) -> io::Result<Self> {
        let bound = Arc::new(Bound::adopt(socket)?);
        let (sockets, _) = Self::open(&[])?;
        sockets.0.bound.write().unwrap().push(bound);
        Ok(sockets)
    }

    /// What noq takes as its socket.
    pub(crate) fn for_endpoint(&self) -> Box<dyn AsyncUdpSocket> {
        Box::new(Receiver::new(self.0.clone()))
    }

    /// Opens sockets in addition to those that are open.
    ///
    /// # Errors
    /// As [`Sockets::open`]; none is added then.
    pub(crate) fn add(&self, binds: &[Bind]) -> io::Result<()> {
        let new = binds.iter().map(|b| Bound::open(b).map(Arc::new));
        let new = new.collect::<io::Result<Vec<_>>>()?;
        self.0.bound.write().unwrap().extend(new);
        self.0.wake_reader();
        Ok(())
    }

    /// Closes all sockets; they are closed when this returns.
    pub(crate) async fn close(&self) {
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
    pub(crate) fn close_local(&self, ip: IpAddr) {
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
    pub(crate) fn locals(&self) -> Vec<SocketAddr> {
        self.0
            .bound
            .read()
            .unwrap()
            .iter()
            .map(|b| b.address)
            .collect()
    }

    /// Another handle to the socket by which datagrams without a source go to `remote`.
    ///
    /// # Errors
    /// Those of the system call; `NotConnected` if there is no such socket.
    pub(crate) fn handle(&self, remote: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let transmit = Transmit {
            destination: remote,
            ecn: None,
            contents: &[],
            segment_size: None,
            src_ip: None,
        };
        let bound = self.0.pick(&transmit);
        let bound = bound.ok_or(io::ErrorKind::NotConnected)?;
        Ok(bound.io.as_fd().try_clone_to_owned()?.into())
    }

    /// Sends one datagram outside of QUIC. Like the network, it promises nothing.
    pub(crate) fn send(&self, local: Option<IpAddr>, remote: SocketAddr, contents: &[u8]) {
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

    /// Sends a knock, whose [echo](crate::proto::probe::Echo) validates `remote`.
    pub(crate) fn knock(&self, local: Option<IpAddr>, remote: SocketAddr, knock: &[u8]) {
        let remote = canonical(remote);
        self.0.echoes.write().unwrap().expect(remote, knock);
        self.send(local, remote, knock);
    }

    /// Has noq's datagrams to `from` go to `to`, or to nobody, instead. Then nothing from `from`
    /// itself reaches noq; as long as there is no `to`, it does.
    pub(crate) fn redirect(&self, from: SocketAddr, to: Option<SocketAddr>) {
        let redirection = Redirection { from, to };
        let needed = (to != Some(from)).then_some(redirection);
        *self.0.redirection.write().unwrap() = needed;
    }

    /// Has packets of old paths come from where they came before, should they come from another address that
    /// is [followed](Self::follow) to. Not with a [redirection](Self::redirect).
    pub(crate) fn keep_old_paths(&self) {
        *self.0.old_paths.lock().unwrap() = Some(OldPaths::default());
    }

    /// The peer may be there now.
    pub(crate) fn follow(&self, new_address: SocketAddr) {
        if let Some(old_paths) = &mut *self.0.old_paths.lock().unwrap() {
            old_paths.follow(new_address);
        }
    }

    /// Has datagrams without a source leave from this address, rather than from the first.
    pub(crate) fn prefer(&self, local: IpAddr) {
        *self.0.preferred.write().unwrap() = Some(local);
    }

    /// What makes a Version Negotiation packet an [`Answer`]; all others go to noq.
    pub(crate) fn listen_for(&self, recogniser: Recogniser) {
        *self.0.recogniser.lock().unwrap() = Some(recogniser);
    }

    /// A move is at its end: notes from now on who sends packets of connections (RFC 9000 §17.3), and takes echoes of
    /// what is [knocked](Self::knock). noq may come to know a datagram only after the socket that it came by was closed.
    pub(crate) fn begin_arrival(&self) {
        *self.0.senders.lock().unwrap() = Some(HashSet::new());
        self.0.echoes.write().unwrap().forget();
        let mut hidden = self.0.hidden.write().unwrap();
        // Many clients have few of our addresses between them.
        let mut ours: HashSet<_> = hidden.values().copied().collect();
        ours.retain(|ip| is_ours(*ip));
        hidden.retain(|_, ip| ours.contains(ip));
    }

    /// Does so no more.
    pub(crate) fn end_arrival(&self) {
        *self.0.senders.lock().unwrap() = None;
        self.0.echoes.write().unwrap().end();
    }

    /// The server has moved, and somebody at its old address is to forward what is for these clients and what they
    /// send. Until they are introduced, nothing goes to them.
    pub(crate) fn expect_forwarder(&self, key: ForwardKey, clients: &[SocketAddr]) {
        self.0.forwarded.write().unwrap().expect(key, clients);
    }

    /// The server has moved, and nobody is forwarded from its old address.
    pub(crate) fn expect_no_forwarder(&self) {
        *self.0.forwarded.write().unwrap() = Forwarded::default();
    }

    /// A client is gone that was forwarded.
    pub(crate) fn end_forwarding(&self, client: SocketAddr) {
        self.0.forwarded.write().unwrap().end(client);
    }

    /// By what address the network knows a client.
    pub(crate) fn network_address(&self, client: SocketAddr) -> SocketAddr {
        self.0.forwarded.read().unwrap().name(client)
    }

    /// Whether somebody has said that it forwards for this client.
    pub(crate) fn is_introduced(&self, client: SocketAddr) -> bool {
        self.0.forwarded.read().unwrap().is_introduced(client)
    }

    /// Tells noq from now on to which local address a datagram came, so that paths to different ones are
    /// different paths, and each validates the peer's address anew (RFC 9000 §8.2), unless an echo has. That is so
    /// before `open` lets the first one in; if that fails, it stays as it was.
    pub(crate) fn showing_local(&self, open: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let showed = self.0.shows_local.swap(true, Ordering::Relaxed);
        open().inspect_err(|_| self.0.shows_local.store(showed, Ordering::Relaxed))
    }

    /// Which of our addresses is hidden from noq on paths to there.
    pub(crate) fn hidden_local(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.0.hidden_local(remote)
    }

    /// Whether what is sent to this address comes to these sockets, as far as this host can tell.
    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        self.locals().into_iter().any(|local| match local.ip() {
            ip if ip.is_unspecified() => local.port() == address.port() && is_ours(address.ip()),
            _ => local == address,
        })
    }

    /// Whether anything has come.
    pub(crate) fn is_heard(&self) -> bool {
        self.0.heard.load(Ordering::Relaxed)
    }

    /// Whether a packet of a connection came from there, so far as senders are noted.
    pub(crate) fn has_heard(&self, remote: SocketAddr) -> bool {
        self.0.is_noted(remote) == Some(true)
    }

    /// Has the heir at the other end of the stream receive from now on, by another descriptor of the socket, which is
    /// returned. What is for this process comes by the stream. When that ends, this process receives by itself again.
    ///
    /// # Errors
    /// Those of the system calls; it receives by itself then. `NotConnected` if no socket is open.
    pub(crate) fn hand_over(&self, stream: UnixStream) -> io::Result<std::net::UdpSocket> {
        let bound = self.0.bound.read().unwrap().first().cloned();
        let bound = bound.ok_or(io::ErrorKind::NotConnected)?;
        let socket = bound.io.as_fd().try_clone_to_owned()?;
        let heir = Heir::new(stream)?;
        self.0.succession.write().unwrap().heir = Some(heir);
        self.0.wake_reader();
        Ok(socket.into())
    }

    /// Receives by itself again, whatever the heir does.
    pub(crate) fn take_back(&self) {
        self.0.succession.write().unwrap().heir = None;
        self.0.wake_reader();
    }

    /// Passes on to the process at the other end of the stream what is for its connections.
    ///
    /// # Errors
    /// Those of the system calls.
    pub(crate) fn succeed(&self, stream: UnixStream, elders: Elders) -> io::Result<()> {
        let elder = Elder::new(stream, elders)?;
        self.0.succession.write().unwrap().elder = Some(elder);
        Ok(())
    }

    /// Whether another process receives.
    pub(crate) fn has_heir(&self) -> bool {
        self.0.succession.read().unwrap().heir.is_some()
    }

    /// The keys of the processes whose connections are passed on; none if they have ended.
    pub(crate) fn elders(&self) -> Vec<IdKey> {
        let succession = self.0.succession.read().unwrap();
        let elder = succession.elder.as_ref().filter(|elder| elder.is_there());
        elder.map_or_else(Vec::new, |elder| elder.ids().keys().to_vec())
    }

    /// Losses below QUIC.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            send_errors: self.0.send_errors.load(Ordering::Relaxed),
            unsent: self.0.unsent.load(Ordering::Relaxed),
        }
    }
}

/// Whether this host has the address.
fn is_ours(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sockets").field(&self.locals()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::task::{Poll, ready};

    use noq::udp::RecvMeta;

    use super::*;
    use crate::net::address::mapped;
    use crate::proto::probe::{Echo, Hint, KnockKey, ProbeKey};
    use crate::tls::random;

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
        b.add(&[address.into()]).unwrap();
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
        b.begin_arrival();
        assert!(!heard(0xc0).await, "a probe");
        assert!(heard(0x40).await);
        b.begin_arrival();
        assert!(!heard(0xc0).await, "it was before");
    }

    #[tokio::test]
    async fn echoes_validate_whom_noq_does_not_know_yet_until_the_next_move() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, _answers) = Sockets::open(&[loopback("127.0.0.2")]).unwrap();
        let mut socket = b.for_endpoint();
        let (from, to) = (a.locals()[0], b.locals()[0]);
        let knock = KnockKey::new(&[1; 32]).knock(&random());
        let echo = Echo::of(&knock).unwrap().datagram(0);
        b.showing_local(|| Ok(())).unwrap();
        let mut shown = async |datagrams: &[&[u8]]| {
            datagrams.iter().for_each(|d| a.send(None, to, d));
            let (contents, meta) = receive(&mut socket).await;
            assert_eq!(&contents[..], b"@packet");
            meta.dst_ip
        };
        let (ours, hidden) = (Some(to.ip()), None);
        b.begin_arrival();
        b.knock(None, from, &knock);
        assert_eq!(shown(&[b"@packet"]).await, ours);
        assert_eq!(shown(&[&echo, b"@packet"]).await, ours, "it is known");
        b.begin_arrival();
        b.knock(None, from, &knock);
        assert_eq!(shown(&[&echo, b"@packet"]).await, hidden);
        b.end_arrival();
        assert_eq!(shown(&[b"@packet"]).await, hidden);
        assert_eq!(b.hidden_local(from), ours);
        b.begin_arrival();
        assert_eq!(shown(&[b"@packet"]).await, ours, "the move of before");
    }

    #[tokio::test]
    async fn a_waiting_reader_sees_sockets_that_are_opened_later() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, _answers) = Sockets::open(&[]).unwrap();
        let mut socket = b.for_endpoint();
        let reader = tokio::spawn(async move { receive(&mut socket).await.0 });
        tokio::task::yield_now().await;
        b.add(&[loopback("127.0.0.2")]).unwrap();
        a.send(None, b.locals()[0], b"later");
        assert_eq!(reader.await.unwrap(), b"later");
    }

    #[tokio::test]
    async fn hints_are_picked_out_by_their_keys() {
        let (a, _answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let (b, mut answers) = Sockets::open(&[loopback("127.0.0.2")]).unwrap();
        let mut socket = b.for_endpoint();
        let (from, to) = (a.locals()[0], b.locals()[0]);
        let (knocks, strangers) = (KnockKey::new(&[1; 32]), KnockKey::new(&[2; 32]));
        b.listen_for(Recogniser::new(ProbeKey::new(&[3; 32]), knocks.clone()));
        let (knock, stranger) = (knocks.knock(&random()), strangers.knock(&random()));
        for datagram in [&stranger[..], &knock, b"end"] {
            a.send(None, to, datagram);
        }
        assert_eq!(receive(&mut socket).await.0, stranger);
        assert_eq!(receive(&mut socket).await.0, b"end");
        let expected = Answer {
            local: to.ip(),
            remote: from,
            hint: Hint::Knock(Echo::of(&knock).unwrap()),
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

    /// They have one source, and so the kernel joins them, be they of old paths or of new ones.
    #[tokio::test]
    async fn packets_of_old_paths_that_come_together_with_others_are_shown_as_before() {
        const SIZE: usize = 100;
        let packet = |id: u8, size| [&[0x40][..], &[id; 8], &vec![0; size - 9]].concat();
        let [old, new, here] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            .map(|ip| Sockets::open(&[loopback(ip)]).unwrap().0);
        let to = here.locals()[0];
        let mut socket = here.for_endpoint();
        here.keep_old_paths();
        old.send(None, to, &packet(1, SIZE));
        receive(&mut socket).await;
        here.follow(new.locals()[0]);
        let together = [
            packet(2, SIZE),
            packet(1, SIZE),
            packet(2, SIZE),
            packet(1, 50),
        ];
        let transmit = Transmit {
            destination: mapped(to),
            ecn: None,
            contents: &together.concat(),
            segment_size: Some(SIZE),
            src_ip: None,
        };
        let mut sender = new.for_endpoint().create_sender();
        let sent = std::future::poll_fn(|cx| sender.as_mut().poll_send(&transmit, cx));
        sent.await.unwrap();

        let mut buffers = vec![vec![0; 65_536]; 4];
        let mut bufs: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let mut metas = [RecvMeta::default(); 4];
        let came = std::future::poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut metas));
        let came = came.await.unwrap();
        let came = metas
            .iter()
            .zip(&buffers)
            .take(came)
            .flat_map(|(meta, buffer)| {
                let packets = buffer[..meta.len].chunks(meta.stride);
                packets.map(|packet| (canonical(meta.addr), packet.to_vec()))
            });
        let mut came: Vec<_> = came.collect();
        came.sort_by_key(|(from, _)| *from);
        let expected = [(&old, 1), (&old, 3), (&new, 0), (&new, 2)]
            .map(|(from, at)| (from.locals()[0], together[at].clone()));
        assert_eq!(came, expected);
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

    /// Answers wait to be read, but only so many of them, whoever sends them.
    #[tokio::test]
    async fn answers_do_not_pile_up() {
        let (sockets, mut answers) = Sockets::open(&[loopback("127.0.0.1")]).unwrap();
        let knocks = KnockKey::new(&[1; 32]);
        sockets.listen_for(Recogniser::new(ProbeKey::new(&[2; 32]), knocks.clone()));
        let mut socket = sockets.for_endpoint();
        let attacker = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (knock, last) = (knocks.knock(&[3; 9]), b"last");
        let mut taken = 0;
        for _ in 0..1_000 {
            attacker.send_to(&knock, sockets.locals()[0]).await.unwrap();
            attacker.send_to(last, sockets.locals()[0]).await.unwrap();
            // Nobody reads the answers, but noq reads the socket.
            while receive(&mut socket).await.0 != last {}
        }
        while answers.try_recv().is_ok() {
            taken += 1;
        }
        assert!((1..=64).contains(&taken), "{taken}");
    }
}
