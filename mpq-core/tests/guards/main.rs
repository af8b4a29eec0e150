//! What the machines never do, whatever they are told. Each test fails if its guard is taken out;
//! `cargo lab guards` does that, one guard after the other. One file, since the list of guards
//! names its tests.

#[path = "../support/hint.rs"]
mod hint;
mod rig;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mpq_core::proto::client::{Config, Event, Input, Output};
use mpq_core::proto::server::{self, Announcement, ServerMachine};
use mpq_core::proto::{Frame, Strategy};

use crate::hint::hint;
use crate::rig::{DEADLINE, MILLISECOND, Rig, SECOND, is_event, local, opens_to, server};

const NANOSECOND: Duration = Duration::from_nanos(1);

#[test]
fn addresses_that_are_no_place_for_a_server_are_refused() {
    for bad in [
        "127.0.0.1:443",
        "224.0.0.1:443",
        "10.1.0.2:0",
        "169.254.1.1:443",
        "0.1.0.2:443",
        "240.1.0.2:443",
        "100.64.0.2:443",
        "10.1.0.2:53",
        "[64:ff9b::10.1.0.2]:443",
        "[2002:a01:2::1]:443",
    ] {
        let mut rig = Rig::by(Strategy::Multipath);
        rig.announce(1, vec![bad.parse().unwrap()]);
        assert_eq!(rig.client.state(), "Settled");
        assert_eq!(
            rig.count(is_event(&Event::Refused { sequence: 1 })),
            1,
            "{bad}"
        );
        rig.pass(DEADLINE);
        let remote = bad.parse().unwrap();
        rig.input(Input::Answer {
            local: local(0),
            remote,
            hint: hint(true),
        });
        assert_eq!(rig.probes(1), 0, "{bad}");
    }
}

#[test]
fn probes_have_a_cap_and_a_pace() {
    for targets in [&[2][..], &[2, 3, 4, 5, 6, 7, 8, 9]] {
        let mut rig = Rig::new(Config {
            deadline: 3 * 3600 * SECOND,
            ..Config::default()
        });
        let locals: Vec<_> = (0..4).map(local).collect();
        rig.input(Input::Locals(locals.clone()));
        rig.park(targets);
        let (mut each, mut most) = (0, 0);
        for _ in 0..10_000 {
            rig.pass(SECOND);
            let rounds = rig.count(|output| matches!(output, Output::Probe(_)));
            each += rounds * locals.len();
            most = most.max(rounds);
        }
        // A probe every half second would make 20,000.
        assert!((2_000..=3_200).contains(&each), "{each}");
        assert!((5..=50).contains(&most), "{most} rounds in a second");
    }
}

#[test]
fn a_victim_is_not_flooded_however_often_a_server_names_it() {
    for answers in [false, true] {
        let mut rig = Rig::by(Strategy::Multipath);
        let victim: Vec<SocketAddr> = (0..8).map(|i| ([10, 1, 0, 9], 4433 + i).into()).collect();
        let mut datagrams = 0;
        for sequence in 1..1_000 {
            rig.announce(sequence, victim.clone());
            rig.frame(Frame::Parked { sequence });
            rig.pass(60 * MILLISECOND);
            if answers {
                rig.input(Input::Answer {
                    local: local(0),
                    remote: victim[0],
                    hint: hint(false),
                });
            }
            for output in rig.outputs.drain(..) {
                datagrams += match output {
                    Output::Probe(targets) => targets.len() * 2,
                    Output::ProbeFrom { target, .. } if target.ip() == victim[0].ip() => 1,
                    // What noq sends until it gives a path up.
                    Output::Open { remote, .. } if remote.ip() == victim[0].ip() => 4,
                    _ => 0,
                };
            }
        }
        // For a minute, and what there may be at once.
        assert!(datagrams <= 384 + 2 * 60, "{datagrams}");
        assert!(datagrams >= 384, "{datagrams}");
    }
}

#[test]
fn everybody_on_a_network_of_ours_is_no_server() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.input(Input::Broadcasts(vec![[10, 1, 0, 255].into()]));
    rig.announce(1, vec![server(255)]);
    rig.frame(Frame::Addresses {
        pool: vec![server(255)],
        name: None,
    });
    let known = Event::Addresses {
        pool: vec![],
        name: None,
    };
    assert!(rig.outputs.contains(&Output::Event(known)));
    rig.pass(DEADLINE);
    rig.answer(255, true);
    assert_eq!(rig.goes_to(255), 0);
}

