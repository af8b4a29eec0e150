//! What the paths carry: the parts of the downloads, pings, and what is sent again until it is acknowledged.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mpq_core::proto::client;

use super::World;
use super::arrival::{Arrival, Datagram};
use super::peer::{Path, Peer, Side};

/// How often both ends of a connection send something on each path.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// Datagrams of a part of a download, and bytes: enough of them to be taken for a stream.
const PART: u64 = 20;
const BYTES: u64 = 1_200;

impl World {
    pub(super) fn is_live(&self, id: u64, place: SocketAddr) -> bool {
        [self.listening, self.ghost, self.server_of(id)].contains(&Some(place))
    }

    /// Where a client finds the server: at its forwarder, if it has one.
    pub(super) fn server_of(&self, id: u64) -> Option<SocketAddr> {
        let forwarder = self.sides.get(&id).and_then(|side| side.forwarder);
        self.listening
            .map(|listening| forwarder.unwrap_or(listening))
    }

    /// The server, or the copy of it, that a packet reaches which is sent on this path.
    pub(super) fn reached(&self, id: u64, peer: &Peer, path: &Path) -> Option<SocketAddr> {
        let to = peer.sends_to(path)?;
        let leads = peer.has(path.via) && self.net.leads(self.now, path.via, to);
        (leads && self.is_live(id, to)).then_some(to)
    }

    /// Whether a packet of the connection gets through to the server itself, and that knows of it.
    pub(super) fn connected(&self, id: u64) -> bool {
        let Some(peer) = self.peers.get(&id) else {
            return false;
        };
        let reaches = |path: &Path| {
            let reached = self.reached(id, peer, path);
            reached.is_some() && reached == self.server_of(id)
        };
        self.sides.contains_key(&id) && peer.open.values().any(reaches)
    }

    pub(super) fn tick(&mut self) {
        self.later(TICK, Arrival::Tick);
        self.check_silent_sides();
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.client_sends(id);
            self.server_sends(id);
            self.look(id);
            self.check_links(id);
        }
    }

    /// A client acknowledges what it got, or sends again what was not acknowledged.
    fn client_sends(&mut self, id: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let reached = |(path, p): (&u32, &Path)| Some((*path, p.via, self.reached(id, peer, p)?));
        let part = Some(peer.download.received);
        for (path, via, to) in peer.open.iter().filter_map(reached).collect::<Vec<_>>() {
            match Some(to) == self.server_of(id) {
                true => self.side_hears(id, path, via),
                // The copy knows as much as the server did, and sends as well.
                false => self.send(|| {
                    Arrival::Datagram(Datagram {
                        client: id,
                        path,
                        from: to,
                        to: via,
                        part,
                    })
                }),
            }
        }
    }

    fn server_sends(&mut self, id: u64) {
        let (Some(from), Some(peer)) = (self.server_of(id), self.peers.get(&id)) else {
            return;
        };
        let sends = |side: &&mut Side| !side.holds && side.introduced;
        let Some(side) = self.sides.get_mut(&id).filter(sends) else {
            return;
        };
        let part = Some(peer.download.received);
        let mut sent = Vec::new();
        for (path, p) in &mut side.open {
            p.sent += PART * BYTES;
            sent.push((*path, p.to));
        }
        for (path, to) in sent {
            self.send(|| {
                Arrival::Datagram(Datagram {
                    client: id,
                    path,
                    from,
                    to,
                    part,
                })
            });
        }
    }

    /// A datagram comes to a client.
    pub(super) fn datagram(&mut self, datagram: Datagram) {
        let Datagram {
            client,
            path,
            from,
            to,
            part,
        } = datagram;
        let Some(peer) = self.peers.get_mut(&client) else {
            return;
        };
        let leads = peer.has(to) && self.net.leads(self.now, to, from);
        let Some(mut known) = peer.open.get(&path).copied().filter(|_| leads) else {
            return;
        };
        if peer.hears(&known) != from {
            return;
        }
        known.received += if part.is_some() { PART } else { 1 };
        peer.open.insert(path, known);
        peer.heard = self.now;
        if part == Some(peer.download.received) {
            peer.download.received += 1;
        }
        if peer.download.received >= peer.download.wanted {
            self.finish(client);
        }
    }

    /// A client wants to know whether a path works.
    pub(super) fn send_ping(&mut self, client: u64, path: u32) {
        let Some(peer) = self.peers.get_mut(&client) else {
            return;
        };
        let Some(known) = peer.open.get_mut(&path) else {
            return;
        };
        known.sent += BYTES;
        let (via, known) = (known.via, *known);
        if let Some(to) = peer.sends_to(&known) {
            self.send(|| Arrival::Ping {
                client,
                path,
                via,
                to,
            });
        }
    }

    /// It has come to where it was sent.
    pub(super) fn ping(&mut self, client: u64, path: u32, via: IpAddr, to: SocketAddr) {
        if !self.is_live(client, to) || !self.net.leads(self.now, via, to) {
            return;
        }
        if Some(to) == self.server_of(client) {
            if !self.sides.contains_key(&client) {
                return;
            }
            self.side_hears(client, path, via);
        }
        self.send(|| {
            Arrival::Datagram(Datagram {
                client,
                path,
                from: to,
                to: via,
                part: None,
            })
        });
    }

    /// The server wants something on a path to be acknowledged.
    pub(super) fn send_server_ping(&mut self, client: u64, path: u32) {
        let (Some(from), Some(side)) = (self.server_of(client), self.sides.get_mut(&client)) else {
            return;
        };
        let Some(known) = side.open.get_mut(&path).filter(|_| side.introduced) else {
            return;
        };
        known.sent += BYTES;
        let to = known.to;
        self.send(|| {
            Arrival::Datagram(Datagram {
                client,
                path,
                from,
                to,
                part: None,
            })
        });
    }

    /// The client's machine looks at its paths.
    pub(super) fn look(&mut self, id: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let figures = peer.open.iter().map(|(id, path)| path.figures(*id));
        let figures = figures.collect();
        self.client(id, client::Input::Figures(figures));
    }
}
