//! Small files through which a server, its checkpoint helper and its restorer talk.
//!
//! They lie in a directory of a name that no other server has, on any host, since a restored server keeps it. Files
//! rather than sockets, since a frozen server can hold none. What is said of one checkpoint carries the
//! id of its request in its name: whoever waits hears of his own only.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::notes::{Note, RequestId, read_json, write_json};
use super::owner::Owner;
use super::process::Identity;
use super::trust;
use crate::error::{At, Error};

/// What only one process can have at a time, until it ends.
#[derive(Debug, Clone, Copy)]
pub enum LockOf {
    /// The `checkpoint` command, or the one that restores.
    Command,
    /// The helper, and the CRIU that it runs.
    Helper,
}

/// A server's control directory.
#[derive(Debug, Clone)]
pub struct Control {
    path: PathBuf,
    /// Whose it is, if not this user's.
    owner: Option<Owner>,
}

impl Control {
    /// For this process, a server that starts.
    ///
    /// # Errors
    /// The system makes up no name.
    pub fn new() -> io::Result<Self> {
        let name = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let pid = std::process::id();
        Ok(Self::at(base().join(format!("{pid}-{}", name.trim()))))
    }

    /// Of the server that has this process id here, or had it, for this user.
    pub fn of(pid: i32) -> Self {
        Self::at(named(&base(), pid, None))
    }

    /// Of the server with this process id, which runs as another user.
    ///
    /// # Errors
    /// Its surroundings cannot be read.
    pub fn of_user(pid: i32, owner: Owner) -> io::Result<Self> {
        // The user can have them say anything.
        let environment = fs::read(format!("/proc/{pid}/environ"))?;
        let base = base_of(owner.uid, |name| variable(&environment, name));
        let owner = Some(owner);
        Ok(Self::at(named(&base, pid, owner)).owned_by(owner))
    }

