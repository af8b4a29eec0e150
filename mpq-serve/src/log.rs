//! The log: lines on the standard error stream, in a file, or in the journal of systemd.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;

use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::error::Error;
use crate::journal::Priority;
use crate::lines::{Destination, Lines};

/// That of the process.
static LOG: OnceLock<Lines> = OnceLock::new();

/// Sends what is traced to `file`, or else to the standard error stream; `RUST_LOG` says what is told. A panic
/// is logged, too.
///
/// # Errors
/// The file cannot be written, or there can be no thread.
pub(crate) fn start(file: Option<PathBuf>) -> Result<(), Error> {
    let destination = file.map_or_else(Destination::stderr, Destination::File);
    let tell = |lost| tracing::warn!("{lost} lines of the log are lost: they could not be written");
    let lines = Lines::start(destination, tell)?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = LOG.set(lines.clone());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_timer(Clock(lines.clone()))
        .with_writer(Log(lines))
        .init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        flush();
    }));
    Ok(())
}

/// Where a line of the log goes, by how much it matters.
struct Log(Lines);

impl<'a> MakeWriter<'a> for Log {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.0.clone()
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Lines {
        self.0.with(Priority::of(*line.level()))
    }
}

/// The time of a line, where nobody else says it.
struct Clock(Lines);

impl FormatTime for Clock {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        match self.0.are_in_journal() {
            true => Ok(()),
            false => SystemTime.format_time(line),
        }
    }
}

/// Whether lines of the log go into the journal of the host that the server is on.
pub(crate) fn is_in_journal() -> bool {
    LOG.get().is_some_and(Lines::are_in_journal)
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
