//! Tells which paths have died without a word: a link that swallows datagrams says nothing.
//!
//! What is in flight on such a path is sent again only there until the path is abandoned, and a
//! download waits for it. So whoever drives a connection looks at the counters of its paths a few
//! times a second, and is told here which one to give up, at either end:
//!
//! - A path is *heard* when something comes over it, or when its RTT changes: noq acknowledges what
//!   it received on any path over the first one that there is, so for most paths acknowledgements
//!   are all that is ever heard.
//! - A path *owes* an answer once something was sent over it that must be acknowledged (RFC 9000
//!   §13.2.1) and it was not heard since.
//! - The time that it owes counts only while another path is heard, and anew after a time without:
//!   only then it is the path that is dead, and not a peer that is frozen, out of reach or gone. Nor
//!   does it count that we were stopped ourselves. So the last path is never given up, and none for
//!   a freeze.
//! - If the others have nothing to say, they are pinged, so that there is something to compare with;
//!   and so is one that is quiet while others are heard: it may be dead where we send nothing.
//! - After a second, or what four probe timeouts are about, the path is to be closed. A server waits
//!   for twice as long: if each end closed another path at the same time, none would be left, and only
//!   the client can open a new one.
//!
//! While a download is running, a quiet path is pinged in any case. That shows the server where a
//! client is whose address a NAT has changed (RFC 9000 §9.3).
//!
//! noq's own idle timeout of a path (`set_path_max_idle_timeout`) would not do: its clock runs
//! while the peer is frozen, and it wants a keep-alive on every idle path.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use noq::{Path, PathId};

/// A path that owes an answer for so long, while others are heard, is dead; or so many of its RTT.
/// Four probe timeouts (RFC 9002 §6.2.1) of a path whose RTT varies by a fourth are eight RTT.
const LEAST: Duration = Duration::from_secs(1);
const RTTS: u32 = 8;
/// How long ago a path may have been heard at most to be one that works. Answers to our pings come
/// more often than that, at whatever delay.
const LATELY: Duration = Duration::from_millis(500);
/// Between two pings of a path that another one is compared with.
const COMPARED: Duration = Duration::from_millis(100);
/// Between two pings of a path that is quiet while others are heard, or in a download.
const QUIET: Duration = Duration::from_millis(500);
/// Pings of a path from which nothing comes; noq's probe timeouts go on in any case.
const PINGS: u32 = 20;
/// The most that counts between two looks: between longer ones, we were stopped.
const STEP: Duration = Duration::from_millis(250);

/// How many datagrams of late make a stream.
const STREAM: u64 = 16;
/// A path that falls silent in the midst of a stream is asked whether it works after a round trip, and after
/// this at the least.
const ASK: Duration = Duration::from_millis(50);
/// By how much round trips vary.
const SPREAD: Duration = Duration::from_millis(20);
/// A path that was evacuated has nothing in flight any more after this, or so many of its RTT, and is closed.
const SETTLED: Duration = Duration::from_millis(300);
const SETTLED_RTTS: u32 = 4;

/// A validated path at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Its id.
    pub(crate) id: PathId,
    /// Its round-trip time, smoothed.
    pub(crate) rtt: Duration,
    /// Bytes sent in packets that are not mere acknowledgements.
    pub(crate) sent: u64,
    /// Datagrams received.
    pub(crate) received: u64,
}

impl From<&Path> for Figures {
    fn from(path: &Path) -> Self {
        let stats = path.stats();
        Self {
            id: path.id(),
            rtt: stats.rtt,
            // noq leaves packets out that only acknowledge.
            sent: stats.sent_bytes,
            received: stats.udp_rx.datagrams,
        }
    }
}

/// What to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask whether it works.
    Ping(PathId),
    /// Have it go over the link of another one: its own has died under a download, and what is in
    /// flight on it is sent again only once something sent later is acknowledged.
    Evacuate {
        /// The path whose link is dead.
        path: PathId,
        /// The path whose link lives.
        over: PathId,
    },
    /// Give it up: it does not, and another one does.
    Close(PathId),
}

