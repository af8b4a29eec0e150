//! Tells which paths have died without a word: a link that swallows datagrams says nothing.
//!
//! What is in flight on such a path is sent again only there until the path is abandoned, and a
//! download waits for it. So whoever drives a connection looks at the counters of its paths a few
//! times a second, and is told here which one to give up, at either end:
//!
//! - A path is *heard* when an authenticated packet comes over it, or when its RTT changes: noq
//!   acknowledges what it received on any path over the first one that there is, so for most paths
//!   acknowledgements are all that is ever heard. Datagrams that anybody could have sent do not count.
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

/// A path that owes an answer for so long, while others are heard, is dead; or so many of its RTT.
/// Four probe timeouts (RFC 9002 §6.2.1) of a path whose RTT varies by a fourth are eight RTT.
const LEAST_LIMIT: Duration = Duration::from_secs(1);
const LIMIT_RTTS: u32 = 8;
/// How long ago a path may have been heard at most to be one that works. Answers to our pings come
/// more often than that, at whatever delay.
const HEARD_LATELY: Duration = Duration::from_millis(500);
/// Between two pings of a path that another one is compared with.
const COMPARED_PING_INTERVAL: Duration = Duration::from_millis(100);
/// Between two pings of a path that is quiet while others are heard, or in a download.
const QUIET_PING_INTERVAL: Duration = Duration::from_millis(500);
/// Pings of a path from which nothing comes; noq's probe timeouts go on in any case.
const MAX_PINGS: u32 = 20;
/// The most that counts between two looks: between longer ones, we were stopped.
const MAX_STEP: Duration = Duration::from_millis(250);

/// The counters of a validated path at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathFigures {
    /// QUIC's path id.
    pub id: u32,
    /// Its round-trip time, smoothed.
    pub rtt: Duration,
    /// Bytes sent in packets that are not mere acknowledgements.
    pub sent: u64,
    /// Frames received in packets that were authenticated, of those kinds that a living peer sends.
    pub received: u64,
}

/// What to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask whether it works.
    Ping(u32),
    /// Give it up: it does not, and another one does.
    Close(u32),
}

/// The paths of one connection, as they were when they were last looked at.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// For how many times as long a path may be silent.
    patience: u32,
    paths: BTreeMap<u32, Known>,
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
}

impl Known {
    fn new(figures: &PathFigures, now: Instant) -> Self {
        Self {
            sent: figures.sent,
            received: figures.received,
            rtt: figures.rtt,
            heard: now,
            owing: None,
            pinged: now,
            pings: 0,
        }
    }

    fn update(&mut self, figures: &PathFigures, now: Instant) {
        if (self.received, self.rtt) != (figures.received, figures.rtt) {
            *self = Self::new(figures, now);
        } else if self.sent != figures.sent {
            self.sent = figures.sent;
            self.owing.get_or_insert((now, Duration::ZERO));
        }
    }

    fn is_heard(&self, now: Instant) -> bool {
        now.duration_since(self.heard) < HEARD_LATELY
    }

    /// Whether a ping is due that comes so often at the most.
    fn wants_ping(&self, now: Instant, interval: Duration) -> bool {
        let last = self.heard.max(self.pinged);
        self.pings < MAX_PINGS && now.duration_since(last) >= interval
    }
}

impl Liveness {
    /// For a client's paths.
    pub(crate) fn of_client() -> Self {
        Self::new(1)
    }

    /// For those of a server's connection.
    pub(crate) fn of_server() -> Self {
        Self::new(2)
    }

    fn new(patience: u32) -> Self {
        Self {
            patience,
            paths: BTreeMap::new(),
            looked: None,
        }
    }

