//! What the client's machine makes of its paths' counters and ends, in virtual time: which it gives up,
//! when it opens one again, and when it gives up the connection.

#[path = "support/hint.rs"]
mod hint;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hint::{confirmed, hint};
use mpq_core::proto::client::{ClientMachine, Config, Event, Handshake, Input, Output, Refusal};
use mpq_core::proto::{Frame, PathFigures, Strategy};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

fn server(host: u8) -> SocketAddr {
    ([10, 1, 0, host], 443).into()
}

fn local(host: u8) -> IpAddr {
    [10, 0, host, 1].into()
}

/// A client of server 1 in a download, with paths 0 and 1 from locals 0 and 1.
struct Rig {
    now: Instant,
    client: ClientMachine,
    figures: Vec<PathFigures>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Config::default())
    }

    /// One whose probes have been answered.
    fn with(config: Config) -> Self {
        let mut rig = Self::untested(config);
        rig.answer(0, 1);
        rig
    }

    fn untested(config: Config) -> Self {
        let mut rig = Self::early(config);
        rig.input(confirmed());
        rig
    }

    /// One whose handshake is not confirmed yet.
    fn early(config: Config) -> Self {
        let now = Instant::now();
        let figures = |id| PathFigures {
            id,
            rtt: 40 * MILLISECOND,
            sent: 0,
            received: 1,
        };
        let mut rig = Self {
            now,
            client: ClientMachine::new(now, config, local(0), server(1)),
            figures: vec![figures(0), figures(1)],
        };
        rig.input(Input::Figures(rig.figures.clone()));
        rig.input(Input::Locals(vec![local(0), local(1)]));
        rig.open(1, 1, 1);
        rig.input(Input::Expecting(true));
        rig
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.client.poll()).collect()
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.client.handle(self.now, input);
        self.outputs()
    }

    fn open(&mut self, path: u32, from: u8, to: u8) -> Vec<Output> {
        let (local, remote) = (local(from), server(to));
        self.input(Input::PathOpen {
            path,
            local,
            remote,
        })
    }

    fn gone(&mut self, path: u32) -> Vec<Output> {
        self.figures.retain(|figures| figures.id != path);
        self.input(Input::PathGone { path })
    }

    fn refused(&mut self, from: u8, to: u8, refusal: Refusal) -> Vec<Output> {
        self.input(Input::PathRefused {
            local: local(from),
            remote: server(to),
            refusal,
        })
    }

    fn locals(&mut self, hosts: impl IntoIterator<Item = u8>) -> Vec<Output> {
        self.input(Input::Locals(hosts.into_iter().map(local).collect()))
    }

    /// Has the server announce a move to server 2, and park.
    fn park(&mut self) {
        self.input(Input::Frame(Frame::Migration {
            sequence: 1,
            targets: vec![server(2)],
            outage: SECOND,
            lead: SECOND,
        }));
        self.input(Input::Frame(Frame::Parked { sequence: 1 }));
    }

    fn answer(&mut self, from: u8, remote: u8) -> Vec<Output> {
        self.input(Input::Answer {
            local: local(from),
            remote: server(remote),
            hint: hint(false),
        })
    }

    /// Looks for so long, while so much comes on each path between two looks.
    fn run(&mut self, time: Duration, received: &[u64]) -> Vec<Output> {
        let end = self.now + time;
        let mut outputs = Vec::new();
        while self.now < end {
            self.now += LOOK;
            for (figures, received) in self.figures.iter_mut().zip(received) {
                figures.received += received;
            }
            if self.client.next_timeout().is_some_and(|at| at <= self.now) {
                self.client.handle_timeout(self.now);
            }
            let figures = self.figures.clone();
            outputs.extend(self.input(Input::Figures(figures)));
        }
        outputs
    }
}

fn open(from: u8, to: u8) -> Output {
    Output::Open {
        local: local(from),
        remote: server(to),
    }
}

