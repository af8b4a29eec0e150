//! A client's machine, and whoever talks to it, in virtual time.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mpq_core::proto::client::{ClientMachine, Config, Event, Input, Output};
use mpq_core::proto::{Frame, PathFigures, Strategy};

use crate::hint::{confirmed, hint};

pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

pub(crate) fn server(host: u8) -> SocketAddr {
    ([10, 1, 0, host], 443).into()
}

pub(crate) fn local(host: u8) -> IpAddr {
    [10, 0, host, 1].into()
}

/// A client of server 1, with paths from locals 0 and 1, in virtual time.
pub(crate) struct Rig {
    pub(crate) now: Instant,
    pub(crate) client: ClientMachine,
    pub(crate) locals: Vec<u8>,
    pub(crate) outputs: Vec<Output>,
    /// Datagrams received on each of its first two paths, and what is measured on both.
    pub(crate) received: [u64; 2],
    pub(crate) rtt: Duration,
}

impl Rig {
    pub(crate) fn new(config: Config) -> Self {
        let now = Instant::now();
        let client = ClientMachine::new(now, config, local(0), server(1));
        let outputs = Vec::new();
        let mut rig = Self {
            now,
            client,
            locals: Vec::new(),
            outputs,
            received: [0; 2],
            rtt: 40 * MILLISECOND,
        };
        rig.hear();
        rig.input(confirmed());
        rig.input(Input::Expecting(true));
        rig.locals(&[0, 1]);
        rig.path(1, 1, 1);
        rig.outputs.clear();
        rig
    }

    pub(crate) fn by(strategy: Strategy) -> Self {
        Self::new(Config {
            strategy,
            ..Config::default()
        })
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.client.handle(self.now, input);
        self.outputs
            .extend(std::iter::from_fn(|| self.client.poll()));
    }

    /// Looks at its paths, on which so much has come by now.
    pub(crate) fn look(&mut self) {
        let path = |(id, received): (usize, &u64)| PathFigures {
            id: id as u32,
            rtt: self.rtt,
            sent: 0,
            received: *received,
        };
        let figures = self.received.iter().enumerate().map(path).collect();
        self.input(Input::Figures(figures));
    }

    /// Something came on both.
    pub(crate) fn hear(&mut self) {
        self.received.iter_mut().for_each(|received| *received += 1);
        self.look();
    }

    pub(crate) fn frame(&mut self, frame: Frame) {
        self.input(Input::Frame(frame));
    }

    pub(crate) fn announce(&mut self, sequence: u64, targets: Vec<SocketAddr>) {
        self.frame(Frame::Migration {
            sequence,
            targets,
            outage: SECOND,
            lead: SECOND,
        });
    }

    /// Announced to be at these servers, and parked.
    pub(crate) fn park(&mut self, targets: &[u8]) {
        self.announce(1, targets.iter().map(|host| server(*host)).collect());
        self.frame(Frame::Parked { sequence: 1 });
    }

    pub(crate) fn path(&mut self, path: u32, from: u8, to: u8) {
        self.input(Input::PathOpen {
            path,
            local: local(from),
            remote: server(to),
        });
    }

    pub(crate) fn answer(&mut self, host: u8, knock: bool) {
        self.input(Input::Answer {
            local: local(0),
            remote: server(host),
            hint: hint(knock),
        });
    }

    /// As it is after a round of probes, or when the server knocks at each address.
    pub(crate) fn answer_everywhere(&mut self, host: u8, knock: bool) {
        for from in self.locals.clone() {
            self.input(Input::Answer {
                local: local(from),
                remote: server(host),
                hint: hint(knock),
            });
        }
    }

    pub(crate) fn locals(&mut self, locals: &[u8]) {
        self.locals = locals.to_vec();
        self.input(Input::Locals(locals.iter().map(|l| local(*l)).collect()));
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut at_once = 0;
        while let Some(due) = self.client.next_timeout().filter(|due| *due <= end) {
            at_once = if due > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 100, "what is done is due again");
            self.now = self.now.max(due);
            self.client.handle_timeout(self.now);
            self.outputs
                .extend(std::iter::from_fn(|| self.client.poll()));
        }
        self.now = end;
    }

    /// How many of the outputs until now are so; they are forgotten.
    pub(crate) fn count(&mut self, wanted: impl Fn(&Output) -> bool) -> usize {
        self.outputs.drain(..).filter(wanted).count()
    }

    pub(crate) fn probes(&mut self, locals: usize) -> usize {
        let targets = self.outputs.drain(..).map(|output| match output {
            Output::Probe(targets) => targets.len(),
            _ => 0,
        });
        targets.sum::<usize>() * locals
    }

    /// What leads to that server: openings, redirections and probes.
    pub(crate) fn goes_to(&mut self, host: u8) -> usize {
        let there = server(host);
        self.count(|output| match output {
            Output::Open { remote, .. } => *remote == there,
            Output::Redirect(to) => *to == Some(there),
            Output::Probe(targets) => targets.contains(&there),
            _ => false,
        })
    }
}

pub(crate) fn opens_to(host: u8) -> impl Fn(&Output) -> bool {
    move |output| matches!(output, Output::Open { remote, .. } if *remote == server(host))
}

pub(crate) fn is_event(event: &Event) -> impl Fn(&Output) -> bool {
    move |output| matches!(output, Output::Event(other) if other == event)
}
