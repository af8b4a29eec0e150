//! `mpq-serve receive`: the end at B, which does as it is told.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::O_NOFOLLOW;

use super::findings;
use super::messages::{Needs, ToSource, ToTarget, read, write};
use crate::checkpoint::control::{Control, POLL_INTERVAL};
use crate::checkpoint::images::{self, Images};
use crate::checkpoint::notes::{Clients, Manifest, RequestId, write_whole};
use crate::checkpoint::restore::{Restore, bring_back};
use crate::checkpoint::token::Claim;
use crate::checkpoint::{descendants, standstill};
use crate::error::{At, Error, Failure};

/// How long is told what becomes of the clients: longer than the server waits for them.
const CLIENTS_LIMIT: Duration = Duration::from_secs(60);
/// How often that is looked up.
const CLIENTS_INTERVAL: Duration = Duration::from_millis(5);

/// Receives a server from the host whose words come on the standard input, and returns when it serves here, or has
/// never run.
///
/// # Errors
/// It was not to be, and the other host does not hear why any more.
pub fn run() -> Result<(), Error> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().at("stdin")?;
    let received = receive(BufReader::new(File::from(stdin)));
    match received {
        Ok(()) => Ok(()),
        Err(error) => match tell(&ToSource::Failed {
            failure: Failure::of(&error),
        }) {
            Ok(()) => Ok(()),
            Err(_) => Err(error),
        },
    }
}

fn receive(mut from: BufReader<File>) -> Result<(), Error> {
    let ToTarget::Offer(needs) = next(&mut from)? else {
        return Err(unexpected());
    };
    tell(&ToSource::Findings(findings::of(&needs)))?;
    // A dry run ends here, and so does a move that cannot begin.
    let Ok(Some(first)) = read(&mut from) else {
        return Ok(());
    };
    let parent = needs.images.clone().unwrap_or_else(Control::images);
    let folder = images::new_folder(&parent, &RequestId::new())?;
    let woken = fill(&folder, first, &mut from).and_then(|()| wake(&folder, &needs, from));
    if woken.is_err() {
        images::discard(&folder);
    }
    woken
}

fn next(from: &mut BufReader<File>) -> Result<ToTarget, Error> {
    read(from).map_err(Error::Source)?.ok_or_else(gone)
}

fn gone() -> Error {
    Error::Source("it has ended, or cannot be reached any more".to_owned())
}

fn unexpected() -> Error {
    Error::Source("it said something that has no place here".to_owned())
}

fn tell(message: &ToSource) -> Result<(), Error> {
    write(io::stdout().lock(), message).map_err(|_| gone())
}

/// Writes the images into the folder, and their manifest.
fn fill(folder: &Path, first: ToTarget, from: &mut BufReader<File>) -> Result<(), Error> {
    let mut message = first;
    loop {
        match message {
            ToTarget::Image { name, bytes } => write_image(folder, &name, bytes, from)?,
            ToTarget::Restore { manifest } => {
                return write_whole(&folder.join(Manifest::FILE), manifest.as_bytes());
            }
            ToTarget::Offer(_) | ToTarget::Go { .. } => return Err(unexpected()),
        }
        message = next(from)?;
    }
}

fn write_image(
    folder: &Path,
    name: &str,
    bytes: u64,
    from: &mut BufReader<File>,
) -> Result<(), Error> {
    if Path::new(name).file_name() != Some(name.as_ref()) || !images::is_image(name.as_ref()) {
        return Err(unexpected());
    }
    let path = folder.join(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(&path)
        .at(&path)?;
    match io::copy(&mut from.take(bytes), &mut file).at(&path)? {
        written if written == bytes => Ok(()),
        _ => Err(gone()),
    }
}

/// Restores the server, and has it run once the other host gives it up. If that goes before, nothing is left of it.
fn wake(folder: &Path, needs: &Needs, mut from: BufReader<File>) -> Result<(), Error> {
    let images = Images::open(folder)?;
    let held = standstill::hold(folder)?;
    let (sender, messages) = channel();
    thread::spawn(move || {
        while let Ok(Some(message)) = read(&mut from) {
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    let options = Restore {
        listen: Some(needs.address),
        pid_file: None,
        log_file: needs.log_file.clone(),
        time_limit: needs.time_limit,
        claim: Claim::Awaited,
        undone: None,
    };
    thread::scope(|scope| {
        let restoring = scope.spawn(|| bring_back(&images, options));
        let handed = hand_on(folder, &messages, || restoring.is_finished());
        drop(held);
        if handed.is_err() {
            descendants::end();
        }
        let restored = restoring.join().expect("it does not panic");
        match (restored, handed) {
            (Ok(restored), _) => {
                let told = tell(&ToSource::Serving {
                    pid: restored.pid,
                    listen: restored.listen,
                });
                // Also where nobody hears it.
                let _ = told.and_then(|()| tell_of_clients(&images.manifest, &messages));
                Ok(())
            }
            (Err(_), Err(reason)) => Err(reason),
            // They are not kept here.
            (Err(Error::Restore(reason)), Ok(())) => Err(Error::NotReceived(reason)),
            (Err(error), Ok(())) => Err(error),
        }
    })
}

/// Says how many clients have come along, whenever that changes, until nobody is waited for, or the other host waits no
/// longer.
///
/// # Errors
/// It hears nothing any more.
fn tell_of_clients(manifest: &Manifest, messages: &Receiver<ToTarget>) -> Result<(), Error> {
    let control = Control::at(&manifest.control).owned_by(manifest.owner);
    let end = Instant::now() + CLIENTS_LIMIT;
    let mut told = None;
    while Instant::now() < end {
        let clients = control.read::<Clients>();
        if let Some(clients) = clients.filter(|clients| told.as_ref() != Some(clients)) {
            tell(&ToSource::Clients(clients.clone()))?;
            if clients.is_over {
                break;
            }
            told = Some(clients);
        }
        match messages.recv_timeout(CLIENTS_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => break,
        }
    }
    Ok(())
}

/// Says that the server stands still, once it does, and hands its token on when that comes. Returns as well when
/// the restore is over before.
///
/// # Errors
/// No token will come.
fn hand_on(
    folder: &Path,
    messages: &Receiver<ToTarget>,
    is_over: impl Fn() -> bool,
) -> Result<(), Error> {
    let mut is_told = false;
    while !is_over() {
        if !is_told && standstill::is_ready(folder) {
            tell(&ToSource::Ready)?;
            is_told = true;
        }
        match messages.recv_timeout(POLL_INTERVAL) {
            Ok(ToTarget::Go { token }) if is_told => return standstill::hand(folder, &token),
            Ok(_) => return Err(unexpected()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
        }
    }
    Ok(())
}
