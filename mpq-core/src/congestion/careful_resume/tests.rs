//! Each rule of RFC 9959, by its section.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::*;

const MTU: u64 = 1200;
const INITIAL: u64 = 10 * MTU;
const RTT: Duration = Duration::from_millis(50);
/// 300 packets, as in the RFC's examples (appendix B).
const OLD: Saved = Saved {
    rtt: RTT,
    window: 300 * MTU,
};
const JUMP: u64 = 150 * MTU;

/// A path that sends whole packets, and an algorithm in slow start.
struct Rig {
    now: Instant,
    path: CarefulResume,
    algorithm: u64,
    next: u64,
    in_flight: BTreeMap<u64, Instant>,
}

impl Rig {
    /// A path that is made this long after the thaw.
    fn new(least: Option<Saved>, after: Duration) -> Self {
        let thaw = Instant::now();
        let memory = Memory {
            thaw: Some(thaw),
            least,
        };
        Self {
            now: thaw + after,
            path: memory.begin(thaw + after, INITIAL, MTU),
            algorithm: INITIAL,
            next: 0,
            in_flight: BTreeMap::new(),
        }
    }

    /// A path that goes on for the old one.
    fn told(old: Saved) -> Self {
        let mut rig = Self::new(None, RTT);
        rig.path.tell(old);
        rig
    }

    /// The same, and confirmed: the RFC's examples, with 29 packets in flight and 10 acknowledged.
    fn confirmed() -> Self {
        let mut rig = Self::told(OLD);
        rig.send(10);
        rig.now += RTT;
        assert_eq!(rig.ack(0..=9), Action::Nothing);
        rig.algorithm = 29 * MTU;
        assert_eq!(rig.send(29), Action::Nothing);
        assert_eq!(rig.phase(), Phase::Reconnaissance);
        rig
    }

    /// The same, with so many unvalidated packets sent.
    fn unvalidated(packets: u64) -> Self {
        let mut rig = Self::confirmed();
        assert_eq!(rig.send(1), Action::Begin(JUMP));
        assert_eq!(rig.phase(), Phase::Unvalidated);
        rig.send(packets - 1);
        rig
    }

    fn phase(&self) -> Phase {
        self.path.phase()
    }

    fn window(&self) -> u64 {
        self.path.window(self.algorithm)
    }

    fn flight(&self) -> u64 {
        self.in_flight.len() as u64 * MTU
    }

    /// Sends packets, and returns the last action.
    fn send(&mut self, packets: u64) -> Action {
        let mut last = Action::Nothing;
        for _ in 0..packets {
            self.in_flight.insert(self.next, self.now);
            let action = self.path.on_sent(self.now, self.next, MTU, self.algorithm);
            self.next += 1;
            if action != Action::Nothing {
                last = action;
            }
        }
        last
    }

    /// One acknowledgement of these packets.
    fn ack(&mut self, packets: RangeInclusive<u64>) -> Action {
        self.ack_limited(packets, false)
    }

    fn ack_limited(&mut self, packets: RangeInclusive<u64>, app_limited: bool) -> Action {
        for pn in packets {
            let sent = self.in_flight.remove(&pn).expect("it is in flight");
            self.path.on_ack(self.now, sent, pn, MTU, app_limited);
            if self.phase() == Phase::Reconnaissance {
                self.algorithm += MTU;
            }
        }
        self.path
            .on_end_acks(self.now, self.flight(), self.algorithm)
    }

    /// This packet is found lost.
    fn lose(&mut self, pn: u64, persistent: bool) -> Action {
        let sent = self.in_flight.remove(&pn).expect("it is in flight");
        self.path.on_congestion(self.now, sent, persistent)
    }
}

/// §3.2, "Path confirmed": all the initial data is acknowledged, and until then the window is the
/// algorithm's.
#[test]
fn a_jump_waits_until_an_initial_window_is_acknowledged() {
    for (acked, jumps) in [(1, false), (5, false), (9, false), (10, true)] {
        let mut rig = Rig::told(OLD);
        assert_eq!(rig.window(), INITIAL);
        assert_eq!(rig.path.pacing_rate(rig.algorithm), None);
        rig.send(10);
        assert_eq!(rig.window(), INITIAL);
        rig.now += RTT;
        assert_eq!(rig.ack(0..=acked - 1), Action::Nothing);
        let expected = if jumps { JUMP } else { INITIAL + acked * MTU };
        assert_eq!(rig.window(), expected, "{acked}");
        assert_eq!(rig.path.pacing_rate(rig.algorithm).is_some(), jumps);
    }
}

