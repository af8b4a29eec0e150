//! A running `mpq-get`, seen through the events it writes with `--json`.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use mpq_get::report::events::{DownloadEvent, Entry, Summary};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Silence of the tool itself, not of the server, that counts as a hang.
const HANG: Duration = Duration::from_secs(120);

/// A download under way. Dropping it kills the tool.
#[derive(Debug)]
pub struct Download {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    entries: Vec<Entry>,
}

impl Download {
    /// Starts the tool; `command` holds its options besides `--json`. Standard error is inherited.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Result<Download> {
        let mut child = command
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start mpq-get")?;
        let stdout = child.stdout.take().context("mpq-get has no output")?;
        Ok(Download {
            child,
            lines: BufReader::new(stdout).lines(),
            entries: Vec::new(),
        })
    }

    /// Reads events until one is as wanted.
    ///
    /// # Errors
    /// If there is none, with the tool's exit status, or the tool hangs.
    pub async fn wait_for(&mut self, wanted: impl Fn(&DownloadEvent) -> bool) -> Result<()> {
        while let Some(event) = self.next().await? {
            if wanted(&event) {
                return Ok(());
            }
        }
        let status = self.child.wait().await?;
        bail!("mpq-get ended too early: {status}")
    }

    /// Reads events until this many body bytes have arrived.
    ///
    /// # Errors
    /// As [`Download::wait_for`].
    pub async fn wait_for_bytes(&mut self, enough: u64) -> Result<()> {
        self.wait_for(
            |event| matches!(event, DownloadEvent::Progress { bytes, .. } if *bytes >= enough),
        )
        .await
    }

    /// Waits for the end and returns all events.
    ///
    /// # Errors
    /// If the tool fails or hangs.
    pub async fn finish(self) -> Result<Vec<Entry>> {
        match self.end().await? {
            (status, entries) if status.success() => Ok(entries),
            (status, _) => bail!("mpq-get failed: {status}"),
        }
    }

    /// Waits for the end, be it a failure, and returns all events.
    ///
    /// # Errors
    /// If the tool hangs.
    pub async fn end(mut self) -> Result<(ExitStatus, Vec<Entry>)> {
        while self.next().await?.is_some() {}
        Ok((self.child.wait().await?, self.entries))
    }

    /// The tool's process.
    pub fn pid(&self) -> Option<i32> {
        self.child.id().and_then(|pid| pid.try_into().ok())
    }

    async fn next(&mut self) -> Result<Option<DownloadEvent>> {
        let line = tokio::time::timeout(HANG, self.lines.next_line())
            .await
            .with_context(|| format!("no event from mpq-get for {} s", HANG.as_secs()))??;
        let Some(line) = line else { return Ok(None) };
        let entry: Entry = serde_json::from_str(&line)
            .with_context(|| format!("mpq-get wrote what is no event: {line}"))?;
        self.entries.push(entry.clone());
        Ok(Some(entry.event))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// An event of which only what counts is given.
    pub(crate) fn read(event: Value) -> DownloadEvent {
        serde_json::from_value(event).unwrap()
    }

    pub(crate) fn connected(unix: f64) -> DownloadEvent {
        let remote = "10.1.0.2:4433";
        read(json!({
            "event": "connected", "remote": remote, "multipath": true, "handshakes": 1, "unix": unix,
        }))
    }

    pub(crate) fn summary(bytes: u64, seconds: f64) -> Summary {
        Summary {
            bytes,
            received: bytes,
            seconds,
            sha256: "ab".into(),
            handshakes: 1,
            requests: 1,
            paths: Vec::new(),
            cpu: 0.0,
            peak_memory: 0,
        }
    }

    pub(crate) fn done(bytes: u64, seconds: f64) -> DownloadEvent {
        DownloadEvent::Done(summary(bytes, seconds))
    }
}
