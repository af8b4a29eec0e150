//! Where a body is to go, and what the path that was named leads to.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Symbolic links that are followed one after the other, as many as Linux does.
const MAX_LINKS: u32 = 40;

/// Where the body is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, by way of a `.part`; or a device or pipe.
    File(PathBuf),
    /// Standard output, whatever it is.
    Stdout,
    /// Standard output that nobody asked for and that is a terminal: text only, as curl does it.
    Terminal,
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A regular file, or none yet.
    File(PathBuf),
    /// What can only be written to as it is: a device, a named pipe, a file that is open already.
    Stream(PathBuf),
}

impl Destination {
    /// What a path stands for: `-` for standard output, and so does whatever leads there, such as `/dev/stdout`.
    pub fn named(path: &Path) -> Destination {
        let leads_to_stdout = match follow(path) {
            Ok(Target::Stream(end)) => {
                descriptors(&end).is_some_and(|process| process == own())
                    && end.file_name().is_some_and(|name| name == "1")
            }
            _ => false,
        };
        match leads_to_stdout || path.as_os_str() == "-" {
            true => Destination::Stdout,
            false => Destination::File(path.to_owned()),
        }
    }

    /// How to call it in a report: the path, or `-` as the tools that read checksums do.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Destination::File(path) => path.to_string_lossy(),
            Destination::Stdout | Destination::Terminal => "-".into(),
        }
    }
}

/// Follows all symbolic links. Whoever names a link means the file behind it, and keeps the link.
pub(super) fn follow(path: &Path) -> io::Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        // Such a link has the name of what was opened, which may be another file by now.
        if descriptors(&path).is_some() {
            return Ok(Target::Stream(path));
        }
        let known = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Target::File(path));
            }
            known => known?,
        };
        if !known.is_symlink() {
            let is_stream = !known.is_file() && !known.is_dir();
            return Ok(match is_stream {
                true => Target::Stream(path),
                false => Target::File(path),
            });
        }
        let end = path.read_link()?;
        path = path.parent().map_or(end.clone(), |folder| folder.join(end));
    }
    Err(Errno::LOOP.into())
}

/// The folder in `/proc` of the process of which the path is an open file, if it is one.
fn descriptors(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?.canonicalize().ok()?;
    let is_one = folder.starts_with("/proc") && folder.ends_with("fd");
    is_one.then(|| folder.parent().map(Path::to_owned))?
}

fn own() -> PathBuf {
    Path::new("/proc").join(std::process::id().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("inner")).unwrap();
        std::fs::write(path("inner/file"), "").unwrap();
        symlink("inner/file", path("first")).unwrap();
        symlink(path("first"), path("second")).unwrap();
        symlink("inner/none", path("dangling")).unwrap();
        symlink("itself", path("itself")).unwrap();
        let file = |name| Target::File(path(name));
        for (name, end) in [
            ("second", "inner/file"),
            ("dangling", "inner/none"),
            ("new", "new"),
            ("inner", "inner"),
        ] {
            assert_eq!(follow(&path(name)).unwrap(), file(end), "{name}");
        }
        let error = follow(&path("itself")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn devices_and_open_files_are_streams() {
        for path in ["/dev/null", "/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"] {
            let end = follow(path.as_ref()).unwrap();
            assert!(matches!(end, Target::Stream(_)), "{path}: {end:?}");
            let named = Destination::named(path.as_ref());
            assert_eq!(named, Destination::File(path.into()));
        }
        for path in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            let named = Destination::named(path.as_ref());
            assert_eq!(named, Destination::Stdout, "{path}");
        }
    }
}
