//! The socket under quinn, which redirects its datagrams and keeps answers and knocks from it
//! (`docs/protocol.md`, §6 and §7.3).

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;

/// A connection ID of a probe or a knock.
type Id = [u8; 8];

/// §6.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    Answer,
    Knock,
}

#[derive(Debug)]
pub(crate) struct Wire {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Where the connection was made: where the server is, for quinn.
    origin: SocketAddr,
    /// Where the server is.
    server: Mutex<SocketAddr>,
    /// §6.1: the Source Connection IDs of our probes, and where they went.
    probes: Mutex<Vec<(Id, SocketAddr)>>,
    /// §6.2: the key of the server's knocks.
    knocks: OnceLock<hmac::Key>,
    hints: mpsc::UnboundedSender<(SocketAddr, Hint)>,
}

impl Wire {
    pub(crate) fn open(
        local: SocketAddr,
        origin: SocketAddr,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<(SocketAddr, Hint)>) {
        let (hints, receiver) = mpsc::unbounded_channel();
        let socket = std::net::UdpSocket::bind(local).unwrap();
        let wire = Self {
            socket: TokioRuntime.wrap_udp_socket(socket).unwrap(),
            origin,
            server: Mutex::new(origin),
            probes: Mutex::default(),
            knocks: OnceLock::new(),
            hints,
        };
        (Arc::new(wire), receiver)
    }

    pub(crate) fn listen_for_knocks(&self, secret: &[u8]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        self.knocks.set(key).unwrap();
    }

    pub(crate) fn server(&self) -> SocketAddr {
        *self.server.lock().unwrap()
    }

    pub(crate) fn redirect(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }

    /// §6.1.
    pub(crate) fn probe(&self, destination: SocketAddr) {
        let mut probe = [0; 1200];
        SystemRandom::new().fill(&mut probe).unwrap();
        probe[0] |= 0xc0;
        for byte in &mut probe[1..5] {
            *byte = *byte & 0xf0 | 0x0a;
        }
        (probe[5], probe[14]) = (8, 8);
        let source = probe[15..23].try_into().unwrap();
        self.probes.lock().unwrap().push((source, destination));
        // What is lost is sent again in a while.
        let _ = self.socket.try_send(&Transmit {
            destination,
            ecn: None,
            contents: &probe,
            segment_size: None,
            src_ip: None,
        });
    }

    /// §6.4.
    fn hint(&self, from: SocketAddr, datagram: &[u8]) -> Option<Hint> {
        let (first, rest) = datagram.split_first()?;
        let rest = rest.strip_prefix(&[0, 0, 0, 0, 8])?;
        let (destination, rest) = rest.split_first_chunk::<8>()?;
        let source = rest.strip_prefix(&[8])?.first_chunk::<8>()?;
        if first & 0x80 == 0 {
            return None;
        }
        if self.probes.lock().unwrap().contains(&(*destination, from)) {
            return Some(Hint::Answer);
        }
        let tag = hmac::sign(self.knocks.get()?, source);
        (tag.as_ref()[..8] == *destination).then_some(Hint::Knock)
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(&Transmit {
            destination: self.server(),
            ..transmit.clone()
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(cx, buffers, metas))?;
        for (meta, buffer) in metas.iter_mut().zip(buffers).take(count) {
            let hint = self.hint(meta.addr, &buffer[..meta.stride.min(meta.len)]);
            if let Some(hint) = hint {
                let _ = self.hints.send((meta.addr, hint));
            }
            if hint.is_some() || meta.addr != self.server() {
                meta.len = 0;
            }
            meta.addr = self.origin;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
