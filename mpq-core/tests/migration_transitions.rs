//! The transition tables and state diagrams of both machines, made by driving them through every
//! state and input, and what each strategy makes of the same move.
//!
//! They are part of the crate's documentation. After a change of a machine, run this test
//! with `UPDATE_TRANSITIONS=1` and read the difference. One file, since the tables, the diagrams and the moves are made
//! by the same rig.

#[path = "support/diagram.rs"]
mod diagram;
#[path = "support/hint.rs"]
mod hint;

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use hint::{confirmed, hint};
use mpq_core::proto::client::{self, ClientMachine, Config, Event, Refusal};
use mpq_core::proto::server::{self, Announcement, ServerMachine};
use mpq_core::proto::{Frame, PathFigures, Strategy};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Addresses go by their letters in the tables: the client's are x, y and z, the server's A and B.
fn ip(name: char) -> IpAddr {
    [10, 0, 0, name as u8].into()
}

fn at(name: char) -> SocketAddr {
    (ip(name), 443).into()
}

fn letter(ip: IpAddr) -> char {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3].into(),
        IpAddr::V6(_) => '?',
    }
}

fn frame_name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello { .. } => "HELLO",
        Frame::Addresses { .. } => "ADDRESSES",
        Frame::Migration { .. } => "MIGRATION",
        Frame::Ready { .. } => "READY",
        Frame::Parked { .. } => "PARKED",
        Frame::Cancelled { .. } => "CANCELLED",
        Frame::Arrived { .. } => "ARRIVED",
    }
}

