//! One move of a server, with all of its connections.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;

use super::caller::{Caller, Thaw};
use super::hub::Hub;
use super::listener::Listener;
use super::peer::Peer;
use crate::congestion::Resume;
use crate::error::MoveError;
use crate::forwarder::Forwarding;
use crate::proto::forward::ForwardKey;
use crate::proto::server::{Announcement, Input, Output, flight, peer};
use crate::time::sleep_until;
use crate::tls;

/// What moves, and how.
pub(super) struct Relocation {
    pub(super) hub: Arc<Hub>,
    pub(super) listener: Arc<Listener>,
    /// How the paths begin after the move.
    pub(super) resume: Resume,
    pub(super) caller: Caller,
    /// The caller is gone, and the machine knows.
    pub(super) abandoned: bool,
    /// Those of whom something is waited for before the freeze.
    pub(super) draining: Vec<Arc<Peer>>,
    /// What a forwarder has to know, if there is to be one, from the freeze on.
    pub(super) forwarding: Arc<Mutex<Option<Forwarding>>>,
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
        // Told only to a caller who is there: for one who is gone, that is why.
        let mut failure = MoveError::Interrupted;
        let is_forwarded = announcement.forwarded;
        *self.forwarding.lock().unwrap() = None;
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
                () = tokio::time::sleep(flight::LOOK_INTERVAL), if !self.draining.is_empty() => {
                    self.look_whether_drained();
                    continue;
                }
            };
            match output {
                Output::Drain => {
                    let peers = self.hub.peers().into_iter();
                    self.draining = peers.map(|(_, peer)| peer).collect();
                    self.look_whether_drained();
                }
                Output::Hold => {
                    let waiting = self.draining.len();
                    tracing::debug!(waiting, "drained");
                    self.draining.clear();
                    self.each_peer(|peer| peer.send_control.hold());
                }
                Output::CloseSockets => {
                    self.each_peer(|peer| peer.remember_paths(self.listener.address()));
                    self.listener.close().await;
                    if is_forwarded {
                        self.prepare_forwarding();
                    }
                    self.hub.input(Input::Closed);
                }
                Output::Dump => {
                    let Some(thaw) = self.unless_abandoned(self.caller.freeze()).await else {
                        self.abandon();
                        continue;
                    };
                    let input = match thaw {
                        Thaw::At(listen) => {
                            failure = MoveError::Stayed(listen);
                            let before = self.listener.address();
                            Input::Thawed { listen, before }
                        }
                        Thaw::Failed(reason) => {
                            failure = MoveError::NotFrozen(reason);
                            Input::Failed
                        }
                    };
                    self.hub.input(input);
                }
                Output::Wake => {
                    self.listener.begin_arrival();
                    self.each_peer(|peer| peer.begin_paths(self.resume));
                }
                Output::Reopen(listen) => {
                    let address = listen.unwrap_or_else(|| self.listener.address());
                    if let Err(error) = self.listener.reopen(address) {
                        tracing::warn!("cannot listen on {address}: {error}");
                        if listen.is_some() {
                            failure = MoveError::Listen(address, error);
                        }
                        self.hub.input(Input::NotReopened);
                        continue;
                    }
                    self.hub.input(Input::Reopened);
                    if listen.is_some() {
                        let peers = self.hub.peers();
                        if peers.iter().any(|(_, peer)| peer.keeps_paths()) {
                            self.listener.forget_addresses();
                        }
                        self.expect_forwarder();
                        peers.iter().for_each(|(_, peer)| peer.look_around());
                    }
                    self.caller.reopened(self.listener.address());
                }
                Output::Knock(clients) => {
                    let peers = clients.iter().filter_map(|id| self.hub.peer(*id));
                    peers.for_each(|peer| drop(peer.handle(peer::Input::Knock)));
                }
                Output::Done { moved } => {
                    self.draining.clear();
                    self.listener.end_arrival();
                    if !moved {
                        *self.forwarding.lock().unwrap() = None;
                        self.each_peer(Peer::stay);
                    }
                    self.each_peer(|peer| drop(peer.handle(peer::Input::Release)));
                    let listen = self.listener.address();
                    return if moved { Ok(listen) } else { Err(failure) };
                }
                Output::Send(..)
                | Output::OpenGate(_)
                | Output::CloseGate(_)
                | Output::Keep(_)
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

    /// Draws what the server will know its forwarder by.
    fn prepare_forwarding(&self) {
        let addresses = |kept| {
            let clients = self.clients(kept).into_iter();
            clients.map(|client| self.listener.sockets.network_address(client))
        };
        *self.forwarding.lock().unwrap() = Some(Forwarding {
            secret: tls::random(),
            clients: addresses(true).collect(),
            followers: addresses(false).collect(),
        });
    }

    /// The server is elsewhere: clients that are forwarded are where the forwarder is.
    fn expect_forwarder(&self) {
        let sockets = &self.listener.sockets;
        match &*self.forwarding.lock().unwrap() {
            Some(Forwarding { secret, .. }) => {
                sockets.expect_forwarder(ForwardKey::new(secret), &self.clients(true));
            }
            None => sockets.expect_no_forwarder(),
        }
    }

    /// The addresses of the clients that are to be forwarded, or of those that follow.
    fn clients(&self, kept: bool) -> Vec<SocketAddr> {
        let peers = self.hub.peers().into_iter();
        let peers = peers.filter(|(_, peer)| peer.is_kept() == kept);
        peers.flat_map(|(_, peer)| peer.old_remotes()).collect()
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        self.hub.input(Input::Abandoned);
    }

    /// What is in flight is acknowledged, or can no more be expected to be.
    fn look_whether_drained(&mut self) {
        let now = Instant::now();
        self.draining.retain(|peer| !peer.is_drained(now));
        if self.draining.is_empty() {
            self.hub.input(Input::Quiet);
        }
    }

    fn each_peer(&self, f: impl Fn(&Peer)) {
        self.hub.peers().iter().for_each(|(_, peer)| f(peer));
    }
}
