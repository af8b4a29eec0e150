//! What a connection sends, over all of its paths: how much at the most, nothing new while it is held, and
//! whether all of it has been answered.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::careful_resume::{Memory, Saved};
use super::saved_paths::SavedPaths;
use super::{Algorithm, Resume};
use crate::proto::server::flight::{Flight, Landing};

/// How long a path is remembered to have carried so much.
pub(super) const RECENT_PERIOD: Duration = Duration::from_secs(1);

/// Makes the controllers of one connection.
pub(crate) struct SendControl {
    pub(super) algorithm: Algorithm,
    pub(super) memory: Mutex<Memory>,
    saved: Mutex<SavedPaths>,
    pub(super) tracks: Mutex<Vec<Weak<Mutex<Track>>>>,
    drain: Mutex<Option<Landing>>,
    pub(super) held: AtomicBool,
    /// Some path may be stale.
    pub(super) left: AtomicBool,
    /// What each path may have in flight at the most, bytes.
    pub(super) limit: AtomicU64,
}

/// What a controller and the server know of each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Track {
    /// Congestion window, bytes.
    pub(super) window: u64,
    /// Packets sent.
    pub(super) sent: u64,
    /// Bytes in flight now, and when they last became fewer.
    pub(super) bytes: u64,
    pub(super) progress: Instant,
    /// A packet was lost, and none was sent since.
    pub(super) lost: bool,
    /// It leads where the peer was before a move: nothing goes there but what is allowed.
    pub(super) stale: bool,
    /// One packet may be sent, whatever holds it.
    pub(super) one_more: bool,
    /// What is acknowledged in the round trip that is under way, bytes, since when, and when the last was.
    pub(super) round: (u64, Instant),
    pub(super) acknowledged: Instant,
    /// The most that was acknowledged in a round trip of late, bytes, and when.
    pub(super) most: (u64, Instant),
    /// Smoothed round-trip time, and the shortest.
    pub(super) rtt: Duration,
    pub(super) min_rtt: Duration,
    /// Which old path this one goes on for, if the controller is yet to know.
    pub(super) told: Option<Saved>,
}

impl Track {
    pub(super) fn set_in_flight(&mut self, now: Instant, bytes: u64) {
        if bytes < self.bytes {
            self.progress = now;
        }
        self.bytes = bytes;
    }

    /// So many bytes are acknowledged, of a packet that was sent then. The capacity of a path is what arrives
    /// in a round trip (RFC 9959 §3.1): what was in flight may have been more than there was room for.
    pub(super) fn count_acknowledged(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let (round, since) = self.round;
        if sent >= since {
            if self.acknowledged > self.most.1 + RECENT_PERIOD {
                self.most = (round, self.acknowledged);
            }
            self.round = (0, now);
        }
        self.round.0 += bytes;
        self.acknowledged = now;
        if self.round.0 > self.most.0 {
            self.most = (self.round.0, now);
        }
    }

    fn flight(self) -> Flight {
        Flight {
            sent: self.sent,
            bytes: self.bytes,
            progress: self.progress,
            lost: self.lost,
            rtt: self.rtt,
        }
    }

    pub(super) fn saved(self, now: Instant) -> Option<Saved> {
        // Something was acknowledged, and not long ago.
        let is_of_use = !self.rtt.is_zero() && now < self.acknowledged + 2 * RECENT_PERIOD;
        is_of_use.then_some(Saved {
            rtt: self.min_rtt,
            window: self.most.0,
        })
    }
}

impl fmt::Debug for SendControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendControl")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl SendControl {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            memory: Mutex::default(),
            saved: Mutex::default(),
            tracks: Mutex::default(),
            drain: Mutex::default(),
            held: AtomicBool::new(false),
            left: AtomicBool::new(false),
            limit: AtomicU64::new(u64::MAX),
        }
    }

    /// Whether nothing is in flight any more, or can no more be expected to be acknowledged ([`Landing`], which begins
    /// when this is first asked), and frames that are `unsaid` are no more waited for. The last words may be lost, and
    /// so each loss is followed by another packet.
    pub(crate) fn drain(&self, now: Instant, unsaid: bool) -> bool {
        let paths: Vec<_> = self.tracks().map(Track::flight).collect();
        let held = self.held.load(Ordering::Relaxed);
        let mut drain = self.drain.lock().unwrap();
        let landing = drain.get_or_insert_with(|| Landing::new(now, held, &paths));
        let is_over = landing.look(now, &paths, unsaid);
        if landing.holds() {
            self.held.store(true, Ordering::Relaxed);
        }
        is_over
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

    pub(super) fn is_draining(&self) -> bool {
        self.drain.lock().unwrap().is_some()
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

    /// Sends nothing on the paths that there are now until they are [kept](Self::keep_paths): the server has
    /// moved, and they may lead nowhere.
    pub(crate) fn leave_paths(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.each_track(|track| track.stale = true);
    }

    /// The paths from before a move go on.
    pub(crate) fn keep_paths(&self) {
        self.each_track(|track| track.stale = false);
        self.left.store(false, Ordering::Relaxed);
    }

    /// One packet may be sent on each path that is held, so that there can be an answer.
    pub(crate) fn allow_one_more(&self) {
        self.each_track(|track| track.one_more = true);
    }

    /// Bytes in flight on the paths from before a move.
    pub(crate) fn left_in_flight(&self) -> u64 {
        let stale = self.tracks().filter(|track| track.stale);
        stale.map(|track| track.bytes).sum()
    }

    fn each_track(&self, f: impl Fn(&mut Track)) {
        let tracks = self.tracks.lock().unwrap();
        let open: Vec<_> = tracks.iter().filter_map(Weak::upgrade).collect();
        drop(tracks);
        open.iter().for_each(|track| f(&mut track.lock().unwrap()));
    }

    pub(super) fn tracks(&self) -> impl Iterator<Item = Track> + use<> {
        let mut tracks = self.tracks.lock().unwrap();
        tracks.retain(|track| track.strong_count() > 0);
        let open: Vec<_> = tracks.iter().filter_map(Weak::upgrade).collect();
        open.into_iter().map(|track| *track.lock().unwrap())
    }

    /// The server is about to be frozen, and this is known of the paths to these addresses of the client.
    pub(crate) fn save(&self, time: SystemTime, paths: impl Iterator<Item = (SocketAddr, Saved)>) {
        *self.saved.lock().unwrap() = SavedPaths::new(time, paths);
    }

    /// The server wakes. The paths that are new from `now` on may go on where others were, if `resume` says so and
    /// that is not too long ago.
    pub(crate) fn thaw(&self, now: Instant, time: SystemTime, resume: Resume) {
        let mut saved = self.saved.lock().unwrap();
        if saved.thaw(time, resume) {
            self.resume(now, saved.least(resume));
        }
    }

    /// The paths that are new from `now` on may go on where others were: for this one, until they are told for which.
    pub(super) fn resume(&self, now: Instant, least: Option<Saved>) {
        let thaw = Some(now);
        *self.memory.lock().unwrap() = Memory { thaw, least };
    }

    /// What was known of the path to this address of the client, for the first that asks.
    pub(crate) fn take_saved(&self, remote: SocketAddr) -> Option<Saved> {
        self.saved.lock().unwrap().take(remote)
    }

    /// Paths begin as ever: there was no move.
    pub(crate) fn forget(&self) {
        *self.saved.lock().unwrap() = SavedPaths::default();
        *self.memory.lock().unwrap() = Memory::default();
    }
}
