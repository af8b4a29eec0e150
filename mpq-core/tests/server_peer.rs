//! The machine of one connection of a server, in virtual time.

use std::time::{Duration, Instant};

use mpq_core::proto::server::peer::{Input, OldPath, Output, PeerMachine};
use mpq_core::proto::server::{self, Stage};
use mpq_core::proto::{Frame, PathFigures};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const RTT: Duration = Duration::from_millis(40);
/// The connection's number.
const ID: u64 = 7;

/// A connection and its network.
struct Connection {
    now: Instant,
    machine: PeerMachine,
    stage: Stage,
    /// The paths that there are, with datagrams sent and received.
    paths: Vec<PathFigures>,
    datagrams: u64,
    /// What is found when the client is listened for.
    new: Vec<u32>,
    old: Vec<OldPath>,
    in_flight: u64,
    has_arrived: bool,
    is_closed: bool,
    /// What the machine wanted, but for looks.
    outputs: Vec<Output>,
    looks: usize,
}

fn path(id: u32) -> PathFigures {
    PathFigures {
        id,
        rtt: RTT,
        sent: 0,
        received: 0,
    }
}

impl Connection {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            machine: PeerMachine::new(now, ID),
            stage: Stage::Serving,
            paths: vec![path(0)],
            datagrams: 0,
            new: Vec::new(),
            old: Vec::new(),
            in_flight: 0,
            has_arrived: false,
            is_closed: false,
            outputs: Vec::new(),
            looks: 0,
        }
    }

    /// Of a client that can do this, with paths 0 and 1.
    fn of_client(capabilities: u64) -> Self {
        let mut connection = Self::new();
        connection.input(Input::Frame(Frame::Hello { capabilities }));
        connection.open(1);
        connection.outputs.clear();
        connection
    }

    /// The same, after a freeze, and missing; these of its paths lead to where they did.
    fn missing(capabilities: u64, at_home: Vec<u32>) -> Self {
        let mut connection = Self::of_client(capabilities);
        connection.stage = Stage::Parking;
        connection.pass(5 * SECOND);
        connection.stage = Stage::Moving;
        connection.input(Input::Woken(vec![]));
        connection.pass(SECOND);
        connection.input(Input::Reopened(at_home));
        assert_eq!(connection.outputs, []);
        connection
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.perform();
    }

    fn open(&mut self, id: u32) {
        self.paths.push(path(id));
        self.input(Input::PathOpen(id));
    }

    fn perform(&mut self) {
        while let Some(output) = self.machine.poll() {
            let answer = match output {
                Output::Look => Input::Figures {
                    stage: self.stage,
                    received: self.datagrams,
                    paths: self.paths.clone(),
                },
                Output::Listen => Input::Heard {
                    stage: self.stage,
                    new: self.new.clone(),
                    old: self.old.clone(),
                },
                Output::LookWhetherTold => Input::Told {
                    has_arrived: self.has_arrived,
                    is_closed: self.is_closed,
                },
                Output::LookInFlight => Input::InFlight(self.in_flight),
                Output::Close(id) => {
                    self.paths.retain(|path| path.id != id);
                    self.outputs.push(output);
                    Input::PathGone(id)
                }
                output => {
                    self.outputs.push(output);
                    continue;
                }
            };
            self.looks += 1;
            self.machine.handle(self.now, answer);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.pass_with(time, |_| ());
    }

    /// Time passes; `traffic` happens before each thing that is due.
    fn pass_with(&mut self, time: Duration, traffic: impl Fn(&mut Self)) {
        let end = self.now + time;
        let mut at_once = 0;
        while self.machine.next_timeout() <= end {
            let due = self.machine.next_timeout();
            at_once = if due > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 100, "what is done is due again");
            self.now = self.now.max(due);
            traffic(self);
            self.machine.handle_timeout(self.now);
            assert!(self.machine.next_timeout() > self.now, "it spins");
            self.perform();
        }
        self.now = end;
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The path goes silent, while we go on to send on it and the other is heard.
    fn lose_path(&mut self, lost: usize, time: Duration) {
        self.pass_with(time, |connection| {
            for (i, path) in connection.paths.iter_mut().enumerate() {
                path.sent += 1200;
                path.received += u64::from(i != lost);
            }
            connection.datagrams += 1;
        });
    }
}