/// The paths of one connection, as they were when they were last looked at.
#[derive(Debug)]
pub(crate) struct Silence {
    /// For how many times as long a path may be silent.
    patience: u32,
    /// Whether it can have a path go over another link: only a client can.
    evacuates: bool,
    paths: BTreeMap<PathId, Known>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    sent: u64,
    received: u64,
    rtt: Duration,
    heard: Instant,
    /// Since when it owes an answer, and for how long that counts.
    owing: Option<(Instant, Duration)>,
    pinged: Instant,
    pings: u32,
    /// Datagrams received of late, while it was heard: each look halves those before it.
    busy: u64,
    /// When it was first asked whether it works, since it was heard.
    asked: Option<Instant>,
    /// When its datagrams were sent over another link.
    evacuated: Option<Instant>,
}

impl Known {
    fn new(figures: &Figures, now: Instant) -> Self {
        Self {
            sent: figures.sent,
            received: figures.received,
            rtt: figures.rtt,
            heard: now,
            owing: None,
            pinged: now,
            pings: 0,
            busy: 0,
            asked: None,
            evacuated: None,
        }
    }

    fn update(&mut self, figures: &Figures, now: Instant) {
        if (self.received, self.rtt) != (figures.received, figures.rtt) {
            let came = figures.received.saturating_sub(self.received);
            *self = Self {
                busy: self.busy / 2 + came,
                evacuated: self.evacuated,
                ..Self::new(figures, now)
            };
        } else if self.sent != figures.sent {
            self.sent = figures.sent;
            self.owing.get_or_insert((now, Duration::ZERO));
        }
    }

    fn is_heard(&self, now: Instant) -> bool {
        now.duration_since(self.heard) < LATELY
    }

    /// Whether a ping is due that comes so often at the most.
    fn wants_ping(&self, now: Instant, interval: Duration) -> bool {
        let last = self.heard.max(self.pinged);
        self.pings < PINGS && now.duration_since(last) >= interval
    }
}

impl Silence {
    /// For a client's paths.
    pub(crate) fn of_client() -> Self {
        Self::new(1, true)
    }

    /// For those of a server's connection.
    pub(crate) fn of_server() -> Self {
        Self::new(2, false)
    }

    fn new(patience: u32, evacuates: bool) -> Self {
        Self {
            patience,
            evacuates,
            paths: BTreeMap::new(),
            looked: None,
        }
    }