fn probe(from: u8, to: u8) -> Output {
    Output::ProbeFrom {
        local: local(from),
        target: server(to),
    }
}

#[test]
fn a_path_whose_link_dies_is_evacuated_closed_and_asked_for_before_it_is_opened_again() {
    let mut rig = Rig::new();
    rig.run(SECOND, &[20, 20]);
    let outputs = rig.run(SECOND, &[0, 20]);
    let evacuate = Output::Evacuate { path: 0, over: 1 };
    let place = |output: &Output| outputs.iter().position(|o| o == output);
    let evacuated = place(&evacuate).expect("evacuated");
    let closed = place(&Output::Close { path: 0 }).expect("closed");
    assert!(evacuated < closed, "{outputs:?}");
    assert!(outputs.contains(&Output::Event(Event::Dead { path: 0.into() })));
    rig.gone(0);
    let outputs = rig.run(3 * SECOND, &[20]);
    assert!(outputs.contains(&probe(0, 1)) && !outputs.contains(&open(0, 1)));
    assert!(rig.answer(0, 1).contains(&open(0, 1)));
}

#[test]
fn no_path_is_closed_for_its_silence_while_all_others_are_closed_already() {
    let mut rig = Rig::new();
    rig.input(Input::Expecting(false));
    // The interface of path 0 is gone; it is to be closed, and still something comes on it.
    let outputs = rig.input(Input::Locals(vec![local(1)]));
    assert!(outputs.contains(&Output::Close { path: 0 }), "{outputs:?}");
    rig.figures[1].sent += 1200;
    let outputs = rig.run(10 * SECOND, &[20, 0]);
    assert!(!outputs.contains(&Output::Close { path: 1 }), "{outputs:?}");
}

#[test]
fn in_a_move_no_path_is_given_up() {
    let mut rig = Rig::new();
    rig.run(SECOND, &[20, 20]);
    rig.input(Input::Frame(Frame::Migration {
        sequence: 1,
        targets: vec![server(2)],
        outage: SECOND,
        lead: 60 * SECOND,
    }));
    let outputs = rig.run(10 * SECOND, &[0, 20]);
    let gives_up = |o: &Output| matches!(o, Output::Close { .. } | Output::Evacuate { .. });
    assert!(!outputs.iter().any(gives_up), "{outputs:?}");
}

#[test]
fn a_path_is_opened_where_a_probe_was_answered_and_again_after_another_answer() {
    let mut rig = Rig::new();
    let outputs = rig.locals([0, 1, 2]);
    assert!(outputs.contains(&probe(2, 1)), "{outputs:?}");
    let outputs = rig.run(10 * SECOND, &[20, 20]);
    assert!(!outputs.contains(&open(2, 1)), "{outputs:?}");
    assert!(rig.answer(2, 1).contains(&open(2, 1)));
    // There was no id: nothing is wrong with the way.
    rig.refused(2, 1, Refusal::NoId);
    assert!(rig.run(SECOND, &[20, 20]).contains(&open(2, 1)));
    rig.refused(2, 1, Refusal::NoAnswer);
    let outputs = rig.run(2 * SECOND, &[20, 20]);
    assert!(outputs.contains(&probe(2, 1)) && !outputs.contains(&open(2, 1)));
    assert!(rig.answer(2, 1).contains(&open(2, 1)));
    rig.open(2, 2, 1);
    rig.gone(2);
    let outputs = rig.run(2 * SECOND, &[20, 20]);
    assert!(outputs.contains(&probe(2, 1)) && !outputs.contains(&open(2, 1)));
}

#[test]
fn what_was_too_early_is_opened_as_soon_as_paths_are_allowed() {
    let mut rig = Rig::early(Config::default());
    let outputs = rig.locals([0, 1, 2]);
    assert!(outputs.contains(&probe(2, 1)), "probes may go: {outputs:?}");
    assert_eq!(opened(&rig.answer(2, 1)), 0);
    let outputs = rig.run(SECOND, &[20, 20]);
    assert_eq!(opened(&outputs), 0, "{outputs:?}");
    assert!(rig.input(confirmed()).contains(&open(2, 1)));
    // It is under way; nothing is opened twice.
    assert_eq!(opened(&rig.input(confirmed())), 0);
}

