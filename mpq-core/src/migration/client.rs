//! The client's machine: keeps a path from every interface to the server, through its moves.
//!
//! The strategy is `multipath`: the old paths carry the download until the server parks, the new
//! address is found by cheap probes or by the server's knock, and paths are opened there from every
//! interface at once. Nothing but probes goes to an address before QUIC has validated it, and an
//! answer there is only a hint to try. Announced addresses must pass [`policy`](super::policy).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::frame::Frame;
use super::policy;
use crate::path::probe::Token;

/// What a client may be told to do otherwise.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long the server may be silent in a move before it is given up.
    pub deadline: Duration,
    /// Capabilities to say HELLO with.
    pub capabilities: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(300),
            capabilities: Frame::MULTIPATH,
        }
    }
}

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The server said this.
    Frame(Frame),
    /// The local addresses that paths may be opened from, all of them.
    Locals(Vec<IpAddr>),
    /// The round-trip time, smoothed.
    Rtt(Duration),
    /// Something came from the server over a path.
    Heard,
    /// Whether a download is running, so that silence means something.
    Expecting(bool),
    /// Somebody answers at a target of the announcement. A hint, not a proof.
    Answer {
        /// Where it comes from.
        remote: SocketAddr,
        /// Whether the server knocked, rather than answered a probe.
        knock: bool,
    },
    /// A path was validated.
    PathOpen {
        /// QUIC's path id.
        path: u32,
        /// Its local address.
        local: IpAddr,
        /// Its remote address.
        remote: SocketAddr,
    },
    /// A path could not be opened; `retry` says that it may work later.
    PathRefused {
        /// The local address.
        local: IpAddr,
        /// The remote address.
        remote: SocketAddr,
        /// Whether to try again.
        retry: bool,
    },
    /// A path is no more.
    PathGone {
        /// QUIC's path id.
        path: u32,
    },
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to the server.
    Send(Frame),
    /// Send a probe to every one of these addresses from every local address.
    Probe(Vec<SocketAddr>),
    /// Listen for the knock with this token; for none any more.
    Listen(Option<Token>),
    /// Open and validate a path.
    Open {
        /// From here.
        local: IpAddr,
        /// To there.
        remote: SocketAddr,
    },
    /// Give up the paths to this address that are not validated yet.
    Abandon(SocketAddr),
    /// Close a path.
    Close {
        /// QUIC's path id.
        path: u32,
    },
    /// For whoever watches.
    Event(Event),
}

/// What an onlooker wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server will move.
    Announced {
        /// Of the announcement.
        sequence: u64,
        /// Those of the announced addresses that are acceptable.
        targets: Vec<SocketAddr>,
        /// Time until it parks.
        lead: Duration,
        /// How long it expects to be away.
        outage: Duration,
    },
    /// An announcement was not acceptable.
    Refused {
        /// Of the announcement.
        sequence: u64,
    },
    /// The server is about to be frozen.
    Parked {
        /// Of the announcement.
        sequence: u64,
    },
    /// The server fell silent without parking.
    Silent,
    /// Somebody answers at a target.
    Detected {
        /// Where.
        remote: SocketAddr,
        /// By a knock, rather than by the answer to a probe.
        knock: bool,
    },
    /// The first path to the new address is validated.
    Moved {
        /// Of the announcement.
        sequence: u64,
        /// The server's address from now on.
        remote: SocketAddr,
    },
    /// The server stays.
    Cancelled {
        /// Of the announcement.
        sequence: u64,
    },
    /// The server was silent for longer than the deadline.
    Failed,
}

