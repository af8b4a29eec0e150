//! The command line of the testbed, `cargo lab`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mpq_lab::{check, demo, setup};
use tokio::signal::unix::{SignalKind, signal};

/// Testbed for mpq
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the lab needs and is missing: iproute2, and a private CRIU
    Setup,
    /// Show a download that goes on while its server moves to another host
    Demo,
    /// Check format and lints, and run all tests
    Test {
        /// Arguments for `cargo test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Args::parse().command;
    let result = tokio::select! {
        result = run(command) => result,
        // What runs is dropped then, and cleans up after itself.
        code = interrupted() => return code,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => match setup::setup() {
            Ok(criu) => println!("Ready; CRIU is {}", criu.display()),
            // The rest of the lab works without.
            Err(reason) => println!("Only the loopback demo and tests can run here: {reason:#}"),
        },
        Command::Demo => demo::demo().await?,
        Command::Test { arguments } => check::check(&arguments)?,
    }
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM and returns the exit code that tells of it.
async fn interrupted() -> ExitCode {
    let wait = async |kind: SignalKind| {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        };
        ExitCode::from(128 + kind.as_raw_value() as u8)
    };
    tokio::select! {
        code = wait(SignalKind::interrupt()) => code,
        code = wait(SignalKind::terminate()) => code,
    }
}
