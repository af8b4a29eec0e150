//! What a schedule does to the world.

use mpq_core::proto::client;
use mpq_core::proto::probe::Hint;
use mpq_core::proto::server::{self, Announcement};

use super::arrival::Arrival;
use super::excuse::Excuse;
use super::network::{ALL, GOOD, host, local};
use super::{MAX_PEERS, MILLISECOND, World};
use crate::schedule::{FORWARDED, Move, NO_COPY, Op};

impl World {
    fn pick(&self, client: u8) -> Option<u64> {
        let index = usize::from(client) % self.peers.len().max(1);
        self.peers.keys().nth(index).copied()
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        self.tell(|| format!("{op:?}"));
        match op {
            Op::Connect {
                strategy,
                hold_back,
            } => {
                if self.peers.len() < MAX_PEERS && !self.net.is_dark(self.now) {
                    let download = self.download(*strategy);
                    self.connect(download, *hold_back);
                }
            }
            Op::Disconnect { client, silently } => {
                if let Some(id) = self.pick(*client) {
                    match silently {
                        true => self.vanish(id),
                        false => self.remove(id),
                    }
                }
            }
            Op::Locals { client, mask } => {
                let locals = (0..4).filter(|i| mask >> i & 1 == 1).collect::<Vec<_>>();
                if let Some(id) = self.pick(*client).filter(|_| !locals.is_empty()) {
                    self.peers.get_mut(&id).unwrap().usual = locals.clone();
                    self.locals(id, locals);
                }
            }
            Op::Flap {
                client,
                local,
                times,
                ms,
            } => self.flap(*client, *local % 4, *times % 20, *ms),
            Op::Link { local: at, ms } => {
                let until = self.now + MILLISECOND * u32::from(ms % 10_000);
                self.net.cut_link(local(at % 4), until);
            }
            Op::Move(wanted) | Op::AnotherMove(wanted) => self.relocate(wanted),
            Op::Cancel => self.abandon(),
            Op::Forge {
                client,
                from,
                knock,
            } => {
                if let Some(client) = self.pick(*client) {
                    self.peers.get_mut(&client).unwrap().excuse(Excuse::Misled);
                    let hint = match knock {
                        true => Hint::Knock(self.fresh_knock()),
                        false => Hint::Answer,
                    };
                    self.answer(client, local(0), host(*from), hint);
                }
            }
            Op::Replay { client } => {
                let Some(id) = self.pick(*client) else { return };
                let peer = &self.peers[&id];
                if let Some(old) = peer.announcements.first().cloned() {
                    let state = peer.machine.state();
                    self.client(id, client::Input::Frame(old));
                    assert_eq!(
                        self.peers[&id].machine.state(),
                        state,
                        "an old frame counts"
                    );
                }
            }
            Op::Blackout { ms } => {
                let until = self.now + MILLISECOND * u32::from(ms % 3_000);
                self.net.black_out(until);
            }
            Op::Partition {
                local: at,
                host: to,
                ms,
            } => {
                let until = self.now + MILLISECOND * u32::from(ms % 5_000);
                self.net.part(local(at % 4), host(*to), until);
            }
            Op::Firewall { client } => {
                if let Some(id) = self.pick(*client) {
                    let peer = self.peers.get_mut(&id).unwrap();
                    let known = peer.open.values().map(|path| path.remote);
                    peer.firewall.get_or_insert(known.collect());
                }
            }
        }
    }

    /// An interface goes and comes, again and again, and is in the end what it was.
    fn flap(&mut self, client: u8, interface: u8, times: u8, ms: u8) {
        let Some(id) = self.pick(client) else { return };
        let with = self.peers[&id].usual.clone();
        let without: Vec<_> = with.iter().filter(|i| **i != interface).copied().collect();
        for time in 0..2 * u32::from(times) {
            let locals = if time % 2 == 0 { &without } else { &with };
            self.later(
                MILLISECOND * (1 + u32::from(ms)) * time,
                Arrival::Locals {
                    client: id,
                    locals: locals.clone(),
                },
            );
        }
    }

    fn relocate(&mut self, wanted: &Move) {
        let target = host(wanted.to % GOOD);
        if !self.server.is_serving() || self.ghost == Some(target) {
            return;
        }
        // Somebody has found it.
        self.ghost = None;
        let outage = MILLISECOND * u32::from(wanted.outage % 10_000);
        self.fate = match wanted.luck < 64 {
            true => (outage, server::Input::Failed, false),
            false => {
                let (listen, before) = (target, self.home);
                let thawed = server::Input::Thawed { listen, before };
                (outage, thawed, wanted.ghost < NO_COPY)
            }
        };
        self.forwards = wanted.ghost >= FORWARDED;
        self.reopening = MILLISECOND * u32::from(255 - wanted.luck);
        let others = (0..ALL).filter(|i| wanted.others >> i & 1 == 1);
        let targets = match wanted.announced {
            true => others.map(host).chain([target]).collect(),
            false => Vec::new(),
        };
        let announcement = Announcement {
            targets,
            lead: MILLISECOND * u32::from(wanted.lead),
            outage,
            forwarded: self.forwards,
        };
        self.server(server::Input::Announce(announcement));
    }

    /// Whoever wanted the move wants it no more, and nothing more is done for it but what the machine wants.
    fn abandon(&mut self) {
        let state = self.server.state();
        if ["Announced", "Parking", "Parked", "Resuming (new address)"].contains(&state) {
            self.abandoned.insert(state);
            self.arrivals
                .retain(|_, arrival| !matches!(arrival, Arrival::Server(_)));
            // It was not copied.
            self.ghost = None;
        }
        self.server(server::Input::Abandoned);
    }
}