    /// Looks at all validated paths; `downloading` says that something should come.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        figures: &[PathFigures],
        downloading: bool,
    ) -> Vec<Verdict> {
        let step = self.looked.map_or(Duration::ZERO, |at| {
            now.saturating_duration_since(at).min(MAX_STEP)
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
            let limit = self.patience * LEAST_LIMIT.max(f.rtt * LIMIT_RTTS);
            let another = |(id, known): (&u32, &Known)| *id != f.id && known.is_heard(now);
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
        let is_any_heard = self.paths.values().any(|known| known.is_heard(now));
        for (&id, known) in &mut self.paths {
            let is_compared = suspects.iter().any(|suspect| *suspect != id);
            let is_closed = verdicts.contains(&Verdict::Close(id));
            let due = is_compared && known.wants_ping(now, COMPARED_PING_INTERVAL)
                || (downloading || is_any_heard) && known.wants_ping(now, QUIET_PING_INTERVAL);
            if due && !is_closed {
                known.pinged = now;
                known.pings += 1;
                verdicts.push(Verdict::Ping(id));
            }
        }
        verdicts
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const LOOK_INTERVAL: Duration = Duration::from_millis(50);
    const RTT: Duration = Duration::from_millis(40);

    /// Two paths, 0 and 1, looked at often.
    struct Pair {
        liveness: Liveness,
        now: Instant,
        figures: [PathFigures; 2],
        downloading: bool,
    }

    impl Pair {
        fn new() -> Self {
            let path = |id: u32| PathFigures {
                id,
                rtt: RTT,
                sent: 0,
                received: 0,
            };
            let mut pair = Self {
                liveness: Liveness::of_client(),
                now: Instant::now(),
                figures: [path(0), path(1)],
                downloading: false,
            };
            assert_eq!(pair.look(LOOK_INTERVAL), []);
            pair
        }

        fn look(&mut self, later: Duration) -> Vec<Verdict> {
            self.now += later;
            self.liveness
                .look(self.now, &self.figures, self.downloading)
        }

        fn send(&mut self, path: usize) {
            self.figures[path].sent += 1200;
        }

        fn receive(&mut self, path: usize) {
            self.figures[path].received += 1;
        }

        /// Looks for so long; before each look, `traffic` happens. When path 1 was to be closed.
        fn run(&mut self, time: Duration, traffic: impl Fn(&mut Self)) -> Option<Duration> {
            let start = self.now;
            while self.now - start < time {
                traffic(self);
                let verdicts = self.look(LOOK_INTERVAL);
                assert!(!verdicts.contains(&Verdict::Close(0)));
                if verdicts.contains(&Verdict::Close(1)) {
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
        assert!(
            closed >= LEAST_LIMIT && closed <= LEAST_LIMIT + 2 * LOOK_INTERVAL,
            "{closed:?}"
        );
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
        assert!(
            closed >= limit && closed <= limit + 2 * LOOK_INTERVAL,
            "{closed:?}"
        );
    }

    #[test]
    fn a_server_leaves_it_to_the_client_for_as_long_again() {
        let mut pair = Pair::new();
        pair.liveness = Liveness::of_server();
        let closed = pair.run(Duration::from_secs(10), |pair| {
            pair.send(1);
            pair.receive(0);
        });
        let closed = closed.unwrap();
        assert!(closed >= 2 * LEAST_LIMIT, "{closed:?}");
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
            pings.extend(pair.look(LOOK_INTERVAL));
        }
        assert_eq!(pings, [Verdict::Ping(1); MAX_PINGS as usize]);
    }

    #[test]
    fn a_late_answer_is_an_answer() {
        let mut pair = Pair::new();
        for _ in 0..10 {
            pair.send(1);
            let almost = LEAST_LIMIT - 2 * LOOK_INTERVAL;
            assert_eq!(pair.run(almost, |pair| pair.receive(0)), None);
            pair.receive(1);
            pair.look(LOOK_INTERVAL);
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
            for verdict in pair.look(LOOK_INTERVAL) {
                match verdict {
                    Verdict::Ping(0) => pings[0] += 1,
                    Verdict::Ping(_) => pings[1] += 1,
                    Verdict::Close(id) => panic!("{id} is closed"),
                }
            }
        }
        assert_eq!(pings, [MAX_PINGS; 2]);
        // Both come back, one of them a little later: that is no reason to close it.
        pair.receive(0);
        assert!(!pair.look(LOOK_INTERVAL).contains(&Verdict::Close(1)));
        pair.receive(1);
        assert_eq!(pair.run(LEAST_LIMIT, |pair| pair.receive(0)), None);
    }

    #[test]
    fn one_that_has_nothing_to_say_is_asked_so_that_it_is_heard() {
        let mut pair = Pair::new();
        pair.send(1);
        let mut pinged = 0;
        let mut closed = false;
        for _ in 0..60 {
            for verdict in pair.look(LOOK_INTERVAL) {
                match verdict {
                    // The answer is there before the next look.
                    Verdict::Ping(0) => {
                        pair.receive(0);
                        pinged += 1;
                    }
                    Verdict::Ping(_) => {}
                    Verdict::Close(id) => closed |= id == 1,
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
        pair.look(LOOK_INTERVAL);
        pair.receive(0);
        let verdicts = pair.look(Duration::from_secs(3600));
        assert!(!verdicts.contains(&Verdict::Close(1)));
        let rest = pair.run(Duration::from_secs(10), |pair| pair.receive(0));
        assert!(
            rest.unwrap() >= LEAST_LIMIT - MAX_STEP - 2 * LOOK_INTERVAL,
            "{rest:?}"
        );
    }

    #[test]
    fn a_path_that_is_no_more_is_neither_asked_nor_compared_with() {
        let mut pair = Pair::new();
        let mut now = pair.now;
        pair.figures[0].sent += 1200;
        let mut pings = 0;
        for _ in 0..60 {
            now += LOOK_INTERVAL;
            for verdict in pair.liveness.look(now, &pair.figures[..1], true) {
                assert_eq!(verdict, Verdict::Ping(0));
                pings += 1;
            }
        }
        assert!(pings > 0, "the other one is asked");
    }

    #[test]
    fn a_quiet_path_is_pinged_in_a_download_only() {
        let mut pair = Pair::new();
        let pings = |pair: &mut Pair| {
            let looks = (0..10).map(|_| pair.look(LOOK_INTERVAL).len());
            looks.sum::<usize>()
        };
        assert_eq!(pings(&mut pair), 0);
        pair.receive(0);
        pair.receive(1);
        pair.look(LOOK_INTERVAL);
        pair.downloading = true;
        assert_eq!(pings(&mut pair), 2);
    }
}
