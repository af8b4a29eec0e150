//! What happens during a download, and the line of JSON that tells a program of it (`--json`).

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use mpq_core::client::{ClientEvent, PathInfo, PathState};
use serde::Serialize;

/// One event. Its JSON object has the variant's name in snake case as `event`, beside the fields.
/// Times are in seconds, sizes in bytes.
#[derive(Debug, Clone, Serialize)]
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
    /// An interface, or an address of it, has come.
    InterfaceUp {
        /// Its name.
        interface: String,
        /// The address.
        local: IpAddr,
    },
    /// An interface, or an address of it, has gone.
    InterfaceDown {
        /// Its name.
        interface: String,
        /// The address.
        local: IpAddr,
    },
    /// A path is being validated.
    PathOpened(Path),
    /// A path is ready for data.
    PathValidated(Path),
    /// A path is no longer used.
    PathClosed(Path),
    /// The server has said where else it may be found.
    Addresses {
        /// Alternative addresses.
        pool: Vec<SocketAddr>,
        /// A DNS name that leads to it.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// The server has said that it will move.
    MigrationAnnounced {
        /// The move's number.
        sequence: u64,
        /// Where it will be.
        targets: Vec<SocketAddr>,
        /// Time until it parks.
        lead: f64,
    },
    /// The server has stopped sending in order to move.
    Parked {
        /// The move's number.
        sequence: u64,
    },
    /// Nothing comes from the server any more.
    Silent,
    /// The server answers at its new address.
    Detected {
        /// The new address.
        remote: SocketAddr,
        /// `probe` or `knock`: who spoke first.
        by: &'static str,
    },
    /// The download goes on at another address: on the same connection after a move, or on another
    /// one after a loss.
    Resumed {
        /// The move's number, after a move.
        #[serde(skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
        /// The first byte that is asked for, after a loss.
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// The server's address.
        remote: SocketAddr,
    },
    /// The paths to the old address are closed.
    Settled {
        /// The new address.
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
    /// The server stays where it is.
    Cancelled {
        /// The move's number.
        sequence: u64,
    },
    /// The server was not found again.
    MigrationFailed {
        /// Why it was given up.
        reason: String,
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
    /// About ten times a second.
    Progress {
        /// Bytes of the body that are there.
        bytes: u64,
        /// The paths that there are now.
        paths: Vec<Path>,
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
}

/// A path in an event.
#[derive(Debug, Clone, Serialize)]
pub struct Path {
    /// Its number in this connection.
    pub path: u32,
    /// The local interface.
    pub interface: String,
    /// The local address.
    pub local: IpAddr,
    /// The server's address.
    pub remote: SocketAddr,
    /// UDP payload bytes received over it.
    pub bytes: u64,
    /// Round-trip time, smoothed; missing until something has come over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt: Option<f64>,
}

/// What a move's outage is made of, as seen from here, in seconds. What was not seen is missing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OutageParts {
    /// Between the last body byte before and the first after.
    pub gap: f64,
    /// From the announcement until the server parked, or fell silent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announced_to_parked: Option<f64>,
    /// From then until it answered at the new address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked_to_detected: Option<f64>,
    /// From then until the first path there was validated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detected_to_moved: Option<f64>,
    /// From then until the body went on.
    pub moved_to_first_byte: f64,
}

/// The whole download in numbers.
#[derive(Debug, Clone, Serialize)]
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
    pub paths: Vec<Path>,
    /// Processor time that the program took, in user and kernel mode together, seconds.
    pub cpu: f64,
    /// The most memory that the program had resident, bytes.
    pub peak_memory: u64,
}

impl From<PathInfo> for Path {
    fn from(info: PathInfo) -> Path {
        // Before that, noq has only a guess.
        let measured = info.state != PathState::Opening && info.received > 0;
        Path {
            path: info.id,
            interface: info.interface,
            local: info.local,
            remote: info.remote,
            bytes: info.received,
            rtt: measured.then(|| (info.rtt.as_secs_f64() * 1e6).round() / 1e6),
        }
    }
}

impl From<ClientEvent> for DownloadEvent {
    fn from(event: ClientEvent) -> DownloadEvent {
        match event {
            ClientEvent::InterfaceUp { interface, local } => {
                DownloadEvent::InterfaceUp { interface, local }
            }
            ClientEvent::InterfaceDown { interface, local } => {
                DownloadEvent::InterfaceDown { interface, local }
            }
            ClientEvent::PathOpened(info) => DownloadEvent::PathOpened(info.into()),
            ClientEvent::PathValidated(info) => DownloadEvent::PathValidated(info.into()),
            ClientEvent::PathClosed(info) => DownloadEvent::PathClosed(info.into()),
            ClientEvent::Announced {
                sequence,
                targets,
                lead,
                ..
            } => DownloadEvent::MigrationAnnounced {
                sequence,
                targets,
                lead: lead.as_secs_f64(),
            },
            ClientEvent::Addresses { pool, name } => DownloadEvent::Addresses { pool, name },
            ClientEvent::Parked { sequence } => DownloadEvent::Parked { sequence },
            ClientEvent::Silent => DownloadEvent::Silent,
            ClientEvent::Detected { remote, by } => DownloadEvent::Detected { remote, by },
            ClientEvent::Moved { sequence, remote } => DownloadEvent::Resumed {
                sequence: Some(sequence),
                offset: None,
                remote,
            },
            ClientEvent::Settled { remote } => DownloadEvent::Settled { remote },
            ClientEvent::Cancelled { sequence } => DownloadEvent::Cancelled { sequence },
            ClientEvent::Failed { reason } => DownloadEvent::MigrationFailed { reason },
        }
    }
}

impl DownloadEvent {
    /// Whether it tells of a move or of a loss: people want to know, without asking for it.
    pub fn is_incident(&self) -> bool {
        !matches!(
            self,
            DownloadEvent::Connected { .. }
                | DownloadEvent::Addresses { .. }
                | DownloadEvent::InterfaceUp { .. }
                | DownloadEvent::InterfaceDown { .. }
                | DownloadEvent::PathOpened(_)
                | DownloadEvent::PathValidated(_)
                | DownloadEvent::PathClosed(_)
                | DownloadEvent::Progress { .. }
                | DownloadEvent::Error { .. }
                | DownloadEvent::Done(_)
        )
    }

    /// Writes the event as a line of JSON; `t` is in seconds since the start.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn write_json(&self, t: f64, mut out: impl Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            t: f64,
            #[serde(flatten)]
            event: &'a DownloadEvent,
        }
        let line = Line {
            t: (t * 1e6).round() / 1e6,
            event: self,
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn json(event: DownloadEvent) -> serde_json::Value {
        let mut line = Vec::new();
        event.write_json(1.234_567_89, &mut line).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(line.last(), Some(&b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    fn path() -> Path {
        Path {
            path: 1,
            interface: "eth1".to_owned(),
            local: "10.0.1.2".parse().unwrap(),
            remote: "10.1.0.2:443".parse().unwrap(),
            bytes: 7,
            rtt: Some(0.05),
        }
    }

    #[test]
    fn objects_are_flat() {
        assert_eq!(
            json(DownloadEvent::PathClosed(path())),
            serde_json::json!({
                "t": 1.234568, "event": "path_closed", "path": 1, "interface": "eth1",
                "local": "10.0.1.2", "remote": "10.1.0.2:443", "bytes": 7, "rtt": 0.05,
            })
        );
        let down = ClientEvent::InterfaceDown {
            interface: "eth1".to_owned(),
            local: "10.0.1.2".parse().unwrap(),
        };
        assert_eq!(
            json(down.into()),
            serde_json::json!({
                "t": 1.234568, "event": "interface_down", "interface": "eth1", "local": "10.0.1.2",
            })
        );
        assert_eq!(
            json(DownloadEvent::Silent),
            serde_json::json!({ "t": 1.234568, "event": "silent" })
        );
        let announced = DownloadEvent::from(ClientEvent::Announced {
            sequence: 3,
            targets: vec!["10.1.0.3:443".parse().unwrap()],
            lead: Duration::from_millis(1500),
            outage: Duration::ZERO,
        });
        assert_eq!(
            json(announced),
            serde_json::json!({
                "t": 1.234568, "event": "migration_announced", "sequence": 3,
                "targets": ["10.1.0.3:443"], "lead": 1.5,
            })
        );
    }

    #[test]
    fn done_lists_the_paths() {
        let done = json(DownloadEvent::Done(Summary {
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
    fn a_round_trip_is_told_once_it_is_measured() {
        let info = |state, received| PathInfo {
            id: 0,
            interface: "eth0".to_owned(),
            local: "10.0.0.2".parse().unwrap(),
            remote: "10.1.0.2:443".parse().unwrap(),
            state,
            rtt: Duration::from_nanos(50_123_456),
            received,
            sent: 0,
            lost: 0,
        };
        let rtt = |state, received| Path::from(info(state, received)).rtt;
        assert_eq!(rtt(PathState::Opening, 9), None);
        assert_eq!(rtt(PathState::Closed, 0), None);
        assert_eq!(rtt(PathState::Validated, 9), Some(0.050123));
        assert_eq!(rtt(PathState::Closed, 9), Some(0.050123));
        let unmeasured = Path {
            rtt: None,
            ..path()
        };
        let progress = json(DownloadEvent::Progress {
            bytes: 5,
            paths: vec![path(), unmeasured],
        });
        assert_eq!(progress["paths"][0]["rtt"], 0.05);
        assert_eq!(progress["paths"][1].get("rtt"), None);
    }

    #[test]
    fn a_move_and_a_loss_both_end_with_resumed() {
        let remote = "10.1.0.3:443".parse().unwrap();
        let moved = DownloadEvent::from(ClientEvent::Moved {
            sequence: 2,
            remote,
        });
        assert_eq!(
            json(moved),
            serde_json::json!({
                "t": 1.234568, "event": "resumed", "sequence": 2, "remote": "10.1.0.3:443",
            })
        );
        let lost = DownloadEvent::Resumed {
            sequence: None,
            offset: Some(7),
            remote,
        };
        assert_eq!(
            json(lost),
            serde_json::json!({
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
            json(event),
            serde_json::json!({
                "t": 1.234568, "event": "first_byte_after_move", "remote": "10.1.0.3:443",
                "gap": 1.5, "parked_to_detected": 1.25, "detected_to_moved": 0.125,
                "moved_to_first_byte": 0.125,
            })
        );
    }
}
