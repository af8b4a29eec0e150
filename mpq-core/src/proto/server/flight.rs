//! When nothing that one connection of a parking server has sent is to be waited for any more.
//!
//! What is written to be said goes ahead of all else, in the next packet that there is room for. So nothing new is held
//! back before another packet is out, or none is to be expected. Then all that is in flight is to be answered, or
//! can no more be expected to be.

use std::time::{Duration, Instant};

/// How often is to be looked.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// In this time what was written is sent, also where nothing is in flight that would tell.
const LAST_WORDS: Duration = Duration::from_millis(10);
/// An acknowledgement may be delayed by so much (RFC 9000 §18.2).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// How one connection of a parking server stands, beside what it has in flight.
#[derive(Debug, Clone, Copy, Default)]
pub struct Standing {
    /// Its client is told to leave, and has not been told all of it.
    pub is_leaving: bool,
    /// It is closed or lost.
    pub is_gone: bool,
}

/// Whether a server need not wait for this connection before it is frozen. Whether what it has sent has `landed` is
/// asked only where that counts: to be asked is what makes a connection hold back what is new.
pub fn is_drained(standing: Standing, landed: impl FnOnce() -> bool) -> bool {
    !standing.is_leaving && (standing.is_gone || landed())
}

/// What is in flight on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    /// Packets sent, ever.
    pub sent: u64,
    /// Bytes in flight now.
    pub bytes: u64,
    /// When they last became fewer.
    pub progress: Instant,
    /// A packet was lost, and none was sent since.
    pub lost: bool,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

impl Flight {
    /// Whether nothing is in flight, or to be sent again.
    fn is_answered(self) -> bool {
        self.bytes == 0 && !self.lost
    }

    /// In this time QUIC sends two probes and may have an answer. Those probes count: they carry what was lost.
    fn patience(self) -> Duration {
        // A probe timeout (RFC 9002 §6.2.1) of a path whose round trips vary by a half.
        let timeout = 3 * self.rtt + ACK_DELAY;
        2 * timeout + self.rtt
    }

    /// Whether nothing moved since then in this time.
    fn is_hopeless(self, now: Instant, since: Instant) -> bool {
        now >= self.progress.max(since) + self.patience()
    }
}

/// The wait for what was sent on one connection.
#[derive(Debug, Clone, Copy)]
pub struct Landing {
    /// When it began.
    began: Instant,
    /// Since when all is written that is to be said.
    since: Instant,
    /// Packets until then.
    sent: u64,
    holds: bool,
}

impl Landing {
    /// One that begins, over these paths. If the connection `holds` already, nothing new is to be sent.
    pub fn new(now: Instant, holds: bool, paths: &[Flight]) -> Self {
        Self {
            began: now,
            since: now,
            sent: packets(paths),
            holds,
        }
    }

    /// So it stands now; whether nothing is to be waited for any more. A client that lets frames for it be written
    /// late holds up the move of all others. Those that are `unsaid` still are given up after some time.
    pub fn look(&mut self, now: Instant, paths: &[Flight], unsaid: bool) -> bool {
        if unsaid && paths.iter().any(|path| now < self.began + path.patience()) {
            (self.since, self.sent) = (now, packets(paths));
            return false;
        }
        let in_flight: u64 = paths.iter().map(|path| path.bytes).sum();
        let is_idle = in_flight == 0 && now >= self.since + LAST_WORDS;
        self.holds |= packets(paths) != self.sent || is_idle;
        let is_over =
            |path: &Flight| self.holds && path.is_answered() || path.is_hopeless(now, self.since);
        paths.iter().all(is_over)
    }

    /// Whether nothing new is to be sent from now on.
    pub fn holds(&self) -> bool {
        self.holds
    }
}