#[test]
fn paths_that_are_allowed_wait_for_an_answer_as_well() {
    let mut rig = Rig::early(Config::default());
    rig.locals([0, 1, 2]);
    assert_eq!(opened(&rig.answer(2, 1)), 0);
    // The answer is old by then, and another one is asked for.
    rig.run(5 * SECOND, &[20, 20]);
    let outputs = rig.input(confirmed());
    assert!(outputs.contains(&probe(2, 1)) && opened(&outputs) == 0);
    assert!(rig.answer(2, 1).contains(&open(2, 1)));
}

#[test]
fn the_handshake_is_looked_at_until_paths_are_allowed() {
    let mut rig = Rig::early(Config::default());
    let looks = |outputs: &[Output]| {
        let looks = outputs.iter().filter(|o| **o == Output::LookAtHandshake);
        looks.count()
    };
    rig.client.handle_timeout(rig.now);
    assert_eq!(looks(&rig.outputs()), 1);
    assert_eq!(looks(&rig.run(SECOND, &[20, 20])), 0, "it is not answered");
    let unconfirmed = Handshake {
        confirmed: false,
        issued: true,
        granted: true,
    };
    rig.input(Input::Handshake(unconfirmed));
    assert_eq!(looks(&rig.run(SECOND, &[20, 20])), 1);
    rig.input(confirmed());
    assert_eq!(looks(&rig.run(SECOND, &[20, 20])), 0);
}

#[test]
fn nobody_waits_for_an_answer_when_no_path_is_left() {
    let mut rig = Rig::new();
    rig.gone(1);
    assert!(!rig.run(2 * SECOND, &[20]).contains(&open(1, 1)));
    let mut outputs = rig.gone(0);
    outputs.extend(rig.run(LOOK, &[]));
    assert!(outputs.contains(&open(0, 1)) && outputs.contains(&open(1, 1)));
}

#[test]
fn where_the_server_answers_no_probe_paths_are_opened_untried() {
    let mut rig = Rig::untested(Config::default());
    rig.locals([0, 1, 2]);
    // It is asked from where a path works as well, and that goes on.
    let outputs = rig.run(500 * MILLISECOND, &[20, 20]);
    assert!(outputs.contains(&probe(0, 1)) && !outputs.contains(&open(2, 1)));
    let outputs = rig.run(500 * MILLISECOND, &[20, 20]);
    assert!(outputs.contains(&open(2, 1)));
    // All may have been lost: with the path goes a probe, whose answer opens it no second time.
    let opened_at = outputs.iter().position(|o| *o == open(2, 1)).unwrap();
    assert!(outputs[opened_at..].contains(&probe(2, 1)), "{outputs:?}");
    assert_eq!(opened(&rig.answer(2, 1)), 0);
    rig.open(2, 2, 1);
    let outputs = rig.locals([0, 1, 2, 3]);
    assert!(outputs.contains(&probe(3, 1)) && !outputs.contains(&open(3, 1)));

    // While it is silent, nothing is known of it.
    let mut rig = Rig::untested(Config::default());
    rig.locals([0, 1, 2]);
    let outputs = rig.run(10 * SECOND, &[0, 0]);
    assert!(!outputs.contains(&open(2, 1)), "{outputs:?}");
}

#[test]
fn without_probes_paths_are_opened_at_once() {
    for (strategy, bare) in [(Strategy::Paper, false), (Strategy::Multipath, true)] {
        let mut rig = Rig::with(Config {
            strategy,
            bare,
            ..Config::default()
        });
        let outputs = rig.locals([0, 1, 2]);
        assert!(outputs.contains(&open(2, 1)), "{outputs:?}");
    }
}

