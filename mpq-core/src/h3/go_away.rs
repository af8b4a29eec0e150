//! GOAWAY (RFC 9114 §5.2) on the control stream of a server. h3 has that stream, and whoever has h3 is not to be
//! asked, so the stream is shared below h3.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use noq::{ClosedStream, SendStream, Stopped, StreamId, VarInt, WriteError};

use crate::proto::varint::put_varint;

/// The frame's type.
const GOAWAY: u64 = 0x07;
/// From one bidirectional stream of a client to the next (RFC 9000 §2.1).
const STREAM_STEP: u64 = 4;

/// The control stream, and which requests were accepted; clones share both.
#[derive(Debug, Clone, Default)]
pub(crate) struct GoAway(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    control: Mutex<Option<Arc<Mutex<Control>>>>,
    /// The first request stream that was not accepted.
    next_request: AtomicU64,
    /// The client knows that no more are answered.
    said: AtomicBool,
}

impl GoAway {
    /// A request comes on this stream of the client. Whether it is accepted.
    pub(super) fn accepts(&self, stream: StreamId) -> bool {
        let id = stream.index() * STREAM_STEP;
        let next = &self.0.next_request;
        let is_refused = self.0.said.load(Ordering::SeqCst) && id >= next.load(Ordering::SeqCst);
        if !is_refused {
            next.fetch_max(id + STREAM_STEP, Ordering::SeqCst);
        }
        !is_refused
    }

    /// h3 opens a unidirectional stream; its first one is the control stream.
    pub(super) fn opened(&self, stream: SendStream) -> Stream {
        let mut control = self.0.control.lock().unwrap();
        if control.is_some() {
            return Stream::Own(stream);
        }
        let shared = Arc::new(Mutex::new(Control {
            stream,
            begun: false,
        }));
        *control = Some(shared.clone());
        Stream::Control(shared)
    }

    /// Tells the client that what it asks for from now on is not answered. Before h3 has written SETTINGS,
    /// which come first, there is nothing that could be told.
    pub(crate) fn send(&self) {
        let control = self.0.control.lock().unwrap().clone();
        let Some(control) = control else { return };
        let mut control = control.lock().unwrap();
        if !control.begun {
            return;
        }
        self.0.said.store(true, Ordering::SeqCst);
        let (mut id, mut frame) = (Vec::new(), Vec::new());
        put_varint(&mut id, self.0.next_request.load(Ordering::SeqCst));
        put_varint(&mut frame, GOAWAY);
        put_varint(&mut frame, id.len() as u64);
        frame.extend(id);
        // A few bytes. If flow control has no room for them, the end of the connection has to do.
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut control.stream).poll_write(cx, &frame);
    }
}

#[derive(Debug)]
pub(super) struct Control {
    stream: SendStream,
    /// h3 has written what comes first.
    begun: bool,
}

/// noq's half of a stream.
#[derive(Debug)]
pub(super) enum Stream {
    Own(SendStream),
    Control(Arc<Mutex<Control>>),
}

impl From<SendStream> for Stream {
    fn from(stream: SendStream) -> Self {
        Self::Own(stream)
    }
}

impl Stream {
    fn with<T>(&mut self, f: impl FnOnce(&mut SendStream) -> T) -> T {
        match self {
            Self::Own(stream) => f(stream),
            Self::Control(control) => f(&mut control.lock().unwrap().stream),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        let written = self.with(|stream| Pin::new(stream).poll_write(cx, bytes));
        if let Self::Control(control) = self
            && let Poll::Ready(Ok(written)) = written
        {
            // h3 writes all of it at once.
            control.lock().unwrap().begun |= written == bytes.len();
        }
        written
    }

    pub(super) fn finish(&mut self) -> Result<(), ClosedStream> {
        self.with(SendStream::finish)
    }

    pub(super) fn reset(&mut self, code: VarInt) -> Result<(), ClosedStream> {
        self.with(|stream| stream.reset(code))
    }

    pub(super) fn stopped(&mut self) -> Stopped {
        self.with(|stream| stream.stopped())
    }

    pub(super) fn set_priority(&mut self, priority: i32) {
        // Fails once it is closed, which writing tells.
        let _ = self.with(|stream| stream.set_priority(priority));
    }

    pub(super) fn id(&self) -> StreamId {
        match self {
            Self::Own(stream) => stream.id(),
            Self::Control(control) => control.lock().unwrap().stream.id(),
        }
    }
}
