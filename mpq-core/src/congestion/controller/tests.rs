//! The controller of one path with the algorithms; the last tests are of what a connection may send at all.

mod link;

use super::*;
use crate::congestion::careful_resume::Phase;
use crate::congestion::olia::tests::estimate;
use crate::congestion::send_control::RECENT_PERIOD;
use crate::congestion::{Algorithm, Congestion};

const MTU: u16 = 1200;
const PACKET: u64 = MTU as u64;
const RTT: Duration = Duration::from_millis(50);
const WINDOW: u64 = 600_000;
const JUMP: u64 = WINDOW / 2;

fn old(rtt: Duration, window: u64) -> Saved {
    Saved { rtt, window }
}

struct Rig {
    now: Instant,
    /// noq alone can make one; what is tested does not look at it.
    estimate: RttEstimator,
    careful: Arc<SendControl>,
    path: Box<dyn Controller>,
    /// The next packet, and the first that is not acknowledged.
    next: u64,
    first: u64,
}

impl Rig {
    /// A path that is there so long after the thaw.
    async fn new(congestion: Congestion, least: Option<Saved>, after: Duration) -> Self {
        let thaw = Instant::now();
        let estimate = estimate().await;
        let careful = Arc::new(SendControl::new(Algorithm::new(congestion)));
        careful.resume(thaw, least);
        let now = thaw + after;
        let path = careful.clone().build(now, MTU);
        Self {
            now: now + RTT,
            estimate,
            careful,
            path,
            next: 0,
            first: 0,
        }
    }

    /// A path on which an initial window was acknowledged, and that is told that it goes on for this one.
    async fn confirmed(congestion: Congestion, old: Saved) -> Self {
        let mut rig = Self::new(congestion, None, RTT).await;
        rig.tell(old);
        rig.send(10);
        rig.ack(10);
        rig
    }

    /// What noq's copy of it shares with the controller.
    fn copy(&self) -> Box<PathController> {
        let copy = self.path.clone_box().into_any().downcast();
        copy.expect("it is ours")
    }

    /// As [`tell`] does.
    fn tell(&self, old: Saved) {
        self.copy().track.lock().unwrap().told = Some(old);
    }

    fn phase(&self) -> Phase {
        self.copy().resume.phase()
    }

    fn in_flight(&self) -> u64 {
        (self.next - self.first) * PACKET
    }

    fn send(&mut self, packets: u64) {
        for _ in 0..packets {
            self.path.on_packet_sent(self.now, MTU, self.next);
            self.next += 1;
        }
    }

    /// So many packets, sent one round trip ago, are acknowledged.
    fn ack(&mut self, packets: u64) {
        let sent = self.now;
        self.now += RTT;
        for _ in 0..packets {
            self.path
                .on_ack(self.now, sent, PACKET, self.first, false, &self.estimate);
            self.first += 1;
        }
        let last = self.first.checked_sub(1);
        self.path
            .on_end_acks(self.now, self.in_flight(), false, last);
    }

    /// A packet of the last round trip is lost.
    fn lose(&mut self) {
        let now = self.now;
        self.path.on_packet_lost(MTU, self.first, now);
        self.path
            .on_congestion_event(now, now - RTT / 2, false, false, PACKET, self.first);
        self.first += 1;
    }
}

#[tokio::test]
async fn every_algorithm_jumps_after_an_initial_window_and_goes_on_where_the_old_path_was() {
    for congestion in Congestion::ALL {
        let mut rig = Rig::new(congestion, None, RTT).await;
        rig.tell(old(RTT, WINDOW));
        let initial = rig.path.initial_window();
        assert_eq!(rig.path.window(), initial, "{congestion}");
        rig.send(10);
        rig.ack(9);
        assert!(rig.path.window() < 2 * initial, "{congestion}");
        rig.ack(1);
        assert_eq!(rig.path.window(), JUMP, "{congestion}");
        let metrics = rig.path.metrics();
        assert_eq!(metrics.congestion_window, JUMP);
        assert_eq!(metrics.pacing_rate, Some(JUMP * 20), "{congestion}");

        rig.send(JUMP / PACKET);
        assert_eq!(rig.phase(), Phase::Validating, "{congestion}");
        rig.ack(JUMP / PACKET);
        assert_eq!(rig.phase(), Phase::Normal, "{congestion}");
        // A fresh BBR has not seen what was in flight before the jump.
        let unseen = match congestion {
            Congestion::Bbr => 21 * PACKET,
            _ => 0,
        };
        let window = rig.path.window();
        assert!(window.abs_diff(WINDOW) <= unseen, "{congestion}: {window}");
    }
}

