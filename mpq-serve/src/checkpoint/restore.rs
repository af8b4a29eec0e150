//! `mpq-serve restore`: brings a checkpointed server back, on this host, at a new address.

use std::fs;
use std::io::IsTerminal;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{Control, Manifest, Serving, Thawed, now, wait_for};
use super::criu::Criu;
use super::say;
use crate::error::{At, Error};

/// How long a restored server may take to listen.
const WAKING_LIMIT: Duration = Duration::from_secs(20);
/// How long the dumped process may still be listed.
const LEAVING_LIMIT: Duration = Duration::from_secs(10);
/// The manifest's name while a restore is under way: two of them would send with one key.
const TAKEN: &str = "manifest.taken";

/// Restores the server whose images these are, and returns when it serves. Prints one line of JSON.
/// The images, which hold keys, are removed then.
///
/// # Errors
/// No images, no CRIU, an address that is not free here, or what CRIU says. The images are kept.
pub fn run(
    images: &Path,
    listen: Option<SocketAddr>,
    pid_file: Option<PathBuf>,
) -> Result<(), Error> {
    let file = images.join(Manifest::FILE);
    let text = fs::read(&file).map_err(|_| Error::NoImages(images.to_owned()))?;
    let foreign = |reason: String| Error::ForeignImages(images.to_owned(), reason);
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
    if manifest.program != Manifest::PROGRAM || manifest.version != env!("CARGO_PKG_VERSION") {
        return Err(foreign(format!(
            "{} {}",
            manifest.program, manifest.version
        )));
    }
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
    control.clear::<Serving>();
    // The log goes on where it is seen; a pipe would keep its reader waiting for the end.
    let seen = std::io::stderr().is_terminal();
    let streams_of = if seen { std::process::id() } else { 0 };
    control.write(&Thawed { listen, streams_of })?;
    let taken = images.join(TAKEN);
    fs::rename(&file, &taken).at(&file)?;
    let started = now();
    if let Err(reason) = criu.restore(images) {
        let _ = fs::rename(&taken, &file);
        control.clear::<Thawed>();
        return Err(Error::Restore(reason));
    }
    let restored = now();
    let serving = wait_for(WAKING_LIMIT, || control.read::<Serving>());
    let listen = serving
        .ok_or_else(|| Error::Restore("the server does not wake".into()))?
        .listen;
    if let Some(pid_file) = pid_file {
        fs::write(&pid_file, manifest.pid.to_string()).at(pid_file)?;
    }
    fs::remove_dir_all(images).at(images)?;
    let report = serde_json::json!({
        "pid": manifest.pid,
        "listen": listen,
        "thawed": restored,
        "restore_seconds": restored - started,
    });
    say(&report);
    Ok(())
}
