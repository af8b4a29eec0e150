//! Careful resume (RFC 9959): what the old paths of a connection knew of
//! their capacity gives the new ones a start after a move.
//!
//! - **Reconnaissance** (§3.2). A client's first packet on a new path answers what the server has said
//!   to it after the thaw. If that took about as long as a round trip did before (between half and ten
//!   times, §3.1.2), the path need not begin as any other.
//! - **Unvalidated and validating** (§3.3, §3.4). noq makes a controller before anybody knows its path. As
//!   soon as the server has seen that the path leads to the same address of the client as an old one
//!   did, it [tells](tell) the controller; until then, the old one with the smallest window counts.
//!   Half of that window may be in flight, spread over a round trip, and as much more as is
//!   acknowledged, until the window is as large as it was. Then it grows by a packet a round trip; a
//!   slow start would only lead it to where it was before.
//! - **Retreat** (§3.5). Any loss takes the start back at once. The algorithm below has grown by what
//!   was acknowledged meanwhile, and decides from then on.
//!
//! Where the old windows were small, as those of many clients on one link are, the new ones are too:
//! all their initial windows at once would be more than the link can take.
//!
//! What counts as an old path's window is no more than what was in flight there during its last second: a
//! window that the sender or the receiver could not fill says nothing about the network.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use noq::PathId;
use noq::congestion::{Controller, ControllerFactory, ControllerMetrics};
use noq_proto::RttEstimator;

use super::Factory;

/// How long after the move paths are new.
const LIFETIME: Duration = Duration::from_secs(30);

/// How long a path is remembered to have had so much in flight.
const RECENT: Duration = Duration::from_secs(1);

/// What may be acknowledged on a path that nobody has told what it goes on for, beyond the window that
/// it began with, before it is taken for one of a new kind; bytes.
const UNTOLD: u64 = 64 << 10;

/// What paces nothing, bytes a second.
const UNPACED: u64 = 1 << 30;

/// In this time what was written is sent, also where nothing is in flight that would tell.
const LAST_WORDS: Duration = Duration::from_millis(10);

/// An acknowledgement may be delayed by so much (RFC 9000 §18.2).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// What was known of an old path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Smoothed round-trip time.
    rtt: Duration,
    /// Congestion window, as far as it was in use, bytes.
    pub(crate) window: u64,
}

impl Saved {
    /// Whether a path of this round-trip time may be the same.
    fn is_like(self, rtt: Duration) -> bool {
        rtt >= self.rtt / 2 && rtt <= self.rtt * 10
    }

    /// What is sent before anything of it is known to arrive (§3.3), bytes.
    fn jump(self) -> u64 {
        self.window / 2
    }
}

/// What is known of an old path now.
pub(crate) fn saved(connection: &noq::Connection, path: PathId, now: Instant) -> Option<Saved> {
    let resuming = Resuming::of(connection, path)?;
    resuming.track.lock().unwrap().saved(now)
}

/// Tells a new path's controller which old path it goes on for.
pub(crate) fn tell(connection: &noq::Connection, path: PathId, old: Saved) {
    if let Some(resuming) = Resuming::of(connection, path) {
        resuming.track.lock().unwrap().told = Some(old);
    }
}

/// The wait for what was sent on one connection.
#[derive(Debug, Clone, Copy)]
struct Drain {
    since: Instant,
    /// Packets until then.
    sent: u64,
}

/// Makes the controllers of one connection.
pub(crate) struct Careful {
    algorithm: Arc<Factory>,
    memory: Mutex<Memory>,
    tracks: Mutex<Vec<Weak<Mutex<Track>>>>,
    drain: Mutex<Option<Drain>>,
    held: AtomicBool,
    /// What each path may have in flight at the most, bytes.
    limit: AtomicU64,
}

