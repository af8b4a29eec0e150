//! All machines against each other, in virtual time: the server's, and those of both ends of each connection.
//!
//! What holds at any time is asserted where it could be broken; see [`invariants`].
//!
//! In the end every client has its download, over the connection that it began with; or it was told
//! that the connection is lost, and has the rest over another. A connection may be lost only for
//! a reason: see [`excuse`]. The first client of a [fair](crate::fair) schedule has none.

mod arrival;
mod client;
pub(crate) mod excuse;
mod invariants;
mod network;
mod operator;
mod peer;
mod server;
mod side;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mpq_core::proto::Strategy;
use mpq_core::proto::client::Config;
use mpq_core::proto::server::{AlternativeAddresses, Input, ServerMachine};

use self::arrival::Arrival;
use self::excuse::Excuse;
pub(crate) use self::network::host;
use self::network::{DECOY, GOOD, Network, RTT};
use self::peer::{Download, Peer, Side};
use self::traffic::TICK;
use crate::schedule::Schedule;

/// Whether all that happens is printed.
pub(crate) static TELLS: AtomicBool = AtomicBool::new(false);

pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// How long a client waits in a move, and otherwise.
const DEADLINE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(60);
/// How many clients there may be at once.
const MAX_PEERS: usize = 6;

pub(crate) struct World {
    seed: u64,
    start: Instant,
    now: Instant,
    net: Network,
    decoy: Option<SocketAddr>,
    server: ServerMachine,
    /// When the server's machine's time is.
    server_due: Option<Instant>,
    /// Since when it serves.
    serving: Instant,
    draining: bool,
    /// Where its sockets are open.
    listening: Option<SocketAddr>,
    home: SocketAddr,
    /// A copy of the server that was left running at its old address.
    ghost: Option<SocketAddr>,
    /// Whether the next move leaves a forwarder.
    forwards: bool,
    /// What becomes of the next freeze, and whether the old process goes on all the same.
    fate: (Duration, Input, bool),
    /// How long the new address takes to be there.
    reopening: Duration,
    opens_at: Instant,
    peers: BTreeMap<u64, Peer>,
    sides: BTreeMap<u64, Side>,
    next_peer: u64,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    serial: u64,
    /// How often somebody knocked.
    knocks: u64,
    /// Whose time is next, if that is known.
    next: Option<Option<(Instant, Turn)>>,
    /// Clients that are to come again.
    resuming: u32,
    /// In which states a move was abandoned.
    pub(crate) abandoned: BTreeSet<&'static str>,
    pub(crate) counts: Counts,
    /// How connections ended.
    pub(crate) ends: Vec<End>,
}

/// Whose machine's time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Server,
    Side(u64),
    Client(u64),
}

/// How often what happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) moves: u32,
    pub(crate) cancelled: u32,
    pub(crate) finished: u32,
    pub(crate) resumed: u32,
    /// Paths that were evacuated, and those that were given up, by the client and by the server; and those of them
    /// whose links were alive.
    pub(crate) evacuated: u32,
    pub(crate) dead: u32,
    pub(crate) dead_at_server: u32,
    pub(crate) wronged: u32,
    /// Connections that the server gave up since nothing came.
    pub(crate) idle: u32,
    /// Times that all paths were where a server was that had moved.
    pub(crate) settled: u32,
    /// Knocks that came back to the server that had sent them.
    pub(crate) echoes: u32,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// Whether it was the first one of the schedule.
    pub(crate) is_first: bool,
    pub(crate) strategy: Strategy,
    pub(crate) is_lost: bool,
    pub(crate) excuse: Option<Excuse>,
}

/// Runs a schedule to its end.
pub(crate) fn simulate(schedule: &Schedule) -> World {
    let mut world = World::new(schedule);
    for step in &schedule.steps {
        world.run(MILLISECOND * u32::from(step.after));
        world.apply(&step.op);
    }
    world.end();
    if schedule.fair {
        let first = world.ends.iter().find(|end| end.is_first);
        let first = first.expect("its connection has ended");
        let strategy = first.strategy;
        assert_eq!(
            (first.is_lost, first.excuse),
            (false, None),
            "{strategy} had no reason"
        );
    }
    world
}

impl World {
    /// For whoever replays a schedule.
    fn tell(&self, story: impl FnOnce() -> String) {
        if TELLS.load(Ordering::Relaxed) {
            println!("{:?} {}", self.now - self.start, story());
        }
    }

