//! The server's end: accepts connections, and moves with all of them.
//!
//! [`Server::relocate`] drives the [machine](crate::migration::server) through one move. The freeze
//! itself is the caller's: a future that resolves once the process has woken, wherever that is.
//! Each connection has a task that reads its migration stream and watches its paths.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use noq::{PathEvent, PathId, VarInt, WeakPathHandle};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use crate::congestion::Congestion;
use crate::congestion::careful::{self, Careful, Saved};
use crate::endpoint;
use crate::gate::Gate;
use crate::h3_noq::ahead::Ahead;
use crate::h3_noq::{self, MigrationStream};
use crate::migration::frame::{self, Decoder};
use crate::migration::server::{Announcement, Elsewhere, Input, Output};
use crate::migration::{Frame, log, server::Server as Machine};
use crate::path::manager::number;
use crate::path::mtu;
use crate::path::probe;
use crate::path::silence::{Figures, Silence, Verdict};
use crate::path::sockets::{Bind, Counters, Sockets, canonical};
use crate::runtime::EndpointThread;
use crate::tls::{self, Identity, TlsError};
use crate::traffic::Traffic;

/// How long a connection may be silent before it is closed, seconds of the server's own clock,
/// which stands still while it is frozen.
const IDLE: Duration = Duration::from_secs(60);
/// How long a handshake may take. noq has no limit of its own without an idle timeout, and whoever
/// sends only the first datagram of one would be remembered for ever.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The drain before a freeze ends after this, whatever is still in flight.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often the drain looks.
const DRAIN_STEP: Duration = Duration::from_millis(2);
/// How often the paths of a connection are compared.
const COMPARE: Duration = Duration::from_millis(200);
/// How many clients are knocked at together, and the time until the next are. Each answers with a
/// datagram of full size on every path, which at this pace makes about 20 Mbit/s a path.
const KNOCKS: usize = 16;
const BETWEEN_KNOCKS: Duration = Duration::from_millis(8);
/// How often the new address is tried, if it is not there yet.
const REOPEN_RETRY: Duration = Duration::from_millis(50);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is in use, or not this host's.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The certificate or key is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// noq refused.
    #[error("cannot start the endpoint: {0}")]
    Endpoint(io::Error),
}

/// How to serve.
#[derive(Debug, Clone, Default)]
pub struct ServerConfig {
    /// How fast each connection may send.
    pub congestion: Congestion,
    /// Where clients may look for a server that has vanished.
    pub elsewhere: Elsewhere,
    /// Has the paths after a move begin with slow start, rather than go on carefully where the old
    /// ones were (RFC 9959).
    pub slow_start: bool,
}

/// What became of a frozen server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thaw {
    /// It woke, and is to listen here.
    At(SocketAddr),
    /// It was not frozen, and goes on where it was; why.
    Failed(String),
}

/// Why a move did not take place. The server serves at its old address.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// One at a time.
    #[error("a move is under way already")]
    Busy,
    /// The freeze failed.
    #[error("{0}")]
    Failed(String),
}

/// A server and its connections; clones share them.
#[derive(Debug, Clone)]
pub struct Server {
    endpoint: noq::Endpoint,
    config: ServerConfig,
    crypto: noq::ServerConfig,
    shared: Arc<Shared>,
    /// What only a move in progress cares for.
    moving: Arc<AsyncMutex<mpsc::UnboundedReceiver<Output>>>,
}

/// A connection with a client: its requests, and the gate that their bodies are to pass.
pub struct Session {
    /// Accepts the requests. It must be polled for migration to work.
    pub h3: h3::server::Connection<h3_noq::Connection, Bytes>,
    /// Closed while the server is parked.
    pub gate: Gate,
    /// The client's first address.
    pub remote: SocketAddr,
    /// Resolves when the connection is over.
    pub traffic: oneshot::Receiver<Traffic>,
}

#[derive(Debug)]
struct Shared {
    sockets: Sockets,
    listen: Mutex<SocketAddr>,
    machine: Mutex<Machine>,
    clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    outputs: mpsc::UnboundedSender<Output>,
}