fn told(input: server::Input) -> Output {
    Output::Server(input)
}

#[test]
fn only_the_first_hello_of_a_client_that_can_follow_counts() {
    for (capabilities, redirects, follows) in [
        (0, false, false),
        (1 << 40, false, false),
        (Frame::MULTIPATH, false, true),
        (Frame::REDIRECT, true, true),
        (Frame::MULTIPATH | Frame::REDIRECT, true, true),
    ] {
        let mut connection = Connection::new();
        connection.input(Input::Frame(Frame::Hello { capabilities }));
        let hello = follows.then_some(told(server::Input::Hello(ID)));
        let expected: Vec<_> = [Output::Speak].into_iter().chain(hello).collect();
        assert_eq!(connection.take(), expected, "{capabilities}");
        assert_eq!(connection.machine.keeps_paths(), redirects);
        let capabilities = Frame::MULTIPATH | Frame::REDIRECT;
        connection.input(Input::Frame(Frame::Hello { capabilities }));
        assert_eq!(connection.take(), []);
        assert_eq!(connection.machine.keeps_paths(), redirects);
    }
}

#[test]
fn a_clients_ready_is_passed_on_and_a_servers_frames_are_not() {
    let mut connection = Connection::new();
    for frame in [
        Frame::Parked { sequence: 1 },
        Frame::Cancelled { sequence: 1 },
        Frame::Arrived { sequence: 1 },
    ] {
        connection.input(Input::Frame(frame));
    }
    assert_eq!(connection.take(), []);
    connection.input(Input::Frame(Frame::Ready { sequence: 1 }));
    assert_eq!(connection.take(), [told(server::Input::Ready(ID))]);
}

#[test]
fn a_path_that_is_silent_is_closed_if_another_one_is_heard() {
    let mut connection = Connection::of_client(Frame::MULTIPATH);
    connection.lose_path(1, 10 * SECOND);
    assert!(connection.take().contains(&Output::Close(1)));
    // The last one never is.
    connection.lose_path(0, 30 * SECOND);
    assert_eq!(connection.take(), []);
}

#[test]
fn no_path_is_silent_while_the_server_parks() {
    let mut connection = Connection::of_client(Frame::MULTIPATH);
    connection.lose_path(1, SECOND);
    connection.take();
    connection.stage = Stage::Parking;
    connection.lose_path(1, 10 * SECOND);
    assert_eq!(connection.take(), []);
    // What it owed before does not count.
    connection.stage = Stage::Moving;
    connection.lose_path(1, SECOND);
    assert!(!connection.take().contains(&Output::Close(1)));
    connection.lose_path(1, 10 * SECOND);
    assert!(connection.take().contains(&Output::Close(1)));
}

#[test]
fn a_client_that_is_silent_for_a_minute_is_given_up_but_not_for_a_move() {
    let mut connection = Connection::of_client(Frame::MULTIPATH);
    connection.pass(59 * SECOND);
    connection.stage = Stage::Parking;
    connection.pass(600 * SECOND);
    connection.stage = Stage::Serving;
    connection.datagrams += 1;
    connection.pass(59 * SECOND);
    connection.datagrams += 1;
    connection.pass(59 * SECOND);
    assert!(!connection.take().contains(&Output::Idle));
    connection.pass(2 * SECOND);
    assert!(connection.take().contains(&Output::Idle));
}

#[test]
fn a_server_that_moves_every_half_minute_gives_up_a_client_that_is_gone() {
    let mut connection = Connection::of_client(Frame::MULTIPATH);
    connection.datagrams += 1;
    connection.pass(SECOND);
    let mut moves = 0;
    while !connection.outputs.contains(&Output::Idle) {
        assert!(moves < 4, "it is kept for ever");
        moves += 1;
        connection.stage = Stage::Parking;
        connection.pass(SECOND);
        connection.input(Input::Woken(vec![]));
        connection.stage = Stage::Moving;
        connection.input(Input::Reopened(Vec::new()));
        // Nobody comes in the time that the server waits for its clients.
        connection.pass(30 * SECOND);
        connection.stage = Stage::Serving;
        connection.pass(SECOND);
    }
    // The first wait does not count: a client may have to look for the server.
    assert_eq!(moves, 3);
}

