//! The file that a body is written into until it is complete: whose it is, and what becomes of it.
//!
//! A part is held by a lock as long as a download writes to it, so that no two write into one. Whatever is at its
//! path and is not of the same URL stays as it is: then the part gets another name.

use std::fs::{File, FileTimes, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::holder::holder;
use super::names;
use super::part_meta::{self, PartMeta};
use crate::error::{Error, cannot_write};
use crate::http::resume::{Partial, Restart};

/// Names that are tried.
const MAX_PARTS: u32 = 100;

/// A part that this process writes to, and nobody else.
#[derive(Debug)]
pub struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    /// There was none before.
    is_new: bool,
    /// It has another name by now.
    is_settled: bool,
}

/// A file at a part's path that is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    /// Its path.
    pub path: PathBuf,
    /// Why it is not gone on with.
    pub why: Restart,
}

/// A part for a URL, what there is in it, and what was left alone for it.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) part: Part,
    pub(super) partial: Partial,
    pub(super) left_alone: Vec<LeftAlone>,
}

impl Part {
    /// Takes the part for a download of `url` into `target`: that which an earlier run has left, or a new one.
    ///
    /// # Errors
    /// [`Error::Write`] if the target could not be written, and [`Error::Part`] if another process writes to the part,
    /// or it is no file that can be trusted.
    pub(super) fn claim(target: &Path, url: &str) -> Result<Claim, Error> {
        is_writable(target).map_err(|e| cannot_write(target, e))?;
        let mut left_alone = Vec::new();
        for number in 0..MAX_PARTS {
            let path = names::part(target, number);
            let part = Part::open(path, target)?;
            let mut partial = part_meta::partial(&part.path, url);
            match partial.version {
                // Nothing can be lost of it.
                Err(_) if partial.bytes == 0 => partial = Partial::default(),
                Err(why @ (Restart::NoRecord | Restart::OtherUrl(_))) => {
                    let path = part.path.clone();
                    left_alone.push(LeftAlone { path, why });
                    continue;
                }
                _ => {}
            }
            return Ok(Claim {
                part,
                partial,
                left_alone,
            });
        }
        let source = io::Error::other("too many parts of other downloads beside it");
        Err(cannot_write(target, source))
    }

    fn open(path: PathBuf, target: &Path) -> Result<Part, Error> {
        loop {
            let (file, is_new) = match open(&path) {
                // It was removed just now, by whoever had it.
                Err(error) if error.kind() == ErrorKind::NotFound && has_folder(&path) => continue,
                Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                    return Err(unusable(&path, "it is a symbolic link: remove it"));
                }
                opened => opened.map_err(|e| cannot_write(&path, e))?,
            };
            let known = file.metadata().map_err(|e| cannot_write(&path, e))?;
            if !known.is_file() {
                return Err(unusable(&path, "it is no regular file: remove it"));
            }
            if known.nlink() > 1 {
                let reason = "the same file has another name (a hard link): remove it";
                return Err(unusable(&path, reason));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let reason = format!(
                        "{} downloads into it: wait until that has ended, or use another -o",
                        holder(&known)
                    );
                    return Err(unusable(&path, &reason));
                }
                // Some network file systems have no locks.
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {}
                Err(TryLockError::Error(error)) => return Err(cannot_write(&path, error)),
            }
            // Whoever had the lock before may have given the file another name.
            if is_at(&known, &path) {
                let target = target.to_owned();
                return Ok(Part {
                    file,
                    path,
                    target,
                    is_new,
                    is_settled: false,
                });
            }
        }
    }

    /// The file, to be written to.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is to become.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Bytes in it.
    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |known| known.len())
    }

    /// Gives it its final name, with these times. A file that has that name already keeps its mode and its owner; where
    /// these could not be kept, or it has other names as well, it gets the content.
    ///
    /// # Errors
    /// The path that could not be written, and why. The part is there still.
    pub(super) fn publish(&mut self, times: Option<FileTimes>) -> Result<(), Error> {
        let wrong = |e| cannot_write(&self.target, e);
        let replaced = match self.target.symlink_metadata() {
            Ok(known) => Some(known),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(wrong(error)),
        };
        match replaced {
            Some(known) if !self.takes_after(&known) => {
                self.copy_into_target(times).map_err(wrong)?;
                let _ = std::fs::remove_file(&self.path);
            }
            _ => {
                let dated = times.map_or(Ok(()), |times| self.file.set_times(times));
                dated.map_err(wrong)?;
                std::fs::rename(&self.path, &self.target).map_err(wrong)?;
            }
        }
        self.is_settled = true;
        // Without its part it says nothing to anybody.
        let _ = PartMeta::store(None, &self.path);
        Ok(())
    }

    /// Puts it away: it is not what was asked for, and nobody is to go on with it. Returns its new path.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub(super) fn reject(&mut self) -> io::Result<PathBuf> {
        let path = names::bad(&self.target);
        std::fs::rename(&self.path, &path)?;
        self.is_settled = true;
        let _ = PartMeta::store(None, &self.path);
        Ok(path)
    }

    /// Gives the part the owner and the mode of the file that it is to replace; whether that worked.
    fn takes_after(&self, known: &Metadata) -> bool {
        let Ok(here) = self.file.metadata() else {
            return false;
        };
        let same_owner = (here.uid(), here.gid()) == (known.uid(), known.gid());
        known.nlink() == 1
            && (same_owner || fchown(&self.file, Some(known.uid()), Some(known.gid())).is_ok())
            && self.file.set_permissions(known.permissions()).is_ok()
    }

    fn copy_into_target(&self, times: Option<FileTimes>) -> io::Result<()> {
        let mut part = File::open(&self.path)?;
        let mut options = File::options();
        let mut target = options.write(true).truncate(true).open(&self.target)?;
        io::copy(&mut part, &mut target)?;
        // Only its owner may set them.
        let _ = times.map(|times| target.set_times(times));
        Ok(())
    }
}

/// One that nothing came into is not left behind.
impl Drop for Part {
    fn drop(&mut self) {
        if self.is_new && !self.is_settled && self.bytes() == 0 {
            let _ = std::fs::remove_file(&self.path);
            let _ = PartMeta::store(None, &self.path);
        }
    }
}

/// Opens a part, and whether it was made. No link is followed, and no pipe is waited for.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let flags = flags.bits().cast_signed();
            Ok((options.custom_flags(flags).open(path)?, false))
        }
        made => Ok((made?, true)),
    }
}

/// Whether what is to be replaced may be written.
fn is_writable(target: &Path) -> io::Result<()> {
    match File::options().write(true).open(target) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn has_folder(path: &Path) -> bool {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).is_dir()
}

fn is_at(known: &Metadata, path: &Path) -> bool {
    let there = path.symlink_metadata();
    there.is_ok_and(|there| (there.dev(), there.ino()) == (known.dev(), known.ino()))
}

fn has_no_locks(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    error.kind() == ErrorKind::Unsupported || code == Some(Errno::NOLCK.raw_os_error())
}

fn unusable(path: &Path, reason: &str) -> Error {
    Error::Part {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
