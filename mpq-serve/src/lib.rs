//! HTTP/3 file server that moves to another address or host under its downloads.
//!
//! [`serve`] runs the server: it answers with the contents of a [`site`], and on SIGUSR1 it announces
//! its move, parks, and has itself frozen (`relocate`). A helper outside of its process tree runs CRIU
//! on it, and another command brings it back; all that is in [`checkpoint`]. One command does all of it with another
//! host (`between_hosts`), and another one with the engine that runs it in a container (`containers`).
//! Without CRIU, a new process can take over from it on the same host ([`handover`]).

pub mod access;
pub mod args;
pub mod between_hosts;
mod certificate;
pub mod checkpoint;
mod config;
pub mod containers;
pub mod error;
mod greeting;
mod guests;
pub mod handover;
mod journal;
mod lines;
mod listeners;
mod log;
mod metrics;
mod presence;
mod relocate;
pub mod serve;
mod service;
mod signals;
pub mod site;
pub mod stats;
mod supervisor;
mod tcp;
pub mod units;
mod user;
mod values;

use std::io::{self, Write};
use std::process::ExitCode;

use args::{Args, Command};
use checkpoint::control::Control;
use checkpoint::helper::{self, Dumper, Task};
use checkpoint::hook::{Hook, Order};
use checkpoint::restore::{self, Restore};
use checkpoint::token::Claim;
use checkpoint::{command, for_user, forward, init, park};

/// The program: reads the command line, does what it says, and reports one line if that fails.
pub fn main() -> ExitCode {
    if let Some(hook) = Hook::of_this_process() {
        return match hook.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => error.code().into(),
        };
    }
    let args = Args::read();
    let result = match args.command {
        None => serve::run(args.serve, None),
        Some(Command::Handover(options)) => handover::run(*options),
        Some(Command::Checkpoint {
            pid,
            pid_file,
            images,
            migrate_to,
            forward,
            seal,
        }) => command::run(pid, pid_file, images, migrate_to, forward, seal.as_deref()),
        Some(Command::Park {
            pid,
            pid_file,
            migrate_to,
            limit,
        }) => park::run(pid, pid_file, migrate_to, limit),
        Some(Command::Unpark { pid, pid_file }) => park::undo(pid, pid_file),
        Some(Command::Restore {
            images,
            key,
            listen,
            pid_file,
            log_file,
            time_limit,
            rollback,
            force,
        }) => {
            let claim = match (rollback, force) {
                (_, true) => Claim::Forced,
                (true, false) => Claim::Rollback,
                (false, false) => Claim::Usual,
            };
            let options = Restore {
                listen,
                pid_file,
                log_file,
                time_limit,
                claim,
                undone: None,
            };
            restore::run(&images, key.as_deref(), options)
        }
        Some(Command::Move(options)) => between_hosts::source::run(&options),
        Some(Command::MoveContainer(options)) => containers::run(&options),
        Some(Command::Receive) => between_hosts::target::run(),
        Some(Command::Release { images, valid }) => restore::release(&images, valid),
        Some(Command::Forward { control, request }) => {
            forward::run(&Control::at(control), &request)
        }
        Some(Command::Init {
            pid,
            last_id,
            images,
            criu,
        }) => {
            let task = init::Task {
                images,
                pid,
                last_id,
                criu,
            };
            match init::run(&task) {
                Ok(code) => return code.into(),
                Err(error) => Err(error),
            }
        }
        Some(Command::Dump {
            pid,
            images,
            dumper,
            owner,
            control,
            request,
        }) => {
            let images = images.unwrap_or_default();
            match owner {
                Some(_) => for_user::run(Order {
                    pid,
                    images,
                    control,
                    request,
                    owner,
                }),
                None => helper::run(&Task {
                    pid,
                    control: Control::at(control),
                    request,
                    dumper: match dumper {
                        Some(dumper) => Dumper::Root(dumper),
                        None => Dumper::Helper { images, criu: None },
                    },
                }),
            }
        }
    };
    match result {
        Ok(()) => {
            log::flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::flush();
            // Nobody may be there to read it.
            let error_line = mpq_core::printable(&error.to_string());
            let _ = writeln!(io::stderr(), "mpq-serve: {error_line}");
            error.code().into()
        }
    }
}
