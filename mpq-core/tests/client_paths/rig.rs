//! A client's machine in a download, in virtual time.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mpq_core::proto::client::{ClientMachine, Config, Input, Output, Refusal};
use mpq_core::proto::{Frame, PathFigures, Strategy};

use crate::hint::{confirmed, hint};

pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn server(host: u8) -> SocketAddr {
    ([10, 1, 0, host], 443).into()
}

pub(crate) fn local(host: u8) -> IpAddr {
    [10, 0, host, 1].into()
}

/// A client of server 1 in a download, with paths 0 and 1 from locals 0 and 1.
pub(crate) struct Rig {
    pub(crate) now: Instant,
    pub(crate) client: ClientMachine,
    pub(crate) figures: Vec<PathFigures>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    /// One whose probes have been answered.
    pub(crate) fn with(config: Config) -> Self {
        let mut rig = Self::untested(config);
        rig.answer(0, 1);
        rig
    }

    pub(crate) fn untested(config: Config) -> Self {
        let mut rig = Self::early(config);
        rig.input(confirmed());
        rig
    }

    /// One that redirects, in whose download as much comes on both paths.
    pub(crate) fn redirecting() -> Self {
        let mut rig = Self::with(Config {
            strategy: Strategy::Reactive,
            ..Config::default()
        });
        rig.run(LOOK, &[1, 1]);
        rig
    }

    /// One whose handshake is not confirmed yet.
    pub(crate) fn early(config: Config) -> Self {
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

    pub(crate) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.client.poll()).collect()
    }

    pub(crate) fn input(&mut self, input: Input) -> Vec<Output> {
        self.client.handle(self.now, input);
        self.outputs()
    }

    pub(crate) fn open(&mut self, path: u32, from: u8, to: u8) -> Vec<Output> {
        let (local, remote) = (local(from), server(to));
        self.input(Input::PathOpen {
            path,
            local,
            remote,
        })
    }

    pub(crate) fn gone(&mut self, path: u32) -> Vec<Output> {
        self.figures.retain(|figures| figures.id != path);
        self.input(Input::PathGone { path })
    }

    pub(crate) fn refused(&mut self, from: u8, to: u8, refusal: Refusal) -> Vec<Output> {
        self.input(Input::PathRefused {
            local: local(from),
            remote: server(to),
            refusal,
        })
    }

    pub(crate) fn locals(&mut self, hosts: impl IntoIterator<Item = u8>) -> Vec<Output> {
        self.input(Input::Locals(hosts.into_iter().map(local).collect()))
    }

    /// Has the server announce a move to these servers.
    pub(crate) fn announce(&mut self, sequence: u64, targets: &[u8], lead: Duration) {
        self.input(Input::Frame(Frame::Migration {
            sequence,
            targets: targets.iter().copied().map(server).collect(),
            outage: SECOND,
            lead,
        }));
    }

    /// Has the server announce a move to server 2, and park.
    pub(crate) fn park(&mut self) {
        self.announce(1, &[2], SECOND);
        self.input(Input::Frame(Frame::Parked { sequence: 1 }));
    }

    pub(crate) fn answer(&mut self, from: u8, remote: u8) -> Vec<Output> {
        self.input(Input::Answer {
            local: local(from),
            remote: server(remote),
            hint: hint(false),
        })
    }

    /// Looks for so long, while so much comes on each path between two looks.
    pub(crate) fn run(&mut self, time: Duration, received: &[u64]) -> Vec<Output> {
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

pub(crate) fn open(from: u8, to: u8) -> Output {
    Output::Open {
        local: local(from),
        remote: server(to),
    }
}

pub(crate) fn probe(from: u8, to: u8) -> Output {
    Output::ProbeFrom {
        local: local(from),
        target: server(to),
    }
}