#[derive(Debug)]
struct Client {
    connection: noq::WeakConnectionHandle,
    gate: Gate,
    frames: mpsc::UnboundedSender<Frame>,
    /// How many of them are not written yet.
    unsaid: Arc<AtomicUsize>,
    /// What our knocks carry.
    knock: probe::Token,
    /// It redirects its datagrams when we move, and its paths stay what they are.
    redirects: AtomicBool,
    /// The congestion control of its paths.
    careful: Arc<Careful>,
    /// How far ahead of that bodies are written.
    ahead: Arc<Ahead>,
    paths: Mutex<Paths>,
}

#[derive(Debug, Default)]
struct Paths {
    open: BTreeMap<PathId, WeakPathHandle>,
    /// All that were ever open; noq keeps their figures for the handles.
    ever: BTreeMap<PathId, (SocketAddr, WeakPathHandle)>,
    /// Those from before the freeze, until the first one from after it is there.
    old: Vec<PathId>,
    /// Where the client was when the server was frozen.
    known_at: Vec<SocketAddr>,
    /// What was known then of the paths to these addresses of the client, and not told to new ones yet.
    saved: BTreeMap<SocketAddr, Saved>,
}

impl Server {
    /// Listens on `listen`; an unspecified IPv6 address takes IPv4 as well.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(
        listen: SocketAddr,
        identity: &Identity,
        config: ServerConfig,
    ) -> Result<Self, BindError> {
        let crypto = noq::ServerConfig::with_crypto(Arc::new(tls::server_config(identity)?));
        let (sockets, _) = Sockets::open(&[Bind::from(listen)])
            .map_err(|error| BindError::Listen(listen, error))?;
        let listen = sockets.locals()[0];
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            endpoint::config(),
            Some(crypto.clone()),
            sockets.for_endpoint(),
            Arc::new(EndpointThread::default()),
        )
        .map_err(BindError::Endpoint)?;
        let (outputs, moving) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            sockets,
            listen: Mutex::new(listen),
            machine: Mutex::new(Machine::new(config.elsewhere.clone())),
            clients: Mutex::default(),
            outputs,
        });
        Ok(Self {
            endpoint,
            config,
            crypto,
            shared,
            moving: Arc::new(AsyncMutex::new(moving)),
        })
    }

    /// Where the server listens.
    pub fn listen(&self) -> SocketAddr {
        *self.shared.listen.lock().unwrap()
    }

    /// Handshakes accepted since the start.
    pub fn handshakes(&self) -> u64 {
        self.endpoint.stats().accepted_handshakes
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Datagrams lost below QUIC.
    pub fn counters(&self) -> Counters {
        self.shared.sockets.counters()
    }

    /// The number of the newest announcement; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.shared.machine.lock().unwrap().sequence()
    }

    /// The next connection whose handshake is under way; `None` once the server is closed. The
    /// future inside completes with the handshake, and is best awaited in a task of its own.
    pub async fn accept(&self) -> Option<impl Future<Output = Option<Session>> + Send + use<>> {
        let incoming = self.endpoint.accept().await?;
        // Connections do not share their congestion control.
        let mut config = self.crypto.clone();
        let careful = Arc::new(Careful::new(self.config.congestion.factory()));
        let listen = Bind::from(self.listen());
        let largest = mtu::largest([&listen], canonical(incoming.remote_address()));
        config.transport_config(endpoint::server_transport(careful.clone(), largest));
        let shared = self.shared.clone();
        Some(async move {
            let connecting = incoming.accept_with(Arc::new(config)).ok()?;
            let connected = tokio::time::timeout(HANDSHAKE, connecting).await;
            let connection = connected.ok()?.ok()?;
            endpoint::update_keys(&connection);
            let remote = canonical(connection.path(PathId::ZERO)?.remote_address().ok()?);
            let gate = Gate::default();
            let (mut quic, stream) = h3_noq::Connection::new(connection.clone());
            let ahead = quic.bound(careful.clone());
            let congestion = (careful, ahead);
            let traffic = Shared::watch(
                &shared,
                connection,
                remote,
                gate.clone(),
                stream,
                congestion,
            );
            let h3 = h3::server::builder()
                .send_grease(false)
                .build(quic)
                .await
                .ok()?;
            Some(Session {
                h3,
                gate,
                remote,
                traffic,
            })
        })
    }

    /// Stops accepting, closes all connections, and waits until the peers were told.
    pub async fn close(&self) {
        // H3_NO_ERROR (RFC 9114 §8.1).
        self.endpoint
            .close(VarInt::from_u32(0x100), b"the server is leaving");
        self.endpoint.wait_all_draining().await;
    }

    /// Moves: announces it, parks after the lead time, awaits `freeze` with nothing in flight and
    /// no socket open, and goes on where it says, with the same connections. Returns the new
    /// address once all clients are there, or after 30 s.
    ///
    /// # Errors
    /// [`MoveError`]; the server then serves at its old address, and its clients know.
    pub async fn relocate(
        &self,
        announcement: Announcement,
        freeze: impl Future<Output = Thaw>,
        on_reopened: impl FnOnce(SocketAddr),
    ) -> Result<SocketAddr, MoveError> {
        let mut outputs = self.moving.try_lock().map_err(|_| MoveError::Busy)?;
        let shared = &self.shared;
        let mut freeze = Some(freeze);
        let mut on_reopened = Some(on_reopened);
        let mut failure = String::new();
        shared.input(Input::Announce(announcement));
        loop {
            let due = shared.machine.lock().unwrap().next_timeout();
            let output = tokio::select! {
                output = outputs.recv() => output.expect("the sender is in `self`"),
                () = sleep_until(due) => {
                    shared.timeout();
                    continue;
                }
            };
            match output {
                Output::Drain => {
                    shared.drain().await;
                    shared.input(Input::Quiet);
                }
                Output::CloseSockets => {
                    shared.remember_paths();
                    shared.sockets.close().await;
                    shared.input(Input::Closed);
                }
                Output::Dump => {
                    let Some(freeze) = freeze.take() else {
                        continue;
                    };
                    shared.input(match freeze.await {
                        // Any host has the unspecified address; a specific one says where it is.
                        Thaw::At(listen)
                            if listen == self.listen() && !listen.ip().is_unspecified() =>
                        {
                            failure = format!("it woke at its old address, {listen}");
                            Input::Failed
                        }
                        Thaw::At(listen) => Input::Thawed(listen),
                        Thaw::Failed(reason) => {
                            failure = reason;
                            Input::Failed
                        }
                    });
                }
                Output::Reopen(listen) => {
                    let mut missing = Vec::new();
                    if listen.is_some() {
                        shared.sockets.note_senders(true);
                        missing = shared.missing();
                        let is_careful =
                            self.config.congestion.has_window() && !self.config.slow_start;
                        shared.begin_paths(is_careful);
                    }
                    let listen = listen.unwrap_or_else(|| self.listen());
                    shared.reopen(listen).await;
                    shared.input(Input::Reopened);
                    if missing.iter().any(|missing| missing.client.redirects()) {
                        // noq is to forget the address that the old sockets had.
                        self.endpoint.handle_network_change(None);
                    }
                    if !missing.is_empty() {
                        tokio::spawn(await_arrivals(shared.clone(), missing));
                    }
                    if let Some(on_reopened) = on_reopened.take() {
                        on_reopened(self.listen());
                    }
                }
                Output::Knock(clients) => drop(tokio::spawn(knock(shared.clone(), clients))),
                Output::Done { moved } => {
                    shared.sockets.note_senders(false);
                    shared.each_client(Client::release);
                    let listen = self.listen();
                    return if moved {
                        Ok(listen)
                    } else {
                        Err(MoveError::Failed(failure))
                    };
                }
                Output::Send(..) | Output::OpenGate(_) | Output::CloseGates => {
                    unreachable!("done by `Shared::perform`")
                }
            }
        }
    }
}

