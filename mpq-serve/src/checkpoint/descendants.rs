//! Ending a program with all that it has started, also what was started to stay: a CRIU that is given up may have
//! half of a server.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::control::wait_for;
use super::proc;
use super::process::{self, Process};

/// The field of `stat` that says whose child a process is (proc_pid_stat(5)).
const PARENT: usize = 4;
/// How long the system may take to stop processes.
const STOPPING_LIMIT: Duration = Duration::from_secs(1);
/// How long the system may take to end processes that are killed.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

/// Has every descendant of this process remain one, also when its parent ends, until this process does.
///
/// # Errors
/// Those of the operating system.
pub fn keep() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Kills all descendants of this process, and returns when there are none; whether that is so.
pub fn end() -> bool {
    let ended = wait_for(ENDING_LIMIT, || {
        for pid in find(own_id()) {
            kill(pid);
        }
        // Those whose parents have ended are children of this process now, and are only gone once it has looked.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return Some(()),
                Err(Errno::EINTR) => {}
                Err(_) | Ok(WaitStatus::StillAlive) => return None,
                Ok(_) => {}
            }
        }
    });
    ended.is_some()
}

/// Those that this process has now.
pub fn present() -> Vec<i32> {
    find(own_id())
}

/// Ends all descendants of this process but these, unless it is too late when they stand still: then they go on. Whether
/// they have ended.
pub fn end_unless(spared: &[i32], is_too_late: impl FnOnce() -> bool) -> bool {
    let mut stopped = BTreeMap::new();
    let stand_still = wait_for(STOPPING_LIMIT, || {
        let mut others = find(own_id());
        others.retain(|pid| !spared.contains(pid));
        for &pid in &others {
            // As in `kill`.
            if let Entry::Vacant(new) = stopped.entry(pid)
                && let Ok(process) = Process::open(pid)
                && find(own_id()).contains(&pid)
            {
                let _ = process.stop();
                new.insert(process);
            }
        }
        let is_still = |pid: &i32| stopped.contains_key(pid) && stands_still(*pid);
        others.iter().all(is_still).then_some(())
    });
    let ends = stand_still.is_some() && !is_too_late();
    for process in stopped.values() {
        let _ = if ends {
            process.kill()
        } else {
            process.go_on()
        };
    }
    ends
}

/// It does, or has ended.
fn stands_still(pid: i32) -> bool {
    match process::state(pid) {
        Ok(state) => state.is_some_and(|state| "TtZX".contains(state)),
        Err(_) => true,
    }
}

fn own_id() -> i32 {
    std::process::id() as i32
}

/// A process that still descends from this one once it is held cannot be another one.
fn kill(pid: i32) {
    if let Ok(process) = Process::open(pid)
        && find(own_id()).contains(&pid)
    {
        let _ = process.kill();
    }
}

/// The descendants of a process.
fn find(ancestor: i32) -> Vec<i32> {
    let mut others: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, proc::numbered(&stat, PARENT)?.parse().ok()?))
        })
        .collect();
    let mut found = vec![ancestor];
    loop {
        let (more, rest): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|(_, parent)| found.contains(parent));
        if more.is_empty() {
            return found.split_off(1);
        }
        found.extend(more.into_iter().map(|(pid, _)| pid));
        others = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_is_too_late_goes_on_and_others_end() {
        let spared = present();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        // Other tests of this process have children, too.
        let others: Vec<_> = present()
            .into_iter()
            .filter(|other| *other != pid)
            .collect();
        let spared = [spared, others].concat();
        assert!(!end_unless(&spared, || {
            assert!(stands_still(pid));
            true
        }));
        assert!(wait_for(ENDING_LIMIT, || (!stands_still(pid)).then_some(())).is_some());
        assert!(end_unless(&spared, || false));
        child.wait().unwrap();
    }

    #[test]
    fn children_of_children_are_found() {
        let script = "sleep 1000 & echo $!; wait";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 16];
        let length = child.stdout.take().unwrap().read(&mut said).unwrap();
        let grandchild = String::from_utf8_lossy(&said[..length]).trim().to_owned();
        let grandchild: i32 = grandchild.parse().unwrap();
        let found = find(own_id());
        for pid in [child.id() as i32, grandchild] {
            assert!(found.contains(&pid), "{pid}: {found:?}");
        }
        assert_eq!(find(child.id() as i32), [grandchild]);
        Process::open(grandchild).unwrap().kill().unwrap();
        child.wait().unwrap();
    }
}
