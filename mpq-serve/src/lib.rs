//! HTTP/3 file server that moves to another address or host under its downloads.
//!
//! [`serve`] runs the server: it answers with the contents of [`http`], and on SIGUSR1 it announces
//! its move, parks, and has itself frozen. A helper outside of its process tree ([`checkpoint`])
//! runs CRIU on it, and [`restore`] brings it back; they talk through small files in [`control`].

pub mod args;
pub mod checkpoint;
pub mod control;
pub mod criu;
pub mod error;
pub mod files;
pub mod heap;
pub mod http;
pub mod random;
pub mod range;
pub mod restore;
pub mod serve;
pub mod stats;
pub mod streams;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

/// The program: reads the command line, does what it says, and reports one line if that fails.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        None => serve::run(args.serve),
        Some(Command::Checkpoint {
            pid,
            pid_file,
            images,
            migrate_to,
        }) => checkpoint::run(pid, pid_file, images, migrate_to),
        Some(Command::Restore {
            images,
            listen,
            pid_file,
        }) => restore::run(&images, listen, pid_file),
        Some(Command::Dump {
            pid,
            images,
            control,
        }) => checkpoint::dump(pid, &images, &control),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mpq-serve: {error}");
            error.code().into()
        }
    }
}
