//! The sending half of a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use noq::{Stopped, StoppedError, WriteError};

use super::error::{lost, stream_id, varint};
use super::go_away::Stream;
use super::send_window::Body;
use super::supervision::Supervised;
use super::turns::{Room, Turn};

/// The answer to a request whose header is too large (431, RFC 6585 §5), as h3 writes it: HEADERS with a status that
/// is not in QPACK's static table, in Huffman's code.
const REFUSAL: [u8; 10] = [0x01, 0x08, 0, 0, 0x5f, 0x09, 0x83, 0x69, 0x90, 0xff];

/// The sending half of a stream. Dropped before it is finished, it is reset, unless it has refused a request: h3
/// drops it then (`ResolvedRequest::resolve`), and other QUICs finish it. One that answers a request is finished once
/// the client has acknowledged all of it.
pub struct SendStream<B: Buf> {
    stream: Stream,
    supervised: Supervised,
    /// What noq did not take yet.
    writing: Option<WriteBuf<B>>,
    /// When it is sent, if it is an answer, and noq's priority for that.
    turn: Option<(Turn, i32)>,
    written: u64,
    /// All that was written is the beginning of a refusal.
    refuses: bool,
    /// When and how much it may take, if that is bounded.
    body: Option<Body>,
    /// Finished, reset, or stopped by the peer: noq may drop it as it likes.
    closed: bool,
    /// Resolves once all of a finished answer is acknowledged.
    acknowledged: Option<Pin<Box<Stopped>>>,
}

impl<B: Buf> SendStream<B> {
    pub(super) fn new(
        stream: impl Into<Stream>,
        supervised: Supervised,
        turn: Option<Turn>,
        body: Option<Body>,
    ) -> Self {
        Self {
            stream: stream.into(),
            supervised,
            writing: None,
            turn: turn.map(|turn| (turn, 0)),
            written: 0,
            refuses: true,
            body,
            closed: false,
            acknowledged: None,
        }
    }

    /// An answer is over once the client has all of it: until then it may be cut.
    fn poll_acknowledged(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let Some(acknowledged) = &mut self.acknowledged else {
            return Poll::Ready(Ok(()));
        };
        let end = acknowledged.as_mut().poll(cx);
        let end = ready!(self.supervised.note(end));
        Poll::Ready(match end {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamErrorIncoming::StreamTerminated {
                error_code: code.into(),
            }),
            Err(StoppedError::ConnectionLost(error)) => Err(self
                .supervised
                .write_error(WriteError::ConnectionLost(error))),
            Err(error) => Err(StreamErrorIncoming::Unknown(error.into())),
        })
    }

    /// Hands to noq what is being written.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        while let Some(mut data) = self.writing.take_if(|data| data.has_remaining()) {
            let written = self.poll_write(data.chunk(), cx);
            if let Poll::Ready(Ok(written)) = written {
                data.advance(written);
            }
            self.writing = Some(data);
            ready!(written)?;
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    /// Hands to noq as much of these bytes as there is room for, when it is their turn.
    fn poll_write(
        &mut self,
        mut chunk: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, WriteError>> {
        let mut room = Room::Whole;
        if let Some((turn, priority)) = &mut self.turn {
            let leave = turn.leave(self.written);
            room = leave.room;
            if *priority != leave.value {
                *priority = leave.value;
                self.stream.set_priority(leave.value);
            }
        }
        if let Some(body) = &self.body {
            let may_be_written = body.poll_room(self.stream.id(), room, cx);
            if let (Poll::Pending, Some((turn, _))) = (may_be_written, &self.turn) {
                turn.hold();
            }
            ready!(may_be_written);
        }
        if let Room::AtOnce(most) = room {
            chunk = &chunk[..chunk.len().min(most as usize)];
        }
        let written = ready!(self.stream.poll_write(cx, chunk))?;
        self.refuses = self.refuses && self.rest_of_refusal().starts_with(&chunk[..written]);
        self.written += written as u64;
        Poll::Ready(Ok(written))
    }

    /// Answers that the header of the request is too large, if nothing was answered yet.
    pub(super) fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.refuses && self.writing.is_none() && !self.closed {
            match self.rest_of_refusal() {
                [] => self.finish(),
                // What fails here fails for whoever reads the request, too.
                rest => self.closed = ready!(self.poll_write(rest, cx)).is_err(),
            }
        }
        Poll::Ready(())
    }

    fn rest_of_refusal(&self) -> &'static [u8] {
        let written = usize::try_from(self.written).ok();
        written
            .and_then(|written| REFUSAL.get(written..))
            .unwrap_or_default()
    }

    /// Nothing more is written.
    fn finish(&mut self) {
        let _ = self.stream.finish();
        self.closed = true;
        // It is the turn of others now.
        self.body = None;
        self.turn = None;
    }
}

impl<B: Buf> Drop for SendStream<B> {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if self.turn.is_some() && self.refuses && self.rest_of_refusal().is_empty() {
            self.finish();
        } else {
            quic::SendStream::reset(self, Code::H3_INTERNAL_ERROR.value());
        }
    }
}

impl<B: Buf> quic::SendStream<B> for SendStream<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let written = self.poll_written(cx);
        let written = ready!(self.supervised.note(written));
        // When dropped, noq answers STOP_SENDING with the peer's own code, as RFC 9000 §3.5 asks for.
        self.closed |= matches!(written, Err(WriteError::Stopped(_)));
        Poll::Ready(written.map_err(|error| self.supervised.write_error(error)))
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            // The frame before was given up half-way, by a dropped future: what follows would be
            // taken for its rest.
            let reason = "a frame was sent before the one before it was".to_owned();
            return Err(lost(ConnectionErrorIncoming::InternalError(reason)));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if self.acknowledged.is_none() {
            ready!(self.poll_ready(cx))?;
            let finished = self.stream.finish();
            self.closed = true;
            finished.map_err(|error| StreamErrorIncoming::Unknown(error.into()))?;
            // It is the turn of others now.
            self.body = None;
            if self.turn.take().is_some() {
                self.acknowledged = Some(Box::pin(self.stream.stopped()));
            }
        }
        self.poll_acknowledged(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        // Fails if it is closed already, and then there is nothing to reset.
        let _ = self.stream.reset(varint(reset_code));
        self.closed = true;
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}
