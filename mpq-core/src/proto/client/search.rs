//! The search for the server: when it is probed, how often, and whose answer is followed up.
//!
//! How much is sent in all is another matter: see [`probe_budget`](super::probe_budget).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Between two rounds of probes: while the server still delivers, at the least.
const SLOW_PROBES: Duration = Duration::from_secs(1);
/// The same, once it is silent: at the least, and at the most.
const FIRST_PROBES: Duration = Duration::from_millis(20);
const LAST_PROBES: Duration = Duration::from_secs(2);
/// In between it is this part of the time since the silence began, or until or since the server was
/// expected back, whichever is less; and before, of the time until or since it was expected to park. So it
/// grows by the same part from one round to the next.
const PART: u32 = 16;
/// The part of a time between two rounds by which it may be longer or shorter, both together.
const JITTER: f64 = 0.5;
/// How often answers of probes are followed up in one move, since each time may cost path ids that a
/// frozen server cannot grant again.
const MAX_ATTEMPTS: u32 = 3;
/// How long whoever turned out not to be the server is passed over for others that may answer.
const OTHERS_FIRST: Duration = Duration::from_secs(1);
/// A server that is silent for so long beyond what it expected has gone on to somewhere else, maybe.
const OVERDUE: Duration = Duration::from_secs(15);
/// How long the server's knock is waited for after that, and after the time at which it is expected back.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// The search in one move.
#[derive(Debug)]
pub(super) struct Search {
    probe_at: Instant,
    /// When it is expected to park.
    park: Option<Instant>,
    /// Since when the server is silent.
    since: Option<Instant>,
    /// When it is expected back, and how long it expects to be away.
    back: Option<Instant>,
    outage: Duration,
    pub(super) attempts_left: u32,
    /// Who answered and was not the server; until then, others are preferred.
    failed: Vec<SocketAddr>,
    others_until: Instant,
    /// Who has answered a probe, the last one first, and how often that led nowhere.
    answered: Vec<SocketAddr>,
    failures: u32,
    /// Somebody answers there, and is gone to at this time.
    pub(super) held: Option<(Instant, SocketAddr)>,
}

impl Search {
    /// One that has not begun.
    pub(super) fn new(now: Instant, rtt: Duration, jitter: f64) -> Self {
        Self {
            probe_at: now + slow_interval(rtt).mul_f64(jitter),
            park: None,
            since: None,
            back: None,
            outage: Duration::ZERO,
            attempts_left: MAX_ATTEMPTS,
            failed: Vec::new(),
            others_until: now,
            answered: Vec::new(),
            failures: 0,
            held: None,
        }
    }

    /// The server expects to park after `lead`, and to be away for `outage`; zero says that it does not
    /// know.
    pub(super) fn expect(&mut self, now: Instant, lead: Duration, outage: Duration) {
        self.outage = outage;
        self.park = now.checked_add(lead);
        self.back = self.park.and_then(|park| back(park, outage));
    }

    /// The server is silent: from now on there is haste. It may have said so.
    pub(super) fn begin(&mut self, now: Instant, parked: bool, rtt: Duration, jitter: f64) {
        self.since = Some(now);
        if parked {
            self.back = back(now, self.outage);
        }
        self.probe_at = now + self.interval(now, rtt).mul_f64(jitter);
    }

    /// Whether the server is silent for longer than it was expected to be, by far.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        let expected = self.since.max(self.back);
        self.since.is_some() && expected.is_some_and(|expected| now >= expected + OVERDUE)
    }

    /// The server speaks after all, where it was.
    pub(super) fn pause(&mut self, now: Instant, rtt: Duration, jitter: f64) {
        self.since = None;
        self.probe_at = now + self.interval(now, rtt).mul_f64(jitter);
        self.held = None;
    }

    /// When the next round is due.
    pub(super) fn probe_at(&self) -> Instant {
        self.probe_at
    }

    /// A round is sent.
    pub(super) fn probed(&mut self, now: Instant, rtt: Duration, jitter: f64) {
        self.probe_at = now + self.interval(now, rtt).mul_f64(jitter);
    }

    fn interval(&self, now: Instant, rtt: Duration) -> Duration {
        let part = |time: Instant| (now.max(time) - now.min(time)) / PART;
        let Some(since) = self.since else {
            let interval = self.park.map(part).unwrap_or_default();
            return interval.max(slow_interval(rtt));
        };
        let interval = self
            .back
            .map_or(part(since), |back| part(back).min(part(since)));
        interval.clamp(FIRST_PROBES, LAST_PROBES).max(rtt)
    }

    /// Whoever answers at `target` is not the server, or does not become a path.
    pub(super) fn failed(&mut self, now: Instant, target: SocketAddr) {
        self.probe_at = now;
        if now >= self.others_until {
            self.failed.clear();
        }
        self.failed.push(target);
        self.others_until = now + OTHERS_FIRST;
        self.failures += u32::from(self.answered.contains(&target));
    }

    /// A probe was answered there.
    pub(super) fn answered(&mut self, remote: SocketAddr) {
        self.answered.retain(|a| *a != remote);
        self.answered.insert(0, remote);
    }

    /// Who has answered probes, the last one first.
    pub(super) fn who_answered(&self) -> &[SocketAddr] {
        &self.answered
    }

    /// When the connection is given up if nothing more comes: somebody is where the server wanted to be, who does
    /// not know it.
    pub(super) fn give_up_at(&self, now: Instant) -> Option<Instant> {
        let expected = self.back.map_or(now, |back| back.max(now));
        (self.failures >= MAX_ATTEMPTS).then(|| expected + LAST_WAIT)
    }

    /// Whether the answer of a probe from `remote` has to wait for those of others.
    pub(super) fn prefers_others(&self, now: Instant, remote: SocketAddr) -> bool {
        now < self.others_until && self.failed.contains(&remote)
    }
}

