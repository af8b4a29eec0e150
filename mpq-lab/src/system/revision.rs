//! Which revision of this project runs.

use crate::system::host::run;

/// A revision of this project, as git names it.
pub fn revision() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let said = run("git", ["-C", folder, "describe", "--always", "--dirty"]);
    said.map_or_else(|_| "unknown".into(), |said| said.trim().to_owned())
}
