//! Careful resume (RFC 9959): what the old paths of a connection knew of
//! their capacity gives the new ones a start after a move.
//!
//! - **Reconnaissance** (§3.2). A client's first packet on a new path answers what the server has said
//!   to it after the thaw. If that took about as long as a round trip did before (between half and ten
//!   times, §3.1.2), the path need not begin as any other.
//! - **Unvalidated and validating** (§3.3, §3.4). noq makes a controller before anybody knows its path. As
//!   soon as the server has seen that the path leads to the same address of the client as an old one
//!   did, it [tells](super::controller::tell) the controller; until then, the old one with the smallest
//!   window counts. Half of that window may be in flight, spread over a round trip, and as much more as is
//!   acknowledged, until the window is as large as it was. Then it grows by a packet a round trip; a
//!   slow start would only lead it to where it was before.
//! - **Retreat** (§3.5). Any loss takes the start back at once. The algorithm below has grown by what
//!   was acknowledged meanwhile, and decides from then on.
//!
//! Where the old windows were small, as those of many clients on one link are, the new ones are too:
//! all their initial windows at once would be more than the link can take.
//!
//! What counts as an old path's window is no more than what was in flight there during its last second: a
//! window that the sender or the receiver could not fill says nothing about the network.

use std::time::{Duration, Instant};

/// How long after the move paths are new.
pub(super) const NEW_PATHS_PERIOD: Duration = Duration::from_secs(30);

/// What may be acknowledged on a path that nobody has told what it goes on for, beyond the window that
/// it began with, before it is taken for one of a new kind; bytes.
pub(super) const MAX_ACKED_UNTOLD: u64 = 64 << 10;

/// What was known of an old path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Smoothed round-trip time.
    pub(super) rtt: Duration,
    /// Congestion window, as far as it was in use, bytes.
    pub(crate) window: u64,
}

impl Saved {
    /// Whether a path of this round-trip time may be the same.
    pub(super) fn is_like(self, rtt: Duration) -> bool {
        rtt >= self.rtt / 2 && rtt <= self.rtt * 10
    }

    /// What is sent before anything of it is known to arrive (§3.3), bytes.
    pub(super) fn jump(self) -> u64 {
        self.window / 2
    }
}

/// What a connection knows of its old paths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    /// The old path with the smallest window.
    pub(super) least: Option<Saved>,
    pub(super) thaw: Option<Instant>,
}

impl Memory {
    /// How a path that is made now begins.
    pub(super) fn begin(self, now: Instant) -> Phase {
        let Some(thaw) = self.thaw.filter(|thaw| now < *thaw + NEW_PATHS_PERIOD) else {
            return Phase::Normal;
        };
        let rtt = now - thaw;
        let start = self.least.filter(|least| least.is_like(rtt));
        Phase::Reconnaissance(start.map(|least| Start { rtt, least }), 0)
    }
}

/// How a path begins that is like the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// What its first answer took.
    pub(super) rtt: Duration,
    /// It goes on for this one at least.
    pub(super) least: Saved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It may be like one of the old paths: how it begins, if not as any other, and how many bytes were
    /// acknowledged.
    Reconnaissance(Option<Start>, u64),
    /// It goes on for this old path and may have so many bytes in flight.
    Resuming(Saved, u64),
    /// The algorithm decides.
    Normal,
}
