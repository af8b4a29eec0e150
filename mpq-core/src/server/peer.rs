//! One connection of a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use futures::stream;
use noq::{FrameStats, PathId, WeakPathHandle};
use tokio::sync::{Notify, mpsc};

use crate::congestion::Resume;
use crate::congestion::controller;
use crate::congestion::send_control::SendControl;
use crate::frame_io::FrameWriter;
use crate::h3::NO_ERROR;
use crate::h3::gate::Gate;
use crate::h3::go_away::GoAway;
use crate::h3::send_window::SendWindow;
use crate::net::Sockets;
use crate::net::address::canonical;
use crate::proto::probe::KnockKey;
use crate::proto::server::flight::{self, Standing};
use crate::proto::server::peer::{self as proto, Input, Output, PeerMachine};
use crate::proto::{Frame, PathFigures};
use crate::stats::{figures, heard, path_number};
use crate::tls;

/// What a client that cannot follow is told with H3_NO_ERROR.
const CANNOT_FOLLOW: &[u8] = b"the server moves and this connection cannot follow: connect again";

/// A connection, as the server needs it for a move.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) connection: noq::WeakConnectionHandle,
    pub(super) gate: Gate,
    frames: mpsc::UnboundedSender<Frame>,
    /// How many of them are not written yet.
    unsaid: Arc<AtomicUsize>,
    /// Where they come from, until they are written.
    to_send: Mutex<Option<mpsc::UnboundedReceiver<Frame>>>,
    /// What writes them, once there is a stream.
    writer: Mutex<Option<FrameWriter>>,
    /// Those of its endpoint.
    pub(super) sockets: Sockets,
    /// Makes our knocks.
    knocks: KnockKey,
    /// The congestion control of its paths.
    pub(super) send_control: Arc<SendControl>,
    /// How far ahead of that bodies are written.
    pub(super) send_window: Arc<SendWindow>,
    /// Tells the client to make no more requests.
    pub(super) go_away: GoAway,
    /// The connection, while its end is on its way.
    closing: Mutex<Option<noq::Connection>>,
    machine: Mutex<PeerMachine>,
    sooner: Notify,
    pub(super) paths: Mutex<Paths>,
}

/// By what a connection goes in the machines.
pub(super) fn peer_number(connection: &noq::Connection) -> u64 {
    connection.stable_id() as u64
}

/// The paths of a connection.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) open: BTreeMap<PathId, WeakPathHandle>,
    /// All that were ever open; noq keeps their figures for the handles.
    pub(super) ever: BTreeMap<PathId, (SocketAddr, WeakPathHandle)>,
    /// Those that were open before the freeze.
    old: BTreeMap<u32, OldPath>,
}

/// A path from before the freeze.
#[derive(Debug)]
struct OldPath {
    handle: WeakPathHandle,
    /// Where the client was.
    remote: SocketAddr,
    /// Where it led at our end, if that is known.
    local: Option<SocketAddr>,
    /// What noq had decrypted on it when this was last looked at.
    received: Option<FrameStats>,
}

impl Peer {
    /// Of a client that is at `remote`, over its first path.
    pub(super) fn new(
        connection: &noq::Connection,
        remote: SocketAddr,
        gate: Gate,
        sockets: Sockets,
        send_control: Arc<SendControl>,
        send_window: Arc<SendWindow>,
        go_away: GoAway,
    ) -> Self {
        let (frames, to_send) = mpsc::unbounded_channel();
        let mut paths = Paths::default();
        if let Some(path) = connection.path(PathId::ZERO) {
            paths.add(PathId::ZERO, remote, path.weak_handle());
        }
        Self {
            connection: connection.weak_handle(),
            gate,
            frames,
            unsaid: Arc::default(),
            to_send: Mutex::new(Some(to_send)),
            writer: Mutex::default(),
            sockets,
            knocks: tls::knock_key(connection),
            send_control,
            send_window,
            go_away,
            closing: Mutex::default(),
            machine: Mutex::new(PeerMachine::new(Instant::now(), peer_number(connection))),
            sooner: Notify::new(),
            paths: Mutex::new(paths),
        }
    }

    /// Something happened. What the machine wants is done, but for what is returned: that needs others.
    pub(super) fn handle(&self, input: Input) -> Vec<Output> {
        self.step(|machine, now| machine.handle(now, input))
    }

    /// What is due is done; returns as [`handle`](Self::handle) does.
    pub(super) fn timeout(&self) -> Vec<Output> {
        self.step(PeerMachine::handle_timeout)
    }

    fn step(&self, step: impl FnOnce(&mut PeerMachine, Instant)) -> Vec<Output> {
        let mut machine = self.machine.lock().unwrap();
        let due = machine.next_timeout();
        step(&mut machine, Instant::now());
        let is_sooner = machine.next_timeout() < due;
        let outputs: Vec<_> = std::iter::from_fn(|| machine.poll()).collect();
        drop(machine);
        if is_sooner {
            self.sooner.notify_one();
        }
        let rest = outputs
            .into_iter()
            .filter_map(|output| self.perform(output));
        rest.collect()
    }

