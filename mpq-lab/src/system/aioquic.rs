//! aioquic, an HTTP/3 client that has nothing of ours, in a virtual environment of Python's in the lab's folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::system::apt;
use crate::system::host::{cache, program, run};

/// The release that is used.
const VERSION: &str = "1.7.2";
/// Says which one is there.
const WHICH: &str =
    "import importlib.metadata as m, aioquic.h3.connection; print(m.version('aioquic'))";

/// Installs it, and what Debian has of it, unless it is there. Needs root where Python has no virtual environments.
///
/// # Errors
/// If Debian's archive or Python's index cannot be reached.
pub fn setup() -> Result<()> {
    if python().is_ok() {
        return Ok(());
    }
    if program("python3").is_none() || run("python3", ["-c", "import ensurepip"]).is_err() {
        eprintln!("Installing python3-venv");
        apt::update()?;
        apt::install(&["python3", "python3-venv"])?;
    }
    let folder = folder()?;
    let parent = folder.parent().context("no parent folder")?;
    fs::create_dir_all(parent)?;
    let path = folder.to_str().context("the folder's name is no text")?;
    run("python3", ["-m", "venv", "--clear", path])?;
    let wanted = format!("aioquic=={VERSION}");
    let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"];
    let install = pip.into_iter().chain(["install", &wanted]);
    run(interpreter(&folder), install).context("cannot install aioquic")?;
    python().map(drop)
}

/// The Python that has it.
///
/// # Errors
/// If it is not set up.
pub fn python() -> Result<PathBuf> {
    let python = interpreter(&folder()?);
    let version =
        run(&python, ["-c", WHICH]).context("aioquic is not set up; run `cargo lab test`")?;
    ensure!(
        version.trim() == VERSION,
        "aioquic {} is there",
        version.trim()
    );
    Ok(python)
}

fn interpreter(folder: &Path) -> PathBuf {
    folder.join("bin/python3")
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("aioquic"))
}
