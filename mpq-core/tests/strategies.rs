//! What the strategies of the literature do, and what they do without, in virtual time.

#[path = "support/hint.rs"]
mod hint;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hint::{confirmed, hint};
use mpq_core::proto::client::{ClientMachine, Config, Event, Input, Output, Refusal};
use mpq_core::proto::{Frame, PathFigures, Strategy};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SEQUENCE: u64 = 7;

/// The client's addresses are x and y, the server's A, B and C.
fn ip(name: char) -> IpAddr {
    [10, 0, 0, name as u8].into()
}

fn at(name: char) -> SocketAddr {
    (ip(name), 443).into()
}

/// A client with a path from each of its addresses to A, of whose announced move nothing is known yet.
struct Client {
    machine: ClientMachine,
    now: Instant,
}

impl Client {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        let machine = ClientMachine::new(now, config, ip('x'), at('A'));
        let mut client = Self { machine, now };
        client.does(confirmed());
        client.does(Input::Locals(vec![ip('x'), ip('y')]));
        client.path_opens(1, 'y', 'A');
        client.has_received(1);
        client.does(Input::Expecting(true));
        client
    }

    fn with(strategy: Strategy) -> Self {
        Self::new(Config {
            strategy,
            ..Config::default()
        })
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.machine.poll()).collect()
    }

    fn does(&mut self, input: Input) -> Vec<Output> {
        self.machine.handle(self.now, input);
        self.outputs()
    }

    /// So many datagrams on its first path, so far.
    fn has_received(&mut self, received: u64) -> Vec<Output> {
        let rtt = 50 * MILLISECOND;
        self.does(Input::Figures(vec![PathFigures {
            id: 0,
            rtt,
            sent: 1,
            received,
        }]))
    }

    fn path_opens(&mut self, path: u32, local: char, remote: char) -> Vec<Output> {
        let (local, remote) = (ip(local), at(remote));
        self.does(Input::PathOpen {
            path,
            local,
            remote,
        })
    }

    fn is_told(&mut self, targets: &str) -> Vec<Output> {
        self.does(Input::Frame(Frame::Migration {
            sequence: SEQUENCE,
            targets: targets.chars().map(at).collect(),
            outage: SECOND,
            lead: SECOND,
        }))
    }

    fn hears_parked(&mut self) -> Vec<Output> {
        let sequence = SEQUENCE;
        self.does(Input::Frame(Frame::Parked { sequence }))
    }

    fn hears_knock(&mut self, from: char) -> Vec<Output> {
        self.answers(from, true)
    }

    fn answers(&mut self, from: char, knock: bool) -> Vec<Output> {
        let (local, remote) = (ip('x'), at(from));
        self.does(Input::Answer {
            local,
            remote,
            hint: hint(knock),
        })
    }

    /// Time passes, with every timeout on the way; what was put out, and when.
    fn waits(&mut self, time: Duration) -> Vec<(Instant, Output)> {
        let end = self.now + time;
        let mut all = Vec::new();
        let mut at_once = 0;
        while let Some(due) = self.machine.next_timeout().filter(|due| *due <= end) {
            at_once = if due > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 100, "what is done is due again");
            self.now = self.now.max(due);
            self.machine.handle_timeout(self.now);
            all.extend(self.outputs().into_iter().map(|output| (self.now, output)));
        }
        self.now = end;
        all
    }
}

fn open(local: char, remote: char) -> Output {
    let (local, remote) = (ip(local), at(remote));
    Output::Open { local, remote }
}

fn is_event(output: &Output) -> bool {
    matches!(output, Output::Event(_))
}

#[test]
fn paper_opens_paths_and_does_nothing_else_until_one_is_answered() {
    let mut client = Client::with(Strategy::Paper);
    let told = client.is_told("B");
    assert_eq!(told[0], Output::Close { path: 1 }, "{told:?}");
    assert_eq!(told.last(), Some(&open('y', 'B')), "{told:?}");
    client.does(Input::PathGone { path: 1 });

    // It is the silence that counts, not what the server says of it.
    let parked = client.hears_parked();
    assert!(parked.iter().all(is_event), "{parked:?}");
    let silent = client.waits(SECOND);
    let silent: Vec<_> = silent.into_iter().map(|(_, output)| output).collect();
    let expected = [
        Output::Event(Event::Silent),
        Output::Redirect(None),
        open('x', 'B'),
    ];
    assert_eq!(silent, expected, "the continuation path ends");

    // Both paths are being opened by QUIC now, which nothing disturbs for minutes.
    assert_eq!(client.waits(200 * SECOND), []);
    assert_eq!(client.hears_knock('B'), []);
    assert_eq!(client.answers('B', false), []);

    let arrived = client.path_opens(3, 'x', 'B');
    assert!(arrived.contains(&Output::Redirect(Some(at('B')))));
    assert!(
        arrived.contains(&Output::Close { path: 0 }),
        "and now it is closed"
    );
    assert_eq!(client.machine.remote(), at('B'));
    assert!(client.machine.is_settled());
}

