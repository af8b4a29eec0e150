//! Whose server it is. Root can have that of another user dumped, and bring it back. What it then does in folders of that
//! user, it does by that user's rights: whatever is planted there leads nowhere where the user could not go.

use std::fs;
use std::io;

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid, setresgid, setresuid};
use rustix::process::getgroups;
use rustix::thread::set_thread_groups;
use serde::{Deserialize, Serialize};

use super::proc;

/// Its number (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

/// A user who is not the one of this process, and the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's id.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

impl Owner {
    /// That of a process; none if this one is of the same user.
    ///
    /// # Errors
    /// There is no such process; or it has the rights of several users, so that it is nobody's.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let ids = |name| only(&status, name).ok_or(io::ErrorKind::PermissionDenied);
        let owner = Self {
            uid: ids("Uid")?,
            gid: ids("Gid")?,
        };
        Ok((owner.uid != geteuid().as_raw()).then_some(owner))
    }

    /// Does this as that user, as far as files are concerned: those that it makes are the user's, and those that the
    /// user cannot reach cannot be reached. Only this thread does.
    ///
    /// # Errors
    /// This is not root.
    pub fn act<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let root = Root::put_aside()?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setfsgid(gid);
        setfsuid(uid);
        // They say what it was, and not whether it worked.
        let is_done = setfsgid(gid) == gid && setfsuid(uid) == uid;
        let result = match is_done {
            true => act(),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        };
        drop(root);
        result
    }

    /// Takes that user's real ids, for good, where root may not read the limits of another user's process otherwise
    /// (prlimit(2)): CRIU reads them. All rights stay; the user can signal this process, and those that it starts.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn share_real_ids(&self) -> io::Result<()> {
        if has_capability(CAP_SYS_RESOURCE)? {
            return Ok(());
        }
        let (uid, gid) = (geteuid(), getegid());
        setresgid(Gid::from_raw(self.gid), gid, gid)?;
        setresuid(Uid::from_raw(self.uid), uid, uid)?;
        Ok(())
    }
}

/// Whether this process has the one of this number (capabilities(7)).
fn has_capability(number: u32) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = proc::named(&status, "CapEff");
    let set = set.and_then(|set| u64::from_str_radix(set, 16).ok());
    Ok(set.ok_or(io::ErrorKind::InvalidData)? & (1 << number) != 0)
}

/// What this thread is again in the end.
struct Root {
    uid: Uid,
    gid: Gid,
    groups: Vec<rustix::process::Gid>,
}

impl Root {
    fn put_aside() -> io::Result<Self> {
        let groups = getgroups()?;
        set_thread_groups(&[])?;
        Ok(Self {
            uid: geteuid(),
            gid: getegid(),
            groups,
        })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
        let _ = set_thread_groups(&self.groups);
    }
}

/// The id that a process has in each respect, such as real and effective (proc_pid_status(5)).
fn only(status: &str, name: &str) -> Option<u32> {
    let mut ids = proc::named(status, name)?
        .split_whitespace()
        .map(str::parse);
    let first = ids.next()?.ok()?;
    ids.all(|id| id == Ok(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_process_with_the_rights_of_two_users_is_nobodys() {
        let status = "Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\n";
        assert_eq!(only(status, "Uid"), Some(7));
        assert_eq!(only(status, "Gid"), Some(8));
        assert_eq!(only("Uid:\t7\t0\t0\t0\n", "Uid"), None);
        assert_eq!(only("", "Uid"), None);
        assert_eq!(Owner::of(std::process::id() as i32).unwrap(), None);
    }

    #[test]
    fn what_root_does_as_a_user_it_does_by_his_rights() {
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "").unwrap();
        let open =
            |path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        open(folder.path(), 0o777);
        // Also what the group of root may read.
        open(&secret, 0o640);
        let user = Owner {
            uid: 65_534,
            gid: 65_533,
        };
        let denied = user.act(|| fs::read(&secret)).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        let made = folder.path().join("made");
        user.act(|| fs::write(&made, "")).unwrap();
        let made = fs::metadata(made).unwrap();
        assert_eq!((made.uid(), made.gid()), (65_534, 65_533));
        assert!(fs::read(&secret).is_ok(), "root is itself again");
    }
}
