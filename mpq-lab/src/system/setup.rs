//! `cargo lab setup`: installs what the lab needs and is not there.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::system::host::{is_root, program};
use crate::system::{apt, criu};

/// Programs the lab runs, and the Debian packages they are in.
const PROGRAMS: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("chrt", "util-linux"),
    ("ping", "iputils-ping"),
];

/// Installs what is missing and returns the path of a CRIU that works.
///
/// # Errors
/// Why the lab cannot make namespaces or move processes here: no root, no Debian, no network, or a
/// kernel that cannot do it.
pub fn setup() -> Result<PathBuf> {
    install_programs()?;
    let criu = match criu::find() {
        Some(criu) => criu,
        None => {
            eprintln!("Fetching a newer CRIU into the cache folder; no system package is changed");
            apt::update()?;
            criu::install().context("no usable CRIU")?
        }
    };
    criu::check(&criu)?;
    Ok(criu)
}

/// Installs the programs that are missing; with them the lab can make its network.
///
/// # Errors
/// Why it cannot: no root, no Debian, or no package archive.
pub fn install_programs() -> Result<()> {
    if !is_root() {
        bail!("network namespaces and CRIU need root");
    }
    install(&PROGRAMS)
}

/// Installs the packages of those programs that are missing. Needs root.
///
/// # Errors
/// If apt fails.
pub fn install(programs: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<&str> = programs
        .iter()
        .filter(|(name, _)| program(name).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if !missing.is_empty() {
        eprintln!("Installing {}", missing.join(", "));
        apt::update()?;
        apt::install(&missing)?;
    }
    Ok(())
}
