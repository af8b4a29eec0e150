//! The receiving half of a stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h3::quic::{self, StreamErrorIncoming, StreamId};
use noq::ReadError;

use super::error::{stream_id, varint};
use super::priority_updates::PriorityUpdates;
use super::reassembly::Chunks;
use super::supervision::Supervised;
use super::turns::Turns;

/// The receiving half of a stream.
pub struct RecvStream {
    chunks: Chunks,
    supervised: Supervised,
    failure: Option<ReadError>,
    /// What reads along, on a control stream.
    updates: Option<PriorityUpdates>,
}

impl RecvStream {
    pub(super) fn new(chunks: Chunks, supervised: Supervised) -> Self {
        Self {
            chunks,
            supervised,
            failure: None,
            updates: None,
        }
    }

    /// A client's control stream, whose priorities are for these answers.
    pub(super) fn control(chunks: Chunks, supervised: Supervised, turns: Turns) -> Self {
        Self {
            updates: Some(PriorityUpdates::new(turns)),
            ..Self::new(chunks, supervised)
        }
    }

    pub(super) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        let chunk = self.chunks.poll_next(cx);
        let chunk = ready!(self.supervised.note(chunk));
        self.failure = chunk.as_ref().err().cloned();
        if let (Some(updates), Ok(Some(bytes))) = (&mut self.updates, &chunk) {
            updates.read(bytes);
        }
        Poll::Ready(chunk)
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let chunk = self.poll_chunk(cx);
        chunk.map_err(|error| self.supervised.read_error(error))
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.chunks.stop(varint(error_code));
        self.supervised.end();
        self.failure.get_or_insert(ReadError::ClosedStream);
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.chunks.id())
    }
}
