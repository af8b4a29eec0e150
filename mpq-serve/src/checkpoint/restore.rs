//! `mpq-serve restore`: brings a checkpointed server back, on this host, at a new address. And `mpq-serve release`,
//! which lets a copy of its images be restored instead.

use std::fs;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::{SFlag, fstat};

use super::control::{Control, LockOf, wait_for};
use super::criu::Criu;
use super::hook::Hook;
use super::images::{Images, Taken};
use super::notes::{Serving, Thawed, now};
use super::process::{Identity, is_zombie};
use super::token::{self, Claim};
use super::{OLD_SIGNALS, descendants, namespace, say, sealing};
use crate::error::{At, Error};
use crate::lines::append;
use crate::{journal, log};

/// How long a restored server may take to listen.
const WAKING_LIMIT: Duration = Duration::from_secs(20);
/// How long the dumped process, and whoever had it dumped, may still be there.
const LEAVING_LIMIT: Duration = Duration::from_secs(10);
/// How long the dumped process may be listed once it has ended, before it is left to whoever does not collect it.
const COLLECTING_LIMIT: Duration = Duration::from_secs(1);

/// How a server is to be restored.
#[derive(Debug)]
pub struct Restore {
    /// Where it listens, if not where it was said that it would.
    pub listen: Option<SocketAddr>,
    /// Where its process id is written.
    pub pid_file: Option<PathBuf>,
    /// Where it logs to, if not where it did.
    pub log_file: Option<PathBuf>,
    /// How long CRIU may take.
    pub time_limit: Duration,
    /// By what right.
    pub claim: Claim,
    /// Why its move is undone: it listens where it did, and its clients are told that it stays.
    pub undone: Option<String>,
}

/// Restores the server whose images are in this folder, sealed if there is a file with their key, and returns when it
/// serves. Prints one line of JSON. The images, which hold keys, are removed then.
///
/// # Errors
/// No images, or some that are damaged, that others could have changed, that this key does not unseal, or that may not
/// wake here; no CRIU, an address that is not free here, or what CRIU says. The images are kept.
pub fn run(folder: &Path, key: Option<&Path>, options: Restore) -> Result<(), Error> {
    let images = match key {
        None => Images::open(folder)?,
        Some(file) => {
            let key = sealing::read_key(file)?;
            sealing::unseal(Taken::take(folder)?, &key, file, options.claim)?
        }
    };
    let restored = bring_back(&images, options).inspect_err(|_| images.keep())?;
    // Whoever waits for this may send one.
    std::thread::sleep(2 * OLD_SIGNALS);
    let report = serde_json::json!({
        "pid": restored.pid,
        "listen": restored.listen,
        "thawed": restored.thawed,
        "restore_seconds": restored.seconds,
    });
    say(&report);
    Ok(())
}

/// A server that was brought back.
#[derive(Debug)]
pub struct Restored {
    /// Its process id.
    pub pid: i32,
    /// Where it listens.
    pub listen: SocketAddr,
    /// When it ran again, seconds since 1970.
    pub thawed: f64,
    /// How long CRIU took.
    pub seconds: f64,
}

/// Restores the server of these images, and returns when it serves. They are removed then.
///
/// # Errors
/// As [`run`].
pub fn bring_back(images: &Images, options: Restore) -> Result<Restored, Error> {
    images.claim(options.claim)?;
    let manifest = &images.manifest;
    let criu = Criu::find("mpq-serve restore", None)?;
    let announced = || manifest.targets.first().copied();
    let listen = match options.listen.or_else(announced) {
        Some(listen) if options.undone.is_none() => listen,
        _ => manifest.listen,
    };
    UdpSocket::bind(listen).map_err(|error| Error::Listen(listen, error))?;
    let log_file = options.log_file.map(std::path::absolute).transpose();
    let log_file = log_file.at(".")?;
    let control = Control::at(&manifest.control).owned_by(manifest.owner);
    // CRIU needs the first one, and the server its files.
    let log_folder = log_file.as_deref().and_then(Path::parent);
    for folder in manifest
        .folders
        .iter()
        .map(PathBuf::as_path)
        .chain(log_folder)
    {
        make_folder(folder, &control)?;
    }
    // The log goes on where it is seen or kept; a pipe would keep its reader waiting for the end.
    // Those of root are not an ordinary user's to write to.
    let mut streams_of = match manifest.owner {
        None if goes_on() => std::process::id(),
        _ => 0,
    };
    match log_file.as_ref().or(manifest.log_file.as_ref()) {
        Some(file) => drop(control.act(|| append(file)).at(file)?),
        None if manifest.logs_to_journal && journal::is_here() => {}
        None if streams_of == 0 => {
            log::tell(
                "the server's log will be lost from here on, unless --log-file says where it goes",
            );
        }
        None => {}
    }

    images.check()?;
    let in_namespace = needs_namespace(images, &control)?;
    control.create()?;
    // Nobody takes the directory for a dead server's.
    let lock = || control.try_lock(LockOf::Command).ok();
    let Some(_lock) = wait_for(LEAVING_LIMIT, lock) else {
        let reason = format!("{} is in use", control.path().display());
        return Err(Error::Restore(reason));
    };
    if in_namespace {
        log::tell("the ids of the server are in use here: it gets a namespace of its own");
        // The first process there has the same ones.
        streams_of = streams_of.min(1);
    }
    control.clear_all();
    control.write(&Thawed {
        listen,
        streams_of,
        log_file,
        undone: options.undone,
        pid: None,
    })?;
    let started = now();
    let awaits_token = options.claim == Claim::Awaited;
    let (limit, init) = (options.time_limit, in_namespace.then(|| init(images)));
    let init = init.transpose()?;
    let mut failure = wake(images, &criu, limit, awaits_token, init).err();
    let restored = now();
    let mut pid = manifest.pid;
    let serving = match &failure {
        // It was not to run yet.
        Some(_) if !images.are_spent() => None,
        _ => {
            pid = namespace::seen(&images.folder).unwrap_or(pid);
            if let Ok(identity) = Identity::of(pid) {
                control.write(&identity)?;
            }
            wait_for(WAKING_LIMIT, || control.read::<Serving>())
        }
    };
    let Some(Serving { listen }) = serving else {
        let mut reason = failure
            .take()
            .unwrap_or_else(|| "the server does not wake".to_owned());
        if !descendants::end() {
            reason += "; processes that CRIU has started do not end";
        }
        control.remove();
        return Err(match images.are_spent() {
            true => Error::Spent(reason),
            false => Error::Restore(reason),
        });
    };
    if let Some(pid_file) = options.pid_file {
        fs::write(&pid_file, format!("{pid}\n")).at(pid_file)?;
    }
    images.remove();
    Ok(Restored {
        pid,
        listen,
        thawed: restored,
        seconds: restored - started,
    })
}