/// How many of them take a path id.
fn opened(outputs: &[Output]) -> u32 {
    let opens = |output: &&Output| matches!(output, Output::Open { .. });
    outputs.iter().filter(opens).count() as u32
}

#[test]
fn dead_interfaces_use_up_no_path_ids() {
    let mut rig = Rig::new();
    let mut outputs = rig.locals(0..18);
    outputs.extend(rig.run(60 * SECOND, &[20, 20]));
    assert_eq!(opened(&outputs), 0, "{outputs:?}");
    rig.park();
    assert!(rig.answer(0, 2).contains(&open(0, 2)));
    assert!(rig.answer(1, 2).contains(&open(1, 2)));
}

#[test]
fn an_interface_that_comes_and_goes_leaves_the_path_ids_for_a_move() {
    let mut rig = Rig::new();
    let mut outputs = Vec::new();
    for _ in 0..32 {
        outputs.extend(rig.locals([0, 1, 2]));
        // It works just long enough to be answered.
        outputs.extend(rig.answer(2, 1));
        outputs.extend(rig.locals([0, 1]));
        outputs.extend(rig.run(SECOND, &[20, 20]));
    }
    rig.park();
    outputs.extend(rig.answer(0, 2));
    outputs.extend(rig.answer(1, 2));
    assert!(outputs.contains(&open(0, 2)) && outputs.contains(&open(1, 2)));
    let ids = Config::default().path_ids;
    // Two were there at first.
    assert!(2 + opened(&outputs) <= ids, "{outputs:?}");
    assert!(opened(&outputs) > 8, "it is tried for as long as it can be");
}

#[test]
fn as_many_paths_are_opened_as_can_move() {
    let mut rig = Rig::new();
    rig.locals(0..18);
    let opened: u32 = (2..18).map(|host| opened(&rig.answer(host, 1))).sum();
    assert_eq!(2 + opened, Config::default().path_ids / 2);
}

#[test]
fn an_opening_that_waits_for_an_answer_survives_an_attempt_elsewhere() {
    let mut rig = Rig::new();
    rig.gone(1);
    rig.run(2 * SECOND, &[20]);
    rig.park();
    // Somebody answers there who is not the server, which wakes where it was.
    let outputs = rig.answer(0, 2);
    assert!(outputs.contains(&open(0, 2)), "{outputs:?}");
    rig.input(Input::Frame(Frame::Cancelled { sequence: 1 }));
    let outputs = rig.run(2 * SECOND, &[20]);
    assert!(outputs.contains(&probe(1, 1)), "{outputs:?}");
    assert!(rig.answer(1, 1).contains(&open(1, 1)));
}

#[test]
fn a_knock_tells_that_the_way_is_open_as_the_answer_of_a_probe_does() {
    let mut rig = Rig::new();
    rig.park();
    let knock = Input::Answer {
        local: local(0),
        remote: server(2),
        hint: hint(true),
    };
    let outputs = rig.input(knock);
    assert!(outputs.contains(&open(0, 2)) && !outputs.contains(&open(1, 2)));
    assert!(outputs.contains(&probe(1, 2)), "{outputs:?}");
    assert!(rig.answer(1, 2).contains(&open(1, 2)));
}

#[test]
fn redirected_probes_go_to_where_the_server_is() {
    let mut rig = Rig::with(Config {
        strategy: Strategy::Reactive,
        capabilities: Frame::REDIRECT,
        ..Config::default()
    });
    rig.run(LOOK, &[1, 1]);
    // That the server parks is nothing to it: it notices the silence.
    rig.park();
    rig.run(SECOND, &[]);
    rig.answer(0, 2);
    rig.run(SECOND, &[1, 1]);
    assert_eq!(rig.client.remote(), server(2));
    rig.gone(1);
    let outputs = rig.run(2 * SECOND, &[20]);
    assert!(outputs.contains(&probe(1, 2)), "{outputs:?}");
    // For QUIC the server is still where it was at first.
    assert!(rig.answer(1, 2).contains(&open(1, 1)));
}

