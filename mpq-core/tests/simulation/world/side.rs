//! The server's end of a connection: does what its machine wants, and tells it what that asks for.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mpq_core::proto::server;
use mpq_core::proto::server::Stage;
use mpq_core::proto::server::flight::{self, Landing, Standing};
use mpq_core::proto::server::peer::{Input, OldPath, Output};

use super::arrival::Arrival;
use super::excuse::Excuse;
use super::peer::SidePath;
use super::{MILLISECOND, World};

/// How long a server keeps a connection that has no path (draft-ietf-quic-multipath-21 §3.4).
const PATHLESS: Duration = Duration::from_secs(1);
/// How often a machine may have something to do at one time, one after the other.
const MOST_AT_ONCE: u32 = 3;
/// Promised: what is not acknowledged is waited for as long as two probes and an answer take, and no longer; but for
/// the time between two looks.
const HOPELESS: Duration = Duration::from_millis(2 * (3 * 120 + 25) + 120);
const LONGEST: Duration = Duration::from_millis(2 * (3 * 120 + 25) + 120 + 20);

impl World {
    pub(super) fn side(&mut self, id: u64, input: Input) {
        if let Some(side) = self.sides.get_mut(&id) {
            side.machine.handle(self.now, input);
            self.perform_side(id);
        }
    }

    /// The same for all connections.
    pub(super) fn each_side(&mut self, input: &Input) {
        for id in self.sides.keys().copied().collect::<Vec<_>>() {
            self.side(id, input.clone());
        }
    }

    pub(super) fn side_timeout(&mut self, id: u64) {
        // What it does may make something else due at once.
        for _ in 0..MOST_AT_ONCE {
            let Some(side) = self.sides.get_mut(&id).filter(|side| side.due <= self.now) else {
                return;
            };
            side.machine.handle_timeout(self.now);
            self.perform_side(id);
        }
        panic!("connection {id} spins");
    }

    fn perform_side(&mut self, id: u64) {
        while let Some(side) = self.sides.get_mut(&id) {
            let Some(output) = side.machine.poll() else {
                side.due = side.machine.next_timeout();
                self.next = None;
                // It was told to go, and that was all.
                if side.closed && !side.machine.is_leaving() {
                    self.sides.remove(&id);
                }
                return;
            };
            if !matches!(output, Output::Look | Output::Server(_)) {
                self.tell(|| format!("connection {id}: {output:?}"));
            }
            self.obey_side(id, output);
        }
    }

