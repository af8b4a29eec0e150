//! Both machines against each other, in virtual time, over a network that delays, reorders,
//! duplicates, loses and parts.
//!
//! What holds at any time is asserted where it could be broken:
//! - Of two live servers, the right one and a copy left running, a client that is settled has paths
//!   to one only.
//! - Datagrams are redirected only to addresses that have answered a probe.
//! - Probes keep to the caps, for each address and for all together, and go only where the server sent its
//!   client.
//! - A cancelled move leaves no trace.
//!
//! In the end every client has its download, over the connection that it began with; or it was told
//! that the connection is lost, and has the rest over another. A connection may be lost only for
//! a reason: see [`Peer::excuse`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mpq_core::proto::client::{self, ClientMachine, Config, Event, Refusal};
use mpq_core::proto::server::{self, AlternativeAddresses, Announcement, ServerMachine};
use mpq_core::proto::{Frame, PathFigures, Strategy, policy};

use crate::schedule::{Dice, Move, Op, Schedule};

/// Whether all that happens is printed.
pub(crate) static TELLS: AtomicBool = AtomicBool::new(false);

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const RTT: Duration = Duration::from_millis(40);
/// Promised by the client's machine: probes to an address at which the server never was, at once and in a
/// second; the same for all addresses together; and rounds of probes in a second.
const TARGET: (usize, f64) = (384, 2.0);
const CONNECTION: (usize, f64) = (1_024, 8.0);
const MAX_ROUNDS: u32 = 60;
/// How often a connected, undisturbed client hears from the server.
const DATA: Duration = Duration::from_millis(50);
/// How long a client waits in a move, and otherwise.
const DEADLINE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(60);
/// Between two challenges of a path, in the end.
const CHALLENGE: Duration = Duration::from_secs(2);
/// How many clients there may be at once.
const MAX_PEERS: usize = 6;

/// The server's hosts. It starts at the first; the last two are no places to send a client to.
const HOSTS: [&str; 5] = [
    "10.1.0.1:443",
    "10.1.0.2:443",
    "10.1.0.3:443",
    "127.0.0.1:443",
    "224.0.0.1:443",
];
/// Those of them that it may move to.
const GOOD: usize = 3;
/// That of them where a decoy may be.
const DECOY: usize = 2;

pub(crate) fn host(index: u8) -> SocketAddr {
    HOSTS[usize::from(index) % HOSTS.len()].parse().unwrap()
}

fn local(index: u8) -> IpAddr {
    [10, 0, index, 1].into()
}

/// What arrives, or is done, at its time.
#[derive(Debug)]
enum Arrival {
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
        knock: bool,
    },
    /// A path that is being opened is challenged.
    Challenge {
        client: u64,
        path: u32,
        after: Duration,
    },
    Gone {
        client: u64,
        path: u32,
    },
    /// Every undisturbed client is sent the next part of its download.
    Tick,
    Part {
        client: u64,
        number: u32,
    },
    Server(server::Input),
    /// The server's sockets are open at this address.
    Reopened(SocketAddr),
    /// A client that cannot follow is told to connect anew.
    Dismissed(u64),
    /// A client whose connection was lost comes again, for the rest.
    Resume(Download),
}

/// What a client wants, in parts, and has.
#[derive(Debug, Clone, Copy)]
struct Download {
    strategy: Strategy,
    received: u32,
    wanted: u32,
}

/// A client and its connection.
pub(crate) struct Peer {
    machine: ClientMachine,
    download: Download,
    locals: Vec<u8>,
    to_client: VecDeque<Frame>,
    to_server: VecDeque<Frame>,
    open: BTreeMap<u32, (IpAddr, SocketAddr)>,
    opening: BTreeMap<u32, (IpAddr, SocketAddr)>,
    next_path: u32,
    redirected: Option<SocketAddr>,
    /// Where the server may send this client, as far as it was told.
    allowed: BTreeSet<SocketAddr>,
    /// Who has answered probes, or has been the server.
    answered: BTreeSet<SocketAddr>,
    /// Where it has sent something, if a firewall asks.
    firewall: Option<BTreeSet<SocketAddr>>,
    pool: bool,
    since: Instant,
    /// Probes to each address since the server was there, and to all since the beginning.
    probes: BTreeMap<IpAddr, usize>,
    all_probes: usize,
    rounds: (u64, u32),
    announcements: Vec<Frame>,
    heard: Instant,
    heard_parts: u64,
    /// Why its connection may be lost.
    excuse: Option<&'static str>,
}