/// Probes of one move, all addresses together.
const MAX_PROBES: u32 = 4_000;
/// Between two rounds of probes: while the server still delivers.
const SLOW_PROBES: Duration = Duration::from_secs(1);
/// The same, once it is silent, at first at the least, and in the end.
const FIRST_PROBES: Duration = Duration::from_millis(20);
const LAST_PROBES: Duration = Duration::from_millis(250);
/// Silence of a server that is expected to send, in RTT and at the least, until it is believed.
const SILENCE_RTTS: u32 = 4;
const LEAST_SILENCE: Duration = Duration::from_millis(300);
/// How long whoever answers may take to become a path, in RTT and at the least, before the search
/// goes on; and how often a probe's answer is followed up in one move, since each time may cost path
/// ids that a frozen server cannot grant again. A knock is the server's own and always followed up.
const ATTEMPT_RTTS: u32 = 8;
const LEAST_ATTEMPT: Duration = Duration::from_secs(2);
const MAX_ATTEMPTS: u32 = 3;
/// Before an opening is tried again: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// The machine of one connection.
#[derive(Debug)]
pub struct Client {
    config: Config,
    state: State,
    /// The server's present address.
    remote: SocketAddr,
    locals: Vec<IpAddr>,
    paths: Vec<Path>,
    openings: Vec<Opening>,
    newest: u64,
    rtt: Duration,
    heard: Instant,
    expecting: bool,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum State {
    /// No move is under way.
    Settled,
    /// A move is announced; the old paths work.
    Announced(Move),
    /// The server is silent: since it parked, or for no known reason.
    Searching(Move, Silence),
    /// Somebody answers at a target; paths to it are being validated.
    Arriving(Move, Silence, Attempt),
}

#[derive(Debug, Clone)]
struct Move {
    sequence: u64,
    targets: Vec<SocketAddr>,
    probe_at: Instant,
    interval: Duration,
    probes_left: u32,
    attempts_left: u32,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    target: SocketAddr,
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    deadline: Instant,
    parked: bool,
}

#[derive(Debug)]
struct Path {
    id: u32,
    local: IpAddr,
    remote: SocketAddr,
    /// Its closing was asked for.
    closing: bool,
}

#[derive(Debug)]
struct Opening {
    local: IpAddr,
    remote: SocketAddr,
    /// When to try again, if it was refused; `None` while under way.
    retry_at: Option<Instant>,
    backoff: Duration,
}

impl Client {
    /// A machine for a connection to `remote`, whose first path is open from `local`.
    pub fn new(now: Instant, config: Config, local: IpAddr, remote: SocketAddr) -> Self {
        let hello = Frame::Hello {
            capabilities: config.capabilities,
        };
        Self {
            config,
            state: State::Settled,
            remote,
            locals: vec![local],
            paths: vec![Path {
                id: 0,
                local,
                remote,
                closing: false,
            }],
            openings: Vec::new(),
            newest: 0,
            rtt: LEAST_SILENCE,
            heard: now,
            expecting: false,
            outputs: VecDeque::from([Output::Send(hello)]),
        }
    }

    /// The server's present address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether a move is under way.
    pub fn is_moving(&self) -> bool {
        !matches!(self.state, State::Settled)
    }

