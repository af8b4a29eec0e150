//! The machines in virtual time: their transition tables, and random runs of both over a network
//! that loses and reorders.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mpq_core::migration::client::{self, Client, Config, Event};
use mpq_core::migration::server::{self, Announcement, Server};
use mpq_core::migration::{Frame, frame};
use proptest::prelude::*;

const TOKEN: [u8; 8] = *b"token678";

fn a() -> SocketAddr {
    "10.1.0.2:443".parse().unwrap()
}

fn b() -> SocketAddr {
    "10.1.0.3:443".parse().unwrap()
}

fn locals() -> Vec<IpAddr> {
    ["10.0.0.2", "10.0.1.2"]
        .map(|ip| ip.parse().unwrap())
        .to_vec()
}

fn announcement(targets: Vec<SocketAddr>) -> Announcement {
    let lead = Duration::from_millis(100);
    Announcement {
        targets,
        lead,
        outage: Duration::ZERO,
        token: TOKEN,
    }
}

fn migration(sequence: u64, targets: Vec<SocketAddr>) -> Frame {
    let Announcement {
        targets,
        lead,
        outage,
        token,
    } = announcement(targets);
    Frame::Migration {
        sequence,
        targets,
        outage,
        lead,
        token,
    }
}

/// A client with both paths open to A, brought into a state by these inputs.
fn client_after(now: Instant, inputs: &[client::Input]) -> Client {
    let mut client = Client::new(now, Config::default(), locals()[0], a());
    let second = client::Input::PathOpen {
        path: 1,
        local: locals()[1],
        remote: a(),
    };
    let start = [
        client::Input::Locals(locals()),
        second,
        client::Input::Expecting(true),
    ];
    for input in start.iter().chain(inputs) {
        client.handle(now, input.clone());
    }
    while client.poll().is_some() {}
    client
}

fn server_after(now: Instant, inputs: &[server::Input]) -> Server {
    let mut server = Server::default();
    server.handle(now, server::Input::Hello(1));
    for input in inputs {
        server.handle(now, input.clone());
        // The lead time passes.
        if matches!(input, server::Input::Announce(_)) && inputs.len() > 1 {
            server.handle_timeout(now + Duration::from_secs(1));
        }
    }
    while server.poll().is_some() {}
    server
}

fn outputs<T: std::fmt::Debug>(poll: impl FnMut() -> Option<T>) -> String {
    let outputs: Vec<_> = std::iter::from_fn(poll)
        .map(|output| short(&output))
        .collect();
    outputs.join(", ")
}

/// The debug form, without the values of fields.
fn short(output: &impl std::fmt::Debug) -> String {
    let text = format!("{output:?}");
    let mut names = text.split(|c: char| !c.is_alphanumeric()).filter(|name| {
        name.starts_with(|c: char| c.is_uppercase()) && !matches!(*name, "Some" | "Ok" | "None")
    });
    let outer = names.next().unwrap_or_default().to_owned();
    match names.next() {
        Some(inner) if matches!(outer.as_str(), "Send" | "Event" | "Frame") => {
            format!("{outer} {inner}")
        }
        _ => outer,
    }
}

fn check_table(name: &str, table: &str) {
    let path = format!("{}/src/migration/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("MPQ_WRITE_TABLES").is_some() {
        std::fs::write(&path, table).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        table, written,
        "{name} is out of date: run this test with MPQ_WRITE_TABLES=1"
    );
}

