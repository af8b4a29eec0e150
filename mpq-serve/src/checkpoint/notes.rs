//! What a server, its checkpoint helper and its restorer tell each other, in files.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use mpq_core::forwarder::Forwarding;
use mpq_core::proto::server::Arrivals;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::owner::Owner;
use super::process::Identity;
use crate::error::{At, Error, Failure};

/// No note is longer, bytes.
const MAX_LENGTH: u64 = 1 << 20;

/// Names one wish for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId(String);

impl RequestId {
    /// One that nobody has: of this moment, in milliseconds since 1970, and this process.
    pub fn new() -> Self {
        let now = (now() * 1000.0) as u64;
        Self(format!("{now}-{}", std::process::id()))
    }

    /// As it was printed.
    ///
    /// # Errors
    /// It is none: it would not do as a part of a file's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_part = |byte: u8| byte.is_ascii_digit() || byte == b'-';
        match !text.is_empty() && text.bytes().all(is_part) {
            true => Ok(Self(text.to_owned())),
            false => Err("expected digits and hyphens".to_owned()),
        }
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// To a server: what a checkpoint is to do otherwise than its command line says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// Whose answer is waited for.
    pub id: RequestId,
    /// Where the images go.
    pub images: Option<PathBuf>,
    /// Where the server will be.
    pub migrate_to: Vec<SocketAddr>,
    /// Which CRIU dumps it, if whoever wants that says so.
    pub criu: Option<PathBuf>,
    /// Whether clients that cannot follow are kept, and forwarded from here.
    pub forward: bool,
    /// How long the server is to stand still for somebody else who dumps it, if it is.
    #[serde(default)]
    pub park: Option<Duration>,
    /// The process that dumps it, if the server cannot: root's.
    #[serde(default)]
    pub dumper: Option<i32>,
}

/// What a checkpoint is: beside CRIU's images, written when they are complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `mpq-serve`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The server's process id, also once restored,
    pub pid: i32,
    /// and that by which it was known outside of its namespace of ids, if it was in one.
    #[serde(default)]
    pub id_outside: Option<i32>,
    /// The server's control directory.
    pub control: PathBuf,
    /// Where it listened.
    pub listen: SocketAddr,
    /// Where it said it would be.
    pub targets: Vec<SocketAddr>,
    /// Of the announcement.
    pub sequence: u64,
    /// When the move was announced, seconds since 1970.
    pub announced: f64,
    /// When the server was parked: nothing in flight, no socket open.
    pub parked: f64,
    /// When CRIU was started.
    pub dump_started: f64,
    /// When the images were complete.
    pub dumped: f64,
    /// Where the server has its process id written.
    pub pid_file: Option<PathBuf>,
    /// Where it logs to.
    pub log_file: Option<PathBuf>,
    /// Whether it logs to the journal of the host that it is on.
    #[serde(default)]
    pub logs_to_journal: bool,
    /// Whose it is, if not root's.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// The folders that it is in and writes to: made where it is restored.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
    /// The images.
    #[serde(default)]
    pub files: BTreeMap<String, ImageFile>,
}

/// What is known of one image, so that a damaged one is not restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its length.
    pub bytes: u64,
    /// The digest of its contents, in hexadecimal.
    pub sha256: String,
}

impl ImageFile {
    /// As it is now.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // Whatever is there has nobody wait.
        let mut file = options.read(true).custom_flags(O_NONBLOCK).open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        loop {
            let length = io::Read::read(&mut file, &mut buffer)?;
            if length == 0 {
                break;
            }
            hash.update(&buffer[..length]);
            bytes += length as u64;
        }
        let sha256 = HEXLOWER.encode(&hash.finalize());
        Ok(Self { bytes, sha256 })
    }
}

impl Manifest {
    /// The name that says whose images they are.
    pub const PROGRAM: &str = "mpq-serve";
    /// Its name in the images' directory.
    pub const FILE: &str = "manifest.json";
}

/// To a restored server: where it is to listen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Thawed {
    /// Where to listen.
    pub listen: SocketAddr,
    /// A process whose output streams it takes over; 0 for none.
    pub streams_of: u32,
    /// Where it logs to from now on, if not where it did.
    pub log_file: Option<PathBuf>,
    /// Why it is where it was, if it is: its clients are told that it stays.
    #[serde(default)]
    pub undone: Option<String>,
    /// The process id by which it is known outside of its namespace of ids, if it is in one.
    #[serde(default)]
    pub pid: Option<i32>,
}

/// From the helper to a parked server: it is not dumped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Undumped {
    /// Why.
    pub failure: Failure,
    /// A process whose standard streams the server takes over.
    pub streams_of: u32,
}

/// From a server to whoever waits for its checkpoint: there is none, and the server serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
}

/// From the helper of an ordinary user's server to root's: the server is parked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {}

/// From root's helper: the server is not dumped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub failure: Failure,
}

/// From the helper: it has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Helper {
    /// Its process id.
    pub pid: i32,
}

/// To whoever waits for a checkpoint: the images are complete. They count once the server has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// Where the images are.
    pub images: PathBuf,
}

/// From a server: the move begins once the clients of the one before have come, or had their time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {}