#[test]
fn paper_looks_at_every_target_at_once() {
    let mut client = Client::with(Strategy::Paper);
    let told = client.is_told("BC");
    assert_eq!(told[told.len() - 2..], [open('y', 'B'), open('y', 'C')]);
    let silent = client.waits(SECOND);
    let opened: Vec<_> = silent.into_iter().map(|(_, output)| output).collect();
    assert_eq!(opened[opened.len() - 2..], [open('x', 'B'), open('x', 'C')]);
    let arrived = client.path_opens(3, 'y', 'C');
    assert!(
        arrived.contains(&Output::Abandon(at('B'))),
        "nobody is there: {arrived:?}"
    );
    assert_eq!(client.machine.remote(), at('C'));
}

/// As QUIC refuses while it has no path id left.
#[test]
fn paper_tries_again_through_the_whole_outage_what_is_refused() {
    let mut client = Client::with(Strategy::Paper);
    client.is_told("B");
    let remote = at('B');
    let mut last = client.now;
    let mut gap = Duration::ZERO;
    for second in 0..120 {
        for local in ['x', 'y'] {
            let local = ip(local);
            client.does(Input::PathRefused {
                local,
                remote,
                refusal: if second % 2 == 0 {
                    Refusal::NoId
                } else {
                    Refusal::NoAnswer
                },
            });
        }
        for (now, output) in client.waits(SECOND) {
            let probes = matches!(output, Output::Probe(_) | Output::ProbeFrom { .. });
            assert!(!probes, "in second {second}: {output:?}");
            if let Output::Open { remote, .. } = output {
                assert_eq!(remote, at('B'));
                gap = gap.max(now - last);
                last = now;
            }
        }
    }
    assert!(gap <= 2 * SECOND, "{gap:?}");
    assert!(client.now - last <= 2 * SECOND);
}

#[test]
fn paper_goes_on_by_a_path_on_which_the_server_is_heard_after_all() {
    let mut client = Client::with(Strategy::Paper);
    client.is_told("B");
    client.waits(SECOND);
    let heard = client.has_received(2);
    assert_eq!(heard, [Output::Redirect(Some(at('A')))]);
    let cancelled = client.does(Input::Frame(Frame::Cancelled { sequence: SEQUENCE }));
    assert!(
        cancelled.contains(&Output::Abandon(at('B'))),
        "{cancelled:?}"
    );
    assert!(
        cancelled.contains(&open('y', 'A')),
        "the detection path's interface is used again: {cancelled:?}"
    );
}

#[test]
fn reactive_notices_by_silence_only() {
    let mut client = Client::with(Strategy::Reactive);
    client.is_told("B");
    let parked = client.hears_parked();
    assert!(parked.iter().all(is_event), "{parked:?}");
    assert_eq!(client.machine.state(), "Announced");
    let early = client.waits(299 * MILLISECOND);
    assert!(early.is_empty(), "{early:?}");
    let silent = client.waits(MILLISECOND);
    assert_eq!(silent[0].1, Output::Event(Event::Silent));
    assert_eq!(client.machine.state(), "Searching (silent)");
}

#[test]
fn bare_means_without_parked_and_without_the_knock() {
    for strategy in Strategy::ALL {
        for bare in [false, true] {
            let config = Config {
                strategy,
                bare,
                ..Config::default()
            };
            let parked_counts = {
                let mut client = Client::new(config.clone());
                client.is_told("B");
                client.hears_parked();
                client.machine.state() == "Searching (parked)"
            };
            let profits = matches!(strategy, Strategy::Multipath | Strategy::Proactive);
            assert_eq!(parked_counts, profits && !bare, "{strategy}, bare: {bare}");

            let knock_counts = {
                let mut client = Client::new(config);
                client.is_told("B");
                // Where it was the server has been silent for a while.
                client.waits(100 * MILLISECOND);
                client.hears_knock('B').iter().any(|output| {
                    matches!(output, Output::Open { remote, .. } if *remote == at('B'))
                        || *output == Output::Probe(vec![at('B')])
                })
            };
            let profits = match strategy {
                Strategy::Multipath => !bare,
                // It is all there is.
                Strategy::Symmetric => true,
                _ => false,
            };
            assert_eq!(knock_counts, profits, "{strategy}, bare: {bare}");
        }
    }
}

#[test]
fn a_server_that_is_overdue_by_far_is_looked_for_wherever_it_may_be() {
    for (strategy, widens) in [
        (Strategy::Multipath, true),
        (Strategy::Reactive, false),
        (Strategy::Proactive, false),
    ] {
        let mut client = Client::with(strategy);
        client.does(Input::Frame(Frame::Addresses {
            pool: vec![at('C')],
            name: None,
        }));
        client.is_told("B");
        client.hears_parked();
        let probed = |outputs: Vec<(Instant, Output)>| {
            let mut all = BTreeSet::new();
            for (_, output) in outputs {
                if let Output::Probe(targets) = output {
                    all.extend(targets);
                }
            }
            all
        };
        // Away for as long as it said, and 15 s.
        let early = probed(client.waits(16 * SECOND - MILLISECOND));
        let late = probed(client.waits(5 * SECOND));
        let expected: &[_] = match widens {
            true => &[at('A'), at('B'), at('C')],
            false => &[at('B')],
        };
        assert!(early.is_subset(&[at('B')].into()), "{strategy}: {early:?}");
        assert!(late.iter().eq(expected), "{strategy}: {late:?}");
    }
}

