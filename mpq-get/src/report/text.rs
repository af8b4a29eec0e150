//! The line of text that tells people of an event (`-v`).

use std::fmt;

use mpq_core::client::{ClientEvent, InterfaceEvent, MigrationEvent, PathEvent, PathInfo};

use super::events::{DownloadEvent, Summary};

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
            DownloadEvent::Connection(ClientEvent::Interface(event)) => interface(event, f),
            DownloadEvent::Connection(ClientEvent::Path(event)) => path(event, f),
            DownloadEvent::Connection(ClientEvent::Migration(event)) => migration(event, f),
            DownloadEvent::Reconnected { offset, remote } => {
                write!(f, "download goes on at byte {offset} from {remote}")
            }
            DownloadEvent::FirstByteAfterMove { remote, parts } => {
                write!(f, "download resumed from {remote} after {:.3} s", parts.gap)
            }
            DownloadEvent::Retry {
                reason,
                wait,
                attempt,
            } => write!(f, "attempt {attempt} in {wait:.0} s, since {reason}"),
            DownloadEvent::LeftAlone { path, reason } => {
                write!(f, "{path} is left alone: {reason}")
            }
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

fn interface(event: &InterfaceEvent, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match event {
        InterfaceEvent::Up { interface, local } => write!(f, "{interface} ({local}) is up"),
        InterfaceEvent::Down { interface, local } => write!(f, "{interface} ({local}) is down"),
        InterfaceEvent::LeftOut { interface, reason } => {
            write!(f, "interface {interface} is left out: {reason}")
        }
    }
}

fn path(event: &PathEvent, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (PathEvent::Opened(path) | PathEvent::Validated(path) | PathEvent::Closed(path)) = event;
    let PathInfo {
        id,
        interface,
        local,
        remote,
        received,
        ..
    } = path;
    write!(f, "path {id}: {interface} ({local}) to {remote}: ")?;
    match event {
        PathEvent::Opened(_) => write!(f, "opened"),
        PathEvent::Validated(_) => write!(f, "validated"),
        PathEvent::Closed(_) => write!(f, "closed, {received} bytes received"),
    }
}

fn migration(event: &MigrationEvent, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match event {
        MigrationEvent::Announced { targets, lead, .. } => {
            let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
            let (targets, lead) = (targets.join(" or "), lead.as_secs_f64());
            write!(f, "server will move to {targets} in {lead:.1} s")
        }
        MigrationEvent::Addresses { pool, name } => {
            let pool = pool.iter().map(ToString::to_string);
            let places: Vec<_> = pool.chain(name.clone()).collect();
            write!(f, "server may also be found at {}", places.join(" or "))
        }
        MigrationEvent::Refused { .. } => {
            write!(
                f,
                "server named an address that it may not send us to, refused"
            )
        }
        MigrationEvent::Parked { .. } => write!(f, "server parked, searching"),
        MigrationEvent::Silent => write!(f, "server silent, searching"),
        MigrationEvent::Detected { remote, by } => write!(f, "server found at {remote} by {by}"),
        MigrationEvent::Moved { remote, .. } => write!(f, "connection goes on at {remote}"),
        MigrationEvent::Settled { remote } => {
            write!(f, "server settled at {remote}, old paths closed")
        }
        MigrationEvent::Dead { path } => write!(f, "path {path} is silent, and closed"),
        MigrationEvent::Cancelled { .. } => write!(f, "server stays where it is"),
        MigrationEvent::Failed => write!(f, "server lost: it did not come back from its move"),
        MigrationEvent::Idle => write!(f, "server lost: nothing came for too long"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_loss_ends_with_the_byte_it_goes_on_at() {
        let lost = DownloadEvent::Reconnected {
            offset: 7,
            remote: "10.1.0.3:443".parse().unwrap(),
        };
        assert_eq!(
            lost.to_string(),
            "download goes on at byte 7 from 10.1.0.3:443"
        );
    }

    #[test]
    fn people_read_every_target() {
        let event = ClientEvent::from(MigrationEvent::Announced {
            sequence: 1,
            targets: vec![
                "10.1.0.3:443".parse().unwrap(),
                "[fd00::3]:443".parse().unwrap(),
            ],
            lead: Duration::from_secs(2),
            outage: Duration::ZERO,
        });
        assert_eq!(
            DownloadEvent::from(event).to_string(),
            "server will move to 10.1.0.3:443 or [fd00::3]:443 in 2.0 s"
        );
    }
}
