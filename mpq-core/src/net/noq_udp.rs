//! The sockets of an endpoint as noq sees them: one socket, which never goes away and never fails.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use noq::udp::{RecvMeta, Transmit};
use noq::{AsyncUdpSocket, UdpSender};
use tokio::io::Interest;

use super::address::mapped;
use super::socket::Bound;
use super::socket_set::SocketSet;

/// How many of the largest datagrams (64 KiB) the kernel joins into one (GRO): no more than one.
const MAX_SEGMENTS: NonZeroUsize = NonZeroUsize::MIN;

/// What noq takes for its socket.
pub(super) struct Receiver {
    shared: Arc<SocketSet>,
    /// Whose turn it is, so that a busy socket does not starve the others.
    next: usize,
}

impl Receiver {
    pub(super) fn new(shared: Arc<SocketSet>) -> Self {
        Self { shared, next: 0 }
    }
}

impl Receiver {
    /// How many buffers were filled, and by what socket the datagrams came.
    fn poll_datagrams(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<(usize, Arc<Bound>)> {
        // Who hands over waits until nobody is in the midst of this.
        let succession = self.shared.succession.read().unwrap();
        let bound = self.shared.bound.read().unwrap();
        if let Some(heir) = &succession.heir {
            if let (Some(count), Some(first)) =
                (ready!(heir.poll_recv(cx, bufs, meta)), bound.first())
            {
                return Poll::Ready((count, first.clone()));
            }
            drop(succession);
            self.shared.succession.write().unwrap().heir = None;
        }
        for turn in 0..bound.len() {
            let socket = &bound[(self.next + turn) % bound.len()];
            while let Poll::Ready(Ok(())) = socket.io.poll_recv_ready(cx) {
                let received = socket.io.try_io(Interest::READABLE, || {
                    socket.state.recv((&socket.io).into(), bufs, meta)
                });
                // Clears the readiness if it was stale, and is tried again.
                let Ok(count) = received else { continue };
                self.next = self.next.wrapping_add(turn + 1);
                return Poll::Ready((count, socket.clone()));
            }
        }
        Poll::Pending
    }
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
        let (count, by) = ready!(self.poll_datagrams(cx, bufs, meta));
        self.shared.heard.store(true, Ordering::Relaxed);
        let count = self.shared.part(bufs, meta, count);
        self.shared.pass_on(&mut bufs[..count], &mut meta[..count]);
        let shows_local = by.shows_local || self.shared.shows_local.load(Ordering::Relaxed);
        for (meta, buf) in meta.iter_mut().zip(bufs.iter()).take(count) {
            self.shared.put_back_clients(meta, buf);
            self.shared.note_sender(meta, buf);
            self.shared.take_answers(by.address.ip(), meta, buf);
            self.shared.take_echoes(meta, buf);
            meta.dst_ip = self.shared.shown_local(meta, shows_local);
            match self.shared.shown(meta, buf) {
                Some(remote) => meta.addr = mapped(remote),
                None => meta.len = 0,
            }
        }
        Poll::Ready(Ok(count))
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
    shared: Arc<SocketSet>,
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
            let (Some(mut transmit), Some(bound)) = (redirected, bound) else {
                self.shared.count_unsent();
                return Poll::Ready(Ok(()));
            };
            if bound.address.ip().is_unspecified() {
                transmit.src_ip = self.shared.source(&transmit);
            }
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
