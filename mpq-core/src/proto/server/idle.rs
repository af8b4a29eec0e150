//! When a connection ends from which nothing comes.

use std::time::{Duration, Instant};

/// How long a connection may be silent before it is closed, in time of the server's own clock, which stands still
/// while it is frozen.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The silence of one connection.
#[derive(Debug)]
pub(super) struct Idle {
    received: u64,
    since: Instant,
}

impl Idle {
    /// One that has just begun.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            received: 0,
            since: now,
        }
    }

    /// Whether it has lasted too long, now that so many frames were received. The time in which the server is
    /// not `serving` does not count: the client may not know where it is.
    pub(super) fn is_over(&mut self, now: Instant, received: u64, serving: bool) -> bool {
        if received != self.received || !serving {
            self.received = received;
            self.since = now;
        }
        now.duration_since(self.since) >= TIMEOUT
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_minute_without_a_datagram_is_too_long_unless_the_server_is_away() {
        // What was received, whether the server serves, how many seconds later, and whether that is too long.
        for steps in [
            vec![(0, true, 59, false), (0, true, 1, true)],
            vec![
                (7, true, 59, false),
                (7, true, 59, false),
                (7, true, 1, true),
            ],
            vec![
                (7, true, 59, false),
                (8, true, 59, false),
                (8, true, 59, false),
                (8, true, 1, true),
            ],
            vec![
                (0, false, 100, false),
                (0, true, 59, false),
                (0, true, 1, true),
            ],
            vec![
                (0, true, 59, false),
                (0, false, 1, false),
                (0, true, 59, false),
                (0, true, 1, true),
            ],
        ] {
            let mut now = Instant::now();
            let mut idle = Idle::new(now);
            for (received, serving, later, over) in steps {
                now += SECOND * later;
                assert_eq!(
                    idle.is_over(now, received, serving),
                    over,
                    "{received} {serving}"
                );
            }
        }
    }
}