/// §3.2, "Minimum RTT too small", and §4.2.1.
#[test]
fn a_jump_wants_a_round_trip_like_the_old_one() {
    let one = Duration::from_nanos(1);
    for (rtt, jumps) in [
        (RTT / 10, false),
        (RTT / 2, false),
        (RTT / 2 + one, true),
        (RTT, true),
        (RTT * 10, true),
        (RTT * 10 + one, false),
    ] {
        let mut rig = Rig::told(OLD);
        rig.send(10);
        rig.now += rtt;
        rig.ack(0..=9);
        assert_eq!(rig.window() == JUMP, jumps, "{rtt:?}");
        assert_eq!(rig.phase() == Phase::Normal, !jumps, "{rtt:?}");
    }
}

/// §4.2.1, note 1: it is the shortest round trip that counts.
#[test]
fn one_short_round_trip_is_enough_to_refute_the_path() {
    let mut rig = Rig::told(OLD);
    rig.send(10);
    rig.now += RTT / 2;
    rig.ack(0..=0);
    rig.now += RTT;
    rig.ack(1..=9);
    assert_eq!(rig.phase(), Phase::Normal);
}

/// §3.2, "Detected congestion".
#[test]
fn congestion_in_reconnaissance_ends_it() {
    let mut rig = Rig::told(OLD);
    rig.send(10);
    rig.now += RTT;
    rig.ack(1..=9);
    assert_eq!(rig.lose(0, false), Action::React);
    assert_eq!(rig.phase(), Phase::Normal);
    rig.path.tell(OLD);
    rig.send(10);
    rig.now += RTT;
    rig.ack(10..=19);
    assert_eq!(rig.window(), rig.algorithm);
}

/// §3.2, "Path change" and "Lifetime": a path that goes on for no other, and one that is late.
#[test]
fn a_path_without_a_past_is_left_to_the_algorithm() {
    let mut rig = Rig::new(None, RTT);
    rig.send(10);
    rig.now += RTT;
    rig.ack(0..=9);
    assert_eq!(rig.window(), 2 * INITIAL);
    // It may still learn of it.
    rig.path.tell(OLD);
    assert_eq!(rig.window(), JUMP);
    rig.send(1);
    rig.now += NEW_PATHS_PERIOD;
    rig.ack(10..=10);
    assert_eq!(rig.phase(), Phase::Normal);

    let late = Rig::new(Some(OLD), NEW_PATHS_PERIOD);
    assert_eq!(late.phase(), Phase::Normal);
}

/// A jump to no more than the algorithm has anyhow is none.
#[test]
fn a_path_that_carried_little_is_left_to_the_algorithm() {
    let mut rig = Rig::told(Saved {
        window: 4 * INITIAL,
        ..OLD
    });
    rig.send(10);
    rig.now += RTT;
    rig.ack(0..=9);
    assert_eq!((rig.phase(), rig.window()), (Phase::Normal, 2 * INITIAL));
}

/// §3.2, "Path confirmed": the jump may be put off until it is needed (§4.2 for the rate-limited sender).
#[test]
fn a_sender_without_data_keeps_its_jump() {
    let mut rig = Rig::confirmed();
    rig.now += 20 * RTT;
    rig.ack(10..=38);
    assert_eq!((rig.phase(), rig.window()), (Phase::Reconnaissance, JUMP));
    let allowed = rig.algorithm / MTU;
    assert_eq!(rig.send(allowed), Action::Nothing);
    assert_eq!(rig.send(1), Action::Begin(JUMP));
}

/// §3.3, "Setting the jump_cwnd", "Initialising PipeSize", "Pacing transmission", "Tracking PipeSize".
#[test]
fn the_jump_is_half_the_old_window_over_a_round_trip_of_now() {
    let mut rig = Rig::confirmed();
    rig.now += 2 * RTT;
    rig.ack(10..=19);
    rig.algorithm = rig.flight();
    let rate = JUMP * 10;
    assert_eq!(rig.path.pacing_rate(rig.algorithm), Some(rate));
    assert_eq!(rig.send(1), Action::Begin(JUMP));
    assert_eq!(rig.path.pipe_size, 19 * MTU);
    assert_eq!(rig.path.pacing_rate(JUMP), Some(rate));
    rig.ack(20..=24);
    assert_eq!((rig.phase(), rig.window()), (Phase::Unvalidated, JUMP));
    assert_eq!(rig.path.pipe_size, 19 * MTU, "these were counted");
    rig.ack(39..=39);
    assert_eq!(rig.path.pipe_size, 20 * MTU);
}

