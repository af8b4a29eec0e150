//! OLIA, the opportunistic linked increases algorithm (Khalili, Gast, Popovic, Le Boudec: "MPTCP is
//! not Pareto-optimal", CoNEXT 2012; draft-khalili-mptcp-congestion-control-05), in bytes.
//!
//! A loss halves a path's window and slow start is as in NewReno (RFC 9002, section 7), each by
//! itself. Only the growth in congestion avoidance looks at the other paths. When `A` bytes of path
//! `r` are acknowledged, its window grows by
//!
//! ```text
//! A · MSS · [ (w_r / rtt_r²) / (Σ_p w_p / rtt_p)² + α_r / w_r ]
//! ```
//!
//! The first term shares the growth of one NewReno connection among all paths. The second moves it
//! from the paths with the largest windows, M, to those of the best paths B that are not among them,
//! C = B \ M: α is 1/(N·|C|) in C, −1/(N·|M|) in M, and 0 elsewhere and for all if C is empty; N is
//! the number of paths. The best paths have the largest l_p / rtt_p², where l_p is what they carried
//! between losses: l is one over the loss rate, and so √(2 l) / rtt the rate that TCP would have.
//!
//! noq's recovery keeps the window at the slow start threshold, so w needs no substitute in it.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noq::congestion::Controller;
use noq_proto::RttEstimator;

/// The paths of one connection; makes their controllers.
#[derive(Debug, Default)]
pub(super) struct Olia(Mutex<Group>);

#[derive(Debug, Default)]
struct Group {
    next: u64,
    /// Those whose controllers are alive: an abandoned path leaves when noq discards it, three
    /// probe timeouts later.
    paths: BTreeMap<u64, Share>,
}

/// What the other paths need to know of one.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    /// Bytes that may be in flight. A fraction of a byte, and of either sign, is a growth too.
    window: f64,
    /// Smoothed round-trip time, seconds; until there is a sample, the path does not count.
    rtt: Option<f64>,
    /// Bytes acknowledged since the last loss.
    since_loss: u64,
    /// Bytes acknowledged between the last two losses.
    between_losses: u64,
}

impl Share {
    /// A path's merit, l / rtt², if it counts; bytes/s².
    fn merit(&self) -> Option<f64> {
        let carried = self.since_loss.max(self.between_losses);
        self.rtt.map(|rtt| carried as f64 / (rtt * rtt))
    }
}

impl Group {
    fn join(&mut self, share: Share) -> u64 {
        let id = self.next;
        self.next += 1;
        self.paths.insert(id, share);
        id
    }

    fn share(&mut self, id: u64) -> &mut Share {
        self.paths
            .get_mut(&id)
            .expect("a path leaves with its controller")
    }

    /// The growth of a path's window, in bytes, when `acked` bytes of it are acknowledged and its
    /// packets have `mss` bytes.
    fn growth(&self, id: u64, acked: f64, mss: f64) -> f64 {
        let Share { window, rtt, .. } = self.paths[&id];
        let Some(rtt) = rtt else { return 0.0 };
        let rates = self.paths.values().filter_map(|p| Some(p.window / p.rtt?));
        let rate: f64 = rates.sum();
        acked * mss * (window / (rtt * rtt) / (rate * rate) + self.alpha(id) / window)
    }

    fn alpha(&self, id: u64) -> f64 {
        let counting = || self.paths.iter().filter(|(_, share)| share.rtt.is_some());
        let most = counting().map(|(_, p)| p.window).fold(0.0, f64::max);
        let best = counting()
            .filter_map(|(_, p)| p.merit())
            .fold(0.0, f64::max);
        let largest = |share: &Share| share.window == most;
        let collected = |share: &Share| !largest(share) && share.merit() == Some(best);

        let n = counting().count() as f64;
        let in_c = counting().filter(|(_, share)| collected(share)).count() as f64;
        let in_m = counting().filter(|(_, share)| largest(share)).count() as f64;
        let share = &self.paths[&id];
        if in_c == 0.0 {
            0.0
        } else if collected(share) {
            1.0 / (n * in_c)
        } else if largest(share) {
            -1.0 / (n * in_m)
        } else {
            0.0
        }
    }
}

