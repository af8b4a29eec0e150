//! A running `mpq-serve`: how it is started, and what it says of itself.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

/// How long a server that has ended may stay a zombie.
const COLLECTED: Duration = Duration::from_secs(30);

/// How often a process is looked at.
const POLL: Duration = Duration::from_millis(1);

/// The content a server is to serve as `/random`.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// What the bytes are made from.
    pub seed: u64,
}

impl Content {
    /// The digest a download of it must have, in lower-case hexadecimal.
    pub fn sha256(self) -> String {
        mpq_serve::site::random::sha256(self.size, self.seed)
    }
}

/// When a server was stopped, as its images tell; unix times in seconds.
#[derive(Debug, Clone, Deserialize)]
pub struct Dump {
    /// The server's process.
    pub pid: i32,
    /// The server's process was frozen.
    pub dump_started: f64,
    /// Its images were complete.
    pub dumped: f64,
}

/// What a restored server says.
#[derive(Debug, Clone, Deserialize)]
pub struct Restored {
    /// The server's process.
    pub pid: i32,
    /// Unix time, in seconds, at which it ran again.
    pub thawed: f64,
}

/// Waits for a process to be gone, and not to be a zombie that its parent has yet to collect.
pub(super) async fn gone(pid: i32) -> Result<()> {
    let gone = async {
        while Path::new("/proc").join(pid.to_string()).exists() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(COLLECTED, gone)
        .await
        .context("nobody collects the process of the server; pid 1 should")
}

/// The lost packets of a line of a server's log, if it tells of a connection's end and not of one of
/// its paths'.
pub(super) fn lost_packets(line: &str) -> Option<u64> {
    let (_, figures) = line.split_once("stats ")?;
    if figures.contains(" path=") {
        return None;
    }
    let lost = figures
        .split_whitespace()
        .find_map(|figure| figure.strip_prefix("lost_packets="))?;
    lost.parse().ok()
}

/// The options that make a server serve this content.
pub fn content_options(content: Content) -> [String; 4] {
    let Content { size, seed } = content;
    [
        "--random".into(),
        size.to_string(),
        "--seed".into(),
        seed.to_string(),
    ]
}

/// Starts a server that logs to a file, and returns when it says there that it listens.
///
/// # Errors
/// What it says instead.
pub async fn start_server(mut command: Command, log: &Path) -> Result<Child> {
    // What it says before it has a log goes there too.
    let file = File::options().create(true).append(true).open(log)?;
    let mut child = command
        .arg("--log-file")
        .arg(log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start mpq-serve")?;
    loop {
        let ended = child.try_wait()?;
        let said = fs::read_to_string(log)?;
        // Half a line has no address yet.
        let mut lines = said.split_inclusive('\n');
        if lines.any(|line| line.contains("listening on") && line.ends_with('\n')) {
            return Ok(child);
        }
        if let Some(status) = ended {
            bail!("mpq-serve did not start: {status}: {}", said.trim());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Runs a command to its end and returns what it wrote to standard output; what it wrote to
/// standard error becomes the error.
pub(super) async fn output(mut command: Command) -> Result<String> {
    // Files, not pipes: a restored server takes them over, so that a pipe would never end.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let status = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .status()
        .await?;
    let read = |file: &mut File| {
        file.rewind()?;
        io::read_to_string(file)
    };
    let said = read(&mut err)?;
    ensure!(status.success(), "{status}: {}", said.trim());
    Ok(read(&mut out)?)
}

/// What one of its commands says, as JSON.
pub(super) fn json<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line.trim()).with_context(|| format!("unexpected output: {line}"))
}
