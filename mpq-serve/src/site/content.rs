//! What bodies are made of: `/random`, a file, a listing, or a line of text.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

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
    File(Box<StoredFile>),
    /// Made for the answer, of this media type.
    Page(Bytes, HeaderValue),
}

pub(super) const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

impl Content {
    /// The text that goes with a status that is not a success.
    pub(super) fn text(status: StatusCode) -> Self {
        Self::Page(format!("{status}\n").into(), TEXT)
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Random(random) => random.size(),
            Self::File(file) => file.len(),
            Self::Page(page, _) => page.len() as u64,
        }
    }

    pub(super) fn content_type(&self) -> HeaderValue {
        match self {
            Self::Random(_) => BYTES,
            Self::File(file) => file.content_type().clone(),
            Self::Page(_, media_type) => media_type.clone(),
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
            Self::File(file) => file.read(offset, len).await,
            Self::Page(page, _) => Ok(page.slice(offset as usize..offset as usize + len)),
        }
    }
}