    /// At a path that was handed on.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            owner: None,
        }
    }

    /// The same as a directory of that user.
    pub fn owned_by(self, owner: Option<Owner>) -> Self {
        Self { owner, ..self }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does something with files that its user names or has made, by that user's rights.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn act<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.owner {
            Some(owner) => owner.act(act),
            None => act(),
        }
    }

    /// Where images go if nobody says otherwise: on tmpfs, as they hold keys. Not in the directory of a server,
    /// which goes with it.
    pub fn images() -> PathBuf {
        base().join("images")
    }

    /// Makes the directory, for this user only.
    ///
    /// # Errors
    /// Those of the file system, and as [`check`](Self::check).
    pub fn create(&self) -> Result<(), Error> {
        let mut builder = fs::DirBuilder::new();
        let make = || builder.recursive(true).mode(0o700).create(&self.path);
        self.act(make).at(&self.path)?;
        self.check()
    }

    /// Nobody else can leave notes here.
    ///
    /// # Errors
    /// The directory, or the one that it is in, is another user's, or a link, or can be changed by others.
    pub fn check(&self) -> Result<(), Error> {
        let user = self.owner.map_or_else(trust::me, |owner| owner.uid);
        if let Some(base) = self.path.parent() {
            trust::own_folder(base, user)?;
        }
        trust::private_folder(&self.path, user)
    }

    /// Whether there is such a server, or was one that left no time to clean up.
    pub fn exists(&self) -> bool {
        self.act(|| Ok(self.path.is_dir())).unwrap_or_default()
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) {
        let _ = self.act(|| fs::remove_dir_all(&self.path));
    }

    /// Removes all notes.
    pub fn clear_all(&self) {
        let _ = self.act(|| {
            for entry in fs::read_dir(&self.path)?.flatten() {
                if entry.path().extension().is_some_and(|end| end == "json") {
                    let _ = fs::remove_file(entry.path());
                }
            }
            Ok(())
        });
    }

    /// Removes it if its server has ended, and nobody is about to talk with that.
    pub fn remove_if_dead(&self) {
        let Some(server) = self.read::<Identity>() else {
            return;
        };
        let locks = [LockOf::Command, LockOf::Helper].map(|of| self.try_lock(of));
        if locks.iter().all(Result::is_ok) && server.is_of_this_namespace() && !server.is_alive() {
            self.remove();
        }
    }

    /// Removes what servers of this user have left that were killed.
    pub fn remove_dead() {
        for entry in fs::read_dir(base()).into_iter().flatten().flatten() {
            let control = Self::at(entry.path());
            if control.check().is_ok() && control.read::<Identity>().is_some() {
                control.remove_if_dead();
            }
        }
    }

    /// The lock, until the file is closed.
    ///
    /// # Errors
    /// `WouldBlock` if another has it; those of the file system.
    pub fn try_lock(&self, of: LockOf) -> io::Result<File> {
        let name = match of {
            LockOf::Command => "command.lock",
            LockOf::Helper => "helper.lock",
        };
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        options.custom_flags(O_NOFOLLOW | O_NONBLOCK);
        let file = self.act(|| options.open(self.path.join(name)))?;
        file.try_lock()?;
        match file.metadata()?.nlink() {
            // It was removed with its directory in the meantime.
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(file),
        }
    }

    /// Leaves a note, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write<N: Note>(&self, note: &N) -> Result<(), Error> {
        self.write_at(&self.file::<N>(None), note)
    }

    /// A note, if it is there, which is gone then.
    pub fn take<N: Note>(&self) -> Option<N> {
        // A server that is frozen between the two finds what was written meanwhile, and must not remove it unread.
        let note = self.read()?;
        self.clear::<N>();
        Some(note)
    }

    /// A note, if it is there.
    pub fn read<N: Note>(&self) -> Option<N> {
        self.read_at(&self.file::<N>(None))
    }

    /// Removes a note.
    pub fn clear<N: Note>(&self) {
        let _ = self.act(|| fs::remove_file(self.file::<N>(None)));
    }

    /// Leaves a note on one request, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_on<N: Note>(&self, request: &RequestId, note: &N) -> Result<(), Error> {
        self.write_at(&self.file::<N>(Some(request)), note)
    }

    /// A note on this request, if it is there.
    pub fn read_on<N: Note>(&self, request: &RequestId) -> Option<N> {
        self.read_at(&self.file::<N>(Some(request)))
    }

    /// Removes a note on this request.
    pub fn clear_on<N: Note>(&self, request: &RequestId) {
        let _ = self.act(|| fs::remove_file(self.file::<N>(Some(request))));
    }

    fn write_at(&self, file: &Path, note: &impl Note) -> Result<(), Error> {
        let written = self.act(|| Ok(write_json(file, note)));
        written.at(file)?
    }

    fn read_at<N: Note>(&self, file: &Path) -> Option<N> {
        self.act(|| Ok(read_json(file))).ok()?
    }

    fn file<N: Note>(&self, request: Option<&RequestId>) -> PathBuf {
        let name = N::NAME;
        self.path.join(match request {
            Some(request) => format!("{name}-{request}.json"),
            None => format!("{name}.json"),
        })
    }
}

/// Where the control directories of this user's servers are.
fn base() -> PathBuf {
    base_of(trust::me(), |name| std::env::var_os(name))
}

/// Where those of this user are, in these surroundings.
fn base_of(uid: u32, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    if uid == 0 {
        PathBuf::from("/run/mpq-serve")
    } else if let Some(run) = variable("XDG_RUNTIME_DIR").filter(|run| !is_of_another(run, uid)) {
        PathBuf::from(run).join("mpq-serve")
    } else {
        let usual = || "/tmp".into();
        let folder = PathBuf::from(variable("TMPDIR").unwrap_or_else(usual));
        folder.join(format!("mpq-serve-{uid}"))
    }
}

/// Whether a folder is not this user's: in the surroundings of a server that root has started there may be root's.
fn is_of_another(folder: &OsStr, uid: u32) -> bool {
    fs::metadata(folder).is_ok_and(|metadata| metadata.uid() != uid)
}

