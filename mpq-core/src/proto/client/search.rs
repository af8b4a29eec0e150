//! The search for the server: when it is probed, how often, and whose answer is followed up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Probes of one move, all addresses together.
pub(super) const MAX_PROBES: u32 = 4_000;
/// Between two rounds of probes: while the server still delivers.
const SLOW_PROBES: Duration = Duration::from_secs(1);
/// The same, once it is silent, at first at the least, and in the end.
const FIRST_PROBES: Duration = Duration::from_millis(20);
const LAST_PROBES: Duration = Duration::from_millis(250);
/// The part of a time between two rounds by which it may be longer or shorter, both together.
const JITTER: f64 = 0.5;
/// How often answers of probes are followed up in one move, since each time may cost path ids that a
/// frozen server cannot grant again.
const MAX_ATTEMPTS: u32 = 3;
/// How long whoever turned out not to be the server is passed over for others that may answer.
const OTHERS_FIRST: Duration = Duration::from_secs(1);

/// The search in one move.
#[derive(Debug)]
pub(super) struct Search {
    probe_at: Instant,
    interval: Duration,
    probes_left: u32,
    pub(super) attempts_left: u32,
    /// Who answered and was not the server; until then, others are preferred.
    failed: Vec<SocketAddr>,
    others_until: Instant,
    /// Somebody answers there, and is gone to at this time.
    pub(super) held: Option<(Instant, SocketAddr)>,
}

impl Search {
    /// One that has not begun.
    pub(super) fn new(now: Instant, rtt: Duration) -> Self {
        Self {
            probe_at: now + slow_interval(rtt),
            interval: slow_interval(rtt),
            probes_left: MAX_PROBES,
            attempts_left: MAX_ATTEMPTS,
            failed: Vec::new(),
            others_until: now,
            held: None,
        }
    }

    /// The server is silent: from now on there is haste.
    pub(super) fn begin(&mut self, now: Instant, rtt: Duration, jitter: f64) {
        self.interval = rtt.max(FIRST_PROBES);
        self.probe_at = now + self.interval.mul_f64(jitter);
    }

    /// The server speaks after all, where it was.
    pub(super) fn pause(&mut self, now: Instant, rtt: Duration) {
        self.interval = slow_interval(rtt);
        self.probe_at = now + self.interval;
        self.held = None;
    }

    /// When the next round of so many probes is due, if some are to be kept; never once those of this
    /// move are used up.
    pub(super) fn probe_at(&self, round: u32, kept: u32) -> Option<Instant> {
        (self.probes_left >= kept + round).then_some(self.probe_at)
    }

    /// A round of so many probes is sent.
    pub(super) fn probed(&mut self, now: Instant, round: u32, jitter: f64) {
        self.probes_left -= round;
        self.probe_at = now + self.interval.mul_f64(jitter);
    }

    /// The rounds come less often, the longer the search takes.
    pub(super) fn slow_down(&mut self, rtt: Duration) {
        let slowest = LAST_PROBES.max(rtt);
        self.interval = (self.interval * 5 / 4).min(slowest);
    }

    /// Whether so many probes are left.
    pub(super) fn can_probe(&self, probes: u32) -> bool {
        self.probes_left >= probes
    }

    /// So many probes are sent out of turn.
    pub(super) fn probed_beside(&mut self, probes: u32) {
        self.probes_left -= probes;
    }

    /// Whoever answers at `target` is not the server, or does not become a path.
    pub(super) fn failed(&mut self, now: Instant, target: SocketAddr) {
        self.probe_at = now;
        if now >= self.others_until {
            self.failed.clear();
        }
        self.failed.push(target);
        self.others_until = now + OTHERS_FIRST;
    }

    /// Whether the answer of a probe from `remote` has to wait for those of others.
    pub(super) fn prefers_others(&self, now: Instant, remote: SocketAddr) -> bool {
        now < self.others_until && self.failed.contains(&remote)
    }
}

fn slow_interval(rtt: Duration) -> Duration {
    SLOW_PROBES.max(rtt * 4)
}

/// By what a time between probes is multiplied.
pub(super) fn jitter(rng: &mut fastrand::Rng) -> f64 {
    1.0 + (rng.f64() - 0.5) * JITTER
}
