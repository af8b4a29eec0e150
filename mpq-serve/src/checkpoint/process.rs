//! Which process is meant: a process id alone is somebody else's once its process has ended.

use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{SysconfVar, sysconf};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::proc;

/// The fields of `stat` that say how a process is, and when it started (proc_pid_stat(5)).
const STATE: usize = 3;
const START_TIME: usize = 22;

/// What tells a process from any other that has its id later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Its id,
    pub pid: i32,
    /// in this namespace of ids.
    pub pid_namespace: u64,
    /// When it started, in ticks since the system did, give or take one.
    pub started: u64,
    /// Device and inode of its program.
    pub program: (u64, u64),
}

impl Identity {
    /// Of the process that has this id now.
    ///
    /// # Errors
    /// There is none, or it is another user's.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let program = fs::metadata(format!("/proc/{pid}/exe"))?;
        Ok(Self {
            pid,
            pid_namespace: Self::namespace_of("self")?,
            started: started(&stat)
                .and_then(|ticks| ticks.checked_add_signed(-shift()))
                .ok_or(io::ErrorKind::InvalidData)?,
            program: (program.dev(), program.ino()),
        })
    }

    /// Whether this is that process, whatever its program is called now.
    fn is_same_process(&self, other: &Self) -> bool {
        (self.pid, self.pid_namespace) == (other.pid, other.pid_namespace)
            && self.started.abs_diff(other.started) <= 1
    }

    /// The namespace of ids of a process that is named as in `/proc`.
    ///
    /// # Errors
    /// There is none, or it is another user's.
    pub fn namespace_of(process: impl Display) -> io::Result<u64> {
        Ok(fs::metadata(format!("/proc/{process}/ns/pid"))?.ino())
    }

    /// Whether that process is still there.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Whether this process sees the same ids.
    pub fn is_of_this_namespace(&self) -> bool {
        Self::namespace_of("self").is_ok_and(|own| own == self.pid_namespace)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.is_same_process(other) && self.program == other.program
    }
}

/// What tells a process that was restored from the one that was dumped, for itself: it is another one, and started at
/// another time. Cheaper than an [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// In ticks, as it is seen from its namespace of time.
    started: u64,
    pid_namespace: u64,
}

impl Birth {
    /// Of this process.
    ///
    /// # Errors
    /// Those of `/proc`.
    pub fn of_this_process() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        Ok(Self {
            started: started(&stat).ok_or(io::ErrorKind::InvalidData)?,
            pid_namespace: Identity::namespace_of("self")?,
        })
    }

    /// That of another process, which started then.
    #[cfg(test)]
    pub fn earlier(self) -> Self {
        let started = self.started - 1;
        Self { started, ..self }
    }
}

/// By how many ticks this process sees others start later than they did: one that was restored has a namespace in which
/// time goes on from its dump (time_namespaces(7)).
fn shift() -> i64 {
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks_of_boottime(&offsets, per_second.unwrap_or(100))
}

fn ticks_of_boottime(offsets: &str, ticks_per_second: i64) -> i64 {
    let line = offsets
        .lines()
        .find_map(|line| line.strip_prefix("boottime"));
    let mut numbers = line.unwrap_or_default().split_whitespace();
    let [seconds, nanoseconds] = [(); 2].map(|()| {
        let number = numbers.next().and_then(|number| number.parse::<i64>().ok());
        number.unwrap_or_default()
    });
    seconds * ticks_per_second + nanoseconds * ticks_per_second / 1_000_000_000
}

/// Whether another process holds a thread of this one, as CRIU does while it dumps it.
pub fn is_held(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let is_held =
        |status: String| proc::named(&status, "TracerPid").is_some_and(|tracer| tracer != "0");
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.any(|task| fs::read_to_string(task.path().join("status")).is_ok_and(is_held))
}

/// Whether the process that has this id has ended, and is listed until its parent has taken notice.
pub fn is_zombie(pid: i32) -> bool {
    state(pid).is_ok_and(|state| state == Some('Z'))
}

/// The letter that says how the process is that has this id.
///
/// # Errors
/// There is none.
pub fn state(pid: i32) -> io::Result<Option<char>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(proc::numbered(&stat, STATE).and_then(|state| state.chars().next()))
}

fn started(stat: &str) -> Option<u64> {
    proc::numbered(stat, START_TIME)?.parse().ok()
}

/// A process, and never another one.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Process {
    /// The process that has this id now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Has it move.
    ///
    /// # Errors
    /// It has ended, or it is another user's.
    pub fn tell_to_move(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::USR1)?)
    }

    /// Has it hand over.
    ///
    /// # Errors
    /// It has ended, or it is another user's.
    pub fn tell_to_hand_over(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::USR2)?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It has ended, or it is another user's.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::KILL)?)
    }

    /// Has it stand still, until it may [go on](Self::go_on).
    ///
    /// # Errors
    /// It has ended, or it is another user's.
    pub fn stop(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::STOP)?)
    }

    /// Has it go on.
    ///
    /// # Errors
    /// It has ended, or it is another user's.
    pub fn go_on(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::CONT)?)
    }

    /// Whether it has ended, also if nobody has collected it.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits until it has ended, but no longer than this; whether it has.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let mut ended = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let left = end.saturating_duration_since(Instant::now());
            match poll(
                &mut ended,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            ) {
                Ok(count) if count > 0 => return true,
                // A timeout of whole milliseconds may be over a little early.
                _ if Instant::now() >= end => return false,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_namespace_of_time_shifts_when_processes_started() {
        let offsets = "monotonic           5         0\nboottime           -2 500000000\n";
        assert_eq!(ticks_of_boottime(offsets, 100), -150);
        assert_eq!(ticks_of_boottime("", 100), 0);
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let process = Process::open(pid).unwrap();
        let identity = Identity::of(pid).unwrap();
        assert!(identity.is_alive() && !process.has_ended());
        assert!(!process.ends_within(Duration::from_millis(5)));
        let later = Identity {
            started: identity.started + 2,
            ..identity.clone()
        };
        assert!(!later.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.has_ended() && !identity.is_alive());
        assert!(process.ends_within(Duration::from_secs(1000)));
        assert!(process.tell_to_move().is_err());
    }
}
