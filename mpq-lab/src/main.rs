//! The command line of the testbed, `cargo lab`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mpq_lab::scenario::Scenario;
use mpq_lab::{check, demo, reproduce, setup};
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
    /// Repeat the paper's experiments and write a report; goes on where it was interrupted
    Reproduce {
        #[command(flatten)]
        options: Options,
    },
    /// Run experiments of your own
    Run {
        /// Their files; mpq-lab/scenarios has examples
        #[arg(required = true, value_name = "FILE")]
        scenarios: Vec<PathBuf>,

        #[command(flatten)]
        options: Options,
    },
    /// Check format and lints, and run all tests
    Test {
        /// Arguments for `cargo test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Runs of each arm [default: as the scenario says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,

    /// Folder for the report and the raw results
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
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
        Command::Reproduce { options } => experiment(reproduce::paper()?, &options).await?,
        Command::Run { scenarios, options } => {
            let scenarios = scenarios.iter().map(|file| Scenario::read(file));
            experiment(scenarios.collect::<Result<_>>()?, &options).await?;
        }
        Command::Test { arguments } => check::check(&arguments)?,
    }
    Ok(())
}

async fn experiment(scenarios: Vec<Scenario>, options: &Options) -> Result<()> {
    let report = reproduce::reproduce(scenarios, options.runs, &options.out).await?;
    println!("{}", report.display());
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
