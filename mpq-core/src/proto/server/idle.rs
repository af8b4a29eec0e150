//! When a connection ends from which nothing comes.

use std::time::{Duration, Instant};

use super::Stage;

/// How long a connection may be silent before it is closed, in time of the server's own clock, which stands still
/// while it is frozen.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The silence of one connection.
///
/// Two times do not count: that in which the server is parked; and the first wait for the client after a
/// move, as it may not know where the server is. They do not begin the silence anew either, or a server that
/// moves often would keep clients that are gone for ever.
#[derive(Debug)]
pub(super) struct Idle {
    received: u64,
    /// How long it has lasted, until it was last looked at, and when that was.
    silence: Duration,
    looked: Instant,
    /// How often the server has woken elsewhere since it began.
    moves: u32,
    /// The client may not know yet where the server is.
    is_lost: bool,
}

impl Idle {
    /// One that has just begun.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            received: 0,
            silence: Duration::ZERO,
            looked: now,
            moves: 0,
            is_lost: false,
        }
    }

    /// The server has woken elsewhere.
    pub(super) fn woken(&mut self) {
        self.moves += 1;
        self.is_lost = self.moves == 1;
    }

    /// Whether it has lasted too long, now that so many frames were received.
    pub(super) fn is_over(&mut self, now: Instant, received: u64, stage: Stage) -> bool {
        let passed = now.duration_since(self.looked);
        self.looked = now;
        if stage == Stage::Serving {
            self.is_lost = false;
        }
        if received != self.received {
            *self = Self {
                received,
                ..Self::new(now)
            };
        } else if stage != Stage::Parking && !self.is_lost {
            self.silence += passed;
        }
        self.silence >= TIMEOUT
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::Stage::{Moving, Parking, Serving};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_minute_without_a_datagram_is_too_long_unless_the_server_is_away() {
        // What was received, what the server does, how many seconds later, and whether that is too long.
        for steps in [
            vec![(0, Serving, 59, false), (0, Serving, 1, true)],
            vec![
                (7, Serving, 59, false),
                (7, Serving, 59, false),
                (7, Serving, 1, true),
            ],
            vec![
                (7, Serving, 59, false),
                (8, Serving, 59, false),
                (8, Serving, 59, false),
                (8, Serving, 1, true),
            ],
            // It is announced, and as good as at home.
            vec![(0, Serving, 30, false), (0, Moving, 30, true)],
            vec![
                (0, Parking, 100, false),
                (0, Serving, 59, false),
                (0, Serving, 1, true),
            ],
            // What was before a move counts.
            vec![
                (0, Serving, 59, false),
                (0, Parking, 100, false),
                (0, Serving, 1, true),
            ],
        ] {
            let mut now = Instant::now();
            let mut idle = Idle::new(now);
            for (received, stage, later, over) in steps {
                now += SECOND * later;
                let is_over = idle.is_over(now, received, stage);
                assert_eq!(is_over, over, "{received} {stage:?}");
            }
        }
    }

    #[test]
    fn a_client_that_is_gone_is_not_waited_for_at_every_move() {
        let mut now = Instant::now();
        let mut idle = Idle::new(now);
        let mut after = |idle: &mut Idle, seconds, received, stage| {
            now += SECOND * seconds;
            idle.is_over(now, received, stage)
        };
        assert!(!after(&mut idle, 5, 7, Serving));
        for moves in 1..=3 {
            assert!(!after(&mut idle, 10, 7, Parking));
            idle.woken();
            let over = after(&mut idle, 30, 7, Moving);
            assert_eq!(over, moves == 3, "after move {moves}");
        }
        // One that is heard meanwhile begins anew.
        assert!(!after(&mut idle, 1, 8, Serving));
        idle.woken();
        assert!(!after(&mut idle, 30, 8, Moving));
        assert!(!after(&mut idle, 59, 8, Serving));
        idle.woken();
        assert!(after(&mut idle, 1, 8, Moving));
    }
}
