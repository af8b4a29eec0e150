//! A client of noq's alone, whose datagrams are counted, kept and swallowed below it.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use mpq_core::tls::{self, Trust};
use noq::udp::{RecvMeta, Transmit};
use noq::{AsyncUdpSocket, Runtime, TokioRuntime, UdpSender};
use socket2::{Domain, Socket, Type};

/// The length of a knock, bytes; packets of connections are longer, or have a short header.
const KNOCK: usize = 27;

/// An address as noq knows it.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// What a tap has seen, and is to do.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    /// Whose datagrams are counted.
    pub(crate) place: Option<SocketAddr>,
    /// Nothing that it sends reaches noq.
    pub(crate) deaf: bool,
    /// Bytes of packets from there, and to there.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Knocks from there.
    pub(crate) knocks: u64,
}

/// Below a client.
#[derive(Clone)]
pub(crate) struct Tap {
    socket: Arc<UdpSocket>,
    seen: Arc<Mutex<Seen>>,
    /// The last packet with a short header that was sent.
    last: Arc<Mutex<Vec<u8>>>,
    /// The last knock from the place that is watched.
    knock: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Tap {
    /// A client that allows several paths, from `local`.
    pub(crate) fn client(local: IpAddr) -> (noq::Endpoint, Self) {
        // Of both families, so that the server may be of either.
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        let address = mapped(SocketAddr::new(local, 0));
        socket.bind(&address.into()).unwrap();
        let socket = UdpSocket::from(socket);
        let tap = Self {
            socket: Arc::new(socket.try_clone().unwrap()),
            seen: Arc::default(),
            last: Arc::default(),
            knock: Arc::default(),
        };
        let mut crypto =
            noq::ClientConfig::new(Arc::new(tls::client_config(&Trust::Insecure).unwrap()));
        let mut transport = noq::TransportConfig::default();
        transport
            .max_idle_timeout(None)
            .max_concurrent_multipath_paths(8);
        crypto.transport_config(Arc::new(transport));
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            noq::EndpointConfig::default(),
            None,
            Box::new(Ear {
                inner: TokioRuntime.wrap_udp_socket(socket).unwrap(),
                tap: tap.clone(),
            }),
            Arc::new(TokioRuntime),
        )
        .unwrap();
        endpoint.set_default_client_config(crypto);
        (endpoint, tap)
    }

    /// From now on, what is from or to this place is counted, and nothing from there is heard if it is to be
    /// `deaf`.
    pub(crate) fn watch(&self, place: SocketAddr, deaf: bool) {
        *self.seen.lock().unwrap() = Seen {
            place: Some(place),
            deaf,
            ..Seen::default()
        };
    }

    pub(crate) fn seen(&self) -> Seen {
        *self.seen.lock().unwrap()
    }

    /// The last knock from there.
    pub(crate) fn knock(&self) -> Option<Vec<u8>> {
        self.knock.lock().unwrap().clone()
    }

    /// Sends a datagram that is none of noq's.
    pub(crate) fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.socket.send_to(datagram, mapped(to)).unwrap();
    }

    /// As the last packet that was sent, so far as anybody can tell without its keys.
    pub(crate) fn forged(&self) -> Vec<u8> {
        /// The first byte and noq's connection ids.
        const CLEAR: usize = 1 + 8;
        let mut packet = self.last.lock().unwrap().clone();
        packet[CLEAR..].fill(0x5a);
        packet.resize(100, 0x5a);
        packet
    }

    fn sent(&self, transmit: &Transmit<'_>) {
        let mut seen = self.seen.lock().unwrap();
        if seen.place.map(mapped) == Some(transmit.destination) {
            seen.to += transmit.contents.len() as u64;
        }
        if transmit.contents.len() > 9 && transmit.contents[0] & 0x80 == 0 {
            *self.last.lock().unwrap() = transmit.contents.to_vec();
        }
    }

    fn received(&self, meta: &mut RecvMeta, buffer: &[u8]) {
        let mut seen = self.seen.lock().unwrap();
        if meta.len == 0 || seen.place.map(mapped) != Some(meta.addr) {
            return;
        }
        match meta.len {
            KNOCK if buffer[0] & 0x80 != 0 => {
                seen.knocks += 1;
                *self.knock.lock().unwrap() = Some(buffer[..KNOCK].to_vec());
            }
            length => seen.from += length as u64,
        }
        if seen.deaf {
            meta.len = 0;
        }
    }
}

struct Ear {
    inner: Box<dyn AsyncUdpSocket>,
    tap: Tap,
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ear")
    }
}

impl AsyncUdpSocket for Ear {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(Mouth {
            inner: self.inner.create_sender(),
            tap: self.tap.clone(),
        })
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (meta, buffer) in meta.iter_mut().zip(bufs).take(count) {
            self.tap.received(meta, buffer);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

struct Mouth {
    inner: Pin<Box<dyn UdpSender>>,
    tap: Tap,
}

impl fmt::Debug for Mouth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mouth")
    }
}

impl UdpSender for Mouth {
    fn poll_send(
        mut self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let sent = ready!(self.inner.as_mut().poll_send(transmit, cx));
        self.tap.sent(transmit);
        Poll::Ready(sent)
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }
}
