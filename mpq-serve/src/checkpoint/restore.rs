//! `mpq-serve restore`: brings a checkpointed server back, on this host, at a new address.

use std::fs;
use std::io::IsTerminal;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{Control, LockOf, wait_for};
use super::criu::Criu;
use super::images::Images;
use super::notes::{Serving, Thawed, now};
use super::process::Identity;
use super::say;
use crate::error::{At, Error};

/// How long a restored server may take to listen.
const WAKING_LIMIT: Duration = Duration::from_secs(20);
/// How long the dumped process may still be listed, and whoever had it dumped be there.
const LEAVING_LIMIT: Duration = Duration::from_secs(10);

/// Restores the server whose images are in this folder, and returns when it serves. Prints one line of JSON.
/// The images, which hold keys, are removed then.
///
/// # Errors
/// No images, or some that others could have changed, no CRIU, an address that is not free here, or what CRIU
/// says. The images are kept.
pub fn run(
    folder: &Path,
    listen: Option<SocketAddr>,
    pid_file: Option<PathBuf>,
) -> Result<(), Error> {
    let images = Images::open(folder)?;
    let manifest = &images.manifest;
    let criu = Criu::find("mpq-serve restore")?;
    let listen = match listen.or_else(|| manifest.targets.first().copied()) {
        Some(listen) => listen,
        None => manifest.listen,
    };
    UdpSocket::bind(listen).map_err(|error| Error::Listen(listen, error))?;

    // A dumped process keeps its id until whoever adopted it has taken notice of its end.
    let proc = PathBuf::from(format!("/proc/{}", manifest.pid));
    if wait_for(LEAVING_LIMIT, || (!proc.exists()).then_some(())).is_none() {
        let reason = format!("its process id, {}, is in use here", manifest.pid);
        return Err(Error::Restore(reason));
    }

    let control = Control::at(&manifest.control);
    control.create()?;
    // Nobody takes the directory for a dead server's.
    let lock = || control.try_lock(LockOf::Command).ok();
    let Some(_lock) = wait_for(LEAVING_LIMIT, lock) else {
        let reason = format!("{} is in use", control.path().display());
        return Err(Error::Restore(reason));
    };
    control.clear_all();
    // The log goes on where it is seen; a pipe would keep its reader waiting for the end.
    let seen = std::io::stderr().is_terminal();
    let streams_of = if seen { std::process::id() } else { 0 };
    control.write(&Thawed { listen, streams_of })?;
    images.take()?;
    let started = now();
    if let Err(reason) = criu.restore(&images.folder) {
        images.give_back();
        control.remove();
        return Err(Error::Restore(reason));
    }
    let restored = now();
    let gone = |error| Error::Restore(format!("the server does not stay: {error}"));
    control.write(&Identity::of(manifest.pid).map_err(gone)?)?;
    let serving = wait_for(WAKING_LIMIT, || control.read::<Serving>());
    let listen = serving
        .ok_or_else(|| Error::Restore("the server does not wake".into()))?
        .listen;
    if let Some(pid_file) = pid_file {
        fs::write(&pid_file, manifest.pid.to_string()).at(pid_file)?;
    }
    images.remove();
    let report = serde_json::json!({
        "pid": manifest.pid,
        "listen": listen,
        "thawed": restored,
        "restore_seconds": restored - started,
    });
    say(&report);
    Ok(())
}