#[tokio::test]
async fn a_window_grows_by_a_packet_a_round_trip_from_where_it_was() {
    for congestion in [Congestion::Cubic, Congestion::NewReno, Congestion::Olia] {
        let mut rig = Rig::confirmed(congestion, old(RTT, WINDOW)).await;
        rig.send(JUMP / PACKET);
        rig.ack(JUMP / PACKET);
        assert_eq!(rig.path.window(), WINDOW, "{congestion}");
        for round in 1..=10 {
            rig.send(WINDOW / PACKET);
            rig.ack(WINDOW / PACKET);
            let window = rig.path.window();
            let expected = WINDOW + round * PACKET;
            assert!(window.abs_diff(expected) < round * PACKET / 2, "{window}");
        }
        // The algorithm has it from here.
        rig.now += RTT;
        rig.lose();
        let window = rig.path.window();
        let cut = WINDOW / 2..WINDOW * 3 / 4;
        assert!(cut.contains(&window), "{window}");
    }
}

/// §3.5: no more than PipeSize / 2, and slow start up to half of the last PipeSize.
#[tokio::test]
async fn a_loss_leaves_half_of_what_is_known_to_arrive_with_every_algorithm() {
    for congestion in Congestion::ALL {
        let mut rig = Rig::confirmed(congestion, old(RTT, WINDOW)).await;
        rig.send(JUMP / PACKET);
        rig.ack(60);
        rig.lose();
        assert_eq!(rig.phase(), Phase::SafeRetreat, "{congestion}");
        // What was in flight before the jump, and what arrived of the packets since: the first 60 in flight.
        let retreat = rig.path.window();
        assert_eq!(retreat, 60 * PACKET / 2, "{congestion}");
        rig.ack(100);
        assert_eq!(rig.path.window(), retreat, "{congestion}");
        // The rest, and with it the last unvalidated packet.
        rig.ack(JUMP / PACKET - 161);
        assert_eq!(rig.phase(), Phase::Normal, "{congestion}");
        assert_eq!(rig.path.window(), retreat, "{congestion}");

        // Slow start again, with a threshold where the algorithm can have one.
        rig.send(retreat / PACKET);
        rig.ack(retreat / PACKET);
        let window = rig.path.window();
        assert!(
            window.abs_diff(2 * retreat) <= 2 * PACKET,
            "{congestion}: {window}"
        );
        // It is no loss that can be undone.
        rig.path.on_spurious_congestion_event();
        assert!(rig.path.window() <= window, "{congestion}");
    }
}

#[tokio::test]
async fn a_jump_that_is_not_used_is_taken_back_with_every_algorithm() {
    for congestion in Congestion::ALL {
        let mut rig = Rig::confirmed(congestion, old(RTT, WINDOW)).await;
        rig.send(30);
        rig.ack(30);
        assert_eq!(rig.phase(), Phase::Normal, "{congestion}");
        let window = rig.path.window();
        assert!(window <= 31 * PACKET, "{congestion}: {window}");
    }
}

#[tokio::test]
async fn mark_and_persistent_congestion_end_the_start() {
    for congestion in Congestion::ALL {
        let mut rig = Rig::confirmed(congestion, old(RTT, WINDOW)).await;
        rig.send(JUMP / PACKET);
        let now = rig.now;
        rig.path.on_congestion_event(now, now, false, true, 0, 200);
        assert_eq!(rig.phase(), Phase::SafeRetreat, "{congestion}");

        let mut rig = Rig::confirmed(congestion, old(RTT, WINDOW)).await;
        rig.send(JUMP / PACKET);
        let now = rig.now;
        rig.path
            .on_congestion_event(now, now, true, false, PACKET, 200);
        assert_eq!(rig.phase(), Phase::Normal, "{congestion}");
        assert!(rig.path.window() <= 4 * PACKET, "{congestion}");
    }
}

#[tokio::test]
async fn an_aggressive_start_jumps_at_once() {
    let mut rig = Rig::new(Congestion::Cubic, Some(old(RTT, WINDOW / 4)), RTT).await;
    assert_eq!(rig.path.window(), WINDOW / 8);
    assert_eq!(rig.path.metrics().pacing_rate, Some(WINDOW / 8 * 20));
    rig.tell(old(RTT, WINDOW));
    rig.send(1);
    assert_eq!(rig.path.window(), JUMP);
}

/// RFC 9959 §1: "the value of the bottleneck bandwidth" is what a rate-based algorithm keeps.
#[tokio::test]
async fn what_bbr_keeps_of_a_path_is_its_bandwidth_times_its_shortest_round_trip() {
    let mut rig = Rig::new(Congestion::Bbr, None, RTT).await;
    for _ in 0..10 {
        rig.send(50);
        rig.ack(50);
    }
    rig.copy().track.lock().unwrap().min_rtt = RTT;
    let saved = rig.copy().saved(rig.now).expect("it was in use");
    assert_eq!(saved.rtt, RTT);
    // 50 packets in each round trip.
    let window = saved.window;
    assert!(window.abs_diff(50 * PACKET) <= 5 * PACKET, "{window}");
}

#[tokio::test]
async fn what_is_beyond_the_limit_does_not_grow() {
    let mut rig = Rig::new(Congestion::NewReno, None, RTT).await;
    let initial = rig.path.window();
    let limit = initial + 10_000;
    rig.careful.limit(limit);
    for _ in 0..100 {
        rig.send(limit / PACKET);
        rig.ack(limit / PACKET);
        assert!(rig.path.window() <= limit);
    }
    assert_eq!(rig.path.metrics().congestion_window, limit);
    rig.careful.limit(u64::MAX);
    let window = rig.path.window();
    assert!(window > limit && window < 3 * limit, "{window}");
}

