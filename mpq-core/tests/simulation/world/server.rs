//! The server: does what its machine wants, and tells it what happens.

use std::net::{IpAddr, SocketAddr};

use mpq_core::proto::Strategy;
use mpq_core::proto::frame::Frame;
use mpq_core::proto::probe::{Echo, Hint, KnockKey};
use mpq_core::proto::server::{Input, Output, Stage, peer};

use super::arrival::Arrival;
use super::excuse::Excuse;
use super::{MILLISECOND, RTT, World};

impl World {
    pub(super) fn server(&mut self, input: Input) {
        if !matches!(input, Input::Established(_)) {
            self.tell(|| format!("server ({}): {input:?}", self.server.state()));
        }
        self.server.handle(self.now, input);
        self.perform_server();
    }

    pub(super) fn perform_server(&mut self) {
        while let Some(output) = self.server.poll() {
            self.obey_server(output);
        }
        self.server_due = self.server.next_timeout();
        self.next = None;
    }

    pub(super) fn server_timeout(&mut self) {
        self.server.handle_timeout(self.now);
        self.perform_server();
        let is_later = self.server_due.is_none_or(|at| at > self.now);
        assert!(is_later, "the server spins");
    }

    fn obey_server(&mut self, output: Output) {
        match output {
            Output::Send(id, frame) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.to_client.push_back(frame);
                    self.send_surely(Arrival::ToClient(id));
                }
            }
            Output::Keep(id) => self.side(id, peer::Input::Keep),
            Output::Dismiss(id) => {
                self.check_dismissal(id);
                self.side(id, peer::Input::Dismiss);
            }
            Output::CloseGates => self.sides.values_mut().for_each(|side| side.holds = true),
            Output::CloseGate(id) => self.sides.get_mut(&id).unwrap().holds = true,
            Output::OpenGate(id) => self.side(id, peer::Input::Release),
            Output::Drain => {
                // Or something is never acknowledged.
                let acknowledged = match self.net.below(16) > 0 {
                    true => Some(self.now + MILLISECOND * self.net.below(500) as u32),
                    false => None,
                };
                self.draining = true;
                self.begin_landing(acknowledged);
                self.later(MILLISECOND, Arrival::Drained);
            }
            Output::Hold => self.draining = false,
            Output::CloseSockets => {
                self.listening = None;
                self.close_sides();
                let (_, fate, ghost) = self.fate.clone();
                if let Input::Thawed { listen, .. } = fate
                    && listen != self.home
                {
                    self.excuse_the_uninformed();
                    if ghost {
                        self.ghost = Some(self.home);
                        self.excuse_all(Excuse::Copy);
                    }
                }
                self.later(MILLISECOND, Arrival::Server(Input::Closed));
            }
            Output::Dump => {
                let (outage, fate, _) = self.fate.clone();
                self.later(outage, Arrival::Server(fate));
            }
            Output::Wake => {
                self.wake_sides();
                self.opens_at = self.now + self.reopening;
            }
            Output::Reopen(Some(_)) if self.now < self.opens_at => self.server(Input::NotReopened),
            Output::Reopen(Some(listen)) => self.reopened(listen),
            Output::Reopen(None) => self.reopened(self.home),
            Output::Knock(ids) => {
                for id in ids {
                    self.side(id, peer::Input::Knock);
                }
            }
            Output::Done { moved } => self.done(moved),
        }
    }

    pub(super) fn drained(&mut self) {
        if !self.draining {
            return;
        }
        match self.have_landed() {
            true => self.server(Input::Quiet),
            false => self.later(MILLISECOND * 10, Arrival::Drained),
        }
    }

    pub(super) fn reopened(&mut self, listen: SocketAddr) {
        let moved = self.server.state() == "Resuming (new address)";
        self.home = listen;
        self.listening = Some(listen);
        self.server(Input::Reopened);
        if moved {
            self.reopen_sides();
        }
    }

    fn done(&mut self, moved: bool) {
        assert_eq!(self.server.stage(), Stage::Serving);
        self.serving = self.now;
        self.draining = false;
        match moved {
            true => self.counts.moves += 1,
            false => {
                self.counts.cancelled += 1;
                self.sides
                    .values_mut()
                    .for_each(|side| side.introduced = true);
                self.each_side(&peer::Input::Stay);
            }
        }
        for (id, peer) in &mut self.peers {
            let side = self.sides.get(id);
            let is_missing = side.is_some_and(|side| side.machine.is_missing());
            match peer.download.strategy {
                Strategy::Symmetric if moved && is_missing => peer.excuse(Excuse::Unknocked),
                Strategy::Proactive if !moved && peer.machine.is_moving() => {
                    peer.excuse(Excuse::LeftAStayingServer);
                }
                _ => {}
            }
        }
        self.each_side(&peer::Input::Release);
        for id in self.sides.keys().copied().collect::<Vec<_>>() {
            self.hear_out(id);
        }
    }

    /// The server has a client's next frame.
    pub(super) fn frame_to_server(&mut self, id: u64) {
        if !self.connected(id) {
            return self.later(RTT, Arrival::ToServer(id));
        }
        let peer = self.peers.get_mut(&id).unwrap();
        let frame = peer.to_server.pop_front().expect("one for each arrival");
        let is_a_clients = matches!(frame, Frame::Hello { .. } | Frame::Ready { .. });
        assert!(is_a_clients, "a client sends {frame:?}");
        self.side(id, peer::Input::Frame(frame));
    }

    /// The server knocks where a client was.
    pub(super) fn knock(&mut self, client: u64, path: u32) {
        let (remote, echo) = (self.home, self.fresh_knock());
        let hint = Hint::Knock(echo);
        let (Some(peer), Some(side)) = (self.peers.get(&client), self.sides.get_mut(&client))
        else {
            return;
        };
        let lets_in = peer
            .firewall
            .as_ref()
            .is_none_or(|sent| sent.contains(&remote));
        let Some(path) = side.open.get(&path).filter(|_| lets_in) else {
            return;
        };
        let local = path.to;
        side.knocks.insert((local, echo));
        if peer.has(local) && self.net.leads(self.now, local, remote) {
            self.send(|| Arrival::Answer {
                client,
                local,
                remote,
                hint,
            });
        }
    }

    /// What a knock is to be returned that was never sent before.
    pub(super) fn fresh_knock(&mut self) -> Echo {
        self.knocks += 1;
        let [.., a, b, c, d] = self.knocks.to_be_bytes();
        let random = [0, a, b, c, d, 0, 0, 0, 0];
        Echo::of(&KnockKey::new(&[0; 32]).knock(&random)).expect("it is a knock")
    }

    /// Who returns a knock can be reached there, as the server learns.
    pub(super) fn echo_at_server(&mut self, id: u64, from: IpAddr, to: SocketAddr, echo: Echo) {
        let side = self.sides.get(&id).filter(|_| self.listening == Some(to));
        let is_known = side.is_some_and(|side| side.knocks.contains(&(from, echo)));
        self.counts.echoes += u32::from(is_known);
    }

    /// Who was not told where the server goes may be unable to follow it.
    fn excuse_the_uninformed(&mut self) {
        let Input::Thawed { listen: target, .. } = self.fate.1 else {
            return;
        };
        let newest = self.server.sequence();
        for (id, peer) in &mut self.peers {
            // It need not be told.
            if self
                .sides
                .get(id)
                .is_some_and(|side| side.machine.is_kept())
            {
                continue;
            }
            let told = match peer.announcements.last() {
                Some(Frame::Migration { sequence, .. }) => *sequence == newest,
                _ => false,
            };
            let strategy = peer.download.strategy;
            let follows = strategy == Strategy::Symmetric
                || strategy.heeds_announcements() && told
                || strategy.heeds_pool() && peer.pool && peer.allowed.contains(&target);
            if !follows {
                peer.excuse(Excuse::Uninformed);
            }
        }
    }

    fn excuse_all(&mut self, why: Excuse) {
        self.peers.values_mut().for_each(|peer| peer.excuse(why));
    }
}
