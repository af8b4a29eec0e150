//! The files under `--root`.
//!
//! Names are resolved by the kernel with `openat2` and `RESOLVE_BENEATH`: neither `..` nor a
//! symbolic link can lead out of the root, and no check of ours can be outrun by a rename.
//!
//! No descriptor is held between two chunks of a body, so that a server can be checkpointed at any
//! chunk and restored where the same files lie. Each [`StoredFile::read`] opens, reads, and then
//! checks that the file is still the one that was found; if not, that body has failed.
//!
//! # Versions
//!
//! A version of a file is its length and its time of change in nanoseconds. A copy made with its
//! times (`cp -p`, `rsync -t`) is the same version on every host, so that a download can go on there,
//! on the same connection after a move or on another one after a loss. Two things are taken on
//! trust: who sets a file's time by hand does not do so to hide a change, and the clock behind it
//! ticks between two changes. The latter does not hold for changes right after each other; so the
//! entity tag of a file changed within the last second is marked as weak (RFC 9110 §8.8.1), with
//! which no client may put parts together.

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
const MAX_LOOK_UPS: usize = 16;

/// In which two changes may bear the same time: the kernel's clock ticks every few milliseconds, those
/// of some file systems once a second.
const TIME_GRANULARITY: Duration = Duration::from_secs(1);

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
            version: Version::of(&metadata),
            found: SystemTime::now(),
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
        for _ in 0..MAX_LOOK_UPS {
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
    version: Version,
    found: SystemTime,
    modified: Option<HttpDate>,
    content_type: &'static str,
}

/// What a change of a file changes, and a copy of it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    len: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }

    /// Whether another change may bear the same time, as of `now`. A time to come was set by hand.
    fn may_hide_a_change(self, now: SystemTime) -> bool {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let (Some(now), Ok(seconds)) = (since(now), u64::try_from(self.seconds)) else {
            return false;
        };
        let changed = Duration::from_secs(seconds) + Duration::from_nanos(self.nanoseconds as u64);
        now.checked_sub(changed)
            .is_some_and(|age| age < TIME_GRANULARITY)
    }
}

impl StoredFile {
    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a length, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Its entity tag (RFC 9110 §8.8.3), strong unless it has only just been changed; see the
    /// [module](self).
    pub fn etag(&self) -> String {
        let Version {
            len,
            seconds,
            nanoseconds,
        } = self.version;
        let weak = match self.version.may_hide_a_change(self.found) {
            true => "W/",
            false => "",
        };
        format!("{weak}\"{len:x}-{seconds:x}-{nanoseconds:x}\"")
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
        if Version::of(&file.metadata()?) != self.version {
            return Err(io::Error::other("the file has changed"));
        }
        Ok(buffer.into())
    }
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
        fs::write(&other, "0123456789?").unwrap();
        set_modified(&other, modified(&path) + Duration::from_nanos(1));
        fs::rename(&other, &path).unwrap();
        assert!(file.read(0, 4).is_err(), "replaced, with another time");

        let file = root.find("/a.txt").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.read(0, 4).unwrap_err().kind(), ErrorKind::NotFound);
    }

    fn modified(path: &Path) -> SystemTime {
        fs::metadata(path).unwrap().modified().unwrap()
    }

    fn set_modified(path: &Path, time: SystemTime) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    }

    #[test]
    fn a_copy_with_its_time_is_the_same_version() {
        let (dir, root) = root();
        let inside = dir.path().join("inside");
        let (path, copy) = (inside.join("a.txt"), inside.join("b.txt"));
        let hour = Duration::from_secs(3600);
        set_modified(&path, modified(&path) - hour);
        let etag = |name: &str| root.find(name).unwrap().etag();
        fs::copy(&path, &copy).unwrap();
        assert_ne!(etag("/a.txt"), etag("/b.txt"));
        set_modified(&copy, modified(&path));
        assert_eq!(etag("/a.txt"), etag("/b.txt"));
        assert!(etag("/a.txt").starts_with('"'));
        let file = root.find("/a.txt").unwrap();
        fs::rename(&copy, &path).unwrap();
        assert_eq!(&file.read(3, 4).unwrap()[..], b"3456");
    }

    #[test]
    fn a_version_that_may_hide_a_change_is_weak() {
        let (dir, root) = root();
        let path = dir.path().join("inside/a.txt");
        let mut file = root.find("/a.txt").unwrap();
        file.found = modified(&path) + TIME_GRANULARITY / 2;
        assert!(file.etag().starts_with("W/\""));
        file.found = modified(&path) + TIME_GRANULARITY;
        let strong = file.etag();
        assert!(strong.starts_with('"'));
        // Set by hand.
        file.found = modified(&path) - TIME_GRANULARITY;
        assert_eq!(file.etag(), strong);
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
