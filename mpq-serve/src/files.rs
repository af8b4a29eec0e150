//! The files under `--root`.
//!
//! Names are resolved by the kernel with `openat2` and `RESOLVE_BENEATH`: neither `..` nor a
//! symbolic link can lead out of the root, and no check of ours can be outrun by a rename.
//!
//! No descriptor is held between two chunks of a body, so that a server can be checkpointed at any
//! chunk and restored where the same files lie. Each [`StoredFile::read`] opens, reads, and then
//! checks that the file is still the one that was found; if not, that body has failed.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use httpdate::HttpDate;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// How often a look-up is tried again where the kernel could not rule out a race with a rename.
const RACES: usize = 16;

/// What a directory is answered with.
const INDEX: &str = "index.html";

/// Why a path names no file that can be served.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is nothing there, or it lies outside the root, or it is no regular file.
    #[error("no such file")]
    NotFound,
    /// The server may not read it.
    #[error("the server may not read this file")]
    Forbidden,
    /// The system failed.
    #[error("could not open the file: {0}")]
    Io(#[source] io::Error),
}

impl From<Errno> for FindError {
    fn from(errno: Errno) -> Self {
        match errno {
            // EXDEV: the way led out of the root. ENXIO: a socket or a device without a driver.
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ELOOP
            | Errno::EXDEV
            | Errno::ENAMETOOLONG
            | Errno::ENXIO
            | Errno::EINVAL => Self::NotFound,
            Errno::EACCES => Self::Forbidden,
            other => Self::Io(other.into()),
        }
    }
}

/// A directory whose files are served.
#[derive(Debug, Clone)]
pub struct Root(Arc<Path>);

impl Root {
    /// Serves the files under `directory`, which must exist.
    ///
    /// # Errors
    /// If there is no such directory, or if it cannot be reached.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let directory = directory.canonicalize()?;
        if !directory.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        Ok(Self(directory.into()))
    }

    /// Finds the file for a decoded URL path; blocking. A directory stands for its `index.html`.
    ///
    /// # Errors
    /// See [`FindError`].
    pub fn find(&self, path: &str) -> Result<StoredFile, FindError> {
        let mut path = PathBuf::from(path.trim_start_matches('/'));
        if path.as_os_str().is_empty() {
            path.push(".");
        }
        let mut metadata = self.open(&path)?.metadata().map_err(FindError::Io)?;
        if metadata.is_dir() {
            path.push(INDEX);
            metadata = self.open(&path)?.metadata().map_err(FindError::Io)?;
        }
        if !metadata.is_file() {
            return Err(FindError::NotFound);
        }
        Ok(StoredFile {
            root: self.clone(),
            content_type: mime_guess::from_path(&path)
                .first_raw()
                .unwrap_or("application/octet-stream"),
            path,
            len: metadata.len(),
            etag: etag(&metadata),
            modified: metadata.modified().ok().and_then(http_date),
        })
    }

    /// Opens a path below the root.
    fn open(&self, path: &Path) -> Result<File, Errno> {
        if path.components().any(|part| part.as_os_str() == "..") {
            return Err(Errno::EXDEV);
        }
        let root = open(
            &*self.0,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        // Non-blocking: opening a FIFO would otherwise wait for its writer.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..RACES {
            result = openat2(&root, path, how);
            if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
                break;
            }
        }
        result.map(File::from)
    }
}

/// A file as it was when it was found. Holds no descriptor.
#[derive(Debug, Clone)]
pub struct StoredFile {
    root: Root,
    path: PathBuf,
    len: u64,
    etag: String,
    modified: Option<HttpDate>,
    content_type: &'static str,
}

impl StoredFile {
    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a length, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A strong entity tag (RFC 9110 §8.8.3), made from inode, length and time of change.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// When it was last changed, where HTTP can express that.
    pub fn modified(&self) -> Option<HttpDate> {
        self.modified
    }

    /// The media type its name stands for.
    pub fn content_type(&self) -> &'static str {
        self.content_type
    }

    /// Reads exactly `len` bytes at `offset`; blocking.
    ///
    /// # Errors
    /// If the file is gone, has changed since it was found, or cannot be read.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = self.root.open(&self.path)?;
        let mut buffer = vec![0; len];
        file.read_exact_at(&mut buffer, offset)?;
        // After the read: what is still unchanged now was so while it was being read.
        if etag(&file.metadata()?) != self.etag {
            return Err(io::Error::other("the file has changed"));
        }
        Ok(buffer.into())
    }
}