/// What a controller and the server know of each other.
#[derive(Debug, Clone, Copy)]
struct Track {
    /// Congestion window, bytes.
    window: u64,
    /// Packets sent.
    sent: u64,
    /// Bytes in flight now, and when they last became fewer.
    bytes: u64,
    progress: Instant,
    /// A packet was lost, and none was sent since.
    lost: bool,
    /// The most of late, and when that was.
    most: (u64, Instant),
    /// Smoothed round-trip time.
    rtt: Duration,
    /// Which old path this one goes on for, if the controller is yet to know.
    told: Option<Saved>,
}

impl Track {
    fn set_in_flight(&mut self, now: Instant, bytes: u64) {
        if bytes < self.bytes {
            self.progress = now;
        }
        self.bytes = bytes;
    }

    /// Whether nothing is in flight, or to be sent again.
    fn is_answered(self) -> bool {
        self.bytes == 0 && !self.lost
    }

    /// Whether nothing moved since then in the time in which noq sends two probes and may have an answer.
    /// Those probes count: they carry what was lost.
    fn is_hopeless(self, now: Instant, since: Instant) -> bool {
        // A probe timeout (RFC 9002 §6.2.1) of a path whose round trips vary by a half.
        let timeout = 3 * self.rtt + ACK_DELAY;
        now >= self.progress.max(since) + 2 * timeout + self.rtt
    }

    fn saved(self, now: Instant) -> Option<Saved> {
        // Something was acknowledged, and not long ago.
        let is_of_use = !self.rtt.is_zero() && now < self.most.1 + 2 * RECENT;
        is_of_use.then_some(Saved {
            rtt: self.rtt,
            window: self.most.0,
        })
    }
}

impl fmt::Debug for Careful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Careful")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    /// The old path with the smallest window.
    least: Option<Saved>,
    thaw: Option<Instant>,
}

impl Careful {
    pub(crate) fn new(algorithm: Arc<Factory>) -> Self {
        Self {
            algorithm,
            memory: Mutex::default(),
            tracks: Mutex::default(),
            drain: Mutex::default(),
            held: AtomicBool::new(false),
            limit: AtomicU64::new(u64::MAX),
        }
    }

    /// Whether nothing is in flight any more, or can no more be expected to be acknowledged. From the
    /// first time that this is asked, nothing new is sent once what was written to be said has been: it
    /// goes ahead of all else, in the next packet that there is room for. That one may be lost, and so each
    /// loss is followed by another packet.
    pub(crate) fn drain(&self, now: Instant) -> bool {
        let sent = || self.tracks().map(|track| track.sent).sum();
        let mut drain = self.drain.lock().unwrap();
        let drain = drain.get_or_insert_with(|| Drain {
            since: now,
            sent: sent(),
        });
        let is_idle = || self.in_flight() == 0 && now >= drain.since + LAST_WORDS;
        if drain.sent != sent() || is_idle() {
            self.held.store(true, Ordering::Relaxed);
        }
        let held = self.held.load(Ordering::Relaxed);
        self.tracks()
            .all(|track| held && track.is_answered() || track.is_hopeless(now, drain.since))
    }

    /// Sends nothing new; lost data counts as new, acknowledgements and probes go out all the same.
    pub(crate) fn hold(&self) {
        *self.drain.lock().unwrap() = None;
        self.held.store(true, Ordering::Relaxed);
    }