#[test]
fn the_probes_of_different_clients_do_not_come_together() {
    let times = |seed| {
        let mut rig = Rig::new(Config {
            seed,
            ..Config::default()
        });
        rig.park(&[2]);
        let start = rig.now;
        let mut times = Vec::new();
        while let Some(due) = rig.client.next_timeout().filter(|_| times.len() < 20) {
            times.push(due - start);
            rig.pass(due - rig.now);
        }
        times
    };
    assert_eq!(times(1), times(1), "each can be replayed");
    let apart = times(1)
        .iter()
        .zip(times(2))
        .filter(|(a, b)| **a != *b)
        .count();
    assert_eq!(apart, 20);
}

#[test]
fn the_probes_of_different_clients_that_heard_one_announcement_do_not_come_together() {
    const CLIENTS: usize = 20;
    let first = |seed, was_silent: bool| {
        let mut rig = Rig::new(Config {
            seed,
            ..Config::default()
        });
        rig.announce(1, vec![server(2)]);
        if was_silent {
            rig.pass(SECOND / 2);
            assert_eq!(rig.client.state(), "Searching (silent)");
            rig.hear();
        }
        rig.input(Input::Expecting(false));
        assert_eq!(rig.client.state(), "Announced");
        rig.client.next_timeout().unwrap() - rig.now
    };
    for was_silent in [false, true] {
        let first: BTreeSet<_> = (1..=CLIENTS)
            .map(|seed| first(seed as u64, was_silent))
            .collect();
        assert_eq!(first.len(), CLIENTS, "{was_silent}: {first:?}");
        let [least, most] = [3 * SECOND / 4, 5 * SECOND / 4];
        assert!(first.iter().all(|first| (least..=most).contains(first)));
    }
}

#[test]
fn an_old_announcement_does_not_count_again() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.announce(7, vec![server(2)]);
    rig.frame(Frame::Cancelled { sequence: 7 });
    rig.outputs.clear();
    for sequence in [7, 6, 0] {
        rig.announce(sequence, vec![server(3)]);
        rig.pass(SECOND / 4);
        rig.hear();
        assert_eq!((rig.client.state(), rig.goes_to(3)), ("Settled", 0));
    }
}

#[test]
fn one_move_at_a_time() {
    let now = Instant::now();
    let mut machine = ServerMachine::default();
    let announcement = |host| Announcement {
        targets: vec![server(host)],
        lead: SECOND,
        outage: SECOND,
        forwarded: false,
    };
    machine.handle(now, server::Input::Hello(1));
    for host in [2, 3] {
        machine.handle(now, server::Input::Announce(announcement(host)));
    }
    let sent: Vec<_> = std::iter::from_fn(|| machine.poll()).collect();
    assert_eq!((sent.len(), machine.sequence()), (1, 1), "{sent:?}");
}

#[test]
fn a_client_has_a_deadline() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.park(&[2]);
    rig.pass(DEADLINE - MILLISECOND);
    assert_eq!(rig.count(is_event(&Event::Failed)), 0);
    rig.pass(MILLISECOND);
    assert_eq!(rig.count(is_event(&Event::Failed)), 1);
    assert_eq!(rig.client.next_timeout(), None, "nothing is left to do");
}

#[test]
fn only_probes_go_where_nobody_has_answered() {
    for strategy in Strategy::ALL {
        let mut rig = Rig::by(strategy);
        rig.frame(Frame::Addresses {
            pool: vec![server(1), server(2)],
            name: None,
        });
        rig.park(&[2]);
        rig.pass(DEADLINE - SECOND);
        // The detection path of the paper's method is validation itself.
        if strategy != Strategy::Paper {
            let to_2 = |output: &Output| {
                matches!(output, Output::Redirect(Some(to)) if *to == server(2))
                    || opens_to(2)(output)
            };
            assert_eq!(rig.count(to_2), 0, "{strategy}");
        }
        assert_eq!(rig.client.remote(), server(1), "{strategy}");
    }
}

