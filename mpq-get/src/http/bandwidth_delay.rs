//! Whether one request can fill the paths: how much they carry in a round trip, measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mpq_core::PathId;
use mpq_core::client::{PathInfo, PathState};
use mpq_core::limits::STREAM_WINDOW;

/// Bytes of a stream that may come before any was read.
pub(super) const WINDOW: u64 = STREAM_WINDOW as u64;
/// How much of a window the paths carry in their least round-trip time when one request is too little. A queue
/// on one of them needs the rest: with that, the window would be full and the other paths idle.
const WINDOW_SHARE: f64 = 0.6;
/// Two in a row tell a rate from what comes at once after a loss or a move.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// For the round-trip time of paths that were opened while their server was frozen to become what it is.
const RTT_SETTLING: Duration = Duration::from_secs(1);

/// How much the paths carry in a round trip.
pub(super) struct BandwidthDelay {
    since: Instant,
    /// UDP payload by then, bytes.
    received: u64,
    /// Of the last sample, bytes in a second.
    rate: f64,
    /// The least smoothed round-trip time of each path so far: without a queue.
    rtts: BTreeMap<PathId, Duration>,
    /// When those of new paths can be trusted.
    settled: Instant,
}

impl BandwidthDelay {
    /// Nothing is known yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            received: 0,
            rate: 0.0,
            rtts: BTreeMap::new(),
            settled: now,
        }
    }

    /// Whether that is more than one stream can be relied on for, as far as is known now.
    pub(super) fn exceeds_a_window(
        &mut self,
        now: Instant,
        paths: impl Fn() -> Vec<PathInfo>,
    ) -> bool {
        let time = now.duration_since(self.since);
        if time < SAMPLE_INTERVAL {
            return false;
        }
        let mut paths = paths();
        let received: u64 = paths.iter().map(|path| path.received).sum();
        let rate = received.saturating_sub(self.received) as f64 / time.as_secs_f64();
        let lasting = rate.min(self.rate);
        (self.since, self.received, self.rate) = (now, received, rate);

        paths.retain(|path| path.state == PathState::Validated);
        let first = self.rtts.is_empty();
        if !first && paths.iter().any(|path| !self.rtts.contains_key(&path.id)) {
            self.settled = now + RTT_SETTLING;
        }
        let rtts = paths.iter().filter_map(|path| {
            let least = self.rtts.entry(path.id).or_insert(path.rtt?);
            *least = path.rtt?.min(*least);
            Some(*least)
        });
        // A client measures it where it has something to send; elsewhere it may be an old one.
        let rtt = rtts.min().unwrap_or_default();
        now >= self.settled && lasting * rtt.as_secs_f64() > WINDOW_SHARE * WINDOW as f64
    }

    /// As if the last sample had been of paths without end, and the next one were due.
    #[cfg(test)]
    pub(super) fn make_endless(&mut self) {
        self.since -= SAMPLE_INTERVAL;
        self.rate = f64::INFINITY;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const RTT: Duration = Duration::from_millis(20);
    /// What a window is in a round trip, bytes in a second.
    const FULL: u64 = 50 * WINDOW;

    pub(crate) fn path(id: u32, received: u64, rtt: Duration) -> PathInfo {
        PathInfo {
            id: id.into(),
            interface: "eth0".to_owned(),
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.1.0.2:443".parse().unwrap(),
            state: PathState::Validated,
            rtt: Some(rtt),
            received,
            sent: 0,
            lost: 0,
        }
    }

    #[test]
    fn a_window_is_exceeded_by_a_rate_and_not_by_a_queue() {
        let start = Instant::now();
        let exceeded = |rate: u64, rtt: &dyn Fn(u64) -> Duration| {
            let mut bandwidth_delay = BandwidthDelay::new(start);
            (1..=20).any(|tenth| {
                let half = tenth * rate / 20;
                let paths = || vec![path(0, half, RTT), path(1, half, rtt(tenth))];
                let now = start + Duration::from_millis(100 * tenth);
                bandwidth_delay.exceeds_a_window(now, paths)
            })
        };
        assert!(exceeded(FULL * 7 / 8, &|_| RTT));
        // With a queue on one of them, it would be full.
        assert!(exceeded(FULL * 2 / 3, &|_| RTT));
        assert!(!exceeded(FULL / 2, &|_| RTT));
        // A queue fills: the time grows, but the window needs no more.
        let queue = |tenth| if tenth < 3 { RTT } else { 3 * RTT };
        assert!(!exceeded(FULL / 2, &queue));
        // Nobody knows how old the time of the other path is.
        assert!(!exceeded(FULL / 2, &|_| 2 * RTT));
    }

    #[test]
    fn the_time_of_a_path_to_a_frozen_server_is_not_taken_for_its_length() {
        let start = Instant::now();
        let mut bandwidth_delay = BandwidthDelay::new(start);
        let exceeded: Vec<_> = (1..=30)
            .filter(|tenth| {
                let received = tenth * FULL / 20;
                let paths = || match tenth {
                    ..10 => vec![path(0, received, RTT)],
                    10..15 => vec![path(1, received, 10 * RTT)],
                    _ => vec![path(1, received, RTT)],
                };
                bandwidth_delay.exceeds_a_window(start + Duration::from_millis(100 * tenth), paths)
            })
            .collect();
        assert_eq!(exceeded, [0; 0]);
    }

    #[test]
    fn a_burst_is_no_rate() {
        let start = Instant::now();
        let mut bandwidth_delay = BandwidthDelay::new(start);
        let mut exceeds = |ms, received| {
            let now = start + Duration::from_millis(ms);
            bandwidth_delay.exceeds_a_window(now, || vec![path(0, received, RTT)])
        };
        assert!(!exceeds(99, 5 * WINDOW), "not a sample yet");
        assert!(!exceeds(100, 5 * WINDOW / 2), "half of the window's rate");
        assert!(!exceeds(200, 15 * WINDOW / 2), "its rate, for one sample");
        assert!(!exceeds(300, 10 * WINDOW), "half of it again");
        assert!(!exceeds(350, 15 * WINDOW));
        assert!(!exceeds(400, 15 * WINDOW), "its rate again");
        assert!(exceeds(500, 20 * WINDOW), "and still");
    }
}
