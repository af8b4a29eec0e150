//! Root has the server of an ordinary user dumped, which has no right to that.
//!
//! The server and its helper run as the user, and do all else. `mpq-serve checkpoint`, run by root, starts a
//! helper of root's, which waits until they are [`Ready`], and runs CRIU. The images belong to root. They have no
//! token until the server has ended: if it goes on after all, it cannot remove them. What root's processes read and write in the
//! server's control directory they do by the user's rights ([`owner`](super::owner)), and nothing that it says there
//! names a file or a process that root then uses.

use std::fs;
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use super::control::{Control, POLL_INTERVAL, wait_for};
use super::dump::dump;
use super::hook::Order;
use super::notes::{Failed, Manifest, Ready, Refused, RequestId};
use super::owner::Owner;
use super::preflight;
use super::process::Process;
use super::{images, namespace};
use crate::error::{At, Error, Failure};

/// How long root's helper may take to end once it has nothing to do.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// Root's helper, and the command that has started it.
#[derive(Debug)]
pub struct RootsHelper {
    process: Child,
    pid: i32,
    images: PathBuf,
}

impl RootsHelper {
    /// Starts it, with a folder for the images in this one.
    ///
    /// # Errors
    /// What would have a dump fail.
    pub fn start(
        control: &Control,
        pid: i32,
        owner: Owner,
        images: Option<PathBuf>,
        request: &RequestId,
    ) -> Result<Self, Error> {
        // What the server says of that counts for its user.
        let parent = images.unwrap_or_else(Control::images);
        let images = preflight::prepare(&pid.to_string(), &parent, request, None)?;
        let program = std::env::current_exe().at("/proc/self/exe")?;
        let mut command = Command::new(&program);
        let inside =
            |id| namespace::innermost_id(&fs::read_to_string(format!("/proc/{id}/status")).ok()?);
        let known_as = inside(pid).unwrap_or(pid);
        command
            .args(["dump", "--pid", &known_as.to_string(), "--images"])
            .arg(&images)
            .arg("--control")
            .arg(control.path())
            .args(["--request", &request.to_string()])
            .args(["--owner", &format!("{}:{}", owner.uid, owner.gid)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Where the server is: CRIU does not look into another namespace.
        let process = namespace::start_beside(pid, &mut command).at(&program);
        let process = process.inspect_err(|_| images::discard(&images))?;
        let id = process.id() as i32;
        let pid = inside(id).unwrap_or(id);
        Ok(Self {
            process,
            pid,
            images,
        })
    }

    /// Its process id, as the server knows it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Where the images are of a server that has ended. None if it was not dumped.
    ///
    /// # Errors
    /// It is not known.
    pub fn images(mut self) -> Result<Option<PathBuf>, Error> {
        let status = wait_for(ENDING_LIMIT, || self.process.try_wait().ok().flatten());
        let is_complete = self.images.join(Manifest::FILE).exists();
        match status {
            Some(status) if status.success() => Ok(Some(self.images)),
            Some(_) if !is_complete => Ok(None),
            _ => Err(Error::Fenced(
                self.images,
                "who had their server dumped was killed, or does not end; if the server has ended, and serves nowhere, \
                 use restore --force"
                    .to_owned(),
            )),
        }
    }

    /// The server goes on. Returns when nothing is left of this.
    pub fn give_up(mut self) {
        let ended = wait_for(ENDING_LIMIT, || self.process.try_wait().ok().flatten());
        if ended.is_some() {
            images::discard(&self.images);
        }
    }
}

/// The work of root's helper.
///
/// # Errors
/// The server is not dumped, and was told.
pub fn run(order: Order) -> Result<(), Error> {
    let starter = parent_id();
    // It goes on if the command is ended, also from a terminal, once the server is parked.
    let _ = nix::unistd::setsid();
    umask(Mode::from_bits_truncate(0o077));
    let (control, request, images) = (order.control(), order.request.clone(), order.images.clone());
    let share = |owner: Owner| owner.share_real_ids().at("/proc/self");
    let ready = await_ready(&order, &control, starter);
    let ready = ready.and_then(|()| order.owner.map_or(Ok(()), share));
    let dumped = ready.and_then(|()| dump(order));
    match dumped {
        Ok(()) => images::entitle(&images),
        Err(error) => {
            images::discard(&images);
            let failure = Failure::of(&error);
            control.write_on(&request, &Refused { failure })?;
            Err(error)
        }
    }
}

fn await_ready(order: &Order, control: &Control, starter: u32) -> Result<(), Error> {
    let server = Process::open(order.pid).map_err(|_| Error::Leaving)?;
    while control.read_on::<Ready>(&order.request).is_none() {
        let is_off = control.read_on::<Failed>(&order.request).is_some();
        if is_off || server.has_ended() {
            return Err(Error::Leaving);
        }
        if parent_id() != starter {
            return Err(Error::Dump("nobody waits for it any more".to_owned()));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    control.clear_on::<Ready>(&order.request);
    Ok(())
}

/// The helper of the user's server has root's dump it.
///
/// # Errors
/// That has not, and why; or has ended without a word.
pub fn await_dump(
    control: &Control,
    request: &RequestId,
    server: &Process,
    dumper: i32,
) -> Result<(), Error> {
    let failed = |reason: &str| Err(Error::Dump(reason.to_owned()));
    let dumper = Process::open(dumper).ok();
    if dumper.is_some() {
        control.write_on(request, &Ready {})?;
    }
    loop {
        if server.has_ended() {
            return Ok(());
        }
        // Looked at before its last word.
        let ended = dumper.as_ref().is_none_or(Process::has_ended);
        if let Some(refused) = control.read_on::<Refused>(request) {
            control.clear_on::<Refused>(request);
            return Err(Error::Told(refused.failure));
        }
        if ended && !server.ends_within(POLL_INTERVAL) {
            return failed("who was to dump it has ended without a word");
        }
        if control.read_on::<Manifest>(request).is_none() {
            return failed("nobody dumped it");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
