//! All that has a server frozen and brought back: the commands for scripts, the helper that runs CRIU,
//! and what a process must let go of before it can be frozen.
//!
//! [`control`] has the notes by which the server, its helper and its restorer talk; [`criu`] finds and
//! runs CRIU; [`restore`] brings a server back; [`stdio`] and [`heap`] prepare the server's own process.
//! Here are the `checkpoint` command and the helper.
//!
//! The server does all of it by itself on SIGUSR1. When it is parked it has no socket, file or
//! standard stream open, and says so by a note; the helper, which is no child of it (CRIU dumps
//! children too), then dumps it. If that fails the helper says why, and the server goes on.

pub mod control;
pub mod criu;
pub mod heap;
pub mod restore;
pub mod stdio;

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::control::{
    CheckpointRequest, Control, Failed, Manifest, Serving, now, private_dir, wait_for, write_json,
};
use self::criu::Criu;
use crate::error::{At, Error, Failure};

/// How long the helper waits for the server to park.
const PARKING_LIMIT: Duration = Duration::from_secs(30);
/// How long the helper lends its standard streams to a server that goes on.
const LENDING_LIMIT: Duration = Duration::from_secs(5);
/// Set for the helper once it is detached.
const DETACHED: &str = "MPQ_DUMP_DETACHED";

/// `mpq-serve checkpoint`: tells a server to have itself dumped, and returns when the images are
/// complete. Prints where they are.
///
/// # Errors
/// There is no such server, or it was not dumped and goes on.
pub fn run(
    pid: Option<i32>,
    pid_file: Option<PathBuf>,
    images: Option<PathBuf>,
    migrate_to: Vec<SocketAddr>,
) -> Result<(), Error> {
    let pid = match (pid, pid_file) {
        (Some(pid), _) => pid,
        (None, Some(file)) => read_pid(&file)?,
        (None, None) => unreachable!("clap wants one of them"),
    };
    let control = Control::of(pid);
    if !control.exists() || kill(Pid::from_raw(pid), None).is_err() {
        return Err(Error::NoServer(pid));
    }
    let images = images.map(std::path::absolute).transpose().at(".")?;
    forget_last(&control);
    control.write(&CheckpointRequest { images, migrate_to })?;
    kill(Pid::from_raw(pid), Signal::SIGUSR1).map_err(|_| Error::NoServer(pid))?;
    let done = wait_for(Duration::from_secs(3600), || {
        if let Some(failed) = control.read::<Failed>() {
            return Some(Err(Error::Told(failed.failure)));
        }
        let done = fs::read_to_string(control.path().join(DONE)).ok();
        if done.is_none() && kill(Pid::from_raw(pid), None).is_err() {
            // It is dumped, or died; the helper says which right away.
            return wait_for(LENDING_LIMIT, || {
                fs::read_to_string(control.path().join(DONE)).ok()
            })
            .map(Ok)
            .or(Some(Err(Error::NoServer(pid))));
        }
        done.map(Ok)
    });
    let images = done.unwrap_or(Err(Error::NoServer(pid)))?;
    say(&images);
    Ok(())
}

/// In the control directory: where the complete images are.
const DONE: &str = "images-complete";

/// `mpq-serve dump`: the helper. It leaves the server's process tree, waits until the server is
/// parked, and dumps it.
///
/// # Errors
/// As [`Criu`]; the server was told then.
pub fn dump(pid: i32, images: &Path, control: &Path) -> Result<(), Error> {
    if std::env::var_os(DETACHED).is_none() {
        let program = std::env::current_exe().at("/proc/self/exe")?;
        Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env(DETACHED, "1")
            .stdin(Stdio::null())
            .spawn()
            .at(&program)?;
        // Whoever adopts the new process, it is not the server.
        return Ok(());
    }
    let _ = nix::unistd::setsid();
    let control = Control::at(control);
    let result = dump_when_parked(pid, images, &control);
    if let Err(error) = &result {
        let failure = Failure {
            message: error.to_string(),
            code: error.code(),
        };
        control.clear::<Serving>();
        control.write(&Failed {
            failure,
            streams_of: std::process::id(),
        })?;
        wait_for(LENDING_LIMIT, || control.read::<Serving>());
    }
    // The server tells its own log; whoever waits has read the note.
    Ok(())
}

fn dump_when_parked(pid: i32, images: &Path, control: &Control) -> Result<(), Error> {
    let criu = Criu::find("mpq-serve")?;
    private_dir(images)?;
    let manifest = images.join(Manifest::FILE);
    let _ = fs::remove_file(&manifest);
    let not_parked = || Error::Dump("the server did not park".into());
    let parked: Manifest = wait_for(PARKING_LIMIT, || control.read()).ok_or_else(not_parked)?;
    let dump_started = now();
    criu.dump(pid, images).map_err(Error::Dump)?;
    control.clear::<Manifest>();
    write_json(
        &manifest,
        &Manifest {
            dump_started,
            dumped: now(),
            ..parked
        },
    )?;
    let done = control.path().join(DONE);
    fs::write(&done, images.display().to_string()).at(done)
}

/// Starts the helper for a server that is about to park.
///
/// # Errors
/// It cannot be started.
pub fn start_helper(control: &Control, images: &Path) -> Result<(), Error> {
    forget_last(control);
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let status = Command::new(&program)
        .args(["dump", "--pid", &std::process::id().to_string(), "--images"])
        .arg(images)
        .arg("--control")
        .arg(control.path())
        .stdin(Stdio::null())
        .status()
        .at(&program)?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Dump(format!(
            "the helper could not be started: {status}"
        ))),
    }
}

/// Removes what an earlier checkpoint left.
fn forget_last(control: &Control) {
    let _ = fs::remove_file(control.path().join(DONE));
    control.clear::<Failed>();
    control.clear::<Manifest>();
}

/// Prints what a command has found out. What it was to do is done, also if nobody wants to hear of it.
fn say(line: &impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn read_pid(file: &Path) -> Result<i32, Error> {
    let wrong = |reason: String| Error::PidFile(file.to_owned(), reason);
    let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(wrong(format!("it says {:?}", text.trim()))),
    }
}