    pub(crate) fn new(schedule: &Schedule) -> Self {
        let now = Instant::now();
        let elsewhere = AlternativeAddresses {
            pool: (0..GOOD).map(host).collect(),
            name: None,
        };
        let mut world = Self {
            seed: schedule.seed,
            start: now,
            now,
            net: Network::new(schedule.seed, now),
            decoy: schedule.decoy.then(|| host(DECOY)),
            server: ServerMachine::new(elsewhere),
            server_due: None,
            serving: now,
            draining: false,
            listening: Some(host(0)),
            home: host(0),
            ghost: None,
            forwards: false,
            fate: (Duration::ZERO, Input::Failed, false),
            reopening: Duration::ZERO,
            opens_at: now,
            peers: BTreeMap::new(),
            sides: BTreeMap::new(),
            next_peer: 0,
            arrivals: BTreeMap::new(),
            serial: 0,
            knocks: 0,
            next: None,
            resuming: 0,
            abandoned: BTreeSet::new(),
            counts: Counts::default(),
            ends: Vec::new(),
        };
        world.later(TICK, Arrival::Tick);
        let mut download = world.download(schedule.strategy);
        if schedule.fair {
            // It lasts for the whole schedule.
            download.wanted = u32::MAX;
        }
        world.connect(download, false);
        world
    }

    fn download(&mut self, strategy: u8) -> Download {
        Download {
            strategy: Strategy::ALL[usize::from(strategy) % Strategy::ALL.len()],
            received: 0,
            wanted: 20 + self.net.below(2_000) as u32,
        }
    }

    fn connect(&mut self, download: Download, hold_back: bool) {
        let Some(remote) = self.listening else { return };
        let Download { strategy, .. } = download;
        let id = self.next_peer;
        self.next_peer += 1;
        let config = Config {
            deadline: DEADLINE,
            idle_timeout: IDLE,
            strategy,
            hold_back: if hold_back { RTT * 5 } else { Duration::ZERO },
            ..Config::default()
        };
        let mut peer = Peer::new(self.now, config, download, remote);
        peer.usual = vec![0, 1];
        // Before the answers of its probes, or after them.
        let luck = self.seed.wrapping_add(id);
        peer.confirmed = self.now + RTT * (luck % 3) as u32;
        // With the confirmation, or later: before they are waited for no more, or after that.
        peer.granted = peer.confirmed + RTT * 2 * (luck / 3 % 3) as u32;
        let side = Side::new(self.now, id, remote);
        self.peers.insert(id, peer);
        self.sides.insert(id, side);
        self.look(id);
        self.server(Input::Connected(id));
        self.expect(id);
        self.locals(id, vec![0, 1]);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let turn = self.next_turn();
            let arrival = self.arrivals.first_key_value().map(|((at, _), _)| *at);
            let turn_at = turn.map(|(at, _)| at);
            let both = [turn_at, arrival];
            let Some(due) = both.into_iter().flatten().min().filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            if arrival == Some(due) {
                let (_, arrival) = self.arrivals.pop_first().unwrap();
                self.arrive(arrival);
                continue;
            }
            self.next = None;
            match turn.expect("it is due").1 {
                Turn::Server => self.server_timeout(),
                Turn::Side(id) => self.side_timeout(id),
                Turn::Client(id) => self.client_timeout(id),
            }
        }
        self.now = end;
    }

    /// Whose machine's time is next.
    fn next_turn(&mut self) -> Option<(Instant, Turn)> {
        if let Some(known) = self.next {
            return known;
        }
        let clients = self.peers.iter();
        let clients = clients.filter_map(|(id, peer)| Some((peer.due?, Turn::Client(*id))));
        let sides = self.sides.iter();
        let sides = sides.map(|(id, side)| (side.due, Turn::Side(*id)));
        let server = self.server_due.map(|at| (at, Turn::Server));
        let next = clients.chain(sides).chain(server).min();
        self.next = Some(next);
        next
    }

    /// Everything comes to its end: first the moves, then the downloads, and then what the server knows of them.
    pub(crate) fn end(&mut self) {
        // The copy that was left running ends, and its clients look for the server.
        self.ghost = None;
        for _ in 0..200 {
            if self.unsettled().is_none() {
                break;
            }
            self.run(SECOND);
        }
        if let Some(unsettled) = self.unsettled() {
            panic!("{unsettled}");
        }
        for peer in self.peers.values_mut() {
            let download = &mut peer.download;
            download.wanted = download.wanted.min(download.received + 5);
        }
        for _ in 0..200 {
            if self.peers.is_empty() && self.sides.is_empty() && self.resuming == 0 {
                return;
            }
            self.run(SECOND);
        }
        let (peers, sides) = (self.peers.len(), self.sides.len());
        panic!("{peers} downloads never end, and the server has {sides} connections");
    }

    /// How long the first client takes to be at this host.
    pub(crate) fn time_until_at(&mut self, place: SocketAddr) -> Duration {
        let start = self.now;
        while self.peers[&0].machine.remote() != place {
            self.run(MILLISECOND);
            assert!(self.now < start + DEADLINE, "it never comes");
        }
        self.now - start
    }
}