fn etag(metadata: &Metadata) -> String {
    format!(
        "\"{:x}-{:x}-{:x}-{:x}\"",
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

/// The time as HTTP has it; none outside the years 1970 to 9999, which it cannot express.
fn http_date(time: SystemTime) -> Option<HttpDate> {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since < YEAR_10000).then(|| time.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(inside.join("a.txt"), "0123456789").unwrap();
        let root = Root::new(&inside).unwrap();
        (dir, root)
    }

    #[track_caller]
    fn assert_hidden(root: &Root, path: &str) {
        let found = root.find(path);
        assert!(
            matches!(found, Err(FindError::NotFound)),
            "{path}: {found:?}"
        );
    }

    #[test]
    fn a_file_is_found_and_read_in_parts() {
        let (_dir, root) = root();
        let file = root.find("/a.txt").unwrap();
        assert_eq!(file.len(), 10);
        assert_eq!(file.content_type(), "text/plain");
        assert_eq!(&file.read(3, 4).unwrap()[..], b"3456");
        assert_eq!(
            file.read(8, 3).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn nothing_outside_is_reachable() {
        let (dir, root) = root();
        let inside = dir.path().join("inside");
        symlink("../secret", inside.join("relative")).unwrap();
        symlink(dir.path().join("secret"), inside.join("absolute")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        for path in [
            "/../secret",
            "/a/../../secret",
            "..",
            "/relative",
            "/absolute",
            "/up/secret",
            "/loop",
            "//etc/hostname",
        ] {
            assert_hidden(&root, path);
        }
        // A link that stays inside is as good as its target.
        symlink("a.txt", inside.join("alias")).unwrap();
        assert_eq!(root.find("/alias").unwrap().len(), 10);
    }

    #[test]
    fn a_directory_is_its_index_or_nothing() {
        let (dir, root) = root();
        assert_hidden(&root, "/");
        let inside = dir.path().join("inside");
        fs::create_dir(inside.join("sub")).unwrap();
        fs::write(inside.join("sub/index.html"), "<p>").unwrap();
        for path in ["/sub", "/sub/"] {
            let file = root.find(path).unwrap();
            assert_eq!((file.len(), file.content_type()), (3, "text/html"));
        }
        fs::create_dir(inside.join("index.html")).unwrap();
        assert_hidden(&root, "/");
        assert_hidden(&root, "/a.txt/");
    }

    #[test]
    fn a_fifo_is_no_file_and_does_not_block() {
        let (dir, root) = root();
        nix::unistd::mkfifo(&dir.path().join("inside/fifo"), Mode::S_IRWXU).unwrap();
        assert_hidden(&root, "/fifo");
    }

    #[test]
    fn a_changed_replaced_or_missing_file_fails() {
        let (dir, root) = root();
        let path = dir.path().join("inside/a.txt");

        let file = root.find("/a.txt").unwrap();
        fs::write(&path, "0123456789!").unwrap();
        assert!(file.read(0, 4).is_err(), "grown");

        let file = root.find("/a.txt").unwrap();
        let other = dir.path().join("inside/other");
        fs::write(&other, "0123456789!").unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        File::options()
            .write(true)
            .open(&other)
            .unwrap()
            .set_modified(time)
            .unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(
            file.read(0, 4).is_err(),
            "replaced, with the same length and time"
        );

        let file = root.find("/a.txt").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.read(0, 4).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn times_that_http_cannot_express_are_left_out() {
        let (dir, root) = root();
        let path = dir.path().join("inside/a.txt");
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(1))
            .unwrap();
        assert_eq!(root.find("/a.txt").unwrap().modified(), None);
        assert_eq!(
            http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)),
            None
        );
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(root.find("/a.txt").unwrap().modified().is_some());
    }

    #[test]
    fn a_root_must_be_a_directory() {
        let (dir, _root) = root();
        assert!(Root::new(&dir.path().join("secret")).is_err());
        assert!(Root::new(&dir.path().join("missing")).is_err());
    }
}