#[test]
fn a_server_that_is_silent_in_a_download_is_given_up_and_in_a_move_it_is_not() {
    let idle_timeout = 5 * SECOND;
    let config = Config {
        idle_timeout,
        ..Config::default()
    };
    let idle = Output::Event(Event::Idle);
    let mut rig = Rig::with(config.clone());
    assert!(!rig.run(idle_timeout - LOOK, &[0, 0]).contains(&idle));
    let outputs = rig.run(2 * LOOK, &[0, 0]);
    assert_eq!(outputs.iter().filter(|o| **o == idle).count(), 1);

    let mut rig = Rig::with(config.clone());
    rig.input(Input::Expecting(false));
    assert!(!rig.run(3 * idle_timeout, &[0, 0]).contains(&idle));

    let mut rig = Rig::with(config);
    rig.input(Input::Frame(Frame::Migration {
        sequence: 1,
        targets: vec![server(2)],
        outage: SECOND,
        lead: SECOND,
    }));
    assert!(!rig.run(3 * idle_timeout, &[0, 0]).contains(&idle));
}

#[test]
fn a_move_is_settled_once_all_paths_are_there() {
    let mut rig = Rig::new();
    rig.input(Input::Frame(Frame::Migration {
        sequence: 1,
        targets: vec![server(2)],
        outage: SECOND,
        lead: SECOND,
    }));
    rig.input(Input::Frame(Frame::Parked { sequence: 1 }));
    rig.answer(0, 2);
    let settled = Output::Event(Event::Settled { remote: server(2) });
    assert!(!rig.open(2, 0, 2).contains(&settled), "path 3 is missing");
    assert!(
        !rig.open(3, 1, 2).contains(&settled),
        "path 0 is still there"
    );
    assert!(!rig.gone(0).contains(&settled));
    assert!(rig.gone(1).contains(&settled));
}

#[test]
fn after_a_change_of_interfaces_the_server_is_shown_where_the_client_is() {
    let mut rig = Rig::new();
    let outputs = rig.input(Input::Locals(vec![local(0), local(2)]));
    assert!(outputs.contains(&Output::AbandonFrom(local(1))));
    assert!(outputs.contains(&Output::Ping { path: 0 }) && outputs.contains(&probe(2, 1)));
    // Without any, all stays as it is.
    assert_eq!(rig.input(Input::Locals(vec![])), []);
}

#[test]
fn a_path_that_was_evacuated_before_an_announcement_is_closed_after_it() {
    let mut rig = Rig::new();
    rig.run(SECOND, &[20, 20]);
    let evacuate = Output::Evacuate { path: 0, over: 1 };
    for _ in 0..50 {
        if rig.run(LOOK, &[0, 20]).contains(&evacuate) {
            break;
        }
    }
    rig.input(Input::Frame(Frame::Migration {
        sequence: 1,
        targets: vec![server(2)],
        outage: SECOND,
        lead: SECOND,
    }));
    let close = Output::Close { path: 0 };
    assert!(
        !rig.run(SECOND, &[20, 20]).contains(&close),
        "not in a move"
    );
    rig.input(Input::Frame(Frame::Cancelled { sequence: 1 }));
    assert!(rig.run(SECOND, &[20, 20]).contains(&close), "not for ever");
}

#[test]
fn a_path_that_is_being_closed_is_none_that_the_move_has_settled_with() {
    let mut rig = Rig::new();
    rig.park();
    rig.answer(0, 2);
    rig.open(2, 0, 2);
    rig.gone(0);
    rig.gone(1);
    // There is one from each address, as many as there are addresses; but one of these is another one now.
    let outputs = rig.open(3, 1, 2);
    let settled = Output::Event(Event::Settled { remote: server(2) });
    assert!(outputs.contains(&settled), "{outputs:?}");
    let mut rig = Rig::new();
    rig.park();
    rig.answer(0, 2);
    rig.open(2, 0, 2);
    rig.gone(0);
    rig.gone(1);
    rig.locals([0, 2]);
    let outputs = rig.open(3, 1, 2);
    assert!(!outputs.contains(&settled), "{outputs:?}");
    rig.gone(3);
    assert!(rig.open(4, 2, 2).contains(&settled));
}

