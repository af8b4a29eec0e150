//! From when on a connection may have other paths than its first one.
//!
//! A path has one id for both directions, and each end sends with the connection ids that the other one
//! has issued for it. So both must have issued some (draft-ietf-quic-multipath-21 §3). And it begins like
//! a migration, which has to wait until the handshake is confirmed (RFC 9000 §9): before, a server may
//! receive its packets without having the keys.
//!
//! The server's ids most often come right behind the confirmation. So they are waited for, but not for long: who opens
//! a path without them learns it at once, and QUIC asks for them then (§4.7).
//!
//! What is lost on the way is sent again. A server that has not got our ids for a path delays its answer
//! (§3.1), and the challenge is repeated until it comes.

use std::time::{Duration, Instant};

use super::Handshake;

/// Between two looks, at the least; and the part of the time that has passed.
const LEAST_INTERVAL: Duration = Duration::from_millis(1);
const INTERVAL_PART: u32 = 16;
/// For how long the server's connection ids may be on the way once the handshake is confirmed.
const IDS_WAIT: Duration = Duration::from_millis(100);

/// Whether paths may be opened yet.
#[derive(Debug)]
pub(super) enum Readiness {
    /// Not yet.
    Waiting {
        /// Since when the handshake is not confirmed, or since when it is.
        since: Instant,
        confirmed: bool,
        /// When to look again; `None` while the answer is awaited.
        look_at: Option<Instant>,
    },
    /// They may, or never may.
    Decided,
}

impl Readiness {
    /// Of a connection that was just made, whose peer may allow more than one path.
    pub(super) fn new(now: Instant, multipath: bool) -> Self {
        match multipath {
            true => Self::Waiting {
                since: now,
                confirmed: false,
                look_at: Some(now),
            },
            false => Self::Decided,
        }
    }

    /// When a look at the handshake is due.
    pub(super) fn look_at(&self) -> Option<Instant> {
        match self {
            Self::Waiting { look_at, .. } => *look_at,
            Self::Decided => None,
        }
    }

    /// Whether a look is due, which is begun.
    pub(super) fn begin_look(&mut self, now: Instant) -> bool {
        match self {
            Self::Waiting { look_at, .. } => look_at.take_if(|at| now >= *at).is_some(),
            Self::Decided => false,
        }
    }

    /// So it stands now; whether paths may be opened from now on.
    pub(super) fn seen(&mut self, now: Instant, handshake: Handshake) -> bool {
        let Self::Waiting {
            since,
            confirmed,
            look_at,
        } = self
        else {
            return false;
        };
        if handshake.confirmed && handshake.issued && !*confirmed {
            (*since, *confirmed) = (now, true);
        }
        let waited_until = confirmed.then_some(*since + IDS_WAIT);
        if *confirmed && handshake.granted || waited_until.is_some_and(|until| now >= until) {
            *self = Self::Decided;
            return true;
        }
        let passed = now.duration_since(*since);
        let next = now + LEAST_INTERVAL.max(passed / INTERVAL_PART);
        *look_at = Some(waited_until.map_or(next, |until| next.min(until)));
        false
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn handshake(confirmed: bool, issued: bool, granted: bool) -> Handshake {
        Handshake {
            confirmed,
            issued,
            granted,
        }
    }

    #[test]
    fn paths_may_be_opened_once_the_handshake_is_confirmed_and_both_ends_have_issued_ids() {
        for bits in 0..8 {
            let [confirmed, issued, granted] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
            let now = Instant::now();
            let mut readiness = Readiness::new(now, true);
            let ready = readiness.seen(now, handshake(confirmed, issued, granted));
            assert_eq!(ready, confirmed && issued && granted);
            assert_eq!(readiness.look_at().is_none(), ready);
            assert!(ready || readiness.seen(now, handshake(true, true, true)));
            let again = readiness.seen(now, handshake(true, true, true));
            assert!(!again, "it is told once");
        }
    }

    #[test]
    fn the_servers_ids_are_waited_for_a_moment_after_the_confirmation_however_late_that_is() {
        let confirmed = handshake(true, true, false);
        for late in [Duration::ZERO, 10 * IDS_WAIT] {
            let start = Instant::now();
            let mut readiness = Readiness::new(start, true);
            assert!(!readiness.seen(start, handshake(true, false, true)));
            assert!(!readiness.seen(start, handshake(false, true, true)));
            let end = start + late + IDS_WAIT;
            assert!(!readiness.seen(start + late, confirmed));
            assert!(!readiness.seen(end - Duration::from_nanos(1), confirmed));
            assert_eq!(readiness.look_at(), Some(end));
            assert!(readiness.seen(end, confirmed));
        }
    }

    #[test]
    fn looks_come_at_once_and_then_ever_more_seldom() {
        let start = Instant::now();
        let mut readiness = Readiness::new(start, true);
        let mut times = Vec::new();
        while let Some(now) = readiness
            .look_at()
            .filter(|at| *at <= start + 160 * MILLISECOND)
        {
            assert!(!readiness.begin_look(now - Duration::from_nanos(1)));
            assert!(readiness.begin_look(now) && !readiness.begin_look(now));
            assert_eq!(readiness.look_at(), None, "the answer is awaited");
            times.push(now);
            readiness.seen(now, handshake(false, true, true));
        }
        assert_eq!(times[..3], [0, 1, 2].map(|ms| start + ms * MILLISECOND));
        assert!(times.len() < 60, "{}", times.len());
        let last = times[times.len() - 1] - times[times.len() - 2];
        assert!(
            last > 8 * MILLISECOND && last <= 10 * MILLISECOND,
            "{last:?}"
        );
    }

    #[test]
    fn without_multipath_nobody_looks() {
        let now = Instant::now();
        let mut readiness = Readiness::new(now, false);
        assert!(readiness.look_at().is_none() && !readiness.begin_look(now));
        assert!(!readiness.seen(now, handshake(true, true, true)));
    }
}