    /// Looks at all validated paths; `downloading` says that something should come.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        figures: &[Figures],
        downloading: bool,
    ) -> Vec<Verdict> {
        let step = self.looked.map_or(Duration::ZERO, |at| {
            now.saturating_duration_since(at).min(STEP)
        });
        self.looked = Some(now);
        self.paths
            .retain(|id, _| figures.iter().any(|f| f.id == *id));
        for f in figures {
            let known = self.paths.entry(f.id).or_insert(Known::new(f, now));
            known.update(f, now);
        }

        let mut verdicts = Vec::new();
        let mut suspects = Vec::new();
        for f in figures {
            let limit = self.patience * LEAST.max(f.rtt * RTTS);
            let another = |(id, known): (&PathId, &Known)| *id != f.id && known.is_heard(now);
            let compared = self.paths.iter().any(another);
            let Some((since, counted)) = self.paths.get_mut(&f.id).and_then(|k| k.owing.as_mut())
            else {
                continue;
            };
            *counted = match compared {
                true => *counted + step,
                false => Duration::ZERO,
            };
            if *counted >= limit && compared {
                verdicts.push(Verdict::Close(f.id));
            } else if now.duration_since(*since) >= limit / 4 {
                suspects.push(f.id);
            }
        }
        if self.evacuates && downloading {
            self.evacuate(now, figures, &mut verdicts);
        }
        let is_any_heard = self.paths.values().any(|known| known.is_heard(now));
        for (&id, known) in &mut self.paths {
            let is_compared = suspects.iter().any(|suspect| *suspect != id);
            let is_closed = verdicts.contains(&Verdict::Close(id));
            let due = is_compared && known.wants_ping(now, COMPARED)
                || (downloading || is_any_heard) && known.wants_ping(now, QUIET);
            if due && !is_closed {
                known.pinged = now;
                known.pings += 1;
                verdicts.push(Verdict::Ping(id));
            }
        }
        verdicts
    }

    /// Finds the paths that carried the download and whose link has died.
    ///
    /// Such a path falls silent in the midst of a stream of datagrams, does not answer a ping for a
    /// round trip, and another one was heard for longer than a server that stops sending on both
    /// would explain: all of what was under way then arrives within half a round trip.
    fn evacuate(&mut self, now: Instant, figures: &[Figures], verdicts: &mut Vec<Verdict>) {
        let rtt = figures.iter().map(|f| f.rtt).max().unwrap_or_default();
        let last = self.paths.iter().filter(|(_, k)| k.evacuated.is_none());
        let last = last.max_by_key(|(_, known)| known.heard);
        let Some((over, heard)) = last.map(|(id, known)| (*id, known.heard)) else {
            return;
        };
        for (&path, known) in &mut self.paths {
            if let Some(since) = known.evacuated {
                if now >= since + SETTLED.max(rtt * SETTLED_RTTS) {
                    verdicts.push(Verdict::Close(path));
                }
                continue;
            }
            let quiet = now.duration_since(known.heard);
            if known.busy < STREAM || quiet < ASK.max(rtt) || path == over {
                continue;
            }
            let Some(asked) = known.asked else {
                known.asked = Some(now);
                verdicts.push(Verdict::Ping(path));
                continue;
            };
            let is_outlived = heard >= known.heard + rtt / 2 + SPREAD;
            if is_outlived && now >= asked + rtt + SPREAD {
                known.evacuated = Some(now);
                verdicts.push(Verdict::Evacuate { path, over });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(50);
    const RTT: Duration = Duration::from_millis(40);

    /// Two paths, 0 and 1, looked at often.
    struct Pair {
        silence: Silence,
        now: Instant,
        figures: [Figures; 2],
        downloading: bool,
    }

    impl Pair {
        fn new() -> Self {
            let path = |id: u32| Figures {
                id: id.into(),
                rtt: RTT,
                sent: 0,
                received: 0,
            };
            let mut pair = Self {
                silence: Silence::of_client(),
                now: Instant::now(),
                figures: [path(0), path(1)],
                downloading: false,
            };
            assert_eq!(pair.look(LOOK), []);
            pair
        }

        fn look(&mut self, later: Duration) -> Vec<Verdict> {
            self.now += later;
            self.silence.look(self.now, &self.figures, self.downloading)
        }

        fn send(&mut self, path: usize) {
            self.figures[path].sent += 1200;
        }

        fn receive(&mut self, path: usize) {
            self.figures[path].received += 1;
        }

        /// Looks for so long; when this path was to be closed.
        fn run_for_close(&mut self, time: Duration, path: PathId) -> Option<Duration> {
            let start = self.now;
            while self.now - start < time {
                if self.look(LOOK).contains(&Verdict::Close(path)) {
                    return Some(self.now - start);
                }
            }
            None
        }

        /// Looks for so long; before each look, `traffic` happens. When path 1 was to be closed.
        fn run(&mut self, time: Duration, traffic: impl Fn(&mut Self)) -> Option<Duration> {
            let start = self.now;
            while self.now - start < time {
                traffic(self);
                let verdicts = self.look(LOOK);
                assert!(!verdicts.contains(&Verdict::Close(PathId::ZERO)));
                if verdicts.contains(&Verdict::Close(PathId::from(1u32))) {
                    return Some(self.now - start);
                }
            }
            None
        }
    }

    #[test]
    fn a_path_that_owes_an_answer_while_another_one_is_heard_is_closed() {
        let mut pair = Pair::new();
        let closed = pair.run(Duration::from_secs(10), |pair| {
            pair.send(1);
            pair.receive(0);
        });
        let closed = closed.unwrap();
        assert!(closed >= LEAST && closed <= LEAST + 2 * LOOK, "{closed:?}");
    }

    #[test]
    fn a_slow_path_has_longer() {
        let mut pair = Pair::new();
        pair.figures[1].rtt = Duration::from_millis(300);
        let closed = pair.run(Duration::from_secs(10), |pair| {
            pair.send(1);
            pair.receive(0);
        });
        let limit = Duration::from_millis(2400);
        let closed = closed.unwrap();
        assert!(closed >= limit && closed <= limit + 2 * LOOK, "{closed:?}");
    }

    #[test]
    fn a_server_leaves_it_to_the_client_for_as_long_again() {
        let mut pair = Pair::new();
        pair.silence = Silence::of_server();
        let closed = pair.run(Duration::from_secs(10), |pair| {
            pair.send(1);
            pair.receive(0);
        });
        let closed = closed.unwrap();
        assert!(closed >= 2 * LEAST, "{closed:?}");
    }

    #[test]
    fn nothing_is_owed_for_nothing_or_by_who_answers() {
        let idle = |pair: &mut Pair| pair.receive(0);
        let busy = |pair: &mut Pair| {
            pair.send(1);
            pair.receive(0);
            pair.receive(1);
        };
        let acknowledged_elsewhere = |pair: &mut Pair| {
            pair.send(1);
            pair.receive(0);
            pair.figures[1].rtt += Duration::from_nanos(1);
        };
        let mut pair = Pair::new();
        assert_eq!(pair.run(Duration::from_secs(10), idle), None);
        assert_eq!(pair.run(Duration::from_secs(10), busy), None);
        let time = Duration::from_secs(10);
        assert_eq!(pair.run(time, acknowledged_elsewhere), None);
    }

    #[test]
    fn one_that_is_quiet_while_another_is_heard_is_asked_and_not_forever() {
        let mut pair = Pair::new();
        let mut pings = Vec::new();
        for _ in 0..1000 {
            pair.receive(0);
            pings.extend(pair.look(LOOK));
        }
        assert_eq!(pings, [Verdict::Ping(PathId::from(1u32)); PINGS as usize]);
    }

    #[test]
    fn a_late_answer_is_an_answer() {
        let mut pair = Pair::new();
        for _ in 0..10 {
            pair.send(1);
            let almost = LEAST - 2 * LOOK;
            assert_eq!(pair.run(almost, |pair| pair.receive(0)), None);
            pair.receive(1);
            pair.look(LOOK);
        }
    }

    #[test]
    fn where_nobody_is_heard_none_is_closed_and_the_asking_ends() {
        let mut pair = Pair::new();
        pair.downloading = true;
        let mut pings = [0; 2];
        for _ in 0..1000 {
            pair.send(0);
            pair.send(1);
            for verdict in pair.look(LOOK) {
                match verdict {
                    Verdict::Ping(PathId::ZERO) => pings[0] += 1,
                    Verdict::Ping(_) => pings[1] += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(pings, [PINGS; 2]);
        // Both come back, one of them a little later: that is no reason to close it.
        pair.receive(0);
        assert!(
            !pair
                .look(LOOK)
                .contains(&Verdict::Close(PathId::from(1u32)))
        );
        pair.receive(1);
        assert_eq!(pair.run(LEAST, |pair| pair.receive(0)), None);
    }

    #[test]
    fn one_that_has_nothing_to_say_is_asked_so_that_it_is_heard() {
        let mut pair = Pair::new();
        pair.send(1);
        let mut pinged = 0;
        let mut closed = false;
        for _ in 0..60 {
            for verdict in pair.look(LOOK) {
                match verdict {
                    // The answer is there before the next look.
                    Verdict::Ping(PathId::ZERO) => {
                        pair.receive(0);
                        pinged += 1;
                    }
                    Verdict::Ping(_) | Verdict::Evacuate { .. } => {}
                    Verdict::Close(id) => closed |= id == PathId::from(1u32),
                }
            }
        }
        assert!(closed && pinged >= 3, "{closed} {pinged}");
    }

    #[test]
    fn the_time_that_we_were_stopped_for_does_not_count() {
        let mut pair = Pair::new();
        pair.send(1);
        pair.receive(0);
        pair.look(LOOK);
        pair.receive(0);
        let verdicts = pair.look(Duration::from_secs(3600));
        assert!(!verdicts.contains(&Verdict::Close(PathId::from(1u32))));
        let rest = pair.run(Duration::from_secs(10), |pair| pair.receive(0));
        assert!(rest.unwrap() >= LEAST - STEP - 2 * LOOK, "{rest:?}");
    }

    #[test]
    fn a_quiet_path_is_pinged_in_a_download_only() {
        let mut pair = Pair::new();
        let pings = |pair: &mut Pair| {
            let looks = (0..10).map(|_| pair.look(LOOK).len());
            looks.sum::<usize>()
        };
        assert_eq!(pings(&mut pair), 0);
        pair.receive(0);
        pair.receive(1);
        pair.look(LOOK);
        pair.downloading = true;
        assert_eq!(pings(&mut pair), 2);
    }

    /// A download streams over both paths, the second a little later than the first.
    fn streaming() -> Pair {
        let mut pair = Pair::new();
        pair.downloading = true;
        for _ in 0..20 {
            pair.figures[0].received += 20;
            pair.figures[1].received += 10;
            pair.look(STEP_OF_A_STREAM);
        }
        pair
    }

    const STEP_OF_A_STREAM: Duration = Duration::from_millis(10);

    /// Looks for so long while `traffic` happens; when something was evacuated, and what.
    fn evacuated(
        pair: &mut Pair,
        time: Duration,
        mut traffic: impl FnMut(&mut Pair, Duration),
    ) -> Option<(Duration, Verdict)> {
        let start = pair.now;
        while pair.now - start < time {
            let elapsed = pair.now - start;
            traffic(pair, elapsed);
            let verdicts = pair.look(STEP_OF_A_STREAM);
            let evacuate = |v: &&Verdict| matches!(v, Verdict::Evacuate { .. });
            if let Some(verdict) = verdicts.iter().find(evacuate) {
                return Some((pair.now - start, *verdict));
            }
        }
        None
    }

    #[test]
    fn a_path_whose_link_dies_in_a_download_is_evacuated_within_three_round_trips() {
        let mut pair = streaming();
        // Its acknowledgements went there, too: the other one falls silent a round trip later.
        let what = evacuated(&mut pair, Duration::from_secs(1), |pair, elapsed| {
            if elapsed < RTT {
                pair.receive(1);
            }
        });
        let (after, verdict) = what.unwrap();
        assert!(after <= 3 * RTT + SPREAD, "{after:?}");
        let (path, over) = (PathId::ZERO, PathId::from(1u32));
        assert_eq!(verdict, Verdict::Evacuate { path, over });
        // It is closed once what was under way has come, and not evacuated again.
        let closed = pair.run_for_close(Duration::from_secs(1), path);
        assert!(
            closed.is_some_and(|after| after <= SETTLED + LOOK),
            "{closed:?}"
        );
    }

    #[test]
    fn a_server_that_stops_on_both_paths_has_none_evacuated() {
        let mut pair = streaming();
        // What is under way on the longer path comes within half a round trip.
        let what = evacuated(&mut pair, Duration::from_secs(10), |pair, elapsed| {
            if elapsed < RTT / 2 {
                pair.receive(1);
            }
        });
        assert_eq!(what, None);
    }

    #[test]
    fn a_path_that_answers_is_not_evacuated_though_nothing_else_comes() {
        let mut pair = streaming();
        let mut rtt = RTT;
        let what = evacuated(&mut pair, Duration::from_secs(10), |pair, elapsed| {
            pair.receive(1);
            // The answers to its pings come over the other path: what tells of them is its RTT.
            if elapsed.as_millis() % 60 == 0 {
                rtt += Duration::from_micros(1);
                pair.figures[0].rtt = rtt;
            }
        });
        assert_eq!(what, None);
    }

    #[test]
    fn a_path_that_carried_little_is_not_evacuated() {
        let mut pair = Pair::new();
        pair.downloading = true;
        for _ in 0..20 {
            pair.receive(0);
            pair.figures[1].received += 20;
            pair.look(STEP_OF_A_STREAM);
        }
        let what = evacuated(&mut pair, Duration::from_millis(900), |pair, _| {
            pair.receive(1)
        });
        assert_eq!(what, None);
    }
}
