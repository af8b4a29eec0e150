//! Tells which path's link has died under a download, long before [liveness](super::liveness) gives the
//! path up.
//!
//! Two things make such a death expensive. A client acknowledges what it receives on every path over
//! the first one that there is; if that one's link dies, the server hears nothing of any path and stops
//! sending on all. And a sender sends what was in flight on a path again only once something that it
//! sent there later is acknowledged, or three probe timeouts after the path was given up; those grow
//! with the acknowledgements that come late.
//!
//! So the client has the path go over the link of another one for a moment, as a client may at any
//! time (RFC 9000 §9), with new connection ids (RFC 9000 §9.5).
//! The server follows it there and challenges it; the answer acknowledges a newer packet, and all that
//! was in flight is lost and sent again at once. The path is then closed, with nothing in flight.
//!
//! A link is dead if all of this is true:
//!
//! - The path falls silent in the midst of a stream of packets.
//! - Another one is heard for longer than what was under way on both would explain. A server that
//!   stops, or is frozen, falls silent on all paths within half a round trip.
//! - The path is asked, and does not answer for a round trip.
//!
//! A path that is evacuated though its link lives costs a slow start, so short pauses, as radio links
//! have them, should not have it evacuated: it takes two to three round trips.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::liveness::PathFigures;

/// How many frames of late make a stream. A packet of a body has one at the least.
const STREAM_FRAMES: u64 = 16;
/// A path that falls silent in a stream is asked whether it works after a round trip, and after this
/// at the least.
const MIN_QUIET: Duration = Duration::from_millis(50);
/// By how much round trips vary.
const RTT_SPREAD: Duration = Duration::from_millis(20);
/// How long an answer may take at the least: a peer that waits for a core is slow, and its link is not dead.
const MIN_ANSWER: Duration = Duration::from_millis(75);
/// A path that was evacuated has nothing in flight any more after this, or so many of its round trips,
/// and is closed.
const MIN_SETTLING: Duration = Duration::from_millis(150);
const SETTLING_RTTS: u32 = 3;

/// What to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask whether it works.
    Ask(u32),
    /// Have it go over the link of another one.
    Evacuate {
        /// The path whose link is dead.
        path: u32,
        /// The path whose link lives.
        over: u32,
    },
    /// Close it: it was evacuated, and nothing is in flight on it.
    Close(u32),
}

/// The paths of a client's connection during a download.
#[derive(Debug, Default)]
pub(crate) struct Evacuation(BTreeMap<u32, Watched>);

#[derive(Debug)]
struct Watched {
    received: u64,
    rtt: Duration,
    heard: Instant,
    /// Frames received of late, while it was heard: each look halves those before it.
    busy: u64,
    /// When it was asked, since it was heard.
    asked: Option<Instant>,
    evacuated: Option<Instant>,
}

impl Watched {
    fn new(figures: &PathFigures, now: Instant) -> Self {
        Self {
            received: figures.received,
            rtt: figures.rtt,
            heard: now,
            busy: 0,
            asked: None,
            evacuated: None,
        }
    }

    /// The answer to a ping may come over another path: then the round-trip time tells of it.
    fn update(&mut self, figures: &PathFigures, now: Instant) {
        let came = figures.received.saturating_sub(self.received);
        if came > 0 || self.rtt != figures.rtt {
            self.received = figures.received;
            self.rtt = figures.rtt;
            self.heard = now;
            self.busy = self.busy / 2 + came;
            self.asked = None;
        }
    }
}

impl Evacuation {
    /// Knows nothing of the links any more; what was evacuated is still to be closed.
    pub(crate) fn forget_links(&mut self) {
        self.0.retain(|_, watched| watched.evacuated.is_some());
    }

