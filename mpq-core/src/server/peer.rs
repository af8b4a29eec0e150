//! One connection of a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use noq::{PathId, WeakPathHandle};
use tokio::sync::mpsc;

use crate::congestion::Resume;
use crate::congestion::careful_resume::{LIFETIME, Saved};
use crate::congestion::controller;
use crate::congestion::send_control::SendControl;
use crate::h3::gate::Gate;
use crate::h3::go_away::GoAway;
use crate::h3::send_window::SendWindow;
use crate::net::Sockets;
use crate::net::address::canonical;
use crate::proto::Frame;
use crate::proto::probe::KnockKey;
use crate::tls;

/// A connection, as the server needs it for a move.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) connection: noq::WeakConnectionHandle,
    pub(super) gate: Gate,
    frames: mpsc::UnboundedSender<Frame>,
    /// How many of them are not written yet.
    pub(super) unsaid: Arc<AtomicUsize>,
    /// Those of its endpoint.
    pub(super) sockets: Sockets,
    /// Makes our knocks.
    knocks: KnockKey,
    /// It redirects its datagrams when we move, and its paths stay what they are.
    pub(super) redirects: AtomicBool,
    /// The congestion control of its paths.
    pub(super) send_control: Arc<SendControl>,
    /// How far ahead of that bodies are written.
    pub(super) send_window: Arc<SendWindow>,
    /// Tells the client to make no more requests.
    pub(super) go_away: GoAway,
    /// It is being told to go.
    pub(super) leaving: AtomicBool,
    pub(super) paths: Mutex<Paths>,
}

/// The paths of a connection.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) open: BTreeMap<PathId, WeakPathHandle>,
    /// All that were ever open; noq keeps their figures for the handles.
    pub(super) ever: BTreeMap<PathId, (SocketAddr, WeakPathHandle)>,
    /// Those from before the freeze, until the first one from after it is validated.
    pub(super) old: BTreeMap<PathId, OldPath>,
    /// There is one from after the freeze.
    followed: bool,
    /// What was known then of the paths to these addresses of the client, and not told to new ones yet.
    saved: BTreeMap<SocketAddr, Saved>,
    /// When that was noted; the clock of the process may stand still while it is frozen.
    saved_at: Option<SystemTime>,
}

/// A path from before the freeze.
#[derive(Debug)]
pub(super) struct OldPath {
    pub(super) handle: WeakPathHandle,
    /// Where the client was.
    remote: SocketAddr,
    /// Where it led at our end, if that is known.
    local: Option<SocketAddr>,
    /// It leads there now, as far as can be told: this host has that address.
    pub(super) at_home: bool,
}

impl Peer {
    /// Of a client that is at `remote`, over its first path. What it is to be told comes from the receiver.
    pub(super) fn new(
        connection: &noq::Connection,
        remote: SocketAddr,
        gate: Gate,
        sockets: Sockets,
        send_control: Arc<SendControl>,
        send_window: Arc<SendWindow>,
        go_away: GoAway,
    ) -> (Self, mpsc::UnboundedReceiver<Frame>) {
        let (frames, to_send) = mpsc::unbounded_channel();
        let mut paths = Paths::default();
        if let Some(path) = connection.path(PathId::ZERO) {
            paths.add(PathId::ZERO, remote, path.weak_handle());
        }
        let peer = Self {
            connection: connection.weak_handle(),
            gate,
            frames,
            unsaid: Arc::default(),
            sockets,
            knocks: tls::knock_key(connection),
            redirects: AtomicBool::new(false),
            send_control,
            send_window,
            go_away,
            leaving: AtomicBool::new(false),
            paths: Mutex::new(paths),
        };
        (peer, to_send)
    }

    pub(super) fn tell(&self, frame: Frame) {
        self.unsaid.fetch_add(1, Ordering::Relaxed);
        let _ = self.frames.send(frame);
    }

    /// Whether there is something that its task is yet to write.
    pub(super) fn has_to_be_told(&self) -> bool {
        self.unsaid.load(Ordering::Relaxed) > 0 && !self.frames.is_closed()
    }

    /// Whether nothing is to be waited for any more before the server is frozen.
    pub(super) fn is_drained(&self, now: Instant) -> bool {
        !self.leaving.load(Ordering::Relaxed)
            && !self.has_to_be_told()
            && (!self.connection.is_alive() || self.is_closed() || self.send_control.drain(now))
    }

    fn is_closed(&self) -> bool {
        let connection = self.connection.upgrade();
        connection.is_none_or(|connection| connection.close_reason().is_some())
    }

    /// Has all that waits for the client sent. Not before it is known where: noq would send it on
    /// the old paths, which lead nowhere.
    pub(super) fn release(&self) {
        if !self.paths.lock().unwrap().followed {
            self.send_control.keep_paths();
        }
        self.send_control.release();
        self.gate.open();
    }

