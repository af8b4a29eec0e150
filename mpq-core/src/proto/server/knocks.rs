//! When a server that has moved knocks at whom: rounds that come ever less often, at a few clients at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between the first round and the second; doubled each time.
const FIRST_INTERVAL: Duration = Duration::from_millis(50);
/// They are no closer than so long for each client that is knocked at: each has time to answer.
const EACH_CLIENT: Duration = Duration::from_millis(1);
/// How many clients are knocked at together, and the time until the next are, so that not all come at the same
/// moment. Each answers with a datagram of full size on every path, which at this pace makes about 20 Mbit/s
/// a path.
const TOGETHER: usize = 16;
const PACE: Duration = Duration::from_millis(8);

/// The knocks after one move.
#[derive(Debug)]
pub(super) struct Knocks {
    round_at: Instant,
    interval: Duration,
    /// Whose turn in this round is yet to come, and when the next is.
    waiting: VecDeque<u64>,
    next_at: Instant,
}

impl Knocks {
    /// The first round is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            round_at: now,
            interval: FIRST_INTERVAL,
            waiting: VecDeque::new(),
            next_at: now,
        }
    }

    /// Who is to be knocked at now, of those that are missing still.
    pub(super) fn due(&mut self, now: Instant, missing: impl Iterator<Item = u64>) -> Vec<u64> {
        if now < self.next_timeout() {
            return Vec::new();
        }
        let missing: Vec<_> = missing.collect();
        self.waiting
            .retain(|client| missing.binary_search(client).is_ok());
        if self.waiting.is_empty() && now >= self.round_at {
            self.round_at = now + self.interval.max(EACH_CLIENT * missing.len() as u32);
            self.interval *= 2;
            self.waiting = missing.into();
        }
        self.next_at = now + PACE;
        self.waiting
            .drain(..TOGETHER.min(self.waiting.len()))
            .collect()
    }

    /// When somebody may be due.
    pub(super) fn next_timeout(&self) -> Instant {
        match self.waiting.is_empty() {
            true => self.round_at,
            false => self.next_at,
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    /// When how many were knocked at, milliseconds, if nobody answers.
    fn knocks(clients: u64, until: Duration) -> Vec<(u128, usize)> {
        let start = Instant::now();
        let mut knocks = Knocks::new(start);
        let mut all = Vec::new();
        while knocks.next_timeout() <= start + until {
            let now = knocks.next_timeout();
            let some = knocks.due(now, 0..clients);
            assert!(knocks.next_timeout() > now);
            all.push(((now - start).as_millis(), some.len()));
        }
        all
    }

    #[test]
    fn rounds_come_ever_less_often() {
        let one = |at| (at, 1);
        let expected = [0, 50, 150, 350, 750, 1_550, 3_150].map(one);
        assert_eq!(knocks(1, Duration::from_secs(5)), expected);
    }

    #[test]
    fn many_clients_are_knocked_at_one_after_the_other_and_have_time_to_answer() {
        let many = knocks(200, Duration::from_millis(199));
        let at: Vec<_> = many.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, (0..13).map(|i| 8 * i).collect::<Vec<_>>());
        assert!(many[..12].iter().all(|(_, some)| *some == TOGETHER));
        assert_eq!(many.last(), Some(&(96, 200 - 12 * TOGETHER)));
        let next = knocks(200, Duration::from_millis(200));
        assert_eq!(next.last(), Some(&(200, TOGETHER)));
    }

    #[test]
    fn who_has_arrived_is_not_knocked_at() {
        let start = Instant::now();
        let mut knocks = Knocks::new(start);
        assert_eq!(knocks.due(start, 0..20), (0..16).collect::<Vec<_>>());
        assert!(knocks.due(start, 0..20).is_empty());
        let next = knocks.next_timeout();
        assert_eq!(knocks.due(next, [3, 17].into_iter()), [17]);
        assert_eq!(knocks.next_timeout(), start + FIRST_INTERVAL);
        assert_eq!(knocks.due(start + FIRST_INTERVAL, [3].into_iter()), [3]);
    }

    #[test]
    fn a_round_begins_neither_early_nor_before_the_last_one_was_gone_through() {
        let start = Instant::now();
        let first: Vec<_> = (0..16).collect();
        let mut early = Knocks::new(start);
        assert_eq!(early.due(start, 0..20), first);
        // All whose turn was to come have arrived.
        assert!(early.due(start + PACE, [3].into_iter()).is_empty());

        let mut late = Knocks::new(start);
        assert_eq!(late.due(start, 0..20), first);
        let now = start + 2 * FIRST_INTERVAL;
        assert_eq!(late.due(now, 0..20), (16..20).collect::<Vec<_>>());
        assert_eq!(late.due(now, 0..20), first);
    }
}