#[test]
fn the_clients_transitions_are_those_in_its_documentation() {
    use client::Input as I;
    let now = Instant::now();
    let announced = I::Frame(migration(1, vec![b()]));
    let parked = I::Frame(Frame::Parked { sequence: 1 });
    let knock = I::Answer {
        remote: b(),
        knock: true,
    };
    let states: [&[I]; 4] = [
        &[],
        std::slice::from_ref(&announced),
        &[announced.clone(), parked.clone()],
        &[announced.clone(), parked.clone(), knock.clone()],
    ];
    let inputs = [
        ("MIGRATION of sequence 2", I::Frame(migration(2, vec![b()]))),
        (
            "MIGRATION to an unacceptable address",
            I::Frame(migration(2, vec!["127.0.0.1:1".parse().unwrap()])),
        ),
        ("MIGRATION of sequence 1", I::Frame(migration(1, vec![b()]))),
        ("PARKED", parked),
        ("CANCELLED", I::Frame(Frame::Cancelled { sequence: 1 })),
        (
            "CANCELLED of another sequence",
            I::Frame(Frame::Cancelled { sequence: 9 }),
        ),
        (
            "answer to a probe",
            I::Answer {
                remote: b(),
                knock: false,
            },
        ),
        ("knock", knock),
        (
            "answer from a stranger",
            I::Answer {
                remote: "10.9.9.9:443".parse().unwrap(),
                knock: false,
            },
        ),
        ("path to A gone", I::PathGone { path: 1 }),
        (
            "path to B validated",
            I::PathOpen {
                path: 2,
                local: locals()[0],
                remote: b(),
            },
        ),
        ("heard", I::Heard),
    ];
    let mut table =
        String::from("| state | input | new state | outputs |\n| --- | --- | --- | --- |\n");
    for before in states {
        for (name, input) in &inputs {
            let mut client = client_after(now, before);
            let from = client.state();
            client.handle(now, input.clone());
            let (to, out) = (client.state(), outputs(|| client.poll()));
            if from != to || !out.is_empty() {
                writeln!(table, "| {from} | {name} | {to} | {out} |").unwrap();
            }
        }
        for (name, after) in [
            ("silence", Duration::from_secs(2)),
            ("deadline", Duration::from_secs(301)),
        ] {
            let mut client = client_after(now, before);
            let from = client.state();
            client.handle_timeout(now + after);
            let (to, out) = (client.state(), outputs(|| client.poll()));
            if from != to {
                writeln!(table, "| {from} | {name} | {to} | {out} |").unwrap();
            }
        }
    }
    check_table("client_transitions.md", &table);
}

#[test]
fn the_servers_transitions_are_those_in_its_documentation() {
    use server::Input as I;
    let now = Instant::now();
    let announce = I::Announce(announcement(vec![b()]));
    let path: Vec<I> = vec![
        announce.clone(),
        I::Quiet,
        I::Closed,
        I::Thawed(b()),
        I::Reopened,
    ];
    let mut states: Vec<Vec<I>> = vec![vec![], vec![announce.clone()]];
    // With more than one input the lead time has passed.
    states.push(vec![announce.clone(), I::Ready(1)]);
    states.push(path[..3].to_vec());
    states.push(path[..4].to_vec());
    states.push(vec![announce.clone(), I::Quiet, I::Closed, I::Failed]);
    states.push(path.clone());
    let inputs = [
        ("HELLO", I::Hello(2)),
        ("announce", announce),
        ("quiet", I::Quiet),
        ("closed", I::Closed),
        ("failed", I::Failed),
        ("thawed", I::Thawed(b())),
        ("reopened", I::Reopened),
        ("path established", I::Established(1)),
        ("client gone", I::Gone(1)),
    ];
    let mut table =
        String::from("| state | input | new state | outputs |\n| --- | --- | --- | --- |\n");
    for before in &states {
        for (name, input) in &inputs {
            let mut server = server_after(now, before);
            let from = server.state();
            server.handle(now, input.clone());
            let (to, out) = (server.state(), outputs(|| server.poll()));
            if from != to || !out.is_empty() {
                writeln!(table, "| {from} | {name} | {to} | {out} |").unwrap();
            }
        }
        let mut server = server_after(now, before);
        let from = server.state();
        server.handle_timeout(now + Duration::from_secs(60));
        let (to, out) = (server.state(), outputs(|| server.poll()));
        if from != to {
            writeln!(table, "| {from} | time | {to} | {out} |").unwrap();
        }
    }
    check_table("server_transitions.md", &table);
}

/// What may happen next in a random run.
#[derive(Debug, Clone)]
enum Op {
    /// Time passes, milliseconds.
    Wait(u16),
    /// The operator announces a move; to where, and whether the freeze will succeed.
    Announce { good: bool },
    /// The server, if frozen, wakes: there, or where it was.
    Wake { moved: bool },
    /// A forged or stale answer reaches the client.
    Answer { knock: bool, stranger: bool },
    /// The client loses and finds an interface.
    Interfaces { both: bool },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (1..2000_u16).prop_map(Op::Wait),
        2 => any::<bool>().prop_map(|good| Op::Announce { good }),
        2 => any::<bool>().prop_map(|moved| Op::Wake { moved }),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(knock, stranger)| Op::Answer { knock, stranger }),
        1 => any::<bool>().prop_map(|both| Op::Interfaces { both }),
    ];
    prop::collection::vec(op, 1..40)
}

