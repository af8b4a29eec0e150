//! Local addresses from which a path has failed: before the next one is opened, a probe must be
//! answered.
//!
//! The id of a path that the server never hears of is lost for good, and there are only so many. So
//! from an address that lost a path to silence, or could not open one, a path is opened only after
//! the server has answered a [probe](super::probe) there. Such probes go to where a path is wanted,
//! once a second at the most, and cost nothing that could run out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Between two probes, at first and in the end.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
const LAST_INTERVAL: Duration = Duration::from_secs(1);

/// The doubtful addresses, and the paths that wait for an answer there.
#[derive(Debug)]
pub(crate) struct OpeningGate {
    /// Whether it may ask at all. If not, paths are opened untried.
    probes: bool,
    doubtful: BTreeSet<IpAddr>,
    waiting: BTreeMap<(IpAddr, SocketAddr), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    probe_at: Instant,
    interval: Duration,
}

impl OpeningGate {
    /// One that is open everywhere, and stays so if it may not probe.
    pub(crate) fn new(probes: bool) -> Self {
        Self {
            probes,
            doubtful: BTreeSet::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// A path from here has failed.
    pub(crate) fn add(&mut self, local: IpAddr) {
        if self.probes {
            self.doubtful.insert(local);
        }
    }

    /// Whether a path that is wanted now has to wait for an answer.
    pub(crate) fn hold(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) -> bool {
        if !self.doubtful.contains(&local) {
            return false;
        }
        self.waiting.entry((local, remote)).or_insert(Waiting {
            probe_at: now,
            interval: FIRST_INTERVAL,
        });
        true
    }

    /// A probe was answered; whether a path was waiting for that.
    pub(crate) fn answered(&mut self, local: IpAddr, remote: SocketAddr) -> bool {
        let waits = self.waiting.remove(&(local, remote)).is_some();
        if waits {
            self.doubtful.remove(&local);
        }
        waits
    }

    /// Ends all doubts; returns what was waiting for an answer. For when no path is left: an id that is
    /// lost matters less than the time until the peer gives the connection up.
    pub(crate) fn clear(&mut self) -> Vec<(IpAddr, SocketAddr)> {
        self.doubtful.clear();
        std::mem::take(&mut self.waiting).into_keys().collect()
    }

    /// Only these paths are wanted still.
    pub(crate) fn retain(&mut self, wanted: impl Fn(IpAddr, SocketAddr) -> bool) {
        self.waiting
            .retain(|(local, remote), _| wanted(*local, *remote));
    }

    /// When the next probe is due, of those that are `wanted` now.
    pub(crate) fn probe_at(&self, wanted: impl Fn(IpAddr, SocketAddr) -> bool) -> Option<Instant> {
        let waiting = self.waiting.iter();
        let wanted = waiting.filter(|((local, remote), _)| wanted(*local, *remote));
        wanted.map(|(_, waiting)| waiting.probe_at).min()
    }

    /// The probes that are due, of those that are `wanted` now: from where, to where.
    pub(crate) fn probes(
        &mut self,
        now: Instant,
        wanted: impl Fn(IpAddr, SocketAddr) -> bool,
    ) -> Vec<(IpAddr, SocketAddr)> {
        let mut probes = Vec::new();
        for ((local, remote), waiting) in &mut self.waiting {
            if waiting.probe_at <= now && wanted(*local, *remote) {
                waiting.probe_at = now + waiting.interval;
                waiting.interval = (waiting.interval * 2).min(LAST_INTERVAL);
                probes.push((*local, *remote));
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

    fn any(_: IpAddr, _: SocketAddr) -> bool {
        true
    }

    #[test]
    fn only_where_a_path_has_failed_an_answer_is_waited_for() {
        let (local, a, b) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(true);
        assert!(!gate.hold(now, local, a));
        gate.add(local);
        assert_eq!(gate.probes(now, any), []);
        assert!(!gate.answered(local, a));
        assert!(gate.hold(now, local, a));
        assert_eq!(gate.probes(now, any), [(local, a)]);
        assert!(!gate.answered(local, b));
        assert!(gate.answered(local, a));
        assert!(!gate.hold(now, local, a));
    }

    #[test]
    fn who_may_not_probe_opens_paths_untried() {
        let (local, a, _) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(false);
        gate.add(local);
        assert!(!gate.hold(now, local, a));
        assert_eq!((gate.probes(now, any), gate.probe_at(any)), (vec![], None));
    }

    #[test]
    fn probes_come_no_more_than_once_a_second_in_the_end() {
        let (local, a, _) = places();
        let start = Instant::now();
        let mut gate = OpeningGate::new(true);
        gate.add(local);
        gate.hold(start, local, a);
        let mut probes = 0;
        for step in 0..1000 {
            let now = start + Duration::from_millis(10) * step;
            // To want it again hurries nothing.
            gate.hold(now, local, a);
            probes += gate.probes(now, any).len();
        }
        // At 0, 0.1, 0.3, 0.7 and 1.5 s, and then each second.
        assert_eq!(probes, 13);
    }

    #[test]
    fn probes_go_only_to_where_a_path_is_wanted_now() {
        let (local, a, b) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(true);
        gate.add(local);
        assert!(gate.hold(now, local, a) && gate.hold(now, local, b));
        let to = |wanted| move |_: IpAddr, remote: SocketAddr| remote == wanted;
        assert_eq!(gate.probes(now, to(b)), [(local, b)]);
        assert_eq!(gate.probe_at(to(b)), Some(now + FIRST_INTERVAL));
        assert_eq!(gate.probe_at(to(a)), Some(now));
        gate.retain(to(b));
        assert_eq!(gate.probes(now, to(a)), []);
        assert_eq!(gate.probe_at(to(a)), None);
    }

    #[test]
    fn all_doubts_end_at_once() {
        let (local, a, _) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(true);
        gate.add(local);
        gate.hold(now, local, a);
        assert_eq!(gate.clear(), [(local, a)]);
        assert_eq!(gate.clear(), []);
        assert!(!gate.hold(now, local, a));
    }
}
