//! Local addresses from which a path has failed: before the next one is opened, a probe must be
//! answered.
//!
//! The id of a path that the server never hears of is lost for good, and there are only so many. So
//! from an address that lost a path to silence, or could not open one, a path is opened only after
//! the server has answered a [probe](super::probe) there. Such probes go to where a path is wanted,
//! once a second at the most, and cost nothing that could run out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Between two probes, at first and in the end.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);
const LAST_INTERVAL: Duration = Duration::from_secs(1);

/// The doubtful addresses, with what is to be opened from them.
#[derive(Debug, Default)]
pub(crate) struct ReopenGate(BTreeMap<IpAddr, Option<Opening>>);

#[derive(Debug)]
struct Opening {
    remote: SocketAddr,
    probe_at: Instant,
    interval: Duration,
}

impl ReopenGate {
    /// A path from here has failed.
    pub(crate) fn add(&mut self, local: IpAddr) {
        self.0.entry(local).or_default();
    }

    /// Whether a path that is wanted now has to wait for an answer.
    pub(crate) fn hold(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) -> bool {
        let Some(opening) = self.0.get_mut(&local) else {
            return false;
        };
        if opening.as_ref().is_none_or(|o| o.remote != remote) {
            *opening = Some(Opening {
                remote,
                probe_at: now,
                interval: FIRST_INTERVAL,
            });
        }
        true
    }

    /// A probe was answered; whether a path was waiting for that.
    pub(crate) fn answered(&mut self, local: IpAddr, remote: SocketAddr) -> bool {
        let waiting = |opening: &Option<Opening>| opening.as_ref().map(|o| o.remote);
        let waits = self.0.get(&local).and_then(waiting) == Some(remote);
        if waits {
            self.0.remove(&local);
        }
        waits
    }

    /// Ends all doubts; returns what was waiting for an answer. For when no path is left: an id that is
    /// lost matters less than the time until the peer gives the connection up.
    pub(crate) fn clear(&mut self) -> Vec<(IpAddr, SocketAddr)> {
        let all = std::mem::take(&mut self.0).into_iter();
        all.filter_map(|(local, opening)| Some((local, opening?.remote)))
            .collect()
    }

    /// No path to there is wanted any more.
    pub(crate) fn forget(&mut self, remote: SocketAddr) {
        for opening in self.0.values_mut() {
            opening.take_if(|o| o.remote == remote);
        }
    }

    /// The probes that are due: from where, to where.
    pub(crate) fn probes(&mut self, now: Instant) -> Vec<(IpAddr, SocketAddr)> {
        let mut probes = Vec::new();
        for (local, opening) in &mut self.0 {
            if let Some(opening) = opening
                && opening.probe_at <= now
            {
                opening.probe_at = now + opening.interval;
                opening.interval = (opening.interval * 2).min(LAST_INTERVAL);
                probes.push((*local, opening.remote));
            }
        }
        probes
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    fn places() -> (IpAddr, SocketAddr, SocketAddr) {
        let remote = |text: &str| text.parse().unwrap();
        (
            "10.0.1.2".parse().unwrap(),
            remote("10.1.0.2:1"),
            remote("10.1.0.3:1"),
        )
    }

    #[test]
    fn only_where_a_path_has_failed_an_answer_is_waited_for() {
        let (local, a, b) = places();
        let now = Instant::now();
        let mut doubts = ReopenGate::default();
        assert!(!doubts.hold(now, local, a));
        doubts.add(local);
        assert_eq!(doubts.probes(now), []);
        assert!(!doubts.answered(local, a));
        assert!(doubts.hold(now, local, a));
        assert_eq!(doubts.probes(now), [(local, a)]);
        assert!(!doubts.answered(local, b));
        assert!(doubts.answered(local, a));
        assert!(!doubts.hold(now, local, a));
    }

    #[test]
    fn probes_go_to_the_newest_wish_and_no_more_than_once_a_second() {
        let (local, a, b) = places();
        let start = Instant::now();
        let mut doubts = ReopenGate::default();
        doubts.add(local);
        doubts.hold(start, local, a);
        let mut probes = 0;
        for step in 0..1000 {
            let now = start + Duration::from_millis(10) * step;
            // To want it again hurries nothing.
            doubts.hold(now, local, a);
            probes += doubts.probes(now).len();
        }
        assert!((10..=12).contains(&probes), "{probes}");
        let now = start + Duration::from_secs(10);
        doubts.hold(now, local, b);
        assert_eq!(doubts.probes(now), [(local, b)]);
        doubts.forget(a);
        assert_eq!(doubts.probes(now + LAST_INTERVAL), [(local, b)]);
        doubts.forget(b);
        assert_eq!(doubts.probes(now + 9 * LAST_INTERVAL), []);
        assert!(doubts.hold(now, local, b));
        assert_eq!(doubts.clear(), [(local, b)]);
        assert_eq!(doubts.clear(), []);
        assert!(!doubts.hold(now, local, b));
    }
}
