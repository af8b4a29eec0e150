//! Who may wake the server of a checkpoint: whoever has its token, and once.
//!
//! Two servers that wake from the same images send with the same keys, and their clients hear both. So the images
//! are dead without their token, a small file beside them. It counts in one folder only, which is known by its
//! inode and the time at which it was made: a copy of the folder is another one. [`release`] lets a copy wake instead,
//! for a while, and no more the folder that it is released from. The token is [spent](spend) before the restored process
//! runs its first instruction.
//!
//! Without a channel between the hosts nobody can see that two copies of a released token are both used, or that
//! the one who takes a token back after that while has not looked whether a copy has woken.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::notes::{now, read_json, write_json};
use crate::error::{At, Error};

/// The name of the token in the folder of the images,
pub const FILE: &str = "token.json";
/// and what it is called once the server has woken.
pub const SPENT: &str = "token.spent";
/// By how much the clocks of two hosts may differ.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);

/// The right to wake the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The digest of the manifest that it is for.
    manifest: String,
    holder: Holder,
}

/// Where a token counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Holder {
    /// In this folder only.
    Folder(Place),
    /// Anywhere else,
    Released {
        /// but here,
        from: Place,
        /// and until then, seconds since 1970.
        until: u64,
    },
}

/// A folder, and no copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    inode: u64,
    /// When it was made, or where that is not known when the system started, which is enough in memory.
    made: String,
    /// For people.
    named: String,
}

/// What an operator takes upon himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nothing.
    Usual,
    /// That no copy has woken of images that were released from here.
    Rollback,
    /// That no other copy has woken, nor will.
    Forced,
    /// Nothing: the token will come when the server is restored and stands still.
    Awaited,
}

impl Place {
    fn of(folder: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(folder).at(folder)?;
        let made = match metadata
            .created()
            .ok()
            .map(|at| at.duration_since(UNIX_EPOCH))
        {
            Some(Ok(since)) => since.as_nanos().to_string(),
            _ => of_kernel("random/boot_id"),
        };
        let host = of_kernel("hostname");
        Ok(Self {
            inode: metadata.ino(),
            made,
            named: format!("{host}:{}", folder.display()),
        })
    }

    fn is(&self, other: &Self) -> bool {
        (self.inode, &self.made) == (other.inode, &other.made)
    }
}

fn of_kernel(name: &str) -> String {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(name));
    text.unwrap_or_default().trim().to_owned()
}

/// What tells a manifest from any other, and from one that was changed.
fn digest(manifest: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(manifest))
}

/// Whether the server of these images has woken.
pub fn is_spent(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(SPENT)).is_ok()
}

/// Makes the token of new images, which counts in this folder.
///
/// # Errors
/// Those of the file system.
pub fn issue(folder: &Path, manifest: &[u8]) -> Result<(), Error> {
    let token = Token {
        manifest: digest(manifest),
        holder: Holder::Folder(Place::of(folder)?),
    };
    write(folder, &token)
}

impl Token {
    /// That of a folder, if there is one.
    pub fn read(folder: &Path) -> Option<Self> {
        read_json(&folder.join(FILE))
    }

    /// Whether it is for this manifest.
    pub fn is_for(&self, manifest: &[u8]) -> bool {
        self.manifest == digest(manifest)
    }
}

/// Whether the server may wake from this folder now.
///
/// # Errors
/// Why it may not.
pub fn check(folder: &Path) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::Fenced(folder.to_owned(), reason));
    if is_spent(folder) {
        return refused("their server has woken already; they are of no more use".to_owned());
    }
    let here = Place::of(folder)?;
    match Token::read(folder).map(|token| token.holder) {
        None => refused(format!("there is no {FILE}; copy it from where they are")),
        Some(Holder::Folder(place)) if place.is(&here) => Ok(()),
        Some(Holder::Folder(place)) => refused(format!(
            "they are a copy, and may wake in {} only; run `mpq-serve release` there, and copy {FILE} from there",
            place.named
        )),
        Some(Holder::Released { from, until }) if from.is(&here) => refused(format!(
            "they were released from here, and a copy may wake or have woken until {}; if none has, restore with \
             --rollback",
            date(until)
        )),
        Some(Holder::Released { from, until }) if late(until, Duration::ZERO) => refused(format!(
            "they were released until {}, which is over; run `mpq-serve release` again in {}, and copy {FILE} from there",
            date(until),
            from.named
        )),
        Some(Holder::Released { .. }) => Ok(()),
    }
}

/// Has the server wake from this folder and nowhere else, by what an operator knows. The folder must be locked.
///
/// # Errors
/// It has woken, or that is not enough.
pub fn claim(folder: &Path, manifest: &[u8], claim: Claim) -> Result<(), Error> {
    let Err(reason) = check(folder) else {
        return Ok(());
    };
    let token = Token::read(folder).map(|token| token.holder);
    let here = Place::of(folder)?;
    match (claim, token) {
        (Claim::Forced, _) if !is_spent(folder) => issue(folder, manifest),
        (Claim::Awaited, None) if !is_spent(folder) => Ok(()),
        (Claim::Rollback, Some(Holder::Released { from, until }))
            if from.is(&here) && !is_spent(folder) =>
        {
            if !late(until, CLOCK_DIFFERENCE) {
                let left = until + CLOCK_DIFFERENCE.as_secs() - now() as u64;
                return Err(Error::Fenced(
                    folder.to_owned(),
                    format!(
                        "a copy may still wake; try again in {left} s, or release the copy and bring its {FILE} back"
                    ),
                ));
            }
            issue(folder, manifest)
        }
        _ => Err(reason),
    }
}