/// Both machines, a perfect stream between them while the server is awake, and a lossy rest.
struct World {
    now: Instant,
    client: Client,
    server: Server,
    /// Where the server is; `None` while frozen.
    at: Option<SocketAddr>,
    last_at: SocketAddr,
    to_client: VecDeque<Frame>,
    announced: BTreeSet<SocketAddr>,
    next_path: u32,
    loss: u64,
    probes: u32,
    frozen: bool,
}

impl World {
    fn new(loss: u64) -> Self {
        let now = Instant::now();
        let mut client = Client::new(now, Config::default(), locals()[0], a());
        client.handle(now, client::Input::Locals(locals()));
        client.handle(now, client::Input::Expecting(true));
        Self {
            now,
            client,
            server: Server::default(),
            at: Some(a()),
            last_at: a(),
            to_client: VecDeque::new(),
            announced: BTreeSet::from([a()]),
            next_path: 1,
            loss,
            probes: 0,
            frozen: false,
        }
    }

    /// Whether a datagram gets through: a small generator of its own, so that runs are repeatable.
    fn arrives(&mut self) -> bool {
        self.loss = self
            .loss
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        !(self.loss >> 33).is_multiple_of(4)
    }

    fn server(&mut self, input: server::Input) {
        self.server.handle(self.now, input);
    }

    fn client(&mut self, input: client::Input) {
        self.client.handle(self.now, input);
    }

    /// Does what both want, until they want nothing.
    fn settle(&mut self) {
        loop {
            if let Some(output) = self.client.poll() {
                self.perform_client(output);
            } else if let Some(output) = self.server.poll() {
                self.perform_server(output);
            } else if self.at == Some(self.client.remote()) && !self.to_client.is_empty() {
                let frame = self.to_client.pop_front().unwrap();
                self.client(client::Input::Frame(frame));
            } else {
                return;
            }
        }
    }

    fn perform_client(&mut self, output: client::Output) {
        match output {
            client::Output::Send(frame) => match frame {
                Frame::Hello { .. } => self.server(server::Input::Hello(1)),
                Frame::Ready { .. } => self.server(server::Input::Ready(1)),
                other => panic!("a client sent {other:?}"),
            },
            client::Output::Probe(targets) => {
                self.probes += targets.len() as u32;
                assert!(self.probes <= 50_000);
                for target in targets {
                    assert!(self.announced.contains(&target), "a probe to a stranger");
                    if self.at == Some(target) && self.arrives() {
                        self.client(client::Input::Answer {
                            remote: target,
                            knock: false,
                        });
                    }
                }
            }
            client::Output::Open { local, remote } => {
                assert!(self.announced.contains(&remote), "a path to a stranger");
                if self.at == Some(remote) && self.arrives() {
                    let path = self.next_path;
                    self.next_path += 1;
                    self.client(client::Input::PathOpen {
                        path,
                        local,
                        remote,
                    });
                    self.server(server::Input::Established(1));
                } else {
                    self.client(client::Input::PathRefused {
                        local,
                        remote,
                        retry: true,
                    });
                }
            }
            client::Output::Close { path } => self.client(client::Input::PathGone { path }),
            client::Output::Event(Event::Moved { remote, .. }) => {
                assert_eq!(self.at, Some(remote), "moved to where nobody is");
            }
            client::Output::Listen(_) | client::Output::Abandon(_) | client::Output::Event(_) => {}
        }
    }

