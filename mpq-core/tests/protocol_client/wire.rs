//! The socket under quinn, which redirects its datagrams and keeps answers and knocks from it
//! (`docs/protocol.md`, §6 and §7.3).

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::sync::mpsc;

pub(crate) type Token = [u8; 8];

#[derive(Debug)]
pub(crate) struct Wire {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Where the connection was made: where the server is, for quinn.
    origin: SocketAddr,
    /// Where the server is.
    server: Mutex<SocketAddr>,
    tokens: Mutex<[Token; 2]>,
    answers: mpsc::UnboundedSender<(SocketAddr, Token)>,
}

impl Wire {
    pub(crate) fn open(
        local: SocketAddr,
        origin: SocketAddr,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<(SocketAddr, Token)>) {
        let (answers, receiver) = mpsc::unbounded_channel();
        let socket = std::net::UdpSocket::bind(local).unwrap();
        let wire = Self {
            socket: TokioRuntime.wrap_udp_socket(socket).unwrap(),
            origin,
            server: Mutex::new(origin),
            tokens: Mutex::default(),
            answers,
        };
        (Arc::new(wire), receiver)
    }

    pub(crate) fn listen_for(&self, tokens: [Token; 2]) {
        *self.tokens.lock().unwrap() = tokens;
    }

    pub(crate) fn server(&self) -> SocketAddr {
        *self.server.lock().unwrap()
    }

    pub(crate) fn redirect(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }

    /// §6.1.
    pub(crate) fn probe(&self, token: Token, destination: SocketAddr) {
        let mut probe = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a];
        for _ in 0..2 {
            probe.push(8);
            probe.extend(token);
        }
        probe.resize(1200, 0);
        // What is lost is sent again in a while.
        let _ = self.socket.try_send(&Transmit {
            destination,
            ecn: None,
            contents: &probe,
            segment_size: None,
            src_ip: None,
        });
    }

    /// §6.3.
    fn answered(&self, datagram: &[u8]) -> Option<Token> {
        let (first, rest) = datagram.split_first()?;
        let token = rest.strip_prefix(&[0, 0, 0, 0, 8])?.first_chunk()?;
        let ours = self.tokens.lock().unwrap().contains(token);
        (first & 0x80 != 0 && ours).then_some(*token)
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
            let token = self.answered(&buffer[..meta.stride.min(meta.len)]);
            if let Some(token) = token {
                let _ = self.answers.send((meta.addr, token));
            }
            if token.is_some() || meta.addr != self.server() {
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
