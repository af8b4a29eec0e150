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
        Ok(Self(Arc::new(Inner {
            directory,
            dotfiles: options.dotfiles,
            seen: Sightings::default(),
            digests: match options.tags {
                Tags::Time => None,
                Tags::Content => Some(Arc::default()),
            },
        })))
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
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        with(RootOptions::default())
    }

    fn with(options: RootOptions) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(inside.join("a.txt"), "0123456789").unwrap();
        let root = Root::with(&inside, options).unwrap();
        (dir, root)
    }

    fn find(root: &Root, path: &str) -> Result<Found, FindError> {
        root.find(path.as_bytes())
    }

    #[track_caller]
    fn file(root: &Root, path: &str) -> StoredFile {
        match find(root, path) {
            Ok(Found::File(file)) => file,
            found => panic!("{path}: {found:?}"),
        }
    }

    #[track_caller]
    fn assert_hidden(root: &Root, path: &str) {
        let found = find(root, path);
        assert!(
            matches!(found, Err(FindError::NotFound)),
            "{path}: {found:?}"
        );
    }

    fn names(root: &Root, path: &str) -> Vec<String> {
        let Ok(Found::Directory(path)) = find(root, path) else {
            panic!("{path} is no directory without an index");
        };
        let name = |entry: Entry| {
            let slash = if entry.is_directory { "/" } else { "" };
            entry.name.into_string().unwrap() + slash
        };
        root.list(&path).unwrap().into_iter().map(name).collect()
    }

    #[tokio::test]
    async fn a_file_is_found_and_read_in_parts() {
        let (_dir, root) = root();
        let file = file(&root, "/a.txt");
        assert_eq!(file.len(), 10);
        assert_eq!(file.content_type(), "text/plain; charset=utf-8");
        assert_eq!(&file.read(3, 4).await.unwrap()[..], b"3456");
        assert_eq!(
            file.read(8, 3).await.unwrap_err().kind(),
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
        symlink(dir.path(), inside.join("out")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        symlink("/proc/self/cwd", inside.join("magic")).unwrap();
        for path in [
            "/../secret",
            "/a/../../secret",
            "..",
            "/relative",
            "/absolute",
            "/up/secret",
            "/out/secret",
            "/out/",
            "/loop",
            "/magic/Cargo.toml",
            "//etc/hostname",
        ] {
            assert_hidden(&root, path);
        }
        // They are not told of, either.
        assert_eq!(names(&root, "/"), ["a.txt"]);
    }

    #[test]
    fn a_link_that_stays_inside_is_as_good_as_its_target() {
        let (dir, root) = root();
        let inside = dir.path().join("inside");
        fs::create_dir(inside.join("sub")).unwrap();
        symlink("a.txt", inside.join("alias")).unwrap();
        symlink(inside.join("a.txt"), inside.join("sub/absolute")).unwrap();
        symlink("../../inside/a.txt", inside.join("sub/out-and-in")).unwrap();
        symlink(&inside, inside.join("here")).unwrap();
        for path in ["/alias", "/sub/absolute", "/sub/out-and-in", "/here/a.txt"] {
            assert_eq!(file(&root, path).len(), 10, "{path}");
        }
        assert_eq!(names(&root, "/here/"), ["here/", "sub/", "a.txt", "alias"]);
    }

    #[test]
    fn a_root_that_is_pointed_elsewhere_is_followed() {
        let (dir, _root) = root();
        let link = dir.path().join("current");
        symlink("inside", &link).unwrap();
        let root = Root::new(&link).unwrap();
        assert_eq!(file(&root, "/a.txt").len(), 10);
        fs::create_dir(dir.path().join("next")).unwrap();
        fs::write(dir.path().join("next/a.txt"), "next").unwrap();
        symlink("next", dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), &link).unwrap();
        assert_eq!(file(&root, "/a.txt").len(), 4);
    }

    #[test]
    fn a_directory_is_its_index_or_what_is_in_it() {
        let (dir, root) = root();
        let inside = dir.path().join("inside");
        fs::create_dir(inside.join("sub")).unwrap();
        assert_eq!(names(&root, "/"), ["sub/", "a.txt"]);
        fs::write(inside.join("sub/index.html"), "<p>").unwrap();
        let index = file(&root, "/sub/");
        assert_eq!(index.len(), 3);
        assert_eq!(index.content_type(), "text/html; charset=utf-8");
        let found = find(&root, "/sub").unwrap();
        assert!(matches!(found, Found::WithoutSlash), "{found:?}");
        fs::create_dir(inside.join("index.html")).unwrap();
        assert_eq!(names(&root, "/"), ["index.html/", "sub/", "a.txt"]);
        assert_hidden(&root, "/a.txt/");
    }

    #[test]
    fn dotfiles_are_hidden_unless_they_are_asked_for() {
        let paths = [".git/config", "sub/.env", ".x", ".well-known/.x"];
        for dotfiles in [false, true] {
            let options = RootOptions {
                dotfiles,
                ..RootOptions::default()
            };
            let (dir, root) = with(options);
            for path in paths.into_iter().chain([".well-known/y"]) {
                let path = dir.path().join("inside").join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "hidden").unwrap();
            }
            for path in paths {
                match dotfiles {
                    true => assert_eq!(file(&root, path).len(), 6, "{path}"),
                    false => assert_hidden(&root, path),
                }
            }
            assert_eq!(file(&root, "/.well-known/y").len(), 6);
            let shown = match dotfiles {
                true => &[".git/", ".well-known/", "sub/", ".x", "a.txt"][..],
                false => &[".well-known/", "sub/", "a.txt"],
            };
            assert_eq!(names(&root, "/"), shown);
        }
    }

    #[test]
    fn a_fifo_is_no_file_and_does_not_block() {
        let (dir, root) = root();
        let fifo = dir.path().join("inside/fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        symlink(&fifo, dir.path().join("inside/link")).unwrap();
        assert_hidden(&root, "/fifo");
        assert_hidden(&root, "/link");
        assert_eq!(names(&root, "/"), ["a.txt"]);
    }

    fn modified(path: &Path) -> SystemTime {
        fs::metadata(path).unwrap().modified().unwrap()
    }

    fn set_modified(path: &Path, time: SystemTime) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    }

    #[test]
    fn a_copy_with_its_time_has_the_same_tag() {
        let (dir, root) = root();
        let inside = dir.path().join("inside");
        let (path, copy) = (inside.join("a.txt"), inside.join("b.txt"));
        let hour = Duration::from_secs(3600);
        set_modified(&path, modified(&path) - hour);
        let etag = |name: &str| file(&root, name).etag();
        fs::copy(&path, &copy).unwrap();
        assert_ne!(etag("/a.txt"), etag("/b.txt"));
        set_modified(&copy, modified(&path));
        assert_eq!(etag("/a.txt"), etag("/b.txt"));
        assert!(etag("/a.txt").starts_with('"'));
    }

    #[tokio::test]
    async fn the_content_is_the_tag_if_that_is_wanted() {
        let options = RootOptions {
            tags: Tags::Content,
            ..RootOptions::default()
        };
        let (dir, root) = with(options);
        let path = dir.path().join("inside/a.txt");
        set_modified(&path, modified(&path) - Duration::from_secs(3600));
        let unknown = file(&root, "/a.txt").etag();
        assert!(unknown.starts_with("W/\""), "{unknown}");
        let identified = async || {
            let mut file = file(&root, "/a.txt");
            root.identify(&mut file).await;
            file.etag()
        };
        // Of "0123456789", by sha256sum.
        let known = "\"sha256-84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882\"";
        assert_eq!(identified().await, known);
        // Whenever it was changed, and whichever file it is.
        fs::write(dir.path().join("inside/new"), "0123456789").unwrap();
        fs::rename(dir.path().join("inside/new"), &path).unwrap();
        assert_eq!(identified().await, known);
        fs::write(&path, "0123456780").unwrap();
        let other = identified().await;
        assert!(other.starts_with("\"sha256-") && other != known, "{other}");
    }

    #[test]
    fn times_that_http_cannot_express_are_left_out() {
        let (dir, root) = root();
        let path = dir.path().join("inside/a.txt");
        set_modified(&path, SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(file(&root, "/a.txt").modified(), None);
        assert_eq!(
            http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)),
            None
        );
        set_modified(&path, SystemTime::UNIX_EPOCH);
        assert!(file(&root, "/a.txt").modified().is_some());
    }

    #[test]
    fn a_root_must_be_a_directory() {
        let (dir, _root) = root();
        assert!(Root::new(&dir.path().join("secret")).is_err());
        assert!(Root::new(&dir.path().join("missing")).is_err());
    }
}
