//! `mpq-serve init`, the first process of a [`namespace`]: it has CRIU restore a server there, and stays for as long as
//! there is any other process, since all would end with it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{O_DIRECTORY, O_PATH};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, dup2_stdin, setsid};

use super::namespace::{self, Ended};
use super::notes::write_json;
use crate::error::{At, Error};

/// How often it is looked for processes that are no children.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What the first process is to do.
#[derive(Debug)]
pub struct Task {
    /// The folder of the images.
    pub images: PathBuf,
    /// The process id of the server.
    pub pid: i32,
    /// The last id that it or one of its threads needs.
    pub last_id: i32,
    /// CRIU, and its arguments.
    pub criu: Vec<OsString>,
}

/// Does it, and returns the exit code that is that of the server, if that has ended otherwise than by being dumped. Its
/// standard input is CRIU's, and its standard streams are the server's log.
///
/// # Errors
/// Those of the operating system.
pub fn run(task: &Task) -> Result<u8, Error> {
    let outside = OpenOptions::new()
        .read(true)
        .custom_flags(O_PATH | O_DIRECTORY)
        .open("/proc")
        .at("/proc")?;
    let criu = match begin(task, &outside) {
        Ok(criu) => criu,
        Err(error) => {
            tell(task, false, error.to_string())?;
            return Err(error);
        }
    };
    let mut code = 0;
    loop {
        let status = match wait() {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            // Root's helper of an ordinary user's server is no child of this one.
            Err(_) if has_others() => {
                sleep(LOOK_INTERVAL);
                continue;
            }
            Err(_) => return Ok(code),
        };
        let (pid, its_code, words) = match status {
            WaitStatus::Exited(pid, code) => (pid, code, format!("exit status: {code}")),
            WaitStatus::Signaled(pid, signal, _) => {
                (pid, 128 + signal as i32, format!("signal: {signal}"))
            }
            _ => continue,
        };
        if pid == criu {
            tell(task, its_code == 0, words)?;
        } else if pid.as_raw() == task.pid {
            code = its_code as u8;
        }
    }
}

/// Whether there is another process in the namespace.
fn has_others() -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.any(|id| id != 1)
}

fn tell(task: &Task, success: bool, status: String) -> Result<(), Error> {
    let ended = Ended { success, status };
    write_json(&task.images.join(namespace::ENDED), &ended)
}

/// Starts CRIU, which sees the processes of the namespace in `/proc`; those of the outside are seen by way of this one.
fn begin(task: &Task, outside: &File) -> Result<Pid, Error> {
    // The terminal of whoever restores the server is not its own.
    let _ = setsid();
    own_proc().at("/proc")?;
    // Neither CRIU nor what it starts gets an id that the server needs.
    let last = "/proc/sys/kernel/ns_last_pid";
    fs::write(last, task.last_id.to_string()).at(last)?;
    let (program, arguments) = task.criu.split_first().expect("clap wants one");
    let outside = format!("/proc/1/fd/{}", outside.as_raw_fd());
    let criu = Command::new(program)
        .args(arguments)
        .env(namespace::OUTSIDE, outside)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .at(program)?;
    // The lock behind it is CRIU's alone.
    let null = File::open("/dev/null").at("/dev/null")?;
    dup2_stdin(&null).map_err(io::Error::from).at("/dev/null")?;
    Ok(Pid::from_raw(criu.id() as i32))
}

/// Mounts the `/proc` of the namespace, for this process and those that it starts. They see what is mounted outside later.
fn own_proc() -> io::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, NONE)?)
}
