//! What has become of a body on the disk: a file, or a `.part` that is left.

use std::fs::FileTimes;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::part::Part;
use super::part_meta;
use crate::error::{Error, cannot_write};

/// A body that has been written completely; until it is published, its file is called `.part`.
#[derive(Debug)]
pub struct Written {
    /// Bytes written.
    pub bytes: u64,
    /// SHA-256 of these bytes, lower-case hexadecimal.
    pub sha256: String,
    pub(super) part: Option<Part>,
}

/// What is left on the disk of a body that did not become a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftover(Option<(PathBuf, u64)>);

impl Written {
    /// Gives the file its final name, and its time if that is known.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be renamed, and what is on the disk.
    pub fn publish(mut self, modified: Option<SystemTime>) -> Result<Written, (Error, Leftover)> {
        let Some(part) = &mut self.part else {
            return Ok(self);
        };
        match part.publish(modified.map(|time| FileTimes::new().set_modified(time))) {
            Ok(()) => Ok(self),
            Err(error) => Err((error, self.keep())),
        }
    }

    /// Leaves it as it is.
    pub fn keep(self) -> Leftover {
        Leftover(self.part.map(|part| (part.path().to_owned(), self.bytes)))
    }

    /// Puts it away, since it is not what was asked for.
    ///
    /// # Errors
    /// [`Error::Write`] if that cannot be done; then it is where it was.
    pub fn reject(mut self) -> Result<Leftover, (Error, Leftover)> {
        let Some(part) = &mut self.part else {
            return Ok(Leftover::NOTHING);
        };
        match part.reject() {
            Ok(path) => Ok(Leftover(Some((path, self.bytes)))),
            Err(source) => {
                let error = cannot_write(part.path(), source);
                Err((error, self.keep()))
            }
        }
    }
}

impl Leftover {
    /// Nothing was written.
    pub const NOTHING: Leftover = Leftover(None);

    /// What is in a part, if anything is.
    pub(super) fn of(part: &Part) -> Leftover {
        let bytes = part.bytes();
        Leftover((bytes > 0).then(|| (part.path().to_owned(), bytes)))
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
            .is_some_and(|(part, bytes)| bytes > 0 && part_meta::is_resumable(part))
    }
}
