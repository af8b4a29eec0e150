//! What only the strategies of the literature do, which are there for comparison.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// `proactive`: until the announcement is acknowledged, and READY on its way.
pub(super) const LEAVING: Duration = Duration::from_millis(50);
/// `paper`: how long the detection path may take until it is opened anew, at first (doubled each
/// time), and how often it is; the last one stays, for the path ids come to an end.
const FIRST_ROUND: Duration = Duration::from_secs(1);
const MAX_ROUNDS: u32 = 4;

/// `paper`: the path that is opened over and over until it succeeds.
#[derive(Debug, Default)]
pub(super) struct Detection {
    /// From where; once the server is silent, from everywhere.
    pub(super) local: Option<IpAddr>,
    round: u32,
    /// When the next round begins.
    next: Option<Instant>,
}

impl Detection {
    /// From an address whose path was ended for it.
    pub(super) fn from(now: Instant, local: IpAddr) -> Self {
        Self {
            local: Some(local),
            round: 0,
            next: Some(now + FIRST_ROUND),
        }
    }

    /// Begins, if it has not yet: the server is silent.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next.get_or_insert(now + FIRST_ROUND);
    }

    /// When the path is opened anew.
    pub(super) fn round_at(&self) -> Option<Instant> {
        self.next
    }

    /// The path is opened anew now.
    pub(super) fn next_round(&mut self, now: Instant) {
        self.round += 1;
        let more = self.round < MAX_ROUNDS;
        self.next = more.then(|| now + FIRST_ROUND * (1 << self.round));
    }

    /// Which of the targets it is for in this round.
    pub(super) fn target(&self, targets: &[SocketAddr]) -> Option<SocketAddr> {
        let turn = self.round as usize % targets.len().max(1);
        targets.get(turn).copied()
    }
}

/// The targets that are gone to before anybody has answered there, one after the other.
#[derive(Debug, Default)]
pub(super) struct Turns(usize);

impl Turns {
    /// The next of them.
    pub(super) fn next(&mut self, targets: &[SocketAddr]) -> Option<SocketAddr> {
        let target = targets.get(self.0 % targets.len().max(1)).copied();
        self.0 += 1;
        target
    }
}