#[test]
fn only_a_validated_path_says_that_the_server_has_moved() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.park(&[2]);
    for knock in [false, true] {
        rig.answer(2, knock);
        rig.pass(SECOND / 2);
        assert_eq!(rig.client.remote(), server(1));
    }
    rig.path(2, 0, 2);
    assert_eq!(rig.client.remote(), server(2));
}

#[test]
fn the_first_address_that_is_validated_wins() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.park(&[2, 3]);
    rig.answer(3, false);
    rig.answer(2, false);
    rig.path(2, 0, 3);
    assert_eq!(rig.client.remote(), server(3));
    rig.outputs.clear();
    rig.answer(2, false);
    rig.answer(2, true);
    rig.path(3, 1, 3);
    rig.hear();
    rig.pass(SECOND / 2);
    assert_eq!((rig.client.remote(), rig.goes_to(2)), (server(3), 0));
}

#[test]
fn whoever_answers_and_is_not_the_server_is_given_up_for_another() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.park(&[2, 3]);
    rig.answer(2, false);
    assert_eq!(rig.client.state(), "Arriving");
    rig.pass(5 * SECOND / 2);
    assert_eq!(rig.client.state(), "Searching (parked)");
    rig.outputs.clear();
    // It is the quickest again, but the other one is to have its turn.
    rig.answer_everywhere(2, false);
    rig.answer_everywhere(3, false);
    assert_eq!(rig.count(opens_to(3)), 2);
}

#[test]
fn answers_and_knocks_are_followed_up_so_often_only() {
    for (knock, most) in [(false, 3), (true, 8)] {
        let mut rig = Rig::by(Strategy::Multipath);
        rig.park(&[2]);
        for _ in 0..60 {
            rig.answer_everywhere(2, knock);
            rig.pass(4 * SECOND);
        }
        // From two addresses each time.
        assert_eq!(rig.count(opens_to(2)), 2 * most, "knock: {knock}");
    }
}

/// Tells when the connection is given up, if a server answers at B that is not the one that parked.
fn until_given_up(outage: Duration, asleep: Duration) -> (Duration, Rig) {
    let mut rig = Rig::by(Strategy::Multipath);
    let announced = rig.now;
    rig.frame(Frame::Migration {
        sequence: 1,
        targets: vec![server(2), server(3)],
        outage,
        lead: SECOND,
    });
    rig.now += asleep;
    // It takes the time in which it stood still for that of the network.
    rig.rtt = rig.rtt.max(asleep);
    rig.hear();
    rig.frame(Frame::Parked { sequence: 1 });
    while rig.count(is_event(&Event::Failed)) == 0 {
        rig.answer(2, false);
        rig.pass(SECOND / 10);
        assert!(rig.now - announced < 1_000 * SECOND, "it is never given up");
    }
    (rig.now - announced, rig)
}

#[test]
fn who_is_where_the_server_wanted_to_be_and_does_not_know_the_client_costs_seconds() {
    let (taken, rig) = until_given_up(Duration::ZERO, Duration::ZERO);
    assert!(taken < 12 * SECOND, "{taken:?}");
    let (answered, said) = rig.client.elsewhere();
    assert_eq!((answered, said), (vec![server(2)], vec![server(3)]));
    // It is not given up before it wanted to be back.
    let (taken, _) = until_given_up(60 * SECOND, Duration::ZERO);
    assert!((60 * SECOND..65 * SECOND).contains(&taken), "{taken:?}");
    // Nor does a client that has slept wait for much longer.
    let (taken, _) = until_given_up(SECOND, 600 * SECOND);
    assert!(taken < 630 * SECOND, "{taken:?}");
}

#[test]
fn a_server_that_is_silent_without_a_word_has_until_the_idle_timeout() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.frame(Frame::Addresses {
        pool: vec![server(2)],
        name: None,
    });
    let start = rig.now;
    let idle = |output: &Output| {
        assert_ne!(*output, Output::Event(Event::Failed));
        *output == Output::Event(Event::Idle)
    };
    while rig.count(idle) == 0 {
        rig.answer(2, false);
        rig.pass(SECOND / 10);
        rig.look();
    }
    assert!(rig.now - start >= 30 * SECOND, "{:?}", rig.now - start);
}

