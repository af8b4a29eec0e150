//! mpq-get: downloads over HTTP/3, through every network interface at once, and through moves of
//! the server.
//!
//! What is typed ([`cli`]) becomes a request, which [`download`] carries out: it finds out where to
//! connect ([`resolve`]), connects ([`transport`]), asks for the body and judges the answers ([`http`]),
//! and writes what comes ([`output`]). People and programs are told by [`report`], and of failures by
//! [`error`], which has the exit codes.
#![forbid(unsafe_code)]

pub mod cli;
pub mod download;
pub mod error;
pub mod http;
pub mod output;
pub mod report;
pub mod resolve;
pub mod transport;

use std::process::ExitCode;

use clap::Parser;
use cli::args::Args;
use error::Error;
use output::Leftover;
use report::Reporter;
use tracing_subscriber::EnvFilter;

/// The program: reads the command line, downloads, and says what went wrong.
pub fn main() -> ExitCode {
    let args = Args::parse();
    // Without RUST_LOG errors are told once, by us.
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            // It would panic where nobody reads.
            .log_internal_errors(false)
            .init();
    }
    let mut report = Reporter::new(args.report());
    match get(&args, &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, leftover)) => {
            report.failed(&error, &leftover);
            ExitCode::from(error.code())
        }
    }
}

fn get(args: &Args, report: &mut Reporter) -> Result<(), (Error, Leftover)> {
    let nothing = |error| (error, Leftover::NOTHING);
    let request = args.resolve().map_err(nothing)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|e| nothing(Error::Usage(format!("cannot start: {e}"))))?;
    let result = runtime.block_on(download::run(&request, report));
    // getaddrinfo may still be running; nobody waits for it.
    runtime.shutdown_background();
    result
}
