//! How long a server that parks waits for what it has sent.

use std::time::{Duration, Instant};

/// A drain ends after this, whatever is still in flight.
const LIMIT: Duration = Duration::from_secs(5);

/// The wait for what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// Until then.
    UnderWay {
        /// At the latest.
        until: Instant,
    },
    /// Nothing is in flight, or it was waited for long enough.
    Over,
}

impl Drain {
    /// One that begins.
    pub(super) fn new(now: Instant) -> Self {
        let until = now + LIMIT;
        Self::UnderWay { until }
    }

    /// Ends it, if it is `quiet` or has come to its limit; whether this ended it.
    pub(super) fn end(&mut self, now: Instant, quiet: bool) -> bool {
        let Self::UnderWay { until } = *self else {
            return false;
        };
        let ends = quiet || now >= until;
        if ends {
            *self = Self::Over;
        }
        ends
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    #[test]
    fn it_ends_once_when_all_is_quiet_and_at_the_limit_otherwise() {
        let start = Instant::now();
        let almost = start + LIMIT - Duration::from_nanos(1);
        for (now, quiet, ends) in [
            (start, false, false),
            (start, true, true),
            (almost, false, false),
            (almost, true, true),
            (start + LIMIT, false, true),
        ] {
            let mut drain = Drain::new(start);
            assert_eq!(drain.end(now, quiet), ends, "{:?} {quiet}", now - start);
            assert_eq!(drain == Drain::Over, ends);
            drain = Drain::Over;
            assert!(!drain.end(now, quiet), "it is over");
        }
    }
}