    /// Resolves when the time of [`Peer::timeout`] is sooner than it was.
    pub(super) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// When [`Peer::timeout`] is due.
    pub(super) fn next_timeout(&self) -> Instant {
        self.machine.lock().unwrap().next_timeout()
    }

    /// Whether the client is being told to go.
    pub(super) fn is_leaving(&self) -> bool {
        self.machine.lock().unwrap().is_leaving()
    }

    /// Whether the client's paths stay what they are when the server moves.
    pub(super) fn keeps_paths(&self) -> bool {
        self.machine.lock().unwrap().keeps_paths()
    }

    /// Whether the client is to be forwarded.
    pub(super) fn is_kept(&self) -> bool {
        self.machine.lock().unwrap().is_kept()
    }

    /// Where the client was before the freeze.
    pub(super) fn old_remotes(&self) -> Vec<SocketAddr> {
        let paths = self.paths.lock().unwrap();
        paths.old.values().map(|old| old.remote).collect()
    }

    /// Does what can be done with the connection alone.
    fn perform(&self, output: Output) -> Option<Output> {
        match output {
            Output::Speak => self.speak(),
            Output::Ping(path) => drop(self.path(path).map(|path| path.ping())),
            Output::Close(path) => self.close(path),
            Output::Followed(paths) => {
                if let Some(connection) = self.connection.upgrade() {
                    let paths = paths.into_iter().map(PathId::from);
                    paths.for_each(|path| self.begin_path(&connection, path));
                }
            }
            Output::Ask(paths) => self.ask(&paths),
            Output::Knock { path, at_home } => self.knock(path, at_home),
            Output::GoAway => self.go_away.send(),
            Output::Dismiss => {
                if let Some(connection) = self.connection.upgrade() {
                    connection.close(NO_ERROR, CANNOT_FOLLOW);
                    *self.closing.lock().unwrap() = Some(connection);
                }
            }
            Output::KeepPaths => self.send_control.keep_paths(),
            Output::Release => {
                self.send_control.release();
                self.gate.open();
            }
            others => return Some(others),
        }
        None
    }

    fn path(&self, id: u32) -> Option<noq::Path> {
        self.connection.upgrade()?.path(PathId::from(id))
    }

    fn close(&self, id: u32) {
        if let Some(path) = self.path(id) {
            if let Ok(remote) = path.remote_address().map(canonical) {
                tracing::info!("path {id} to {remote} is closed");
            }
            let _ = path.close();
        }
    }

    /// Whether the client allows a stream for what it is to be told.
    pub(super) fn can_be_told(&self) -> bool {
        let is_told = self.to_send.lock().unwrap().is_none();
        let mut writer = self.writer.lock().unwrap();
        if !is_told && writer.is_none() {
            *writer = self
                .connection
                .upgrade()
                .and_then(|c| FrameWriter::open(&c));
        }
        is_told || writer.is_some()
    }

    /// Writes what it is told from now on.
    fn speak(&self) {
        let frames = self.to_send.lock().unwrap().take();
        let writer = self.writer.lock().unwrap().take();
        let (Some(writer), Some(frames)) = (writer, frames) else {
            return;
        };
        let (send_window, unsaid) = (self.send_window.clone(), self.unsaid.clone());
        let widen = move || send_window.widen();
        let said = move || {
            unsaid.fetch_sub(1, Ordering::Relaxed);
        };
        let frames = stream::unfold(frames, async |mut frames| {
            Some((frames.recv().await?, frames))
        });
        tokio::spawn(writer.write(frames, widen, said));
    }

    pub(super) fn tell(&self, frame: Frame) {
        self.unsaid.fetch_add(1, Ordering::Relaxed);
        let _ = self.frames.send(frame);
    }

    /// Whether there is something that its task is yet to write.
    fn has_to_be_told(&self) -> bool {
        self.unsaid.load(Ordering::Relaxed) > 0 && !self.frames.is_closed()
    }

    /// Whether nothing is to be waited for any more before the server is frozen.
    pub(super) fn is_drained(&self, now: Instant) -> bool {
        let standing = Standing {
            is_leaving: self.is_leaving(),
            is_gone: !self.connection.is_alive() || self.is_closed(),
        };
        let unsaid = self.has_to_be_told();
        flight::is_drained(standing, || self.send_control.drain(now, unsaid))
    }

    fn is_closed(&self) -> bool {
        let connection = self.connection.upgrade();
        connection.is_none_or(|connection| connection.close_reason().is_some())
    }

    /// Tells a path that leads where an old one did what was known of that one.
    pub(super) fn begin_path(&self, connection: &noq::Connection, path: PathId) {
        let remote = connection.path(path).and_then(|p| p.remote_address().ok());
        let saved = remote.and_then(|remote| self.send_control.take_saved(canonical(remote)));
        if let Some(saved) = saved {
            controller::tell(connection, path, saved);
        }
    }

