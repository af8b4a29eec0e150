//! Both machines against each other, in virtual time, over a network that delays, reorders and
//! loses: whatever happens, every client ends where the server is, and only there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mpq_core::migration::client::{self, Client, Config, Event};
use mpq_core::migration::server::{self, Announcement, Server};
use mpq_core::migration::{Frame, policy};
use proptest::prelude::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(40);
/// Promised by the client's machine: probes of one move.
const MAX_PROBES: usize = 4_000;
/// How often a connected, undisturbed client hears from the server.
const DATA: Duration = Duration::from_millis(50);

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

fn host(index: usize) -> SocketAddr {
    HOSTS[index].parse().unwrap()
}

fn local(index: u8) -> IpAddr {
    [10, 0, index, 1].into()
}

/// What a test case does to the system, one after the other.
#[derive(Debug, Clone)]
enum Op {
    /// A client connects.
    Connect,
    /// A client's connection is lost.
    Disconnect(usize),
    /// A client's interfaces are these from now on.
    Locals(usize, Vec<u8>),
    /// The operator wants a move; an unlucky freeze fails.
    Move {
        to: usize,
        others: Vec<usize>,
        lead: u64,
        outage: u64,
        lucky: bool,
    },
    /// Somebody answers who is not asked, from one of the hosts.
    Forge {
        client: usize,
        from: usize,
        knock: bool,
    },
    /// An old announcement comes again.
    Replay { client: usize },
    /// Nothing gets through for a while, milliseconds.
    Blackout(u64),
    /// Time passes, milliseconds.
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        2 => Just(Op::Connect),
        1 => (0..4_usize).prop_map(Op::Disconnect),
        2 => (0..4_usize, prop::collection::btree_set(0..4_u8, 1..4))
            .prop_map(|(client, locals)| Op::Locals(client, locals.into_iter().collect())),
        6 => (0..GOOD, prop::collection::vec(0..HOSTS.len(), 0..4), 0..500_u64, 0..20_000_u64, prop::bool::weighted(0.7))
            .prop_map(|(to, others, lead, outage, lucky)| Op::Move { to, others, lead, outage, lucky }),
        2 => (0..4_usize, 0..HOSTS.len(), any::<bool>())
            .prop_map(|(client, from, knock)| Op::Forge { client, from, knock }),
        1 => (0..4_usize).prop_map(|client| Op::Replay { client }),
        1 => (0..3_000_u64).prop_map(Op::Blackout),
        6 => (0..5_000_u64).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..20)
}

/// A number generator (xorshift) whose seed is part of the test case.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What arrives, or is done, at its time.
#[derive(Debug)]
enum Arrival {
    /// The next frame of the stream to or from a client.
    ToClient(u64),
    ToServer(u64),
    Probe {
        client: u64,
        target: SocketAddr,
    },
    Answer {
        client: u64,
        remote: SocketAddr,
        knock: bool,
    },
    /// The end of an attempt to open a path.
    Opened {
        client: u64,
        path: u32,
    },
    Gone {
        client: u64,
        path: u32,
    },
    Data,
    Server(server::Input),
}

struct Peer {
    machine: Client,
    locals: Vec<u8>,
    to_client: VecDeque<Frame>,
    to_server: VecDeque<Frame>,
    open: BTreeMap<u32, (IpAddr, SocketAddr)>,
    opening: BTreeMap<u32, (IpAddr, SocketAddr)>,
    next_path: u32,
    /// Where the server may send this client, as far as it was told.
    allowed: BTreeSet<SocketAddr>,
    probes: usize,
    announcements: Vec<Frame>,
    /// It reached its deadline.
    failed: bool,
}

