//! One move of a server, with all of its connections.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noq::PathId;
use tokio::sync::mpsc;

use super::caller::Caller;
use super::hub::Hub;
use super::listener::Listener;
use super::peer::Peer;
use crate::error::MoveError;
use crate::limits::PATHS;
use crate::proto::server::{Announcement, Input, Output};
use crate::stats::path_number;
use crate::time::sleep_until;

/// The drain before a freeze ends after this, whatever is still in flight.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often the drain looks.
const DRAIN_STEP: Duration = Duration::from_millis(2);
/// How many clients are knocked at together, and the time until the next are. Each answers with a
/// datagram of full size on every path, which at this pace makes about 20 Mbit/s a path.
const KNOCKS_TOGETHER: usize = 16;
const KNOCK_INTERVAL: Duration = Duration::from_millis(8);

/// What became of a frozen server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thaw {
    /// It woke, and is to listen here.
    At(SocketAddr),
    /// It was not frozen, and goes on where it was; why.
    Failed(String),
}

/// What moves, and how.
pub(super) struct Relocation {
    pub(super) hub: Arc<Hub>,
    pub(super) listener: Arc<Listener>,
    /// Whether the paths after the move go on where the old ones were.
    pub(super) is_careful: bool,
    pub(super) caller: Caller,
    /// The caller is gone, and the machine knows.
    pub(super) abandoned: bool,
}

impl Relocation {
    /// Does what the machine asks for, until the move is over. Returns the address from then on.
    ///
    /// # Errors
    /// The server stays; why.
    pub(super) async fn run(
        &mut self,
        outputs: &mut mpsc::UnboundedReceiver<Output>,
        announcement: Announcement,
    ) -> Result<SocketAddr, MoveError> {
        let mut failure = String::new();
        self.hub.input(Input::Announce(announcement));
        loop {
            let due = self.hub.next_timeout();
            let output = tokio::select! {
                // What is to be done is begun before the caller is seen to be gone: that ends it, too.
                biased;
                output = outputs.recv() => output.expect("the hub has the sender"),
                () = sleep_until(due) => {
                    self.hub.timeout();
                    continue;
                }
                () = self.caller.gone(), if !self.abandoned => {
                    self.abandon();
                    continue;
                }
            };
            match output {
                Output::Drain => {
                    if self.unless_abandoned(self.drain()).await.is_some() {
                        self.hub.input(Input::Quiet);
                    } else {
                        self.abandon();
                    }
                }
                Output::CloseSockets => {
                    self.each_peer(Peer::remember_paths);
                    self.listener.sockets.close().await;
                    self.hub.input(Input::Closed);
                }
                Output::Dump => {
                    let Some(thaw) = self.unless_abandoned(self.caller.freeze()).await else {
                        self.abandon();
                        continue;
                    };
                    self.hub.input(match thaw {
                        // Any host has the unspecified address; a specific one says where it is.
                        Thaw::At(listen)
                            if listen == self.listener.address()
                                && !listen.ip().is_unspecified() =>
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
                        self.listener.sockets.note_senders(true);
                        missing = self.missing();
                        self.each_peer(|peer| peer.begin_paths(self.is_careful));
                    }
                    let listen = listen.unwrap_or_else(|| self.listener.address());
                    let reopened = self.unless_abandoned(self.listener.reopen(listen));
                    if reopened.await.is_none() {
                        self.abandon();
                        continue;
                    }
                    self.hub.input(Input::Reopened);
                    if missing.iter().any(|missing| missing.peer.redirects()) {
                        // noq is to forget the address that the old sockets had.
                        self.listener.endpoint.handle_network_change(None);
                    }
                    if !missing.is_empty() {
                        tokio::spawn(await_arrivals(self.hub.clone(), missing));
                    }
                    self.caller.reopened(self.listener.address());
                }
                Output::Knock(clients) => drop(tokio::spawn(knock(self.hub.clone(), clients))),
                Output::Done { moved } => {
                    self.listener.sockets.note_senders(false);
                    if !moved {
                        self.each_peer(Peer::stay);
                    }
                    self.each_peer(Peer::release);
                    let listen = self.listener.address();
                    return if moved {
                        Ok(listen)
                    } else {
                        Err(MoveError::Failed(failure))
                    };
                }
                Output::Send(..) | Output::OpenGate(_) | Output::CloseGates => {
                    unreachable!("done by the hub")
                }
            }
        }
    }

    /// What comes of `work`; nothing if the caller goes before.
    async fn unless_abandoned<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.caller.gone(), if !self.abandoned => None,
            done = work => Some(done),
        }
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        self.hub.input(Input::Abandoned);
    }

    fn each_peer(&self, f: impl Fn(&Peer)) {
        self.hub.peers().iter().for_each(|(_, peer)| f(peer));
    }

    /// Tells all clients what there is to tell, sends nothing more, and waits until everything that was
    /// sent is acknowledged, or can no more be expected to be.
    async fn drain(&self) {
        let start = Instant::now();
        let mut waiting = self.hub.peers();
        loop {
            let now = Instant::now();
            waiting.retain(|(_, peer)| peer.has_to_be_told() || !peer.send_control.drain(now));
            if waiting.is_empty() || now >= start + DRAIN_LIMIT {
                break;
            }
            tokio::time::sleep(DRAIN_STEP).await;
        }
        tracing::debug!(waiting = waiting.len(), elapsed = ?start.elapsed(), "drained");
        self.each_peer(|peer| peer.send_control.hold());
    }

    /// All clients, before any of them can have spoken.
    fn missing(&self) -> Vec<Missing> {
        let peers = self.hub.peers().into_iter();
        let missing = peers.filter_map(|(id, peer)| {
            let connection = peer.connection.upgrade()?;
            let newest = peer.paths.lock().unwrap().ever.keys().last().copied();
            Some(Missing {
                id,
                peer,
                heard: connection.stats().udp_rx.datagrams,
                newest: newest.map_or(0, path_number),
            })
        });
        missing.collect()
    }
}

/// A client that has not been heard of since the move.
struct Missing {
    id: u64,
    peer: Arc<Peer>,
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
    fn has_spoken(&self) -> Option<bool> {
        let connection = self.peer.connection.upgrade()?;
        if connection.stats().udp_rx.datagrams == self.heard {
            return Some(false);
        }
        let next = self.newest + 1..=self.newest + PATHS;
        let new = next.map(PathId::from);
        let new: Vec<_> = new.filter(|id| connection.path(*id).is_some()).collect();
        let is_redirected = self.peer.redirects() && self.peer.is_heard();
        let spoken = is_redirected || !new.is_empty();
        if spoken {
            self.peer.arrived(&connection);
        }
        for path in new {
            self.peer.begin_path(&connection, path);
        }
        Some(spoken)
    }
}

/// Knocks at one client after the other, so that not all of them come at the same moment.
async fn knock(hub: Arc<Hub>, clients: Vec<u64>) {
    for some in clients.chunks(KNOCKS_TOGETHER) {
        let peers = some.iter().filter_map(|id| hub.peer(*id));
        peers.for_each(|peer| peer.knock());
        tokio::time::sleep(KNOCK_INTERVAL).await;
    }
}

/// Waits for the first word of each client after the move; no event tells of it.
async fn await_arrivals(hub: Arc<Hub>, mut missing: Vec<Missing>) {
    while !missing.is_empty() && !hub.is_serving() {
        missing.retain(|missing| match missing.has_spoken() {
            Some(true) => {
                hub.input(Input::Established(missing.id));
                false
            }
            Some(false) => true,
            None => false,
        });
        tokio::time::sleep(DRAIN_STEP).await;
    }
}