#[test]
fn who_has_no_way_to_the_server_left_uses_the_ids_that_are_kept_for_a_move() {
    let mut rig = Rig::new();
    for _ in 0..32 {
        rig.locals([0, 1, 2]);
        rig.answer(2, 1);
        rig.locals([0, 1]);
        rig.run(SECOND, &[20, 20]);
    }
    // Both are gone, and none of the server's paths leads here.
    rig.locals([3]);
    assert!(rig.answer(3, 1).contains(&open(3, 1)));
}

#[test]
fn a_knock_from_where_the_server_is_opens_the_way_if_knocks_are_heeded() {
    for (strategy, from, opens) in [
        (Strategy::Multipath, 1, true),
        (Strategy::Multipath, 3, false),
        (Strategy::Reactive, 1, false),
    ] {
        let mut rig = Rig::with(Config {
            strategy,
            ..Config::default()
        });
        rig.run(LOOK, &[1, 1]);
        assert!(!rig.locals([0, 1, 2]).contains(&open(2, 1)));
        let outputs = rig.input(Input::Answer {
            local: local(2),
            remote: server(from),
            hint: hint(true),
        });
        let found = outputs.contains(&open(2, 1));
        assert_eq!(found, opens, "{strategy}, from {from}: {outputs:?}");
    }
}

#[test]
fn a_knock_from_another_target_counts_more_than_an_answer() {
    let mut rig = Rig::new();
    rig.input(Input::Frame(Frame::Migration {
        sequence: 1,
        targets: vec![server(2), server(3)],
        outage: SECOND,
        lead: SECOND,
    }));
    rig.input(Input::Frame(Frame::Parked { sequence: 1 }));
    assert!(rig.answer(0, 2).contains(&open(0, 2)));
    let outputs = rig.input(Input::Answer {
        local: local(0),
        remote: server(3),
        hint: hint(true),
    });
    assert!(outputs.contains(&Output::Abandon(server(2))), "{outputs:?}");
    assert!(outputs.contains(&open(0, 3)), "{outputs:?}");
}

#[test]
fn only_new_paths_are_for_other_links_and_only_in_a_download() {
    for (strategy, downloads) in [(Strategy::Reactive, true), (Strategy::Multipath, false)] {
        let mut rig = Rig::with(Config {
            strategy,
            ..Config::default()
        });
        rig.input(Input::Expecting(downloads));
        let mut outputs = rig.run(SECOND, &[20, 20]);
        outputs.extend(rig.run(SECOND, &[0, 20]));
        let evacuates = |output: &Output| matches!(output, Output::Evacuate { .. });
        assert!(!outputs.iter().any(evacuates), "{strategy}: {outputs:?}");
    }
}

#[test]
fn the_counters_are_looked_at_more_often_while_something_is_to_come() {
    let mut rig = Rig::new();
    assert_eq!(rig.client.look_interval(), 20 * MILLISECOND, "a download");
    rig.input(Input::Expecting(false));
    assert_eq!(rig.client.look_interval(), 50 * MILLISECOND);
    rig.park();
    assert_eq!(rig.client.look_interval(), 20 * MILLISECOND, "a move");
}

#[test]
fn a_path_that_is_being_closed_is_not_asked_any_more() {
    let mut rig = Rig::new();
    assert!(rig.locals([1]).contains(&Output::Close { path: 0 }));
    let outputs = rig.run(SECOND, &[0, 0]);
    assert!(outputs.contains(&Output::Ping { path: 1 }), "{outputs:?}");
    assert!(!outputs.contains(&Output::Ping { path: 0 }), "{outputs:?}");
}
