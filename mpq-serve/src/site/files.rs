//! The files under the root of a site.
//!
//! Names are resolved by the kernel with `openat2` and `RESOLVE_BENEATH`: neither `..` nor a
//! symbolic link can lead out of the root, and no check of ours can be outrun by a rename. An absolute link is
//! followed by hand to see where it leads; if that is inside, the file is looked up there in the same way.
//!
//! The root itself is looked up for each file, so that it can be a symbolic link that is pointed to another release.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use http::HeaderValue;
use httpdate::HttpDate;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlink};
use nix::sys::stat::Mode;

use super::descriptors::{self, Kept};
use super::digests::Digests;
pub use super::listing::Entry;
pub use super::stored::StoredFile;
use super::stored::{Digest, Place, State};
use super::versions::{Identity, Sightings, Version};

/// How often a look-up is tried again where the kernel could not rule out a race with a rename.
const MAX_LOOK_UPS: usize = 16;

/// What a directory is answered with.
const INDEX: &str = "index.html";

/// Hidden by its name, but made to be asked for (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// The most entries that a listing has: it is made in memory.
const MAX_ENTRIES: usize = 50_000;

/// What is said where the kernel finds no names for this process.
const NO_OPENAT2: &str = "openat2 is missing, which Linux has from 5.6 on: systemd takes it from a service with RestrictSUIDSGID= or \
                          DynamicUser=, and some container engines do";

/// What a file without a known ending is.
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Why a path names no file that can be served.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is nothing there, or it lies outside the root, or it is hidden or no regular file.
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

/// What the entity tags of files are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tags {
    /// Length and time of change. Copies made with their times have the same tag on every host.
    #[default]
    Time,
    /// The SHA-256, computed in the background. Whatever has the same bytes has the same tag.
    Content,
}

/// How the files of a root are served.
#[derive(Debug, Clone, Copy, Default)]
pub struct RootOptions {
    /// Also those with a name that begins with a dot, and those below such a directory.
    pub dotfiles: bool,
    /// What their entity tags are made of.
    pub tags: Tags,
}

/// A directory whose files are served.
#[derive(Debug, Clone)]
pub struct Root(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    dotfiles: bool,
    seen: Sightings,
    digests: Option<Arc<Digests>>,
}

/// What lies at a path.
#[derive(Debug)]
pub enum Found {
    /// A regular file, or the `index.html` of a directory.
    File(StoredFile),
    /// A directory whose name was given without the slash that relative links in it need.
    WithoutSlash,
    /// A directory without an index: its path below the root.
    Directory(PathBuf),
}

impl Root {
    /// Serves the files under `directory`, which must exist, by the default options.
    ///
    /// # Errors
    /// If there is no such directory, or if it cannot be reached.
    pub fn new(directory: &Path) -> io::Result<Self> {
        Self::with(directory, RootOptions::default())
    }

    /// Serves the files under `directory`, which must exist.
    ///
    /// # Errors
    /// As [`Root::new`].
    pub fn with(directory: &Path, options: RootOptions) -> io::Result<Self> {
        let directory = std::path::absolute(directory)?;
        if !directory.metadata()?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        let root = Self(Arc::new(Inner {
            directory,
            dotfiles: options.dotfiles,
            seen: Sightings::default(),
            digests: match options.tags {
                Tags::Time => None,
                Tags::Content => Some(Arc::default()),
            },
        }));
        // Every answer would be an error.
        match root.look_up(Path::new("."), OFlag::O_PATH) {
            Err(Errno::ENOSYS) => Err(io::Error::new(ErrorKind::Unsupported, NO_OPENAT2)),
            _ => Ok(root),
        }
    }

