//! The line of text that tells people of an event (`-v`).

use std::fmt;

use super::events::{Event, Path, Summary};

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

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Connected {
                remote, multipath, ..
            } => {
                let kind = if *multipath {
                    "Multipath QUIC"
                } else {
                    "QUIC over one path"
                };
                write!(f, "connected to {remote} by {kind}")
            }
            Event::InterfaceUp { interface, local } => write!(f, "{interface} ({local}) is up"),
            Event::InterfaceDown { interface, local } => write!(f, "{interface} ({local}) is down"),
            Event::PathOpened(path) => write!(f, "{path}: opened"),
            Event::PathValidated(path) => write!(f, "{path}: validated"),
            Event::PathClosed(path) => write!(f, "{path}: closed, {} bytes received", path.bytes),
            Event::Addresses { pool, name } => {
                let pool = pool.iter().map(ToString::to_string);
                let places: Vec<_> = pool.chain(name.clone()).collect();
                write!(f, "server may also be found at {}", places.join(" or "))
            }
            Event::MigrationAnnounced { targets, lead, .. } => {
                let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "server will move to {} in {lead:.1} s",
                    targets.join(" or ")
                )
            }
            Event::Parked { .. } => write!(f, "server parked, searching"),
            Event::Silent => write!(f, "server silent, searching"),
            Event::Detected { remote, by } => write!(f, "server found at {remote} by {by}"),
            Event::Resumed {
                offset: Some(offset),
                remote,
                ..
            } => write!(f, "download goes on at byte {offset} from {remote}"),
            Event::Resumed { remote, .. } => write!(f, "connection goes on at {remote}"),
            Event::Settled { remote } => write!(f, "server settled at {remote}, old paths closed"),
            Event::FirstByteAfterMove { remote, parts } => {
                write!(f, "download resumed from {remote} after {:.3} s", parts.gap)
            }
            Event::Cancelled { .. } => write!(f, "server stays where it is"),
            Event::MigrationFailed { reason } => write!(f, "server lost: {reason}"),
            Event::Retry {
                reason,
                wait,
                attempt,
            } => write!(f, "attempt {attempt} in {wait:.0} s, since {reason}"),
            Event::Restarted { reason } => write!(f, "starting over: {reason}"),
            Event::Progress { bytes, .. } => write!(f, "{bytes} bytes"),
            Event::Error { message, .. } => write!(f, "{message}"),
            Event::Done(summary) => {
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
        let lost = Event::Resumed {
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
        let event = Event::MigrationAnnounced {
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
