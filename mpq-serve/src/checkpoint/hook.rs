//! What CRIU calls when its images are complete, and the server still stands still.
//!
//! If the server is parked as it should be, it is said that the images are complete, and CRIU ends the server. If it
//! has gone on meanwhile, since nobody came in time, the hook fails, and CRIU lets it go on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::control::Control;
use super::images;
use super::notes::{Done, Manifest, RequestId, now};
use crate::error::Error;

/// The variable that has a process be the hook, and says what it is to know.
const VARIABLE: &str = "MPQ_DUMP_HOOK";
/// At which of its steps CRIU calls its hook (criu(8), --action-script), and the one that matters.
const STEP: &str = "CRTOOLS_SCRIPT_ACTION";
const COMPLETE: &str = "post-dump";

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
}

/// What the hook is to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hook {
    /// Which dump it is.
    pub order: Order,
    /// When CRIU was started, seconds since 1970.
    pub dump_started: f64,
}

impl Hook {
    /// What this process is to do as CRIU's hook, if it is that.
    pub fn of_this_process() -> Option<Self> {
        serde_json::from_str(&std::env::var(VARIABLE).ok()?).ok()
    }

    /// Name and value of the variable that tells a process to be this hook.
    pub fn variable(&self) -> (&'static str, String) {
        let value = serde_json::to_string(self).expect("plain data");
        (VARIABLE, value)
    }

    /// Decides whether the dump counts.
    ///
    /// # Errors
    /// It does not: the server is not parked any more. Those of the file system.
    pub fn run(self) -> Result<(), Error> {
        if std::env::var_os(STEP).is_none_or(|step| step != COMPLETE) {
            return Ok(());
        }
        let Order {
            images,
            control,
            request,
            ..
        } = self.order;
        let control = Control::at(control);
        let Some(parked) = control.read_on::<Manifest>(&request) else {
            images::discard(&images);
            return Err(Error::Dump("it is not parked any more".into()));
        };
        let manifest = Manifest {
            dump_started: self.dump_started,
            dumped: now(),
            ..parked
        };
        images::seal(&images, manifest)?;
        control.write_on(&request, &Done { images })
    }
}
