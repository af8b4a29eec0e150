//! The sending half of a stream.

use std::task::{Context, Poll, ready};

use bytes::Buf;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use noq::WriteError;

use super::error::{lost, stream_id, varint};
use super::go_away::Stream;
use super::send_window::Body;
use super::supervision::Supervised;
use super::turns::{Room, Turn};

/// The sending half of a stream. Dropped before it is finished, it is reset.
pub struct SendStream<B: Buf> {
    stream: Stream,
    supervised: Supervised,
    /// What noq did not take yet.
    writing: Option<WriteBuf<B>>,
    /// When it is sent, if it is an answer, and noq's priority for that.
    turn: Option<(Turn, i32)>,
    written: u64,
    /// When and how much it may take, if that is bounded.
    body: Option<Body>,
    /// Finished, reset, or stopped by the peer: noq may drop it as it likes.
    closed: bool,
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
            body,
            closed: false,
        }
    }

    /// Hands to noq what is being written.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
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
                ready!(body.poll_room(self.stream.id(), room, cx));
            }
            let written = ready!(self.stream.poll_write(cx, data.chunk()))?;
            data.advance(written);
            self.written += written as u64;
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }
}

impl<B: Buf> Drop for SendStream<B> {
    fn drop(&mut self) {
        if !self.closed {
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
        ready!(self.poll_ready(cx))?;
        let finished = self.stream.finish();
        self.closed = true;
        Poll::Ready(finished.map_err(|error| StreamErrorIncoming::Unknown(error.into())))
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
