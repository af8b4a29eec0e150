//! A server that is restored here, and stands still until the host that it comes from gives up its images.
//!
//! The token beside the images decides. Whoever receives them from another host [holds](hold) a lock meanwhile, and
//! [hands](hand) the token on when it comes. CRIU's [`hook`](super::hook) [waits](await_token) for it: the server runs
//! once the token is there, and never if the receiver has ended without it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;

use nix::libc::O_NOFOLLOW;

use super::control::POLL_INTERVAL;
use super::notes::write_whole;
use super::token;
use crate::error::{At, Error};

/// There when the server is restored and stands still.
pub const READY: &str = "ready";
/// Locked by the receiver for as long as it may hand on a token.
pub const HELD: &str = "held";

/// Says that somebody is there who may hand on the token of the images in this folder, until the file is closed.
///
/// # Errors
/// Somebody else is; those of the file system.
pub fn hold(folder: &Path) -> Result<File, Error> {
    let path = folder.join(HELD);
    let file = open(&path).at(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::ImagesBusy(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(Error::Io(path, error)),
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(path)
}

/// Whether the server stands still, restored.
pub fn is_ready(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(READY)).is_ok()
}

/// Has the server run, by the token that another host has given up.
///
/// # Errors
/// Those of the file system.
pub fn hand(folder: &Path, token: &str) -> Result<(), Error> {
    write_whole(&folder.join(token::FILE), token.as_bytes())
}

/// Says that the server is restored, and returns when its token is there.
///
/// # Errors
/// None will come.
pub fn await_token(folder: &Path) -> Result<(), Error> {
    write_whole(&folder.join(READY), b"")?;
    let is_there = || fs::symlink_metadata(folder.join(token::FILE)).is_ok();
    while !is_there() {
        // Looked at once more after the receiver's last act.
        if hold(folder).is_ok() && !is_there() {
            let reason = "whoever received them has ended, and has not handed them over".to_owned();
            return Err(Error::Fenced(folder.to_owned(), reason));
        }
        sleep(POLL_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_server_runs_once_its_token_is_there_and_never_without_whoever_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let held = hold(path).unwrap();
        assert!(!is_ready(path));
        thread::scope(|scope| {
            let hook = scope.spawn(|| await_token(path));
            while !is_ready(path) {
                thread::yield_now();
            }
            assert!(!hook.is_finished());
            hand(path, "token").unwrap();
            hook.join().unwrap().unwrap();
        });

        // It counts, also if that was its last act.
        drop(held);
        await_token(path).unwrap();
        fs::remove_file(path.join(token::FILE)).unwrap();
        assert!(matches!(await_token(path), Err(Error::Fenced(..))));
    }
}
