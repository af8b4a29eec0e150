//! What arrives, or is done, at its time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mpq_core::proto::probe::{Echo, Hint};
use mpq_core::proto::server;

use super::World;
use super::peer::Download;

/// What is under way.
#[derive(Debug)]
pub(super) enum Arrival {
    /// The next frame of the stream to or from a client.
    ToClient(u64),
    ToServer(u64),
    Probe {
        client: u64,
        from: IpAddr,
        target: SocketAddr,
    },
    Answer {
        client: u64,
        local: IpAddr,
        remote: SocketAddr,
        hint: Hint,
    },
    /// A knock is returned.
    Echo {
        client: u64,
        from: IpAddr,
        to: SocketAddr,
        echo: Echo,
    },
    /// A path that is being opened is challenged.
    Challenge {
        client: u64,
        path: u32,
        after: Duration,
    },
    /// A path of a client is closed at its end, and the server is told.
    Gone {
        client: u64,
        path: u32,
    },
    Abandoned {
        client: u64,
        path: u32,
    },
    /// The server has waited for a path.
    Pathless(u64),
    /// The server is told where the forwarder of a client is.
    Introduced(u64),
    /// The server is told that a path is validated.
    Validated {
        client: u64,
        path: u32,
    },
    /// The server has closed a path.
    ClosedByServer {
        client: u64,
        path: u32,
    },
    /// Every client, and the server on all its connections, sends something.
    Tick,
    Datagram(Datagram),
    /// A client asks on a path whether it works.
    Ping {
        client: u64,
        path: u32,
        via: IpAddr,
        to: SocketAddr,
    },
    Server(server::Input),
    /// What the server has sent is acknowledged.
    Drained,
    /// A client that cannot follow is told to connect anew.
    Dismissed(u64),
    /// A client's interfaces are others.
    Locals {
        client: u64,
        locals: Vec<u8>,
    },
    /// A client whose connection was lost comes again, for the rest.
    Resume(Download),
}

/// From the server to a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Datagram {
    pub(super) client: u64,
    pub(super) path: u32,
    pub(super) from: SocketAddr,
    pub(super) to: IpAddr,
    /// Which part of the download it is, if it is one.
    pub(super) part: Option<u32>,
}

impl World {
    pub(super) fn later(&mut self, after: Duration, arrival: Arrival) {
        self.serial += 1;
        self.arrivals
            .insert((self.now + after, self.serial), arrival);
    }

    /// A datagram on its way: it arrives once, twice, or never.
    pub(super) fn send(&mut self, arrival: impl Fn() -> Arrival) {
        for _ in 0..self.net.copies(self.now) {
            let delay = self.net.delay();
            self.later(delay, arrival());
        }
    }

    /// What is sent again until it arrives.
    pub(super) fn send_surely(&mut self, arrival: Arrival) {
        let delay = self.net.delay();
        self.later(delay, arrival);
    }

    pub(super) fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Server(input) => self.server(input),
            Arrival::Drained => self.drained(),
            Arrival::Tick => self.tick(),
            Arrival::Datagram(datagram) => self.datagram(datagram),
            Arrival::Ping {
                client,
                path,
                via,
                to,
            } => self.ping(client, path, via, to),
            Arrival::Probe {
                client,
                from,
                target,
            } => self.probe(client, from, target),
            Arrival::Abandoned { client, path } => self.abandoned(client, path),
            Arrival::Pathless(id) => self.pathless(id),
            Arrival::Introduced(id) => self.introduced(id),
            Arrival::Validated { client, path } => self.validated(client, path),
            Arrival::Resume(download) => self.resume(download),
            // The connection is no more.
            Arrival::ToClient(id) | Arrival::ToServer(id) | Arrival::Dismissed(id)
                if !self.peers.contains_key(&id) => {}
            Arrival::ToClient(id) => self.frame_to_client(id),
            Arrival::ToServer(id) => self.frame_to_server(id),
            Arrival::Dismissed(id) => self.lose(id),
            Arrival::Answer {
                client,
                local,
                remote,
                hint,
            } => self.answer(client, local, remote, hint),
            Arrival::Echo {
                client,
                from,
                to,
                echo,
            } => self.echo_at_server(client, from, to, echo),
            Arrival::Challenge {
                client,
                path,
                after,
            } => self.challenge(client, path, after),
            Arrival::Gone { client, path } => self.path_gone(client, path),
            Arrival::ClosedByServer { client, path } => self.closed_by_server(client, path),
            Arrival::Locals { client, locals } => self.locals(client, locals),
        }
    }
}
