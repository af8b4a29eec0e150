//! What the events of one `mpq-get` tell of a run.

use anyhow::{Context, Result, bail, ensure};
use mpq_core::client::{ClientEvent, MigrationEvent};

use crate::arms::mpq_get::{DownloadEvent, Entry, Summary};
use crate::experiment::record::{Mark, What};

/// When the client was started, as unix time.
pub(super) fn started_at(entries: &[Entry]) -> Result<f64> {
    let found = entries.iter().find_map(|entry| match entry.event {
        DownloadEvent::Connected { unix, .. } => Some(unix),
        _ => None,
    });
    found.context("the client has not connected")
}

/// The figures of a client that has everything.
pub(super) fn done(entries: &[Entry]) -> Result<&Summary> {
    match entries.last().map(|entry| &entry.event) {
        Some(DownloadEvent::Done(done)) => Ok(done),
        other => bail!("the client's last event is {other:?}"),
    }
}

/// What a client saw, at unix times.
pub(super) fn marks(entries: &[Entry]) -> Vec<Mark> {
    // One that never connected saw nothing.
    let Ok(start) = started_at(entries) else {
        return Vec::new();
    };
    let seen = entries.iter().filter_map(|entry| {
        let what = match entry.event {
            DownloadEvent::Connected { .. } => What::Connected,
            DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Announced {
                ..
            })) => What::Announced,
            DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Parked {
                ..
            })) => What::Parked,
            DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Silent)) => {
                What::Silent
            }
            DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Detected {
                ..
            })) => What::Detected,
            DownloadEvent::Reconnected { .. }
            | DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Moved { .. })) => {
                What::Resumed
            }
            DownloadEvent::FirstByteAfterMove { .. } => What::FirstByte,
            DownloadEvent::Error { .. } => What::Lost,
            _ => return None,
        };
        Some(Mark::new(start + entry.t, what))
    });
    seen.collect()
}

/// Body bytes that a client received.
pub(super) fn body(entries: &[Entry]) -> u64 {
    let told = entries.iter().rev().find_map(|entry| match &entry.event {
        DownloadEvent::Progress { bytes, .. } => Some(*bytes),
        DownloadEvent::Done(done) => Some(done.bytes),
        _ => None,
    });
    told.unwrap_or(0)
}

/// Body bits a second after the first second of a download that took longer.
pub(super) fn payload(entries: &[Entry]) -> Option<f64> {
    let (from, early) = entries.iter().find_map(|entry| match entry.event {
        DownloadEvent::Progress { bytes, .. } if entry.t >= 1.0 => Some((entry.t, bytes)),
        _ => None,
    })?;
    let done = done(entries).ok()?;
    Some((done.bytes - early) as f64 * 8.0 / (done.seconds - from))
}

/// The pause that a move makes in the body, in seconds.
pub(super) fn gap(entries: &[Entry]) -> Option<f64> {
    entries.iter().find_map(|entry| match entry.event {
        DownloadEvent::FirstByteAfterMove { parts, .. } => Some(parts.gap),
        _ => None,
    })
}

/// The longest time in which the body did not grow, in seconds: from the first byte on, also from one
/// client to the next.
pub(super) fn standstill<'a>(clients: impl IntoIterator<Item = &'a Vec<Entry>>) -> Option<f64> {
    let mut longest: Option<f64> = None;
    let mut last: Option<f64> = None;
    for entries in clients {
        let start = started_at(entries).ok()?;
        let mut most = 0;
        for entry in entries {
            let bytes = match &entry.event {
                DownloadEvent::Progress { bytes, .. } => *bytes,
                DownloadEvent::Done(done) => done.bytes,
                _ => continue,
            };
            if bytes > most {
                let now = start + entry.t;
                let since = last.map_or(0.0, |last| now - last);
                longest = Some(longest.map_or(since, |longest| longest.max(since)));
                (most, last) = (bytes, Some(now));
            }
        }
    }
    longest
}

/// The first's part of what both received until the first of them was done.
pub(super) fn share(first: &[Entry], second: &[Entry]) -> Result<f64> {
    let end =
        |entries: &[Entry]| Ok::<_, anyhow::Error>(started_at(entries)? + done(entries)?.seconds);
    let until = end(first)?.min(end(second)?);
    let from = started_at(first)?.max(started_at(second)?);
    let received = |entries: &[Entry], until: f64| {
        let start = started_at(entries)?;
        let bytes = entries.iter().rev().find_map(|entry| match &entry.event {
            DownloadEvent::Progress { bytes, .. } if start + entry.t <= until => Some(*bytes),
            _ => None,
        });
        Ok::<_, anyhow::Error>(bytes.unwrap_or(0) as f64)
    };
    let of = |entries| Ok::<_, anyhow::Error>(received(entries, until)? - received(entries, from)?);
    let (first, second) = (of(first)?, of(second)?);
    ensure!(first + second > 0.0, "nothing was received while both ran");
    Ok(first / (first + second))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::arms::mpq_get::tests::{connected, done, read};

    fn entries(unix: f64, events: Vec<(f64, DownloadEvent)>) -> Vec<Entry> {
        let start = (0.1, connected(unix));
        [start]
            .into_iter()
            .chain(events)
            .map(|(t, event)| Entry { t, event })
            .collect()
    }

    fn progress(bytes: u64) -> DownloadEvent {
        read(json!({"event": "progress", "bytes": bytes, "paths": []}))
    }

    #[test]
    fn a_standstill_is_a_time_in_which_the_body_does_not_grow() {
        let first = entries(
            100.0,
            vec![
                (1.0, progress(0)),
                (2.0, progress(10)),
                (2.5, progress(20)),
                (3.0, progress(20)),
                (3.5, progress(30)),
            ],
        );
        assert_eq!(standstill([&first]), Some(1.0));
        let second = entries(104.0, vec![(2.0, progress(40))]);
        assert_eq!(standstill([&first, &second]), Some(2.5));
        assert_eq!(standstill([]), None);
    }

    #[test]
    fn a_share_is_counted_while_both_run() {
        let first = entries(
            100.0,
            vec![
                (1.0, progress(50)),
                (2.0, progress(200)),
                (3.0, progress(350)),
                (3.5, done(350, 3.5)),
            ],
        );
        let second = entries(
            101.0,
            vec![
                (1.0, progress(100)),
                (2.0, progress(200)),
                (9.0, progress(900)),
                (9.5, done(900, 9.5)),
            ],
        );
        // From 101 to 103.5: the first receives 300, the second 200.
        assert_eq!(share(&first, &second).unwrap(), 0.6);
    }
}
