//! Lines on the standard error stream.

use std::fmt::Display;
use std::io::{self, Write};

/// Says a line. That nobody can read it must not end the download.
pub(super) fn say(line: &impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