impl Olia {
    /// A path of this connection, that begins with this window, bytes, or with that of a new connection.
    pub(super) fn begin(self: Arc<Self>, mtu: u16, window: Option<u64>) -> Box<dyn Controller> {
        let window = window.unwrap_or_else(|| initial_window(mtu.into()));
        Box::new(PathController::new(self, mtu, window))
    }
}

/// The controller of one path.
#[derive(Debug)]
struct PathController {
    group: Arc<Olia>,
    id: u64,
    mss: u64,
    /// Bytes; below it is slow start.
    ssthresh: f64,
    /// Packets from before the last reaction to a loss tell nothing new.
    recovery_start: Option<Instant>,
    /// Whether noq's estimate of the round-trip time rests on a sample, and whether it will after
    /// the acknowledgement that is being processed.
    sampled: bool,
    acked: bool,
}

impl PathController {
    fn new(group: Arc<Olia>, mtu: u16, window: u64) -> Self {
        let id = group.0.lock().unwrap().join(Share {
            window: window as f64,
            rtt: None,
            since_loss: 0,
            between_losses: 0,
        });
        Self {
            group,
            id,
            mss: mtu.into(),
            ssthresh: f64::INFINITY,
            recovery_start: None,
            sampled: false,
            acked: false,
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Group) -> T) -> T {
        f(&mut self.group.0.lock().unwrap())
    }

    fn minimum(&self) -> f64 {
        2.0 * self.mss as f64
    }

    fn in_recovery(&self, sent: Instant) -> bool {
        self.recovery_start.is_some_and(|start| sent <= start)
    }

    fn acknowledged(
        &mut self,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: Option<Duration>,
    ) {
        let grows = !app_limited && !self.in_recovery(sent);
        let (mss, minimum) = (self.mss as f64, self.minimum());
        let mut group = self.group.0.lock().unwrap();
        let share = group.share(self.id);
        // Too coarse a clock may say zero, and it is divided by.
        share.rtt = rtt.map(|rtt| rtt.as_secs_f64().max(1e-6)).or(share.rtt);
        share.since_loss += bytes;
        if !grows {
            return;
        }
        if share.window < self.ssthresh {
            share.window += bytes as f64;
            return;
        }
        let growth = group.growth(self.id, bytes as f64, mss);
        let share = group.share(self.id);
        share.window = (share.window + growth).max(minimum);
        // A window that gives way to a better path must not come back by slow start.
        self.ssthresh = self.ssthresh.min(share.window);
    }
}

/// Bytes, for packets of `mss` bytes (RFC 9002, section 7.2).
fn initial_window(mss: u64) -> u64 {
    14720.clamp(2 * mss, 10 * mss)
}

impl Drop for PathController {
    fn drop(&mut self) {
        self.with(|group| group.paths.remove(&self.id));
    }
}

impl Controller for PathController {
    fn on_ack(
        &mut self,
        _now: Instant,
        sent: Instant,
        bytes: u64,
        _pn: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acked = true;
        // noq takes the sample of an acknowledgement after these calls.
        let rtt = self.sampled.then(|| rtt.get());
        self.acknowledged(sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, _: Instant, _: u64, _: bool, _: Option<u64>) {
        self.sampled |= self.acked;
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        _is_ecn: bool,
        _lost_bytes: u64,
        _largest_lost_pn: u64,
    ) {
        if self.in_recovery(sent) {
            return;
        }
        self.recovery_start = Some(now);
        let minimum = self.minimum();
        self.ssthresh = self.with(|group| {
            let share = group.share(self.id);
            share.between_losses = std::mem::take(&mut share.since_loss);
            let half = (share.window / 2.0).max(minimum);
            share.window = if is_persistent_congestion {
                minimum
            } else {
                half
            };
            half
        });
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mss = new_mtu.into();
        let minimum = self.minimum();
        self.with(|group| {
            let share = group.share(self.id);
            share.window = share.window.max(minimum);
        });
    }

    fn window(&self) -> u64 {
        self.with(|group| group.paths[&self.id].window) as u64
    }

    /// noq drops the original when the path has moved to other addresses.
    fn clone_box(&self) -> Box<dyn Controller> {
        let id = self.with(|group| {
            let share = group.paths[&self.id];
            group.join(share)
        });
        Box::new(Self {
            group: self.group.clone(),
            id,
            ..*self
        })
    }

    fn initial_window(&self) -> u64 {
        initial_window(self.mss)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
pub(super) mod tests;
