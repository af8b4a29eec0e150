//! A CRIU that is new enough.
//!
//! Releases before 4.2 cannot dump a server's sockets on kernels from 6.16 on, and Debian's stable
//! suites have older ones. So a newer package is unpacked, with its libraries and its loader, into
//! a folder of our own, and its program is pointed at them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::system::apt;
use crate::system::host::{cache, program, run};

/// Where CRIU keeps what it has found out about the kernel, which takes it about 60 ms.
const NOTES: &str = "/run/criu.kdat";

/// In memory as well; the notes on one kernel are of no use to another.
const KEPT: &str = "/dev/shm/criu.kdat";

/// The oldest release that can be used.
pub const OLDEST: (u32, u32) = (4, 2);

/// A CRIU to use: the one named by `MPQ_CRIU`, that of the system, or that of the lab's own folder.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os("MPQ_CRIU").map(PathBuf::from);
    let own = folder().ok().map(|folder| executable(&folder));
    [named, program("criu"), own]
        .into_iter()
        .flatten()
        .find(|criu| matches!(version(criu), Ok(version) if version >= OLDEST))
}

/// Unpacks a newer CRIU into the lab's own folder and returns its program. Needs root.
///
/// It is put together under another name, so nobody ever finds half of it.
///
/// # Errors
/// If there is no Debian archive with it, or what came cannot run here.
pub fn install() -> Result<PathBuf> {
    let folder = folder()?;
    let parent = folder.parent().context("no parent folder")?;
    fs::create_dir_all(parent)?;
    let staging = tempfile::Builder::new()
        .prefix(".criu-")
        .tempdir_in(parent)?;
    let root = staging.path().join("root");
    apt::unpack_newest(&["criu", "patchelf"], &root)?;

    // patchelf too is newer than this system's libraries: it runs by the loader beside it.
    let loader = loader(&root)?;
    let libraries = loader.parent().context("the loader has no folder")?;
    let settled = |path: &Path| Ok::<_, anyhow::Error>(folder.join(path.strip_prefix(&root)?));
    run(
        &loader,
        [
            "--library-path".as_ref(),
            libraries,
            &root.join("usr/bin/patchelf"),
            "--set-interpreter".as_ref(),
            &settled(&loader)?,
            // Libraries of libraries are looked up by an RPATH, not by a RUNPATH.
            "--force-rpath".as_ref(),
            "--set-rpath".as_ref(),
            &settled(libraries)?,
            &executable(&root),
        ],
    )?;

    // What is there is either whole, by another run that was faster, or cannot be used.
    if version(&executable(&folder)).is_err() {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&root, &folder)?;
    }
    let criu = executable(&folder);
    let version = version(&criu)?;
    ensure!(
        version >= OLDEST,
        "the newest CRIU of this archive is {}.{}",
        version.0,
        version.1
    );
    Ok(criu)
}

/// Whether the kernel can do what CRIU needs. Needs root.
///
/// # Errors
/// What CRIU says is missing.
pub fn check(criu: &Path) -> Result<()> {
    run(criu, ["check"])?;
    if !Path::new(NOTES).exists()
        && let Err(reason) = take_notes(criu)
    {
        eprintln!("Each run of CRIU takes longer here than it need: {reason:#}");
    }
    Ok(())
}

/// Has CRIU take notes where it would not: it does only where `/run` is in memory, as on all machines that
/// systemd has started, but not in all containers.
///
/// A mount, so that nothing of it is left when the machine starts anew.
fn take_notes(criu: &Path) -> Result<()> {
    const SCRIPT: &str = "mount -t tmpfs tmpfs /run && \"$0\" check && cp \"$1\" \"$2\"";
    let in_private: [&OsStr; 7] = [
        "--mount".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        SCRIPT.as_ref(),
        criu.as_ref(),
        NOTES.as_ref(),
        KEPT.as_ref(),
    ];
    run("unshare", in_private)?;
    File::create(NOTES).context(NOTES)?;
    let mounted = run("mount", ["--bind", KEPT, NOTES]);
    if mounted.is_err() {
        fs::remove_file(NOTES)?;
    }
    mounted.map(drop)
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("criu"))
}

fn executable(root: &Path) -> PathBuf {
    root.join("usr/sbin/criu")
}

/// The dynamic loader of an unpacked tree; its name depends on the architecture.
fn loader(root: &Path) -> Result<PathBuf> {
    for folder in fs::read_dir(root.join("usr/lib"))? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("ld-linux") {
                return Ok(file.path());
            }
        }
    }
    anyhow::bail!("the C library that came has no loader")
}

fn version(criu: &Path) -> Result<(u32, u32)> {
    parse_version(&run(criu, ["--version"])?)
}

fn parse_version(text: &str) -> Result<(u32, u32)> {
    let parse = || {
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))?;
        let mut numbers = version.trim().split('.').map(|number| number.parse().ok());
        // A new major release has no second number.
        Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    };
    parse().with_context(|| format!("{text:?} names no version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("Version: 4.2.1\n").unwrap(), (4, 2));
        assert!(parse_version("Version: 4.10\nGitID: v4.10\n").unwrap() > OLDEST);
        assert!(parse_version("Version: 3.17.1\n").unwrap() < OLDEST);
        assert_eq!(parse_version("Version: 5\n").unwrap(), (5, 0));
        assert!(parse_version("criu\n").is_err());
    }
}