impl Shared {
    fn input(&self, input: Input) {
        let cause = input.clone();
        self.step(&cause, |machine, now| machine.handle(now, input));
    }

    fn timeout(&self) {
        self.step(&format_args!("time"), |machine, now| {
            machine.handle_timeout(now)
        });
    }

    /// All that changes the machine's state goes through here.
    fn step(&self, cause: &dyn fmt::Debug, step: impl FnOnce(&mut Machine, Instant)) {
        let mut machine = self.machine.lock().unwrap();
        let before = machine.state();
        tracing::debug!(state = before, ?cause, "migration");
        step(&mut machine, Instant::now());
        log::transition("server", before, machine.state(), cause);
        self.perform(&mut machine);
    }

    /// Does at once what can be done at once; the rest is for [`Server::relocate`].
    fn perform(&self, machine: &mut Machine) {
        while let Some(output) = machine.poll() {
            let clients = self.clients.lock().unwrap();
            match output {
                Output::Send(client, frame) => {
                    if let Some(client) = clients.get(&client) {
                        client.tell(frame);
                    }
                }
                Output::OpenGate(client) => {
                    if let Some(client) = clients.get(&client) {
                        client.release();
                    }
                }
                Output::CloseGates => clients.values().for_each(|client| client.gate.close()),
                later => {
                    let _ = self.outputs.send(later);
                }
            }
        }
    }