fn packets(paths: &[Flight]) -> u64 {
    paths.iter().map(|path| path.sent).sum()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);
    const JUST: Duration = Duration::from_nanos(1);

    fn flight(progress: Instant, sent: u64, bytes: u64) -> Flight {
        Flight {
            sent,
            bytes,
            progress,
            lost: false,
            rtt: RTT,
        }
    }

    #[test]
    fn who_is_told_to_leave_is_waited_for_and_who_is_gone_is_not() {
        let open = Standing::default();
        assert!(is_drained(open, || true) && !is_drained(open, || false));
        let gone = Standing {
            is_gone: true,
            ..open
        };
        assert!(is_drained(gone, || unreachable!()));
        let leaving = Standing {
            is_leaving: true,
            ..gone
        };
        assert!(!is_drained(leaving, || unreachable!()));
    }

    #[test]
    fn words_that_the_client_has_no_room_for_are_waited_for_no_longer_than_a_lost_packet() {
        let start = Instant::now();
        let patience = 2 * (3 * RTT + ACK_DELAY) + RTT;
        let mut path = flight(start, 1, 0);
        let mut landing = Landing::new(start, false, &[path]);
        path.sent = 2;
        assert!(!landing.look(start + LAST_WORDS, &[path], true) && !landing.holds());
        // Written now, and not sent yet.
        let written = start + LAST_WORDS + JUST;
        let mut other = landing;
        assert!(!landing.look(written, &[path], false) && !landing.holds());
        path.sent = 3;
        assert!(landing.look(written, &[path], false) && landing.holds());
        // Or never.
        let last = start + patience;
        assert!(!other.look(last - JUST, &[path], true) && !other.holds());
        assert!(!other.look(last, &[path], true));
        assert!(other.look(last + LAST_WORDS, &[path], true));
    }

    #[test]
    fn nothing_new_is_held_back_before_the_last_words_are_out() {
        let start = Instant::now();
        let before = flight(start, 1, 1_200);
        let mut landing = Landing::new(start, false, &[before]);
        assert!(!landing.look(start + LAST_WORDS, &[before], false) && !landing.holds());
        assert!(!landing.look(start, &[flight(start, 2, 2_400)], false) && landing.holds());
        assert!(landing.look(start, &[flight(start, 2, 0)], false));
    }

    #[test]
    fn where_nothing_is_in_flight_the_last_words_have_a_moment() {
        let start = Instant::now();
        let idle = [flight(start, 1, 0)];
        let mut landing = Landing::new(start, false, &idle);
        assert!(!landing.look(start + LAST_WORDS - JUST, &idle, false) && !landing.holds());
        assert!(landing.look(start + LAST_WORDS, &idle, false) && landing.holds());
        assert!(
            Landing::new(start, true, &idle).look(start, &idle, false),
            "it holds"
        );
        assert!(
            Landing::new(start, false, &[]).look(start, &[], false),
            "no path"
        );
    }

    #[test]
    fn what_is_lost_is_waited_for_until_it_is_sent_again_and_answered() {
        let start = Instant::now();
        let mut path = flight(start, 1, 0);
        let mut landing = Landing::new(start, true, &[path]);
        path.lost = true;
        assert!(!landing.look(start, &[path], false));
        (path.lost, path.sent, path.bytes) = (false, 2, 1_200);
        assert!(!landing.look(start, &[path], false));
        path.bytes = 0;
        assert!(landing.look(start, &[path], false));
    }

    #[test]
    fn each_path_is_waited_for_until_nothing_has_moved_on_it_for_two_probes_and_an_answer() {
        let start = Instant::now();
        let hopeless = 2 * (3 * RTT + ACK_DELAY) + RTT;
        let later = start + RTT;
        let [stuck, moving] = [flight(start, 1, 1_200), flight(later, 1, 1_200)];
        let mut landing = Landing::new(start, true, &[stuck]);
        assert!(!landing.look(start + hopeless - JUST, &[stuck], false));
        assert!(landing.look(start + hopeless, &[stuck], false));
        assert!(!landing.look(start + hopeless, &[stuck, moving], false));
        assert!(landing.look(later + hopeless, &[stuck, moving], false));
        // What moved before it began counts from the beginning.
        let mut landing = Landing::new(later, true, &[stuck]);
        assert!(!landing.look(later + hopeless - JUST, &[stuck], false));
        assert!(landing.look(later + hopeless, &[stuck], false));
    }
}