/// To a server that is parked for somebody else: it is to go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unpark {}

/// From a server: what it needs wherever it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Settings {
    /// The folder that it serves.
    pub root: Option<PathBuf>,
    /// Folders that it is in, or writes files to.
    pub folders: Vec<PathBuf>,
    /// Where its images go, if it was told.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// It moves without CRIU, and leaves no images.
    pub moves_in_process: bool,
    /// It is at several addresses, and does not move.
    #[serde(default)]
    pub is_at_several: bool,
}

/// From a server that has woken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Serving {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// From a server that has moved: what has become of its clients until now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// How many were to come along.
    pub expected: usize,
    /// Of these, those that are back.
    pub back: usize,
    /// Of these, those whose connections have ended before they were.
    pub gone: usize,
    /// Besides, those that cannot follow: they were told to connect anew.
    pub dismissed: usize,
    /// Whether nobody is waited for any longer.
    pub is_over: bool,
}

impl From<Arrivals> for Clients {
    fn from(arrivals: Arrivals) -> Self {
        Self {
            expected: arrivals.expected,
            back: arrivals.arrived,
            gone: arrivals.gone,
            dismissed: arrivals.dismissed,
            is_over: arrivals.is_over,
        }
    }
}

impl Clients {
    /// Those that are neither back nor gone.
    pub fn missing(&self) -> usize {
        self.expected
            .saturating_sub(self.back.saturating_add(self.gone))
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} clients are back", self.back, self.expected)?;
        for (count, what) in [
            (self.missing(), "not here yet"),
            (self.gone, "gone"),
            (
                self.dismissed,
                "told to connect anew, as they cannot follow",
            ),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// From a parked server to its forwarder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToForward {
    /// Where the server was.
    pub listen: SocketAddr,
    /// Where it will be.
    pub server: SocketAddr,
    /// What the server knows the forwarder by, in hexadecimal.
    secret: String,
    clients: Vec<SocketAddr>,
    followers: Vec<SocketAddr>,
}

/// From a forwarder: it forwards.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forwards {
    /// Which process it is.
    pub process: Identity,
    /// Where to.
    pub server: SocketAddr,
}

impl ToForward {
    /// For a server that leaves `listen` for `server`.
    pub fn new(listen: SocketAddr, server: SocketAddr, forwarding: &Forwarding) -> Self {
        Self {
            listen,
            server,
            secret: HEXLOWER.encode(&forwarding.secret),
            clients: forwarding.clients.clone(),
            followers: forwarding.followers.clone(),
        }
    }

    /// As the forwarder needs it; none if it does not say.
    pub fn forwarding(&self) -> Option<Forwarding> {
        let secret = HEXLOWER.decode(self.secret.as_bytes()).ok()?;
        Some(Forwarding {
            secret: secret.try_into().ok()?,
            clients: self.clients.clone(),
            followers: self.followers.clone(),
        })
    }
}

/// A note: a file of a fixed name with one of the types above.
pub trait Note: Serialize + DeserializeOwned {
    /// The file's name, without its end.
    const NAME: &str;
}

macro_rules! notes {
    ($($note:ty: $name:literal),*) => {
        $(impl Note for $note {
            const NAME: &str = $name;
        })*
    };
}
// Manifest: while a server is parked, what is known of its images until then.
notes!(CheckpointRequest: "request", Thawed: "thawed", Undumped: "undumped", Failed: "failed", Helper: "helper",
       Done: "done", Waiting: "waiting", Serving: "serving", Settings: "settings", Manifest: "parked", Identity: "server",
       Clients: "clients", ToForward: "to-forward", Forwards: "forwards", Ready: "ready", Refused: "refused", Unpark: "unpark");

/// Writes a JSON file, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write_whole(path, &serde_json::to_vec(value).expect("plain data"))
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK)
            .open(&new)?;
        io::Write::write_all(&mut file, contents)
    };
    write().at(&new)?;
    fs::rename(&new, path).at(path)
}

/// What such a file says, if it is there. Whatever else is there has nobody wait, or read without end.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK);
    let mut text = Vec::new();
    let mut file = io::Read::take(options.open(path).ok()?, MAX_LENGTH);
    io::Read::read_to_end(&mut file, &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_become_of_the_clients_is_told_in_a_line() {
        let mut clients = Clients {
            expected: 3,
            back: 3,
            ..Clients::default()
        };
        assert_eq!(clients.to_string(), "3 of 3 clients are back");
        (clients.back, clients.gone, clients.dismissed) = (1, 1, 2);
        assert_eq!(
            clients.to_string(),
            "1 of 3 clients are back, 1 not here yet, 1 gone, 2 told to connect anew, as they cannot follow"
        );
        // The server of another user may say anything.
        clients.back = 9;
        assert_eq!(clients.missing(), 0);
    }

    #[test]
    fn an_id_is_a_part_of_a_file_name() {
        let id = RequestId::new();
        assert_eq!(RequestId::parse(&id.to_string()), Ok(id));
        for text in ["", "../1", "a", "1 2"] {
            assert!(RequestId::parse(text).is_err(), "{text}");
        }
    }
}