/// A variable of an environment, as the kernel says that (proc_pid_environ(5)).
fn variable(environment: &[u8], name: &str) -> Option<OsString> {
    let value = |entry: &'_ [u8]| {
        let rest = entry.strip_prefix(name.as_bytes())?;
        Some(OsStr::from_bytes(rest.strip_prefix(b"=")?).to_owned())
    };
    environment.split(|byte| *byte == 0).find_map(value)
}

/// The one of these, of this user, whose server has this process id here: if there are several, the one that still runs;
/// if none says so, the one that a process with this id has made.
fn named(base: &Path, pid: i32, owner: Option<Owner>) -> PathBuf {
    let list = || fs::read_dir(base)?.collect::<io::Result<Vec<_>>>();
    let entries = Control::at(base).owned_by(owner).act(list);
    let found = entries.into_iter().flatten().filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str().filter(|name| !name.contains('.'))?;
        let control = Control::at(entry.path()).owned_by(owner);
        let rank = match control.read::<Identity>() {
            Some(server) if server.pid == pid && server.is_of_this_namespace() => {
                1 + u8::from(server.is_alive())
            }
            None if name.split('-').next() == Some(&pid.to_string()) => 0,
            _ => return None,
        };
        Some((rank, control.path))
    });
    let nothing = || base.join(pid.to_string());
    found.max().map_or_else(nothing, |(_, found)| found)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn control(folder: &Path) -> Control {
        let control = Control::at(folder.join("mpq-serve/1"));
        control.create().unwrap();
        control
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let control = control(folder.path());
        let base = folder.path().join("mpq-serve");
        fs::set_permissions(&base, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(control.create(), Err(Error::Untrusted(..))));
        fs::set_permissions(&base, fs::Permissions::from_mode(0o700)).unwrap();
        control.remove();
        fs::create_dir(folder.path().join("elsewhere")).unwrap();
        symlink("../elsewhere", control.path()).unwrap();
        assert!(matches!(control.create(), Err(Error::Untrusted(..))));
    }

    #[test]
    fn the_folder_of_another_user_is_where_his_server_says() {
        let environment = b"A=b\0XDG_RUNTIME_DIR_=x\0TMPDIR=/var/tmp\0\0";
        let base = |uid, text: &'static [u8]| base_of(uid, |name| variable(text, name));
        assert_eq!(base(7, environment), Path::new("/var/tmp/mpq-serve-7"));
        assert_eq!(base(7, b""), Path::new("/tmp/mpq-serve-7"));
        let here = b"XDG_RUNTIME_DIR=/run/user/7\0";
        assert_eq!(base(7, here), Path::new("/run/user/7/mpq-serve"));
        assert_eq!(base(0, here), Path::new("/run/mpq-serve"));
        // Root's.
        assert_eq!(
            base(7, b"XDG_RUNTIME_DIR=/\0"),
            Path::new("/tmp/mpq-serve-7")
        );
    }

    #[test]
    fn what_a_dead_server_left_goes_unless_somebody_still_talks_there() {
        let folder = tempfile::tempdir().unwrap();
        let control = control(folder.path());
        let alive = Identity::of(std::process::id() as i32).unwrap();
        control.write(&alive).unwrap();
        control.remove_if_dead();
        assert!(control.exists(), "its server is there");

        let started = alive.started + 2;
        let dead = Identity { started, ..alive };
        control.write(&dead).unwrap();
        let lock = control.try_lock(LockOf::Helper).unwrap();
        assert!(control.try_lock(LockOf::Helper).is_err());
        control.remove_if_dead();
        assert!(control.exists(), "its helper is there");
        drop(lock);

        let pid_namespace = dead.pid_namespace + 1;
        let of_another = Identity {
            pid_namespace,
            ..dead.clone()
        };
        control.write(&of_another).unwrap();
        control.remove_if_dead();
        assert!(control.exists(), "its ids are others");

        control.write(&dead).unwrap();
        control.remove_if_dead();
        assert!(!control.exists());
    }
}