/// An input, the state after it, and the outputs.
type Row = (&'static str, String, String);

/// A table with the effect of each input; those without any are named below it.
fn table(state: &str, rows: &[Row]) -> String {
    let mut text = format!("\n## {state}\n\n| input | state | outputs |\n| --- | --- | --- |\n");
    let mut idle = Vec::new();
    for (input, after, outputs) in rows {
        if after == state && outputs.is_empty() {
            idle.push(*input);
            continue;
        }
        let after = if after == state { "same" } else { after };
        writeln!(text, "| {input} | {after} | {outputs} |").unwrap();
    }
    writeln!(text, "\nNo effect: {}.", idle.join(" · ")).unwrap();
    text
}

/// What leads from a state to which other, by the tables' rows.
fn drawn(states: &[(&str, Vec<Row>)]) -> String {
    let mut arrows: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for (state, rows) in states {
        for (input, after, _) in rows.iter().filter(|(_, after, _)| after != state) {
            match arrows
                .iter_mut()
                .find(|(from, to, _)| from == state && to == after)
            {
                Some((.., inputs)) => inputs.push(input),
                None => arrows.push((state, after, vec![input])),
            }
        }
    }
    diagram::draw(&arrows)
}

fn compare(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/proto")
        .join(file);
    if std::env::var_os("UPDATE_TRANSITIONS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let documented = std::fs::read_to_string(&path).unwrap();
    assert!(
        text == documented,
        "{file} is out of date; the machine does:\n{text}"
    );
}

/// An input to a client, or time that passes.
#[derive(Clone)]
enum Step {
    In(client::Input),
    After(Duration),
}
use Step::{After, In};

fn migration(sequence: u64, targets: Vec<SocketAddr>) -> Step {
    In(client::Input::Frame(Frame::Migration {
        sequence,
        targets,
        outage: SECOND,
        lead: SECOND,
    }))
}

fn addresses(pool: Vec<SocketAddr>) -> Step {
    let name = None;
    says(Frame::Addresses { pool, name })
}

fn says(frame: Frame) -> Step {
    In(client::Input::Frame(frame))
}

fn locals(names: &str) -> Step {
    In(client::Input::Locals(names.chars().map(ip).collect()))
}

fn answer(remote: char, knock: bool) -> Step {
    In(client::Input::Answer {
        local: ip('x'),
        remote: at(remote),
        hint: hint(knock),
    })
}

fn path_open(path: u32, local: char, remote: char) -> Step {
    In(client::Input::PathOpen {
        path,
        local: ip(local),
        remote: at(remote),
    })
}

/// A look at the first two paths, on each of which so many datagrams have come by now.
fn look(received: [u64; 2]) -> Step {
    let path = |(id, received)| PathFigures {
        id,
        rtt: 50 * MILLISECOND,
        sent: 0,
        received,
    };
    let figures = (0..).zip(received).map(path).collect();
    In(client::Input::Figures(figures))
}

/// Brings a client with paths x–A and y–A, which expects data, through `steps`.
fn drive_client(steps: &[Step]) -> (ClientMachine, Instant) {
    drive(Config::default(), steps)
}

fn drive(config: Config, steps: &[Step]) -> (ClientMachine, Instant) {
    let mut now = Instant::now();
    let mut client = ClientMachine::new(now, config, ip('x'), at('A'));
    let start = [
        In(confirmed()),
        locals("xy"),
        path_open(1, 'y', 'A'),
        look([1, 1]),
        In(client::Input::Expecting(true)),
    ];
    for step in start.iter().chain(steps) {
        client_step(&mut client, &mut now, step);
    }
    while client.poll().is_some() {}
    (client, now)
}

fn client_step(client: &mut ClientMachine, now: &mut Instant, step: &Step) {
    match step {
        In(input) => client.handle(*now, input.clone()),
        After(time) => {
            *now += *time;
            client.handle_timeout(*now);
        }
    }
}

fn client_outputs(client: &mut ClientMachine) -> String {
    let outputs = std::iter::from_fn(|| client.poll()).map(|output| match output {
        client::Output::Send(frame) => format!("send {}", frame_name(&frame)),
        client::Output::LookAtHandshake => "look at the handshake".into(),
        client::Output::Probe(targets) => {
            let targets: String = targets.iter().map(|t| letter(t.ip())).collect();
            format!("probe {targets}")
        }
        client::Output::ProbeFrom { local, target } => {
            format!("probe {} from {}", letter(target.ip()), letter(local))
        }
        client::Output::Redirect(Some(to)) => format!("redirect to {}", letter(to.ip())),
        client::Output::Redirect(None) => "redirect to nobody".into(),
        client::Output::Echo { local, remote, .. } => {
            format!("echo {}–{}", letter(local), letter(remote.ip()))
        }
        client::Output::Open { local, remote } => {
            format!("open {}–{}", letter(local), letter(remote.ip()))
        }
        client::Output::Abandon(remote) => format!("abandon openings to {}", letter(remote.ip())),
        client::Output::AbandonFrom(local) => format!("abandon openings from {}", letter(local)),
        client::Output::Ping { path } => format!("ping path {path}"),
        client::Output::Evacuate { path, over } => format!("evacuate path {path} over {over}"),
        client::Output::Close { path } => format!("close path {path}"),
        client::Output::Event(event) => {
            let name = match event {
                Event::Addresses { .. } => "Addresses",
                Event::Announced { .. } => "Announced",
                Event::Refused { .. } => "Refused",
                Event::Parked { .. } => "Parked",
                Event::Silent => "Silent",
                Event::Detected { .. } => "Detected",
                Event::Moved { .. } => "Moved",
                Event::Settled { .. } => "Settled",
                Event::Dead { .. } => "Dead",
                Event::Cancelled { .. } => "Cancelled",
                Event::Failed => "Failed",
                Event::Idle => "Idle",
            };
            format!("*{name}*")
        }
    });
    outputs.collect::<Vec<_>>().join(", ")
}

#[test]
fn the_clients_table() {
    use client::Input;
    let announced = migration(7, vec![at('B')]);
    let parked = says(Frame::Parked { sequence: 7 });
    let states = [
        ("Settled", vec![]),
        ("Announced", vec![announced.clone()]),
        (
            "Searching (silent)",
            vec![announced.clone(), After(400 * MILLISECOND)],
        ),
        (
            "Searching (parked)",
            vec![announced.clone(), parked.clone()],
        ),
        (
            "Searching (unannounced)",
            vec![addresses(vec![at('B')]), After(SECOND)],
        ),
        (
            "Arriving",
            vec![announced.clone(), parked.clone(), answer('B', false)],
        ),
    ];
    let refused = |remote, refusal| {
        In(Input::PathRefused {
            local: ip('x'),
            remote: at(remote),
            refusal,
        })
    };
    let inputs = [
        ("MIGRATION to B, newer", migration(8, vec![at('B')])),
        ("MIGRATION to B, not newer", migration(0, vec![at('B')])),
        (
            "MIGRATION to where it may not send us",
            migration(8, vec!["127.0.0.1:443".parse().unwrap()]),
        ),
        ("ADDRESSES, B", addresses(vec![at('B')])),
        ("PARKED", parked),
        (
            "PARKED, of another move",
            says(Frame::Parked { sequence: 6 }),
        ),
        ("CANCELLED", says(Frame::Cancelled { sequence: 7 })),
        (
            "CANCELLED, of another move",
            says(Frame::Cancelled { sequence: 6 }),
        ),
        ("ARRIVED", says(Frame::Arrived { sequence: 7 })),
        ("local z comes", locals("xyz")),
        ("local y goes", locals("x")),
        ("all locals go", locals("")),
        ("something came on both paths", look([2, 2])),
        ("something came on path 1", look([1, 2])),
        ("B answers a probe", answer('B', false)),
        ("B knocks", answer('B', true)),
        (
            "C answers a probe, which was not announced",
            answer('C', false),
        ),
        ("C knocks, which was not announced", answer('C', true)),
        ("path x–B is validated", path_open(2, 'x', 'B')),
        ("path y–A is gone", In(Input::PathGone { path: 1 })),
        ("there is no path id for x–B", refused('B', Refusal::NoId)),
        ("x–B is not validated", refused('B', Refusal::NoAnswer)),
        ("1 s passes", After(SECOND)),
        ("3 s pass", After(3 * SECOND)),
        ("300 s pass", After(300 * SECOND)),
    ];
    let rows_of = |state, way: &[Step]| {
        let rows = inputs.clone().map(|(name, step)| {
            let (mut client, mut now) = drive_client(way);
            assert_eq!(client.state(), state);
            client_step(&mut client, &mut now, &step);
            let outputs = client_outputs(&mut client);
            (name, client.state().to_owned(), outputs)
        });
        (state, rows.to_vec())
    };
    let states: Vec<_> = states
        .iter()
        .map(|(state, way)| rows_of(*state, way))
        .collect();
    let tables = states.iter().map(|(state, rows)| table(state, rows));
    compare("client_states.svg", &drawn(&states));
    compare("client_transitions.md", &tables.collect::<String>());
}

/// Validates every path that the client has asked for to B.
fn validate(client: &mut ClientMachine, now: Instant, opened: &str) {
    for (index, way) in opened.split("open ").skip(1).enumerate() {
        let mut ends = way.chars();
        if let (Some(local), Some('–'), Some('B')) = (ends.next(), ends.next(), ends.next()) {
            let input = client::Input::PathOpen {
                path: 2 + index as u32,
                local: ip(local),
                remote: at('B'),
            };
            client.handle(now, input);
        }
    }
}

#[test]
fn the_same_move_by_each_strategy() {
    let steps = [
        ("ADDRESSES: B", Some(addresses(vec![at('B')]))),
        ("MIGRATION to B", Some(migration(7, vec![at('B')]))),
        ("50 ms pass", Some(After(50 * MILLISECOND))),
        ("PARKED", Some(says(Frame::Parked { sequence: 7 }))),
        ("1 s passes", Some(After(SECOND))),
        ("B knocks", Some(answer('B', true))),
        ("B answers a probe", Some(answer('B', false))),
        ("paths to B are validated", None),
        ("50 ms pass", Some(After(50 * MILLISECOND))),
        ("something comes", Some(look([2, 2]))),
    ];
    let mut text = String::new();
    let with = |strategy: Strategy| Config {
        strategy,
        ..Config::default()
    };
    let usual = Strategy::ALL.map(|strategy| (with(strategy), strategy.to_string()));
    let redirecting = Strategy::ALL.into_iter().filter(|s| s.redirects());
    let unvalidated = redirecting.map(|strategy| {
        let mut config = with(strategy);
        config.allow_unvalidated = true;
        (config, format!("{strategy}, unvalidated"))
    });
    let helped = Strategy::ALL.into_iter().filter(|s| s.heeds_parked());
    let bare = helped.map(|strategy| {
        let mut config = with(strategy);
        config.bare = true;
        (config, format!("{strategy}, bare"))
    });
    for (config, name) in usual.into_iter().chain(unvalidated).chain(bare) {
        let strategy = config.strategy;
        let (mut client, mut now) = drive(config, &[]);
        writeln!(
            text,
            "\n## {name}\n\n| input | state | outputs |\n| --- | --- | --- |"
        )
        .unwrap();
        let mut opened = String::new();
        for (input, step) in &steps {
            match step {
                Some(step) => client_step(&mut client, &mut now, step),
                None => validate(&mut client, now, &opened),
            }
            let outputs = client_outputs(&mut client);
            if outputs.contains("redirect") {
                client_step(&mut client, &mut now, &look([1, 1]));
            }
            writeln!(text, "| {input} | {} | {outputs} |", client.state()).unwrap();
            opened += &outputs;
        }
        let follows = strategy != Strategy::Restart;
        let expected = if follows { at('B') } else { at('A') };
        assert_eq!(client.remote(), expected, "{name}");
    }
    compare("strategies.md", &text);
}

fn announcement() -> server::Input {
    server::Input::Announce(Announcement {
        targets: vec![at('B')],
        lead: SECOND,
        outage: SECOND,
        forwarded: false,
    })
}

fn thawed(place: char) -> server::Input {
    server::Input::Thawed {
        listen: at(place),
        before: at('A'),
    }
}

enum ServerStep {
    In(server::Input),
    After(Duration),
}

fn server_step(server: &mut ServerMachine, now: &mut Instant, step: &ServerStep) {
    match step {
        ServerStep::In(input) => server.handle(*now, input.clone()),
        ServerStep::After(time) => {
            *now += *time;
            server.handle_timeout(*now);
        }
    }
}

fn server_outputs(server: &mut ServerMachine) -> String {
    use server::Output;
    let outputs = std::iter::from_fn(|| server.poll()).map(|output| match output {
        Output::Send(client, frame) => format!("send {} to {client}", frame_name(&frame)),
        Output::Keep(client) => format!("keep {client}"),
        Output::Dismiss(client) => format!("dismiss {client}"),
        Output::CloseGates => "close gates".into(),
        Output::CloseGate(client) => format!("close gate of {client}"),
        Output::OpenGate(client) => format!("open gate of {client}"),
        Output::Drain => "drain".into(),
        Output::Hold => "send nothing new".into(),
        Output::CloseSockets => "close sockets".into(),
        Output::Dump => "dump".into(),
        Output::Wake => "wake elsewhere".into(),
        Output::Reopen(Some(listen)) => format!("reopen at {}", letter(listen.ip())),
        Output::Reopen(None) => "reopen where it was".into(),
        Output::Knock(clients) => format!("knock at {clients:?}"),
        Output::Done { moved: true } => "done: moved".into(),
        Output::Done { moved: false } => "done: stayed".into(),
    });
    outputs.collect::<Vec<_>>().join(", ")
}

#[test]
fn the_servers_table() {
    use ServerStep::{After, In};
    use server::Input;
    let way = || {
        [
            In(announcement()),
            After(SECOND),
            In(Input::Quiet),
            In(Input::Closed),
            In(thawed('B')),
            In(Input::Reopened),
        ]
    };
    let states = [
        ("Serving", 0, None),
        ("Announced", 1, None),
        ("Parking", 2, None),
        ("Parked", 4, None),
        ("Resuming (new address)", 5, None),
        ("Resuming (old address)", 4, Some(Input::Failed)),
        ("Arriving", 6, None),
    ];
    let inputs = || {
        [
            ("HELLO from 3, a stranger", In(Input::Hello(3))),
            ("HELLO from 1, again", In(Input::Hello(1))),
            ("4 connects", In(Input::Connected(4))),
            ("1 is gone", In(Input::Gone(1))),
            ("READY from 1", In(Input::Ready(1))),
            ("announce", In(announcement())),
            ("quiet", In(Input::Quiet)),
            ("closed", In(Input::Closed)),
            ("failed", In(Input::Failed)),
            ("abandoned", In(Input::Abandoned)),
            ("thawed at B", In(thawed('B'))),
            ("thawed where it was", In(thawed('A'))),
            ("reopened", In(Input::Reopened)),
            ("not reopened", In(Input::NotReopened)),
            ("1 has a path to here", In(Input::Established(1))),
            ("1 is heard where it was", In(Input::Stayed(1))),
            ("1 s passes", After(SECOND)),
            ("30 s pass", After(30 * SECOND)),
        ]
    };
    let rows_of = |(state, steps, last): (_, usize, Option<Input>)| {
        let rows = inputs().map(|(name, step)| {
            let (mut server, mut now) = (ServerMachine::default(), Instant::now());
            server.handle(now, Input::Hello(1));
            server.handle(now, Input::Hello(2));
            server.handle(now, Input::Connected(3));
            for step in &way()[..steps] {
                server_step(&mut server, &mut now, step);
            }
            if let Some(last) = last.clone() {
                server.handle(now, last);
            }
            while server.poll().is_some() {}
            assert_eq!(server.state(), state);
            server_step(&mut server, &mut now, &step);
            let outputs = server_outputs(&mut server);
            (name, server.state().to_owned(), outputs)
        });
        (state, rows.to_vec())
    };
    let states: Vec<_> = states.into_iter().map(rows_of).collect();
    let tables = states.iter().map(|(state, rows)| table(state, rows));
    compare("server_states.svg", &drawn(&states));
    compare("server_transitions.md", &tables.collect::<String>());
}

#[test]
fn a_path_that_goes_is_opened_again_but_not_at_once() {
    let gone = client::Input::PathGone { path: 1 };
    let (mut client, mut now) = drive_client(&[In(gone)]);
    client_step(&mut client, &mut now, &After(999 * MILLISECOND));
    assert_eq!(client_outputs(&mut client), "");
    client_step(&mut client, &mut now, &After(MILLISECOND));
    let asks = "probe A from y, probe A from x";
    assert_eq!(client_outputs(&mut client), asks);
    let (local, remote, hint) = (ip('y'), at('A'), hint(false));
    let answer = client::Input::Answer {
        local,
        remote,
        hint,
    };
    client_step(&mut client, &mut now, &In(answer));
    assert_eq!(client_outputs(&mut client), "open y–A");
}

#[test]
fn a_server_that_speaks_where_it_was_has_not_moved() {
    // PARKED never came, and somebody answers at B who is not the server.
    let way = [migration(7, vec![at('B')]), answer('B', true)];
    let (mut client, mut now) = drive_client(&way);
    for received in 2..3_002 {
        client_step(&mut client, &mut now, &look([received; 2]));
        client_step(&mut client, &mut now, &After(100 * MILLISECOND));
        client_step(&mut client, &mut now, &answer('B', false));
    }
    assert_eq!(client.state(), "Settled");
    let outputs = client_outputs(&mut client);
    assert!(outputs.ends_with("*Cancelled*"), "{outputs}");
    // Beside the knock, before the outputs were read.
    assert_eq!(outputs.matches("*Detected*").count(), 3, "{outputs}");
}

/// Answers each timeout of the client until it has none, or `end`; returns the probes it sent.
fn run_alone(client: &mut ClientMachine, mut now: Instant, end: Instant) -> usize {
    let mut probes = 0;
    while let Some(due) = client.next_timeout().filter(|due| *due < end) {
        now = now.max(due);
        client.handle_timeout(now);
        while let Some(output) = client.poll() {
            if let client::Output::Probe(targets) = output {
                probes += 2 * targets.len();
            }
        }
    }
    probes
}

#[test]
fn probes_are_capped_and_some_are_kept_for_the_search() {
    let targets: Vec<_> = "BCDEFGHI".chars().map(at).collect();
    let hours = 24 * 3_600 * SECOND;
    let quiet = In(client::Input::Expecting(false));
    let (mut client, now) = drive_client(&[quiet, migration(7, targets)]);
    let early = run_alone(&mut client, now, now + hours);
    assert!(early <= 8 * 384, "the server parks late: {early}");
    let mut now = now + hours;
    client_step(&mut client, &mut now, &says(Frame::Parked { sequence: 7 }));
    // In the first second: every 40 ms at first, of which eight addresses leave nobody more.
    let first = run_alone(&mut client, now, now + SECOND);
    assert!(first >= 8 * 2 * 15, "{first}");
    let all = first + run_alone(&mut client, now + SECOND, now + hours);
    assert!(all <= 1_024 + 300 * 8, "{all}");
    assert_eq!(client.state(), "Settled", "the deadline ended it");
}

#[test]
fn a_cancelled_move_leaves_nothing_to_do() {
    let parked = says(Frame::Parked { sequence: 7 });
    let cancelled = says(Frame::Cancelled { sequence: 7 });
    let way = [
        migration(7, vec![at('B')]),
        parked,
        answer('B', false),
        cancelled,
    ];
    let (mut client, mut now) = drive_client(&way);
    assert_eq!((client.state(), client.remote()), ("Settled", at('A')));
    assert_eq!(client.next_timeout(), None);
    client_step(&mut client, &mut now, &After(1_000 * SECOND));
    assert_eq!(client_outputs(&mut client), "");
}