#[test]
fn a_connection_that_has_one_path_is_seldom_looked_at() {
    let mut connection = Connection::new();
    connection.pass(60 * SECOND);
    assert_eq!(
        (connection.looks, connection.take()),
        (10, vec![Output::Idle])
    );
    connection.open(1);
    let before = connection.looks;
    connection.pass(10 * SECOND);
    assert_eq!(connection.looks - before, 50);
    // One that takes the place of the other is no second one.
    let mut connection = Connection::new();
    let looked_at = connection.machine.next_timeout();
    connection.input(Input::PathGone(0));
    connection.open(1);
    assert_eq!(connection.machine.next_timeout(), looked_at);
}

#[test]
fn what_a_path_owed_while_it_was_alone_does_not_count() {
    let mut connection = Connection::new();
    connection.pass(10 * SECOND);
    connection.paths[0].sent += 1200;
    connection.pass(20 * SECOND);
    connection.open(1);
    connection.pass_with(10 * SECOND, |connection| connection.paths[1].received += 1);
    assert!(!connection.take().contains(&Output::Close(0)));
}

#[test]
fn a_client_that_makes_a_path_to_the_new_address_has_come_along() {
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![]);
    assert_eq!(connection.machine.next_paths(), 2..=17);
    connection.pass(SECOND);
    assert_eq!(connection.take(), []);
    connection.new = vec![2];
    connection.pass(2 * MILLISECOND);
    let expected = [
        Output::Followed(vec![2]),
        told(server::Input::Established(ID)),
    ];
    assert_eq!(connection.take(), expected);
    // What is known of where it is now decides where to send.
    connection.input(Input::Release);
    assert_eq!(connection.take(), [Output::Release]);
    // Once it is validated, those of before are closed.
    connection.open(2);
    let expected = [
        Output::Close(0),
        Output::Close(1),
        told(server::Input::Established(ID)),
    ];
    assert_eq!(connection.take(), expected);
    connection.open(3);
    assert_eq!(connection.take(), [told(server::Input::Established(ID))]);
}

#[test]
fn a_path_that_is_validated_before_the_client_is_listened_for_is_no_less() {
    let mut connection = Connection::of_client(Frame::MULTIPATH);
    connection.stage = Stage::Moving;
    connection.input(Input::Woken(vec![]));
    connection.open(2);
    connection.take();
    connection.input(Input::Release);
    assert_eq!(connection.take(), [Output::Release], "there is a new path");
    connection.input(Input::Reopened(vec![]));
    connection.new = vec![2];
    connection.pass(MILLISECOND);
    let expected = [
        Output::Followed(vec![2]),
        told(server::Input::Established(ID)),
    ];
    assert_eq!(
        connection.take(),
        expected,
        "the machine may not have heard the first time"
    );
}

#[test]
fn a_path_of_before_that_is_heard_of_late_is_no_new_one() {
    for follows in [false, true] {
        let mut connection = Connection::new();
        let capabilities = Frame::MULTIPATH;
        connection.input(Input::Frame(Frame::Hello { capabilities }));
        connection.take();
        connection.stage = Stage::Moving;
        connection.input(Input::Woken(vec![1]));
        assert_eq!(connection.machine.next_paths(), 2..=17);
        connection.open(1);
        assert_eq!(connection.take(), [], "it may lead nowhere");
        if follows {
            connection.open(2);
            let expected = [
                Output::Close(0),
                Output::Close(1),
                told(server::Input::Established(ID)),
            ];
            assert_eq!(connection.take(), expected);
        } else {
            connection.input(Input::Stay);
            connection.input(Input::Release);
            assert_eq!(connection.take(), [Output::KeepPaths, Output::Release]);
        }
    }
}

#[test]
fn a_client_that_is_forwarded_is_spoken_to_first_and_keeps_its_paths() {
    let mut connection = Connection::new();
    connection.input(Input::Keep);
    connection.stage = Stage::Moving;
    connection.input(Input::Woken(vec![]));
    // None leads to where it did, as far as this host can tell.
    connection.input(Input::Reopened(vec![]));
    let mut old = OldPath {
        path: 0,
        has_come: false,
        has_spoken: false,
        is_forwarded: false,
    };
    connection.old = vec![old];
    connection.pass(SECOND);
    assert_eq!(connection.take(), []);
    old.is_forwarded = true;
    connection.old = vec![old];
    connection.pass(SECOND);
    assert_eq!(connection.take(), [Output::Ask(vec![0])], "once");
    (old.has_come, old.has_spoken) = (true, true);
    connection.old = vec![old];
    connection.pass(SECOND);
    assert_eq!(connection.take(), [told(server::Input::Stayed(ID))]);
    connection.input(Input::Release);
    assert_eq!(connection.take(), [Output::KeepPaths, Output::Release]);
}

