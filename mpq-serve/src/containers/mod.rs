//! `mpq-serve move-container`: a server in a container moves from this host, A, to another one, B, by the engine that runs
//! the container.
//!
//! The server is parked ([`park`](crate::checkpoint::park)) inside of its container, the engine checkpoints that, its
//! images go to B by ssh, and the engine there restores it. The server notices, and goes on. [`engine`] knows how the
//! engines are spoken to, [`host`] how a command is run here and there.
//!
//! Whatever fails before B begins to restore has the server go on at A, and so does a restore that fails there. Only where
//! it is not known whether B has restored it nothing more is done.

pub mod engine;
pub mod host;
pub mod options;

use std::path::Path;

use nix::unistd::geteuid;
use serde_json::json;

use self::engine::Container;
use self::host::{Host, Unrun};
use self::options::MoveContainerOptions;
use crate::between_hosts::interruption::Interruption;
use crate::between_hosts::source::judge;
use crate::checkpoint::control::Control;
use crate::checkpoint::images;
use crate::checkpoint::notes::{RequestId, now};
use crate::checkpoint::say;
use crate::error::Error;
use crate::log;

/// Moves a container to another host, or finds out what would be in the way. Prints what the steps took.
///
/// # Errors
/// Why the server serves at A; or that it serves nowhere, as far as it is known.
pub fn run(options: &MoveContainerOptions) -> Result<(), Error> {
    if !geteuid().is_root() {
        return Err(Error::NotPermitted("mpq-serve move-container"));
    }
    let interruption = Interruption::watch()?;
    let container = Container::new(options)?;
    let [a, b] = [Host::Here, Host::There(options.transfer.ssh())];
    look(&container, &a, &b)?;
    if options.transfer.dry_run {
        return Ok(());
    }
    let parent = options
        .transfer
        .images
        .clone()
        .unwrap_or_else(Control::images);
    let folder = images::new_folder(&parent, &RequestId::new())?;
    let moved = go(&container, [&a, &b], &folder, options, &interruption);
    // What they hold is of no more use: the server runs, here or there.
    if !matches!(
        moved,
        Err(Error::Stranded(..) | Error::UnconfirmedContainer(..))
    ) {
        let _ = std::fs::remove_dir_all(&folder);
    }
    moved
}

/// Looks on both hosts for what is in the way of the move, and tells it.
fn look(container: &Container, a: &Host, b: &Host) -> Result<(), Error> {
    let mut problems = Vec::new();
    if let Err(reason) = a.run(&container.version_of_server()) {
        problems.push(format!("in the way at A: {reason}"));
    }
    match b.run(&container.version_of_engine()) {
        Err(reason) => problems.push(format!("in the way at B: {reason}")),
        Ok(()) => {
            if b.run(&container.is_there()).is_ok() {
                problems.push("in the way at B: a container of that name is there".to_owned());
            }
            if let Some(look) = container.look_for_bundle()
                && b.run(&look).is_err()
            {
                problems.push("in the way at B: there is no such --bundle".to_owned());
            }
        }
    }
    judge(&problems)
}

fn go(
    container: &Container,
    [a, b]: [&Host; 2],
    folder: &Path,
    options: &MoveContainerOptions,
    interruption: &Interruption,
) -> Result<(), Error> {
    let announced = now();
    log::tell(&format!(
        "announcing the move to {}, and parking",
        options.transfer.address
    ));
    let returned = |reason: Unrun| Error::Returned(reason.to_string());
    a.run(&container.park(options.transfer.address))
        .map_err(returned)?;
    let parked = now();
    let unpark = |reason: Unrun| match a.run(&container.unpark()) {
        Ok(()) => returned(reason),
        Err(why) => Error::Stranded(reason.to_string(), why.to_string(), folder.to_owned()),
    };
    interruption.check().map_err(unpark)?;
    a.run(&container.checkpoint(folder)).map_err(unpark)?;
    let dumped = now();
    log::tell("checkpointed, copying");

    // The engine has ended it here.
    let bring_back = |reason: Unrun| {
        log::tell(&format!("bringing the container back to A: {reason}"));
        let back = container.back(folder);
        match back.iter().try_for_each(|command| a.run(command)) {
            Ok(()) => returned(reason),
            Err(why) => Error::Stranded(reason.to_string(), why.to_string(), folder.to_owned()),
        }
    };
    let copied = interruption.check().and_then(|()| b.copy(folder));
    copied
        .and_then(|()| interruption.check())
        .map_err(|reason| {
            let _ = b.run(&Container::wipe(folder));
            bring_back(reason)
        })?;
    let copied = now();
    log::tell("copied, restoring at B");
    let restored = b.run(&container.restore(folder));
    if let Err(Unrun::Unreachable(reason)) = restored {
        return Err(Error::UnconfirmedContainer(reason, folder.to_owned()));
    }
    let restored_at = now();
    let _ = b.run(&Container::wipe(folder));
    restored.map_err(bring_back)?;
    log::tell(&format!("serving at B: container {}", options.name));
    let steps = [
        ("announce, park", parked - announced),
        ("checkpoint", dumped - parked),
        ("copy", copied - dumped),
        ("restore", restored_at - copied),
        ("nobody served", restored_at - parked),
    ];
    match options.transfer.json {
        true => say(&json!({
            "serving_at": "B",
            "host": options.transfer.to,
            "address": options.transfer.address,
            "container": options.name,
            "seconds": steps.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        })),
        false => {
            for (step, seconds) in steps {
                say(&format!("{step:<15}{seconds:>8.3} s"));
            }
        }
    }
    Ok(())
}
