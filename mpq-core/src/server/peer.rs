//! One connection of a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use noq::{PathId, WeakPathHandle};
use tokio::sync::mpsc;

use crate::congestion::careful_resume::Saved;
use crate::congestion::controller;
use crate::congestion::send_control::SendControl;
use crate::h3::gate::Gate;
use crate::h3::send_window::SendWindow;
use crate::net::Sockets;
use crate::net::address::canonical;
use crate::proto::Frame;
use crate::proto::probe::{self, Token};
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
    /// What our knocks carry.
    knock: Token,
    /// It redirects its datagrams when we move, and its paths stay what they are.
    pub(super) redirects: AtomicBool,
    /// The congestion control of its paths.
    pub(super) send_control: Arc<SendControl>,
    /// How far ahead of that bodies are written.
    pub(super) send_window: Arc<SendWindow>,
    pub(super) paths: Mutex<Paths>,
}

/// The paths of a connection.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) open: BTreeMap<PathId, WeakPathHandle>,
    /// All that were ever open; noq keeps their figures for the handles.
    pub(super) ever: BTreeMap<PathId, (SocketAddr, WeakPathHandle)>,
    /// Those from before the freeze, until the first one from after it is there.
    old: Vec<PathId>,
    /// Where the client was when the server was frozen.
    known_at: Vec<SocketAddr>,
    /// What was known then of the paths to these addresses of the client, and not told to new ones yet.
    saved: BTreeMap<SocketAddr, Saved>,
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
            knock: tls::knock_token(connection),
            redirects: AtomicBool::new(false),
            send_control,
            send_window,
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

    /// Has all that waits for the client sent. Not before it is known where: noq would send it on
    /// the old paths, which lead nowhere.
    pub(super) fn release(&self) {
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

    /// Closes the paths of before, as soon as there are others: what is sent on them from here never
    /// arrives, since the client knows them by our old address.
    pub(super) fn arrived(&self, connection: &noq::Connection) {
        let old = std::mem::take(&mut self.paths.lock().unwrap().old);
        if self.redirects() {
            return;
        }
        for old in old.iter().filter_map(|old| connection.path(*old)) {
            let _ = old.close();
        }
    }

    /// Notes what is known of the paths, before the server is frozen.
    pub(super) fn remember_paths(&self) {
        let mut paths = self.paths.lock().unwrap();
        paths.old = paths.open.keys().copied().collect();
        paths.known_at = paths.open_to().collect();
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        let saved = paths.open.iter().filter_map(|(id, path)| {
            let remote = canonical(path.upgrade()?.remote_address().ok()?);
            let saved = controller::saved(&connection, *id, Instant::now())?;
            Some((remote, saved))
        });
        paths.saved = saved.collect();
    }

    /// The paths from now on may go on where those of before were, or not.
    pub(super) fn begin_paths(&self, is_careful: bool) {
        let mut paths = self.paths.lock().unwrap();
        if is_careful {
            let least = paths.saved.values().min_by_key(|old| old.window).copied();
            self.send_control.resume(Instant::now(), least);
        } else {
            paths.saved.clear();
        }
    }

    /// The paths go on as they are: there was no move.
    pub(super) fn stay(&self) {
        let mut paths = self.paths.lock().unwrap();
        paths.old.clear();
        paths.saved.clear();
        self.send_control.forget();
    }

    /// Says where the server is now, to where the client was.
    pub(super) fn knock(&self) {
        let knock = probe::knock(self.knock);
        for remote in &self.paths.lock().unwrap().known_at {
            self.sockets.send(None, *remote, &knock);
        }
    }

    /// Whether something came from the client since the senders are noted, on the paths that it had.
    pub(super) fn is_heard(&self) -> bool {
        let paths = self.paths.lock().unwrap();
        paths.open_to().any(|remote| self.sockets.has_heard(remote))
    }
}

impl Paths {
    pub(super) fn add(&mut self, id: PathId, remote: SocketAddr, handle: WeakPathHandle) {
        self.open.insert(id, handle.clone());
        self.ever.insert(id, (remote, handle));
    }

    /// The client's addresses now.
    pub(super) fn open_to(&self) -> impl Iterator<Item = SocketAddr> {
        let open = self.open.values().filter_map(WeakPathHandle::upgrade);
        open.filter_map(|path| path.remote_address().ok())
            .map(canonical)
    }

    /// The client's addresses, now or when the path was open.
    pub(super) fn remotes(&self) -> BTreeMap<PathId, SocketAddr> {
        let remote = |(id, (remote, _)): (&PathId, &(SocketAddr, _))| (*id, *remote);
        self.ever.iter().map(remote).collect()
    }
}
