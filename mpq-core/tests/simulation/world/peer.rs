//! A client, and its connection at either end.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mpq_core::proto::client::{ClientMachine, Config};
use mpq_core::proto::probe::Echo;
use mpq_core::proto::server::flight::{Flight, Landing};
use mpq_core::proto::server::peer::{OldPath, PeerMachine};
use mpq_core::proto::{Frame, PathFigures, Strategy};

use super::excuse::Excuse;
use super::network::{MEASURED_RTT, local};

/// What a client wants, in parts, and has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Download {
    pub(super) strategy: Strategy,
    pub(super) received: u32,
    pub(super) wanted: u32,
}

/// A path that is validated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) local: IpAddr,
    pub(super) remote: SocketAddr,
    /// The link that it goes over.
    pub(super) via: IpAddr,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// For how many ticks its link has been dead in vain.
    pub(super) dead: u32,
}

impl Path {
    pub(super) fn new(local: IpAddr, remote: SocketAddr) -> Self {
        Self {
            local,
            remote,
            via: local,
            sent: 0,
            received: 0,
            dead: 0,
        }
    }

    pub(super) fn figures(&self, id: u32) -> PathFigures {
        figures(id, self.sent, self.received)
    }
}

fn figures(id: u32, sent: u64, received: u64) -> PathFigures {
    PathFigures {
        id,
        rtt: MEASURED_RTT,
        sent,
        received,
    }
}

/// A client and its end of the connection.
pub(crate) struct Peer {
    pub(super) machine: ClientMachine,
    /// When the machine's time is.
    pub(super) due: Option<Instant>,
    pub(super) download: Download,
    /// Its interfaces, as they are and as they are when none of them flaps.
    pub(super) locals: Vec<u8>,
    pub(super) usual: Vec<u8>,
    pub(super) to_client: VecDeque<Frame>,
    pub(super) to_server: VecDeque<Frame>,
    pub(super) open: BTreeMap<u32, Path>,
    pub(super) opening: BTreeMap<u32, (IpAddr, SocketAddr)>,
    pub(super) next_path: u32,
    /// Path ids that it may use still, and those that came to nothing: the server may never hear of these.
    pub(super) ids: u32,
    pub(super) spent: u32,
    pub(super) redirected: Option<SocketAddr>,
    /// When its handshake is confirmed, and when it has the server's connection ids for other paths.
    pub(super) confirmed: Instant,
    pub(super) granted: Instant,
    /// Where the server may send this client, as far as it was told.
    pub(super) allowed: BTreeSet<SocketAddr>,
    /// Who has answered probes, or has been the server.
    pub(super) answered: BTreeSet<SocketAddr>,
    /// Where it has sent something, if a firewall asks.
    pub(super) firewall: Option<BTreeSet<SocketAddr>>,
    /// The last knock at each address, from where, which it has not returned yet.
    pub(super) knocks: BTreeMap<IpAddr, (SocketAddr, Echo)>,
    pub(super) pool: bool,
    pub(super) since: Instant,
    /// Probes to each address since the server was there.
    pub(super) probes: BTreeMap<IpAddr, usize>,
    pub(super) rounds: (u64, u32),
    pub(super) announcements: Vec<Frame>,
    pub(super) heard: Instant,
    /// It has moved, and its paths have not all.
    pub(super) settling: bool,
    /// Where it had paths from when it was.
    pub(super) in_use: BTreeSet<IpAddr>,
    /// Why its connection may be lost.
    pub(super) excuse: Option<Excuse>,
}

impl Peer {
    pub(super) fn new(
        now: Instant,
        config: Config,
        download: Download,
        remote: SocketAddr,
    ) -> Self {
        Self {
            ids: config.path_ids - 1,
            machine: ClientMachine::new(now, config, local(0), remote),
            due: None,
            download,
            locals: vec![0],
            usual: vec![0],
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            open: BTreeMap::from([(0, Path::new(local(0), remote))]),
            opening: BTreeMap::new(),
            next_path: 1,
            spent: 0,
            redirected: Some(remote),
            confirmed: now,
            granted: now,
            allowed: BTreeSet::from([remote]),
            answered: BTreeSet::from([remote]),
            firewall: None,
            knocks: BTreeMap::new(),
            pool: false,
            since: now,
            probes: BTreeMap::new(),
            rounds: (0, 0),
            announcements: Vec::new(),
            heard: now,
            settling: false,
            in_use: BTreeSet::new(),
            excuse: None,
        }
    }

