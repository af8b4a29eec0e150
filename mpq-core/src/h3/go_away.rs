//! GOAWAY (RFC 9114 §5.2) on the control stream of a server. h3 has that stream, and whoever has h3 is not to be
//! asked, so the stream is shared below h3.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
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
    requests: Mutex<Requests>,
    /// The client is to be told, as soon as h3 has written what comes first.
    wanted: AtomicBool,
}

#[derive(Debug, Default)]
struct Requests {
    /// The first stream of one that was not accepted.
    next: u64,
    /// The client was told that no more are.
    said: bool,
}

impl GoAway {
    /// A request comes on this stream of the client. Whether it is accepted.
    pub(super) fn accepts(&self, stream: StreamId) -> bool {
        let id = stream.index() * STREAM_STEP;
        let mut requests = self.0.requests.lock().unwrap();
        let accepts = !requests.said || id < requests.next;
        if accepts {
            requests.next = requests.next.max(id + STREAM_STEP);
        }
        accepts
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
        Stream::Control(self.clone(), shared)
    }

    /// Tells the client, once, that what it asks for from now on is not answered: when h3 has written SETTINGS,
    /// which come first.
    pub(crate) fn send(&self) {
        self.0.wanted.store(true, Ordering::SeqCst);
        let control = self.0.control.lock().unwrap().clone();
        if let Some(control) = control {
            self.write(&mut control.lock().unwrap());
        }
    }

    /// Writes the frame, if it is wanted and may be written.
    fn write(&self, control: &mut Control) {
        if !control.begun || !self.0.wanted.load(Ordering::SeqCst) {
            return;
        }
        let mut requests = self.0.requests.lock().unwrap();
        if std::mem::replace(&mut requests.said, true) {
            return;
        }
        let (mut id, mut frame) = (Vec::new(), Vec::new());
        put_varint(&mut id, requests.next);
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
    Control(GoAway, Arc<Mutex<Control>>),
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
            Self::Control(_, control) => f(&mut control.lock().unwrap().stream),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        let written = self.with(|stream| Pin::new(stream).poll_write(cx, bytes));
        if let Self::Control(go_away, control) = self
            && let Poll::Ready(Ok(written)) = written
        {
            let mut control = control.lock().unwrap();
            // h3 writes all of it at once.
            control.begun |= written == bytes.len();
            go_away.write(&mut control);
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
            Self::Control(_, control) => control.lock().unwrap().stream.id(),
        }
    }
}
