//! What happens during a download, and the line of JSON that tells a program of it (`--json`).

use std::io::{self, Write};
use std::net::SocketAddr;

use mpq_core::client::{ClientEvent, MigrationEvent, PathInfo};
use mpq_core::is_unprintable;
use serde::{Deserialize, Serialize};

/// One event. Its JSON object has the variant's name in snake case as `event`, beside the fields.
/// Times are in seconds, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum DownloadEvent {
    /// The handshake is complete.
    Connected {
        /// The server's address.
        remote: SocketAddr,
        /// Whether the server speaks Multipath QUIC.
        multipath: bool,
        /// Handshakes completed so far.
        handshakes: u64,
        /// Unix time at which `t` is 0.
        unix: f64,
    },
    /// The download goes on over another connection after a loss.
    #[serde(rename = "resumed")]
    Reconnected {
        /// The first byte that is asked for.
        offset: u64,
        /// The server's address.
        remote: SocketAddr,
    },
    /// The body goes on.
    FirstByteAfterMove {
        /// The new address.
        remote: SocketAddr,
        /// How long it took, and for what.
        #[serde(flatten)]
        parts: OutageParts,
    },
    /// There will be another attempt.
    Retry {
        /// Why the last one ended.
        reason: String,
        /// Time until then.
        wait: f64,
        /// Its number among those that have brought nothing.
        attempt: u32,
    },
    /// What there was of the body is given up.
    Restarted {
        /// Why.
        reason: String,
    },
    /// A file is where this download's part would be, and stays there. The part has another name.
    LeftAlone {
        /// The file.
        path: String,
        /// Why it is not gone on with.
        reason: String,
    },
    /// About ten times a second.
    Progress {
        /// Bytes of the body that are there.
        bytes: u64,
        /// The paths that there are now.
        paths: Vec<PathInfo>,
    },
    /// The last event of a download that failed.
    Error {
        /// The exit code.
        code: u8,
        /// What happened and what to do.
        message: String,
    },
    /// The last event of a download that succeeded.
    Done(Summary),
    /// What the connection tells.
    #[serde(untagged)]
    Connection(ClientEvent),
}

/// A line of JSON: an event and when it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry<E = DownloadEvent> {
    /// Seconds since the program's start.
    pub t: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: E,
}

/// What a move's outage is made of, as seen from here, in seconds. What was not seen is missing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OutageParts {
    /// Between the last body byte before and the first after.
    pub gap: f64,
    /// From the announcement until the server parked, or fell silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_to_parked: Option<f64>,
    /// From then until it answered at the new address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked_to_detected: Option<f64>,
    /// From then until the first path there was validated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detected_to_moved: Option<f64>,
    /// From then until the body went on.
    pub moved_to_first_byte: f64,
}

/// The whole download in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Bytes of the body, from its first to its last.
    pub bytes: u64,
    /// Body bytes received by this run: fewer than [`bytes`](Summary::bytes) if it went on with an
    /// earlier one's, more if it had to start over.
    pub received: u64,
    /// Seconds from the program's start to the last byte in the file.
    pub seconds: f64,
    /// The body's SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Requests sent.
    pub requests: u64,
    /// Every path there was.
    pub paths: Vec<PathInfo>,
    /// Processor time that the program took, in user and kernel mode together, seconds.
    pub cpu: f64,
    /// The most memory that the program had resident, bytes.
    pub peak_memory: u64,
}

impl From<ClientEvent> for DownloadEvent {
    fn from(event: ClientEvent) -> DownloadEvent {
        DownloadEvent::Connection(event)
    }
}

impl DownloadEvent {
    /// Whether it tells of a move or of a loss: people want to know, without asking for it.
    pub fn is_incident(&self) -> bool {
        match self {
            DownloadEvent::Connection(ClientEvent::Migration(event)) => !matches!(
                event,
                MigrationEvent::Addresses { .. } | MigrationEvent::Dead { .. }
            ),
            DownloadEvent::Connection(_)
            | DownloadEvent::Connected { .. }
            | DownloadEvent::Progress { .. }
            | DownloadEvent::Error { .. }
            | DownloadEvent::Done(_) => false,
            DownloadEvent::Reconnected { .. }
            | DownloadEvent::FirstByteAfterMove { .. }
            | DownloadEvent::Retry { .. }
            | DownloadEvent::LeftAlone { .. }
            | DownloadEvent::Restarted { .. } => true,
        }
    }

    /// Writes the event as a line of JSON; `t` is in seconds since the start. What could speak to a terminal is
    /// escaped, as it may be anywhere in a string.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn write_json(&self, t: f64, mut out: impl Write) -> io::Result<()> {
        let line = Entry {
            t: (t * 1e6).round() / 1e6,
            event: self,
        };
        let mut text = String::new();
        for c in serde_json::to_string(&line)?.chars() {
            match is_unprintable(c) {
                true => text += &format!("\\u{:04x}", u32::from(c)),
                false => text.push(c),
            }
        }
        writeln!(out, "{text}")?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mpq_core::client::{InterfaceEvent, PathEvent, PathState};
    use serde_json::json;

    use super::*;

