//! A running `mpq-get`, seen through the events it writes with `--json`.

use std::net::{IpAddr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Silence of the tool itself, not of the server, that counts as a hang.
const HANG: Duration = Duration::from_secs(120);

/// The events of interest here; the names are those of the tool.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The handshake is complete.
    Connected {
        /// Unix time, in seconds, of the tool's start.
        unix: f64,
    },
    /// An interface, or an address of it, has come.
    InterfaceUp {
        /// The address.
        local: IpAddr,
    },
    /// An interface, or an address of it, has gone.
    InterfaceDown {
        /// The address.
        local: IpAddr,
    },
    /// A path is in use.
    PathValidated(Path),
    /// A path is no more.
    PathClosed(Path),
    /// The server has announced a move.
    MigrationAnnounced {
        /// The move's number.
        sequence: u64,
    },
    /// The server has fallen silent in order to be moved.
    Parked {
        /// The move's number.
        sequence: u64,
    },
    /// The server stays where it is.
    Cancelled {
        /// The move's number.
        sequence: u64,
    },
    /// Nothing comes from the server any more.
    Silent,
    /// The server answers at its new address.
    Detected {
        /// That address.
        remote: SocketAddr,
    },
    /// The connection goes on at another address.
    Resumed {
        /// That address.
        remote: SocketAddr,
        /// The first byte that is asked for, if it is another connection.
        offset: Option<u64>,
    },
    /// The first body byte from another address.
    FirstByteAfterMove {
        /// That address.
        remote: SocketAddr,
        /// Between the last body byte before and the first after, in seconds.
        gap: f64,
    },
    /// The body so far.
    Progress {
        /// Body bytes.
        bytes: u64,
    },
    /// The download has failed.
    Error {
        /// Why.
        message: String,
    },
    /// All is there.
    Done(Done),
    /// Any other event.
    #[serde(other)]
    Other,
}

/// The figures of a complete download.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Done {
    /// Body bytes.
    pub bytes: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Of the body, in lower-case hexadecimal.
    pub sha256: String,
    /// Handshakes made.
    pub handshakes: u64,
    /// Requests sent.
    pub requests: u64,
    /// Every path there was.
    pub paths: Vec<Path>,
}

/// What one path has carried.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Path {
    /// The client's interface.
    pub interface: String,
    /// The client's address there.
    pub local: IpAddr,
    /// The server's address.
    pub remote: SocketAddr,
    /// Bytes received over it.
    pub bytes: u64,
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// Seconds since the tool's start.
    pub t: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

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
    pub async fn wait_for(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<()> {
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
        self.wait_for(|event| matches!(event, Event::Progress { bytes } if *bytes >= enough))
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

    async fn next(&mut self) -> Result<Option<Event>> {
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
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_unknown_ones_passed_over() {
        let read = |line| serde_json::from_str::<Entry>(line).unwrap();
        let entry = read(r#"{"t":1.5,"event":"progress","bytes":7}"#);
        assert_eq!((entry.t, entry.event), (1.5, Event::Progress { bytes: 7 }));

        let entry = read(r#"{"t":2,"event":"path_opened","path":1,"remote":"10.1.0.2:1"}"#);
        assert_eq!((entry.t, entry.event), (2.0, Event::Other));

        let line = r#"{"t":3,"event":"done","bytes":1,"seconds":3,"sha256":"00","handshakes":1,
            "requests":1,"paths":[{"path":0,"interface":"eth0","local":"10.0.0.2","remote":"10.1.0.2:1","bytes":2}]}"#;
        let Event::Done(done) = read(line).event else {
            panic!("not done");
        };
        assert_eq!((done.bytes, done.paths[0].bytes), (1, 2));
    }
}