    fn obey_side(&mut self, id: u64, output: Output) {
        let stage = self.server.stage();
        let side = self.sides.get_mut(&id).unwrap();
        match output {
            Output::Server(input) => self.server(input),
            Output::Look => {
                let received = side.datagrams;
                let paths = side.open.iter().map(|(id, path)| path.figures(*id));
                let paths = paths.collect();
                self.side(
                    id,
                    Input::Figures {
                        stage,
                        received,
                        paths,
                    },
                );
            }
            Output::Ping(path) => self.send_server_ping(id, path),
            Output::Ask(paths) => {
                for path in paths {
                    self.send_server_ping(id, path);
                }
            }
            Output::Close(path) => self.close_at_server(id, path),
            Output::Idle => {
                self.check_idle(id);
                self.counts.idle += 1;
                self.sides.remove(&id);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.excuse(Excuse::Silent);
                }
                self.server(server::Input::Gone(id));
            }
            Output::Listen => {
                side.awaited = true;
                self.hear_out(id);
            }
            Output::LookInFlight => {
                let bytes = 1_200 * self.net.below(2);
                self.side(id, Input::InFlight(bytes));
            }
            Output::Knock { path, .. } => self.knock(id, path),
            Output::LookWhetherTold => {
                let has_arrived = self.net.below(10) == 0;
                let is_closed = self.net.below(10) == 0;
                self.side(
                    id,
                    Input::Told {
                        has_arrived,
                        is_closed,
                    },
                );
            }
            Output::Dismiss => {
                side.closed = true;
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.excuse(Excuse::Stranger);
                    self.send_surely(Arrival::Dismissed(id));
                }
                self.server(server::Input::Gone(id));
            }
            Output::KeepPaths => side.stale.clear(),
            Output::Release => {
                side.holds = false;
                let sends = side.known.difference(&side.stale).next().is_some();
                assert!(sends || side.known.is_empty(), "it sends on no path");
            }
            Output::Speak | Output::Followed(_) | Output::GoAway => {}
        }
    }

    /// Something of the client comes on this path.
    pub(super) fn side_hears(&mut self, id: u64, path: u32, via: IpAddr) {
        let (Some(at), Some(side)) = (self.listening, self.sides.get_mut(&id)) else {
            return;
        };
        if side.closed {
            return;
        }
        side.heard = self.now;
        side.datagrams += 1;
        if let Some(known) = side.open.get_mut(&path) {
            known.received += 1;
            (known.to, known.at) = (via, at);
        }
        if let Some(old) = side.old.iter_mut().find(|old| old.path == path) {
            (old.has_come, old.has_spoken) = (true, true);
        }
        self.hear_out(id);
    }

    /// Tells the machine, if it listens, that the client has spoken; or that the move is over. The driver tells it
    /// again and again that there is nothing.
    pub(super) fn hear_out(&mut self, id: u64) {
        let stage = self.server.stage();
        let Some(side) = self.sides.get_mut(&id).filter(|side| side.awaited) else {
            return;
        };
        let new = side.new_paths();
        let spoke = side
            .old
            .iter()
            .any(|old| old.has_spoken || old.is_forwarded);
        if new.is_empty() && !spoke && stage != Stage::Serving {
            return;
        }
        side.awaited = false;
        let old = side.old.clone();
        for old in &mut side.old {
            (old.has_spoken, old.is_forwarded) = (false, false);
        }
        self.side(id, Input::Heard { stage, new, old });
    }

    /// The first packet on a path is decrypted, and the path validated, in any order; or that is heard of later.
    pub(super) fn path_at_server(&mut self, id: u64, path: u32, via: IpAddr) {
        // Decided apart, so as not to change what else happens.
        let luck =
            (self.seed ^ id << 8 ^ u64::from(path)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        let (Some(at), Some(side)) = (self.listening, self.sides.get_mut(&id)) else {
            return;
        };
        side.known.insert(path);
        if self.net.below(2) == 0 {
            self.hear_out(id);
        }
        if let Some(side) = self.sides.get_mut(&id) {
            side.open.insert(path, SidePath::new(via, at));
        }
        match luck < 8 {
            true => self.later(
                MILLISECOND * 250 * luck as u32,
                Arrival::Validated { client: id, path },
            ),
            false => self.validated(id, path),
        }
        self.side_hears(id, path, via);
    }

    /// The machine is told that a path is validated, unless it is no more.
    pub(super) fn validated(&mut self, id: u64, path: u32) {
        let side = self.sides.get(&id);
        if side.is_some_and(|side| !side.closed && side.open.contains_key(&path)) {
            self.side(id, Input::PathOpen(path));
        }
    }

    fn close_at_server(&mut self, id: u64, path: u32) {
        let side = self.sides.get_mut(&id).unwrap();
        side.known.remove(&path);
        if side.open.remove(&path).is_none() {
            return;
        }
        assert!(!side.open.is_empty(), "the server closes the last path");
        if !side.old.iter().any(|old| old.path == path) {
            self.counts.dead_at_server += 1;
        }
        self.side(id, Input::PathGone(path));
        self.send_surely(Arrival::ClosedByServer { client: id, path });
    }

    /// The client has closed a path, and has another id for it.
    pub(super) fn abandoned(&mut self, id: u64, path: u32) {
        if !self.peers.contains_key(&id) {
            return;
        }
        if !self.connected(id) {
            return self.send_surely(Arrival::Abandoned { client: id, path });
        }
        self.peers.get_mut(&id).unwrap().ids += 1;
        if let Some(side) = self.sides.get_mut(&id)
            && {
                side.known.remove(&path);
                side.open.remove(&path).is_some()
            }
        {
            self.side(id, Input::PathGone(path));
            if self.sides.get(&id).is_some_and(|side| side.open.is_empty()) {
                self.later(PATHLESS, Arrival::Pathless(id));
            }
        }
    }

    /// The client has closed the last path that the server had, and has made no other one.
    pub(super) fn pathless(&mut self, id: u64) {
        if self.sides.get(&id).is_none_or(|side| !side.open.is_empty()) {
            return;
        }
        self.sides.remove(&id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.excuse(Excuse::Pathless);
        }
        self.server(server::Input::Gone(id));
    }

    /// The server waits for what it has sent: on each path it is acknowledged then, if ever.
    pub(super) fn begin_landing(&mut self, acknowledged: Option<Instant>) {
        for side in self.sides.values_mut() {
            side.landing = None;
            let landing = Landing::new(self.now, false, &side.flights(self.now));
            side.landing = Some((self.now, acknowledged, landing));
        }
    }

    /// Whether none of it is to be waited for any more.
    pub(super) fn have_landed(&mut self) -> bool {
        let now = self.now;
        let mut landed = true;
        for side in self.sides.values_mut() {
            let flights = side.flights(now);
            let Some((began, acknowledged, landing)) = &mut side.landing else {
                continue;
            };
            let is_over = landing.look(now, &flights, false);
            let is_answered = acknowledged.is_some_and(|at| now >= at);
            if is_over && !flights.is_empty() && !side.machine.is_leaving() {
                assert!(
                    is_answered || now >= *began + HOPELESS,
                    "it was waited for too shortly"
                );
                assert!(
                    landing.holds() || !is_answered,
                    "its last words may be unsaid"
                );
            }
            assert!(
                is_over || now < *began + LONGEST,
                "it was waited for too long"
            );
            let standing = Standing {
                is_leaving: side.machine.is_leaving(),
                is_gone: false,
            };
            landed &= flight::is_drained(standing, || is_over);
        }
        landed
    }

    /// The server is about to be frozen.
    pub(super) fn close_sides(&mut self) {
        for side in self.sides.values_mut() {
            let old = side.open.keys().map(|path| OldPath {
                path: *path,
                has_come: false,
                has_spoken: false,
                is_forwarded: false,
            });
            side.old = old.collect();
            side.awaited = false;
            side.knocks.clear();
        }
    }

    /// It has woken.
    pub(super) fn wake_sides(&mut self) {
        for id in self.sides.keys().copied().collect::<Vec<_>>() {
            let side = self.sides.get_mut(&id).unwrap();
            side.stale = side.known.clone();
            let forwarder = side.forwarder.take();
            if side.machine.is_kept() {
                side.forwarder = forwarder.or(Some(self.home));
            } else if forwarder.is_some()
                && let Some(peer) = self.peers.get_mut(&id)
            {
                peer.excuse(Excuse::Forwarded);
            }
            side.introduced = side.forwarder.is_none();
            let new = side.new_paths();
            self.side(id, Input::Woken(new));
            if self.sides.get(&id).is_some_and(|side| !side.introduced) {
                let delay = self.net.delay() + self.reopening;
                self.later(delay, Arrival::Introduced(id));
            }
        }
    }

    /// A forwarder has introduced a client.
    pub(super) fn introduced(&mut self, id: u64) {
        if self.listening.is_none() {
            return self.later(MILLISECOND * 50, Arrival::Introduced(id));
        }
        if let Some(side) = self.sides.get_mut(&id) {
            side.introduced = true;
            side.old.iter_mut().for_each(|old| old.is_forwarded = true);
            self.hear_out(id);
        }
    }

    /// Its sockets are open at another address.
    pub(super) fn reopen_sides(&mut self) {
        for id in self.sides.keys().copied().collect::<Vec<_>>() {
            let side = &self.sides[&id];
            let at_home = side.old.iter().filter(|old| {
                let path = side.open.get(&old.path);
                path.is_some_and(|path| path.at == self.home)
            });
            let at_home = at_home.map(|old| old.path).collect();
            self.side(id, Input::Reopened(at_home));
        }
    }
}
