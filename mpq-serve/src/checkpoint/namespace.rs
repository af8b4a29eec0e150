//! A namespace of process ids (pid_namespaces(7)) for a server whose ids are in use where it is restored.
//!
//! CRIU gives a process and its threads the ids that they had. Where those are in use, it is run in a new namespace, as
//! is whatever the server starts later, such as the helper that dumps it again. So CRIU never looks into another
//! namespace, and the images tell nothing of it: they can be restored in one or without. The first process there is
//! [`init`](super::init), which sees the ids of the outside beside those of the namespace, and ends with the last other
//! one.
//!
//! Outside of it the server has another id, by which its operator and its supervisor know it: its [`own_id`].

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use super::notes::{read_json, write_json};
use super::proc;
use super::process::{Identity, Process};
use crate::error::{At, Error};

/// What the first process says of CRIU, in the folder of the images.
pub const ENDED: &str = "criu-ended.json";
/// What CRIU's hook says of the server, in the same place.
pub const SEEN: &str = "seen.json";
/// The variable that tells CRIU's hook where the processes of the outside are seen.
pub const OUTSIDE: &str = "MPQ_OUTSIDE";
/// So many ids may be given out until a process has its own.
const SOON: i32 = 256;

/// The id of this process outside of its namespace, if it is in one.
static ID_OUTSIDE: AtomicI32 = AtomicI32::new(0);

/// The id by which this process is known where it was started or restored.
pub fn own_id() -> i32 {
    match ID_OUTSIDE.load(Ordering::Relaxed) {
        0 => std::process::id() as i32,
        id => id,
    }
}

/// Says that this process was restored, and by which id it is known there, if not by its own.
pub fn restored(id: Option<i32>) {
    ID_OUTSIDE.store(id.unwrap_or(0), Ordering::Relaxed);
}

/// How CRIU has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// Whether the server is restored.
    pub success: bool,
    /// Its exit status, in words.
    pub status: String,
}

/// The server is restored, and has this id outside.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seen {
    pid: i32,
}

/// Those of these ids that are in use here, or may be before a process is restored.
pub fn in_use(ids: &[i32]) -> Vec<i32> {
    let last = fs::read_to_string("/proc/sys/kernel/ns_last_pid").unwrap_or_default();
    let last: i32 = last.trim().parse().unwrap_or(0);
    let is_near = |id: i32| last > 0 && (1..=SOON).contains(&(id - last));
    let is_used = |id: i32| Path::new(&format!("/proc/{id}")).exists() || is_near(id);
    ids.iter().copied().filter(|id| is_used(*id)).collect()
}

/// Whether there can be such a namespace here.
///
/// # Errors
/// What the system says of it.
pub fn check() -> io::Result<()> {
    // Of a thread alone, which leaves it.
    let try_it = || unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS);
    let tried = thread::spawn(try_it).join().expect("it does not panic");
    Ok(tried?)
}

/// Starts the first process of a new one.
///
/// # Errors
/// Those of the operating system.
pub fn start(command: &mut Command) -> io::Result<Child> {
    thread::scope(|scope| {
        // The next child of the thread is in it, and the thread is not.
        let start = || {
            unshare(CloneFlags::CLONE_NEWPID)?;
            command.spawn()
        };
        scope.spawn(start).join().expect("it does not panic")
    })
}

/// Starts a process where the one with this id is: in its namespace, and with the mounts of that. None but one of those that
/// are [made](start) here: in others, such as those of containers, there may be another program at the same path.
///
/// # Errors
/// It is in another one; those of the operating system.
pub fn start_beside(pid: i32, command: &mut Command) -> io::Result<Child> {
    if Identity::namespace_of(pid)? == Identity::namespace_of("self")? {
        return command.spawn();
    }
    let process = Process::open(pid)?;
    if !is_below_init(pid)? {
        return Err(io::Error::other("it is in a namespace of somebody else"));
    }
    thread::scope(|scope| {
        let start = || {
            // A thread that shares its folder with others cannot leave the mounts that it sees.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&process, CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
            command.spawn()
        };
        scope.spawn(start).join().expect("it does not panic")
    })
}

