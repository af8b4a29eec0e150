//! Whether a body comes too slowly, for too long, although its server lives.

use std::time::{Duration, Instant};

/// Over how long a rate is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// Between two looks: after a longer time this program did not run, and says nothing of the server.
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// What a body may not fall short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedLimit {
    /// Bytes in a second; none are enough if it is zero.
    pub rate: u64,
    /// For so long it may be slower.
    pub time: Duration,
}

/// Watches the pace of one connection's body.
#[derive(Debug)]
pub(super) struct Pace {
    limit: SpeedLimit,
    /// When it was looked last.
    looked: Option<Instant>,
    /// The beginning of a window, and the bytes then.
    window: Option<(Instant, u64)>,
    slow_since: Option<Instant>,
}

impl Pace {
    pub(super) fn new(limit: SpeedLimit) -> Pace {
        Pace {
            limit,
            looked: None,
            window: None,
            slow_since: None,
        }
    }

    /// What it may not fall short of.
    pub(super) fn limit(&self) -> SpeedLimit {
        self.limit
    }

    /// So many bytes have come until now. Whether it was too slow for too long. While it is `excused`, nothing counts:
    /// the server moves, or the body waits for us.
    pub(super) fn look(&mut self, now: Instant, bytes: u64, excused: bool) -> bool {
        let looked = self.looked.replace(now);
        let absent = looked.is_some_and(|looked| now > looked + LONGEST_LOOK);
        if excused || absent {
            (self.window, self.slow_since) = (None, None);
            return false;
        }
        let (begin, before) = *self.window.get_or_insert((now, bytes));
        let elapsed = now - begin;
        if elapsed < WINDOW {
            return false;
        }
        self.window = Some((now, bytes));
        let came = u128::from(bytes.saturating_sub(before)) * 1_000;
        if came >= u128::from(self.limit.rate) * elapsed.as_millis() {
            self.slow_since = None;
            return false;
        }
        let since = *self.slow_since.get_or_insert(begin);
        now >= since + self.limit.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: SpeedLimit = SpeedLimit {
        rate: 100,
        time: Duration::from_secs(10),
    };
    const TICK: Duration = Duration::from_millis(100);

    /// When it is found too slow, if so many bytes come each second, in seconds.
    fn found(rate: u64, excused: impl Fn(u32) -> bool) -> Option<u32> {
        let start = Instant::now();
        let mut pace = Pace::new(LIMIT);
        (0..600).find_map(|tick| {
            let bytes = rate * u64::from(tick) / 10;
            let slow = pace.look(start + TICK * tick, bytes, excused(tick));
            slow.then_some(tick / 10)
        })
    }

    #[test]
    fn a_body_that_stalls_or_trickles_is_found() {
        assert_eq!(found(0, |_| false), Some(10));
        assert_eq!(found(99, |_| false), Some(10));
        assert_eq!(found(100, |_| false), None);
    }

    #[test]
    fn a_move_and_our_own_slowness_are_excused() {
        assert_eq!(found(0, |_| true), None);
        assert_eq!(found(0, |tick| tick < 50), Some(15));
        assert_eq!(found(0, |tick| tick % 90 == 0), None);
    }

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let start = Instant::now();
        let mut pace = Pace::new(LIMIT);
        for second in 0..9 {
            assert!(!pace.look(start + Duration::from_secs(second), 0, false));
        }
        assert!(!pace.look(start + Duration::from_secs(3_600), 0, false));
        assert!(!pace.look(start + Duration::from_secs(3_602), 0, false));
    }
}