    /// Looks at all validated paths, several times in a round trip. Only while `downloading` a silence
    /// tells of a dead link; a path that was evacuated before is closed in any case.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        figures: &[PathFigures],
        downloading: bool,
    ) -> Vec<Step> {
        self.0.retain(|id, _| figures.iter().any(|f| f.id == *id));
        for f in figures {
            let watched = self.0.entry(f.id).or_insert(Watched::new(f, now));
            watched.update(f, now);
        }
        let rtt = figures.iter().map(|f| f.rtt).max().unwrap_or_default();
        let at_home = self.0.iter().filter(|(_, w)| w.evacuated.is_none());
        let Some((over, heard)) = at_home
            .map(|(id, w)| (*id, w.heard))
            .max_by_key(|(_, h)| *h)
        else {
            return Vec::new();
        };

        let mut steps = Vec::new();
        for (&path, watched) in &mut self.0 {
            if let Some(since) = watched.evacuated {
                if now >= since + MIN_SETTLING.max(rtt * SETTLING_RTTS) {
                    steps.push(Step::Close(path));
                }
                continue;
            }
            let quiet = now.duration_since(watched.heard);
            if !downloading
                || path == over
                || watched.busy < STREAM_FRAMES
                || quiet < MIN_QUIET.max(rtt)
            {
                continue;
            }
            let Some(asked) = watched.asked else {
                watched.asked = Some(now);
                steps.push(Step::Ask(path));
                continue;
            };
            let is_outlived = heard >= watched.heard + rtt / 2 + RTT_SPREAD;
            if is_outlived && now >= asked + MIN_ANSWER.max(rtt + RTT_SPREAD) {
                watched.evacuated = Some(now);
                steps.push(Step::Evacuate { path, over });
            }
        }
        steps
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(10);
    const RTT: Duration = Duration::from_millis(54);
    const SECOND: Duration = Duration::from_secs(1);

    /// Two paths over which a download streams.
    struct Pair {
        evacuation: Evacuation,
        downloading: bool,
        now: Instant,
        figures: [PathFigures; 2],
    }

    impl Pair {
        fn streaming() -> Self {
            Self::receiving([20, 10])
        }

        /// So many datagrams a look have come on each of them.
        fn receiving(datagrams: [u64; 2]) -> Self {
            let path = |id| PathFigures {
                id,
                rtt: RTT,
                sent: 0,
                received: 0,
            };
            let mut pair = Self {
                evacuation: Evacuation::default(),
                downloading: true,
                now: Instant::now(),
                figures: [path(0), path(1)],
            };
            for _ in 0..20 {
                for (figures, came) in pair.figures.iter_mut().zip(datagrams) {
                    figures.received += came;
                }
                assert_eq!(pair.look(), []);
            }
            pair
        }

        fn look(&mut self) -> Vec<Step> {
            self.now += LOOK;
            self.evacuation
                .look(self.now, &self.figures, self.downloading)
        }

        /// Looks for so long while `traffic` happens; the first step that is more than to ask, and when.
        fn run(
            &mut self,
            time: Duration,
            mut traffic: impl FnMut(&mut [PathFigures; 2], Duration),
        ) -> Option<(Duration, Step)> {
            let start = self.now;
            while self.now - start < time {
                traffic(&mut self.figures, self.now - start);
                let steps = self.look();
                if let Some(step) = steps.iter().find(|s| !matches!(s, Step::Ask(_))) {
                    return Some((self.now - start, *step));
                }
            }
            None
        }
    }

    #[test]
    fn a_path_whose_link_dies_is_evacuated_within_three_round_trips_and_then_closed() {
        for dead in [0, 1] {
            let living = 1 - dead;
            let mut pair = Pair::streaming();
            // Its acknowledgements went over the dead link, too: it falls silent a round trip later.
            let (after, step) = pair
                .run(SECOND, |figures, elapsed| {
                    figures[living].received += u64::from(elapsed < RTT);
                })
                .unwrap();
            assert!(after <= 3 * RTT + LOOK, "{after:?}");
            let (path, over) = (dead as u32, living as u32);
            assert_eq!(step, Step::Evacuate { path, over });
            // It works again over the other link, and is closed all the same, also if that was all.
            pair.downloading = false;
            let (after, step) = pair
                .run(SECOND, |figures, _| {
                    figures.iter_mut().for_each(|f| f.received += 1);
                })
                .unwrap();
            assert_eq!(step, Step::Close(path));
            assert!(
                after <= MIN_SETTLING.max(RTT * SETTLING_RTTS) + LOOK,
                "{after:?}"
            );
        }
    }

    #[test]
    fn a_server_that_stops_on_both_paths_has_none_evacuated() {
        let mut pair = Pair::streaming();
        // What is under way on the longer path comes within half a round trip.
        let step = pair.run(10 * SECOND, |figures, elapsed| {
            figures[1].received += u64::from(elapsed < RTT / 2);
        });
        assert_eq!(step, None);
    }

    #[test]
    fn a_path_that_answers_stays_where_it_is_though_nothing_else_comes() {
        let mut pair = Pair::streaming();
        let step = pair.run(10 * SECOND, |figures, elapsed| {
            figures[1].received += 1;
            if elapsed.as_millis() % 60 == 0 {
                figures[0].rtt += Duration::from_micros(1);
            }
        });
        assert_eq!(step, None);
    }

    #[test]
    fn a_path_that_carried_little_stays_where_it_is() {
        let mut pair = Pair::receiving([20, 1]);
        let step = pair.run(10 * SECOND, |figures, _| figures[0].received += 20);
        assert_eq!(step, None);
    }

    #[test]
    fn the_last_path_stays_where_it_is() {
        let mut pair = Pair::streaming();
        pair.figures[1].id = 0;
        let only = [pair.figures[0]];
        for _ in 0..100 {
            pair.now += LOOK;
            assert_eq!(pair.evacuation.look(pair.now, &only, true), []);
        }
    }

    const MICROSECOND: Duration = Duration::from_micros(1);

    impl Pair {
        /// What is to be done at a time, while path 0 is heard, or not.
        fn at(&mut self, now: Instant, heard: bool) -> Vec<Step> {
            self.now = now;
            self.figures[0].received += u64::from(heard);
            self.evacuation.look(now, &self.figures, self.downloading)
        }
    }

    #[test]
    fn every_wait_is_as_long_as_it_should_be() {
        for rtt in [RTT, 2 * RTT] {
            let mut pair = Pair::streaming();
            for figures in &mut pair.figures {
                figures.rtt = rtt;
                figures.received += STREAM_FRAMES;
            }
            pair.look();
            let path = 1;
            let quiet = pair.now + rtt;
            assert_eq!(pair.at(quiet - MICROSECOND, true), []);
            assert_eq!(pair.at(quiet, true), [Step::Ask(path)]);
            let silent = quiet + MIN_ANSWER.max(rtt + RTT_SPREAD);
            assert_eq!(pair.at(silent - MICROSECOND, true), []);
            assert_eq!(pair.at(silent, true), [Step::Evacuate { path, over: 0 }]);
            let settled = silent + MIN_SETTLING.max(rtt * SETTLING_RTTS);
            assert_eq!(pair.at(settled - MICROSECOND, true), []);
            assert_eq!(pair.at(settled, true), [Step::Close(path)]);
        }
    }

    #[test]
    fn the_other_path_must_be_heard_for_longer_than_what_was_under_way() {
        for (early, evacuated) in [(MICROSECOND, false), (Duration::ZERO, true)] {
            let mut pair = Pair::streaming();
            let silent = pair.now;
            assert_eq!(pair.at(silent + RTT / 2 + RTT_SPREAD - early, true), []);
            assert_eq!(pair.at(silent + RTT, false), [Step::Ask(1)]);
            let steps = pair.at(silent + SECOND, false);
            assert_eq!(!steps.is_empty(), evacuated, "{steps:?}");
        }
    }

    #[test]
    fn a_stream_has_so_many_frames() {
        for (frames, asked) in [(STREAM_FRAMES - 1, false), (STREAM_FRAMES, true)] {
            let mut pair = Pair::receiving([20, 0]);
            pair.figures[1].received += frames;
            pair.look();
            let steps = pair.at(pair.now + SECOND, true);
            assert_eq!(!steps.is_empty(), asked, "{steps:?}");
        }
    }

    #[test]
    fn on_other_links_a_path_was_not_silent_yet() {
        let mut pair = Pair::streaming();
        let quiet = pair.now + RTT;
        assert_eq!(pair.at(quiet, true), [Step::Ask(1)]);
        pair.evacuation.forget_links();
        assert_eq!(pair.at(quiet + SECOND, true), []);
    }
}