/// Whether a process is a child of a first process that root runs, of this program.
fn is_below_init(pid: i32) -> io::Result<bool> {
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status"));
    let own = status(&pid.to_string())?;
    let parent = proc::named(&own, "PPid").unwrap_or_default();
    let program = |process: &str| fs::metadata(format!("/proc/{process}/exe"));
    let (ours, its) = (program("self")?, program(parent)?);
    Ok(innermost_id(&status(parent)?) == Some(1)
        && fs::metadata(format!("/proc/{parent}"))?.uid() == 0
        && (ours.dev(), ours.ino()) == (its.dev(), its.ino()))
}

/// Finds out by which id the process with this id is known outside, if this process is in a namespace, and leaves a note
/// of it in the folder of the images.
///
/// # Errors
/// There is no such process; those of the file system.
pub fn look(images: &Path, pid: i32) -> Result<Option<i32>, Error> {
    let Some(outside) = std::env::var_os(OUTSIDE).map(PathBuf::from) else {
        return Ok(None);
    };
    let seen = id_outside(&outside, pid).at(&outside)?;
    write_json(&images.join(SEEN), &Seen { pid: seen })?;
    Ok(Some(seen))
}

/// What such a note says.
pub fn seen(images: &Path) -> Option<i32> {
    read_json(&images.join(SEEN)).map(|Seen { pid }| pid)
}

/// What the kernel says outside of a process that is named by a descriptor (pidfd_open(2)).
fn id_outside(outside: &Path, pid: i32) -> io::Result<i32> {
    let process = Process::open(pid)?;
    let info = format!("self/fdinfo/{}", process.as_raw_fd());
    let info = fs::read_to_string(outside.join(info))?;
    let id = proc::named(&info, "Pid");
    id.and_then(|id| id.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The id that a process or thread has in its own namespace: the last of those that its status lists
/// (proc_pid_status(5)).
pub fn innermost_id(status: &str) -> Option<i32> {
    let list = proc::named(status, "NSpid")?;
    list.split_whitespace().next_back()?.parse().ok()
}

/// A process that has said itself which one it is, as it is known here: it may be in a namespace.
pub fn find(process: &Identity) -> Option<Identity> {
    if process.is_of_this_namespace() {
        return Identity::of(process.pid).ok();
    }
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.find_map(|id| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let is_it = innermost_id(&status) == Some(process.pid)
            && Identity::namespace_of(id).ok() == Some(process.pid_namespace);
        Identity::of(id).ok().filter(|_| is_it)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_use_and_those_that_may_be_soon_are_found() {
        let own = std::process::id() as i32;
        assert_eq!(in_use(&[own, i32::MAX]), [own]);
        let last = fs::read_to_string("/proc/sys/kernel/ns_last_pid").unwrap();
        let soon = last.trim().parse::<i32>().unwrap() + SOON / 2;
        assert_eq!(in_use(&[soon]), [soon]);
    }

    #[test]
    fn the_innermost_id_is_the_last() {
        let status = "Name:\tx\nPid:\t7000\nNSpid:\t7000\t12\t3\n";
        assert_eq!(innermost_id(status), Some(3));
        assert_eq!(innermost_id("NSpid:\t7\n"), Some(7));
        assert_eq!(innermost_id("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_of_this_namespace_is_seen_as_it_is() {
        let own = std::process::id() as i32;
        assert_eq!(id_outside(Path::new("/proc"), own).unwrap(), own);
        assert!(id_outside(Path::new("/proc"), i32::MAX).is_err());
        let process = Identity::of(own).unwrap();
        assert_eq!(find(&process), Some(process));
    }

    #[test]
    fn a_process_that_is_not_restored_has_the_id_that_it_knows() {
        assert_eq!(own_id(), std::process::id() as i32);
    }
}
