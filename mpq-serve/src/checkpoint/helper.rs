//! `mpq-serve dump`, the helper: it leaves the server's process tree, waits until the server is parked, and has
//! CRIU dump it.
//!
//! CRIU calls back ([`hook`](super::hook)) when its images are complete and the server still stands still. Only then is it
//! certain whether the server is parked as it should be, or has gone on since nobody came.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use super::control::{Control, LockOf, wait_for};
use super::dump::dump;
use super::hook::Order;
use super::images;
use super::notes::{Done, Helper, Manifest, RequestId, Serving, Undumped};
use super::process::Process;
use super::{for_user, forward};
use crate::error::{At, Error, Failure};

/// How long the helper waits for the server to park.
const PARKING_LIMIT: Duration = Duration::from_secs(30);
/// How long the helper lends its standard streams to a server that goes on.
const LENDING_LIMIT: Duration = Duration::from_secs(5);
/// Set for the helper once it is detached.
const DETACHED: &str = "MPQ_DUMP_DETACHED";

/// Who dumps a server that parks.
#[derive(Debug, Clone)]
pub enum Dumper {
    /// The helper, into this folder,
    Helper {
        /// which was made for it,
        images: PathBuf,
        /// with this CRIU, or else the one that it finds.
        criu: Option<PathBuf>,
    },
    /// This process of root's.
    Root(i32),
}

impl Dumper {
    /// The folder of the images, if this user has it.
    pub fn images(&self) -> Option<&Path> {
        match self {
            Self::Helper { images, .. } => Some(images),
            Self::Root(_) => None,
        }
    }
}

/// Starts the helper for this process, which is about to park. Returns its process id.
///
/// # Errors
/// It cannot be started.
pub fn start(control: &Control, request: &RequestId, dumper: &Dumper) -> Result<i32, Error> {
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let mut command = Command::new(&program);
    command.args(["dump", "--pid", &std::process::id().to_string()]);
    match dumper {
        Dumper::Helper { images, criu } => {
            command.arg("--images").arg(images);
            command.envs(criu.iter().map(|criu| ("MPQ_CRIU", criu)));
        }
        Dumper::Root(pid) => drop(command.args(["--dumper", &pid.to_string()])),
    }
    let status = command
        .arg("--control")
        .arg(control.path())
        .args(["--request", &request.to_string()])
        .stdin(Stdio::null())
        .status()
        .at(&program)?;
    let helper = control.read_on::<Helper>(request);
    control.clear_on::<Helper>(request);
    match helper.filter(|_| status.success()) {
        Some(helper) => Ok(helper.pid),
        None => Err(Error::Dump(format!(
            "the helper could not be started: {status}"
        ))),
    }
}

/// What the helper of a server is to do.
#[derive(Debug)]
pub struct Task {
    /// Whose.
    pub pid: i32,
    /// The server's control directory.
    pub control: Control,
    /// Whose wish it is.
    pub request: RequestId,
    /// Who dumps it.
    pub dumper: Dumper,
}

/// Does the helper's work. Called by the server, it only starts the process that does, and leaves a note of its id.
///
/// # Errors
/// As [`Criu`]; the server was told then.
pub fn run(task: &Task) -> Result<(), Error> {
    let Task {
        control, request, ..
    } = task;
    if std::env::var_os(DETACHED).is_none() {
        return detach(control, request);
    }
    let _ = nix::unistd::setsid();
    // CRIU makes its files readable by their owner only; its log, too.
    umask(Mode::from_bits_truncate(0o077));
    if let Err(error) = dump_when_parked(task) {
        if let Dumper::Helper { images, .. } = &task.dumper {
            images::discard(images);
        }
        control.clear_on::<Done>(request);
        control.clear::<Serving>();
        let undumped = Undumped {
            failure: Failure::of(&error),
            streams_of: std::process::id(),
        };
        control.write_on(request, &undumped)?;
        wait_for(LENDING_LIMIT, || control.read::<Serving>());
    }
    // The server tells its log, and whoever waits.
    Ok(())
}

/// Starts the process that is no child of the server. The lock is its standard input, also that of its CRIU:
/// whoever gets the lock next knows that both have ended.
fn detach(control: &Control, request: &RequestId) -> Result<(), Error> {
    let lock = control.try_lock(LockOf::Helper).at(control.path())?;
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let helper = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .env(DETACHED, "1")
        .stdin(lock)
        .spawn()
        .at(&program)?;
    // Whoever adopts the new process, it is not the server.
    let pid = helper.id() as i32;
    control.write_on(request, &Helper { pid })
}

fn dump_when_parked(task: &Task) -> Result<(), Error> {
    let Task {
        pid,
        control,
        request,
        dumper,
    } = task;
    let server = Process::open(*pid).map_err(|_| Error::Leaving)?;
    let is_parked = || control.read_on::<Manifest>(request).is_some();
    let parked = wait_for(PARKING_LIMIT, || match is_parked() {
        true => Some(Ok(())),
        false => server.has_ended().then_some(Err(Error::Leaving)),
    });
    parked.unwrap_or_else(|| Err(Error::Dump("the server did not park".into())))?;
    let forwarder = forward::start(control, request)?;
    let dumped = match dumper {
        Dumper::Helper { images, .. } => {
            let order = Order {
                pid: *pid,
                images: images.clone(),
                control: control.path().to_owned(),
                request: request.clone(),
                owner: None,
            };
            dump(order)
        }
        Dumper::Root(dumper) => for_user::await_dump(control, request, &server, *dumper),
    };
    // The server wants its address back.
    if let (Err(_), Some(forwarder)) = (&dumped, forwarder) {
        forwarder.end();
    }
    dumped
}