/// When a server that parks then is back, if it knows how long it will be away.
fn back(parked: Instant, outage: Duration) -> Option<Instant> {
    let known = Some(outage).filter(|outage| !outage.is_zero());
    known.and_then(|outage| parked.checked_add(outage))
}

fn slow_interval(rtt: Duration) -> Duration {
    SLOW_PROBES.max(rtt * 4)
}

/// By what a time between probes is multiplied.
pub(super) fn jitter(rng: &mut fastrand::Rng) -> f64 {
    1.0 + (rng.f64() - 0.5) * JITTER
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const RTT: Duration = Duration::from_millis(40);
    const LONGEST: f64 = 1.0 + JITTER / 2.0;

    /// When rounds are sent, counted from when the server parked.
    fn rounds(outage: Duration, until: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let mut search = Search::new(start, RTT, 1.0);
        search.expect(start, 5 * SECOND, outage);
        search.begin(start, true, RTT, 1.0);
        let mut rounds = Vec::new();
        while search.probe_at() - start < until {
            let now = search.probe_at();
            rounds.push(now - start);
            assert!(rounds.len() <= 1_000, "it has no end");
            search.probed(now, RTT, LONGEST);
        }
        rounds
    }

    #[test]
    fn the_longer_the_server_is_away_the_less_often_it_is_probed() {
        let rounds = rounds(Duration::ZERO, 300 * SECOND);
        let gaps: Vec<_> = rounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted(), "{gaps:?}");
        assert!(rounds[0] <= RTT.mul_f64(LONGEST));
        // The last ones are those from 32 s on.
        let longest = LAST_PROBES.mul_f64(LONGEST);
        assert_eq!(gaps.last(), Some(&longest));
        assert!(rounds.len() < 200, "{}", rounds.len());
        // Whenever it comes back without a word, it is found soon, by what it took until then.
        for pair in rounds.windows(2) {
            let most = pair[0].max(RTT * PART).mul_f64(LONGEST * 1.001) / PART;
            assert!(pair[1] - pair[0] <= most, "{pair:?}");
        }
    }

    #[test]
    fn a_server_that_comes_back_when_it_said_is_found_within_two_round_trips() {
        for outage in [1, 5, 20, 120, 290] {
            let outage = SECOND * outage;
            let rounds = rounds(outage, 300 * SECOND + SECOND);
            assert!(rounds.len() < 300, "{}", rounds.len());
            // As long as it is late or early by less than 16 round trips.
            for late in -10..=10 {
                let back = (outage.as_secs_f64() + RTT.as_secs_f64() * f64::from(late)).max(0.0);
                let back = Duration::from_secs_f64(back);
                let heard = rounds
                    .iter()
                    .map(|sent| *sent + RTT / 2)
                    .find(|at| *at >= back);
                let answered = heard.unwrap() + RTT / 2;
                assert!(
                    answered - back <= 2 * RTT,
                    "{outage:?}, {late} round trips late"
                );
            }
        }
    }

    #[test]
    fn a_long_time_before_the_server_parks_it_is_hardly_probed() {
        let day = 24 * 3_600 * SECOND;
        let start = Instant::now();
        let mut search = Search::new(start, RTT, 1.0);
        search.expect(start, day, Duration::ZERO);
        let (mut rounds, mut gap) = (0, Duration::ZERO);
        while search.probe_at() - start < day {
            let now = search.probe_at();
            search.probed(now, RTT, LONGEST);
            gap = search.probe_at() - now;
            rounds += 1;
            assert!(rounds <= 1_000, "it has no end");
        }
        assert!((100..200).contains(&rounds), "{rounds}");
        assert!(gap <= SLOW_PROBES.mul_f64(LONGEST), "{gap:?}");
    }

    #[test]
    fn who_was_not_the_server_is_passed_over_for_a_second() {
        let start = Instant::now();
        let [a, b, c] = [1, 2, 3].map(|host| ([10, 1, 0, host], 443).into());
        let mut search = Search::new(start, RTT, 1.0);
        assert!(!search.prefers_others(start, a));
        search.failed(start, a);
        let later = start + OTHERS_FIRST / 2;
        search.failed(later, b);
        let end = later + OTHERS_FIRST;
        for target in [a, b] {
            assert!(search.prefers_others(end - Duration::from_nanos(1), target));
            assert!(!search.prefers_others(end, target));
        }
        search.failed(end, c);
        assert!(search.prefers_others(end, c) && !search.prefers_others(end, a));
    }

    #[test]
    fn an_outage_that_cannot_be_is_none_that_is_known() {
        let now = Instant::now();
        let mut search = Search::new(now, RTT, 1.0);
        search.expect(now, Duration::MAX, Duration::MAX);
        search.begin(now, true, RTT, 1.0);
        assert_eq!(search.back, None);
    }
}