    /// Tells a path that leads where an old one did what was known of that one.
    pub(super) fn begin_path(&self, connection: &noq::Connection, path: PathId) {
        let remote = connection.path(path).and_then(|p| p.remote_address().ok());
        let saved = &mut self.paths.lock().unwrap().saved;
        if let Some(old) = remote.and_then(|remote| saved.remove(&canonical(remote))) {
            controller::tell(connection, path, old);
        }
    }

    pub(super) fn redirects(&self) -> bool {
        self.redirects.load(Ordering::Relaxed)
    }

    /// The client has made a path after the freeze.
    pub(super) fn followed(&self) {
        self.paths.lock().unwrap().followed = true;
    }

    /// The paths of before go on.
    pub(super) fn stayed(&self) {
        self.paths.lock().unwrap().old.clear();
    }

    /// Closes the paths of before, as soon as there are others: what is sent on them from here never
    /// arrives, since the client knows them by our old address.
    pub(super) fn arrived(&self, connection: &noq::Connection) {
        let old = std::mem::take(&mut self.paths.lock().unwrap().old);
        if self.redirects() {
            return;
        }
        for old in old.keys().filter_map(|old| connection.path(*old)) {
            let _ = old.close();
        }
    }

    /// Notes what is known of the paths, before the server is frozen that listens there.
    pub(super) fn remember_paths(&self, listen: SocketAddr) {
        let mut paths = self.paths.lock().unwrap();
        let old = paths.open.iter().filter_map(|(id, handle)| {
            let path = handle.upgrade()?;
            let local = path.local_ip().ok()?;
            let local = SocketAddr::new(local.unwrap_or(listen.ip()), listen.port());
            let old = OldPath {
                handle: handle.clone(),
                remote: canonical(path.remote_address().ok()?),
                local: Some(canonical(local)).filter(|local| !local.ip().is_unspecified()),
                at_home: false,
            };
            Some((*id, old))
        });
        paths.old = old.collect();
        paths.followed = false;
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        let saved = paths.open.iter().filter_map(|(id, path)| {
            let remote = canonical(path.upgrade()?.remote_address().ok()?);
            let saved = controller::saved(&connection, *id, Instant::now())?;
            Some((remote, saved))
        });
        paths.saved = saved.collect();
        paths.saved_at = Some(SystemTime::now());
    }

    /// Finds out which of the paths of before lead to this server still.
    pub(super) fn look_around(&self) {
        for old in self.paths.lock().unwrap().old.values_mut() {
            old.at_home = old.local.is_some_and(|local| self.sockets.is_at(local));
        }
    }

    /// The paths from now on begin like this, and nothing is sent on those of before.
    pub(super) fn begin_paths(&self, resume: Resume) {
        self.send_control.leave_paths();
        let mut paths = self.paths.lock().unwrap();
        let age = paths.saved_at.and_then(|at| at.elapsed().ok());
        if resume == Resume::Off || age.unwrap_or_default() > LIFETIME {
            paths.saved.clear();
            return;
        }
        let least = paths.saved.values().min_by_key(|old| old.window).copied();
        let least = least.filter(|_| resume == Resume::Aggressive);
        self.send_control.resume(Instant::now(), least);
    }

    /// The paths go on as they are: there was no move.
    pub(super) fn stay(&self) {
        let mut paths = self.paths.lock().unwrap();
        paths.old.clear();
        paths.saved.clear();
        self.send_control.forget();
    }

    /// Says where the server is now, to where the client was; and asks for an answer on the paths that may
    /// work as before.
    pub(super) fn knock(&self) {
        let paths = self.paths.lock().unwrap();
        for old in paths.old.values() {
            // Of several addresses that this host has, the client knows that one.
            let from = old.local.filter(|_| old.at_home);
            let knock = self.knocks.knock(&tls::random());
            self.sockets
                .send(from.map(|local| local.ip()), old.remote, &knock);
        }
        let at_home = paths.old.values().filter(|old| old.at_home);
        let at_home: Vec<_> = at_home.map(|old| old.handle.clone()).collect();
        drop(paths);
        self.ask(&at_home);
    }

    /// The paths of before.
    pub(super) fn old_paths(&self) -> Vec<WeakPathHandle> {
        let paths = self.paths.lock().unwrap();
        paths.old.values().map(|old| old.handle.clone()).collect()
    }

    /// Sends one packet on each of these paths, though they are held, and wants it acknowledged.
    pub(super) fn ask(&self, paths: &[WeakPathHandle]) {
        if !paths.is_empty() {
            self.send_control.allow_one_more();
        }
        for path in paths.iter().filter_map(WeakPathHandle::upgrade) {
            let _ = path.ping();
        }
    }
}

impl Paths {
    pub(super) fn add(&mut self, id: PathId, remote: SocketAddr, handle: WeakPathHandle) {
        self.open.insert(id, handle.clone());
        self.ever.insert(id, (remote, handle));
    }

    /// The client's addresses, now or when the path was open.
    pub(super) fn remotes(&self) -> BTreeMap<PathId, SocketAddr> {
        let remote = |(id, (remote, _)): (&PathId, &(SocketAddr, _))| (*id, *remote);
        self.ever.iter().map(remote).collect()
    }
}
