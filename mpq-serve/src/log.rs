//! The log: lines on the standard error stream, or in a file.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::error::Error;
use crate::lines::{Destination, Lines};

/// That of the process.
static LOG: OnceLock<Lines> = OnceLock::new();

/// Sends what is traced to `file`, or else to the standard error stream; `RUST_LOG` says what is told. A panic
/// is logged, too.
///
/// # Errors
/// The file cannot be written, or there can be no thread.
pub(crate) fn start(file: Option<PathBuf>) -> Result<(), Error> {
    let destination = file.map_or(Destination::Stderr, Destination::File);
    let tell = |lost| tracing::warn!("{lost} lines of the log are lost: they could not be written");
    let lines = Lines::start(destination, tell)?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = LOG.set(lines.clone());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || lines.clone())
        .init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        flush();
    }));
    Ok(())
}

/// Logs to this file from now on.
pub(crate) fn go_on_in(file: PathBuf) {
    if let Some(lines) = LOG.get() {
        lines.go_on_in(file);
    }
}

/// Says what the user of a command should know, where somebody reads it.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "mpq-serve: {line}");
}

/// Waits until what was logged is written, but not for a reader that is stuck.
pub(crate) fn flush() {
    if let Some(lines) = LOG.get() {
        lines.flush();
    }
}