#[test]
fn a_knock_that_is_repeated_reaches_only_so_many() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.input(Input::Expecting(false));
    for host in 2..100 {
        rig.pass(SECOND);
        rig.answer(host, true);
        rig.hear();
    }
    assert_eq!(rig.probes(2), 8 * 2);
}

#[test]
fn a_server_that_speaks_has_not_moved() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.hear();
    for (passed, goes) in [
        (Duration::ZERO, 0),
        (rig.rtt - NANOSECOND, 0),
        (NANOSECOND, 1),
    ] {
        rig.pass(passed);
        rig.answer(2, true);
        assert_eq!(rig.goes_to(2), goes);
    }
}

#[test]
fn a_server_that_still_speaks_at_the_deadline_has_not_moved() {
    let silence = 300 * MILLISECOND;
    for (silent, event) in [
        (silence - NANOSECOND, Event::Cancelled { sequence: 1 }),
        (silence, Event::Failed),
    ] {
        let mut rig = Rig::by(Strategy::Multipath);
        rig.park(&[2]);
        rig.pass(DEADLINE - silent);
        rig.hear();
        rig.pass(silent);
        assert_eq!(rig.count(is_event(&event)), 1, "{event:?}");
    }
}

#[test]
fn a_herd_comes_one_after_the_other() {
    let hold_back = 7 * SECOND;
    let mut rig = Rig::new(Config {
        hold_back,
        ..Config::default()
    });
    rig.park(&[2]);
    rig.answer(2, false);
    rig.pass(hold_back - MILLISECOND);
    rig.answer_everywhere(2, false);
    assert_eq!(rig.count(opens_to(2)), 0);
    rig.pass(MILLISECOND);
    assert_eq!(rig.count(opens_to(2)), 2);
}

#[test]
fn a_cancelled_move_leaves_no_trace_in_any_state() {
    let strategies = [
        Strategy::Multipath,
        Strategy::Paper,
        Strategy::Reactive,
        Strategy::Proactive,
    ];
    for strategy in strategies {
        for stage in 0..4 {
            let mut rig = Rig::by(strategy);
            rig.announce(1, vec![server(2)]);
            if stage > 0 {
                rig.frame(Frame::Parked { sequence: 1 });
            }
            if stage > 1 {
                rig.pass(SECOND);
            }
            if stage > 2 {
                rig.answer(2, false);
            }
            let state = rig.client.state();
            rig.frame(Frame::Cancelled { sequence: 1 });
            let context = format!("{strategy}, {state}");
            assert_eq!(rig.client.state(), "Settled", "{context}");
            let mut redirected = server(1);
            let mut openings = 0;
            for output in rig.outputs.drain(..) {
                match output {
                    Output::Redirect(to) => redirected = to.unwrap_or(server(9)),
                    Output::Open { remote, .. } if remote == server(2) => openings += 1,
                    Output::Abandon(remote) if remote == server(2) => openings = 0,
                    _ => {}
                }
            }
            assert_eq!((redirected, openings), (server(1), 0), "{context}");
            for _ in 0..10 {
                rig.hear();
                rig.answer(2, false);
                rig.pass(SECOND / 4);
            }
            assert_eq!(rig.goes_to(2), 0, "{context}");
        }
    }
}

#[test]
fn a_server_that_woke_where_it_was_is_found_from_other_interfaces() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.park(&[2]);
    rig.locals(&[2]);
    rig.pass(SECOND);
    assert!(rig.goes_to(1) > 0, "it is looked for there too");
    rig.answer_everywhere(1, false);
    assert_eq!(rig.count(opens_to(1)), 1);
    rig.path(2, 2, 1);
    rig.hear();
    rig.frame(Frame::Cancelled { sequence: 1 });
    assert_eq!(
        (rig.client.state(), rig.client.remote()),
        ("Settled", server(1))
    );
}

#[test]
fn what_the_server_says_when_it_is_there_counts_before_the_path_does() {
    // The event of the path may come after the first frame over it.
    for strategy in [Strategy::Multipath, Strategy::Reactive] {
        let mut rig = Rig::by(strategy);
        rig.input(Input::Expecting(true));
        rig.park(&[2]);
        rig.pass(SECOND);
        rig.answer(2, false);
        rig.pass(SECOND / 4);
        rig.frame(Frame::Arrived { sequence: 1 });
        let place = (rig.client.state(), rig.client.remote());
        assert_eq!(place, ("Settled", server(2)), "{strategy}");
    }
    // It tries all targets at once, and only the event tells at which one the server is.
    let mut rig = Rig::by(Strategy::Paper);
    rig.park(&[2]);
    rig.pass(SECOND);
    rig.frame(Frame::Arrived { sequence: 1 });
    rig.path(2, 1, 2);
    let place = (rig.client.state(), rig.client.remote());
    assert_eq!(place, ("Settled", server(2)));
}