/// Makes one that is not there, as on a host where the server has never been.
fn make_folder(folder: &Path, control: &Control) -> Result<(), Error> {
    if !folder.exists() {
        control.act(|| fs::create_dir_all(folder)).at(folder)?;
        log::tell(&format!("made the folder {}", folder.display()));
    }
    Ok(())
}

/// Has CRIU restore them.
fn wake(
    images: &Images,
    criu: &Criu,
    limit: Duration,
    awaits_token: bool,
    init: Option<Command>,
) -> Result<(), String> {
    let hook = Hook::Restore {
        images: images.folder.clone(),
        token: images.token_folder().to_owned(),
        awaits_token,
    };
    let prepare = || {
        let program = std::env::current_exe().at("/proc/self/exe")?;
        descendants::keep().at("/proc/self")?;
        Ok((program, images.lock()?))
    };
    let (program, lock) = prepare().map_err(|error: Error| error.to_string())?;
    let variable = hook.variable();
    criu.restore(&images.folder, &program, variable, lock, limit, init)
}

/// Whether the ids of the server are in use here, so that it has to be in a namespace of its own.
///
/// # Errors
/// The server that was dumped does not end.
fn needs_namespace(images: &Images, control: &Control) -> Result<bool, Error> {
    let dumped = control.read::<Identity>();
    let is_there = || dumped.as_ref().is_some_and(Identity::is_alive);
    let pid = images.manifest.pid;
    // It keeps its id until whoever adopted it has taken notice of its end.
    let has_left = || (!is_there()).then_some(());
    if wait_for(LEAVING_LIMIT, has_left).is_none() {
        let reason = format!("its process, {pid}, has not ended");
        return Err(Error::Restore(reason));
    }
    wait_for(COLLECTING_LIMIT, || (!is_zombie(pid)).then_some(()));
    Ok(!namespace::in_use(&images.ids()).is_empty())
}

/// The first process of a namespace for the server.
fn init(images: &Images) -> Result<Command, Error> {
    let pid = images.manifest.pid;
    let last_id = images.ids().into_iter().max().unwrap_or(pid);
    let mut init = Command::new(std::env::current_exe().at("/proc/self/exe")?);
    init.args(["init", "--pid", &pid.to_string()])
        .args(["--last-id", &last_id.to_string(), "--images"])
        .arg(&images.folder);
    if !goes_on() || images.manifest.owner.is_some() {
        init.stdout(Stdio::null()).stderr(Stdio::null());
    }
    Ok(init)
}

/// Whether what is written to the standard error stream has somebody who waits for no end of it.
fn goes_on() -> bool {
    let stderr = io::stderr();
    let is_file = |mode| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    stderr.is_terminal() || fstat(stderr.as_fd()).is_ok_and(|stat| is_file(stat.st_mode))
}

/// Lets a copy of the images in this folder be restored, for so long, and not these any more. Prints the folder.
///
/// # Errors
/// No images, or some that are damaged, that others could have changed, or that may not wake here.
pub fn release(folder: &Path, valid: Duration) -> Result<(), Error> {
    let taken = Taken::take(folder)?;
    let folder = taken.folder.clone();
    match taken.is_sealed() {
        true => token::release(&folder, valid)?,
        false => Images::read(folder.clone(), taken)?.release(valid)?,
    }
    say(&folder.display());
    Ok(())
}
