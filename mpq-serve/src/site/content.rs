//! What bodies are made of: `/random`, a file, or a line of text.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use tokio::task::spawn_blocking;

use super::files::StoredFile;
use super::random::Random;

/// Part of some content.
pub(crate) struct Excerpt {
    pub(super) content: Content,
    pub(super) range: Range<u64>,
}

impl Excerpt {
    /// All of `content`.
    pub(super) fn whole(content: Content) -> Self {
        Self {
            range: 0..content.len(),
            content,
        }
    }
}

/// Where bytes come from.
pub(crate) enum Content {
    Random(Random),
    File(Arc<StoredFile>),
    Text(Bytes),
}

impl Content {
    /// The text that goes with a status that is not a success.
    pub(super) fn text(status: StatusCode) -> Self {
        Self::Text(format!("{status}\n").into())
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Random(random) => random.size(),
            Self::File(file) => file.len(),
            Self::Text(text) => text.len() as u64,
        }
    }

    pub(super) fn content_type(&self) -> &'static str {
        match self {
            Self::Random(_) => "application/octet-stream",
            Self::File(file) => file.content_type(),
            Self::Text(_) => "text/plain; charset=utf-8",
        }
    }

    /// Exactly `len` bytes at `offset`, which lie inside.
    pub(super) async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Random(random) => {
                let mut buffer = vec![0; len];
                random.fill(offset, &mut buffer);
                Ok(buffer.into())
            }
            Self::File(file) => {
                let file = Arc::clone(file);
                spawn_blocking(move || file.read(offset, len)).await?
            }
            Self::Text(text) => Ok(text.slice(offset as usize..offset as usize + len)),
        }
    }
}
