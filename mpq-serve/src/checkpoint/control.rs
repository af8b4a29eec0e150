//! Small files through which a server, its checkpoint helper and its restorer talk.
//!
//! They lie in a directory that is named by the process id, which a restored server keeps. Files
//! rather than sockets, since a frozen server can hold none.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{At, Error, Failure};

/// What a checkpoint is: beside CRIU's images, written when they are complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `mpq-serve`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The server's process id, also once restored.
    pub pid: i32,
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
}

impl Manifest {
    /// The name that says whose images they are.
    pub const PROGRAM: &str = "mpq-serve";
    /// Its name in the images' directory.
    pub const FILE: &str = "manifest.json";
}

/// To a server: what a checkpoint is to do otherwise than its command line says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// Where the images go.
    pub images: Option<PathBuf>,
    /// Where the server will be.
    pub migrate_to: Vec<SocketAddr>,
}

/// To a restored server: where it is to listen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Thawed {
    /// Where to listen.
    pub listen: SocketAddr,
    /// A process whose output streams it takes over; 0 for none.
    pub streams_of: u32,
}

/// To a server, and to whoever waits for its checkpoint: there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// A process whose standard streams the server takes over.
    pub streams_of: u32,
}

/// From a server that has woken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Serving {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// A note: a file of a fixed name with one of the types above.
pub trait Note: Serialize + DeserializeOwned {
    /// The file's name.
    const FILE: &str;
}

macro_rules! notes {
    ($($note:ty: $file:literal),*) => {
        $(impl Note for $note {
            const FILE: &str = $file;
        })*
    };
}
notes!(CheckpointRequest: "request.json", Thawed: "thawed.json", Failed: "failed.json",
       Serving: "serving.json");

impl Note for Manifest {
    // In the control directory, while a server is parked: what is known of it until then.
    const FILE: &str = "parked.json";
}

/// A server's control directory.
#[derive(Debug, Clone)]
pub struct Control(PathBuf);

impl Control {
    /// Of the server with this process id, for this user.
    pub fn of(pid: i32) -> Self {
        let uid = nix::unistd::geteuid();
        let base = if uid.is_root() {
            PathBuf::from("/run/mpq-serve")
        } else if let Some(run) = std::env::var_os("XDG_RUNTIME_DIR") {
            PathBuf::from(run).join("mpq-serve")
        } else {
            std::env::temp_dir().join(format!("mpq-serve-{uid}"))
        };
        Self(base.join(pid.to_string()))
    }

    /// At a path that was handed on.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where images go if nobody says otherwise: on tmpfs, as they hold keys.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Makes the directory, for this user only.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self) -> Result<(), Error> {
        private_dir(&self.0)
    }

    /// Whether there is such a server, or was one that left no time to clean up.
    pub fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }

    /// Leaves a note, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write<N: Note>(&self, note: &N) -> Result<(), Error> {
        write_json(&self.0.join(N::FILE), note)
    }

    /// A note, if it is there.
    pub fn read<N: Note>(&self) -> Option<N> {
        serde_json::from_slice(&fs::read(self.0.join(N::FILE)).ok()?).ok()
    }

    /// Removes a note.
    pub fn clear<N: Note>(&self) {
        let _ = fs::remove_file(self.0.join(N::FILE));
    }
}

/// Makes a directory that only this user can look into.
///
/// # Errors
/// Those of the file system.
pub fn private_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).at(path)
}

/// Writes a JSON file, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(value).expect("plain data");
    let new = path.with_extension("new");
    fs::write(&new, text).at(&new)?;
    fs::rename(&new, path).at(path)
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Waits until `look` finds something.
pub fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = std::time::Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if std::time::Instant::now() >= end {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// How often notes are looked for.
pub const POLL_INTERVAL: Duration = Duration::from_millis(1);