#[test]
fn a_client_that_redirects_is_heard_on_the_paths_that_it_had_and_keeps_them() {
    let mut connection = Connection::missing(Frame::REDIRECT, vec![]);
    let old = |has_come, has_spoken| OldPath {
        path: 1,
        has_come,
        has_spoken,
        is_forwarded: false,
    };
    // What nobody can decrypt does not count, nor what came before.
    for (has_come, has_spoken) in [(true, false), (false, true)] {
        connection.old = vec![old(has_come, has_spoken)];
        connection.pass(SECOND);
        assert_eq!(connection.take(), []);
    }
    connection.old = vec![old(true, true)];
    connection.pass(2 * MILLISECOND);
    assert_eq!(connection.take(), [told(server::Input::Established(ID))]);
    connection.input(Input::Release);
    assert_eq!(connection.take(), [Output::KeepPaths, Output::Release]);
    connection.open(2);
    assert_eq!(connection.take(), [told(server::Input::Established(ID))]);
}

#[test]
fn a_client_for_whom_the_server_is_where_it_was_stays() {
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![1]);
    connection.old = vec![OldPath {
        path: 1,
        has_come: true,
        has_spoken: true,
        is_forwarded: false,
    }];
    connection.pass(MILLISECOND);
    assert_eq!(connection.take(), [told(server::Input::Stayed(ID))]);
    connection.open(2);
    assert_eq!(connection.take(), [told(server::Input::Established(ID))]);
}

#[test]
fn a_client_is_listened_for_until_the_move_is_over() {
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![]);
    connection.stage = Stage::Serving;
    connection.pass(2 * MILLISECOND);
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![]);
    connection.input(Input::Stay);
    connection.open(2);
    assert_eq!(connection.take(), [told(server::Input::Established(ID))]);
}

#[test]
fn what_is_in_flight_on_the_paths_of_before_is_asked_for_a_few_times() {
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![]);
    connection.in_flight = 1200;
    connection.new = vec![2];
    connection.pass(SECOND);
    let asks = |outputs: &[Output]| {
        let asks = outputs.iter().filter(|o| **o == Output::Ask(vec![0, 1]));
        asks.count()
    };
    assert_eq!(asks(&connection.take()), 4);
    // Whatever the last move came to, the next one has as many.
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![]);
    connection.in_flight = 1200;
    connection.new = vec![2];
    connection.pass(20 * MILLISECOND);
    connection.in_flight = 0;
    connection.pass(SECOND);
    assert_eq!(asks(&connection.take()), 2);
}

#[test]
fn a_knock_goes_to_where_the_client_was_and_asks_where_it_may_be_heard() {
    let mut connection = Connection::missing(Frame::MULTIPATH, vec![1]);
    connection.input(Input::Knock);
    let knock = |path, at_home| Output::Knock { path, at_home };
    let expected = [knock(0, false), knock(1, true), Output::Ask(vec![1])];
    assert_eq!(connection.take(), expected);
    connection.input(Input::Stay);
    connection.input(Input::Knock);
    assert_eq!(connection.take(), []);
}

#[test]
fn a_client_that_cannot_follow_is_told_before_its_connection_ends() {
    let mut connection = Connection::new();
    connection.input(Input::Dismiss);
    assert_eq!(connection.take(), [Output::GoAway]);
    connection.pass(100 * MILLISECOND);
    assert_eq!(connection.take(), []);
    connection.has_arrived = true;
    connection.pass(2 * MILLISECOND);
    assert_eq!(connection.take(), [Output::Dismiss]);
    assert!(connection.machine.is_leaving(), "it has not heard yet");
    connection.is_closed = true;
    connection.pass(2 * MILLISECOND);
    assert!(!connection.machine.is_leaving());
    connection.pass(SECOND);
    assert_eq!(connection.take(), []);
}