#[tokio::test]
async fn what_is_in_flight_is_counted_on_all_paths_that_there_are() {
    let mut rig = Rig::new(Congestion::NewReno, None, RTT).await;
    let control = rig.careful.clone();
    let in_flight = || -> u64 { control.tracks().map(|track| track.bytes).sum() };
    let mut other = rig.careful.clone().build(rig.now, MTU);
    rig.path.on_packet_sent(rig.now, MTU, 1);
    other.on_packet_sent(rig.now, MTU, 1);
    other.on_packet_sent(rig.now, MTU, 2);
    assert_eq!(in_flight(), 3600);
    other.on_end_acks(rig.now, 1200, false, Some(1));
    assert_eq!(in_flight(), 2400);
    other.on_packet_lost(MTU, 2, rig.now);
    assert_eq!(in_flight(), 1200);
    drop(rig.path);
    assert_eq!(in_flight(), 0);
}

#[tokio::test]
async fn what_is_held_sends_nothing_until_it_goes_on() {
    let rig = Rig::new(Congestion::NewReno, Some(old(RTT, WINDOW)), RTT).await;
    rig.careful.hold();
    assert_eq!(rig.path.window(), 1);
    assert_eq!(rig.path.metrics().congestion_window, 1);
    rig.careful.release();
    assert_eq!(rig.path.window(), JUMP);
}

#[tokio::test]
async fn a_drain_waits_for_all_that_was_sent_and_for_probes() {
    let mut rig = Rig::new(Congestion::NewReno, None, RTT).await;
    let window = rig.path.window();
    rig.path.on_packet_sent(rig.now, MTU, 1);
    assert!(!rig.careful.drain(rig.now, false));
    assert_eq!(rig.path.window(), window, "the last word is not out yet");
    rig.path.on_packet_sent(rig.now, MTU, 2);
    assert!(!rig.careful.drain(rig.now, false));
    assert_eq!(rig.path.window(), 1);
    assert_eq!(rig.path.metrics().pacing_rate, Some(UNPACED));
    rig.path.on_packet_sent(rig.now, MTU, 3);
    assert!(!rig.careful.drain(rig.now, false));
    rig.path.on_end_acks(rig.now, MTU.into(), false, Some(2));
    assert!(!rig.careful.drain(rig.now, false));
    rig.path.on_end_acks(rig.now, 0, false, Some(3));
    assert!(rig.careful.drain(rig.now, false));
}

#[tokio::test]
async fn what_is_lost_in_a_drain_is_sent_again() {
    let mut rig = Rig::new(Congestion::NewReno, None, RTT).await;
    let window = rig.path.window();
    rig.path.on_packet_sent(rig.now, MTU, 1);
    assert!(!rig.careful.drain(rig.now, false));
    rig.path.on_packet_sent(rig.now, MTU, 2);
    assert!(!rig.careful.drain(rig.now, false));
    assert_eq!(rig.path.window(), 1);

    rig.path.on_end_acks(rig.now, MTU.into(), false, Some(2));
    rig.path.on_packet_lost(MTU, 1, rig.now);
    assert!(
        !rig.careful.drain(rig.now, false),
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
    let mut rig = Rig::new(Congestion::NewReno, None, RTT).await;
    rig.send(1);
    rig.ack(1);
    rig.send(1);
    assert!(!rig.careful.drain(rig.now, false));
    let rtt = rig.estimate.get();
    assert!(!rig.careful.drain(rig.now + 6 * rtt, false));
    assert!(rig.careful.drain(rig.now + 8 * rtt, false));
}

#[tokio::test]
async fn the_most_that_arrived_in_a_round_trip_of_late_is_what_counts_as_the_window() {
    let mut rig = Rig::new(Congestion::NewReno, None, RTT).await;
    let saved = |rig: &Rig, now| rig.copy().saved(now).map(|old| old.window);
    rig.send(9);
    assert_eq!(saved(&rig, rig.now), None);
    rig.ack(9);
    assert_eq!(saved(&rig, rig.now), Some(9 * 1200));
    rig.now += RECENT_PERIOD * 3 / 2;
    for _ in 0..2 {
        rig.send(1);
        rig.ack(1);
    }
    assert_eq!(saved(&rig, rig.now), Some(1200));
    assert_eq!(saved(&rig, rig.now + 2 * RECENT_PERIOD), None);
}

#[tokio::test]
async fn what_was_dropped_does_not_count_as_the_window() {
    for congestion in [Congestion::Cubic, Congestion::NewReno, Congestion::Olia] {
        let mut rig = Rig::new(congestion, None, RTT).await;
        rig.send(20);
        rig.ack(10);
        for _ in 0..10 {
            rig.lose();
        }
        rig.send(8);
        rig.ack(8);
        let saved = rig.copy().saved(rig.now).unwrap();
        assert_eq!(saved.window, 10 * PACKET, "{congestion}");
    }
}