    /// Finds what a decoded URL path names; blocking.
    ///
    /// # Errors
    /// See [`FindError`].
    pub fn find(&self, path: &[u8]) -> Result<Found, FindError> {
        let start = path.iter().position(|byte| *byte != b'/');
        let path = &path[start.unwrap_or(path.len())..];
        let has_slash = path.is_empty() || path.ends_with(b"/");
        let path = Path::new(OsStr::from_bytes(path));
        if self.hides(path) {
            return Err(FindError::NotFound);
        }
        let path = match path.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => path.to_owned(),
        };
        let file = self.open(&path)?;
        let metadata = file.metadata().map_err(FindError::Io)?;
        if !metadata.is_dir() {
            return Ok(Found::File(self.stored(path, file, &metadata)?));
        }
        if !has_slash {
            return Ok(Found::WithoutSlash);
        }
        let index = path.join(INDEX);
        match self.open(&index).map_err(FindError::from) {
            Ok(file) => {
                let metadata = file.metadata().map_err(FindError::Io)?;
                match self.stored(index, file, &metadata) {
                    Err(FindError::NotFound) => Ok(Found::Directory(path)),
                    found => Ok(Found::File(found?)),
                }
            }
            Err(FindError::NotFound) => Ok(Found::Directory(path)),
            Err(error) => Err(error),
        }
    }

    /// The digest of a file goes into its tag, if that is wanted and known soon.
    pub async fn identify(&self, file: &mut StoredFile) {
        if let Some(digests) = &self.0.digests {
            file.digest = digests.soon(file).await;
        }
    }

    /// What is in a directory, by name, directories first; blocking. What cannot be asked for is left out.
    ///
    /// # Errors
    /// See [`FindError`].
    pub fn list(&self, directory: &Path) -> Result<Vec<Entry>, FindError> {
        let mut names = Dir::from_fd(OwnedFd::from(self.open(directory)?))?;
        let mut entries = Vec::new();
        for entry in names.iter() {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            let path = directory.join(&name);
            if name == "." || name == ".." || self.hides(&path) {
                continue;
            }
            // Not by its name alone: what a link outside of the root leads to is nobody's business.
            let Ok(metadata) = self.look(&path) else {
                continue;
            };
            if !metadata.is_dir() && !metadata.is_file() {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                let message = format!("a listing has {MAX_ENTRIES} entries at most");
                return Err(FindError::Io(io::Error::other(message)));
            }
            entries.push(Entry {
                name,
                is_directory: metadata.is_dir(),
                len: metadata.len(),
                modified: metadata.modified().ok().and_then(http_date),
            });
        }
        entries.sort_by(|a, b| (!a.is_directory, &a.name).cmp(&(!b.is_directory, &b.name)));
        Ok(entries)
    }

    /// Whether a name on the way begins with a dot, and is not to be served.
    fn hides(&self, path: &Path) -> bool {
        let parts = path.components();
        let mut parts = parts.filter(|part| *part != Component::CurDir).peekable();
        let is_well_known =
            |part: &Component<'_>| part.as_os_str() == WELL_KNOWN && !self.0.dotfiles;
        parts.next_if(is_well_known);
        let is_dotfile = |part: Component<'_>| matches!(part, Component::Normal(name) if name.as_bytes().starts_with(b"."));
        !self.0.dotfiles && parts.any(is_dotfile)
    }

    /// The file that was opened.
    fn stored(
        &self,
        path: PathBuf,
        file: File,
        metadata: &Metadata,
    ) -> Result<StoredFile, FindError> {
        if !metadata.is_file() {
            return Err(FindError::NotFound);
        }
        let generation = descriptors::generation();
        let (version, identity) = (Version::of(metadata), Identity::of(metadata));
        let mark = self.0.seen.note(&path, version, identity, generation);
        Ok(StoredFile {
            place: Arc::new(self.clone()),
            content_type: content_type(&path),
            path,
            version,
            mark,
            found: SystemTime::now(),
            modified: metadata.modified().ok().and_then(http_date),
            digest: None,
            state: Arc::new(Mutex::new(State {
                generation,
                identity,
                kept: Kept::new(Arc::new(file)),
            })),
        })
    }

    /// Opens a path below the root for reading.
    pub(super) fn open(&self, path: &Path) -> Result<File, Errno> {
        // Non-blocking: opening a FIFO would otherwise wait for its writer.
        self.look_up(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
    }

    /// What there is below the root, whether or not it can be opened.
    fn look(&self, path: &Path) -> io::Result<Metadata> {
        self.look_up(path, OFlag::O_PATH)?.metadata()
    }

    fn look_up(&self, path: &Path, flags: OFlag) -> Result<File, Errno> {
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Errno::EXDEV);
        }
        let root = open(
            &self.0.directory,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        match beneath(&root, path, flags) {
            Err(Errno::EXDEV) => {
                // Where it leads, with nothing opened that could wait or act.
                let flags_there = OFlag::O_PATH | OFlag::O_CLOEXEC;
                let target = open(&self.0.directory.join(path), flags_there, Mode::empty())?;
                let target = path_of(&target)?;
                let inside = target
                    .strip_prefix(path_of(&root)?)
                    .map_err(|_| Errno::EXDEV)?;
                let inside = match inside.as_os_str().is_empty() {
                    true => Path::new("."),
                    false => inside,
                };
                beneath(&root, inside, flags)
            }
            result => result,
        }
    }
}

impl Place for Root {
    fn open(&self, path: &Path) -> io::Result<File> {
        Ok(Root::open(self, path)?)
    }

    fn tags_content(&self) -> bool {
        self.0.digests.is_some()
    }

    fn digest_of<'a>(&'a self, file: &'a StoredFile) -> BoxFuture<'a, Option<Digest>> {
        Box::pin(async { self.0.digests.as_ref()?.of(file).await })
    }
}

/// Opens what the kernel finds without leaving `root`.
fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<File, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..MAX_LOOK_UPS {
        result = openat2(root.as_fd(), path, how);
        if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
    }
    result.map(File::from)
}

/// Where an open file or directory is.
fn path_of(file: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    readlink(link.as_str()).map(PathBuf::from)
}

/// The path of a file of the root's own, as it stands in a URL.
pub fn url_path(name: &OsStr) -> String {
    format!("/{}", super::listing::encode(name.as_bytes()))
}

/// The media type that a name stands for. Text is taken to be UTF-8: nobody says otherwise.
fn content_type(path: &Path) -> HeaderValue {
    let Some(name) = mime_guess::from_path(path).first_raw() else {
        return BYTES;
    };
    match name.starts_with("text/") {
        true => HeaderValue::try_from(format!("{name}; charset=utf-8")).unwrap_or(BYTES),
        false => HeaderValue::from_static(name),
    }
}

/// The time as HTTP has it; none outside the years 1970 to 9999, which it cannot express.
fn http_date(time: SystemTime) -> Option<HttpDate> {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since < YEAR_10000).then(|| time.into())
}

#[cfg(test)]
mod tests;
