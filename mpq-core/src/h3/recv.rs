//! The receiving half of a stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h3::quic::{self, StreamErrorIncoming, StreamId};
use noq::ReadError;

use super::error::{read_error, stream_id, varint};
use super::reassembly::Chunks;

/// The receiving half of a stream.
pub struct RecvStream {
    chunks: Chunks,
    failure: Option<ReadError>,
}

impl From<Chunks> for RecvStream {
    fn from(chunks: Chunks) -> Self {
        Self {
            chunks,
            failure: None,
        }
    }
}

impl RecvStream {
    pub(super) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        let chunk = ready!(self.chunks.poll_next(cx));
        self.failure = chunk.as_ref().err().cloned();
        Poll::Ready(chunk)
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.poll_chunk(cx).map_err(read_error)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.chunks.stop(varint(error_code));
        self.failure.get_or_insert(ReadError::ClosedStream);
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.chunks.id())
    }
}
