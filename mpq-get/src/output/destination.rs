//! Where a body is to go, and what its file is called until it is complete.

use std::path::PathBuf;

/// Where the body is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, by way of `.part`.
    File(PathBuf),
    /// Standard output, whatever it is.
    Stdout,
    /// Standard output that nobody asked for and that is a terminal: text only, as curl does it.
    Terminal,
}

/// A file and what it is called until it is complete.
#[derive(Debug, Clone)]
pub(super) struct Rename {
    pub(super) part: PathBuf,
    pub(super) path: PathBuf,
}

impl Destination {
    /// How to call it in a report: the path, or `-` as the tools that read checksums do.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Destination::File(path) => path.to_string_lossy(),
            Destination::Stdout | Destination::Terminal => "-".into(),
        }
    }

    /// The `.part` file; none for what is written to directly.
    pub fn part(&self) -> Option<PathBuf> {
        match self {
            Destination::File(path) if path.metadata().is_ok_and(|known| !known.is_file()) => None,
            Destination::File(path) => {
                let mut name = path.as_os_str().to_owned();
                name.push(".part");
                Some(name.into())
            }
            Destination::Stdout | Destination::Terminal => None,
        }
    }
}

impl Rename {
    /// What is to be renamed to become `destination`, if it is not written to directly.
    pub(super) fn of(destination: &Destination) -> Option<Rename> {
        match destination {
            Destination::File(path) => destination.part().map(|part| Rename {
                part,
                path: path.clone(),
            }),
            Destination::Stdout | Destination::Terminal => None,
        }
    }
}
