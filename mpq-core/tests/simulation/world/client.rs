//! The clients: each does what its machine wants, and tells it what happens.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mpq_core::proto::client::{Event, Handshake, Input, Output, Refusal};
use mpq_core::proto::frame::Frame;
use mpq_core::proto::probe::{Echo, Hint};
use mpq_core::proto::{Strategy, policy, server};

use super::arrival::Arrival;
use super::excuse::Excuse;
use super::network::local;
use super::peer::{Download, Path};
use super::{End, RTT, SECOND, World};

/// Promised by the client's machine: so long it waits for connection ids at the most.
const IDS_WAIT: Duration = Duration::from_millis(100);
/// Between two challenges of a path, in the end.
const CHALLENGE: Duration = Duration::from_secs(2);

impl World {
    pub(super) fn client(&mut self, id: u64, input: Input) {
        let cancelled = matches!(&input, Input::Frame(Frame::Cancelled { .. }));
        if !matches!(input, Input::Figures(_) | Input::Handshake(_))
            && let Some(peer) = self.peers.get(&id)
        {
            self.tell(|| format!("client {id} ({}): {input:?}", peer.machine.state()));
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let before = peer.machine.remote();
        peer.machine.handle(self.now, input);
        self.perform_client(id);
        if cancelled {
            self.check_cancelled(id, before);
        }
    }

    /// It waits for the server from now on.
    pub(super) fn expect(&mut self, id: u64) {
        self.client(id, Input::Expecting(true));
    }

    pub(super) fn client_timeout(&mut self, id: u64) {
        let peer = self.peers.get_mut(&id).unwrap();
        peer.machine.handle_timeout(self.now);
        self.perform_client(id);
        let due = self.peers.get(&id).and_then(|peer| peer.due);
        assert!(due.is_none_or(|due| due > self.now), "client {id} spins");
    }

    fn perform_client(&mut self, id: u64) {
        while let Some(peer) = self.peers.get_mut(&id) {
            let Some(output) = peer.machine.poll() else {
                peer.due = peer.machine.next_timeout();
                self.next = None;
                return self.check_obeys_one(id);
            };
            if output != Output::LookAtHandshake {
                self.tell(|| format!("client {id}: {output:?}"));
            }
            self.obey_client(id, output);
        }
    }

    fn obey_client(&mut self, id: u64, output: Output) {
        match output {
            Output::Send(frame) => {
                self.peers.get_mut(&id).unwrap().to_server.push_back(frame);
                self.send_surely(Arrival::ToServer(id));
            }
            Output::LookAtHandshake => self.look_at_handshake(id),
            Output::Probe(targets) => self.send_probes(id, targets),
            Output::ProbeFrom { local, target } => {
                self.check_probe_from(id, target);
                self.send_probe(id, local, target);
            }
            Output::Redirect(to) => {
                self.check_redirection(id, to);
                self.peers.get_mut(&id).unwrap().redirected = to;
                self.look(id);
            }
            Output::Echo {
                local,
                remote,
                echo,
            } => self.echo(id, local, remote, echo),
            Output::Open { local, remote } => self.open(id, local, remote),
            Output::Abandon(remote) => {
                self.peers.get_mut(&id).unwrap().give_up(|_, r| r == remote);
            }
            Output::AbandonFrom(local) => {
                self.peers.get_mut(&id).unwrap().give_up(|l, _| l == local);
            }
            Output::Ping { path } => self.send_ping(id, path),
            Output::Evacuate { path, over } => self.evacuate(id, path, over),
            Output::Close { path } => {
                let peer = self.peers.get_mut(&id).unwrap();
                assert!(peer.open.len() > 1, "closes the last path");
                peer.open.remove(&path);
                self.send_surely(Arrival::Gone { client: id, path });
                self.send_surely(Arrival::Abandoned { client: id, path });
            }
            Output::Event(event) => self.event(id, event),
        }
    }

    fn event(&mut self, id: u64, event: Event) {
        let peer = self.peers.get_mut(&id).unwrap();
        match event {
            Event::Idle => {
                self.check_idle_server(id);
                self.lose(id);
            }
            Event::Failed => self.lose(id),
            Event::Moved { remote, .. } => {
                peer.probes.remove(&remote.ip());
                peer.settling = true;
                peer.in_use = peer.open.values().map(|path| path.local).collect();
            }
            Event::Settled { .. } => {
                peer.settling = false;
                self.counts.settled += 1;
                self.check_settled(id);
            }
            Event::Dead { path } => {
                self.counts.dead += 1;
                self.count_wronged(id, path.into());
            }
            _ => {}
        }
    }

    fn send_probes(&mut self, id: u64, targets: Vec<SocketAddr>) {
        self.check_probes(id, &targets);
        let peer = self.peers.get_mut(&id).unwrap();
        if let Some(sent) = &mut peer.firewall {
            sent.extend(targets.clone());
        }
        for from in peer.locals.clone().into_iter().map(local) {
            for target in &targets {
                self.send_probe(id, from, *target);
            }
        }
    }

    fn send_probe(&mut self, client: u64, from: IpAddr, target: SocketAddr) {
        self.send(|| Arrival::Probe {
            client,
            from,
            target,
        });
    }

    pub(super) fn probe(&mut self, client: u64, from: IpAddr, target: SocketAddr) {
        let somebody = self.is_live(client, target) || self.decoy == Some(target);
        if somebody && self.net.leads(self.now, from, target) {
            self.send(|| Arrival::Answer {
                client,
                local: from,
                remote: target,
                hint: Hint::Answer,
            });
        }
    }

    pub(super) fn answer(&mut self, client: u64, local: IpAddr, remote: SocketAddr, hint: Hint) {
        let Some(peer) = self.peers.get_mut(&client) else {
            return;
        };
        let acceptable = policy::acceptable(peer.machine.remote().ip(), remote);
        match hint {
            Hint::Knock(echo) => {
                peer.knocks.insert(local, (remote, echo));
                // From then on the server may be there.
                if acceptable {
                    peer.allowed.insert(remote);
                }
            }
            Hint::Answer => drop(peer.answered.insert(remote)),
        }
        self.client(
            client,
            Input::Answer {
                local,
                remote,
                hint,
            },
        );
    }

    fn echo(&mut self, client: u64, local: IpAddr, remote: SocketAddr, echo: Echo) {
        let knock = self.peers.get_mut(&client).unwrap().knocks.remove(&local);
        assert_eq!(knock, Some((remote, echo)), "returns another knock");
        if self.net.leads(self.now, local, remote) {
            let echo = Arrival::Echo {
                client,
                from: local,
                to: remote,
                echo,
            };
            self.later(RTT / 2, echo);
        }
    }

    fn open(&mut self, client: u64, local: IpAddr, remote: SocketAddr) {
        let peer = self.peers.get_mut(&client).unwrap();
        assert!(peer.allowed.contains(&remote), "opens a path to {remote}");
        let knock = peer.knocks.get(&local).map(|(from, _)| *from);
        assert_ne!(knock, Some(remote), "it has not returned the knock");
        let waited = self.now >= peer.confirmed + IDS_WAIT;
        let is_granted = self.now >= peer.granted;
        assert!(
            self.now >= peer.confirmed && (is_granted || waited),
            "too early"
        );
        // The server has granted none, or not yet.
        if peer.ids == 0 || !is_granted || self.net.below(10) == 0 {
            return self.refused(client, local, remote, Refusal::NoId);
        }
        let path = peer.next_path;
        peer.next_path += 1;
        peer.ids -= 1;
        peer.opening.insert(path, (local, remote));
        let after = self.net.delay() * 2;
        self.later(
            after,
            Arrival::Challenge {
                client,
                path,
                after,
            },
        );
    }

    fn look_at_handshake(&mut self, client: u64) {
        let peer = &self.peers[&client];
        let handshake = Handshake {
            confirmed: self.now >= peer.confirmed,
            issued: true,
            granted: self.now >= peer.granted,
        };
        self.client(client, Input::Handshake(handshake));
    }

    fn refused(&mut self, client: u64, local: IpAddr, remote: SocketAddr, refusal: Refusal) {
        self.client(
            client,
            Input::PathRefused {
                local,
                remote,
                refusal,
            },
        );
    }

    pub(super) fn challenge(&mut self, client: u64, path: u32, after: Duration) {
        let Some(peer) = self.peers.get_mut(&client) else {
            return;
        };
        let Some((from, remote)) = peer.opening.get(&path).copied() else {
            return;
        };
        if !peer.has(from) {
            peer.opening.remove(&path);
            peer.spent += 1;
            return self.refused(client, from, remote, Refusal::NoAnswer);
        }
        let redirects = peer.download.strategy.redirects();
        let to = if redirects {
            peer.redirected
        } else {
            Some(remote)
        };
        let (server, knows) = (self.server_of(client), self.sides.contains_key(&client));
        let reached = to.filter(|to| {
            let answers = self.is_live(client, *to) && (Some(*to) != server || knows);
            answers && self.net.leads(self.now, from, *to)
        });
        if reached.is_none() || self.net.below(5) == 0 {
            let after = (after * 2).min(CHALLENGE);
            return self.later(
                after,
                Arrival::Challenge {
                    client,
                    path,
                    after,
                },
            );
        }
        let peer = self.peers.get_mut(&client).unwrap();
        peer.opening.remove(&path);
        peer.open.insert(path, Path::new(from, remote));
        peer.probes.remove(&remote.ip());
        if reached == server {
            self.path_at_server(client, path, from);
        }
        let open = Input::PathOpen {
            path,
            local: from,
            remote,
        };
        self.client(client, open);
    }

    /// A path goes over the link of another one, and the server follows with the next datagram.
    fn evacuate(&mut self, id: u64, path: u32, over: u32) {
        self.counts.evacuated += 1;
        self.count_wronged(id, path);
        let peer = self.peers.get_mut(&id).unwrap();
        let via = peer.open.get(&over).map(|path| path.via);
        if let (Some(path), Some(via)) = (peer.open.get_mut(&path), via) {
            path.via = via;
        }
    }

    pub(super) fn path_gone(&mut self, client: u64, path: u32) {
        self.client(client, Input::PathGone { path });
    }

    pub(super) fn closed_by_server(&mut self, client: u64, path: u32) {
        let Some(peer) = self.peers.get(&client) else {
            return;
        };
        if !peer.open.contains_key(&path) {
            return;
        }
        if !self.connected(client) {
            return self.send_surely(Arrival::ClosedByServer { client, path });
        }
        let peer = self.peers.get_mut(&client).unwrap();
        peer.open.remove(&path);
        peer.ids += 1;
        self.path_gone(client, path);
    }

    /// A client gets the next frame of its stream.
    pub(super) fn frame_to_client(&mut self, id: u64) {
        if !self.connected(id) {
            return self.later(RTT, Arrival::ToClient(id));
        }
        let decoy = self.decoy;
        let peer = self.peers.get_mut(&id).unwrap();
        let frame = peer.to_client.pop_front().expect("one for each arrival");
        let current = peer.machine.remote().ip();
        let news = match &frame {
            Frame::Migration { targets, .. } => {
                peer.announcements.push(frame.clone());
                targets.clone()
            }
            Frame::Addresses { pool, .. } => {
                peer.pool = true;
                pool.clone()
            }
            _ => Vec::new(),
        };
        let acceptable = news.into_iter().filter(|t| policy::acceptable(current, *t));
        peer.allowed.extend(acceptable);
        if decoy.is_some_and(|decoy| peer.allowed.contains(&decoy)) {
            peer.excuse(Excuse::Decoy);
        }
        self.client(id, Input::Frame(frame));
    }

    pub(super) fn locals(&mut self, id: u64, locals: Vec<u8>) {
        let ips = locals.iter().map(|i| local(*i)).collect();
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.locals = locals;
            // Sockets are sought anew for a path that was led over an interface that is gone.
            let has: Vec<_> = peer.open.values().map(|path| peer.has(path.via)).collect();
            for (path, _) in peer.open.values_mut().zip(has).filter(|(_, has)| !has) {
                path.via = path.local;
            }
            peer.knocks.clear();
            self.client(id, Input::Broadcasts(Vec::new()));
            self.client(id, Input::Locals(ips));
        }
    }

