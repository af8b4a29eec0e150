//! The controller of one path, between noq and the algorithm: it gives a path its start after a move, and
//! sends no more than the connection may.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noq::PathId;
use noq::congestion::{Controller, ControllerFactory, ControllerMetrics};
use noq_proto::RttEstimator;

use super::careful_resume::{MAX_ACKED_UNTOLD, Phase, Saved};
use super::send_control::{RECENT_PERIOD, SendControl, Track};

/// What paces nothing, bytes a second.
const UNPACED: u64 = 1 << 30;

/// What is known of an old path now.
pub(crate) fn saved(connection: &noq::Connection, path: PathId, now: Instant) -> Option<Saved> {
    let resuming = PathController::of(connection, path)?;
    resuming.track.lock().unwrap().saved(now)
}

/// Tells a new path's controller which old path it goes on for.
pub(crate) fn tell(connection: &noq::Connection, path: PathId, old: Saved) {
    if let Some(resuming) = PathController::of(connection, path) {
        resuming.track.lock().unwrap().told = Some(old);
    }
}

impl ControllerFactory for SendControl {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let track = Arc::new(Mutex::new(Track {
            window: 0,
            sent: 0,
            bytes: 0,
            progress: now,
            lost: false,
            most: (0, now),
            rtt: Duration::ZERO,
            told: None,
        }));
        self.tracks.lock().unwrap().push(Arc::downgrade(&track));
        let phase = self.memory.lock().unwrap().begin(now);
        let controller = PathController {
            algorithm: self.algorithm.clone().build(now, mtu),
            phase,
            mtu: mtu.into(),
            track,
            memory: self,
        };
        controller.note_window();
        Box::new(controller)
    }
}

/// The controller of one path.
#[derive(Debug)]
struct PathController {
    memory: Arc<SendControl>,
    algorithm: Box<dyn Controller>,
    phase: Phase,
    /// Bytes.
    mtu: u64,
    track: Arc<Mutex<Track>>,
}

impl PathController {
    /// A path's controller, as it is now; it shares its track with noq's.
    fn of(connection: &noq::Connection, path: PathId) -> Option<Box<Self>> {
        let controller = connection.congestion_state(path)?;
        controller.into_any().downcast().ok()
    }

    /// The window, as if nothing were held.
    fn allowed(&self) -> u64 {
        let allowed = match self.phase {
            Phase::Reconnaissance(Some(start), acknowledged) => {
                let told = self.track.lock().unwrap().told;
                let old = told.unwrap_or(start.least);
                (old.jump() + acknowledged).min(old.window)
            }
            Phase::Resuming(_, window) => window,
            Phase::Reconnaissance(None, _) | Phase::Normal => self.algorithm.window(),
        };
        // The smallest window (RFC 9002 §7.2).
        allowed.max(2 * self.mtu).min(self.limit())
    }

    /// Whether nothing may be sent now. The two locks are never held together here:
    /// [`SendControl::drain`] takes them in the other order.
    fn is_held(&self) -> bool {
        if !self.memory.held.load(Ordering::Relaxed) {
            return false;
        }
        let lost = self.track.lock().unwrap().lost;
        !(lost && self.memory.is_draining())
    }

    fn limit(&self) -> u64 {
        self.memory.limit.load(Ordering::Relaxed)
    }

    fn note_window(&self) {
        let window = self.allowed();
        self.track.lock().unwrap().window = window;
    }
}

