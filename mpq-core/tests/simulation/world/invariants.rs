//! What holds at any time:
//!
//! - Of two live servers, the right one and a copy left running, a client that is settled has paths
//!   to one only. The last path is never closed, at either end.
//! - Datagrams are redirected only to addresses that have answered a probe.
//! - Probes keep to the caps, for each address and for all together, and go only where the server sent its
//!   client.
//! - A cancelled move leaves no trace.
//! - A path whose link is dead is given up if the connection has one that works; a client that is silent is given
//!   up by the server, and a server that is silent by the client, not before their time and not much later.
//! - A client says that it has settled when it has, and only then.
//!
//! What holds in the end is in [`World::unsettled`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mpq_core::proto::Strategy;
use mpq_core::proto::frame::Frame;
use mpq_core::proto::server::Stage;

use super::network::local;
use super::peer::{Path, Peer};
use super::traffic::TICK;
use super::{IDLE, World};

/// Promised by the client's machine: probes to an address at which the server never was, at once and in a
/// second; the same for all such addresses together; and rounds of probes in a second.
const TARGET: (usize, f64) = (384, 2.0);
const CONNECTION: (usize, f64) = (1_024, 8.0);
const MAX_ROUNDS: u32 = 60;
/// Promised by the server's: how long it hears nothing before it gives a client up. It looks every few seconds only.
const SERVER_IDLE: Duration = Duration::from_secs(60);
const SELDOM: Duration = Duration::from_secs(7);
/// Path ids at the same time.
const PATH_IDS: usize = 16;
/// How long a path may be kept whose link is dead, while another one works.
const DEAD: Duration = Duration::from_secs(5);

impl Peer {
    /// Where the server is, its word counts for more than any number.
    fn count_probes(&mut self, now: Instant, target: SocketAddr, probes: usize) {
        let passed = now.duration_since(self.since).as_secs_f64();
        let most = |(burst, rate): (usize, f64)| burst + (rate * passed) as usize;
        if target != self.machine.remote() {
            let to_target = self.probes.entry(target.ip()).or_default();
            *to_target += probes;
            assert!(*to_target <= most(TARGET), "too many probes to {target}");
            let to_all: usize = self.probes.values().sum();
            assert!(to_all <= most(CONNECTION), "too many probes");
        }
    }
}

impl World {
    pub(super) fn check_probes(&mut self, id: u64, targets: &[SocketAddr]) {
        let peer = self.peers.get_mut(&id).unwrap();
        assert_ne!(peer.machine.state(), "Settled", "probes for nothing");
        assert!(peer.download.strategy.probes(), "its paper has no probes");
        for target in targets {
            assert!(peer.allowed.contains(target), "probes {target}");
            peer.count_probes(self.now, *target, peer.locals.len());
        }
        let second = self.now.duration_since(self.start).as_secs();
        peer.rounds = match peer.rounds {
            (of, rounds) if of == second => (of, rounds + 1),
            _ => (second, 1),
        };
        assert!(peer.rounds.1 <= MAX_ROUNDS, "probes too often");
    }

    pub(super) fn check_probe_from(&mut self, id: u64, target: SocketAddr) {
        let peer = self.peers.get_mut(&id).unwrap();
        assert!(peer.download.strategy.probes(), "its paper has no probes");
        assert!(peer.allowed.contains(&target), "probes {target}");
        peer.count_probes(self.now, target, 1);
    }

    pub(super) fn check_redirection(&self, id: u64, to: Option<SocketAddr>) {
        let peer = &self.peers[&id];
        let strategy = peer.download.strategy;
        assert!(
            strategy.redirects() || strategy.leaves_at_once(),
            "redirects"
        );
        if let Some(to) = to {
            let is_there = !strategy.redirects() && to == peer.machine.remote();
            assert!(peer.answered.contains(&to) || is_there, "redirects to {to}");
        }
    }