pub(crate) struct World {
    start: Instant,
    now: Instant,
    dice: Dice,
    decoy: Option<SocketAddr>,
    server: ServerMachine,
    /// Where its sockets are open.
    listening: Option<SocketAddr>,
    home: SocketAddr,
    /// It has woken where it was.
    came_back: bool,
    /// A copy of the server that was left running at its old address.
    ghost: Option<SocketAddr>,
    /// What becomes of the next freeze, and whether the old process goes on all the same.
    fate: (Duration, server::Input, bool),
    /// How long the new address takes to be there.
    reopening: Duration,
    gates_closed: BTreeSet<u64>,
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    blackout: Instant,
    partitions: BTreeMap<(IpAddr, SocketAddr), Instant>,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    serial: u64,
    /// Clients that are to come again.
    resuming: u32,
    /// In which states a move was abandoned.
    pub(crate) abandoned: BTreeSet<&'static str>,
    pub(crate) moves: u32,
    pub(crate) cancelled: u32,
    pub(crate) finished: u32,
    pub(crate) resumed: u32,
}

impl Peer {
    /// Where the server is, its word counts for more than any number.
    fn count_probes(&mut self, now: Instant, target: SocketAddr, probes: usize) {
        let passed = now.duration_since(self.since).as_secs_f64();
        let most = |(burst, rate): (usize, f64)| burst + (rate * passed) as usize;
        self.all_probes += probes;
        assert!(self.all_probes <= most(CONNECTION), "too many probes");
        if target != self.machine.remote() {
            let to_target = self.probes.entry(target.ip()).or_default();
            *to_target += probes;
            assert!(*to_target <= most(TARGET), "too many probes to {target}");
        }
    }
}

