//! An ssh server for hosts of the lab: Debian's, unpacked rather than installed, since its package would start it
//! outside of the lab.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::system::apt;
use crate::system::host::cache;

/// Unpacks it into the lab's folder, with the libraries that few systems have. Needs root.
///
/// # Errors
/// If Debian's archive has not got it.
pub fn setup() -> Result<()> {
    super::setup::install(&[("ssh", "openssh-client")])?;
    if !program()?.is_file() {
        apt::update()?;
        let packages = ["openssh-server", "libwrap0", "libnsl2", "libtirpc3"];
        apt::unpack(&packages, &folder()?)?;
    }
    Ok(())
}

/// Where the program is, once it was set up.
///
/// # Errors
/// There is no folder for it.
pub fn program() -> Result<PathBuf> {
    Ok(folder()?.join("usr/sbin/sshd"))
}

/// Where its libraries are.
///
/// # Errors
/// They were not unpacked.
pub fn libraries() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in [folder()?.join("usr/lib"), folder()?.join("lib")] {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry?.path();
            if path.is_dir() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("sshd"))
}