    pub(super) fn has(&self, ip: IpAddr) -> bool {
        self.locals.iter().any(|i| local(*i) == ip)
    }

    /// Where the datagrams of a path go to.
    pub(super) fn sends_to(&self, path: &Path) -> Option<SocketAddr> {
        match self.download.strategy {
            strategy if strategy.redirects() => self.redirected,
            // Those that have ended send nothing.
            Strategy::Paper => self.redirected.map(|_| path.remote),
            _ => Some(path.remote),
        }
    }

    /// From whom datagrams are taken for a path.
    pub(super) fn hears(&self, path: &Path) -> SocketAddr {
        match self.download.strategy.redirects() {
            true => self.redirected.unwrap_or(self.machine.remote()),
            false => path.remote,
        }
    }

    /// Gives up the paths that are being opened and are `meant`.
    pub(super) fn give_up(&mut self, meant: impl Fn(IpAddr, SocketAddr) -> bool) {
        let before = self.opening.len();
        self.opening
            .retain(|_, (local, remote)| !meant(*local, *remote));
        self.spent += (before - self.opening.len()) as u32;
    }

    /// It has an excuse from now on, if it has none yet.
    pub(super) fn excuse(&mut self, why: Excuse) {
        self.excuse.get_or_insert(why);
    }
}

/// The server's end of a connection.
pub(super) struct Side {
    pub(super) machine: PeerMachine,
    pub(super) due: Instant,
    pub(super) holds: bool,
    /// Its client was dismissed.
    pub(super) closed: bool,
    pub(super) open: BTreeMap<u32, SidePath>,
    /// Paths of which a packet was decrypted.
    pub(super) known: BTreeSet<u32>,
    /// Nothing is sent on these: they may lead to where the client was.
    pub(super) stale: BTreeSet<u32>,
    /// Where a forwarder stands for its client, and whether the server knows of it.
    pub(super) forwarder: Option<SocketAddr>,
    pub(super) introduced: bool,
    /// The paths of before.
    pub(super) old: Vec<OldPath>,
    /// It is listened for.
    pub(super) awaited: bool,
    /// Since when it is waited for what was sent, when that is acknowledged, and the wait itself.
    pub(super) landing: Option<(Instant, Option<Instant>, Landing)>,
    /// What it was knocked with since the server is where it is, and where.
    pub(super) knocks: HashSet<(IpAddr, Echo)>,
    pub(super) datagrams: u64,
    /// When something came from it.
    pub(super) heard: Instant,
}

/// A path, as the server sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SidePath {
    /// Where the client is.
    pub(super) to: IpAddr,
    /// Where it leads at this end.
    pub(super) at: SocketAddr,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl SidePath {
    pub(super) fn new(to: IpAddr, at: SocketAddr) -> Self {
        Self {
            to,
            at,
            sent: 0,
            received: 0,
        }
    }

    pub(super) fn figures(&self, id: u32) -> PathFigures {
        figures(id, self.sent, self.received)
    }
}

impl Side {
    pub(super) fn new(now: Instant, id: u64, at: SocketAddr) -> Self {
        let machine = PeerMachine::new(now, id);
        Self {
            due: machine.next_timeout(),
            machine,
            holds: false,
            closed: false,
            open: BTreeMap::from([(0, SidePath::new(local(0), at))]),
            known: BTreeSet::from([0]),
            stale: BTreeSet::new(),
            forwarder: None,
            introduced: true,
            old: Vec::new(),
            awaited: false,
            knocks: HashSet::new(),
            datagrams: 0,
            heard: now,
            landing: None,
        }
    }

    /// Those that there are of the paths that the client can make next.
    pub(super) fn new_paths(&self) -> Vec<u32> {
        let next = self.machine.next_paths();
        self.known.range(next).copied().collect()
    }

    /// What is in flight on its paths: a packet each, and soon another one.
    pub(super) fn flights(&self, now: Instant) -> Vec<Flight> {
        let (began, acknowledged) = match &self.landing {
            Some((began, acknowledged, _)) => (*began, *acknowledged),
            None => (now, None),
        };
        let answered = acknowledged.filter(|at| now >= *at);
        let flight = Flight {
            sent: 1 + u64::from(now > began),
            bytes: if answered.is_some() { 0 } else { 1_200 },
            progress: answered.unwrap_or(began),
            lost: false,
            rtt: MEASURED_RTT,
        };
        self.open.keys().map(|_| flight).collect()
    }
}