/// §3.3, the three ends of the phase, and "Check flight_size".
#[test]
fn what_is_in_flight_is_the_window_that_is_validated() {
    // All of it is sent.
    let rig = Rig::unvalidated(121);
    assert_eq!((rig.phase(), rig.window()), (Phase::Validating, JUMP));

    // Its first packet is acknowledged.
    let mut rig = Rig::unvalidated(100);
    rig.now += RTT;
    assert_eq!(rig.ack(10..=38), Action::Nothing);
    assert_eq!(rig.phase(), Phase::Unvalidated);
    assert_eq!(rig.ack(39..=39), Action::Nothing);
    assert_eq!((rig.phase(), rig.window()), (Phase::Validating, 99 * MTU));

    // More than a round trip is over.
    let mut rig = Rig::unvalidated(100);
    rig.now += RTT;
    rig.send(1);
    assert_eq!(rig.phase(), Phase::Unvalidated);
    rig.now += Duration::from_nanos(1);
    rig.send(1);
    let in_flight = (29 + 102) * MTU;
    assert_eq!((rig.phase(), rig.window()), (Phase::Validating, in_flight));
}

/// §3.3, "Check flight_size": a jump that was not used leaves PipeSize, and no less than an initial window.
#[test]
fn an_unused_jump_leaves_what_is_known_to_arrive() {
    let mut rig = Rig::unvalidated(10);
    rig.now += RTT;
    rig.ack(10..=38);
    let action = rig.ack(39..=39);
    assert_eq!(action, Action::Begin(30 * MTU));
    assert_eq!(rig.phase(), Phase::Normal);
    assert_eq!(rig.path.counted(MTU, 30 * MTU), MTU, "still slow start");

    let mut rig = Rig::told(OLD);
    rig.send(10);
    rig.now += RTT;
    rig.ack(0..=9);
    rig.algorithm = 2 * MTU;
    assert_eq!(rig.send(3), Action::Begin(JUMP));
    rig.now += RTT;
    assert_eq!(rig.ack(10..=12), Action::Begin(INITIAL));
}

/// §3.3, "Confirming the path during transmission", and §3.5, "Re-initializing CWND".
#[test]
fn a_round_trip_that_is_suddenly_short_takes_the_jump_back() {
    let mut rig = Rig::unvalidated(50);
    rig.now += RTT / 2;
    rig.ack(10..=10);
    assert_eq!(rig.phase(), Phase::SafeRetreat);
    assert_eq!(rig.window(), 29 * MTU / 2);
}

/// §3.3, "Detected congestion".
#[test]
fn congestion_before_the_jump_is_answered_takes_it_back() {
    let mut rig = Rig::unvalidated(50);
    rig.now += RTT;
    rig.ack(11..=20);
    assert_eq!(rig.lose(10, false), Action::Nothing);
    assert_eq!(rig.phase(), Phase::SafeRetreat);
    assert_eq!(rig.window(), 29 * MTU / 2);
    assert_eq!(rig.path.pacing_rate(JUMP), None);
    // Until the last of them is acknowledged, or a later one.
    rig.send(1);
    rig.ack(21..=87);
    assert_eq!(rig.phase(), Phase::SafeRetreat);
    assert_eq!(rig.ack(89..=89), Action::Begin(29 * MTU / 2));
    assert_eq!(rig.phase(), Phase::Normal);
}

/// §3.4, "Updating CWND": slow start, here to the old window and not beyond.
#[test]
fn a_window_that_is_validated_grows_by_what_is_acknowledged() {
    let mut rig = Rig::unvalidated(121);
    rig.now += RTT;
    rig.ack(10..=38);
    assert_eq!(rig.window(), JUMP + 29 * MTU);
    rig.ack_limited(39..=48, true);
    assert_eq!(rig.window(), JUMP + 29 * MTU, "it was not in use");
    rig.send(100);
    rig.ack(49..=158);
    assert_eq!((rig.phase(), rig.window()), (Phase::Validating, 289 * MTU));
    // "Receiving acknowledgement of the unvalidated packets".
    assert_eq!(rig.ack(159..=159), Action::Settle(290 * MTU));
    assert_eq!(rig.phase(), Phase::Normal);
    for (window, counted) in [(290, MTU), (299, MTU), (300, 4), (600, 2)] {
        assert_eq!(rig.path.counted(MTU, window * MTU), counted, "{window}");
    }
    // Until the algorithm has a threshold of its own.
    rig.now += RTT;
    assert_eq!(rig.lose(259, false), Action::React);
    assert_eq!(rig.path.counted(MTU, 300 * MTU), MTU);
}

