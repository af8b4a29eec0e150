//! The machine the lab runs on: programs, privileges, the clock, the workspace.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Whether the lab may make namespaces and use CRIU.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Unix time in seconds.
pub fn unix() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// The path of a program in `PATH`, or in the folders where Debian keeps those of the
/// administrator.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Runs a command to its end and returns what it wrote to its standard output.
///
/// # Errors
/// If it cannot be started or fails; the message has the command and what it wrote to its standard
/// error.
pub fn run<I>(program: impl AsRef<OsStr>, arguments: I) -> Result<String>
where
    I: IntoIterator<Item: AsRef<OsStr>>,
{
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does something that belongs to a network namespace, given as a file, such as opening a socket. The
/// caller stays where it is.
///
/// # Errors
/// If the namespace cannot be entered, or as the work itself.
pub fn inside<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = File::open(namespace)?;
    // A thread's namespace is its own, and this one ends.
    let done = thread::scope(|scope| {
        let enter = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        scope.spawn(enter).join()
    });
    done.unwrap_or_else(|_| Err(io::Error::other("the thread has died")))
}

/// Runs a command whose output the user sees.
///
/// # Errors
/// If it cannot be started or fails.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// A cargo command in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace);
    // `cargo lab` describes this package by variables. ring's build script watches those names, so
    // that with them ring, and all that uses it, would be compiled anew each time.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the tools, and this program, which emulates the links; without a word if that succeeds.
///
/// # Errors
/// If they cannot be built.
pub fn build_tools() -> Result<()> {
    show(&mut cargo(&[
        "build",
        "--quiet",
        "--release",
        "--workspace",
        "--bins",
    ]))
}

/// The folder for what is kept between runs.
///
/// # Errors
/// If neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("mpq"))
}

/// The path of one of the workspace's programs, built beside the one that is running.
///
/// # Errors
/// If it has not been built.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program is unknown")?;
    // Tests run from a folder below that of the programs.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not built; run `cargo build --release`"))
}
