//! The sending half of a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use noq::WriteError;

use super::error::{lost, stream_id, varint, write_error};
use super::send_window::Body;

/// The sending half of a stream. Dropped before it is finished, it is reset.
pub struct SendStream<B: Buf> {
    stream: noq::SendStream,
    /// What noq did not take yet.
    writing: Option<WriteBuf<B>>,
    /// How much it may take, if that is bounded.
    body: Option<Body>,
    /// Finished, reset, or stopped by the peer: noq may drop it as it likes.
    closed: bool,
}

impl<B: Buf> SendStream<B> {
    pub(super) fn new(stream: noq::SendStream, body: Option<Body>) -> Self {
        Self {
            stream,
            writing: None,
            body,
            closed: false,
        }
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
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
            if let Some(body) = &self.body {
                body.adapt();
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())) {
                Ok(written) => data.advance(written),
                Err(error) => {
                    // When dropped, noq answers STOP_SENDING with the peer's own code, as RFC 9000
                    // §3.5 asks for.
                    self.closed |= matches!(error, WriteError::Stopped(_));
                    return Poll::Ready(Err(write_error(error)));
                }
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
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
