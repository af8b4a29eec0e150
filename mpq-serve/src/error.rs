//! What can go wrong, and the exit code of each kind.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A failure of `mpq-serve` or one of its commands.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0}")]
    Start(String),
    #[error("{0} holds no images of a checkpoint: it has neither manifest.json nor images.sealed")]
    NoImages(PathBuf),
    #[error("the images in {0} are not mpq-serve's, or of another version of it: {1}")]
    ForeignImages(PathBuf, String),
    #[error("{0} holds the images of {1} checkpoints: name the folder of one of them")]
    ManyImages(PathBuf, usize),
    #[error("{0} is not as the checkpoint wrote it: {1}; copy it again, or restore another copy")]
    Damaged(PathBuf, String),
    #[error("the images in {0} are sealed: give the key of their checkpoint, by restore --key")]
    Sealed(PathBuf),
    #[error("the images in {0} are not sealed: restore them without --key")]
    NotSealed(PathBuf),
    #[error("{0} does not unseal the images: {1}")]
    Key(PathBuf, String),
    #[error("the images in {0} cannot wake here: {1}")]
    Fenced(PathBuf, String),
    #[error("refused: the images in {0} are being restored or released already")]
    ImagesBusy(PathBuf),
    #[error("{0} cannot be trusted: {1}")]
    Untrusted(PathBuf, String),
    #[error("no CRIU found: install CRIU 4.2 or newer, or name it in MPQ_CRIU")]
    NoCriu,
    #[error("CRIU {0} is too old: 4.2 or newer is needed; name it in MPQ_CRIU")]
    OldCriu(String),
    #[error("CRIU needs root: run {0} as root")]
    NotPermitted(&'static str),
    #[error("--user {0} needs root: start mpq-serve as root, or as {0} without --user")]
    NotRoot(String),
    #[error(
        "no mpq-serve runs as process {0}: start it first, or give another --pid or --pid-file"
    )]
    NoServer(i32),
    #[error("there is no server at process {0}: {1}")]
    Stale(i32, String),
    #[error("{0} names no running server: {1}")]
    PidFile(PathBuf, String),
    #[error("the server has ended, and was not dumped")]
    Died,
    #[error("refused: this server is moving already")]
    Busy,
    #[error("cannot listen on {0}: {1}; give an address of this host that is free")]
    Listen(SocketAddr, io::Error),
    #[error("the checkpoint failed, the server goes on where it was: {0}")]
    Dump(String),
    #[error(
        "the server was dumped, and its images could not be sealed: {1}; they are in clear in {0}, and can be restored or \
         released as they are"
    )]
    Unsealed(PathBuf, String),
    #[error("the restore failed, the images are kept: {0}")]
    Restore(String),
    #[error(
        "the restore failed when the server may have run already, and its images cannot be used again: {0}"
    )]
    Spent(String),
    #[error("serving at A; the move has not begun: {0} in the way of it, see above")]
    InTheWay(String),
    #[error("serving at A; the move failed: {0}")]
    Returned(String),
    #[error(
        "the move failed: {0}; and the server could not be brought back to A: {1}; it serves nowhere until it is \
         restored from {2}"
    )]
    Stranded(String, String, PathBuf),
    #[error(
        "the server was handed over, and B has not said that it serves: {0}; look there. Only if it does not run there, \
         and never will: mpq-serve restore --rollback --images {1}"
    )]
    Unconfirmed(String, PathBuf),
    #[error(
        "the container was sent to B, and it is not known whether it runs there: {0}; look there. Only if it does not, \
         and never will, have the engine restore it from {1}"
    )]
    UnconfirmedContainer(String, PathBuf),
    #[error("the restore failed: {0}")]
    NotReceived(String),
    #[error("the host that the server comes from: {0}")]
    Source(String),
    #[error("not taken over; the old server serves as before: {0}")]
    NotTakenOver(String),
    #[error("the server was told to leave, and was not dumped")]
    Leaving,
    #[error("{}", .0.message)]
    Told(Failure),
}

/// An error that a helper hands to another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub message: String,
    /// The exit code that it deserves.
    pub code: u8,
}

impl Failure {
    /// What is handed on of an error.
    pub fn of(error: &Error) -> Self {
        Self {
            message: error.to_string(),
            code: error.code(),
        }
    }
}

impl Error {
    /// The exit code, as the help lists them.
    pub fn code(&self) -> u8 {
        match self {
            Self::Io(..) | Self::Start(_) | Self::Source(_) => 1,
            Self::NoImages(_) | Self::ForeignImages(..) => 3,
            Self::ManyImages(..) | Self::Damaged(..) => 3,
            Self::Sealed(_) | Self::NotSealed(_) | Self::Key(..) => 3,
            Self::NoCriu | Self::OldCriu(_) => 4,
            Self::NotPermitted(_) | Self::NotRoot(_) | Self::Untrusted(..) => 5,
            Self::NoServer(_) | Self::Stale(..) | Self::PidFile(..) => 6,
            Self::Died | Self::Leaving => 6,
            Self::Listen(..) => 7,
            Self::Dump(_) => 8,
            Self::Restore(_) | Self::Spent(_) | Self::NotReceived(_) => 9,
            Self::Busy | Self::ImagesBusy(_) => 10,
            Self::Fenced(..) => 11,
            Self::InTheWay(_) => 12,
            Self::Returned(_) => 13,
            Self::Stranded(..) | Self::Unconfirmed(..) | Self::UnconfirmedContainer(..) => 14,
            Self::Unsealed(..) => 14,
            Self::NotTakenOver(_) => 15,
            Self::Told(failure) => failure.code,
        }
    }
}

/// Names the file in an error of the operating system.
pub trait At<T> {
    /// # Errors
    /// The same, with `path`.
    fn at(self, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|error| Error::Io(path.into(), error))
    }
}
