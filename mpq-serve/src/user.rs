//! The user that a server becomes which root has started (`--user`).
//!
//! All that only root can do is done before: it reads the key, makes the files that are written to, and is allowed
//! many descriptors. Then it is that user, in each respect and for good. What may be needed again later, when a
//! move is over, is made such that the user can do it: the files are the user's, and the right to listen on ports
//! below 1024 stays where there are such ports.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::fchown;
use std::path::Path;

use nix::unistd::{self, AccessFlags, Gid, Uid, access, geteuid, initgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    set_capabilities, set_keep_capabilities,
};

use crate::args::Serve;
use crate::checkpoint::owner::Owner;
use crate::checkpoint::trust;
use crate::error::{At, Error};
use crate::lines::append;

/// Ports below need `CAP_NET_BIND_SERVICE`, unless the system is told otherwise (ip(7)).
const FIRST_OF_ANYBODY: u16 = 1024;

/// A user of this system, who is not root.
#[derive(Debug)]
pub(crate) struct User {
    name: String,
    owner: Owner,
}

impl User {
    /// The one of this name.
    ///
    /// # Errors
    /// There is none, it is root, or this process is not root, and cannot become another one.
    pub(crate) fn named(name: &str) -> Result<Self, Error> {
        let refused = |why: &str| Err(Error::Start(format!("--user {name}: {why}")));
        let user = match unistd::User::from_name(name) {
            Ok(Some(user)) => user,
            Ok(None) => return refused("there is no such user: name one that /etc/passwd has"),
            Err(error) => return refused(error.desc()),
        };
        if user.uid.is_root() {
            return refused("this is root: name a user who may do less");
        }
        if !geteuid().is_root() {
            return Err(Error::NotRoot(name.to_owned()));
        }
        let owner = Owner {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        };
        let name = user.name;
        Ok(Self { name, owner })
    }

    /// Has this process be the user's from now on. To be called before it has a thread: each has capabilities of its own.
    ///
    /// # Errors
    /// The user cannot write the files that are to be written, or reach those that are served; those of the operating system.
    pub(crate) fn take_over(&self, options: &Serve) -> Result<(), Error> {
        for file in files(options) {
            self.make(file)?;
        }
        let kept = match binds_low_port(options) {
            true => CapabilitySet::NET_BIND_SERVICE,
            false => CapabilitySet::empty(),
        };
        self.become_it(kept).map_err(|error| {
            let name = &self.name;
            Error::Start(format!("--user {name}: {error}"))
        })?;
        for file in files(options) {
            append(file).map_err(|error| {
                let (file, name) = (file.display(), &self.name);
                let hint = format!("user {name} has to write to it: chown {name} {file}");
                Error::Start(format!("{file}: {error}; {hint}"))
            })?;
        }
        if let Some(root) = options.root() {
            access(root, AccessFlags::X_OK).map_err(|error| {
                let (root, name) = (root.display(), &self.name);
                Error::Start(format!("{root}: {}: user {name} serves it", error.desc()))
            })?;
        }
        Ok(())
    }

    /// Makes a file that is not there: as the user, or as root where the user may not, for the user.
    fn make(&self, file: &Path) -> Result<(), Error> {
        if fs::symlink_metadata(file).is_ok() {
            return Ok(());
        }
        match self.owner.act(|| append(file)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            made => return made.map(drop).at(file),
        }
        let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
            return Ok(());
        };
        // Where nobody but root can have a name lead elsewhere.
        let folder = trust::path(&fs::canonicalize(folder).at(folder)?)?;
        let mut new = OpenOptions::new();
        let made = new.write(true).create_new(true);
        let made = made.open(folder.join(name)).at(file)?;
        fchown(made, Some(self.owner.uid), Some(self.owner.gid)).at(file)
    }

    /// Keeps these capabilities, if it has them.
    fn become_it(&self, kept: CapabilitySet) -> nix::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.owner.uid), Gid::from_raw(self.owner.gid));
        let name = CString::new(&*self.name).map_err(|_| nix::Error::EINVAL)?;
        let errno = |error: rustix::io::Errno| nix::Error::from_raw(error.raw_os_error());
        let kept = capabilities(None).map_err(errno)?.permitted & kept;
        set_keep_capabilities(true).map_err(errno)?;
        initgroups(&name, gid)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        set_keep_capabilities(false).map_err(errno)?;
        let all = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: kept,
        };
        set_capabilities(None, all).map_err(errno)?;
        // Also for the process that forwards (`checkpoint --forward`).
        if !kept.is_empty() {
            configure_capability_in_ambient_set(kept, true).map_err(errno)?;
        }
        Ok(())
    }
}

/// What is written to, now and after each move.
fn files(options: &Serve) -> impl Iterator<Item = &Path> {
    let files = [&options.pid_file, &options.log_file, &options.access_log];
    let files = files.into_iter().flatten().map(|file| file.as_path());
    files.filter(|file| file.as_os_str() != "-")
}

/// Whether it listens on a port that not everybody may listen on, or may have to after a move.
fn binds_low_port(options: &Serve) -> bool {
    let named = options.listen.iter().chain(&options.migrate_to);
    let mut all = named.chain(&options.metrics);
    all.any(|address| (1..FIRST_OF_ANYBODY).contains(&address.port()))
}
