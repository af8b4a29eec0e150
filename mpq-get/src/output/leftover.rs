//! What has become of a body on the disk: a file, or a `.part` that is left.

use std::path::{Path, PathBuf};

use super::destination::{Destination, Rename};
use super::part_meta::PartMeta;
use crate::error::{Error, cannot_write};

/// A body that has been written completely; until it is published, its file is called `.part`.
#[derive(Debug)]
pub struct Written {
    /// Bytes written.
    pub bytes: u64,
    /// SHA-256 of these bytes, lower-case hexadecimal.
    pub sha256: String,
    pub(super) rename: Option<Rename>,
}

/// What is left on the disk of a body that did not become a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftover(pub(super) Option<(PathBuf, u64)>);

impl Written {
    /// Gives the file its final name.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be renamed, and what is on the disk.
    pub fn publish(mut self) -> Result<Written, (Error, Leftover)> {
        if let Some(Rename { part, path }) = &self.rename {
            if let Err(source) = std::fs::rename(part, path) {
                return Err((cannot_write(path, source), self.keep()));
            }
            // Without its .part it says nothing to anybody.
            let _ = PartMeta::store(None, part);
            self.rename = None;
        }
        Ok(self)
    }

    /// Leaves it as it is.
    pub fn keep(self) -> Leftover {
        Leftover(self.rename.map(|rename| (rename.part, self.bytes)))
    }
}

impl Leftover {
    /// Nothing was written.
    pub const NOTHING: Leftover = Leftover(None);

    /// The `.part` file that an earlier run has left, if there is one with something in it.
    pub fn earlier(destination: &Destination) -> Leftover {
        let part = destination.part();
        Leftover(part.and_then(|part| {
            let bytes = part.metadata().ok()?.len();
            (bytes > 0).then_some((part, bytes))
        }))
    }

    /// The file's path and its size in bytes.
    pub fn part(&self) -> Option<(&Path, u64)> {
        self.0
            .as_ref()
            .map(|(part, bytes)| (part.as_path(), *bytes))
    }

    /// Whether a later run may go on with it.
    pub fn is_resumable(&self) -> bool {
        self.part()
            .is_some_and(|(part, bytes)| bytes > 0 && PartMeta::path(part).exists())
    }
}