#[test]
fn an_announcement_that_comes_after_its_move_does_not_start_it_again() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.pass(2 * SECOND);
    rig.answer(2, true);
    rig.answer(2, false);
    rig.path(2, 0, 2);
    assert_eq!(rig.client.remote(), server(2));
    rig.announce(1, vec![server(2), server(3)]);
    rig.frame(Frame::Parked { sequence: 1 });
    rig.frame(Frame::Arrived { sequence: 1 });
    assert_eq!(
        (rig.client.state(), rig.client.remote()),
        ("Settled", server(2))
    );
}

#[test]
fn an_announcement_that_comes_during_its_move_does_not_start_it_again() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.pass(2 * SECOND);
    rig.answer(2, true);
    rig.answer_everywhere(2, false);
    assert_eq!(rig.goes_to(2), 3);
    rig.announce(1, vec![server(2)]);
    rig.frame(Frame::Parked { sequence: 1 });
    assert_eq!(rig.count(|output| matches!(output, Output::Abandon(_))), 0);
    rig.path(2, 0, 2);
    let moved = Event::Moved {
        sequence: 1,
        remote: server(2),
    };
    assert_eq!(
        rig.count(|output| *output == Output::Event(moved.clone())),
        1
    );
}

#[test]
fn a_confirmation_of_an_attempt_that_was_given_up_leads_nowhere() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.park(&[2]);
    rig.answer(2, true);
    rig.pass(10 * SECOND);
    assert_eq!(rig.client.state(), "Searching (parked)");
    rig.frame(Frame::Arrived { sequence: 1 });
    assert_eq!(rig.client.state(), "Searching (parked)");
}

#[test]
fn who_has_no_path_left_opens_another_at_once() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.input(Input::PathGone { path: 1 });
    assert_eq!(rig.goes_to(1), 0);
    rig.input(Input::PathGone { path: 0 });
    rig.pass(Duration::ZERO);
    assert_eq!(rig.goes_to(1), 2);
}

#[test]
fn the_last_path_is_never_closed() {
    let mut rig = Rig::by(Strategy::Multipath);
    rig.input(Input::Locals(vec![local(2), local(3)]));
    rig.pass(SECOND);
    assert_eq!(
        rig.count(|output| matches!(output, Output::Close { .. })),
        0
    );
    rig.path(2, 2, 1);
    assert_eq!(
        rig.count(|output| matches!(output, Output::Close { .. })),
        2
    );
}

#[test]
fn writers_stop_before_the_clients_are_told_of_the_silence() {
    let now = Instant::now();
    let mut machine = ServerMachine::default();
    machine.handle(now, server::Input::Hello(1));
    machine.handle(
        now,
        server::Input::Announce(Announcement {
            targets: vec![server(2)],
            lead: Duration::ZERO,
            outage: SECOND,
            forwarded: false,
        }),
    );
    machine.handle_timeout(now);
    let outputs: Vec<_> = std::iter::from_fn(|| machine.poll()).collect();
    let place = |wanted: &dyn Fn(&server::Output) -> bool| outputs.iter().position(wanted).unwrap();
    let closed = place(&|output| *output == server::Output::CloseGates);
    let parked = place(&|output| matches!(output, server::Output::Send(1, Frame::Parked { .. })));
    let drained = place(&|output| *output == server::Output::Drain);
    assert!(closed < parked && parked < drained, "{outputs:?}");
    assert!(machine.is_parking());
    // Nothing is frozen before all is quiet and the sockets are closed.
    let thawed = server::Input::Thawed {
        listen: server(2),
        before: server(1),
    };
    for input in [server::Input::Closed, thawed] {
        machine.handle(now, input);
        assert_eq!((machine.poll(), machine.state()), (None, "Parking"));
    }
}
