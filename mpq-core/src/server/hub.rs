//! All connections of a server, and the machine that they have together.
//!
//! A hub knows of no endpoint: each [`Peer`] has the sockets of its own. Whoever holds the lock of the machine may
//! take that of a peer's machine, but not the other way round.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;

use super::peer::Peer;
use crate::proto::server::{
    AlternativeAddresses, Arrivals, Input, Output, ServerMachine, Stage, peer,
};
use crate::proto::trace;

/// The connections of a server, by the numbers that the machine knows them by.
#[derive(Debug)]
pub(super) struct Hub {
    machine: Mutex<ServerMachine>,
    peers: Mutex<BTreeMap<u64, Arc<Peer>>>,
    /// What only a move in progress can do.
    outputs: mpsc::UnboundedSender<Output>,
}

impl Hub {
    /// Without any connection yet; what is for a move goes to `outputs`.
    pub(super) fn new(
        elsewhere: AlternativeAddresses,
        outputs: mpsc::UnboundedSender<Output>,
    ) -> Self {
        Self {
            machine: Mutex::new(ServerMachine::new(elsewhere)),
            peers: Mutex::default(),
            outputs,
        }
    }

    /// A connection begins.
    pub(super) fn add(&self, id: u64, peer: Arc<Peer>) {
        self.peers.lock().unwrap().insert(id, peer);
        self.input(Input::Connected(id));
    }

    /// A connection is over.
    pub(super) fn remove(&self, id: u64) {
        self.peers.lock().unwrap().remove(&id);
        self.input(Input::Gone(id));
    }

    /// The addresses of this one, which is over, are not forwarded any more, unless others have them as well.
    pub(super) fn end_forwarding(&self, over: &Peer) {
        let remotes = over.old_remotes().into_iter();
        for remote in remotes.filter(|remote| over.sockets.is_introduced(*remote)) {
            let has_it = |peer: &Peer| peer.old_remotes().contains(&remote);
            if !self.peers().iter().any(|(_, peer)| has_it(peer)) {
                over.sockets.end_forwarding(remote);
            }
        }
    }

    /// One of those that there are.
    pub(super) fn peer(&self, id: u64) -> Option<Arc<Peer>> {
        self.peers.lock().unwrap().get(&id).cloned()
    }

    /// All that there are.
    pub(super) fn peers(&self) -> Vec<(u64, Arc<Peer>)> {
        let peers = self.peers.lock().unwrap();
        peers.iter().map(|(id, peer)| (*id, peer.clone())).collect()
    }

    /// The number of the newest announcement; 0 before the first.
    pub(super) fn sequence(&self) -> u64 {
        self.machine.lock().unwrap().sequence()
    }

    /// What has become of the clients in the newest move.
    pub(super) fn arrivals(&self) -> Arrivals {
        self.machine.lock().unwrap().arrivals()
    }

    /// How far a move is.
    pub(super) fn stage(&self) -> Stage {
        self.machine.lock().unwrap().stage()
    }

    /// When [`Hub::timeout`] is due.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.machine.lock().unwrap().next_timeout()
    }

    /// Something happened.
    pub(super) fn input(&self, input: Input) {
        let cause = input.clone();
        self.step(&cause, |machine, now| machine.handle(now, input));
    }

    /// What is due is done.
    pub(super) fn timeout(&self) {
        self.step(&format_args!("time"), |machine, now| {
            machine.handle_timeout(now)
        });
    }

    /// All that changes the machine's state goes through here.
    fn step(&self, cause: &dyn fmt::Debug, step: impl FnOnce(&mut ServerMachine, Instant)) {
        let mut machine = self.machine.lock().unwrap();
        let before = machine.state();
        tracing::debug!(state = before, ?cause, "migration");
        step(&mut machine, Instant::now());
        trace::transition("server", before, machine.state(), cause);
        self.perform(&mut machine);
    }

    /// Does at once what can be done at once; the rest is for a move in progress.
    fn perform(&self, machine: &mut ServerMachine) {
        while let Some(output) = machine.poll() {
            let peers = self.peers.lock().unwrap();
            let handle = |client, input| {
                if let Some(peer) = peers.get(&client) {
                    peer.handle(input);
                }
            };
            match output {
                Output::Send(client, frame) => {
                    if let Some(peer) = peers.get(&client) {
                        peer.tell(frame);
                    }
                }
                Output::OpenGate(client) => handle(client, peer::Input::Release),
                Output::Keep(client) => handle(client, peer::Input::Keep),
                Output::Dismiss(client) => handle(client, peer::Input::Dismiss),
                Output::CloseGate(client) => {
                    if let Some(peer) = peers.get(&client) {
                        peer.gate.close();
                    }
                }
                Output::CloseGates => peers.values().for_each(|peer| peer.gate.close()),
                later => {
                    let _ = self.outputs.send(later);
                }
            }
        }
    }
}
