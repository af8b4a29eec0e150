//! Lines on the standard error stream.

use std::fmt::Display;
use std::io::{self, Write};

use mpq_core::printable;

/// Says a line, whatever a server has put into it. That nobody can read it must not end the download.
pub(super) fn say(line: &impl Display) {
    let _ = writeln!(io::stderr(), "{}", printable(&line.to_string()));
}
