//! The line of text that tells people of an event (`-v`).

use std::fmt;

use super::events::{DownloadEvent, Path, Summary};

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Path {
            path,
            interface,
            local,
            remote,
            ..
        } = self;
        write!(f, "path {path}: {interface} ({local}) to {remote}")
    }
}

impl fmt::Display for DownloadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownloadEvent::Connected {
                remote, multipath, ..
            } => {
                let kind = if *multipath {
                    "Multipath QUIC"
                } else {
                    "QUIC over one path"
                };
                write!(f, "connected to {remote} by {kind}")
            }
            DownloadEvent::InterfaceUp { interface, local } => {
                write!(f, "{interface} ({local}) is up")
            }
            DownloadEvent::InterfaceDown { interface, local } => {
                write!(f, "{interface} ({local}) is down")
            }
            DownloadEvent::PathOpened(path) => write!(f, "{path}: opened"),
            DownloadEvent::PathValidated(path) => write!(f, "{path}: validated"),
            DownloadEvent::PathClosed(path) => {
                write!(f, "{path}: closed, {} bytes received", path.bytes)
            }
            DownloadEvent::Addresses { pool, name } => {
                let pool = pool.iter().map(ToString::to_string);
                let places: Vec<_> = pool.chain(name.clone()).collect();
                write!(f, "server may also be found at {}", places.join(" or "))
            }
            DownloadEvent::MigrationAnnounced { targets, lead, .. } => {
                let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "server will move to {} in {lead:.1} s",
                    targets.join(" or ")
                )
            }
            DownloadEvent::Parked { .. } => write!(f, "server parked, searching"),
            DownloadEvent::Silent => write!(f, "server silent, searching"),
            DownloadEvent::Detected { remote, by } => write!(f, "server found at {remote} by {by}"),
            DownloadEvent::Resumed {
                offset: Some(offset),
                remote,
                ..
            } => write!(f, "download goes on at byte {offset} from {remote}"),
            DownloadEvent::Resumed { remote, .. } => write!(f, "connection goes on at {remote}"),
            DownloadEvent::Settled { remote } => {
                write!(f, "server settled at {remote}, old paths closed")
            }
            DownloadEvent::FirstByteAfterMove { remote, parts } => {
                write!(f, "download resumed from {remote} after {:.3} s", parts.gap)
            }
            DownloadEvent::Cancelled { .. } => write!(f, "server stays where it is"),
            DownloadEvent::MigrationFailed { reason } => write!(f, "server lost: {reason}"),
            DownloadEvent::Retry {
                reason,
                wait,
                attempt,
            } => write!(f, "attempt {attempt} in {wait:.0} s, since {reason}"),
            DownloadEvent::Restarted { reason } => write!(f, "starting over: {reason}"),
            DownloadEvent::Progress { bytes, .. } => write!(f, "{bytes} bytes"),
            DownloadEvent::Error { message, .. } => write!(f, "{message}"),
            DownloadEvent::Done(summary) => {
                let Summary {
                    bytes,
                    received,
                    seconds,
                    ..
                } = summary;
                let rate = *received as f64 * 8e-6 / seconds;
                write!(f, "{bytes} bytes in {seconds:.3} s ({rate:.1} Mbit/s)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_ends_with_the_byte_it_goes_on_at() {
        let lost = DownloadEvent::Resumed {
            sequence: None,
            offset: Some(7),
            remote: "10.1.0.3:443".parse().unwrap(),
        };
        assert_eq!(
            lost.to_string(),
            "download goes on at byte 7 from 10.1.0.3:443"
        );
    }

    #[test]
    fn people_read_every_target() {
        let event = DownloadEvent::MigrationAnnounced {
            sequence: 1,
            targets: vec![
                "10.1.0.3:443".parse().unwrap(),
                "[fd00::3]:443".parse().unwrap(),
            ],
            lead: 2.0,
        };
        assert_eq!(
            event.to_string(),
            "server will move to 10.1.0.3:443 or [fd00::3]:443 in 2.0 s"
        );
    }
}
