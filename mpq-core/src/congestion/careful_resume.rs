//! Careful resume (RFC 9959, "Careful Resume: Convergence of Congestion Control from Retained State"): what the old
//! paths of a connection knew of their capacity gives the new ones a start after a move.
//!
//! This is the state machine of one path. It has no clock and knows no algorithm: its inputs are what was
//! sent, acknowledged and lost, and it returns an [`Action`]. The [controller](super::controller) carries
//! that out with any algorithm, and asks for the window. Sections are those of the RFC, as its last draft
//! (draft-ietf-tsvwg-careful-resume-24) has them.
//!
//! | phase | window | leaves it for |
//! | --- | --- | --- |
//! | Reconnaissance (§3.2) | the algorithm's; half of the old one once the path is confirmed | Unvalidated, when a packet is sent that the algorithm would not have allowed; Normal, at congestion, when the round-trip time differs too much, or when the start comes too late |
//! | Unvalidated (§3.3) | half of the old one | Validating, when that is in flight, when one of its packets is acknowledged, or after a round trip; Normal with PipeSize where it was not used; Safe Retreat |
//! | Validating (§3.4) | what was in flight, and as much more as is acknowledged | Normal, when the last unvalidated packet is acknowledged; Safe Retreat |
//! | Safe Retreat (§3.5) | half of PipeSize | Normal, when the last unvalidated packet, or a later one, is acknowledged |
//! | Normal (§3.7) | the algorithm's | Safe Retreat, when an unvalidated packet is found lost after all |
//!
//! PipeSize is what was in flight before the jump, and what is acknowledged of the packets since (§3.3).
//! What was in flight is not counted a second time when it is acknowledged (appendices B.2 and B.4).
//!
//! **Confirmed** (§3.2, §4.2) is a path on which as much as a new connection's initial window was
//! acknowledged without congestion, and whose shortest round trip is more than half and at most ten times
//! of what it was. The RFC lets a sender put the jump off until it has more to send than the algorithm
//! allows; so does this one, and a sender without data loses nothing.
//!
//! **Who goes on for whom.** A new path goes on for the old one to the same address of the client (§2.2),
//! and no other path may (§3.2); the server [tells](super::controller::tell) it so.
//!
//! **Back to the algorithm.** An algorithm of ours can be begun with a window and cannot be told a slow
//! start threshold. So [`CarefulResume::counted`] counts less of what is acknowledged once the threshold
//! is reached, and the window grows by a packet a round trip (RFC 9002 §7.3.3) until the next congestion.
//! After a validated start the threshold is the old window: slow start would only lead it beyond. After a
//! retreat it is half of PipeSize (§3.5).
//!
//! **BBR** (appendix C) has a model of the path in place of a threshold. Its old window is its bandwidth
//! times its shortest round trip, and half of it, spread over a round trip, is half of its bandwidth. A
//! fresh BBR in its Startup sees the packets of the jump and learns the rate from them; it is kept where
//! they are validated. noq's cannot be told to enter Drain. After congestion a fresh one begins in Startup
//! with half of PipeSize, and none of the tainted rates is left.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long after the move paths are new.
pub(super) const NEW_PATHS_PERIOD: Duration = Duration::from_secs(30);

/// How old what is known of a path may be when it is used (§4.3.1), the freeze included. As long as
/// RFC 7661 (§4.3) lets a window stand that is not in use.
pub(super) const LIFETIME: Duration = Duration::from_secs(300);

/// How the paths of a connection begin after a move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Resume {
    /// As RFC 9959 says: with half of what the path carried before, once an initial window was
    /// acknowledged on it.
    #[default]
    Careful,
    /// Not as RFC 9959 says: with that half from the first packet on. Saves a round trip; a path that has
    /// become slower drops more.
    Aggressive,
    /// As any new path, by slow start.
    Off,
}

/// A name that is none of [`Resume::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected careful, aggressive or off")]
pub struct UnknownResume;

impl Resume {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Careful, Self::Aggressive, Self::Off];
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Careful => "careful",
            Self::Aggressive => "aggressive",
            Self::Off => "off",
        })
    }
}

impl FromStr for Resume {
    type Err = UnknownResume;