    fn each_client(&self, mut f: impl FnMut(&Client)) {
        self.clients
            .lock()
            .unwrap()
            .values()
            .for_each(|client| f(client));
    }

    /// Tells all clients what there is to tell, sends nothing more, and waits until everything that was
    /// sent is acknowledged, or can no more be expected to be.
    async fn drain(&self) {
        let start = Instant::now();
        let mut waiting: Vec<_> = self.clients.lock().unwrap().values().cloned().collect();
        loop {
            let now = Instant::now();
            waiting.retain(|client| client.has_to_be_told() || !client.careful.drain(now));
            if waiting.is_empty() || now >= start + DRAIN_LIMIT {
                break;
            }
            tokio::time::sleep(DRAIN_STEP).await;
        }
        tracing::debug!(waiting = waiting.len(), elapsed = ?start.elapsed(), "drained");
        self.each_client(|client| client.careful.hold());
    }

    fn remember_paths(&self) {
        self.each_client(|client| {
            let mut paths = client.paths.lock().unwrap();
            paths.old = paths.open.keys().copied().collect();
            paths.known_at = paths.open_to().collect();
            let Some(connection) = client.connection.upgrade() else {
                return;
            };
            let saved = paths.open.iter().filter_map(|(id, path)| {
                let remote = canonical(path.upgrade()?.remote_address().ok()?);
                let saved = careful::saved(&connection, *id, Instant::now())?;
                Some((remote, saved))
            });
            paths.saved = saved.collect();
        });
    }

    /// The paths from now on may go on where those of before were, or not.
    fn begin_paths(&self, is_careful: bool) {
        self.each_client(|client| {
            let mut paths = client.paths.lock().unwrap();
            if is_careful {
                let least = paths.saved.values().min_by_key(|old| old.window).copied();
                client.careful.resume(Instant::now(), least);
            } else {
                paths.saved.clear();
            }
        });
    }

    /// Opens the sockets at `listen`, as soon as this host has that address.
    async fn reopen(&self, listen: SocketAddr) {
        while let Err(error) = self.sockets.reopen(&[Bind::from(listen)]) {
            tracing::warn!("cannot listen on {listen}: {error}; trying again");
            tokio::time::sleep(REOPEN_RETRY).await;
        }
        *self.listen.lock().unwrap() = self.sockets.locals()[0];
    }

    fn knock_at(&self, clients: &[u64]) {
        let known = self.clients.lock().unwrap();
        for client in clients.iter().filter_map(|id| known.get(id)) {
            let knock = probe::knock(client.knock);
            for remote in &client.paths.lock().unwrap().known_at {
                self.sockets.send(None, *remote, &knock);
            }
        }
    }

    /// All clients, before any of them can have spoken.
    fn missing(&self) -> Vec<Missing> {
        let clients = self.clients.lock().unwrap();
        let missing = clients.iter().filter_map(|(id, client)| {
            let connection = client.connection.upgrade()?;
            let newest = client.paths.lock().unwrap().ever.keys().last().copied();
            Some(Missing {
                id: *id,
                client: client.clone(),
                heard: connection.stats().udp_rx.datagrams,
                newest: newest.map_or(0, number),
            })
        });
        missing.collect()
    }