    pub(super) fn check_cancelled(&self, id: u64, before: SocketAddr) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        assert_eq!(peer.machine.remote(), before, "CANCELLED moves nobody");
        if peer.machine.state() == "Settled" {
            let there = peer.machine.path_remote();
            let at =
                |paths: &BTreeMap<_, (_, SocketAddr)>| paths.values().all(|(_, r)| *r == there);
            assert!(at(&peer.opening), "a trace is left: {:?}", peer.opening);
            if peer.download.strategy.redirects() {
                assert_eq!(peer.redirected, Some(before), "a trace is left");
            }
        }
    }

    pub(super) fn check_obeys_one(&self, id: u64) {
        let peer = &self.peers[&id];
        let remote = peer.machine.path_remote();
        let at = peer.open.values().filter(|p| p.remote == remote).count();
        if at > 0 && at < peer.open.len() && peer.machine.state() == "Settled" {
            panic!("obeys two: {:?}", peer.open);
        }
    }

    pub(super) fn check_settled(&self, id: u64) {
        let peer = &self.peers[&id];
        let (open, wanted) = wanted(peer);
        // An interface that had no path is not waited for; and where there is none, paths stay as they are.
        let mut waited = wanted.iter().filter(|(l, _)| peer.in_use.contains(l));
        let is_there = waited.all(|place| open.contains(place)) && open.is_subset(&wanted);
        assert!(is_there || wanted.is_empty(), "{open:?} is not {wanted:?}");
    }

    pub(super) fn check_dismissal(&self, id: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let hello = |frame: &Frame| matches!(frame, Frame::Hello { .. });
        let silent = peer.to_server.iter().any(hello);
        let follows = peer.download.strategy != Strategy::Restart;
        assert!(silent || !follows, "client {id} could follow");
    }

    /// The server gives a client up.
    pub(super) fn check_idle(&self, id: u64) {
        let silence = self.now.duration_since(self.sides[&id].heard);
        let serves = self.server.stage() == Stage::Serving;
        assert!(
            serves && silence >= SERVER_IDLE - SELDOM,
            "given up after {silence:?}"
        );
    }

    /// A client that is silent is given up in time.
    pub(super) fn check_silent_sides(&self) {
        if self.server.stage() != Stage::Serving {
            return;
        }
        for (id, side) in &self.sides {
            let silence = self.now.duration_since(side.heard.max(self.serving));
            assert!(silence < SERVER_IDLE + SELDOM, "{id} is never given up");
        }
    }

    /// A client gives up a server that it does not expect elsewhere. What comes right before its datagrams are redirected
    /// does not count for it.
    pub(super) fn check_idle_server(&self, id: u64) {
        let silence = self.silence(id);
        assert!(silence >= IDLE / 2, "idle after {silence:?}");
    }

    /// A path whose link is dead is given up, if another one carries the download.
    pub(super) fn check_links(&mut self, id: u64) {
        let is_calm = self.net.is_calm(self.now);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.open.len() < 2 || is_calm && peer.open.values().all(|path| peer.has(path.via)) {
            peer.open.values_mut().for_each(|path| path.dead = 0);
            return;
        }
        let peer = &self.peers[&id];
        let leads = |path: &Path| {
            let reached = self.reached(id, peer, path);
            reached.is_some() && reached == self.server_of(id)
        };
        let leads: Vec<_> = peer.open.values().map(leads).collect();
        let is_served = self.sides.get(&id).is_some_and(|side| !side.holds);
        let is_settled = peer.machine.state() == "Settled";
        let counts = is_served && is_settled && leads.contains(&true);
        let peer = self.peers.get_mut(&id).unwrap();
        let strategy = peer.download.strategy;
        for (path, leads) in peer.open.values_mut().zip(leads) {
            path.dead = if leads || !counts { 0 } else { path.dead + 1 };
            assert!(
                TICK * path.dead <= DEAD,
                "client {id} ({strategy}) keeps {path:?}"
            );
        }
    }

    /// A path is given up.
    pub(super) fn count_wronged(&mut self, id: u64, path: u32) {
        let peer = &self.peers[&id];
        let path = peer.open.get(&path).map(|path| Path {
            via: path.local,
            ..*path
        });
        let leads = path.is_some_and(|path| self.reached(id, peer, &path).is_some());
        self.counts.wronged += u32::from(leads);
    }

    /// What is not as it should be in the end.
    pub(super) fn unsettled(&self) -> Option<String> {
        if !self.server.is_serving() {
            return Some(format!("the server is {}", self.server.state()));
        }
        if self.resuming > 0 {
            return Some(format!("{} clients wait for the server", self.resuming));
        }
        self.peers.iter().find_map(|(id, peer)| {
            let state = peer.machine.state();
            let client = format!("client {id} ({}, {state})", peer.download.strategy);
            if peer.machine.is_moving() || Some(peer.machine.remote()) != self.server_of(*id) {
                return Some(format!("{client} is at {}", peer.machine.remote()));
            }
            let (open, wanted) = wanted(peer);
            // Where path ids are scarce, those that are over are kept for a move.
            let is_scarce = peer.spent as usize + 2 * wanted.len() > PATH_IDS;
            let is_fewer = is_scarce && !open.is_empty() && open.is_subset(&wanted);
            if !is_fewer && (open != wanted || peer.settling) || !peer.opening.is_empty() {
                let (opening, spent) = (&peer.opening, peer.spent);
                return Some(format!(
                    "{client} has {open:?}, opens {opening:?}, spent {spent} ids"
                ));
            }
            if !is_fewer && peer.open.values().any(|path| path.via != path.local) {
                let open = &peer.open;
                return Some(format!(
                    "{client} keeps a path away from its link: {open:?}"
                ));
            }
            let Some(side) = self.sides.get(id) else {
                return Some(format!("{client} is not known to the server"));
            };
            if !peer.open.keys().eq(side.open.keys()) {
                let (here, there) = (peer.open.keys(), side.open.keys());
                return Some(format!("{client} has {here:?}, the server {there:?}"));
            }
            if side.machine.is_missing() {
                return Some(format!("{client} is still waited for"));
            }
            side.holds.then(|| format!("{client} gets no data"))
        })
    }
}

type Places = BTreeSet<(std::net::IpAddr, SocketAddr)>;

/// The paths that a client has, and those that it is to have.
fn wanted(peer: &Peer) -> (Places, Places) {
    let open = peer.open.values().map(|path| (path.local, path.remote));
    let remote = peer.machine.path_remote();
    let locals = peer.locals.iter();
    let wanted = locals.map(|l| (local(*l), remote));
    (open.collect(), wanted.collect())
}