    /// Notes what is known of the paths, before the server is frozen that listens there.
    pub(super) fn remember_paths(&self, listen: SocketAddr) {
        let mut paths = self.paths.lock().unwrap();
        let old = paths.open.iter().filter_map(|(id, handle)| {
            let path = handle.upgrade()?;
            let remote = canonical(path.remote_address().ok()?);
            let local = path.local_ip().ok()?;
            let local = local.or_else(|| self.sockets.hidden_local(remote));
            let local = SocketAddr::new(local.unwrap_or(listen.ip()), listen.port());
            let old = OldPath {
                handle: handle.clone(),
                remote,
                local: Some(canonical(local)).filter(|local| !local.ip().is_unspecified()),
                received: None,
            };
            Some((path_number(*id), old))
        });
        paths.old = old.collect();
        if let Some(connection) = self.connection.upgrade() {
            let saved = paths.open.iter().filter_map(|(id, path)| {
                let remote = canonical(path.upgrade()?.remote_address().ok()?);
                let saved = controller::saved(&connection, *id, Instant::now())?;
                Some((remote, saved))
            });
            self.send_control.save(SystemTime::now(), saved);
        }
    }

    /// The sockets are open again: finds out which of the paths of before lead to this server still.
    pub(super) fn look_around(&self) {
        let at_home = {
            let paths = self.paths.lock().unwrap();
            let is_at_home = |old: &OldPath| old.local.is_some_and(|at| self.sockets.is_at(at));
            let at_home = paths.old.iter().filter(|(_, old)| is_at_home(old));
            at_home.map(|(id, _)| *id).collect()
        };
        self.handle(Input::Reopened(at_home));
    }

    /// The client is missing. The paths from now on begin like this, and nothing is sent on those of before.
    pub(super) fn begin_paths(&self, resume: Resume) {
        self.handle(Input::Woken(self.new_paths()));
        self.send_control.leave_paths();
        self.send_control
            .thaw(Instant::now(), SystemTime::now(), resume);
    }

    /// The paths go on as they are: there was no move.
    pub(super) fn stay(&self) {
        self.handle(Input::Stay);
        self.send_control.forget();
    }

    /// Says where the server is now, to where the client was.
    fn knock(&self, path: u32, at_home: bool) {
        let paths = self.paths.lock().unwrap();
        if let Some(old) = paths.old.get(&path) {
            // Of several addresses that this host has, the client knows that one.
            let from = old.local.filter(|_| at_home);
            let knock = self.knocks.knock(&tls::random());
            self.sockets
                .knock(from.map(|local| local.ip()), old.remote, &knock);
        }
    }

    /// Sends one packet on each of these paths of before, though they are held, and wants it acknowledged.
    fn ask(&self, paths: &[u32]) {
        self.send_control.allow_one_more();
        let old = &self.paths.lock().unwrap().old;
        let handles = paths.iter().filter_map(|id| old.get(id));
        for path in handles.filter_map(|old| old.handle.upgrade()) {
            let _ = path.ping();
        }
    }

    /// Whether all that the client was told has arrived, and whether the end of the connection is sent.
    pub(super) fn told(&self) -> Input {
        let closing = self.closing.lock().unwrap();
        let closes =
            |connection: &noq::Connection| connection.stats().frame_tx.connection_close > 0;
        Input::Told {
            has_arrived: self.send_control.drain(Instant::now(), false),
            is_closed: closing.as_ref().is_none_or(closes),
        }
    }

    /// The counters of the paths, and frames received on all; nothing once the connection is gone.
    pub(super) fn figures(&self) -> Option<(u64, Vec<PathFigures>)> {
        let connection = self.connection.upgrade()?;
        let paths = self.paths.lock().unwrap();
        let open = paths.open.values().filter_map(WeakPathHandle::upgrade);
        let figures = open.map(|path| figures(&path)).collect();
        Some((heard(&connection.stats().frame_rx), figures))
    }

    /// Those that there are of the paths that the client can make next: noq makes one when the first packet on it is
    /// authenticated.
    pub(super) fn new_paths(&self) -> Vec<u32> {
        let next = self.machine.lock().unwrap().next_paths();
        let Some(connection) = self.connection.upgrade() else {
            return Vec::new();
        };
        next.filter(|id| connection.path(PathId::from(*id)).is_some())
            .collect()
    }

    /// What has come on the paths of before, since this was last asked.
    pub(super) fn heard_on_old_paths(&self) -> Vec<proto::OldPath> {
        let mut paths = self.paths.lock().unwrap();
        let heard = paths.old.iter_mut().filter_map(|(id, old)| {
            let path = old.handle.upgrade()?;
            let received = path.stats().frame_rx;
            let before = old.received.replace(received);
            let remote = path.remote_address().map(canonical);
            Some(proto::OldPath {
                path: *id,
                has_come: remote.is_ok_and(|remote| self.sockets.has_heard(remote)),
                has_spoken: before.is_some_and(|before| before != received),
                is_forwarded: self.sockets.is_introduced(old.remote),
            })
        });
        heard.collect()
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
