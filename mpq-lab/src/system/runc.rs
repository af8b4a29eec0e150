//! A container engine for hosts of the lab: Debian's runc, unpacked rather than installed, so that no other engine finds
//! it.

use std::path::PathBuf;

use anyhow::Result;

use crate::system::apt;
use crate::system::host::cache;

/// Unpacks it into the lab's folder. Needs root.
///
/// # Errors
/// If Debian's archive has not got it.
pub fn setup() -> Result<()> {
    if !program()?.is_file() {
        apt::update()?;
        apt::unpack(&["runc", "libseccomp2"], &folder()?)?;
    }
    Ok(())
}

/// Where the program is, once it was set up.
///
/// # Errors
/// There is no folder for it.
pub fn program() -> Result<PathBuf> {
    Ok(folder()?.join("usr/sbin/runc"))
}

/// Where its libraries are.
///
/// # Errors
/// There is no folder for them.
pub fn libraries() -> Result<PathBuf> {
    Ok(folder()?.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)))
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("runc"))
}
