//! What the client's machine makes of its paths' counters and ends, in virtual time: which it gives up,
//! when it opens one again, and when it gives up the connection.

#[path = "../support/hint.rs"]
mod hint;
mod ids;
mod rig;

use mpq_core::proto::client::{Config, Event, Handshake, Input, Output, Refusal};
use mpq_core::proto::{Frame, Strategy};

use crate::hint::{confirmed, hint};
use crate::ids::opened;
use crate::rig::{LOOK, MILLISECOND, Rig, SECOND, local, open, probe, server};

#[test]
fn a_path_whose_link_dies_is_evacuated_closed_and_asked_for_before_it_is_opened_again() {
    for (dead, other) in [(0, 1), (1, 0)] {
        let mut rig = Rig::new();
        rig.run(SECOND, &[20, 20]);
        let received = [(0, 20), (20, 0)][dead as usize];
        let outputs = rig.run(SECOND, &[received.0, received.1]);
        let place = |output: &Output| outputs.iter().position(|o| o == output);
        let evacuate = Output::Evacuate {
            path: dead,
            over: other,
        };
        let evacuated = place(&evacuate).expect("evacuated");
        let asked = place(&probe(dead as u8, 1)).expect("asked");
        let closed = place(&Output::Close { path: dead }).expect("closed");
        assert!(evacuated < asked && asked < closed, "{outputs:?}");
        assert!(outputs.contains(&Output::Event(Event::Dead { path: dead.into() })));
        rig.gone(dead);
        let outputs = rig.run(3 * SECOND, &[20]);
        let open = open(dead as u8, 1);
        assert!(outputs.contains(&probe(dead as u8, 1)) && !outputs.contains(&open));
        assert!(rig.answer(dead as u8, 1).contains(&open));
    }
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
    rig.announce(1, &[2], 60 * SECOND);
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
fn interfaces_that_never_reach_the_server_leave_a_move_its_allowance() {
    let mut rig = Rig::new();
    rig.locals(0..20);
    let outputs = rig.run(300 * SECOND, &[20, 20]);
    let is_probe = |output: &&Output| matches!(output, Output::ProbeFrom { .. });
    let probes = outputs.iter().filter(is_probe).count();
    assert!(probes > 18 * 250, "they are tried for ever: {probes}");
    rig.park();
    let knock = Input::Answer {
        local: local(0),
        remote: server(2),
        hint: hint(true),
    };
    let outputs = rig.input(knock);
    assert!(outputs.contains(&open(0, 2)), "{outputs:?}");
}

#[test]
fn redirected_probes_go_to_where_the_server_is() {
    let mut rig = Rig::redirecting();
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
    rig.announce(1, &[2], SECOND);
    assert!(!rig.run(3 * idle_timeout, &[0, 0]).contains(&idle));
}

#[test]
fn a_move_is_settled_once_all_paths_are_there() {
    let mut rig = Rig::new();
    rig.park();
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
fn a_move_is_settled_without_an_interface_that_has_never_reached_the_server() {
    let mut rig = Rig::new();
    rig.input(Input::Locals(vec![local(0), local(1), local(2)]));
    rig.park();
    rig.answer(0, 2);
    rig.open(2, 0, 2);
    rig.open(3, 1, 2);
    rig.gone(0);
    let settled = Output::Event(Event::Settled { remote: server(2) });
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
    rig.announce(1, &[2], SECOND);
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
    rig.locals([0, 2]);
    for outputs in [rig.open(3, 1, 2), rig.gone(1)] {
        assert!(!outputs.contains(&settled), "{outputs:?}");
    }
    assert!(rig.gone(3).contains(&settled));
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
    rig.announce(1, &[2, 3], SECOND);
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

#[test]
fn while_the_server_is_parked_no_path_is_asked_for_where_it_was() {
    let mut rig = Rig::new();
    assert!(rig.locals([0, 1, 2]).contains(&probe(2, 1)));
    rig.park();
    let outputs = rig.run(5 * SECOND, &[0, 0]);
    assert!(!outputs.contains(&probe(2, 1)), "{outputs:?}");
}

#[test]
fn a_path_that_was_taken_away_is_asked_for_after_a_while_whatever_else_is_asked_for() {
    let mut rig = Rig::new();
    rig.locals([0, 1, 2]);
    let mut outputs = rig.gone(1);
    outputs.extend(rig.run(SECOND - LOOK, &[20]));
    assert!(!outputs.contains(&probe(1, 1)), "{outputs:?}");
    let outputs = rig.run(LOOK, &[20]);
    assert!(outputs.contains(&probe(1, 1)), "{outputs:?}");
}

#[test]
fn no_path_is_asked_for_from_an_address_that_is_gone() {
    let mut rig = Rig::new();
    let mut outputs = rig.locals([3]);
    outputs.extend(rig.gone(0));
    outputs.extend(rig.gone(1));
    outputs.extend(rig.run(5 * SECOND, &[]));
    assert!(outputs.contains(&open(3, 1)), "{outputs:?}");
    let from_there = [open(0, 1), open(1, 1), probe(0, 1), probe(1, 1)];
    assert!(!outputs.iter().any(|o| from_there.contains(o)));
}

#[test]
fn a_path_that_was_closed_since_the_server_moved_leaves_nothing_to_give_up() {
    let mut rig = Rig::new();
    rig.park();
    rig.answer(0, 2);
    rig.open(2, 0, 2);
    rig.open(3, 1, 2);
    rig.gone(0);
    rig.gone(1);
    rig.announce(2, &[3], SECOND);
    rig.input(Input::Frame(Frame::Parked { sequence: 2 }));
    assert!(rig.answer(0, 3).contains(&open(0, 3)));
    let outputs = rig.open(4, 0, 3);
    assert_eq!(rig.client.remote(), server(3));
    assert!(!outputs.contains(&Output::Abandon(server(1))));
}

#[test]
fn who_redirects_has_the_paths_that_wait_try_the_new_address() {
    let mut rig = Rig::redirecting();
    assert!(rig.locals([0, 1, 2]).contains(&probe(2, 1)));
    rig.park();
    rig.run(SECOND, &[]);
    let outputs = rig.answer(0, 2);
    assert!(outputs.contains(&Output::Redirect(Some(server(2)))));
    assert!(outputs.contains(&Output::Abandon(server(1))), "{outputs:?}");
}

#[test]
fn whether_probes_are_answered_is_tried_from_a_path_that_works() {
    let mut rig = Rig::untested(Config::default());
    rig.run(SECOND, &[20, 20]);
    let outputs = rig.run(SECOND, &[0, 20]);
    let close = Output::Close { path: 0 };
    let closed = outputs.iter().position(|o| *o == close).expect("closed");
    let mut outputs = outputs[closed..].to_vec();
    outputs.extend(rig.run(SECOND, &[0, 20]));
    let probes = |from| outputs.iter().filter(|o| **o == probe(from, 1)).count();
    assert!(probes(0) > 0 && probes(1) > 0, "{outputs:?}");
}
