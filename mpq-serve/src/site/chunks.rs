//! A body in pieces, as fast as the rate limits let it, and as large as memory lets them be.

use std::io;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::content::Excerpt;
use super::held::HELD;
use super::pace::Paces;

/// What is left of a body.
pub(crate) struct Chunks {
    rest: Excerpt,
    paces: Paces,
}

impl Chunks {
    /// All of `body`, no faster than that.
    pub(crate) fn new(body: Excerpt, paces: Paces) -> Self {
        Self { rest: body, paces }
    }

    /// The next piece, when it is its time.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.is_over() {
            return None;
        }
        let Excerpt { content, range } = &mut self.rest;
        let room = HELD.room(self.paces.chunk().min(range.end - range.start));
        let len = room.bytes();
        let chunk = content.read(range.start, len as usize).await;
        if let Some(at) = self.paces.reserve(len, Instant::now()) {
            sleep_until(at).await;
        }
        range.start += len;
        Some(chunk.map(|bytes| room.filled(bytes)))
    }

    /// Whether there was the last piece.
    pub(crate) fn is_over(&self) -> bool {
        self.rest.range.is_empty()
    }
}
