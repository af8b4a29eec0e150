//! Careful resume (draft-ietf-tsvwg-careful-resume): what the old paths of a connection knew of
//! their capacity gives the new ones a start after a move.
//!
//! A new path begins as any other, with its initial window. Its first round-trip time shows which of
//! the old paths it resembles, if any (§3.1.2: between half and ten times of what it was). From then on it
//! may send half of that path's window (§3.3), paced over a round trip as everything is. As that
//! is acknowledged, the algorithm below grows by the same bytes, and has caught up a round trip
//! later. If anything of it is lost, the start is taken back at once: what counts is only what was
//! acknowledged, less what the algorithm makes of a loss (§3.5).

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noq::congestion::{Controller, ControllerFactory, ControllerMetrics};
use noq_proto::RttEstimator;

use super::Factory;

/// How long after the move paths are new.
const LIFETIME: Duration = Duration::from_secs(30);

/// What was known of an old path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Smoothed round-trip time.
    pub(crate) rtt: Duration,
    /// Congestion window, bytes.
    pub(crate) window: u64,
}

/// Makes the controllers of one connection.
pub(crate) struct Careful {
    algorithm: Arc<Factory>,
    memory: Mutex<Memory>,
}

impl fmt::Debug for Careful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Careful")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Memory {
    saved: Vec<Saved>,
    until: Option<Instant>,
}

impl Careful {
    pub(crate) fn new(algorithm: Arc<Factory>) -> Self {
        Self {
            algorithm,
            memory: Mutex::default(),
        }
    }

    /// The paths that are new from `now` on may go on where these were.
    pub(crate) fn resume(&self, now: Instant, saved: Vec<Saved>) {
        *self.memory.lock().unwrap() = Memory {
            saved,
            until: Some(now + LIFETIME),
        };
    }

    fn is_resuming(&self, now: Instant) -> bool {
        let memory = self.memory.lock().unwrap();
        memory.until.is_some_and(|until| now < until)
    }

    /// The old path that is most like one of this round-trip time; no other gets it.
    fn claim(&self, rtt: Duration) -> Option<Saved> {
        let saved = &mut self.memory.lock().unwrap().saved;
        let alike = |old: &Saved| rtt >= old.rtt / 2 && rtt <= old.rtt * 10;
        let candidates = saved.iter().enumerate().filter(|(_, old)| alike(old));
        let (index, _) = candidates.min_by_key(|(_, old)| old.rtt.abs_diff(rtt))?;
        Some(saved.remove(index))
    }
}

impl ControllerFactory for Careful {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let phase = match self.is_resuming(now) {
            true => Phase::Reconnaissance,
            false => Phase::Normal,
        };
        let algorithm = self.algorithm.clone().build(now, mtu);
        Box::new(Resuming {
            memory: self,
            algorithm,
            phase,
        })
    }
}

/// The controller of one path.
#[derive(Debug)]
struct Resuming {
    memory: Arc<Careful>,
    algorithm: Box<dyn Controller>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is acknowledged yet.
    Reconnaissance,
    /// As many bytes may be in flight before the algorithm says so.
    Unvalidated(u64),
    /// The algorithm decides.
    Normal,
}

impl Controller for Resuming {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.algorithm.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.algorithm.on_packet_sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.algorithm.on_cwnd_limited();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        pn: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        if self.phase == Phase::Reconnaissance {
            // noq takes the sample of an acknowledgement after this call.
            self.phase = match self.memory.claim(now.saturating_duration_since(sent)) {
                Some(old) => Phase::Unvalidated(old.window / 2),
                None => Phase::Normal,
            };
        }
        self.algorithm
            .on_ack(now, sent, bytes, pn, app_limited, rtt);
        if let Phase::Unvalidated(window) = self.phase
            && self.algorithm.window() >= window
        {
            self.phase = Phase::Normal;
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.algorithm
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest_lost_pn: u64,
    ) {
        self.phase = Phase::Normal;
        self.algorithm.on_congestion_event(
            now,
            sent,
            is_persistent_congestion,
            is_ecn,
            lost_bytes,
            largest_lost_pn,
        );
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        self.algorithm.on_packet_lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.algorithm.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.algorithm.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(&mut self, threshold: u64, max_ack_delay: Duration) {
        self.algorithm
            .on_ack_frequency_update(threshold, max_ack_delay);
    }

    fn window(&self) -> u64 {
        match self.phase {
            Phase::Unvalidated(window) => window.max(self.algorithm.window()),
            Phase::Reconnaissance | Phase::Normal => self.algorithm.window(),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.algorithm.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            memory: self.memory.clone(),
            algorithm: self.algorithm.clone_box(),
            phase: self.phase,
        })
    }