/// Appendix B.4: the 35th of 121 unvalidated packets is lost, with 29 before them.
#[test]
fn a_loss_while_validating_leaves_half_of_what_is_known_to_arrive() {
    let mut rig = Rig::unvalidated(121);
    rig.now += RTT;
    rig.ack(10..=72);
    assert_eq!(rig.lose(73, false), Action::Nothing);
    let half = 63 * MTU / 2;
    assert_eq!((rig.phase(), rig.window()), (Phase::SafeRetreat, half));
    // §3.5, "Tracking PipeSize" and "Maintaining CWND".
    rig.ack(74..=158);
    assert_eq!((rig.phase(), rig.window()), (Phase::SafeRetreat, half));
    // §3.5, "Acknowledgement of unvalidated packets".
    assert_eq!(rig.ack(159..=159), Action::Begin(half));
    assert_eq!(rig.phase(), Phase::Normal);
    let threshold = (29 + 120) * MTU / 2;
    assert_eq!(rig.path.counted(MTU, threshold - 1), 1);
    assert!(rig.path.counted(MTU, threshold) < MTU / 50);
}

/// §3.5, "Loss Recovery": what else is lost of the jump is the same congestion; later packets are not.
#[test]
fn only_what_is_sent_after_a_retreat_is_congestion_anew() {
    let mut rig = Rig::unvalidated(121);
    rig.now += RTT;
    rig.ack(10..=72);
    rig.lose(73, false);
    let retreat = rig.window();
    for pn in 74..=100 {
        assert_eq!(rig.lose(pn, false), Action::Nothing);
    }
    assert_eq!(rig.window(), retreat);
    rig.now += RTT / 2;
    rig.send(2);
    let later = rig.next - 2;
    assert_eq!(rig.lose(later, false), Action::Nothing);
    assert_eq!(rig.window(), retreat / 2);
    // Also once the algorithm decides again.
    assert_eq!(rig.ack(later + 1..=later + 1), Action::Begin(retreat / 2));
    assert_eq!(rig.lose(101, false), Action::Nothing);
    rig.now += RTT;
    rig.send(1);
    assert_eq!(rig.lose(rig.next - 1, false), Action::React);
}

/// §3.5: noq tells of the last packet's acknowledgement before it tells that others are lost.
#[test]
fn a_loss_of_an_unvalidated_packet_counts_after_the_last_is_acknowledged() {
    let mut rig = Rig::unvalidated(121);
    rig.now += RTT;
    rig.ack(10..=155);
    assert_eq!(rig.ack(159..=159), Action::Settle(297 * MTU));
    let half = (29 + 118) * MTU / 2;
    assert_eq!(rig.lose(157, false), Action::Begin(half));
    assert_eq!(rig.phase(), Phase::Normal);
    assert!(rig.path.counted(MTU, half) < MTU);
    assert_eq!(rig.lose(158, false), Action::Nothing);
}

/// §3.6.
#[test]
fn persistent_congestion_ends_it_in_each_phase() {
    for packets in [50, 121] {
        let mut rig = Rig::unvalidated(packets);
        rig.now += RTT;
        rig.ack(11..=20);
        let validated = 29 * MTU;
        assert_eq!(rig.lose(10, true), Action::BeginAndReact(validated));
        assert_eq!(rig.phase(), Phase::Normal);

        let mut rig = Rig::unvalidated(packets);
        rig.lose(10, false);
        assert_eq!(rig.lose(11, true), Action::BeginAndReact(29 * MTU));
        assert_eq!(rig.phase(), Phase::Normal);
    }
}

/// RFC 9002 §7.2.
#[test]
fn no_window_is_smaller_than_two_packets() {
    let mut rig = Rig::told(OLD);
    rig.send(10);
    rig.now += RTT;
    rig.ack(0..=9);
    rig.algorithm = 0;
    assert_eq!(rig.send(2), Action::Begin(JUMP));
    rig.lose(10, false);
    assert_eq!((rig.phase(), rig.window()), (Phase::SafeRetreat, 2 * MTU));
}

/// [`Resume::Aggressive`].
#[test]
fn an_aggressive_start_jumps_from_the_first_packet_on() {
    let least = Saved {
        window: OLD.window / 2,
        ..OLD
    };
    let mut rig = Rig::new(Some(least), RTT);
    assert_eq!(rig.window(), JUMP / 2);
    assert_eq!(rig.path.pacing_rate(INITIAL), Some(JUMP / 2 * 20));
    assert_eq!(rig.send(11), Action::Begin(JUMP / 2));
    rig.path.tell(OLD);
    assert_eq!((rig.phase(), rig.window()), (Phase::Unvalidated, JUMP));
    // From here on it is careful.
    rig.now += RTT;
    rig.ack(1..=3);
    rig.lose(0, false);
    assert_eq!(rig.phase(), Phase::SafeRetreat);
    assert_eq!(rig.window(), 5 * MTU);

    for rtt in [RTT / 2, RTT * 11] {
        let rig = Rig::new(Some(OLD), rtt);
        assert_eq!(rig.window(), INITIAL);
    }
}
