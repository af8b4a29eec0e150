//! One dump: CRIU is run on a server that is parked, and the [`hook`](super::hook) decides whether it counts.

use super::criu::Criu;
use super::hook::{Hook, Order};
use super::notes::{Manifest, now};
use crate::error::{At, Error};

/// Has CRIU dump a parked server.
///
/// # Errors
/// What CRIU says; or the server was not parked any more.
pub fn dump(order: Order) -> Result<(), Error> {
    let criu = Criu::find("mpq-serve checkpoint", None)?;
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let hook = Hook::Dump {
        order: order.clone(),
        started: now(),
    };
    let dumped = criu.dump(order.pid, &order.images, &program, hook.variable());
    // CRIU does not say why its hook refused. If it succeeds the hook has not, and the images may be in use by now: a
    // restore has cleared the notes.
    dumped.map_err(|reason| {
        let parked = order.control().read_on::<Manifest>(&order.request);
        match parked {
            Some(_) => Error::Dump(reason),
            None => Error::Dump("it had waited too long for CRIU".into()),
        }
    })
}