struct World {
    now: Instant,
    dice: Dice,
    server: Server,
    /// Where its sockets are open.
    listening: Option<SocketAddr>,
    home: SocketAddr,
    /// What becomes of the next freeze.
    fate: (Duration, server::Input),
    gates_closed: BTreeSet<u64>,
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    blackout: Instant,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    serial: u64,
    done: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            dice: Dice(seed | 1),
            server: Server::default(),
            listening: Some(host(0)),
            home: host(0),
            fate: (Duration::ZERO, server::Input::Failed),
            gates_closed: BTreeSet::new(),
            peers: BTreeMap::new(),
            next_peer: 0,
            blackout: now,
            arrivals: BTreeMap::new(),
            serial: 0,
            done: 0,
        };
        world.connect();
        world.later(DATA, Arrival::Data);
        world
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

    fn lost(&mut self) -> bool {
        self.now < self.blackout || self.dice.below(10) == 0
    }

    fn connect(&mut self) {
        let Some(remote) = self.listening else { return };
        let id = self.next_peer;
        self.next_peer += 1;
        let machine = Client::new(self.now, Config::default(), local(0), remote);
        let peer = Peer {
            machine,
            locals: vec![0],
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            open: BTreeMap::from([(0, (local(0), remote))]),
            opening: BTreeMap::new(),
            next_path: 1,
            allowed: BTreeSet::from([remote]),
            probes: 0,
            announcements: Vec::new(),
            failed: false,
        };
        self.peers.insert(id, peer);
        self.client(id, client::Input::Rtt(RTT));
        self.client(id, client::Input::Expecting(true));
        self.client(id, client::Input::Locals(vec![local(0), local(1)]));
        self.peers.get_mut(&id).unwrap().locals = vec![0, 1];
    }

    /// Whether a packet of the connection gets through: over a path, to where the server is.
    fn connected(&self, id: u64) -> bool {
        let peer = &self.peers[&id];
        let there = |(l, r): &(IpAddr, SocketAddr)| {
            Some(*r) == self.listening && peer.locals.iter().any(|i| local(*i) == *l)
        };
        self.now >= self.blackout && peer.open.values().any(there)
    }

    fn client(&mut self, id: u64, input: client::Input) {
        let cancelled = matches!(&input, client::Input::Frame(Frame::Cancelled { .. }));
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let before = peer.machine.remote();
        peer.machine.handle(self.now, input);
        self.perform_client(id);
        let peer = &self.peers[&id];
        if cancelled && !peer.machine.is_moving() {
            assert_eq!(peer.machine.remote(), before, "CANCELLED moves nobody");
            assert!(
                peer.opening.values().all(|(_, r)| *r == before),
                "a trace is left"
            );
        }
    }

    fn perform_client(&mut self, id: u64) {
        while let Some(output) = self.peers.get_mut(&id).and_then(|peer| peer.machine.poll()) {
            let peer = self.peers.get_mut(&id).unwrap();
            match output {
                client::Output::Send(frame) => {
                    peer.to_server.push_back(frame);
                    let delay = self.delay();
                    self.later(delay, Arrival::ToServer(id));
                }
                client::Output::Probe(targets) => {
                    assert!(
                        targets.iter().all(|t| peer.allowed.contains(t)),
                        "probes {targets:?}"
                    );
                    peer.probes += targets.len() * peer.locals.len();
                    assert!(peer.probes <= MAX_PROBES, "too many probes");
                    for _ in 0..peer.locals.len() {
                        for target in targets.clone() {
                            if !self.lost() {
                                let delay = self.delay();
                                self.later(delay, Arrival::Probe { client: id, target });
                            }
                        }
                    }
                }
                client::Output::Redirect(to) => panic!("redirects to {to:?}"),
                client::Output::Open { local, remote } => {
                    assert!(peer.allowed.contains(&remote), "opens a path to {remote}");
                    let path = peer.next_path;
                    peer.next_path += 1;
                    peer.opening.insert(path, (local, remote));
                    let delay = self.delay() * 2;
                    self.later(delay, Arrival::Opened { client: id, path });
                }
                client::Output::Abandon(remote) => peer.opening.retain(|_, (_, r)| *r != remote),
                client::Output::Close { path } => {
                    assert!(peer.open.len() > 1, "closes the last path");
                    peer.open.remove(&path);
                    let delay = self.delay();
                    self.later(delay, Arrival::Gone { client: id, path });
                }
                client::Output::Event(Event::Failed) => peer.failed = true,
                client::Output::Event(Event::Announced { .. }) => peer.probes = 0,
                client::Output::Event(_) => {}
            }
        }
    }

    fn server(&mut self, input: server::Input) {
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
                Output::CloseGates => self.gates_closed = self.peers.keys().copied().collect(),
                Output::OpenGate(id) => {
                    self.gates_closed.remove(&id);
                }
                Output::Drain => {
                    let drain = MILLISECOND * self.dice.below(500) as u32;
                    self.later(drain, Arrival::Server(Input::Quiet));
                }
                Output::CloseSockets => {
                    self.listening = None;
                    if let Input::Thawed(_) = self.fate.1 {
                        self.lose_the_uninformed();
                    }
                    self.later(MILLISECOND, Arrival::Server(Input::Closed));
                }
                Output::Dump => {
                    let (outage, fate) = self.fate.clone();
                    self.later(outage, Arrival::Server(fate));
                }
                Output::Reopen(listen) => {
                    self.home = listen.unwrap_or(self.home);
                    self.listening = Some(self.home);
                    self.server(Input::Reopened);
                }
                Output::Knock(ids) => {
                    for client in ids {
                        if !self.lost() {
                            let (remote, knock) = (self.home, true);
                            let delay = self.delay();
                            self.later(
                                delay,
                                Arrival::Answer {
                                    client,
                                    remote,
                                    knock,
                                },
                            );
                        }
                    }
                }
                Output::Done { .. } => {
                    assert!(self.server.is_serving());
                    self.gates_closed.clear();
                    self.done += 1;
                }
            }
        }
    }

    /// A client that was not told where the server goes cannot follow it.
    fn lose_the_uninformed(&mut self) {
        let newest = self.server.sequence();
        let told = |p: &Peer| match p.announcements.last() {
            Some(Frame::Migration { sequence, .. }) => *sequence == newest,
            _ => false,
        };
        let lost = self.peers.iter().filter(|(_, peer)| !told(peer));
        for id in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.peers.remove(&id);
            self.server.handle(self.now, server::Input::Gone(id));
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Server(input) => self.server(input),
            Arrival::Data => {
                for id in self.peers.keys().copied().collect::<Vec<_>>() {
                    if self.connected(id) && !self.gates_closed.contains(&id) {
                        self.client(id, client::Input::Heard);
                    }
                }
                self.later(DATA, Arrival::Data);
            }
            Arrival::ToClient(id) if self.peers.contains_key(&id) => {
                if self.connected(id) {
                    let peer = self.peers.get_mut(&id).unwrap();
                    let frame = peer
                        .to_client
                        .pop_front()
                        .expect("an arrival for each frame");
                    if let Frame::Migration { targets, .. } = &frame {
                        let current = peer.machine.remote().ip();
                        let acceptable =
                            targets.iter().filter(|t| policy::acceptable(current, **t));
                        peer.allowed = acceptable.copied().chain(peer.allowed.clone()).collect();
                        peer.announcements.push(frame.clone());
                    }
                    self.client(id, client::Input::Frame(frame));
                } else {
                    // QUIC sends it again.
                    self.later(RTT, Arrival::ToClient(id));
                }
            }
            Arrival::ToServer(id) if self.peers.contains_key(&id) => {
                if self.connected(id) {
                    let peer = self.peers.get_mut(&id).unwrap();
                    match peer
                        .to_server
                        .pop_front()
                        .expect("an arrival for each frame")
                    {
                        Frame::Hello { .. } => self.server(server::Input::Hello(id)),
                        Frame::Ready { .. } => self.server(server::Input::Ready(id)),
                        frame => panic!("a client sends {frame:?}"),
                    }
                } else {
                    self.later(RTT, Arrival::ToServer(id));
                }
            }
            Arrival::Probe { client, target } => {
                if self.listening == Some(target) && !self.lost() {
                    let delay = self.delay();
                    self.later(
                        delay,
                        Arrival::Answer {
                            client,
                            remote: target,
                            knock: false,
                        },
                    );
                }
            }
            Arrival::Answer {
                client,
                remote,
                knock,
            } => {
                if let Some(peer) = self.peers.get_mut(&client) {
                    // From then on the server may be there.
                    if knock && policy::acceptable(peer.machine.remote().ip(), remote) {
                        peer.allowed.insert(remote);
                    }
                    self.client(client, client::Input::Answer { remote, knock });
                }
            }
            Arrival::Opened { client, path } => {
                let Some(peer) = self.peers.get_mut(&client) else {
                    return;
                };
                let Some((from, remote)) = peer.opening.remove(&path) else {
                    return;
                };
                let usable = peer.locals.iter().any(|i| local(*i) == from);
                if usable && self.listening == Some(remote) && !self.lost() {
                    let peer = self.peers.get_mut(&client).unwrap();
                    peer.open.insert(path, (from, remote));
                    self.server(server::Input::Established(client));
                    self.client(
                        client,
                        client::Input::PathOpen {
                            path,
                            local: from,
                            remote,
                        },
                    );
                } else {
                    let input = client::Input::PathRefused {
                        local: from,
                        remote,
                        retry: true,
                    };
                    self.client(client, input);
                }
            }
            Arrival::Gone { client, path } => self.client(client, client::Input::PathGone { path }),
            // The connection is no more.
            Arrival::ToClient(_) | Arrival::ToServer(_) => {}
        }
    }

    /// Runs until `end`.
    fn run(&mut self, end: Instant) {
        loop {
            let clients = self
                .peers
                .iter()
                .filter_map(|(id, p)| Some((p.machine.next_timeout()?, *id)));
            let client = clients.min();
            let server = self.server.next_timeout();
            let arrival = self.arrivals.keys().next().map(|(at, _)| *at);
            let due = [client.map(|(at, _)| at), server, arrival]
                .into_iter()
                .flatten()
                .min();
            let Some(due) = due.filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            if arrival == Some(due) {
                let (_, arrival) = self.arrivals.pop_first().unwrap();
                self.arrive(arrival);
            } else if server == Some(due) {
                self.server.handle_timeout(self.now);
                assert!(
                    self.server.next_timeout().is_none_or(|at| at > self.now),
                    "spins"
                );
                self.perform_server();
            } else if let Some((_, id)) = client {
                let machine = &mut self.peers.get_mut(&id).unwrap().machine;
                machine.handle_timeout(self.now);
                assert!(
                    machine.next_timeout().is_none_or(|at| at > self.now),
                    "spins"
                );
                self.perform_client(id);
            }
        }
        self.now = end;
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Connect => self.connect(),
            Op::Disconnect(index) => {
                if let Some(id) = self.peers.keys().nth(index).copied() {
                    self.peers.remove(&id);
                    self.server(server::Input::Gone(id));
                }
            }
            Op::Locals(index, mut locals) => {
                let Some(id) = self.peers.keys().nth(index).copied() else {
                    return;
                };
                // With both ends at new addresses at once, neither could find the other.
                let peer = &self.peers[&id];
                if !self.server.is_serving() || peer.machine.is_moving() {
                    let open = |l: &&u8| peer.open.values().any(|(from, _)| *from == local(**l));
                    locals.extend(peer.locals.iter().find(open));
                    locals.sort();
                    locals.dedup();
                }
                let ips = locals.iter().map(|i| local(*i)).collect();
                self.client(id, client::Input::Locals(ips));
                self.peers.get_mut(&id).unwrap().locals = locals;
            }
            Op::Move {
                to,
                others,
                lead,
                outage,
                lucky,
            } => {
                let target = host(to);
                if !self.server.is_serving() || target == self.home {
                    return;
                }
                let outage = MILLISECOND * outage as u32;
                self.fate = match lucky {
                    true => (outage, server::Input::Thawed(target)),
                    false => (outage, server::Input::Failed),
                };
                let announcement = Announcement {
                    targets: others.into_iter().map(host).chain([target]).collect(),
                    lead: MILLISECOND * lead as u32,
                    outage,
                };
                self.server(server::Input::Announce(announcement));
            }
            Op::Forge {
                client,
                from,
                knock,
            } => {
                // The best that a forger on the path can do is to know the tokens.
                if let Some(client) = self.peers.keys().nth(client).copied() {
                    let remote = host(from);
                    self.arrive(Arrival::Answer {
                        client,
                        remote,
                        knock,
                    });
                }
            }
            Op::Replay { client } => {
                if let Some((id, peer)) = self.peers.iter().nth(client)
                    && let Some(old) = peer.announcements.first().cloned()
                {
                    let (id, state) = (*id, peer.machine.state());
                    self.client(id, client::Input::Frame(old));
                    assert_eq!(
                        self.peers[&id].machine.state(),
                        state,
                        "an old frame counts"
                    );
                }
            }
            Op::Blackout(ms) => self.blackout = self.now + Duration::from_millis(ms),
            Op::Wait(ms) => self.run(self.now + Duration::from_millis(ms)),
        }
    }

    fn check_end(&self) {
        assert!(
            self.server.is_serving(),
            "the server is {}",
            self.server.state()
        );
        for (id, peer) in &self.peers {
            let state = peer.machine.state();
            assert!(!peer.machine.is_moving(), "client {id} is {state}");
            assert!(!peer.failed, "client {id} gave up");
            assert_eq!(peer.machine.remote(), self.home, "client {id} is elsewhere");
            let paths: BTreeSet<_> = peer.open.values().copied().collect();
            let wanted: BTreeSet<_> = peer.locals.iter().map(|l| (local(*l), self.home)).collect();
            assert_eq!(paths, wanted, "client {id}'s paths");
            assert!(
                peer.opening.is_empty(),
                "client {id} opens {:?}",
                peer.opening
            );
            assert!(!self.gates_closed.contains(id), "client {id} gets no data");
        }
    }
}