    fn perform_server(&mut self, output: server::Output) {
        match output {
            server::Output::Send(_, frame) => self.to_client.push_back(frame),
            server::Output::Drain => self.server(server::Input::Quiet),
            server::Output::CloseSockets => {
                // All that was sent before has arrived: that is what draining means.
                while let Some(frame) = self.to_client.pop_front() {
                    self.client(client::Input::Frame(frame));
                }
                self.at = None;
                self.server(server::Input::Closed);
            }
            server::Output::Dump => self.frozen = true,
            server::Output::Reopen(listen) => {
                let listen = listen.unwrap_or(self.last_at);
                (self.at, self.last_at) = (Some(listen), listen);
                self.server(server::Input::Reopened);
            }
            server::Output::Knock(_, token) => {
                assert_eq!(token, TOKEN);
                if self.arrives() {
                    let remote = self.at.expect("a frozen server knocks");
                    self.client(client::Input::Answer {
                        remote,
                        knock: true,
                    });
                }
            }
            server::Output::CloseGates
            | server::Output::OpenGate(_)
            | server::Output::Done { .. } => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        loop {
            let due = self
                .client
                .next_timeout()
                .into_iter()
                .chain(self.server_due())
                .min();
            match due.filter(|due| *due <= end) {
                Some(due) => self.now = self.now.max(due),
                None => break,
            }
            // The server sends all the time that it is there.
            if self.at == Some(self.client.remote()) && self.server.is_serving() {
                self.client(client::Input::Heard);
            }
            self.client.handle_timeout(self.now);
            if !self.frozen {
                self.server.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = end;
    }

    /// A frozen server's clock stands still.
    fn server_due(&self) -> Option<Instant> {
        self.server.next_timeout().filter(|_| !self.frozen)
    }

    fn wake(&mut self, moved: bool) {
        if std::mem::take(&mut self.frozen) {
            let elsewhere = if self.last_at == a() { b() } else { a() };
            self.server(match moved {
                true => server::Input::Thawed(elsewhere),
                false => server::Input::Failed,
            });
        }
        self.settle();
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Wait(millis) => self.pass(Duration::from_millis(millis.into())),
            Op::Announce { good } => {
                let elsewhere = if self.last_at == a() { b() } else { a() };
                let target = if good {
                    elsewhere
                } else {
                    "127.0.0.1:1".parse().unwrap()
                };
                if self.server.is_serving() {
                    self.announced.extend(good.then_some(elsewhere));
                    self.server(server::Input::Announce(announcement(vec![
                        elsewhere, target,
                    ])));
                    self.announced.insert(elsewhere);
                }
                self.settle();
            }
            Op::Wake { moved } => self.wake(moved),
            Op::Answer { knock, stranger } => {
                let remote = if stranger {
                    "10.9.9.9:443".parse().unwrap()
                } else {
                    self.last_at
                };
                self.client(client::Input::Answer { remote, knock });
                self.settle();
            }
            Op::Interfaces { both } => {
                let all = locals();
                let some = if both { &all[..] } else { &all[1..] };
                self.client(client::Input::Locals(some.to_vec()));
                self.settle();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever happens, in the end both serve again, at the same address, over every interface.
    #[test]
    fn every_run_ends_with_both_together(ops in ops(), loss in any::<u64>()) {
        let mut world = World::new(loss);
        world.pass(Duration::from_secs(1));
        for op in ops {
            world.run(op);
        }
        world.run(Op::Interfaces { both: true });
        for _ in 0..3 {
            world.pass(Duration::from_secs(35));
            world.wake(true);
        }
        world.pass(Duration::from_secs(35));
        prop_assert!(world.server.is_serving(), "the server is {}", world.server.state());
        prop_assert!(!world.client.is_moving(), "the client is {}", world.client.state());
        prop_assert_eq!(Some(world.client.remote()), world.at);
    }
}

#[test]
fn a_cancelled_move_leaves_no_trace() {
    let now = Instant::now();
    let inputs = |last| {
        [
            client::Input::Frame(migration(1, vec![b()])),
            client::Input::Frame(Frame::Parked { sequence: 1 }),
            client::Input::Answer {
                remote: b(),
                knock: false,
            },
            last,
        ]
    };
    let cancelled = client::Input::Frame(Frame::Cancelled { sequence: 1 });
    let mut client = client_after(now, &inputs(cancelled));
    assert_eq!((client.state(), client.remote()), ("Settled", a()));
    client.handle_timeout(now + Duration::from_secs(1000));
    assert_eq!(client.poll(), None);
    assert_eq!(client.next_timeout(), None);
}

#[test]
fn probes_are_capped() {
    let mut now = Instant::now();
    let parked = client::Input::Frame(Frame::Parked { sequence: 1 });
    let announced = client::Input::Frame(migration(1, vec![b(), "10.1.0.4:443".parse().unwrap()]));
    let mut client = client_after(now, &[announced, parked]);
    let mut datagrams = 0;
    while let Some(due) = client.next_timeout() {
        now = now.max(due);
        client.handle_timeout(now);
        while let Some(output) = client.poll() {
            if let client::Output::Probe(targets) = output {
                datagrams += targets.len() * locals().len();
            }
        }
    }
    assert!((1000..=4003).contains(&datagrams), "{datagrams}");
    assert_eq!(client.state(), "Settled", "the deadline ended it");
}

#[test]
fn the_longest_announcement_fits_a_frame() {
    let targets = vec!["[2001:db8::1]:443".parse().unwrap(); frame::MAX_ADDRESSES];
    let mut bytes = Vec::new();
    migration(u64::MAX >> 2, targets).encode(&mut bytes);
    assert!(bytes.len() < frame::MAX_BODY);
}