    pub(super) fn finish(&mut self, id: u64) {
        self.counts.finished += 1;
        self.end_connection(id, false);
    }

    /// The client gives its connection up, and says so. It comes again for the rest.
    pub(super) fn lose(&mut self, id: u64) {
        let home = self.home;
        let peer = self.peers.get_mut(&id).unwrap();
        let is_cut_off = !peer
            .open
            .values()
            .any(|path| peer.locals.iter().any(|i| local(*i) == path.local));
        let stayed = peer.machine.remote() == home;
        if peer.download.strategy == Strategy::Paper && is_cut_off && stayed {
            peer.excuse(Excuse::CutOff);
        }
        if peer.ids == 0 {
            peer.excuse(Excuse::NoIds);
        }
        // It has ended a path for the announcement, and the server has closed the others.
        let side = self.sides.get(&id);
        let is_shared = |path| side.is_some_and(|side| side.open.contains_key(path));
        if peer.download.strategy == Strategy::Paper && !peer.open.keys().any(is_shared) {
            peer.excuse(Excuse::Pathless);
        }
        let (strategy, state) = (peer.download.strategy, peer.machine.state());
        assert!(
            peer.excuse.is_some(),
            "client {id} ({strategy}, {state}) gave up"
        );
        let download = peer.download;
        self.later(SECOND, Arrival::Resume(download));
        self.resuming += 1;
        self.end_connection(id, true);
    }

    fn end_connection(&mut self, id: u64, is_lost: bool) {
        let peer = &self.peers[&id];
        self.ends.push(End {
            is_first: id == 0,
            strategy: peer.download.strategy,
            is_lost,
            excuse: peer.excuse,
        });
        self.remove(id);
    }

    /// A client is gone.
    pub(super) fn vanish(&mut self, id: u64) {
        self.peers.remove(&id);
        self.next = None;
    }

    /// The same, and it says so.
    pub(super) fn remove(&mut self, id: u64) {
        self.vanish(id);
        if self.sides.get(&id).is_some_and(|side| !side.closed) {
            self.sides.remove(&id);
            self.server(server::Input::Gone(id));
        }
    }

    pub(super) fn resume(&mut self, mut download: Download) {
        if self.listening.is_none() || self.net.is_dark(self.now) {
            return self.later(SECOND, Arrival::Resume(download));
        }
        self.resuming -= 1;
        self.counts.resumed += 1;
        download.wanted = download.wanted.min(download.received + 2_000);
        self.connect(download, false);
    }

    /// How long a client has heard nothing.
    pub(super) fn silence(&self, id: u64) -> Duration {
        let heard: Instant = self.peers[&id].heard;
        self.now.duration_since(heard)
    }
}