    /// Starts the tasks of a connection; what it carried comes when it is over.
    fn watch(
        shared: &Arc<Self>,
        connection: noq::Connection,
        remote: SocketAddr,
        gate: Gate,
        stream: oneshot::Receiver<MigrationStream>,
        (careful, ahead): (Arc<Careful>, Arc<Ahead>),
    ) -> oneshot::Receiver<Traffic> {
        let id = connection.stable_id() as u64;
        let (frames, to_send) = mpsc::unbounded_channel();
        let mut paths = Paths::default();
        if let Some(path) = connection.path(PathId::ZERO) {
            paths.add(PathId::ZERO, remote, path.weak_handle());
        }
        let client = Arc::new(Client {
            connection: connection.weak_handle(),
            gate,
            frames,
            unsaid: Arc::default(),
            knock: probe::knock_token(&connection),
            redirects: AtomicBool::new(false),
            careful,
            ahead,
            paths: Mutex::new(paths),
        });
        shared.clients.lock().unwrap().insert(id, client.clone());
        if shared.machine.lock().unwrap().is_parking() {
            client.gate.close();
        }
        let weak = connection.weak_handle();
        let on_closed = connection.on_closed();
        let events = connection.path_events();
        let shared = shared.clone();
        let start = tokio::time::Instant::now();
        let (sender, traffic) = oneshot::channel();
        tokio::spawn(async move {
            let work = async {
                tokio::join!(
                    watch_paths(&shared, id, &client, events),
                    speak(&shared, id, &client, stream, to_send),
                    close_when_idle(&shared, &weak),
                    close_silent_paths(&shared, &client),
                )
            };
            let closed = tokio::select! {
                closed = on_closed => closed,
                ((), never, (), ()) = work => match never {},
            };
            shared.clients.lock().unwrap().remove(&id);
            shared.input(Input::Gone(id));
            let remotes = client.paths.lock().unwrap().remotes();
            let _ = sender.send(Traffic::new(start.elapsed(), &closed, &remotes));
        });
        traffic
    }
}

impl Paths {
    fn add(&mut self, id: PathId, remote: SocketAddr, handle: WeakPathHandle) {
        self.open.insert(id, handle.clone());
        self.ever.insert(id, (remote, handle));
    }

    /// The client's addresses now.
    fn open_to(&self) -> impl Iterator<Item = SocketAddr> {
        let open = self.open.values().filter_map(WeakPathHandle::upgrade);
        open.filter_map(|path| path.remote_address().ok())
            .map(canonical)
    }

    /// The client's addresses, now or when the path was open.
    fn remotes(&self) -> BTreeMap<PathId, SocketAddr> {
        let remote = |(id, (remote, _)): (&PathId, &(SocketAddr, _))| (*id, *remote);
        self.ever.iter().map(remote).collect()
    }
}

