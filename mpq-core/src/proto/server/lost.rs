//! Finds out what of that which is in flight on the paths of before a move never arrived, so that it is sent again:
//! the client, say, was stopped when the server parked.
//!
//! A packet is taken for lost if a later one on the same path is acknowledged (RFC 9002 §6.1). Without one it would be
//! waited for until three probe timeouts after the path is abandoned, and those are seconds if acknowledgements came
//! late. So a few packets are sent there, each of which may be lost.

use std::time::{Duration, Instant};

/// How often is asked, and how long an answer is waited for.
const MAX_ASKS: u32 = 4;
const ASK_INTERVAL: Duration = Duration::from_millis(15);

/// The questions on the paths of before.
#[derive(Debug)]
pub(super) struct Lost {
    paths: Vec<u32>,
    left: u32,
    at: Instant,
}

impl Lost {
    /// On these paths, beginning now.
    pub(super) fn new(now: Instant, paths: Vec<u32>) -> Self {
        Self {
            paths,
            left: MAX_ASKS,
            at: now,
        }
    }

    /// When it is time to look how much is in flight.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        (self.left > 0).then_some(self.at)
    }

    /// That is looked up.
    pub(super) fn looks(&mut self, now: Instant) {
        self.at = now + ASK_INTERVAL;
    }

    /// On which paths to ask, if so many bytes are in flight there.
    pub(super) fn ask(&mut self, bytes: u64) -> Vec<u32> {
        let Some(left) = self.left.checked_sub(1).filter(|_| bytes > 0) else {
            self.left = 0;
            return Vec::new();
        };
        self.left = left;
        self.paths.clone()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_until_nothing_is_in_flight_and_a_few_times_at_the_most() {
        for (in_flight, asked) in [
            (vec![0, 9, 9, 9, 9, 9], 0),
            (vec![9, 9, 0, 9, 9, 9], 2),
            (vec![9, 9, 9, 9, 9, 9], 4),
        ] {
            let start = Instant::now();
            let mut lost = Lost::new(start, vec![1, 2]);
            let mut asks = 0;
            for bytes in in_flight {
                let Some(due) = lost.next_timeout() else {
                    break;
                };
                assert_eq!(due, start + ASK_INTERVAL * asks);
                lost.looks(due);
                let paths = lost.ask(bytes);
                assert!(paths.is_empty() || paths == [1, 2]);
                asks += u32::from(!paths.is_empty());
            }
            assert_eq!((asks, lost.next_timeout()), (asked, None));
        }
    }
}
