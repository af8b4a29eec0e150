use super::*;

#[test]
fn a_server_that_wakes_where_it_was_has_not_moved_unless_it_may_be_another_host() {
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let (a, b, any) = ("10.0.0.1:443", "10.0.0.2:443", "[::]:443");
    for (targets, before, listen, moved) in [
        (vec![b], a, b, true),
        (vec![b], a, a, false),
        (vec![], a, a, false),
        (vec![a], a, a, true),
        (vec![b, a], a, a, true),
        (vec![b], any, any, true),
        (vec![], any, any, true),
    ] {
        let now = Instant::now();
        let mut server = ServerMachine::default();
        server.handle(
            now,
            Input::Announce(Announcement {
                targets: targets.iter().map(|target| address(target)).collect(),
                ..Announcement::default()
            }),
        );
        server.handle_timeout(now);
        server.handle(now, Input::Quiet);
        let (listen, before) = (address(listen), address(before));
        server.handle(now, Input::Thawed { listen, before });
        let reopen = std::iter::from_fn(|| server.poll()).last();
        let expected = Output::Reopen(moved.then_some(listen));
        assert_eq!(reopen, Some(expected), "{targets:?} {before} {listen}");
    }
}

#[test]
fn every_wait_is_as_long_as_it_should_be() {
    let almost = Duration::from_nanos(1);
    let start = Instant::now();
    let [a, b] = [1, 2].map(|host| SocketAddr::from(([10, 0, 0, host], 443)));
    let mut server = ServerMachine::default();
    let (follower, stranger) = (1, 2);
    server.handle(start, Input::Hello(follower));
    let lead = Duration::from_secs(1);
    server.handle(
        start,
        Input::Announce(Announcement {
            targets: vec![b],
            lead,
            ..Announcement::default()
        }),
    );
    let parks = start + lead;
    // Until when it is in a state, and the next one.
    let passes = |server: &mut ServerMachine, until: Instant, before: &str, after: &str| {
        server.handle_timeout(until - almost);
        assert_eq!(server.state(), before);
        server.handle_timeout(until);
        assert_eq!(server.state(), after);
    };
    assert_eq!(server.next_timeout(), Some(parks));
    passes(&mut server, parks, "Announced", "Parking");

    // Its handshake is done just now, so that it may say HELLO yet.
    server.handle(parks, Input::Connected(stranger));
    server.handle(parks, Input::Quiet);
    let chance = parks + HELLO_CHANCE;
    assert_eq!(server.next_timeout(), Some(chance));
    server.handle_timeout(chance - almost);
    assert!(!std::iter::from_fn(|| server.poll()).any(|to| to == Output::Dismiss(stranger)));
    server.handle_timeout(chance);
    let told = [Output::Dismiss(stranger), Output::Drain];
    assert_eq!(
        std::iter::from_fn(|| server.poll()).collect::<Vec<_>>(),
        told
    );
    assert_eq!(server.state(), "Parking");
    server.handle(chance, Input::Quiet);
    assert_eq!(server.state(), "Parked");

    server.handle(
        chance,
        Input::Thawed {
            listen: b,
            before: a,
        },
    );
    server.handle(chance, Input::Reopened);
    passes(&mut server, chance + ARRIVAL, "Arriving", "Serving");
    let done = [Output::OpenGate(follower), Output::Done { moved: true }];
    let outputs: Vec<_> = std::iter::from_fn(|| server.poll()).collect();
    assert!(outputs.ends_with(&done), "{outputs:?}");
}

#[test]
fn what_becomes_of_the_clients_is_counted() {
    let start = Instant::now();
    let [a, b] = [1, 2].map(|host| SocketAddr::from(([10, 0, 0, host], 443)));
    let mut server = ServerMachine::default();
    let announces = Input::Announce(Announcement {
        targets: vec![b],
        ..Announcement::default()
    });
    let stranger = 5;
    let moves = |server: &mut ServerMachine, at: Instant| {
        server.handle(at, announces.clone());
        server.handle_timeout(at);
        server.handle(at + HELLO_CHANCE, Input::Gone(stranger));
        server.handle(at + HELLO_CHANCE, Input::Quiet);
        server.handle(
            at,
            Input::Thawed {
                listen: b,
                before: a,
            },
        );
        server.handle(at, Input::Reopened);
        assert_eq!(server.state(), "Arriving");
    };
    (1..5).for_each(|follower| server.handle(start, Input::Hello(follower)));
    server.handle(start, Input::Connected(stranger));
    moves(&mut server, start + HELLO_CHANCE);
    let mut expected = Arrivals {
        expected: 4,
        dismissed: 1,
        ..Arrivals::default()
    };
    assert_eq!(server.arrivals(), expected);
    for client in [1, 1, 2] {
        server.handle(start, Input::Established(client));
    }
    for client in [2, 3] {
        server.handle(start, Input::Gone(client));
    }
    (expected.arrived, expected.gone) = (2, 1);
    assert_eq!(server.arrivals(), expected);
    server.handle_timeout(start + HELLO_CHANCE + ARRIVAL);
    expected.is_over = true;
    assert_eq!(server.arrivals(), expected);

    // The next one counts anew; one that was given up follows again.
    moves(&mut server, start + 2 * ARRIVAL);
    let expected = Arrivals {
        expected: 2,
        ..Arrivals::default()
    };
    assert_eq!(server.arrivals(), expected);
}

#[test]
fn who_says_hello_during_a_move_is_told_how_far_it_is() {
    let start = Instant::now();
    let lead = Duration::from_secs(1);
    let announcement = Announcement {
        targets: vec![([10, 0, 0, 2], 443).into()],
        lead,
        ..Announcement::default()
    };
    let announces = Input::Announce(announcement.clone());
    let mut server = ServerMachine::default();
    let figures = |server: &ServerMachine| {
        let (sequence, serving) = (server.sequence(), server.is_serving());
        (sequence, serving, server.is_parking())
    };
    assert_eq!(figures(&server), (0, true, false));
    server.handle(start, announces.clone());
    server.handle(start, Input::Abandoned);
    server.handle(start, announces);
    assert_eq!(figures(&server), (2, false, false));
    while server.poll().is_some() {}

    let told = |client, lead| {
        let announcement = Announcement {
            lead,
            ..announcement.clone()
        };
        Output::Send(client, announcement.frame(2))
    };
    server.handle(start + lead / 4, Input::Hello(1));
    assert_eq!(server.poll(), Some(told(1, lead * 3 / 4)));
    assert_eq!(server.poll(), None);

    server.handle_timeout(start + lead);
    assert_eq!(figures(&server), (2, false, true));
    while server.poll().is_some() {}
    server.handle(start + lead, Input::Hello(2));
    let parked = Output::Send(2, Frame::Parked { sequence: 2 });
    assert_eq!(server.poll(), Some(told(2, Duration::ZERO)));
    assert_eq!(server.poll(), Some(parked));
    assert_eq!(server.poll(), None);
}