#[test]
fn however_widely_a_server_is_looked_for_it_is_at_eight_addresses_and_where_it_was() {
    let mut client = Client::with(Strategy::Multipath);
    client.does(Input::Frame(Frame::Addresses {
        pool: "CDEFGHIJ".chars().map(at).collect(),
        name: None,
    }));
    client.is_told("BC");
    client.hears_parked();
    let probed = client.waits(30 * SECOND).into_iter().rev();
    let last = probed
        .map(|(_, output)| output)
        .find_map(|output| match output {
            Output::Probe(targets) => Some(targets),
            _ => None,
        });
    let expected: Vec<_> = "BCDEFGHIA".chars().map(at).collect();
    assert_eq!(last, Some(expected));
}

#[test]
fn proactive_leaves_once_its_answer_is_on_its_way() {
    let mut client = Client::with(Strategy::Proactive);
    client.is_told("B");
    client.waits(50 * MILLISECOND - Duration::from_nanos(1));
    assert_eq!(client.machine.state(), "Announced");
    let left = client.waits(Duration::from_nanos(1));
    assert_eq!(left[0].1, Output::Redirect(None), "{left:?}");
    assert_eq!(client.machine.state(), "Searching (parked)");
}

#[test]
fn who_has_nowhere_to_go_to_stays() {
    for strategy in [Strategy::Proactive, Strategy::Paper] {
        let mut client = Client::with(strategy);
        let told = client.is_told("A");
        let leaves = |o: &Output| matches!(o, Output::Close { .. } | Output::Redirect(_));
        assert!(!told.iter().any(leaves), "{strategy}: {told:?}");
        let waited = client.waits(100 * MILLISECOND);
        assert!(!waited.iter().any(|(_, o)| leaves(o)), "{waited:?}");
        assert_eq!(client.machine.state(), "Announced");
    }
}

#[test]
fn after_an_attempt_in_vain_datagrams_go_where_the_strategy_left_them() {
    for (strategy, to) in [
        (Strategy::Proactive, None),
        (Strategy::Reactive, Some(at('A'))),
    ] {
        let mut client = Client::with(strategy);
        client.is_told("B");
        client.waits(SECOND);
        let answered = client.answers('B', false);
        assert!(answered.contains(&Output::Redirect(Some(at('B')))));
        let failed = client.waits(2 * SECOND);
        let failed: Vec<_> = failed.into_iter().map(|(_, output)| output).collect();
        assert!(failed.contains(&Output::Redirect(to)), "{failed:?}");
        let abandoned = failed.iter().any(|o| matches!(o, Output::Abandon(_)));
        assert!(!abandoned, "no path is being opened: {failed:?}");
        assert_eq!(
            client.machine.remote(),
            at('A'),
            "it is another one that answers"
        );
    }
}

#[test]
fn what_comes_sooner_than_an_answer_can_was_under_way_before_the_redirection() {
    let mut client = Client::with(Strategy::Reactive);
    client.is_told("B");
    client.waits(SECOND);
    client.answers('B', false);
    assert_eq!(client.machine.state(), "Arriving");
    client.has_received(2);
    client.waits(25 * MILLISECOND - Duration::from_nanos(1));
    client.has_received(3);
    assert_eq!(client.machine.state(), "Arriving");
    client.waits(Duration::from_nanos(1));
    client.has_received(4);
    assert_eq!(client.machine.remote(), at('B'));

    // Nor is a path to where the server was at first the word that it is there again.
    client.does(Input::Frame(Frame::Migration {
        sequence: SEQUENCE + 1,
        targets: vec![at('A')],
        outage: SECOND,
        lead: SECOND,
    }));
    client.waits(SECOND);
    client.answers('A', false);
    client.path_opens(2, 'y', 'A');
    assert_eq!(client.machine.state(), "Arriving");
}

#[test]
fn another_server_of_the_pool_does_not_end_the_wait_for_one_that_is_overdue() {
    let mut client = Client::with(Strategy::Multipath);
    client.does(Input::Frame(Frame::Addresses {
        pool: vec![at('C'), at('D'), at('E')],
        name: None,
    }));
    client.is_told("B");
    client.hears_parked();
    client.waits(17 * SECOND);
    let mut attempts = Vec::new();
    for _ in 0..20 {
        for other in ['C', 'D', 'E'] {
            let did = client.answers(other, false);
            attempts.extend(did.into_iter().filter(|output| *output == open('x', other)));
            let waited = client.waits(SECOND);
            let failed = |(_, output): &(_, Output)| *output == Output::Event(Event::Failed);
            assert!(!waited.iter().any(failed));
        }
    }
    assert_eq!(attempts.len(), 2, "path ids are few");
    assert!(client.answers('B', false).contains(&open('x', 'B')));
}
