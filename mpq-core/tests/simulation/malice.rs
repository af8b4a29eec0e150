//! A client whose server means ill: it has the client's datagrams sent to others, by whatever it says. How
//! many they get is bounded, over its whole life, whether they answer or not.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mpq_core::proto::client::{ClientMachine, Config, Input, Output};
use mpq_core::proto::frame::MAX_ADDRESSES;
use mpq_core::proto::{Frame, PathFigures, Strategy};

use crate::hint::{confirmed, hint};
use crate::schedule::Dice;

const MILLISECOND: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(20);
/// Promised for each address, and for all together: datagrams at once, and in a second.
const TARGET: (f64, f64) = (384.0, 2.0);
const CONNECTION: (f64, f64) = (1_024.0, 8.0);
/// What an attempt counts for, from each local address.
const ATTEMPT: u64 = 4;
/// The server's address, and those of its victims.
const HOME: u8 = 1;
const VICTIMS: u64 = 20;

fn host(host: u8, port: u16) -> SocketAddr {
    ([198, 51, 100, host], port).into()
}

struct Victimised {
    dice: Dice,
    start: Instant,
    now: Instant,
    client: ClientMachine,
    locals: Vec<IpAddr>,
    sequence: u64,
    /// Datagrams received on the first path.
    received: u64,
    /// Whether the victims are QUIC servers.
    answering: bool,
    probed: Vec<SocketAddr>,
    /// Where the client hears somebody.
    redirected: SocketAddr,
    sent: BTreeMap<IpAddr, u64>,
}

impl Victimised {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let strategies: Vec<_> = Strategy::ALL
            .into_iter()
            // Which goes by a timetable, as its paper has it.
            .filter(|strategy| *strategy != Strategy::Paper)
            .collect();
        let config = Config {
            strategy: strategies[dice.below(strategies.len() as u64) as usize],
            seed,
            ..Config::default()
        };
        let now = Instant::now();
        let locals: Vec<IpAddr> = (0..1 + dice.below(4) as u8)
            .map(|i| [10, 0, i, 1].into())
            .collect();
        let client = ClientMachine::new(now, config, locals[0], host(HOME, 443));
        let mut client = Self {
            answering: dice.below(2) == 0,
            dice,
            start: now,
            now,
            client,
            locals: locals.clone(),
            sequence: 0,
            received: 0,
            probed: Vec::new(),
            redirected: host(HOME, 443),
            sent: BTreeMap::new(),
        };
        client.input(confirmed());
        client.input(Input::Locals(locals));
        client.hear();
        client.input(Input::Expecting(true));
        client
    }

    fn input(&mut self, input: Input) {
        self.client.handle(self.now, input);
        self.obey();
    }

    fn obey(&mut self) {
        let home = host(HOME, 443).ip();
        let locals = self.locals.len() as u64;
        while let Some(output) = self.client.poll() {
            let (to, datagrams) = match output {
                Output::Probe(targets) => {
                    self.probed.extend(&targets);
                    (targets, locals)
                }
                Output::ProbeFrom { target, .. } => {
                    self.probed.push(target);
                    (vec![target], 1)
                }
                Output::Open { remote, .. } => (vec![remote], ATTEMPT),
                Output::Redirect(Some(to)) => {
                    self.redirected = to;
                    (vec![to], ATTEMPT * locals)
                }
                _ => continue,
            };
            for to in to.iter().filter(|to| to.ip() != home) {
                *self.sent.entry(to.ip()).or_default() += datagrams;
            }
        }
        let passed = (self.now - self.start).as_secs_f64();
        let most = |(burst, rate): (f64, f64)| burst + rate * passed;
        for (victim, sent) in &self.sent {
            assert!(*sent as f64 <= most(TARGET), "{sent} to {victim}");
        }
        let all: u64 = self.sent.values().sum();
        assert!(all as f64 <= most(CONNECTION), "{all} in {passed} s");
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.client.next_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.client.handle_timeout(self.now);
            self.obey();
        }
        self.now = end;
    }

    fn victim(&mut self) -> SocketAddr {
        let port = 1_024 + self.dice.below(8) as u16;
        host(HOME + 1 + self.dice.below(VICTIMS) as u8, port)
    }

    fn say(&mut self) {
        let sequence = self.sequence;
        let frame = match self.dice.below(8) {
            0..4 => {
                self.sequence += 1;
                let count = 1 + self.dice.below(MAX_ADDRESSES as u64);
                Frame::Migration {
                    sequence: self.sequence,
                    targets: (0..count).map(|_| self.victim()).collect(),
                    outage: MILLISECOND * self.dice.below(20_000) as u32,
                    lead: MILLISECOND * self.dice.below(100) as u32,
                }
            }
            4..6 => Frame::Parked { sequence },
            6 => Frame::Cancelled { sequence },
            _ => Frame::Addresses {
                pool: (0..MAX_ADDRESSES).map(|_| self.victim()).collect(),
                name: None,
            },
        };
        self.input(Input::Frame(frame));
    }

    fn hear(&mut self) {
        self.received += 1;
        self.input(Input::Figures(vec![PathFigures {
            id: 0,
            rtt: RTT,
            sent: 0,
            received: self.received,
        }]));
    }

    /// A knock that the server sends in somebody's name, or that somebody repeats.
    fn knock(&mut self) {
        let remote = self.victim();
        self.come(remote, true);
    }

    fn answer(&mut self) {
        let probed = std::mem::take(&mut self.probed);
        let answers = if self.answering { 2 } else { 0 };
        for remote in probed.into_iter().take(answers) {
            self.come(remote, false);
        }
    }

    fn come(&mut self, remote: SocketAddr, knock: bool) {
        let local = self.locals[0];
        self.input(Input::Answer {
            local,
            remote,
            hint: hint(knock),
        });
    }
}

/// Datagrams that others got.
pub(crate) fn suffer(seed: u64) -> u64 {
    let mut client = Victimised::new(seed);
    // Most of them talk all the time, some take theirs.
    let pause = [30, 100, 3_000][client.dice.below(3) as usize];
    for _ in 0..2_000 {
        // It is heard where it is, and nowhere else.
        let heard = client.redirected == host(HOME, 443);
        match client.dice.below(10) {
            0..7 if heard => client.say(),
            9 if heard => client.hear(),
            7 => client.knock(),
            _ => client.answer(),
        }
        let pause = client.dice.below(pause) as u32;
        client.pass(MILLISECOND * pause);
        client.answer();
    }
    client.sent.values().sum()
}
