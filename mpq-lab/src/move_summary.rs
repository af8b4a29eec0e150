//! What a download with a move has shown, and whether that is what was promised.

use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mpq_core::client::{ClientEvent, MigrationEvent};

use crate::arms::mpq_get::{DownloadEvent, Entry, Summary};

/// When the server stopped and ran again; unix times in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    /// It was frozen.
    pub frozen: f64,
    /// It ran again.
    pub thawed: f64,
}

/// A download during which the server moved.
#[derive(Debug)]
pub struct MoveSummary {
    done: Summary,
    expected: String,
    target: SocketAddr,
    outage: Option<Outage>,
    parked: f64,
    first_byte: f64,
    start: f64,
}

impl MoveSummary {
    /// Reads the events of a download that went on at `target`; `expected` is the digest of the
    /// content at the server.
    ///
    /// # Errors
    /// If an event is missing: the download is not complete, or the server has not moved.
    pub fn new(
        entries: &[Entry],
        expected: String,
        target: SocketAddr,
        outage: Option<Outage>,
    ) -> Result<MoveSummary> {
        let find = |what: &str, wanted: &dyn Fn(&DownloadEvent) -> bool| {
            entries
                .iter()
                .find(|entry| wanted(&entry.event))
                .with_context(|| format!("the client has not seen {what}"))
        };
        let DownloadEvent::Done(done) =
            &find("the end", &|event| matches!(event, DownloadEvent::Done(_)))?.event
        else {
            unreachable!("just matched")
        };
        let DownloadEvent::Connected { unix, .. } = find("a connection", &|event| {
            matches!(event, DownloadEvent::Connected { .. })
        })?
        .event
        else {
            unreachable!("just matched")
        };
        let parked = find("the server park", &|event| {
            matches!(
                event,
                DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Parked { .. }))
            )
        })?;
        let first_byte = find(
            "a byte from the new address",
            &|event| matches!(event, DownloadEvent::FirstByteAfterMove { remote, .. } if *remote == target),
        )?;
        Ok(MoveSummary {
            done: done.clone(),
            expected,
            target,
            outage,
            parked: parked.t,
            first_byte: first_byte.t,
            start: unix,
        })
    }

    /// Whether the content is right, on one connection, with nothing asked for twice.
    ///
    /// # Errors
    /// What is not so.
    pub fn verify(&self) -> Result<()> {
        let Summary {
            sha256,
            handshakes,
            requests,
            ..
        } = &self.done;
        let expected = &self.expected;
        ensure!(
            sha256 == expected,
            "the content is {sha256}, not {expected}"
        );
        ensure!(*handshakes == 1, "{handshakes} handshakes were made");
        ensure!(*requests == 1, "{requests} requests were sent");
        ensure!(self.bytes(true) > 0, "no path to the new address was used");
        Ok(())
    }

    /// Bytes received from the new address, or from all others.
    fn bytes(&self, after: bool) -> u64 {
        let paths = self.done.paths.iter();
        let side = paths.filter(|path| (path.remote == self.target) == after);
        side.map(|path| path.received).sum()
    }
}

impl fmt::Display for MoveSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MoveSummary { done, expected, .. } = self;
        let equal = if done.sha256 == *expected {
            "equal"
        } else {
            "DIFFERENT"
        };
        let rate = done.bytes as f64 * 8e-6 / done.seconds;
        writeln!(f, "bytes        {}", done.bytes)?;
        writeln!(f, "SHA-256      {} at the server", expected)?;
        writeln!(f, "             {} at the client: {equal}", done.sha256)?;
        writeln!(f, "handshakes   {}", done.handshakes)?;
        writeln!(f, "requests     {}", done.requests)?;
        writeln!(f, "turnaround   {:.3} s ({rate:.1} Mbit/s)", done.seconds)?;
        if let Some(Outage { frozen, thawed }) = self.outage {
            let first_byte = self.start + self.first_byte;
            writeln!(f, "outage       {:.3} s freeze to thaw", thawed - frozen)?;
            writeln!(
                f,
                "             {:.3} s thaw to first byte",
                first_byte - thawed
            )?;
        }
        let silence = self.first_byte - self.parked;
        writeln!(
            f,
            "silence      {silence:.3} s at the client, from the server's last word on"
        )?;
        for (title, after) in [("before", false), ("after", true)] {
            for path in &done.paths {
                if (path.remote == self.target) == after {
                    writeln!(
                        f,
                        "{title:12} {:>11} bytes  {} ({}) to {}",
                        path.received, path.interface, path.local, path.remote
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mpq_core::client::{PathInfo, PathState};
    use serde_json::json;

    use super::*;
    use crate::arms::mpq_get::tests::{connected, read, summary};

    fn target() -> SocketAddr {
        "10.1.0.3:4433".parse().unwrap()
    }

    fn entries(done: Summary) -> Vec<Entry> {
        let first_byte = json!({
            "event": "first_byte_after_move", "remote": target(), "gap": 0.5, "moved_to_first_byte": 0.1,
        });
        [
            (0.1, connected(1000.0)),
            (1.0, read(json!({"event": "parked", "sequence": 1}))),
            (2.5, read(first_byte)),
            (4.0, DownloadEvent::Done(done)),
        ]
        .map(|(t, event)| Entry { t, event })
        .into()
    }

    fn done() -> Summary {
        let path = |id: u32, remote: &str, received| PathInfo {
            id: id.into(),
            interface: "eth0".into(),
            local: "10.0.0.2".parse().unwrap(),
            remote: remote.parse().unwrap(),
            state: PathState::Closed,
            rtt: None,
            received,
            sent: 0,
            lost: 0,
        };
        Summary {
            paths: vec![
                path(0, "10.1.0.2:4433", 400_000),
                path(1, "10.1.0.3:4433", 700_000),
            ],
            ..summary(1_000_000, 4.0)
        }
    }

    fn verdict(change: impl FnOnce(&mut Summary)) -> String {
        let mut done = done();
        change(&mut done);
        match MoveSummary::new(&entries(done), "ab".into(), target(), None)
            .unwrap()
            .verify()
        {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_promise_is_checked() {
        assert_eq!(verdict(|_| ()), "");
        assert!(verdict(|done| done.sha256 = "cd".into()).contains("not ab"));
        assert!(verdict(|done| done.handshakes = 2).contains("2 handshakes"));
        assert!(verdict(|done| done.requests = 2).contains("2 requests"));
        assert!(verdict(|done| done.paths.truncate(1)).contains("new address"));
    }

    #[test]
    fn a_download_without_a_move_has_no_summary() {
        let mut entries = entries(done());
        entries.remove(2);
        let error = MoveSummary::new(&entries, "ab".into(), target(), None).unwrap_err();
        assert!(error.to_string().contains("new address"), "{error}");
    }

    #[test]
    fn times_are_on_one_clock() {
        let outage = Outage {
            frozen: 1001.25,
            thawed: 1002.25,
        };
        let summary =
            MoveSummary::new(&entries(done()), "ab".into(), target(), Some(outage)).unwrap();
        let text = summary.to_string();
        for part in [
            "1.000 s freeze to thaw",
            "0.250 s thaw to first byte",
            "1.500 s at the client",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
