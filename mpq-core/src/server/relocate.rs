//! One move of a server, with all of its connections.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noq::{FrameStats, PathId};
use tokio::sync::mpsc;

use super::caller::{Caller, Thaw};
use super::hub::Hub;
use super::listener::Listener;
use super::peer::Peer;
use crate::congestion::Resume;
use crate::error::MoveError;
use crate::limits::PATHS;
use crate::net::address::canonical;
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

/// How often a client is asked on the paths of before, and how long for an answer: each question may be lost.
const MAX_ASKS: usize = 4;
const ASK_INTERVAL: Duration = Duration::from_millis(15);

/// What moves, and how.
pub(super) struct Relocation {
    pub(super) hub: Arc<Hub>,
    pub(super) listener: Arc<Listener>,
    /// How the paths begin after the move.
    pub(super) resume: Resume,
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
        let listen = self.listener.address();
        let may_come_back = announcement.targets.contains(&listen);
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
                // It was given up before its turn came.
                Output::Drain if !self.hub.is_parking() => {}
                Output::Drain => {
                    if self.unless_abandoned(self.drain()).await.is_some() {
                        self.hub.input(Input::Quiet);
                    } else {
                        self.abandon();
                    }
                }
                Output::CloseSockets => {
                    self.each_peer(|peer| peer.remember_paths(self.listener.address()));
                    self.listener.sockets.close().await;
                    self.hub.input(Input::Closed);
                }
                Output::Dump => {
                    let Some(thaw) = self.unless_abandoned(self.caller.freeze()).await else {
                        self.abandon();
                        continue;
                    };
                    self.hub.input(match thaw {
                        // Any host has the unspecified address; a specific one says where it is. If that
                        // was announced, it may be another host that has it now.
                        Thaw::At(listen)
                            if listen == self.listener.address()
                                && !listen.ip().is_unspecified()
                                && !may_come_back =>
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
                        self.each_peer(|peer| peer.begin_paths(self.resume));
                    }
                    let listen = listen.unwrap_or_else(|| self.listener.address());
                    let reopened = self.unless_abandoned(self.listener.reopen(listen));
                    if reopened.await.is_none() {
                        self.abandon();
                        continue;
                    }
                    self.each_peer(Peer::look_around);
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
                Output::Send(..)
                | Output::OpenGate(_)
                | Output::CloseGates
                | Output::Dismiss(_) => {
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
            waiting.retain(|(_, peer)| !peer.is_drained(now));
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
        let missing = peers.map(|(id, peer)| {
            let newest = peer.paths.lock().unwrap().ever.keys().last().copied();
            Missing {
                id,
                peer,
                heard: BTreeMap::new(),
                newest: newest.map_or(0, path_number),
            }
        });
        missing.collect()
    }
}

/// A client that has not been heard of since the move.
struct Missing {
    id: u64,
    peer: Arc<Peer>,
    /// What was received on each of its old paths before it sent anything to here.
    heard: BTreeMap<PathId, FrameStats>,
    /// The newest of its paths.
    newest: u32,
}

impl Missing {
    /// How it has spoken, if it has: nothing else counts than what noq has decrypted. Fails if it is gone.
    ///
    /// It speaks on the paths that it had before, if it redirects or the server is where it was, and otherwise
    /// on one of the next that there can be: noq makes a path when the first packet on it is authenticated.
    /// Whether the client's address is valid is another matter, and noq's.
    fn hear(&mut self) -> Option<Option<Input>> {
        let connection = self.peer.connection.upgrade()?;
        let next = self.newest + 1..=self.newest + PATHS;
        let new = next.map(PathId::from);
        let new: Vec<_> = new.filter(|id| connection.path(*id).is_some()).collect();
        if !new.is_empty() {
            self.peer.followed();
            for path in new {
                self.peer.begin_path(&connection, path);
            }
            tokio::spawn(find_lost(self.peer.clone()));
            return Some(Some(Input::Established(self.id)));
        }
        let spoken = self.hear_on_old_paths();
        let at_home = spoken.iter().any(|at_home| *at_home);
        let heard = match () {
            () if at_home => Some(Input::Stayed(self.id)),
            () if self.peer.redirects() && !spoken.is_empty() => Some(Input::Established(self.id)),
            () => None,
        };
        if heard.is_some() {
            self.peer.stayed();
        }
        Some(heard)
    }

    /// On which of the old paths it has spoken: whether each leads to where the server was. What noq had
    /// received and not looked at yet when the server was frozen does not count: it comes to know that before
    /// anything comes to here.
    fn hear_on_old_paths(&mut self) -> Vec<bool> {
        let paths = self.peer.paths.lock().unwrap();
        let mut spoken = Vec::new();
        for (id, old) in &paths.old {
            let Some(path) = old.handle.upgrade() else {
                continue;
            };
            let received = path.stats().frame_rx;
            let remote = path.remote_address().map(canonical);
            let came = remote.is_ok_and(|remote| self.peer.sockets.has_heard(remote));
            let before = self.heard.entry(*id).or_insert(received);
            if !came {
                *before = received;
            } else if *before != received {
                spoken.push(old.at_home);
            }
        }
        spoken
    }
}

/// Finds out what of that which is in flight on the paths of before never arrived, so that it is sent again:
/// the client, say, was stopped when the server parked. noq takes a packet for lost if a later one on the same
/// path is acknowledged. Without one it would wait for three probe timeouts after the path is abandoned, and
/// those are seconds if acknowledgements came late.
async fn find_lost(peer: Arc<Peer>) {
    let old = peer.old_paths();
    for _ in 0..MAX_ASKS {
        if peer.send_control.left_in_flight() == 0 {
            break;
        }
        peer.ask(&old);
        tokio::time::sleep(ASK_INTERVAL).await;
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
        missing.retain_mut(|missing| match missing.hear() {
            Some(Some(input)) => {
                hub.input(input);
                false
            }
            Some(None) => true,
            None => false,
        });
        tokio::time::sleep(DRAIN_STEP).await;
    }
}
