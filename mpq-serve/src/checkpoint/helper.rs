//! `mpq-serve dump`, the helper: it leaves the server's process tree, waits until the server is parked, and has
//! CRIU dump it.
//!
//! CRIU calls back ([`hook`](super::hook)) when its images are complete and the server still stands still. Only then is it
//! certain whether the server is parked as it should be, or has gone on since nobody came.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use super::control::{Control, LockOf, wait_for};
use super::criu::Criu;
use super::forward;
use super::hook::{Hook, Order};
use super::images;
use super::notes::{Done, Helper, Manifest, RequestId, Serving, Undumped, now};
use super::process::Process;
use crate::error::{At, Error, Failure};

/// How long the helper waits for the server to park.
const PARKING_LIMIT: Duration = Duration::from_secs(30);
/// How long the helper lends its standard streams to a server that goes on.
const LENDING_LIMIT: Duration = Duration::from_secs(5);
/// Set for the helper once it is detached.
const DETACHED: &str = "MPQ_DUMP_DETACHED";

/// Starts the helper for this process, which is about to park. Returns its process id. It runs this CRIU, or else
/// the one that it finds.
///
/// # Errors
/// It cannot be started.
pub fn start(
    control: &Control,
    images: &Path,
    request: &RequestId,
    criu: Option<&Path>,
) -> Result<i32, Error> {
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let mut command = Command::new(&program);
    if let Some(criu) = criu {
        command.env("MPQ_CRIU", criu);
    }
    let status = command
        .args(["dump", "--pid", &std::process::id().to_string(), "--images"])
        .arg(images)
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

/// Does the helper's work. Called by the server, it only starts the process that does, and leaves a note of its id.
///
/// # Errors
/// As [`Criu`]; the server was told then.
pub fn run(order: &Order) -> Result<(), Error> {
    let control = Control::at(&order.control);
    if std::env::var_os(DETACHED).is_none() {
        return detach(order, &control);
    }
    let _ = nix::unistd::setsid();
    // CRIU makes its files readable by their owner only; its log, too.
    umask(Mode::from_bits_truncate(0o077));
    if let Err(error) = dump_when_parked(order, &control) {
        images::discard(&order.images);
        control.clear_on::<Done>(&order.request);
        control.clear::<Serving>();
        let undumped = Undumped {
            failure: Failure::of(&error),
            streams_of: std::process::id(),
        };
        control.write_on(&order.request, &undumped)?;
        wait_for(LENDING_LIMIT, || control.read::<Serving>());
    }
    // The server tells its log, and whoever waits.
    Ok(())
}

/// Starts the process that is no child of the server. The lock is its standard input, also that of its CRIU:
/// whoever gets the lock next knows that both have ended.
fn detach(order: &Order, control: &Control) -> Result<(), Error> {
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
    control.write_on(&order.request, &Helper { pid })
}

fn dump_when_parked(order: &Order, control: &Control) -> Result<(), Error> {
    let criu = Criu::find("mpq-serve", None)?;
    let server = Process::open(order.pid).map_err(|_| Error::Leaving)?;
    let parked = wait_for(PARKING_LIMIT, || {
        if control.read_on::<Manifest>(&order.request).is_some() {
            return Some(Ok(()));
        }
        server.has_ended().then_some(Err(Error::Leaving))
    });
    parked.unwrap_or_else(|| Err(Error::Dump("the server did not park".into())))?;
    let forwarder = forward::start(control, &order.request)?;
    let hook = Hook::Dump {
        order: order.clone(),
        started: now(),
    };
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let dumped = criu.dump(order.pid, &order.images, &program, hook.variable());
    // CRIU does not say why its hook refused. If it succeeds the hook has not, and the images may be in use by now: a
    // restore has cleared the notes.
    let dumped = dumped.map_err(|reason| match control.read_on::<Manifest>(&order.request) {
        Some(_) => Error::Dump(reason),
        None => Error::Dump("it had waited too long for CRIU".into()),
    });
    // The server wants its address back.
    if let (Err(_), Some(forwarder)) = (&dumped, forwarder) {
        forwarder.end();
    }
    dumped
}
