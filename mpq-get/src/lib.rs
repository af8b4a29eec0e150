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

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use cli::args::Args;
use download::signals::Signals;
use output::Leftover;
use report::Reporter;
use tokio::time::sleep;
use tracing_subscriber::EnvFilter;

/// For the end of what is told, when somebody wants the program to end.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The program: reads the command line, downloads, and says what went wrong.
pub fn main() -> ExitCode {
    let args = cli::read();
    // Without RUST_LOG errors are told once, by us.
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            // It would panic where nobody reads.
            .log_internal_errors(false)
            .init();
    }
    match get(&args) {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "mpq-get: cannot start: {error}");
            ExitCode::from(2)
        }
    }
}

fn get(args: &Args) -> std::io::Result<ExitCode> {
    let mut report = Reporter::new(args.report())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let code = runtime.block_on(async {
        let result = match args.resolve() {
            Ok(request) => download::run(&request, &mut report).await,
            Err(error) => Err((error, Leftover::NOTHING)),
        };
        let code = result.map_or_else(
            |(error, leftover)| {
                report.failed(&error, &leftover);
                error.code()
            },
            |()| 0,
        );
        tell_all(report, code).await;
        code
    });
    // getaddrinfo may still be running; nobody waits for it.
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

/// Waits for whoever reads what is told, but not for ever for one that does not if somebody wants the program to end.
async fn tell_all(report: Reporter, code: u8) {
    let stopped = async {
        if code <= 128
            && let Ok(mut signals) = Signals::new()
        {
            signals.recv().await;
        }
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = report.close() => {}
        () = stopped => {}
    }
}