impl Controller for PathController {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.algorithm.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        let mut track = self.track.lock().unwrap();
        track.lost = false;
        track.sent += 1;
        track.bytes += u64::from(bytes);
        if track.bytes > track.most.0 || now > track.most.1 + RECENT_PERIOD {
            track.most = (track.bytes, now);
        }
        drop(track);
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
        let told = {
            let mut track = self.track.lock().unwrap();
            track.rtt = rtt.get();
            track.told.take()
        };
        if let (Phase::Reconnaissance(..), Some(old)) = (self.phase, told) {
            // noq takes the sample of an acknowledgement after this call.
            self.phase = match old.is_like(now.saturating_duration_since(sent)) {
                true => Phase::Resuming(old, self.window().max(old.jump())),
                false => Phase::Normal,
            };
        }
        let counted = match &mut self.phase {
            Phase::Resuming(old, window) => {
                *window += match old.window.saturating_sub(*window) {
                    // It was not all in use (RFC 9002 §7.8).
                    _ if app_limited => 0,
                    // What makes a packet of a whole window (RFC 9002 §7.3.3).
                    0 => bytes * self.mtu / (*window).max(self.mtu),
                    missing => bytes.min(missing),
                };
                bytes.min(window.saturating_sub(self.algorithm.window()))
            }
            Phase::Reconnaissance(start, acknowledged) => {
                *acknowledged += bytes;
                if start.is_some_and(|start| *acknowledged > start.least.window + MAX_ACKED_UNTOLD)
                {
                    self.phase = Phase::Normal;
                }
                bytes
            }
            Phase::Normal => bytes,
        };
        // Beyond the limit, no more of the window is in use (RFC 9002 §7.8).
        let limited = app_limited || self.algorithm.window() > self.limit();
        self.algorithm.on_ack(now, sent, counted, pn, limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.track.lock().unwrap().set_in_flight(now, in_flight);
        self.algorithm
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
        self.note_window();
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
        self.note_window();
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        let mut track = self.track.lock().unwrap();
        let left = track.bytes.saturating_sub(lost_bytes.into());
        track.set_in_flight(now, left);
        track.lost |= lost_bytes > 0;
        drop(track);
        self.algorithm.on_packet_lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.algorithm.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.algorithm.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(&mut self, threshold: u64, max_ack_delay: Duration) {
        self.algorithm
            .on_ack_frequency_update(threshold, max_ack_delay);
    }

    fn window(&self) -> u64 {
        match self.is_held() {
            // Not 0, which noq divides by.
            true => 1,
            false => self.allowed(),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.algorithm.metrics();
        metrics.congestion_window = self.window();
        if self.memory.held.load(Ordering::Relaxed) {
            // A window of next to nothing would have noq's probes wait for minutes.
            metrics.pacing_rate = Some(UNPACED);
        } else if let Phase::Reconnaissance(Some(start), 0) = self.phase {
            // noq has no round-trip time to spread the window over.
            let rate = self.window() as f64 / start.rtt.as_secs_f64();
            metrics.pacing_rate = Some(rate as u64);
        }
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            memory: self.memory.clone(),
            algorithm: self.algorithm.clone_box(),
            phase: self.phase,
            mtu: self.mtu,
            track: self.track.clone(),
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

    use super::*;
    use crate::congestion::careful_resume::NEW_PATHS_PERIOD;
    use crate::congestion::olia::tests::estimate;

    const MTU: u16 = 1200;
    const RTT: Duration = Duration::from_millis(50);
    const WINDOW: u64 = 600_000;

    fn old(rtt: Duration, window: u64) -> Saved {
        Saved { rtt, window }
    }

    struct Rig {
        now: Instant,
        /// noq alone can make one; what is tested does not look at it.
        estimate: RttEstimator,
        careful: Arc<SendControl>,
        path: Box<dyn Controller>,
    }

    impl Rig {
        /// A path that is there so long after the thaw.
        async fn new(least: Option<Saved>, after: Duration) -> Self {
            let thaw = Instant::now();
            let estimate = estimate().await;
            let careful = Arc::new(SendControl::new(Arc::new(NewRenoConfig::default())));
            careful.resume(thaw, least);
            let now = thaw + after;
            let path = careful.clone().build(now, MTU);
            Self {
                now: now + RTT,
                estimate,
                careful,
                path,
            }
        }

        /// As [`tell`] does.
        fn tell(&self, old: Saved) {
            let clone = self
                .path
                .clone_box()
                .into_any()
                .downcast::<PathController>();
            clone.unwrap().track.lock().unwrap().told = Some(old);
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
    async fn a_path_begins_with_half_of_the_smallest_window_over_its_round_trip() {
        let mut rig = Rig::new(Some(old(RTT * 2, WINDOW)), RTT).await;
        assert_eq!(rig.path.window(), WINDOW / 2);
        let metrics = rig.path.metrics();
        assert_eq!(metrics.congestion_window, WINDOW / 2);
        assert_eq!(metrics.pacing_rate, Some(WINDOW / 2 * 20));
        rig.ack(RTT, 1200);
        assert_eq!(rig.path.window(), WINDOW / 2 + 1200);
        assert_eq!(rig.path.metrics().pacing_rate, None);
    }

    #[tokio::test]
    async fn it_grows_by_what_is_acknowledged_to_where_it_was_and_then_by_a_packet_a_round_trip() {
        let mut rig = Rig::new(Some(old(RTT, WINDOW / 4)), RTT).await;
        let initial = rig.path.initial_window();
        assert_eq!(rig.path.window(), WINDOW / 8);
        rig.tell(old(RTT, WINDOW));
        assert_eq!(rig.path.window(), WINDOW / 2);
        rig.ack(RTT, 1200);
        assert_eq!(rig.path.window(), WINDOW / 2 + 1200);
        rig.ack(RTT, WINDOW / 2);
        assert_eq!(rig.path.window(), WINDOW);
        rig.ack(RTT, WINDOW);
        assert_eq!(rig.path.window(), WINDOW + u64::from(MTU));
        // The algorithm has caught up.
        rig.lose();
        let window = rig.path.window();
        assert!(window.abs_diff(WINDOW / 2) < initial, "{window}");
    }

    #[tokio::test]
    async fn what_is_beyond_the_limit_does_not_grow() {
        let mut rig = Rig::new(None, RTT).await;
        let initial = rig.path.window();
        let limit = initial + 10_000;
        rig.careful.limit(limit);
        for _ in 0..100 {
            rig.ack(RTT, limit);
            assert!(rig.path.window() <= limit);
        }
        assert_eq!(rig.path.metrics().congestion_window, limit);
        rig.careful.limit(u64::MAX);
        let window = rig.path.window();
        assert!(window > limit && window < 3 * limit, "{window}");
    }

    #[tokio::test]
    async fn a_loss_takes_the_start_back_to_what_was_acknowledged() {
        let mut rig = Rig::new(Some(old(RTT, WINDOW)), RTT).await;
        let initial = rig.path.initial_window();
        rig.tell(old(RTT, WINDOW));
        rig.ack(RTT, 1200);
        rig.ack(RTT, 10_000);
        rig.lose();
        let window = rig.path.window();
        assert!(window < initial + 11_200, "{window}");
        rig.tell(old(RTT, WINDOW));
        rig.ack(RTT, 1200);
        assert!(rig.path.window() < window + 1200, "{window}");
    }

    #[tokio::test]
    async fn a_path_that_is_not_like_the_old_ones_begins_anew() {
        for rtt in [RTT / 3, RTT * 11] {
            let mut rig = Rig::new(Some(old(RTT, WINDOW)), rtt).await;
            let initial = rig.path.initial_window();
            assert_eq!(rig.path.window(), initial);
            assert_eq!(rig.path.metrics().pacing_rate, None);
            rig.tell(old(RTT, WINDOW));
            rig.ack(rtt, 1200);
            assert_eq!(rig.path.window(), initial + 1200);
        }
    }

    #[tokio::test]
    async fn a_path_that_turns_out_slower_than_its_first_answer_begins_anew() {
        let mut rig = Rig::new(Some(old(RTT, WINDOW)), RTT).await;
        rig.tell(old(RTT, WINDOW));
        rig.ack(RTT * 11, 1200);
        assert_eq!(rig.path.window(), rig.path.initial_window() + 1200);
    }

    #[tokio::test]
    async fn a_path_of_which_nobody_tells_anything_is_left_to_the_algorithm() {
        let mut rig = Rig::new(Some(old(RTT, WINDOW)), RTT).await;
        rig.ack(RTT, WINDOW);
        assert_eq!(rig.path.window(), WINDOW);
        rig.ack(RTT, MAX_ACKED_UNTOLD + 1);
        let all = rig.path.initial_window() + WINDOW + MAX_ACKED_UNTOLD + 1;
        assert_eq!(rig.path.window(), all);
    }

    #[tokio::test]
    async fn only_paths_that_are_made_soon_after_the_move_are_resumed() {
        let mut rig = Rig::new(Some(old(NEW_PATHS_PERIOD, WINDOW)), NEW_PATHS_PERIOD).await;
        let initial = rig.path.initial_window();
        assert_eq!(rig.path.window(), initial);
        rig.tell(old(RTT, WINDOW));
        rig.ack(RTT, 1200);
        assert_eq!(rig.path.window(), initial + 1200);
    }

    #[tokio::test]
    async fn a_path_whose_window_was_small_begins_small() {
        let mut rig = Rig::new(Some(old(RTT, 5000)), RTT).await;
        assert_eq!(rig.path.window(), 2500);
        rig.tell(old(RTT, 5000));
        rig.ack(RTT, 2500);
        assert_eq!(rig.path.window(), 5000);
        rig.path.on_mtu_update(4 * MTU);
        assert_eq!(rig.path.window(), 8 * u64::from(MTU));
    }

    #[tokio::test]
    async fn what_is_in_flight_is_counted_on_all_paths_that_there_are() {
        let mut rig = Rig::new(None, RTT).await;
        let mut other = rig.careful.clone().build(rig.now, MTU);
        rig.path.on_packet_sent(rig.now, MTU, 1);
        other.on_packet_sent(rig.now, MTU, 1);
        other.on_packet_sent(rig.now, MTU, 2);
        assert_eq!(rig.careful.in_flight(), 3600);
        other.on_end_acks(rig.now, 1200, false, Some(1));
        assert_eq!(rig.careful.in_flight(), 2400);
        other.on_packet_lost(MTU, 2, rig.now);
        assert_eq!(rig.careful.in_flight(), 1200);
        drop(rig.path);
        assert_eq!(rig.careful.in_flight(), 0);
    }

    #[tokio::test]
    async fn what_is_held_sends_nothing_until_it_goes_on() {
        let rig = Rig::new(Some(old(RTT, WINDOW)), RTT).await;
        rig.careful.hold();
        assert_eq!(rig.path.window(), 1);
        assert_eq!(rig.path.metrics().congestion_window, 1);
        rig.careful.release();
        assert_eq!(rig.path.window(), WINDOW / 2);
    }

    #[tokio::test]
    async fn a_drain_waits_for_all_that_was_sent_and_for_probes() {
        let mut rig = Rig::new(None, RTT).await;
        let window = rig.path.window();
        rig.path.on_packet_sent(rig.now, MTU, 1);
        assert!(!rig.careful.drain(rig.now));
        assert_eq!(rig.path.window(), window, "the last word is not out yet");
        rig.path.on_packet_sent(rig.now, MTU, 2);
        assert!(!rig.careful.drain(rig.now));
        assert_eq!(rig.path.window(), 1);
        assert_eq!(rig.path.metrics().pacing_rate, Some(UNPACED));
        rig.path.on_packet_sent(rig.now, MTU, 3);
        assert!(!rig.careful.drain(rig.now));
        rig.path.on_end_acks(rig.now, MTU.into(), false, Some(2));
        assert!(!rig.careful.drain(rig.now));
        rig.path.on_end_acks(rig.now, 0, false, Some(3));
        assert!(rig.careful.drain(rig.now));
    }

    #[tokio::test]
    async fn what_is_lost_in_a_drain_is_sent_again() {
        let mut rig = Rig::new(None, RTT).await;
        let window = rig.path.window();
        rig.path.on_packet_sent(rig.now, MTU, 1);
        assert!(!rig.careful.drain(rig.now));
        rig.path.on_packet_sent(rig.now, MTU, 2);
        assert!(!rig.careful.drain(rig.now));
        assert_eq!(rig.path.window(), 1);

        rig.path.on_end_acks(rig.now, MTU.into(), false, Some(2));
        rig.path.on_packet_lost(MTU, 1, rig.now);
        assert!(
            !rig.careful.drain(rig.now),
            "its words are still to be said"
        );
        assert_eq!(rig.path.window(), window);
        rig.path.on_packet_sent(rig.now, MTU, 3);
        assert_eq!(rig.path.window(), 1, "and nothing else");

        rig.path.on_packet_lost(MTU, 3, rig.now);
        rig.careful.hold();
        assert_eq!(rig.path.window(), 1, "the drain is over");
    }

    #[tokio::test]
    async fn a_drain_does_not_wait_for_who_is_gone() {
        let mut rig = Rig::new(None, RTT).await;
        rig.path.on_packet_sent(rig.now, MTU, 1);
        rig.ack(RTT, 0);
        rig.path.on_packet_sent(rig.now, MTU, 2);
        assert!(!rig.careful.drain(rig.now));
        let rtt = rig.estimate.get();
        assert!(!rig.careful.drain(rig.now + 6 * rtt));
        assert!(rig.careful.drain(rig.now + 8 * rtt));
    }

    #[tokio::test]
    async fn the_most_of_late_in_flight_is_what_counts_as_the_window() {
        let mut rig = Rig::new(None, RTT).await;
        let saved = |rig: &Rig, now| {
            let clone = rig.path.clone_box().into_any().downcast::<PathController>();
            let track = *clone.unwrap().track.lock().unwrap();
            track.saved(now).map(|old| old.window)
        };
        for pn in 0..9 {
            rig.path.on_packet_sent(rig.now, MTU, pn);
        }
        assert_eq!(saved(&rig, rig.now), None);
        rig.ack(RTT, 1200);
        rig.path.on_end_acks(rig.now, 0, false, Some(8));
        assert_eq!(saved(&rig, rig.now), Some(9 * 1200));
        rig.now += RECENT_PERIOD * 3 / 2;
        rig.path.on_packet_sent(rig.now, MTU, 9);
        assert_eq!(saved(&rig, rig.now), Some(1200));
        assert_eq!(saved(&rig, rig.now + 2 * RECENT_PERIOD), None);
    }
}