fn simulate(seed: u64, ops: Vec<Op>) -> World {
    let mut world = World::new(seed);
    for op in ops {
        world.apply(op);
    }
    // The deadline of a client that was misled, and time to put it right.
    world.run(world.now + Duration::from_secs(400));
    world.check_end();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_client_ends_where_the_server_is(seed: u64, ops in ops()) {
        simulate(seed, ops);
    }
}

fn a_move(to: usize, lucky: bool) -> Op {
    Op::Move {
        to,
        others: vec![],
        lead: 100,
        outage: 3_000,
        lucky,
    }
}

#[test]
fn a_server_that_moves_twice_keeps_its_client() {
    let ops = vec![
        Op::Wait(500),
        a_move(1, true),
        Op::Wait(10_000),
        a_move(0, true),
    ];
    let world = simulate(1, ops);
    assert_eq!((world.done, world.home), (2, host(0)));
}

#[test]
fn a_failed_freeze_leaves_the_client_at_the_old_address() {
    let world = simulate(1, vec![Op::Wait(500), a_move(1, false)]);
    assert_eq!((world.done, world.home), (1, host(0)));
}

#[test]
fn a_move_adds_no_more_than_two_round_trips_to_the_outage() {
    let mut world = World::new(1);
    world.apply(Op::Wait(500));
    world.apply(a_move(2, true));
    world.run(world.now + Duration::from_millis(100));
    let start = world.now;
    while world.peers[&0].machine.remote() != host(2) {
        world.run(world.now + MILLISECOND);
        assert!(world.now < start + Duration::from_secs(10));
    }
    // At most: the drain, the outage, a knock or a probe of 100 ms each way, and the validation.
    let limit = Duration::from_millis(500 + 3_000 + 200 + 2 * 100);
    assert!(world.now - start <= limit, "{:?}", world.now - start);
}
