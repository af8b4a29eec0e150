//! Debian packages: into the system, or unpacked from a newer suite into a folder of our own.
//!
//! The newer suite comes from the archive this machine uses already (apt is asked for it), is
//! verified with Debian's own keys, and has lists and caches of its own: the system's apt and its
//! packages are not touched. To apt the folder looks like an empty system, so it fetches every
//! library the package needs, the C library included.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::system::host::{run, show};

/// Brings apt's lists up to date. Needs root.
///
/// # Errors
/// If apt fails.
pub fn update() -> Result<()> {
    show(Command::new("apt-get").args(["--quiet=2", "update"]))
}

/// Installs packages into the system. Needs root and fresh lists.
///
/// # Errors
/// If apt fails.
pub fn install(packages: &[&str]) -> Result<()> {
    show(
        Command::new("apt-get")
            .args(["--quiet=2", "--option=Dpkg::Use-Pty=0"])
            .args(["--yes", "--no-install-recommends", "install"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // dpkg tells of every file it looks at.
            .stdout(Stdio::null()),
    )
}

/// Unpacks packages, without what they depend on, into `root`. Needs fresh lists.
///
/// # Errors
/// If apt or dpkg fails.
pub fn unpack(packages: &[&str], root: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    show(
        Command::new("apt-get")
            .args(["--quiet=2", "--option=APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(folder.path()),
    )?;
    extract(folder.path(), root)
}

/// Unpacks packages of Debian's newest suites, with all they depend on, into `root`.
///
/// Needs the system's own lists, which say where its archive is.
///
/// # Errors
/// If this is no Debian with its keys, or apt or dpkg fails.
pub fn unpack_newest(packages: &[&str], root: &Path) -> Result<()> {
    let state = tempfile::tempdir()?;
    let path = state.path();
    for folder in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(path.join(folder))?;
    }
    fs::write(path.join("status"), "")?;
    fs::write(
        path.join("debian.sources"),
        format!(
            "Types: deb\nURIs: {}\nSuites: testing unstable\nComponents: main\n\
             Targets: Packages\nSigned-By: {}\n",
            archive()?,
            keyring()?
        ),
    )?;

    let option = |name: &str, file: &str| {
        let mut option = OsString::from(format!("--option={name}="));
        option.push(path.join(file));
        option
    };
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args([
                option("Dir::Etc::SourceList", "debian.sources"),
                option("Dir::Etc::SourceParts", "none"),
                option("Dir::State", "."),
                option("Dir::State::Lists", "lists"),
                option("Dir::State::Status", "status"),
                option("Dir::Cache", "."),
                option("Dir::Cache::Archives", "archives"),
            ])
            // The folder is private, so apt's own user could not write to it.
            .args(["--option=APT::Sandbox::User=root", "--quiet=2"])
            .args(arguments);
        show(&mut command)
    };
    apt(&["update"])?;
    let fetch = [
        "--yes",
        "--no-install-recommends",
        "--download-only",
        "install",
    ];
    apt(&[&fetch, packages].concat())?;

    extract(&path.join("archives"), root)
}

/// Unpacks every package in a folder.
fn extract(folder: &Path, root: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            run("dpkg", [OsString::from("-x"), file.into(), root.into()])?;
        }
    }
    Ok(())
}

/// The address of the Debian archive this machine uses.
fn archive() -> Result<String> {
    let targets = run(
        "apt-get",
        [
            "indextargets",
            "--format=$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)",
            "Created-By: Packages",
        ],
    )?;
    let found = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian|Debian|main|"));
    Ok(found
        .context("apt knows no Debian archive here")?
        .to_owned())
}

fn keyring() -> Result<&'static str> {
    let files = [
        "/usr/share/keyrings/debian-archive-keyring.pgp",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ];
    match files.into_iter().find(|file| Path::new(file).exists()) {
        Some(file) => Ok(file),
        None => bail!("Debian's keys are missing; install debian-archive-keyring"),
    }
}