/// Lets a copy of this folder wake instead of it, for so long. The folder must be locked.
///
/// # Errors
/// The server may not wake from this folder, so that it has nothing to give; those of the file system.
pub fn release(folder: &Path, valid: Duration) -> Result<(), Error> {
    // Once more, if the time was too short.
    let renewed = |token: &Token, here: &Place| match &token.holder {
        Holder::Released { from, .. } => from.is(here) && !is_spent(folder),
        Holder::Folder(_) => false,
    };
    let token = Token::read(folder);
    let here = Place::of(folder)?;
    if !token.as_ref().is_some_and(|token| renewed(token, &here)) {
        check(folder)?;
    }
    let token = token.ok_or_else(|| Error::NoImages(folder.to_owned()))?;
    let until = (now() + valid.as_secs_f64()).ceil() as u64;
    let holder = Holder::Released { from: here, until };
    write(folder, &Token { holder, ..token })
}

/// Uses the token up, for good, also if the machine stops now. Called before the restored process runs.
///
/// # Errors
/// It does not count here, or not any more, or somebody else has used it up.
pub fn spend(folder: &Path) -> Result<(), Error> {
    check(folder)?;
    let file = folder.join(FILE);
    fs::rename(&file, folder.join(SPENT)).at(&file)?;
    sync(folder).at(folder)
}

fn date(since_1970: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(since_1970))
}

fn late(until: u64, by: Duration) -> bool {
    now() > (until + by.as_secs()) as f64
}

fn write(folder: &Path, token: &Token) -> Result<(), Error> {
    let file: PathBuf = folder.join(FILE);
    write_json(&file, token)?;
    File::open(&file)
        .and_then(|file| file.sync_all())
        .at(&file)?;
    sync(folder).at(folder)
}

/// What was renamed in it stays so.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"manifest";

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    fn reason(result: Result<(), Error>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.code(), 11, "{error}");
        error.to_string()
    }

    /// As if it had been released long ago.
    fn expire(folder: &Path, ago: u64) {
        let mut token = Token::read(folder).unwrap();
        if let Holder::Released { until, .. } = &mut token.holder {
            *until = now() as u64 - ago;
        }
        write(folder, &token).unwrap();
    }

    #[test]
    fn a_token_counts_once_and_where_it_is() {
        let base = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| base.path().join(name));
        fs::create_dir(&a).unwrap();
        issue(&a, TEXT).unwrap();
        assert!(Token::read(&a).unwrap().is_for(TEXT));
        assert!(!Token::read(&a).unwrap().is_for(b"another"));
        check(&a).unwrap();
        copy(&a, &b);
        assert!(reason(check(&b)).contains("they are a copy"));
        assert!(reason(release(&b, Duration::from_secs(9))).contains("they are a copy"));
        assert!(reason(claim(&b, TEXT, Claim::Rollback)).contains("they are a copy"));
        // It is the same folder under another name.
        fs::rename(&a, &c).unwrap();
        check(&c).unwrap();
        spend(&c).unwrap();
        assert!(reason(spend(&c)).contains("woken already"));
        for kind in [Claim::Usual, Claim::Rollback, Claim::Forced] {
            assert!(reason(claim(&c, TEXT, kind)).contains("woken already"));
        }
        claim(&b, TEXT, Claim::Forced).unwrap();
        spend(&b).unwrap();
    }

    #[test]
    fn what_is_released_wakes_elsewhere_and_for_a_while() {
        let base = tempfile::tempdir().unwrap();
        let [a, b, late] = ["a", "b", "late"].map(|name| base.path().join(name));
        fs::create_dir(&a).unwrap();
        issue(&a, TEXT).unwrap();
        release(&a, Duration::from_secs(600)).unwrap();
        assert!(reason(check(&a)).contains("released from here"));
        copy(&a, &b);
        check(&b).unwrap();
        // Given back.
        release(&b, Duration::from_secs(600)).unwrap();
        assert!(reason(check(&b)).contains("released from here"));
        fs::copy(b.join(FILE), a.join(FILE)).unwrap();
        check(&a).unwrap();

        // Taken back, once no copy can wake any more.
        release(&a, Duration::from_secs(600)).unwrap();
        assert!(reason(claim(&a, TEXT, Claim::Rollback)).contains("may still wake"));
        expire(&a, 50);
        copy(&a, &late);
        assert!(reason(spend(&late)).contains("which is over"));
        assert!(reason(claim(&late, TEXT, Claim::Rollback)).contains("which is over"));
        assert!(reason(claim(&a, TEXT, Claim::Rollback)).contains("may still wake"));
        expire(&a, 70);
        assert!(reason(claim(&a, TEXT, Claim::Usual)).contains("released from here"));
        claim(&a, TEXT, Claim::Rollback).unwrap();
        spend(&a).unwrap();
    }

    #[test]
    fn a_release_can_be_renewed_and_nobody_has_to_wait_who_is_certain() {
        let base = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| base.path().join(name));
        fs::create_dir(&a).unwrap();
        issue(&a, TEXT).unwrap();
        release(&a, Duration::from_secs(600)).unwrap();
        expire(&a, 5);
        release(&a, Duration::from_secs(600)).unwrap();
        copy(&a, &b);
        check(&b).unwrap();
        claim(&a, TEXT, Claim::Forced).unwrap();
        check(&a).unwrap();
        fs::remove_file(a.join(FILE)).unwrap();
        assert!(reason(check(&a)).contains("no token.json"));
    }
}