    fn from_str(name: &str) -> Result<Self, UnknownResume> {
        let named = |known: &Self| known.to_string() == name;
        Self::ALL.into_iter().find(named).ok_or(UnknownResume)
    }
}

/// What was known of an old path (§3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Its shortest round-trip time.
    pub(super) rtt: Duration,
    /// What arrived in a round trip, bytes.
    pub(super) window: u64,
}

impl Saved {
    /// Whether a path whose shortest round trip is this may be the same (§3.2, §4.2.1).
    fn is_like(self, rtt: Duration) -> bool {
        rtt > self.rtt / 2 && rtt <= self.rtt * 10
    }

    /// What may be in flight before anything of it is known to arrive (§3.3), bytes.
    fn jump(self) -> u64 {
        self.window / 2
    }
}

/// What a connection knows of its last move.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) thaw: Option<Instant>,
    /// With [`Resume::Aggressive`], the old path with the smallest window: a new path goes on for that one
    /// until it is told for which.
    pub(super) least: Option<Saved>,
}

impl Memory {
    /// How a path begins that is made now, with a new connection's initial window in bytes and packets of
    /// so many.
    pub(super) fn begin(self, now: Instant, initial_window: u64, mtu: u64) -> CarefulResume {
        let mut resume = CarefulResume::new(now, initial_window, mtu);
        if let Some(thaw) = self.thaw.filter(|thaw| now < *thaw + NEW_PATHS_PERIOD) {
            resume.phase = Phase::Reconnaissance;
            resume.deadline = thaw + NEW_PATHS_PERIOD;
            // The client's first packet answers what was said to it after the thaw.
            let rtt = now - thaw;
            if let Some(least) = self.least.filter(|least| least.is_like(rtt)) {
                resume.saved = Some(least);
                resume.acknowledged = initial_window;
                resume.rtt = rtt;
                resume.min_rtt = rtt;
            }
        }
        resume
    }
}

/// Where a path is on its way back to the algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Reconnaissance,
    Unvalidated,
    Validating,
    SafeRetreat,
    Normal,
}

/// What the algorithm is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// It begins anew with this window, bytes.
    Begin(u64),
    /// It goes on with this window, bytes. One that has a model of the path keeps it.
    Settle(u64),
    /// It reacts to the congestion.
    React,
    /// It begins anew with this window, and reacts to the congestion then.
    BeginAndReact(u64),
}

/// The state of one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct CarefulResume {
    phase: Phase,
    /// That of a new connection, bytes.
    initial_window: u64,
    /// Bytes in a packet.
    pub(super) mtu: u64,
    /// Reconnaissance ends here.
    deadline: Instant,
    /// What is known of the old path.
    saved: Option<Saved>,
    /// Bytes that were acknowledged in Reconnaissance.
    acknowledged: u64,
    /// The sample of the last acknowledgement, and the smallest one; not yet measured: the longest.
    rtt: Duration,
    min_rtt: Duration,
    /// Bytes that are sent, and neither acknowledged nor lost.
    flight: u64,
    /// The largest packet numbers.
    sent: u64,
    acked: Option<u64>,
    /// The window in Unvalidated, Validating and Safe Retreat, bytes.
    window: u64,
    pipe_size: u64,
    /// The first packet that the algorithm would not have allowed, and when it was sent.
    first: u64,
    since: Instant,
    /// The last packet of Unvalidated, and when it was sent.
    last: (u64, Option<Instant>),
    /// Congestion that packets from before this tell of is known.
    retreated: Option<Instant>,
    /// Where slow start ends, bytes.
    threshold: Option<u64>,
}

impl CarefulResume {
    /// For a path that goes on for no other.
    fn new(now: Instant, initial_window: u64, mtu: u64) -> Self {
        Self {
            phase: Phase::Normal,
            initial_window,
            mtu,
            deadline: now,
            saved: None,
            acknowledged: 0,
            rtt: Duration::MAX,
            min_rtt: Duration::MAX,
            flight: 0,
            sent: 0,
            acked: None,
            window: 0,
            pipe_size: 0,
            first: 0,
            since: now,
            last: (0, None),
            retreated: None,
            threshold: None,
        }
    }