    /// Goes on.
    pub(crate) fn release(&self) {
        *self.drain.lock().unwrap() = None;
        self.held.store(false, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.drain.lock().unwrap().is_some()
    }

    /// Bytes that were sent on any path, are to be acknowledged, and were neither yet nor are lost.
    pub(crate) fn in_flight(&self) -> u64 {
        self.tracks().map(|track| track.bytes).sum()
    }

    /// How many paths there are, and their congestion windows together, bytes.
    pub(crate) fn windows(&self) -> (usize, u64) {
        self.tracks().fold((0, 0), |(paths, windows), track| {
            (paths + 1, windows + track.window)
        })
    }

    /// Has no path have more in flight than this, bytes, whatever the network allows.
    pub(crate) fn limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    fn tracks(&self) -> impl Iterator<Item = Track> + use<> {
        let mut tracks = self.tracks.lock().unwrap();
        tracks.retain(|track| track.strong_count() > 0);
        let open: Vec<_> = tracks.iter().filter_map(Weak::upgrade).collect();
        open.into_iter().map(|track| *track.lock().unwrap())
    }

    /// The paths that are new from `now` on may go on where others were, of which this one had the
    /// smallest window.
    pub(crate) fn resume(&self, now: Instant, least: Option<Saved>) {
        let thaw = Some(now);
        *self.memory.lock().unwrap() = Memory { least, thaw };
    }

    /// How a path that is made now begins.
    fn begin(&self, now: Instant) -> Phase {
        let Memory { least, thaw } = *self.memory.lock().unwrap();
        let Some(thaw) = thaw.filter(|thaw| now < *thaw + LIFETIME) else {
            return Phase::Normal;
        };
        let rtt = now - thaw;
        let start = least.filter(|least| least.is_like(rtt));
        Phase::Reconnaissance(start.map(|least| Start { rtt, least }), 0)
    }
}

impl ControllerFactory for Careful {
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
        let controller = Resuming {
            algorithm: self.algorithm.clone().build(now, mtu),
            phase: self.begin(now),
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
struct Resuming {
    memory: Arc<Careful>,
    algorithm: Box<dyn Controller>,
    phase: Phase,
    /// Bytes.
    mtu: u64,
    track: Arc<Mutex<Track>>,
}

impl Resuming {
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

    /// Whether nothing may be sent now. The two locks are never held together here: [`Careful::drain`] takes
    /// them in the other order.
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

/// How a path begins that is like the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    /// What its first answer took.
    rtt: Duration,
    /// It goes on for this one at least.
    least: Saved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It may be like one of the old paths: how it begins, if not as any other, and how many bytes were
    /// acknowledged.
    Reconnaissance(Option<Start>, u64),
    /// It goes on for this old path and may have so many bytes in flight.
    Resuming(Saved, u64),
    /// The algorithm decides.
    Normal,
}

impl Controller for Resuming {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.algorithm.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        let mut track = self.track.lock().unwrap();
        track.lost = false;
        track.sent += 1;
        track.bytes += u64::from(bytes);
        if track.bytes > track.most.0 || now > track.most.1 + RECENT {
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
                if start.is_some_and(|start| *acknowledged > start.least.window + UNTOLD) {
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

    use super::super::olia::tests::estimate;
    use super::*;

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
        careful: Arc<Careful>,
        path: Box<dyn Controller>,
    }

    impl Rig {
        /// A path that is there so long after the thaw.
        async fn new(least: Option<Saved>, after: Duration) -> Self {
            let thaw = Instant::now();
            let estimate = estimate().await;
            let careful = Arc::new(Careful::new(Arc::new(NewRenoConfig::default())));
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
            let clone = self.path.clone_box().into_any().downcast::<Resuming>();
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
        rig.ack(RTT, UNTOLD + 1);
        let all = rig.path.initial_window() + WINDOW + UNTOLD + 1;
        assert_eq!(rig.path.window(), all);
    }

    #[tokio::test]
    async fn only_paths_that_are_made_soon_after_the_move_are_resumed() {
        let mut rig = Rig::new(Some(old(LIFETIME, WINDOW)), LIFETIME).await;
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
            let clone = rig.path.clone_box().into_any().downcast::<Resuming>();
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
        rig.now += RECENT * 3 / 2;
        rig.path.on_packet_sent(rig.now, MTU, 9);
        assert_eq!(saved(&rig, rig.now), Some(1200));
        assert_eq!(saved(&rig, rig.now + 2 * RECENT), None);
    }
}