/// Runs a schedule to its end.
pub(crate) fn simulate(schedule: &Schedule) -> World {
    let mut world = World::new(schedule);
    for step in &schedule.steps {
        world.run(MILLISECOND * u32::from(step.after % 3_000));
        world.apply(&step.op);
    }
    world.end();
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
            pool: (0..GOOD as u8).map(host).collect(),
            name: None,
        };
        let mut world = Self {
            start: now,
            now,
            dice: Dice::new(schedule.seed),
            decoy: schedule.decoy.then(|| host(DECOY as u8)),
            server: ServerMachine::new(elsewhere),
            listening: Some(host(0)),
            home: host(0),
            came_back: false,
            ghost: None,
            fate: (Duration::ZERO, server::Input::Failed, false),
            reopening: Duration::ZERO,
            gates_closed: BTreeSet::new(),
            peers: BTreeMap::new(),
            next_peer: 0,
            blackout: now,
            partitions: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            serial: 0,
            resuming: 0,
            abandoned: BTreeSet::new(),
            moves: 0,
            cancelled: 0,
            finished: 0,
            resumed: 0,
        };
        world.later(DATA, Arrival::Tick);
        let download = world.download(schedule.strategy);
        world.connect(download, false);
        world
    }

    fn download(&mut self, strategy: u8) -> Download {
        Download {
            strategy: Strategy::ALL[usize::from(strategy) % Strategy::ALL.len()],
            received: 0,
            wanted: 20 + self.dice.below(2_000) as u32,
        }
    }

    fn connect(&mut self, download: Download, hold_back: bool) {
        let Some(remote) = self.listening else { return };
        let Download { strategy, .. } = download;
        let id = self.next_peer;
        self.next_peer += 1;
        let config = Config {
            deadline: DEADLINE,
            strategy,
            hold_back: if hold_back { RTT * 5 } else { Duration::ZERO },
            capabilities: match strategy {
                Strategy::Restart => 0,
                strategy if strategy.redirects() => Frame::REDIRECT,
                _ => Frame::MULTIPATH,
            },
            ..Config::default()
        };
        let peer = Peer {
            machine: ClientMachine::new(self.now, config, local(0), remote),
            download,
            locals: vec![0],
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            open: BTreeMap::from([(0, (local(0), remote))]),
            opening: BTreeMap::new(),
            next_path: 1,
            redirected: Some(remote),
            allowed: BTreeSet::from([remote]),
            answered: BTreeSet::from([remote]),
            firewall: None,
            pool: false,
            since: self.now,
            probes: BTreeMap::new(),
            all_probes: 0,
            rounds: (0, 0),
            announcements: Vec::new(),
            heard: self.now,
            heard_parts: 0,
            excuse: match strategy {
                Strategy::Proactive => Some("it has left a server that stays"),
                Strategy::Symmetric => Some("knocks get lost"),
                _ => None,
            },
        };
        self.peers.insert(id, peer);
        self.look(id);
        self.server(server::Input::Connected(id));
        self.client(id, client::Input::Expecting(true));
        self.locals(id, vec![0, 1]);
    }

    fn locals(&mut self, id: u64, locals: Vec<u8>) {
        let ips = locals.iter().map(|i| local(*i)).collect();
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.locals = locals;
            self.client(id, client::Input::Locals(ips));
        }
    }

    fn look(&mut self, id: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let figures = peer.open.keys().map(|path| PathFigures {
            id: *path,
            rtt: RTT,
            sent: 0,
            received: peer.heard_parts,
        });
        let figures = figures.collect();
        self.client(id, client::Input::Figures(figures));
    }

    fn later(&mut self, after: Duration, arrival: Arrival) {
        self.serial += 1;
        self.arrivals
            .insert((self.now + after, self.serial), arrival);
    }

    /// One way through the network, up to five times the usual time.
    fn delay(&mut self) -> Duration {
        RTT / 2 + MILLISECOND * self.dice.below(80) as u32
    }

    /// A datagram on its way: it arrives once, twice, or never.
    fn send(&mut self, arrival: impl Fn() -> Arrival) {
        let times = match self.dice.below(20) {
            _ if self.now < self.blackout => 0,
            0 | 1 => 0,
            2 => 2,
            _ => 1,
        };
        for _ in 0..times {
            let delay = self.delay();
            self.later(delay, arrival());
        }
    }

    fn parted(&self, local: IpAddr, remote: SocketAddr) -> bool {
        let until = self.partitions.get(&(local, remote));
        self.now < self.blackout || until.is_some_and(|until| self.now < *until)
    }

    /// The server that a packet of the connection reaches, over whichever path; or that reaches the client.
    fn reaches(&self, peer: &Peer) -> Option<SocketAddr> {
        self.reaches_by(peer, |_| true)
    }

    fn reaches_by(&self, peer: &Peer, by: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        let redirects = peer.download.strategy.redirects();
        let open = peer.open.values().filter(|(_, remote)| by(*remote));
        let reached = open.filter_map(|(from, remote)| {
            let to = if redirects { peer.redirected? } else { *remote };
            let there = peer.locals.iter().any(|i| local(*i) == *from);
            (there && self.is_live(to) && !self.parted(*from, to)).then_some(to)
        });
        reached.max_by_key(|to| Some(*to) == self.listening)
    }

    fn is_live(&self, place: SocketAddr) -> bool {
        [self.listening, self.ghost].contains(&Some(place))
    }

    /// Whether a packet of the connection gets through to the server itself.
    fn connected(&self, id: u64) -> bool {
        let reached = self.reaches(&self.peers[&id]);
        reached.is_some() && reached == self.listening
    }

    fn client(&mut self, id: u64, input: client::Input) {
        let cancelled = matches!(&input, client::Input::Frame(Frame::Cancelled { .. }));
        if !matches!(input, client::Input::Figures(_))
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
        let Some(peer) = self.peers.get(&id).filter(|_| cancelled) else {
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

    fn perform_client(&mut self, id: u64) {
        while let Some(output) = self.peers.get_mut(&id).and_then(|peer| peer.machine.poll()) {
            self.obey_client(id, output);
        }
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let remote = peer.machine.path_remote();
        let at = |place: SocketAddr| peer.open.values().filter(|(_, r)| *r == place).count();
        if peer.machine.state() == "Settled" && at(remote) > 0 {
            assert_eq!(at(remote), peer.open.len(), "obeys two: {:?}", peer.open);
        }
    }

    fn obey_client(&mut self, id: u64, output: client::Output) {
        self.tell(|| format!("client {id}: {output:?}"));
        let peer = self.peers.get_mut(&id).unwrap();
        match output {
            client::Output::Send(frame) => {
                peer.to_server.push_back(frame);
                let delay = self.delay();
                self.later(delay, Arrival::ToServer(id));
            }
            client::Output::Probe(targets) => {
                assert_ne!(peer.machine.state(), "Settled", "probes for nothing");
                assert!(peer.download.strategy.probes(), "its paper has no probes");
                for target in &targets {
                    assert!(peer.allowed.contains(target), "probes {target}");
                }
                for target in &targets {
                    peer.count_probes(self.now, *target, peer.locals.len());
                }
                let second = self.now.duration_since(self.start).as_secs();
                peer.rounds = match peer.rounds {
                    (of, rounds) if of == second => (of, rounds + 1),
                    _ => (second, 1),
                };
                assert!(peer.rounds.1 <= MAX_ROUNDS, "probes too often");
                if let Some(sent) = &mut peer.firewall {
                    sent.extend(targets.clone());
                }
                for from in peer.locals.clone().into_iter().map(local) {
                    for target in targets.iter().copied() {
                        self.send(|| Arrival::Probe {
                            client: id,
                            from,
                            target,
                        });
                    }
                }
            }
            client::Output::ProbeFrom { local, target } => {
                assert!(peer.download.strategy.probes(), "its paper has no probes");
                assert!(peer.allowed.contains(&target), "probes {target}");
                peer.count_probes(self.now, target, 1);
                self.send(|| Arrival::Probe {
                    client: id,
                    from: local,
                    target,
                });
            }
            client::Output::Redirect(to) => {
                let strategy = peer.download.strategy;
                assert!(
                    strategy.redirects() || strategy.leaves_at_once(),
                    "redirects"
                );
                if let Some(to) = to {
                    let is_there = !strategy.redirects() && to == peer.machine.remote();
                    assert!(peer.answered.contains(&to) || is_there, "redirects to {to}");
                }
                peer.redirected = to;
                self.look(id);
            }
            client::Output::Open { local, remote } => {
                assert!(peer.allowed.contains(&remote), "opens a path to {remote}");
                // The server has not granted the id yet.
                if self.dice.below(10) == 0 {
                    let refusal = Refusal::NoId;
                    return self.client(
                        id,
                        client::Input::PathRefused {
                            local,
                            remote,
                            refusal,
                        },
                    );
                }
                let path = peer.next_path;
                peer.next_path += 1;
                peer.opening.insert(path, (local, remote));
                let delay = self.delay() * 2;
                let after = delay;
                self.later(
                    delay,
                    Arrival::Challenge {
                        client: id,
                        path,
                        after,
                    },
                );
            }
            client::Output::Abandon(remote) => peer.opening.retain(|_, (_, r)| *r != remote),
            client::Output::AbandonFrom(local) => peer.opening.retain(|_, (l, _)| *l != local),
            client::Output::Ping { .. } | client::Output::Evacuate { .. } => {}
            client::Output::Close { path } => {
                assert!(peer.open.len() > 1, "closes the last path");
                peer.open.remove(&path);
                let delay = self.delay();
                self.later(delay, Arrival::Gone { client: id, path });
            }
            client::Output::Event(Event::Failed | Event::Idle) => self.lose(id),
            client::Output::Event(Event::Moved { remote, .. }) => {
                peer.probes.remove(&remote.ip());
            }
            client::Output::Event(_) => {}
        }
    }

    /// The client gives its connection up, and says so. It comes again for the rest.
    fn lose(&mut self, id: u64) {
        let peer = &self.peers[&id];
        let state = peer.machine.state();
        // The paper's client looks only where the server said that it would go, and can hear it elsewhere only by
        // a path that is there.
        let here = |(from, _): &(IpAddr, _)| peer.locals.iter().any(|i| local(*i) == *from);
        let is_cut_off = !peer.open.values().any(here);
        let stayed = peer.machine.remote() == self.home;
        let unknown = peer.download.strategy == Strategy::Paper && is_cut_off && stayed;
        assert!(
            peer.excuse.is_some() || unknown,
            "client {id} ({}, {state}) gave up",
            peer.download.strategy
        );
        self.later(SECOND, Arrival::Resume(peer.download));
        self.resuming += 1;
        self.remove(id);
    }

    fn remove(&mut self, id: u64) {
        self.peers.remove(&id);
        self.server(server::Input::Gone(id));
    }

    fn server(&mut self, input: server::Input) {
        if !matches!(input, server::Input::Established(_)) {
            self.tell(|| format!("server ({}): {input:?}", self.server.state()));
        }
        self.server.handle(self.now, input);
        self.perform_server();
    }

    fn perform_server(&mut self) {
        use server::{Input, Output};
        while let Some(output) = self.server.poll() {
            match output {
                Output::Send(id, frame) => {
                    if let Some(peer) = self.peers.get_mut(&id) {
                        peer.to_client.push_back(frame);
                        let delay = self.delay();
                        self.later(delay, Arrival::ToClient(id));
                    }
                }
                Output::Dismiss(id) => {
                    let Some(peer) = self.peers.get_mut(&id) else {
                        continue;
                    };
                    let hello = |frame: &Frame| matches!(frame, Frame::Hello { .. });
                    let silent = peer.to_server.iter().any(hello);
                    let follows = peer.download.strategy != Strategy::Restart;
                    assert!(silent || !follows, "client {id} could follow");
                    peer.excuse = Some("it had not said that it can follow");
                    let delay = self.delay();
                    self.later(delay, Arrival::Dismissed(id));
                }
                Output::CloseGates => self.gates_closed = self.peers.keys().copied().collect(),
                Output::OpenGate(id) => {
                    self.gates_closed.remove(&id);
                }
                Output::Drain => {
                    let drain = MILLISECOND * self.dice.below(500) as u32;
                    self.later(drain, Arrival::Server(Input::Quiet));
                }
                Output::Hold => {}
                Output::CloseSockets => {
                    self.listening = None;
                    let (_, fate, ghost) = self.fate.clone();
                    if let Input::Thawed { listen: target, .. } = fate
                        && target != self.home
                    {
                        self.excuse_the_uninformed(target);
                        if ghost {
                            self.ghost = Some(self.home);
                            self.excuse_all("it may be with the copy that was left running");
                        }
                    }
                    self.later(MILLISECOND, Arrival::Server(Input::Closed));
                }
                Output::Dump => {
                    let (outage, fate, _) = self.fate.clone();
                    self.later(outage, Arrival::Server(fate));
                }
                Output::Reopen(Some(listen)) if !self.reopening.is_zero() => {
                    self.later(self.reopening, Arrival::Reopened(listen));
                }
                Output::Reopen(listen) => self.reopened(listen.unwrap_or(self.home)),
                Output::Knock(ids) => ids.into_iter().for_each(|id| self.knock(id)),
                Output::Done { moved } => {
                    assert!(self.server.is_serving());
                    self.gates_closed.clear();
                    match moved {
                        true => self.moves += 1,
                        false => self.cancelled += 1,
                    }
                }
            }
        }
    }

    fn reopened(&mut self, listen: SocketAddr) {
        self.came_back = self.server.state() == "Resuming (new address)" && listen == self.home;
        self.home = listen;
        self.listening = Some(listen);
        self.server(server::Input::Reopened);
    }

    /// Whoever wanted the move wants it no more, and nothing more is done for it but what the machine wants.
    fn abandon(&mut self) {
        let state = self.server.state();
        if ["Announced", "Parking", "Parked", "Resuming (new address)"].contains(&state) {
            self.abandoned.insert(state);
            self.arrivals
                .retain(|_, arrival| !matches!(arrival, Arrival::Server(_) | Arrival::Reopened(_)));
            // It was not copied.
            self.ghost = None;
        }
        self.server(server::Input::Abandoned);
    }

    fn knock(&mut self, client: u64) {
        let (remote, knock) = (self.home, true);
        let Some(peer) = self.peers.get(&client) else {
            return;
        };
        let lets_in = |sent: &BTreeSet<_>| sent.contains(&remote);
        if peer.firewall.as_ref().is_none_or(lets_in) {
            let local = local(self.peers[&client].locals[0]);
            self.send(|| Arrival::Answer {
                client,
                local,
                remote,
                knock,
            });
        }
    }

    /// Who was not told where the server goes may be unable to follow it.
    fn excuse_the_uninformed(&mut self, target: SocketAddr) {
        let newest = self.server.sequence();
        for peer in self.peers.values_mut() {
            let told = match peer.announcements.last() {
                Some(Frame::Migration { sequence, .. }) => *sequence == newest,
                _ => false,
            };
            let strategy = peer.download.strategy;
            let follows = strategy.heeds_announcements() && told
                || strategy.heeds_pool() && peer.pool && peer.allowed.contains(&target);
            if !follows {
                peer.excuse = Some("nobody told it where the server goes");
            }
        }
    }

    fn excuse_all(&mut self, why: &'static str) {
        self.peers
            .values_mut()
            .for_each(|peer| peer.excuse = Some(why));
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Server(input) => self.server(input),
            Arrival::Reopened(listen) => self.reopened(listen),
            Arrival::Dismissed(id) => {
                if self.peers.contains_key(&id) {
                    self.lose(id);
                }
            }
            Arrival::Tick => self.tick(),
            Arrival::Part { client, number } => self.part(client, number),
            Arrival::Resume(download) => {
                if self.listening.is_some() && self.now >= self.blackout {
                    self.resuming -= 1;
                    self.resumed += 1;
                    self.connect(download, false);
                } else {
                    self.later(SECOND, Arrival::Resume(download));
                }
            }
            Arrival::ToClient(id) if self.peers.contains_key(&id) => {
                if self.connected(id) {
                    self.frame(id);
                } else {
                    // QUIC sends it again.
                    self.later(RTT, Arrival::ToClient(id));
                }
            }
            Arrival::ToServer(id) if self.peers.contains_key(&id) => {
                let peer = &self.peers[&id];
                // What is withheld goes nowhere, though the server may still be heard from there.
                let old = peer.machine.path_remote();
                let withheld = peer.redirected.is_none();
                let reached = self.reaches_by(peer, |remote| !withheld || remote != old);
                if reached.is_none() || reached != self.listening {
                    return self.later(RTT, Arrival::ToServer(id));
                }
                let peer = self.peers.get_mut(&id).unwrap();
                match peer.to_server.pop_front().expect("one for each arrival") {
                    Frame::Hello { capabilities: 0 } => {}
                    Frame::Hello { .. } => self.server(server::Input::Hello(id)),
                    Frame::Ready { .. } => self.server(server::Input::Ready(id)),
                    frame => panic!("a client sends {frame:?}"),
                }
            }
            Arrival::Probe {
                client,
                from,
                target,
            } => {
                let somebody = self.is_live(target) || self.decoy == Some(target);
                if somebody && !self.parted(from, target) {
                    self.send(|| Arrival::Answer {
                        client,
                        local: from,
                        remote: target,
                        knock: false,
                    });
                }
            }
            Arrival::Answer {
                client,
                local,
                remote,
                knock,
            } => {
                if let Some(peer) = self.peers.get_mut(&client) {
                    let acceptable = policy::acceptable(peer.machine.remote().ip(), remote);
                    match knock {
                        // From then on the server may be there.
                        true if acceptable => drop(peer.allowed.insert(remote)),
                        true => {}
                        false => drop(peer.answered.insert(remote)),
                    }
                    self.client(
                        client,
                        client::Input::Answer {
                            local,
                            remote,
                            knock,
                        },
                    );
                }
            }
            Arrival::Challenge {
                client,
                path,
                after,
            } => self.challenge(client, path, after),
            Arrival::Gone { client, path } => {
                self.client(client, client::Input::PathGone { path });
            }
            // The connection is no more.
            Arrival::ToClient(_) | Arrival::ToServer(_) => {}
        }
    }

    fn tick(&mut self) {
        self.later(DATA, Arrival::Tick);
        for client in self.peers.keys().copied().collect::<Vec<_>>() {
            let peer = &self.peers[&client];
            let reached = self.reaches(peer);
            if reached.is_none() {
                let silence = self.now.duration_since(peer.heard);
                if silence >= IDLE && !peer.machine.is_moving() {
                    self.lose(client);
                }
                continue;
            }
            let number = peer.download.received;
            if reached != self.listening {
                self.send(|| Arrival::Part { client, number });
                continue;
            }
            // The server has heard of it, over the paths that it had before.
            if self.came_back {
                self.server(server::Input::Stayed(client));
            } else if peer.download.strategy.redirects() {
                self.server(server::Input::Established(client));
            }
            if !self.gates_closed.contains(&client) {
                self.send(|| Arrival::Part { client, number });
            }
        }
    }

    fn part(&mut self, client: u64, number: u32) {
        let now = self.now;
        let Some(peer) = self.peers.get(&client) else {
            return;
        };
        if self.reaches(peer).is_none() {
            return;
        }
        let peer = self.peers.get_mut(&client).unwrap();
        peer.heard = now;
        peer.heard_parts += 1;
        if number == peer.download.received {
            peer.download.received += 1;
        }
        if peer.download.received == peer.download.wanted {
            self.finished += 1;
            return self.remove(client);
        }
        self.look(client);
    }

    /// A client gets the next frame of its stream.
    fn frame(&mut self, id: u64) {
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
            peer.excuse = Some("somebody else answers where the server may be");
        }
        self.client(id, client::Input::Frame(frame));
    }

    fn challenge(&mut self, client: u64, path: u32, after: Duration) {
        let Some(peer) = self.peers.get_mut(&client) else {
            return;
        };
        let Some((from, remote)) = peer.opening.get(&path).copied() else {
            return;
        };
        if !peer.locals.iter().any(|i| local(*i) == from) {
            peer.opening.remove(&path);
            let (local, refusal) = (from, Refusal::NoAnswer);
            let refused = client::Input::PathRefused {
                local,
                remote,
                refusal,
            };
            return self.client(client, refused);
        }
        let redirects = peer.download.strategy.redirects();
        let to = if redirects {
            peer.redirected
        } else {
            Some(remote)
        };
        let reached = to.filter(|to| self.is_live(*to) && !self.parted(from, *to));
        if reached.is_none() || self.dice.below(5) == 0 {
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
        peer.open.insert(path, (from, remote));
        peer.probes.remove(&remote.ip());
        if reached == self.listening {
            self.server(server::Input::Established(client));
        }
        let open = client::Input::PathOpen {
            path,
            local: from,
            remote,
        };
        self.client(client, open);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let clients = self.peers.iter();
            let client = clients
                .filter_map(|(id, p)| Some((p.machine.next_timeout()?, *id)))
                .min();
            let server = self.server.next_timeout();
            let arrival = self.arrivals.keys().next().map(|(at, _)| *at);
            let all = [client.map(|(at, _)| at), server, arrival];
            let Some(due) = all.into_iter().flatten().min().filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            let later = |at: Option<Instant>| at.is_none_or(|at| at > self.now);
            if arrival == Some(due) {
                let (_, arrival) = self.arrivals.pop_first().unwrap();
                self.arrive(arrival);
            } else if server == Some(due) {
                self.server.handle_timeout(self.now);
                assert!(later(self.server.next_timeout()), "the server spins");
                self.perform_server();
            } else if let Some((_, id)) = client {
                let machine = &mut self.peers.get_mut(&id).unwrap().machine;
                machine.handle_timeout(self.now);
                assert!(later(machine.next_timeout()), "client {id} spins");
                self.perform_client(id);
            }
        }
        self.now = end;
    }

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
                if self.peers.len() < MAX_PEERS && self.now >= self.blackout {
                    let download = self.download(*strategy);
                    self.connect(download, *hold_back);
                }
            }
            Op::Disconnect { client } => {
                if let Some(id) = self.pick(*client) {
                    self.remove(id);
                }
            }
            Op::Locals { client, mask } => {
                let locals = (0..4).filter(|i| mask >> i & 1 == 1).collect::<Vec<_>>();
                if let Some(id) = self.pick(*client).filter(|_| !locals.is_empty()) {
                    self.locals(id, locals);
                }
            }
            Op::Move(wanted) | Op::AnotherMove(wanted) => self.relocate(wanted),
            Op::Cancel => self.abandon(),
            Op::Forge {
                client,
                from,
                knock,
            } => {
                let (remote, knock) = (host(*from), *knock);
                if let Some(client) = self.pick(*client) {
                    self.peers.get_mut(&client).unwrap().excuse = Some("it was misled");
                    self.arrive(Arrival::Answer {
                        client,
                        local: local(0),
                        remote,
                        knock,
                    });
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
            Op::Blackout { ms } => self.blackout = self.now + MILLISECOND * u32::from(ms % 3_000),
            Op::Partition {
                local: at,
                host: to,
                ms,
            } => {
                let until = self.now + MILLISECOND * u32::from(ms % 5_000);
                self.partitions.insert((local(at % 4), host(*to)), until);
            }
            Op::Firewall { client } => {
                if let Some(id) = self.pick(*client) {
                    let peer = self.peers.get_mut(&id).unwrap();
                    let known = peer.open.values().map(|(_, remote)| *remote);
                    peer.firewall.get_or_insert(known.collect());
                }
            }
        }
    }

    fn relocate(&mut self, wanted: &Move) {
        let target = host(wanted.to % GOOD as u8);
        if !self.server.is_serving() || self.ghost == Some(target) {
            return;
        }
        // Somebody has found it.
        self.ghost = None;
        let outage = MILLISECOND * u32::from(wanted.outage % 10_000);
        self.fate = match wanted.luck < 64 {
            true => (outage, server::Input::Failed, false),
            false => {
                let before = self.home;
                let listen = target;
                let thawed = server::Input::Thawed { listen, before };
                (outage, thawed, wanted.ghost < 16)
            }
        };
        self.reopening = MILLISECOND * u32::from(255 - wanted.luck);
        let others = (0..HOSTS.len() as u8).filter(|i| wanted.others >> i & 1 == 1);
        let targets = match wanted.announced {
            true => others.map(host).chain([target]).collect(),
            false => Vec::new(),
        };
        let announcement = Announcement {
            targets,
            lead: MILLISECOND * u32::from(wanted.lead),
            outage,
        };
        self.server(server::Input::Announce(announcement));
    }

    /// Everything comes to its end: first the moves, then the downloads.
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
            if self.peers.is_empty() && self.resuming == 0 {
                return;
            }
            self.run(SECOND);
        }
        panic!("{} downloads never end", self.peers.len());
    }

    /// What is not as it should be in the end.
    fn unsettled(&self) -> Option<String> {
        if !self.server.is_serving() {
            return Some(format!("the server is {}", self.server.state()));
        }
        if self.resuming > 0 {
            return Some(format!("{} clients wait for the server", self.resuming));
        }
        self.peers.iter().find_map(|(id, peer)| {
            let state = peer.machine.state();
            let client = format!("client {id} ({}, {state})", peer.download.strategy);
            if peer.machine.is_moving() || peer.machine.remote() != self.home {
                return Some(format!("{client} is at {}", peer.machine.remote()));
            }
            let open: BTreeSet<_> = peer.open.values().copied().collect();
            let remote = peer.machine.path_remote();
            let locals = peer.locals.iter();
            let wanted: BTreeSet<_> = locals.map(|l| (local(*l), remote)).collect();
            if open != wanted || !peer.opening.is_empty() {
                return Some(format!("{client} has {open:?}, opens {:?}", peer.opening));
            }
            let held = self.gates_closed.contains(id);
            held.then(|| format!("{client} gets no data"))
        })
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
