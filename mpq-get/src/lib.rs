//! mpq-get: downloads over HTTP/3, through every network interface at once, and through moves of
//! the server. The connection is `mpq_core::client`'s, or for comparison one of plain QUIC
//! ([`quic`]); here are the command line ([`args`]), where to connect ([`resolve`]), the way of the
//! body ([`download`], `ask`, `body`, [`output`]), what happens when it is interrupted ([`resume`],
//! [`sidecar`], [`retry`]), and what is told of it ([`report`], [`events`], [`progress`], [`error`]).
#![forbid(unsafe_code)]

pub mod args;
mod ask;
mod body;
mod connection;
pub mod download;
pub mod error;
pub mod events;
mod gap;
pub mod output;
pub mod progress;
pub mod quic;
pub mod report;
pub mod resolve;
pub mod resume;
pub mod retry;
pub mod sidecar;

use std::process::ExitCode;

use args::Args;
use clap::Parser;
use error::Error;
use output::Kept;
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
            .init();
    }
    let mut report = Reporter::new(&args);
    match get(&args, &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, kept)) => {
            report.failed(&error, &kept);
            ExitCode::from(error.code())
        }
    }
}

fn get(args: &Args, report: &mut Reporter) -> Result<(), (Error, Kept)> {
    let nothing = |error| (error, Kept::NOTHING);
    let request = args.resolve().map_err(nothing)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|e| nothing(Error::Usage(format!("cannot start: {e}"))))?;
    let result = runtime.block_on(download::run(&request, report));
    // getaddrinfo may still be running; nobody waits for it.
    runtime.shutdown_background();
    result
}