    /// Something happened.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Frame(frame) => self.frame(now, frame),
            Input::Locals(locals) => {
                self.openings.retain(|o| locals.contains(&o.local));
                self.locals = locals;
                self.close_stale();
            }
            Input::Rtt(rtt) => self.rtt = rtt,
            Input::Heard => {
                self.heard = now;
                if let State::Searching(mv, Silence { parked: false, .. }) = &self.state {
                    let mut mv = mv.clone();
                    mv.interval = self.slow_interval();
                    mv.probe_at = now + mv.interval;
                    self.state = State::Announced(mv);
                }
            }
            Input::Expecting(expecting) => {
                self.expecting = expecting;
                self.heard = now;
            }
            Input::Answer { remote, knock } => self.answer(remote, knock, now),
            Input::PathOpen {
                path,
                local,
                remote,
            } => self.path_open(path, local, remote),
            Input::PathRefused {
                local,
                remote,
                retry,
            } => {
                let same = |o: &&mut Opening| (o.local, o.remote) == (local, remote);
                if let Some(opening) = self.openings.iter_mut().find(same) {
                    // Without a time to try again it stays on the list, and is not opened again.
                    opening.retry_at = retry.then(|| now + opening.backoff);
                    opening.backoff = (opening.backoff * 2).min(LAST_RETRY);
                }
            }
            Input::PathGone { path } => self.path_gone(path, now),
        }
        self.open_missing();
    }

    /// What is due at `now` is done.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let State::Announced(mv) = &self.state
            && self.expecting
            && now >= self.heard + self.silence()
        {
            let mv = mv.clone();
            self.outputs.push_back(Output::Event(Event::Silent));
            self.search(mv, false, now);
        }
        if let State::Searching(mv, silence) | State::Arriving(mv, silence, _) = &self.state
            && now >= silence.deadline
        {
            // A server that still speaks where it was has not moved, whatever answered elsewhere.
            let event = match now < self.heard + self.silence() {
                true => Event::Cancelled {
                    sequence: mv.sequence,
                },
                false => Event::Failed,
            };
            self.settle();
            self.outputs.push_back(Output::Event(event));
        }
        if let State::Arriving(mv, silence, attempt) = &self.state
            && now >= attempt.until
        {
            let (mut mv, silence) = (mv.clone(), *silence);
            mv.probe_at = now;
            self.abandon_attempt();
            self.state = State::Searching(mv, silence);
        }
        if self.probe_at().is_some_and(|at| now >= at) {
            self.probe(now);
        }
        let destination = self.destination();
        for opening in &mut self.openings {
            if Some(opening.remote) == destination && opening.retry_at.is_some_and(|at| at <= now) {
                opening.retry_at = None;
                let (local, remote) = (opening.local, opening.remote);
                self.outputs.push_back(Output::Open { local, remote });
            }
        }
        self.open_missing();
    }

    /// When [`Client::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let destination = self.destination();
        let wanted = |o: &&Opening| Some(o.remote) == destination;
        let retries = self.openings.iter().filter(wanted);
        let deadline = match &self.state {
            State::Settled => None,
            State::Announced(_) => self.expecting.then(|| self.heard + self.silence()),
            State::Searching(_, silence) => Some(silence.deadline),
            State::Arriving(_, silence, attempt) => Some(silence.deadline.min(attempt.until)),
        };
        retries
            .filter_map(|o| o.retry_at)
            .chain(self.probe_at())
            .chain(deadline)
            .min()
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn frame(&mut self, now: Instant, frame: Frame) {
        match frame {
            Frame::Migration {
                sequence,
                targets,
                outage,
                lead,
                token,
            } => {
                if sequence <= self.newest {
                    return;
                }
                self.newest = sequence;
                self.settle();
                let current = self.remote.ip();
                let mut targets = targets;
                targets.retain(|target| {
                    policy::acceptable(current, *target) && *target != self.remote
                });
                if targets.is_empty() {
                    return self
                        .outputs
                        .push_back(Output::Event(Event::Refused { sequence }));
                }
                self.heard = now;
                self.state = State::Announced(Move {
                    sequence,
                    targets: targets.clone(),
                    probe_at: now + self.slow_interval(),
                    interval: self.slow_interval(),
                    probes_left: MAX_PROBES,
                    attempts_left: MAX_ATTEMPTS,
                });
                self.outputs.push_back(Output::Listen(Some(token)));
                self.outputs
                    .push_back(Output::Send(Frame::Ready { sequence }));
                let event = Event::Announced {
                    sequence,
                    targets,
                    lead,
                    outage,
                };
                self.outputs.push_back(Output::Event(event));
            }
            Frame::Parked { sequence } => {
                if let State::Announced(mv) | State::Searching(mv, _) = &self.state
                    && mv.sequence == sequence
                {
                    let mv = mv.clone();
                    self.outputs
                        .push_back(Output::Event(Event::Parked { sequence }));
                    self.search(mv, true, now);
                }
            }
            Frame::Cancelled { sequence } => {
                if self.current().is_some_and(|mv| mv.sequence == sequence) {
                    self.settle();
                    self.outputs
                        .push_back(Output::Event(Event::Cancelled { sequence }));
                }
            }
            // Only a confirmation: by then a path to the new address is validated.
            Frame::Arrived { .. } => {}
            // A client's frames; a server has no reason to send them.
            Frame::Hello { .. } | Frame::Ready { .. } => {}
        }
    }

    fn search(&mut self, mut mv: Move, parked: bool, now: Instant) {
        mv.interval = self.rtt.max(FIRST_PROBES);
        mv.probe_at = now + mv.interval;
        let deadline = now + self.config.deadline;
        self.state = State::Searching(mv, Silence { deadline, parked });
    }

    fn answer(&mut self, remote: SocketAddr, knock: bool, now: Instant) {
        let (mv, silence) = match &self.state {
            State::Searching(mv, silence) => (mv, *silence),
            // Another one's answer led us astray.
            State::Arriving(mv, silence, attempt) if knock && attempt.target != remote => {
                (mv, *silence)
            }
            // PARKED may have been lost with the old paths; the knock says the same.
            State::Announced(mv) if knock => {
                let deadline = now + self.config.deadline;
                let parked = true;
                (mv, Silence { deadline, parked })
            }
            _ => return,
        };
        if !mv.targets.contains(&remote) || !(knock || mv.attempts_left > 0) {
            return;
        }
        let mut mv = mv.clone();
        mv.attempts_left = mv.attempts_left.saturating_sub(1);
        self.abandon_attempt();
        let until = now + LEAST_ATTEMPT.max(self.rtt * ATTEMPT_RTTS);
        let attempt = Attempt {
            target: remote,
            until,
        };
        self.state = State::Arriving(mv, silence, attempt);
        self.outputs
            .push_back(Output::Event(Event::Detected { remote, knock }));
    }

    fn path_open(&mut self, id: u32, local: IpAddr, remote: SocketAddr) {
        self.openings
            .retain(|o| (o.local, o.remote) != (local, remote));
        self.paths.retain(|p| p.id != id);
        self.paths.push(Path {
            id,
            local,
            remote,
            closing: false,
        });
        if let State::Arriving(Move { sequence, .. }, _, attempt) = self.state
            && attempt.target == remote
        {
            let old = std::mem::replace(&mut self.remote, remote);
            if self.openings.iter().any(|o| o.remote == old) {
                self.openings.retain(|o| o.remote != old);
                self.outputs.push_back(Output::Abandon(old));
            }
            self.state = State::Settled;
            self.outputs.push_back(Output::Listen(None));
            self.outputs
                .push_back(Output::Event(Event::Moved { sequence, remote }));
        }
        self.close_stale();
    }

    fn path_gone(&mut self, id: u32, now: Instant) {
        let Some(index) = self.paths.iter().position(|p| p.id == id) else {
            return;
        };
        let path = self.paths.remove(index);
        // Whoever took it away may do so again: no haste.
        if !path.closing && self.locals.contains(&path.local) {
            self.openings.push(Opening {
                local: path.local,
                remote: path.remote,
                retry_at: Some(now + LAST_RETRY),
                backoff: LAST_RETRY,
            });
        }
    }

    /// Closes the paths from where we or to where the server is no more, if there is a better one.
    fn close_stale(&mut self) {
        let (remote, locals) = (self.remote, &self.locals);
        let wanted = |p: &Path| p.remote == remote && locals.contains(&p.local);
        if !self.paths.iter().any(|p| wanted(p) && !p.closing) {
            return;
        }
        for path in self.paths.iter_mut().filter(|p| !wanted(p) && !p.closing) {
            path.closing = true;
            self.outputs.push_back(Output::Close { path: path.id });
        }
    }

    fn probe(&mut self, now: Instant) {
        let (round, slowest) = (self.round(), LAST_PROBES.max(self.rtt));
        if let State::Announced(mv) | State::Searching(mv, _) = &mut self.state {
            mv.probes_left -= round;
            mv.probe_at = now + mv.interval;
            self.outputs.push_back(Output::Probe(mv.targets.clone()));
        }
        if let State::Searching(mv, _) = &mut self.state {
            mv.interval = (mv.interval * 5 / 4).min(slowest);
        }
    }

    /// When the next round of probes is due; never once those of this move are used up.
    fn probe_at(&self) -> Option<Instant> {
        let (mv, kept) = match &self.state {
            // They open the way for the knock through firewalls. Half are kept for the search.
            State::Announced(mv) => (mv, MAX_PROBES / 2),
            State::Searching(mv, _) => (mv, 0),
            State::Settled | State::Arriving(..) => return None,
        };
        (mv.probes_left >= kept + self.round()).then_some(mv.probe_at)
    }

    /// Probes in a round: from every local address to every target.
    fn round(&self) -> u32 {
        let targets = self.current().map_or(0, |mv| mv.targets.len());
        u32::try_from(targets * self.locals.len()).unwrap_or(u32::MAX / 2)
    }

    fn slow_interval(&self) -> Duration {
        SLOW_PROBES.max(self.rtt * 4)
    }

    fn abandon_attempt(&mut self) {
        if let State::Arriving(_, _, Attempt { target, .. }) = self.state {
            self.openings.retain(|o| o.remote != target);
            self.outputs.push_back(Output::Abandon(target));
        }
    }

    /// Forgets the move that is under way, if any, and leaves no trace of it.
    fn settle(&mut self) {
        self.abandon_attempt();
        if self.is_moving() {
            self.outputs.push_back(Output::Listen(None));
        }
        self.state = State::Settled;
    }

    /// Opens what is missing: a path from every local address to where the server is.
    fn open_missing(&mut self) {
        let Some(remote) = self.destination() else {
            return;
        };
        for &local in &self.locals {
            let here = |l: IpAddr, r: SocketAddr| (l, r) == (local, remote);
            let open = |p: &Path| here(p.local, p.remote) && !p.closing;
            let there = self.paths.iter().any(open)
                || self.openings.iter().any(|o| here(o.local, o.remote));
            if !there {
                self.openings.push(Opening {
                    local,
                    remote,
                    retry_at: None,
                    backoff: FIRST_RETRY,
                });
                self.outputs.push_back(Output::Open { local, remote });
            }
        }
    }

    /// Where paths may be opened to; nowhere while the server is silent, since it cannot answer.
    fn destination(&self) -> Option<SocketAddr> {
        match self.state {
            State::Arriving(_, _, attempt) => Some(attempt.target),
            State::Searching(..) => None,
            State::Settled | State::Announced(_) => Some(self.remote),
        }
    }

    fn current(&self) -> Option<&Move> {
        match &self.state {
            State::Settled => None,
            State::Announced(mv) | State::Searching(mv, _) | State::Arriving(mv, _, _) => Some(mv),
        }
    }

    fn silence(&self) -> Duration {
        (self.rtt * SILENCE_RTTS).max(LEAST_SILENCE)
    }

    /// The name of the state, for tables and logs.
    pub fn state(&self) -> &'static str {
        match &self.state {
            State::Settled => "Settled",
            State::Announced(_) => "Announced",
            State::Searching(_, silence) if silence.parked => "Searching (parked)",
            State::Searching(..) => "Searching (silent)",
            State::Arriving(..) => "Arriving",
        }
    }
}
