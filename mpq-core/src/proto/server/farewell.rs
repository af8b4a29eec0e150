//! The end of a connection whose client cannot follow a server that moves: it is told, so that it can connect
//! anew at once instead of waiting for somebody who is not there any more.
//!
//! First comes GOAWAY (RFC 9114 §5.2), so that the client knows which requests it may make again; once that and what
//! was in flight has arrived, the connection is closed. Neither is waited for long.

use std::time::{Duration, Instant};

/// How long GOAWAY and what was in flight may take to be acknowledged.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long the end of the connection may take to be sent.
const CLOSING: Duration = Duration::from_millis(100);
/// How often is looked.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How far it is.
#[derive(Debug)]
pub(super) struct Farewell {
    /// GOAWAY has come, or was waited for long enough.
    closes: bool,
    until: Instant,
    look_at: Instant,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To look again.
    Wait,
    /// To close the connection.
    Close,
    /// Nothing: that was all.
    Over,
}

impl Farewell {
    /// The client is told now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            closes: false,
            until: now + LAST_WORDS,
            look_at: now,
        }
    }

    /// When to look how far it is.
    pub(super) fn next_timeout(&self) -> Instant {
        self.look_at
    }

    /// That is looked up.
    pub(super) fn looks(&mut self, now: Instant) {
        self.look_at = now + LOOK_INTERVAL;
    }

    /// Whether all that was said `has_arrived`, and whether the end of the connection `is_sent`.
    pub(super) fn step(&mut self, now: Instant, has_arrived: bool, is_sent: bool) -> Next {
        let is_done = if self.closes { is_sent } else { has_arrived };
        if !is_done && now < self.until {
            return Next::Wait;
        }
        if self.closes {
            return Next::Over;
        }
        self.closes = true;
        self.until = now + CLOSING;
        Next::Close
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    #[test]
    fn it_is_closed_once_it_was_told_and_neither_is_waited_for_long() {
        // After how many milliseconds the client has heard, and the end is sent; and when it closes and is over.
        for (arrives, is_sent, closes, over) in [
            (0, 0, 0, 2),
            (20, 30, 20, 30),
            (20, 1_000, 20, 120),
            (1_000, 1_000, 500, 600),
        ] {
            let start = Instant::now();
            let mut farewell = Farewell::new(start);
            let (mut closed_at, mut over_at) = (None, None);
            while over_at.is_none() {
                let now = farewell.next_timeout();
                farewell.looks(now);
                let passed = (now - start).as_millis();
                let next = farewell.step(now, passed >= arrives, passed >= is_sent);
                match next {
                    Next::Wait => {}
                    Next::Close => closed_at = Some(passed),
                    Next::Over => over_at = Some(passed),
                }
            }
            assert_eq!((closed_at, over_at), (Some(closes), Some(over)));
        }
    }
}
