//! The controller of one path, between noq and the algorithm: it gives a path its start after a move, and
//! sends no more than the connection may.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noq::PathId;
use noq::congestion::{Controller, ControllerFactory, ControllerMetrics};
use noq_proto::RttEstimator;

use super::careful_resume::{Action, CarefulResume, Saved};
use super::send_control::{SendControl, Track};

/// What paces nothing, bytes a second.
const UNPACED: u64 = 1 << 30;

/// What is known of an old path now.
pub(crate) fn saved(connection: &noq::Connection, path: PathId, now: Instant) -> Option<Saved> {
    PathController::of(connection, path)?.saved(now)
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
            stale: false,
            one_more: false,
            round: (0, now),
            acknowledged: now,
            most: (0, now),
            rtt: Duration::ZERO,
            min_rtt: Duration::ZERO,
            told: None,
        }));
        self.tracks.lock().unwrap().push(Arc::downgrade(&track));
        let algorithm = self.algorithm.begin(now, mtu, None);
        let memory = *self.memory.lock().unwrap();
        let controller = PathController {
            resume: memory.begin(now, algorithm.initial_window(), mtu.into()),
            algorithm,
            made: now,
            mtu,
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
    resume: CarefulResume,
    made: Instant,
    /// Bytes.
    mtu: u16,
    track: Arc<Mutex<Track>>,
}

impl PathController {
    /// A path's controller, as it is now; it shares its track with noq's.
    fn of(connection: &noq::Connection, path: PathId) -> Option<Box<Self>> {
        let controller = connection.congestion_state(path)?;
        controller.into_any().downcast().ok()
    }

    /// What is known of the path. A model of it knows its rate; a window counts as far as it was in use.
    fn saved(&self, now: Instant) -> Option<Saved> {
        let saved = self.track.lock().unwrap().saved(now)?;
        let model = self.memory.algorithm.has_model();
        // Bits a second.
        let bandwidth = model.then(|| self.algorithm.metrics().bandwidth_estimate);
        let window = bandwidth
            .flatten()
            .map(|bandwidth| (bandwidth as f64 / 8.0 * saved.rtt.as_secs_f64()) as u64);
        Some(Saved {
            window: window.unwrap_or(saved.window),
            ..saved
        })
    }

    /// The window, as if nothing were held.
    fn allowed(&self) -> u64 {
        let allowed = self.resume.window(self.algorithm.window());
        // The smallest window (RFC 9002 §7.2).
        allowed.max(2 * u64::from(self.mtu)).min(self.limit())
    }

    /// Has the algorithm do what the careful resume asks for. It counts as made with the path, since
    /// NewReno does not count what was sent before it was made.
    fn act(&mut self, action: Action) {
        match action {
            Action::Settle(_) if self.memory.algorithm.has_model() => {}
            Action::Begin(window) | Action::Settle(window) | Action::BeginAndReact(window) => {
                let algorithm = &self.memory.algorithm;
                self.algorithm = algorithm.begin(self.made, self.mtu, Some(window));
            }
            Action::Nothing | Action::React => {}
        }
    }

    /// Whether nothing may be sent now.
    fn is_held(&self) -> bool {
        let held = self.memory.held.load(Ordering::Relaxed);
        if !held && !self.memory.left.load(Ordering::Relaxed) {
            return false;
        }
        let track = *self.track.lock().unwrap();
        track.stale || held && !(track.lost && self.memory.is_draining())
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
        let told = track.told.take();
        track.lost = false;
        track.one_more = false;
        track.sent += 1;
        track.bytes += u64::from(bytes);
        drop(track);
        if let Some(old) = told {
            self.resume.tell(old);
        }
        let allowed = self.algorithm.window();
        let action = self.resume.on_sent(now, pn, bytes.into(), allowed);
        if action != Action::Nothing {
            self.act(action);
            self.note_window();
        }
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
            track.count_acknowledged(now, sent, bytes);
            track.rtt = rtt.get();
            track.min_rtt = rtt.min();
            track.told.take()
        };
        if let Some(old) = told {
            self.resume.tell(old);
        }
        self.resume.on_ack(now, sent, pn, bytes, app_limited);
        let counted = match self.memory.algorithm.has_model() {
            true => bytes,
            false => self.resume.counted(bytes, self.algorithm.window()),
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
        let allowed = self.algorithm.window();
        let action = self.resume.on_end_acks(now, in_flight, allowed);
        self.act(action);
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
        let action = self
            .resume
            .on_congestion(now, sent, is_persistent_congestion);
        self.act(action);
        if matches!(action, Action::React | Action::BeginAndReact(_)) {
            self.algorithm.on_congestion_event(
                now,
                sent,
                is_persistent_congestion,
                is_ecn,
                lost_bytes,
                largest_lost_pn,
            );
        }
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
        self.mtu = new_mtu;
        self.resume.mtu = new_mtu.into();
        self.algorithm.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(&mut self, threshold: u64, max_ack_delay: Duration) {
        self.algorithm
            .on_ack_frequency_update(threshold, max_ack_delay);
    }

    fn window(&self) -> u64 {
        if !self.is_held() {
            return self.allowed();
        }
        let track = *self.track.lock().unwrap();
        match track.one_more {
            true => track.bytes + u64::from(self.mtu),
            // Not 0, which noq divides by.
            false => 1,
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.algorithm.metrics();
        metrics.congestion_window = self.window();
        if self.memory.held.load(Ordering::Relaxed) || self.is_held() {
            // A window of next to nothing would have noq's probes wait for minutes.
            metrics.pacing_rate = Some(UNPACED);
        } else if let Some(rate) = self.resume.pacing_rate(self.algorithm.window()) {
            metrics.pacing_rate = Some(rate);
        } else if let (Some(rate), Some(max)) = (metrics.pacing_rate, self.resume.max_rate()) {
            metrics.pacing_rate = Some(rate.min(max));
        }
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            memory: self.memory.clone(),
            algorithm: self.algorithm.clone_box(),
            resume: self.resume,
            made: self.made,
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
mod tests;