    #[cfg(test)]
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// The one place that assigns the phase.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// What may be in flight, bytes, where the algorithm allows so much.
    pub(super) fn window(&self, algorithm: u64) -> u64 {
        match self.phase {
            Phase::Reconnaissance => self.jump().map_or(algorithm, |jump| jump.max(algorithm)),
            Phase::Unvalidated | Phase::Validating | Phase::SafeRetreat => self.window,
            Phase::Normal => algorithm,
        }
    }

    /// How fast to send, bytes a second, where the algorithm is not to decide: a jump is spread over
    /// a round trip of now (§3.3, §4.3.2).
    pub(super) fn pacing_rate(&self, algorithm: u64) -> Option<u64> {
        let jump = match self.phase {
            Phase::Reconnaissance => self.jump().filter(|jump| *jump > algorithm)?,
            Phase::Unvalidated => self.window,
            _ => return None,
        };
        Some((jump as f64 / self.rtt.as_secs_f64().max(1e-6)) as u64)
    }

    /// No faster than this, bytes a second, where the algorithm has a rate but none of a whole round trip:
    /// twice what was validated, as slow start would.
    pub(super) fn max_rate(&self) -> Option<u64> {
        let rate = || (2.0 * self.window as f64 / self.rtt.as_secs_f64().max(1e-6)) as u64;
        matches!(self.phase, Phase::Validating | Phase::SafeRetreat).then(rate)
    }

    /// What the algorithm is to count of so many bytes that are acknowledged (see above), with
    /// this window.
    pub(super) fn counted(&self, bytes: u64, algorithm: u64) -> u64 {
        match self.threshold {
            Some(threshold) => growth(bytes, algorithm, threshold, self.mtu),
            None => bytes,
        }
    }

    /// The window of the jump, if the path is confirmed.
    fn jump(&self) -> Option<u64> {
        let is_confirmed =
            |saved: &Saved| self.acknowledged >= self.initial_window && saved.is_like(self.min_rtt);
        self.saved.filter(is_confirmed).map(Saved::jump)
    }

    /// It goes on for this old path.
    pub(super) fn tell(&mut self, old: Saved) {
        match self.phase {
            Phase::Reconnaissance => self.saved = Some(old),
            // Of one that began aggressively.
            Phase::Unvalidated if old.is_like(self.min_rtt) => {
                self.saved = Some(old);
                self.window = self.window.max(old.jump());
            }
            _ => {}
        }
    }

    /// A packet is sent, where the algorithm allows so many bytes in flight.
    #[must_use]
    pub(super) fn on_sent(&mut self, now: Instant, pn: u64, bytes: u64, algorithm: u64) -> Action {
        let before = self.flight;
        self.flight += bytes;
        self.sent = self.sent.max(pn);
        match self.phase {
            Phase::Reconnaissance if self.flight > algorithm => {
                let Some(jump) = self.jump().filter(|jump| *jump > algorithm) else {
                    return Action::Nothing;
                };
                self.enter(Phase::Unvalidated);
                self.window = jump;
                self.pipe_size = before;
                self.first = pn;
                self.since = now;
                Action::Begin(jump)
            }
            Phase::Unvalidated => self.check_unvalidated(now),
            _ => Action::Nothing,
        }
    }

