//! The log: lines on the standard error stream, or in a file.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use crate::error::{At, Error};

/// Sends what is traced to `file`, or else to the standard error stream; `RUST_LOG` says what is
/// told.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn start(file: Option<PathBuf>) -> Result<(), Error> {
    if let Some(file) = &file {
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .at(file)?;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || Log(file.clone()))
        .init();
    Ok(())
}

/// Writes a line of the log. The file is not held open, so that the server can be frozen between
/// any two lines, and the file be rotated.
struct Log(Option<PathBuf>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(file) => fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(file)?
                .write(line),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
