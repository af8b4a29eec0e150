//! What CRIU calls at each of its steps (criu(8), --action-script), and what may have it give up.
//!
//! - When its images are complete and the server still stands still: if that is parked as it should be, it is said that the
//!   images are complete, and CRIU ends the server. If it has gone on meanwhile, since nobody came in time, the
//!   hook fails, and CRIU lets it go on.
//! - When the server is restored and stands still: its images are used up, so that it can never wake again; if they
//!   are used up already, the hook fails, and CRIU ends what it has restored. Where another host has them still,
//!   the hook waits until that gives them up.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control::Control;
use super::notes::{Done, Manifest, RequestId, Thawed, now, read_json};
use super::owner::Owner;
use super::{images, namespace, standstill, token};
use crate::error::Error;

/// The variable that has a process be the hook, and says what it is to know.
const VARIABLE: &str = "MPQ_CRIU_HOOK";
/// The one that says at which step CRIU is, and the steps that matter.
const STEP: &str = "CRTOOLS_SCRIPT_ACTION";
const DUMPED: &str = "post-dump";
const RESTORED: &str = "post-restore";

/// What is to be dumped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The process.
    pub pid: i32,
    /// A folder for the images, made for this dump.
    pub images: PathBuf,
    /// The server's control directory.
    pub control: PathBuf,
    /// Whose wish it is.
    pub request: RequestId,
    /// The server's user, if that is not this one.
    pub owner: Option<Owner>,
}

impl Order {
    /// The server's control directory.
    pub fn control(&self) -> Control {
        Control::at(&self.control).owned_by(self.owner)
    }
}

/// What the hook is to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Hook {
    /// Of a dump.
    Dump {
        /// Which it is.
        order: Order,
        /// When CRIU was started, seconds since 1970.
        started: f64,
    },
    /// Of a restore.
    Restore {
        /// The folder of the images.
        images: PathBuf,
        /// That of their token.
        token: PathBuf,
        /// Whether that token is still to come.
        awaits_token: bool,
    },
}

impl Hook {
    /// What this process is to do as CRIU's hook, if it is that.
    pub fn of_this_process() -> Option<Self> {
        // Not what only runs CRIU.
        std::env::var_os(STEP)?;
        serde_json::from_str(&std::env::var(VARIABLE).ok()?).ok()
    }

    /// Name and value of the variable that tells a process to be this hook.
    pub fn variable(&self) -> (&'static str, String) {
        let value = serde_json::to_string(self).expect("plain data");
        (VARIABLE, value)
    }

    /// Does what is to be done at the step at which CRIU is.
    ///
    /// # Errors
    /// CRIU is to give up: the server is not parked any more, or has woken elsewhere. Those of the file system.
    pub fn run(self) -> Result<(), Error> {
        let step = std::env::var(STEP).unwrap_or_default();
        match (self, step.as_str()) {
            (Self::Dump { order, started }, DUMPED) => complete(order, started),
            (
                Self::Restore {
                    images: folder,
                    token,
                    awaits_token,
                },
                RESTORED,
            ) => {
                admit(&folder)?;
                if awaits_token {
                    // Nobody else may be left who could.
                    let discard = |_: &Error| images::discard(&folder);
                    standstill::await_token(&folder).inspect_err(discard)?;
                }
                token::spend(&token)
            }
            _ => Ok(()),
        }
    }
}

/// Tells a server that is restored in a namespace by which id it is known outside.
fn admit(folder: &Path) -> Result<(), Error> {
    let manifest = folder.join(Manifest::FILE);
    let parsed = read_json::<Manifest>(&manifest);
    let Some(manifest) = parsed else {
        return Err(Error::NoImages(folder.to_owned()));
    };
    let control = Control::at(manifest.control).owned_by(manifest.owner);
    match (
        namespace::look(folder, manifest.pid)?,
        control.read::<Thawed>(),
    ) {
        (Some(outside), Some(thawed)) => control.write(&Thawed {
            pid: Some(outside),
            ..thawed
        }),
        _ => Ok(()),
    }
}

/// Decides whether a dump counts.
fn complete(order: Order, dump_started: f64) -> Result<(), Error> {
    let notes = order.control();
    let Order {
        pid,
        images,
        control,
        request,
        owner,
    } = order;
    let Some(parked) = notes.read_on::<Manifest>(&request) else {
        images::discard(&images);
        return Err(Error::Dump("it is not parked any more".into()));
    };
    let pid_file = parked.pid_file.clone();
    let id = parked.id_outside.unwrap_or(pid);
    // An ordinary user may say anything there, but not whose what is.
    let manifest = Manifest {
        program: Manifest::PROGRAM.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid,
        control,
        owner,
        dump_started,
        dumped: now(),
        ..parked
    };
    match owner {
        None => {
            images::finish(&images, manifest)?;
            notes.write_on(&request, &Done { images })?;
        }
        // The server cannot remove what is left if it goes on after all. So they have no token until it has ended.
        Some(_) => images::complete(&images, manifest)?,
    }
    // A server that goes on after all writes it again.
    let _ = notes.act(
        || match pid_file.filter(|file| read_json(file) == Some(id)) {
            Some(file) => fs::remove_file(file),
            None => Ok(()),
        },
    );
    Ok(())
}
