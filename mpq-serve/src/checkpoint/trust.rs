//! Which folders can hold keys: those that no other user can change, on the whole way to them.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{At, Error};

const WRITABLE_BY_OTHERS: u32 = 0o022;
const OPEN_TO_OTHERS: u32 = 0o077;
/// In such a folder nobody can rename or remove what is somebody else's.
const STICKY: u32 = 0o1000;

/// A folder as it can be used from now on: without symbolic links, and such that no other user can put another one
/// in its place.
///
/// # Errors
/// It is a symbolic link, or another user owns it, or may write to it or to a folder above it.
pub fn path(folder: &Path) -> Result<PathBuf, Error> {
    own_type(folder, Metadata::is_dir, "is no folder")?;
    let real = fs::canonicalize(folder).at(folder)?;
    for part in real.ancestors() {
        let metadata = fs::symlink_metadata(part).at(part)?;
        if ![0, me()].contains(&metadata.uid()) {
            return Err(owner(part, &metadata));
        }
        let mode = metadata.mode();
        if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
            return Err(refused(part, "others may write to it: chmod go-w"));
        }
    }
    Ok(real)
}

/// A folder that nobody but this user may look into.
///
/// # Errors
/// It is none, is a symbolic link, is not the user's, or is open to others.
pub fn private_folder(folder: &Path, user: u32) -> Result<(), Error> {
    let metadata = owned(folder, user, Metadata::is_dir, "is no folder")?;
    match metadata.mode() & OPEN_TO_OTHERS {
        0 => Ok(()),
        _ => Err(refused(folder, "it is open to others: chmod 700")),
    }
}

/// A folder that is this user's and that nobody else may write to.
///
/// # Errors
/// It is none, is a symbolic link, is not the user's, or others may write to it.
pub fn own_folder(folder: &Path, user: u32) -> Result<(), Error> {
    let metadata = owned(folder, user, Metadata::is_dir, "is no folder")?;
    match metadata.mode() & WRITABLE_BY_OTHERS {
        0 => Ok(()),
        _ => Err(refused(folder, "others may write to it: chmod go-w")),
    }
}

/// A file that is this user's and that nobody else may write to.
///
/// # Errors
/// It is none, is a symbolic link, is not this user's, or others may write to it.
pub fn file(file: &Path) -> Result<Metadata, Error> {
    let metadata = owned(file, me(), Metadata::is_file, "is no file")?;
    match metadata.mode() & WRITABLE_BY_OTHERS {
        0 => Ok(metadata),
        _ => Err(refused(file, "others may write to it: chmod 600")),
    }
}

/// A name that only this user or root can have lead to what it leads to.
///
/// # Errors
/// Another user owns a link, a folder or a file on the way.
pub fn way(path: &Path, user: u32) -> Result<(), Error> {
    let absolute = std::path::absolute(path).at(path)?;
    let real = fs::canonicalize(path).at(path)?;
    for part in absolute.ancestors().chain(real.ancestors()) {
        let metadata = fs::symlink_metadata(part).at(part)?;
        if ![0, user].contains(&metadata.uid()) {
            return Err(owner(part, &metadata));
        }
    }
    Ok(())
}

/// The user of this process.
pub fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn owned(path: &Path, user: u32, is: fn(&Metadata) -> bool, not: &str) -> Result<Metadata, Error> {
    let metadata = own_type(path, is, not)?;
    match metadata.uid() == user {
        true => Ok(metadata),
        false => Err(owner(path, &metadata)),
    }
}

fn own_type(path: &Path, is: fn(&Metadata) -> bool, not: &str) -> Result<Metadata, Error> {
    let metadata = fs::symlink_metadata(path).at(path)?;
    match is(&metadata) {
        true => Ok(metadata),
        false if metadata.is_symlink() => Err(refused(path, "it is a symbolic link")),
        false => Err(refused(path, &format!("it {not}"))),
    }
}

fn owner(path: &Path, metadata: &Metadata) -> Error {
    refused(path, &format!("it belongs to user {}", metadata.uid()))
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::Untrusted(path.to_owned(), reason.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_others_can_change_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let (shared, inner) = (base.path().join("shared"), base.path().join("shared/inner"));
        fs::create_dir_all(&inner).unwrap();
        let link = base.path().join("link");
        symlink(&shared, &link).unwrap();

        chmod(&shared, 0o755);
        assert_eq!(path(&inner).unwrap(), fs::canonicalize(&inner).unwrap());
        assert!(reason(path(&link)).contains("symbolic link"));
        // Above it, a link is followed once, and never again.
        assert_eq!(path(&link.join("inner")).unwrap(), path(&inner).unwrap());
        chmod(&shared, 0o775);
        assert!(reason(path(&inner)).contains("others may write"));
        chmod(&shared, 0o1777);
        path(&inner).unwrap();

        chmod(&inner, 0o750);
        assert!(reason(private_folder(&inner, me())).contains("open to others"));
        chmod(&inner, 0o700);
        private_folder(&inner, me()).unwrap();
        assert!(reason(private_folder(&inner, me() + 1)).contains("belongs to user"));

        let text = inner.join("file");
        fs::write(&text, "").unwrap();
        chmod(&text, 0o620);
        assert!(reason(file(&text)).contains("others may write"));
        chmod(&text, 0o600);
        file(&text).unwrap();
        assert!(reason(file(&inner)).contains("no file"));
    }
}