/// Keeps the list of paths; after a thaw, the first new one replaces the old ones.
async fn watch_paths(shared: &Shared, id: u64, client: &Client, mut events: noq::PathEvents) {
    while let Some(event) = events.next().await {
        match event {
            Ok(PathEvent::Established { id: path, .. }) => {
                let Some(connection) = client.connection.upgrade() else {
                    return;
                };
                let Some(handle) = connection.path(path) else {
                    continue;
                };
                let Ok(remote) = handle.remote_address().map(canonical) else {
                    continue;
                };
                let paths = &client.paths;
                paths
                    .lock()
                    .unwrap()
                    .add(path, remote, handle.weak_handle());
                client.arrived(&connection);
                client.begin_path(&connection, path);
                shared.input(Input::Established(id));
            }
            Ok(PathEvent::Abandoned { id: path, .. }) => {
                client.paths.lock().unwrap().open.remove(&path);
            }
            // What the client wishes (draft-ietf-quic-multipath-21 §3.3); noq leaves it to us.
            Ok(PathEvent::RemoteStatus {
                id: path, status, ..
            }) => {
                let path = client.connection.upgrade().and_then(|c| c.path(path));
                if let Some(path) = path {
                    let _ = path.set_status(status);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// Knocks at one client after the other, so that not all of them come at the same moment.
async fn knock(shared: Arc<Shared>, clients: Vec<u64>) {
    for some in clients.chunks(KNOCKS) {
        shared.knock_at(some);
        tokio::time::sleep(BETWEEN_KNOCKS).await;
    }
}

/// A client that has not been heard of since the move.
struct Missing {
    id: u64,
    client: Arc<Client>,
    /// Datagrams that had come from it.
    heard: u64,
    /// The newest of its paths.
    newest: u32,
}

impl Missing {
    /// Whether it has spoken, if it is still there. It does so on the paths that it had before, if
    /// it redirects, and otherwise on one of the next that there can be. noq makes a path when the
    /// first packet on it is authenticated; whether the client's address is valid is another
    /// matter, and known at once if a path of before had the same (RFC 9000 §9.3).
    ///
    /// What noq had received and not looked at yet when the server was frozen does not count.
    fn has_spoken(&self, sockets: &Sockets) -> Option<bool> {
        let connection = self.client.connection.upgrade()?;
        if connection.stats().udp_rx.datagrams == self.heard {
            return Some(false);
        }
        let next = self.newest + 1..=self.newest + endpoint::PATHS;
        let new = next.map(PathId::from);
        let new: Vec<_> = new.filter(|id| connection.path(*id).is_some()).collect();
        let is_redirected = self.client.redirects() && {
            let paths = self.client.paths.lock().unwrap();
            paths.open_to().any(|remote| sockets.has_heard(remote))
        };
        let spoken = is_redirected || !new.is_empty();
        if spoken {
            self.client.arrived(&connection);
        }
        for path in new {
            self.client.begin_path(&connection, path);
        }
        Some(spoken)
    }
}

impl Client {
    fn tell(&self, frame: Frame) {
        self.unsaid.fetch_add(1, Ordering::Relaxed);
        let _ = self.frames.send(frame);
    }

    /// Whether there is something that its task is yet to write.
    fn has_to_be_told(&self) -> bool {
        self.unsaid.load(Ordering::Relaxed) > 0 && !self.frames.is_closed()
    }

    /// Has all that waits for the client sent. Not before it is known where: noq would send it on
    /// the old paths, which lead nowhere.
    fn release(&self) {
        self.careful.release();
        self.gate.open();
    }

    /// Tells a path that leads where an old one did what was known of that one.
    fn begin_path(&self, connection: &noq::Connection, path: PathId) {
        let remote = connection.path(path).and_then(|p| p.remote_address().ok());
        let saved = &mut self.paths.lock().unwrap().saved;
        if let Some(old) = remote.and_then(|remote| saved.remove(&canonical(remote))) {
            careful::tell(connection, path, old);
        }
    }

    fn redirects(&self) -> bool {
        self.redirects.load(Ordering::Relaxed)
    }

    /// Closes the paths of before, as soon as there are others: what is sent on them from here never
    /// arrives, since the client knows them by our old address.
    fn arrived(&self, connection: &noq::Connection) {
        let old = std::mem::take(&mut self.paths.lock().unwrap().old);
        if self.redirects() {
            return;
        }
        for old in old.iter().filter_map(|old| connection.path(*old)) {
            let _ = old.close();
        }
    }
}

/// Waits for the first word of each client after the move; no event tells of it.
async fn await_arrivals(shared: Arc<Shared>, mut missing: Vec<Missing>) {
    while !missing.is_empty() && !shared.machine.lock().unwrap().is_serving() {
        missing.retain(|missing| match missing.has_spoken(&shared.sockets) {
            Some(true) => {
                shared.input(Input::Established(missing.id));
                false
            }
            Some(false) => true,
            None => false,
        });
        tokio::time::sleep(DRAIN_STEP).await;
    }
}

/// Reads the client's migration stream and, once it said HELLO, writes ours.
async fn speak(
    shared: &Shared,
    id: u64,
    client: &Client,
    stream: oneshot::Receiver<MigrationStream>,
    to_send: mpsc::UnboundedReceiver<Frame>,
) -> Infallible {
    if let Ok(mut stream) = stream.await {
        let mut to_send = Some(to_send);
        let mut decoder = Decoder::default();
        while let Ok(Some(chunk)) = stream.read_chunk().await {
            decoder.push(&chunk);
            loop {
                match decoder.frame() {
                    Ok(Some(Frame::Hello { capabilities })) => {
                        if let (Some(frames), Some(connection)) =
                            (to_send.take(), client.connection.upgrade())
                        {
                            let (ahead, unsaid) = (client.ahead.clone(), client.unsaid.clone());
                            let widen = move || ahead.widen();
                            let said = move || {
                                unsaid.fetch_sub(1, Ordering::Relaxed);
                            };
                            tokio::spawn(write_frames(connection, frames, widen, said));
                        }
                        let redirects = capabilities & Frame::REDIRECT != 0;
                        client.redirects.store(redirects, Ordering::Relaxed);
                        // One that can do neither cannot come along.
                        if redirects || capabilities & Frame::MULTIPATH != 0 {
                            shared.input(Input::Hello(id));
                        }
                    }
                    Ok(Some(Frame::Ready { .. })) => shared.input(Input::Ready(id)),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        tracing::info!("a client's migration stream is given up: {error}");
                        return std::future::pending().await;
                    }
                }
            }
        }
    }
    // Without the stream there is nothing to do here, but the connection goes on.
    std::future::pending().await
}

/// Writes frames to the peer until the connection is over; calls `before` before each, and `after`.
pub(crate) async fn write_frames(
    connection: noq::Connection,
    mut frames: mpsc::UnboundedReceiver<Frame>,
    before: impl Fn(),
    after: impl Fn(),
) {
    let weak = connection.weak_handle();
    let Ok(mut stream) = h3_noq::open_migration_stream(&connection).await else {
        return;
    };
    drop(connection);
    let mut bytes = frame::preamble();
    while let Some(frame) = frames.recv().await {
        frame.encode(&mut bytes);
        before();
        if !weak.is_alive() || stream.write_all(&bytes).await.is_err() {
            return;
        }
        after();
        bytes.clear();
    }
}

/// Closes a connection from which nothing came for a long time while the server was awake.
async fn close_when_idle(shared: &Shared, connection: &noq::WeakConnectionHandle) {
    let mut last = (0, tokio::time::Instant::now());
    loop {
        tokio::time::sleep(IDLE / 10).await;
        let Some(connection) = connection.upgrade() else {
            return;
        };
        let received = connection.stats().udp_rx.datagrams;
        if received != last.0 || !shared.machine.lock().unwrap().is_serving() {
            last = (received, tokio::time::Instant::now());
        } else if last.1.elapsed() >= IDLE {
            connection.close(VarInt::from_u32(0x100), b"idle");
            return;
        }
    }
}

/// Closes paths that have died silently, so that what was sent on them is sent again on others. Not
/// while the server parks, where no path has anything to say.
async fn close_silent_paths(shared: &Shared, client: &Client) {
    let mut silence = Silence::of_server();
    loop {
        tokio::time::sleep(COMPARE).await;
        if shared.machine.lock().unwrap().is_parking() {
            silence = Silence::of_server();
            continue;
        }
        let paths: BTreeMap<PathId, noq::Path> = {
            let paths = client.paths.lock().unwrap();
            // There is nothing to compare a single one with.
            let several = paths.open.iter().filter(|_| paths.open.len() > 1);
            several
                .filter_map(|(id, path)| Some((*id, path.upgrade()?)))
                .collect()
        };
        let figures: Vec<_> = paths.values().map(Figures::from).collect();
        for verdict in silence.look(Instant::now(), &figures, false) {
            match verdict {
                Verdict::Ping(id) => {
                    let _ = paths[&id].ping();
                }
                // Only a client does that.
                Verdict::Evacuate { .. } => {}
                Verdict::Close(id) => {
                    let remote = paths[&id].remote_address().map(canonical);
                    tracing::info!("path {id} to {remote:?} is silent, and closed");
                    let _ = paths[&id].close();
                }
            }
        }
    }
}

pub(crate) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