    fn initial_window(&self) -> u64 {
        self.algorithm.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use noq::congestion::NewRenoConfig;

    use super::super::olia::tests::estimate;
    use super::*;

    const MTU: u16 = 1200;
    const RTT: Duration = Duration::from_millis(50);
    const WINDOW: u64 = 600_000;

    struct Rig {
        now: Instant,
        /// noq alone can make one; what is tested does not look at it.
        estimate: RttEstimator,
        careful: Arc<Careful>,
        path: Box<dyn Controller>,
    }

    impl Rig {
        async fn new(saved: &[(Duration, u64)]) -> Self {
            let now = Instant::now();
            let estimate = estimate().await;
            let careful = Arc::new(Careful::new(Arc::new(NewRenoConfig::default())));
            let saved = saved.iter().map(|(rtt, window)| Saved {
                rtt: *rtt,
                window: *window,
            });
            careful.resume(now, saved.collect());
            let path = careful.clone().build(now, MTU);
            Self {
                now: now + RTT,
                estimate,
                careful,
                path,
            }
        }

        /// So many bytes, sent one round trip ago, are acknowledged.
        fn ack(&mut self, rtt: Duration, bytes: u64) {
            let sent = self.now;
            self.now += rtt;
            self.path
                .on_ack(self.now, sent, bytes, 1, false, &self.estimate);
        }

        fn lose(&mut self) {
            let now = self.now;
            self.path
                .on_congestion_event(now, now - RTT / 2, false, false, 1200, 2);
        }
    }

    #[tokio::test]
    async fn after_the_first_round_trip_half_of_the_old_window_is_allowed() {
        let mut rig = Rig::new(&[(RTT, WINDOW)]).await;
        let initial = rig.path.initial_window();
        assert_eq!(rig.path.window(), initial);
        rig.ack(RTT, 1200);
        assert_eq!(rig.path.window(), WINDOW / 2);
        assert_eq!(rig.path.metrics().congestion_window, WINDOW / 2);
        // What is acknowledged of it counts, and the algorithm goes on from there.
        rig.ack(RTT, WINDOW / 2);
        assert_eq!(rig.path.window(), initial + 1200 + WINDOW / 2);
        rig.ack(RTT, 1200);
        assert_eq!(rig.path.window(), initial + 2400 + WINDOW / 2);
    }

    #[tokio::test]
    async fn a_loss_takes_the_start_back_to_what_was_acknowledged() {
        let mut rig = Rig::new(&[(RTT, WINDOW)]).await;
        let initial = rig.path.initial_window();
        rig.ack(RTT, 1200);
        rig.ack(RTT, 10_000);
        assert_eq!(rig.path.window(), WINDOW / 2);
        rig.lose();
        assert!(
            rig.path.window() < initial + 11_200,
            "{}",
            rig.path.window()
        );
    }

    #[tokio::test]
    async fn a_path_that_is_not_like_the_old_one_begins_anew() {
        for rtt in [RTT / 3, RTT * 11] {
            let mut rig = Rig::new(&[(RTT, WINDOW)]).await;
            rig.ack(rtt, 1200);
            assert_eq!(rig.path.window(), rig.path.initial_window() + 1200);
            rig.ack(RTT, 1200);
            assert_eq!(rig.path.window(), rig.path.initial_window() + 2400);
        }
    }

    #[tokio::test]
    async fn each_old_path_is_resumed_once_by_what_is_most_like_it() {
        let mut rig = Rig::new(&[(RTT, WINDOW), (RTT * 2, WINDOW * 2)]).await;
        rig.ack(RTT * 2, 1200);
        assert_eq!(rig.path.window(), WINDOW);
        for expected in [Some(WINDOW / 2), None] {
            rig.path = rig.careful.clone().build(rig.now, MTU);
            rig.now += RTT;
            rig.ack(RTT * 2, 1200);
            let otherwise = rig.path.initial_window() + 1200;
            assert_eq!(rig.path.window(), expected.unwrap_or(otherwise));
        }
    }

    #[tokio::test]
    async fn only_paths_that_are_made_soon_after_the_move_are_resumed() {
        let mut rig = Rig::new(&[(RTT, WINDOW)]).await;
        rig.now += LIFETIME;
        rig.path = rig.careful.clone().build(rig.now, MTU);
        rig.now += RTT;
        rig.ack(RTT, 1200);
        assert_eq!(rig.path.window(), rig.path.initial_window() + 1200);
    }
}