    /// What programs read, which is the same event for one that reads it into this type.
    fn read(event: impl Into<DownloadEvent>) -> serde_json::Value {
        let event = event.into();
        let mut line = Vec::new();
        event.write_json(1.234_567_89, &mut line).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(line.last(), Some(&b'\n'));
        let entry: Entry = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            entry,
            Entry {
                t: 1.234_568,
                event
            }
        );
        serde_json::from_slice(&line).unwrap()
    }

    fn path() -> PathInfo {
        PathInfo {
            id: 1.into(),
            interface: "eth1".to_owned(),
            local: "10.0.1.2".parse().unwrap(),
            remote: "10.1.0.2:443".parse().unwrap(),
            state: PathState::Closed,
            rtt: Some(Duration::from_micros(50_123)),
            received: 7,
            sent: 3,
            lost: 2,
        }
    }

    #[test]
    fn objects_are_flat() {
        assert_eq!(
            read(ClientEvent::from(PathEvent::Closed(path()))),
            json!({
                "t": 1.234568, "event": "path_closed", "path": 1, "interface": "eth1",
                "local": "10.0.1.2", "remote": "10.1.0.2:443", "state": "closed", "rtt": 0.050123,
                "bytes": 7, "sent": 3, "lost": 2,
            })
        );
        let down = InterfaceEvent::Down {
            interface: "eth1".to_owned(),
            local: "10.0.1.2".parse().unwrap(),
        };
        assert_eq!(
            read(ClientEvent::from(down)),
            json!({
                "t": 1.234568, "event": "interface_down", "interface": "eth1", "local": "10.0.1.2",
            })
        );
        assert_eq!(
            read(ClientEvent::from(MigrationEvent::Silent)),
            json!({ "t": 1.234568, "event": "silent" })
        );
        let announced = MigrationEvent::Announced {
            sequence: 3,
            targets: vec!["10.1.0.3:443".parse().unwrap()],
            lead: Duration::from_millis(1500),
            outage: Duration::ZERO,
        };
        assert_eq!(
            read(ClientEvent::from(announced)),
            json!({
                "t": 1.234568, "event": "migration_announced", "sequence": 3,
                "targets": ["10.1.0.3:443"], "lead": 1.5, "outage": 0.0,
            })
        );
    }

    #[test]
    fn what_could_speak_to_a_terminal_is_escaped() {
        let message = "\u{1b}[31m\u{9b}\u{202e}ä".to_owned();
        let event = DownloadEvent::Error { code: 1, message };
        let mut line = Vec::new();
        event.write_json(0.0, &mut line).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(!line.trim_end().chars().any(is_unprintable), "{line:?}");
        assert!(line.contains('ä'), "{line}");
        read(event);
    }

    #[test]
    fn done_lists_the_paths() {
        let done = read(DownloadEvent::Done(Summary {
            bytes: 5,
            received: 3,
            seconds: 0.5,
            sha256: "ab".to_owned(),
            handshakes: 1,
            requests: 1,
            paths: vec![path()],
            cpu: 0.25,
            peak_memory: 4096,
        }));
        assert_eq!(done["event"], "done");
        assert_eq!((&done["bytes"], &done["received"]), (&5.into(), &3.into()));
        assert_eq!(done["sha256"], "ab");
        assert_eq!(done["paths"][0]["interface"], "eth1");
        assert_eq!(
            (&done["cpu"], &done["peak_memory"]),
            (&0.25.into(), &4096.into())
        );
    }

    #[test]
    fn a_round_trip_that_is_not_measured_is_not_told() {
        let unmeasured = PathInfo {
            rtt: None,
            ..path()
        };
        let progress = read(DownloadEvent::Progress {
            bytes: 5,
            paths: vec![path(), unmeasured],
        });
        assert_eq!(progress["paths"][0]["rtt"], 0.050123);
        assert_eq!(progress["paths"][1].get("rtt"), None);
    }

    #[test]
    fn a_move_and_a_loss_both_end_with_resumed() {
        let remote = "10.1.0.3:443".parse().unwrap();
        let moved = MigrationEvent::Moved {
            sequence: 2,
            remote,
        };
        assert_eq!(
            read(ClientEvent::from(moved)),
            json!({
                "t": 1.234568, "event": "resumed", "sequence": 2, "remote": "10.1.0.3:443",
            })
        );
        assert_eq!(
            read(DownloadEvent::Reconnected { offset: 7, remote }),
            json!({
                "t": 1.234568, "event": "resumed", "offset": 7, "remote": "10.1.0.3:443",
            })
        );
    }

    #[test]
    fn the_parts_of_a_move_are_beside_its_gap() {
        let event = DownloadEvent::FirstByteAfterMove {
            remote: "10.1.0.3:443".parse().unwrap(),
            parts: OutageParts {
                gap: 1.5,
                announced_to_parked: None,
                parked_to_detected: Some(1.25),
                detected_to_moved: Some(0.125),
                moved_to_first_byte: 0.125,
            },
        };
        assert_eq!(
            read(event),
            json!({
                "t": 1.234568, "event": "first_byte_after_move", "remote": "10.1.0.3:443",
                "gap": 1.5, "parked_to_detected": 1.25, "detected_to_moved": 0.125,
                "moved_to_first_byte": 0.125,
            })
        );
    }
}
