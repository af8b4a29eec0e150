//! What the files beside a download's file are called.
//!
//! | | |
//! | --- | --- |
//! | `FILE.part`, `FILE.1.part`, ... | what there is of it |
//! | `FILE.part.meta` | what that is of |
//! | `FILE.bad`, `FILE.1.bad`, ... | a body that had another checksum |
//!
//! Where that would be longer than a file's name may be, the end of FILE gives way to a part of its digest.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Bytes of a file's name at the most, on nearly every file system.
const LONGEST: usize = 255;
/// The longest of all endings.
const ROOM: usize = ".99.part.meta.new".len();

/// What there is of the body of `target`; others than the first if that is somebody else's.
pub(super) fn part(target: &Path, number: u32) -> PathBuf {
    numbered(target, number, ".part")
}

/// The record beside a part.
pub(super) fn meta(part: &Path) -> PathBuf {
    with(part, ".meta")
}

/// The record while it is written.
pub(super) fn new_meta(part: &Path) -> PathBuf {
    with(part, ".meta.new")
}

/// A body with a wrong checksum: the first name that is free.
pub(super) fn bad(target: &Path) -> PathBuf {
    let names = (0..).map(|number| numbered(target, number, ".bad"));
    let mut free = names.skip_while(|path| path.symlink_metadata().is_ok());
    free.next().expect("there is no end of numbers")
}

fn numbered(target: &Path, number: u32, ending: &str) -> PathBuf {
    let mut name = stem(target.file_name().unwrap_or_default());
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.push(ending);
    target.with_file_name(name)
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A name that leaves room for every ending.
fn stem(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    if bytes.len() + ROOM <= LONGEST {
        return name.to_owned();
    }
    let digest = format!("~{}", HEXLOWER.encode(&Sha256::digest(bytes)[..4]));
    let most = LONGEST - ROOM - digest.len();
    // Not in the middle of a character.
    let mut cuts = (0..=most).rev();
    let cut = cuts.find(|cut| bytes[*cut] & 0xc0 != 0x80).unwrap_or(most);
    let mut stem = OsString::from_vec(bytes[..cut].to_vec());
    stem.push(digest);
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_added() {
        let target = Path::new("folder/a.b");
        assert_eq!(part(target, 0), Path::new("folder/a.b.part"));
        assert_eq!(part(target, 2), Path::new("folder/a.b.2.part"));
        assert_eq!(meta(&part(target, 0)), Path::new("folder/a.b.part.meta"));
    }

    #[test]
    fn long_names_have_room_and_are_told_apart() {
        let path = |name: String| PathBuf::from("folder").join(name);
        let length = |path: &Path| path.file_name().unwrap().len();
        for length_of_name in [238, 239, 255] {
            let (first, second) = ("a".repeat(length_of_name), "a".repeat(length_of_name - 1));
            let part = part(&path(first), 99);
            assert!(length(&new_meta(&part)) <= LONGEST, "{length_of_name}");
            assert_ne!(part, super::part(&path(second + "b"), 99));
        }
        let umlauts = part(&path("ä".repeat(127)), 0);
        assert!(umlauts.to_str().is_some_and(|name| name.contains("ä~")));
    }

    #[test]
    fn what_is_bad_takes_nobodys_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        for expected in ["a.bad", "a.1.bad", "a.2.bad"] {
            let path = bad(&target);
            assert_eq!(path, folder.path().join(expected));
            std::fs::write(path, "").unwrap();
        }
    }
}