    /// So many bytes of this packet are acknowledged.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        pn: u64,
        bytes: u64,
        app_limited: bool,
    ) {
        self.rtt = now.saturating_duration_since(sent);
        self.min_rtt = self.min_rtt.min(self.rtt);
        self.acked = self.acked.max(Some(pn));
        match self.phase {
            Phase::Reconnaissance => self.acknowledged += bytes,
            Phase::Unvalidated | Phase::Validating | Phase::SafeRetreat if pn >= self.first => {
                self.pipe_size += bytes;
            }
            _ => {}
        }
        if self.phase == Phase::Validating && !app_limited {
            let threshold = self.saved.map_or(u64::MAX, |saved| saved.window);
            self.window += growth(bytes, self.window, threshold, self.mtu);
        }
    }

    /// All that an acknowledgement says was taken note of, and so many bytes are in flight.
    #[must_use]
    pub(super) fn on_end_acks(&mut self, now: Instant, flight: u64, algorithm: u64) -> Action {
        self.flight = flight;
        let is_last = self.acked.is_some_and(|acked| acked >= self.last.0);
        match self.phase {
            Phase::Reconnaissance => {
                if now > self.deadline || self.is_refuted(algorithm) {
                    self.enter(Phase::Normal);
                }
                Action::Nothing
            }
            Phase::Unvalidated if self.saved.is_some_and(|old| !old.is_like(self.min_rtt)) => {
                self.retreat(now);
                Action::Nothing
            }
            Phase::Unvalidated => self.check_unvalidated(now),
            Phase::Validating if is_last => {
                self.enter(Phase::Normal);
                self.threshold = self.saved.take().map(|saved| saved.window);
                Action::Settle(self.window)
            }
            Phase::SafeRetreat if is_last => self.end_retreat(),
            _ => Action::Nothing,
        }
    }

    /// A packet that was sent then is lost, or told of congestion.
    #[must_use]
    pub(super) fn on_congestion(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent: bool,
    ) -> Action {
        let is_known = self.retreated.is_some_and(|retreated| sent <= retreated);
        match self.phase {
            _ if is_known && !is_persistent => Action::Nothing,
            Phase::Reconnaissance => {
                self.enter(Phase::Normal);
                Action::React
            }
            // §3.6.
            Phase::Unvalidated | Phase::Validating | Phase::SafeRetreat if is_persistent => {
                self.enter(Phase::Normal);
                self.saved = None;
                self.retreated = Some(now);
                Action::BeginAndReact(self.pipe_size.max(2 * self.mtu))
            }
            Phase::Unvalidated | Phase::Validating => {
                self.retreat(now);
                Action::Nothing
            }
            // Of what was sent after the retreat: even that was too much.
            Phase::SafeRetreat => {
                self.retreated = Some(now);
                self.window = self.halved(self.window);
                Action::Nothing
            }
            // noq tells of what is acknowledged before it looks for what is lost.
            Phase::Normal if self.last.1.is_some_and(|last| sent <= last) && !is_persistent => {
                self.retreat(now);
                self.end_retreat()
            }
            Phase::Normal => {
                self.threshold = None;
                Action::React
            }
        }
    }

    /// Whether the path turned out not to be the old one, or the jump would lead nowhere.
    fn is_refuted(&self, algorithm: u64) -> bool {
        let is_measured = self.acknowledged >= self.initial_window;
        let refutes = |old: Saved| !old.is_like(self.min_rtt) || old.jump() <= algorithm;
        is_measured && self.saved.is_some_and(refutes)
    }

    /// Ends Unvalidated when it is time to (§3.3).
    fn check_unvalidated(&mut self, now: Instant) -> Action {
        let is_full = self.flight + self.mtu > self.window;
        let is_answered = self.acked.is_some_and(|acked| acked >= self.first);
        let is_late = now > self.since + self.rtt;
        if !(is_full || is_answered || is_late) {
            return Action::Nothing;
        }
        if self.flight < self.initial_window || self.flight <= self.pipe_size {
            self.enter(Phase::Normal);
            self.saved = None;
            return Action::Begin(self.pipe_size.max(self.initial_window));
        }
        self.enter(Phase::Validating);
        self.last = (self.sent, Some(now));
        self.window = self.flight;
        Action::Nothing
    }

    /// Enters Safe Retreat (§3.5).
    fn retreat(&mut self, now: Instant) {
        if self.phase == Phase::Unvalidated {
            self.last.0 = self.sent;
        }
        self.last.1 = None;
        self.enter(Phase::SafeRetreat);
        self.saved = None;
        self.retreated = Some(now);
        self.window = self.halved(self.pipe_size);
    }

    fn end_retreat(&mut self) -> Action {
        self.enter(Phase::Normal);
        self.threshold = Some(self.halved(self.pipe_size));
        Action::Begin(self.window)
    }

    /// Never less than the smallest window (RFC 9002 §7.2).
    fn halved(&self, bytes: u64) -> u64 {
        (bytes / 2).max(2 * self.mtu)
    }
}

/// By how much a window grows when so many bytes are acknowledged: as in slow start up to the threshold,
/// and by a packet for a whole window from there on (RFC 9002 §7.3.3).
fn growth(bytes: u64, window: u64, threshold: u64, mtu: u64) -> u64 {
    match threshold.saturating_sub(window) {
        0 => bytes * mtu / window.max(mtu),
        missing => bytes.min(missing),
    }
}

#[cfg(test)]
mod tests;
