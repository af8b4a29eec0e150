//! A body in pieces, as fast as the rate limit lets it.

use std::io;
use std::num::NonZeroU64;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::content::Excerpt;
use super::pace::Pace;

/// What is left of a body.
pub(crate) struct Chunks {
    rest: Excerpt,
    pace: Pace,
}

impl Chunks {
    /// All of `body`, at `rate` bit/s, or as fast as it goes.
    pub(crate) fn new(body: Excerpt, rate: Option<NonZeroU64>) -> Self {
        Self {
            rest: body,
            pace: Pace::new(rate, Instant::now()),
        }
    }

    /// The next piece, when it is its time.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.is_over() {
            return None;
        }
        let Excerpt { content, range } = &mut self.rest;
        let len = self.pace.chunk().min(range.end - range.start);
        let chunk = content.read(range.start, len as usize).await;
        if let Some(at) = self.pace.reserve(len, Instant::now()) {
            sleep_until(at).await;
        }
        range.start += len;
        Some(chunk)
    }

    /// Whether there was the last piece.
    pub(crate) fn is_over(&self) -> bool {
        self.rest.range.is_empty()
    }
}
