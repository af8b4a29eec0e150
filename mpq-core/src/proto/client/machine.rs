//! The client's machine: keeps a path from every interface to the server, through its moves.
//!
//! What is described here is the default [`Strategy`]; the others differ in the points that its
//! module lists. The old paths carry the download until the server parks, the new address is found
//! by cheap probes or by the server's knock, and paths are opened there from every interface at
//! once. A server that falls silent without a word is looked for at the addresses of its pool, and
//! followed if it knocks from elsewhere.
//!
//! Nothing but probes goes to an address before it is validated, and an answer there is only a hint
//! to try. All addresses must pass [`policy`](crate::proto::policy).

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::strategy::Strategy;
use crate::proto::frame::{Frame, MAX_ADDRESSES};
use crate::proto::policy;

/// What a client may be told to do otherwise.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long the server may be silent in a move before it is given up.
    pub deadline: Duration,
    /// How it follows.
    pub strategy: Strategy,
    /// Sends the connection's datagrams to an address that nobody has validated, as the papers of
    /// the redirecting strategies do. For testbeds only.
    pub allow_unvalidated: bool,
    /// How long to wait with going to a new address once somebody answers there. Chosen at random
    /// by whoever drives the machine, so that a herd of clients does not arrive at once.
    pub hold_back: Duration,
    /// Capabilities to say HELLO with.
    pub capabilities: u64,
    /// Of the times between probes, so that those of different clients do not come together.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(300),
            strategy: Strategy::default(),
            allow_unvalidated: false,
            hold_back: Duration::ZERO,
            capabilities: Frame::MULTIPATH,
            seed: 0,
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
    /// Something came from the server over a validated path.
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
    /// Send the datagrams of QUIC's paths to this address instead, and take those from there for
    /// theirs; to nobody, if there is none.
    Redirect(Option<SocketAddr>),
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
    /// Where else the server may be found.
    Addresses {
        /// Those of its addresses that are acceptable.
        pool: Vec<SocketAddr>,
        /// A DNS name that leads to it.
        name: Option<String>,
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
    /// The server fell silent without parking, or without any word.
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
        /// Of the newest announcement; 0 if there was none.
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
/// The part of a time between two rounds by which it may be longer or shorter, both together.
const JITTER: f64 = 0.5;
/// Silence of a server that is expected to send, in RTT and at the least, until it is believed.
const SILENCE_RTTS: u32 = 4;
const LEAST_SILENCE: Duration = Duration::from_millis(300);
/// The same for one that has not said that it would go.
const LEAST_UNANNOUNCED: Duration = Duration::from_secs(1);
/// `proactive`: until the announcement is acknowledged, and READY on its way.
const LEAVING: Duration = Duration::from_millis(50);
/// How long whoever answers may take to become a path, in RTT and at the least, before the search
/// goes on.
const ATTEMPT_RTTS: u32 = 8;
const LEAST_ATTEMPT: Duration = Duration::from_secs(2);
/// How often answers of probes are followed up in one move, and knocks until the next, since each
/// time may cost path ids that a frozen server cannot grant again, or send a datagram to whoever is
/// named by a knock that somebody repeats. A knock is more likely the server's own.
const MAX_ATTEMPTS: u32 = 3;
const MAX_KNOCKS: u32 = 8;
/// How long whoever turned out not to be the server is passed over for others that may answer.
const OTHERS_FIRST: Duration = Duration::from_secs(1);
/// `paper`: how long the detection path may take until it is opened anew, at first (doubled each
/// time), and how often it is; the last one stays, for the path ids come to an end.
const FIRST_ROUND: Duration = Duration::from_secs(1);
const MAX_ROUNDS: u32 = 4;
/// Before an opening is tried again: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// The machine of one connection.
#[derive(Debug)]
pub struct Client {
    config: Config,
    state: State,
    /// The server's first address, which QUIC's paths keep if datagrams are redirected.
    origin: SocketAddr,
    /// The server's present address.
    remote: SocketAddr,
    /// Where redirected datagrams go.
    redirected: Option<SocketAddr>,
    pool: Vec<SocketAddr>,
    locals: Vec<IpAddr>,
    paths: Vec<Path>,
    openings: Vec<Opening>,
    newest: u64,
    /// How many knocks are still followed up, until the server is at another address or says that
    /// it will be.
    knocks_left: u32,
    rtt: Duration,
    heard: Instant,
    expecting: bool,
    rng: fastrand::Rng,
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
    /// Somebody answers at a target; it is being found out whether it is the server.
    Arriving(Move, Silence, Attempt),
}

#[derive(Debug, Clone)]
struct Move {
    /// Of the newest announcement.
    sequence: u64,
    /// Whether that is what the move is for; else the server went without a word.
    announced: bool,
    targets: Vec<SocketAddr>,
    /// The announcement names the address, too, at which the server is already.
    here: bool,
    probe_at: Instant,
    interval: Duration,
    probes_left: u32,
    attempts_left: u32,
    /// Who answered and was not the server; until then, others are preferred.
    failed: Vec<SocketAddr>,
    others_until: Instant,
    /// Somebody answers there, and is gone to at this time.
    held: Option<(Instant, SocketAddr)>,
    /// `proactive`: when the old address is left.
    leave_at: Option<Instant>,
    detection: Detection,
    /// Which target was gone to unvalidated last.
    blind: usize,
}

/// `paper`: the path that is opened over and over until it succeeds.
#[derive(Debug, Clone, Default)]
struct Detection {
    /// From where; once the server is silent, from everywhere.
    local: Option<IpAddr>,
    round: u32,
    /// When the next round begins.
    next: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    target: SocketAddr,
    since: Instant,
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
            rng: fastrand::Rng::with_seed(config.seed),
            config,
            state: State::Settled,
            origin: remote,
            remote,
            redirected: Some(remote),
            pool: Vec::new(),
            locals: vec![local],
            paths: vec![Path {
                id: 0,
                local,
                remote,
                closing: false,
            }],
            openings: Vec::new(),
            newest: 0,
            knocks_left: MAX_KNOCKS,
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

    /// The address that QUIC's paths lead to: the present one, or the first one if datagrams are
    /// redirected.
    pub fn path_remote(&self) -> SocketAddr {
        match self.config.strategy.redirects() {
            true => self.origin,
            false => self.remote,
        }
    }

    /// Whether an announced move is under way.
    pub fn is_moving(&self) -> bool {
        self.current().is_some_and(|mv| mv.announced)
    }

    /// Whether no move is under way, announced or not.
    pub fn is_settled(&self) -> bool {
        self.current().is_none()
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
            Input::Heard => self.heard(now),
            Input::Expecting(expecting) => {
                self.expecting = expecting;
                self.heard = now;
            }
            Input::Answer { remote, knock } => self.answer(remote, knock, now),
            Input::PathOpen {
                path,
                local,
                remote,
            } => self.path_open(now, path, local, remote),
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
        if self.leave_at().is_some_and(|at| now >= at) {
            self.leave(now);
        }
        self.give_up(now);
        self.end_attempt(now);
        if self.round_at().is_some_and(|at| now >= at) {
            self.next_round(now);
        }
        if let State::Searching(mv, silence) = &self.state
            && let Some((at, target)) = mv.held
            && now >= at
        {
            let (mv, silence) = (mv.clone(), *silence);
            self.attempt(mv, silence, target, now);
        }
        if self.probe_at().is_some_and(|at| now >= at) {
            self.probe(now);
        }
        self.retry_openings(now);
        self.open_missing();
    }

    /// When [`Client::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let wanted = |o: &&Opening| self.destination(o.local) == Some(o.remote);
        let retries = self.openings.iter().filter(wanted);
        let (search, held) = match &self.state {
            State::Settled | State::Announced(_) => (None, None),
            State::Searching(mv, silence) => (Some(silence.deadline), mv.held.map(|(at, _)| at)),
            State::Arriving(_, silence, attempt) => {
                (Some(silence.deadline.min(attempt.until)), None)
            }
        };
        retries
            .filter_map(|o| o.retry_at)
            .chain(self.leave_at())
            .chain(self.round_at())
            .chain(self.probe_at())
            .chain(search)
            .chain(held)
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
            } => {
                if sequence <= self.newest || !self.config.strategy.heeds_announcements() {
                    return;
                }
                // What is redirected comes from there only.
                if let State::Arriving(_, _, attempt) = &self.state
                    && self.config.strategy.redirects()
                {
                    self.arrive(attempt.target, now);
                }
                self.newest = sequence;
                self.knocks_left = MAX_KNOCKS;
                let was_here = targets.contains(&self.remote);
                let targets = self.acceptable(targets);
                let event = Event::Announced {
                    sequence,
                    targets: targets.clone(),
                    lead,
                    outage,
                };
                // A knock was faster: the server is there already.
                if let State::Arriving(mv, _, attempt) = &mut self.state
                    && targets.contains(&attempt.target)
                {
                    (mv.sequence, mv.announced, mv.targets) = (sequence, true, targets);
                    return self.event(event);
                }
                self.settle();
                if targets.is_empty() {
                    if !was_here {
                        self.event(Event::Refused { sequence });
                    }
                    return;
                }
                self.heard = now;
                let mut mv = self.new_move(true, targets, now);
                mv.here = was_here;
                match self.config.strategy {
                    Strategy::Proactive => mv.leave_at = Some(now + LEAVING),
                    Strategy::Paper => mv.detection = self.sacrifice_a_path(now),
                    _ => {}
                }
                self.state = State::Announced(mv);
                self.outputs
                    .push_back(Output::Send(Frame::Ready { sequence }));
                self.event(event);
            }
            Frame::Parked { sequence } => {
                if let State::Announced(mv) | State::Searching(mv, _) = &self.state
                    && (mv.announced, mv.sequence) == (true, sequence)
                {
                    let mv = mv.clone();
                    self.event(Event::Parked { sequence });
                    self.search(mv, true, now);
                }
            }
            Frame::Cancelled { sequence } => {
                let this = |mv: &Move| mv.announced && mv.sequence == sequence;
                if self.current().is_some_and(this) {
                    self.settle();
                    self.event(Event::Cancelled { sequence });
                }
            }
            Frame::Addresses { pool, name } => {
                let current = self.remote.ip();
                self.pool = pool;
                self.pool.retain(|a| policy::acceptable(current, *a));
                let pool = self.pool.clone();
                self.event(Event::Addresses { pool, name });
            }
            // Mostly only a confirmation. But the path's own event may be late; and so may be the
            // announcement, of a move that was followed without it. Of an attempt that was given up, the
            // search goes on. What is redirected comes from there only, also where nothing was announced.
            Frame::Arrived { sequence } => {
                let this = |mv: &Move| match mv.announced {
                    true => mv.sequence == sequence,
                    false => self.config.strategy.redirects() && sequence > self.newest,
                };
                let arrived =
                    self.current()
                        .filter(|mv| this(mv))
                        .and_then(|mv| match &self.state {
                            State::Arriving(_, _, attempt) => Some(attempt.target),
                            _ if self.config.strategy == Strategy::Paper => {
                                Some(mv.detection_target())
                            }
                            _ => mv.here.then_some(self.remote),
                        });
                if let Some(remote) = arrived {
                    self.arrive(remote, now);
                }
            }
            // A client's frames; a server has no reason to send them.
            Frame::Hello { .. } | Frame::Ready { .. } => {}
        }
    }

    fn heard(&mut self, now: Instant) {
        self.heard = now;
        match &self.state {
            State::Searching(mv, Silence { parked: false, .. }) => {
                let mut mv = mv.clone();
                mv.interval = self.slow_interval();
                mv.probe_at = now + mv.interval;
                mv.held = None;
                self.state = match mv.announced {
                    true => State::Announced(mv),
                    false => State::Settled,
                };
            }
            // What was under way before the redirection does not count.
            State::Arriving(_, _, attempt)
                if self.config.strategy.redirects() && now >= attempt.since + self.rtt / 2 =>
            {
                let target = attempt.target;
                self.arrive(target, now);
            }
            _ => {}
        }
    }

    /// When the old address is left: it is silent, or the strategy does not wait for that.
    fn leave_at(&self) -> Option<Instant> {
        let silent_at = |least| self.heard + self.silence(least);
        match &self.state {
            State::Announced(mv) => mv
                .leave_at
                .or(self.expecting.then(|| silent_at(LEAST_SILENCE))),
            State::Settled if self.expecting && self.config.strategy.heeds_pool() => {
                let somewhere = !self.elsewhere().is_empty();
                somewhere.then(|| silent_at(LEAST_UNANNOUNCED))
            }
            _ => None,
        }
    }

    fn leave(&mut self, now: Instant) {
        match &self.state {
            State::Announced(mv) => {
                let mv = mv.clone();
                let parked = mv.leave_at.is_some();
                if !parked {
                    self.event(Event::Silent);
                }
                self.search(mv, parked, now);
            }
            State::Settled => {
                let mv = self.new_move(false, self.elsewhere(), now);
                self.event(Event::Silent);
                self.search(mv, false, now);
            }
            _ => {}
        }
    }

    fn search(&mut self, mut mv: Move, parked: bool, now: Instant) {
        mv.interval = self.rtt.max(FIRST_PROBES);
        mv.probe_at = now + mv.interval.mul_f64(self.jitter());
        mv.leave_at = None;
        if self.config.strategy == Strategy::Paper && mv.detection.next.is_none() {
            mv.detection.next = Some(now + FIRST_ROUND);
        }
        let deadline = now + self.config.deadline;
        let silence = Silence { deadline, parked };
        if let Some(target) = self.unvalidated_target(&mut mv) {
            return self.attempt(mv, silence, target, now);
        }
        if self.config.strategy == Strategy::Proactive {
            self.redirect(None);
        }
        self.state = State::Searching(mv, silence);
    }

    fn answer(&mut self, remote: SocketAddr, knock: bool, now: Instant) {
        let strategy = self.config.strategy;
        if strategy == Strategy::Paper || (knock && !strategy.heeds_knocks()) {
            return;
        }
        if remote == self.remote {
            // It woke where it was; the paths to there are opened again.
            if let State::Searching(_, silence) = &mut self.state {
                silence.parked = false;
            }
            return;
        }
        let known = self
            .current()
            .is_some_and(|mv| mv.targets.contains(&remote));
        if knock && (!known || strategy.redirects()) {
            return self.knock_from_elsewhere(remote, now);
        }
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
        let mut mv = mv.clone();
        let others_first = !knock && now < mv.others_until && mv.failed.contains(&remote);
        if !known || others_first || mv.held.is_some() {
            return;
        }
        let left = match knock {
            true => &mut self.knocks_left,
            false => &mut mv.attempts_left,
        };
        // To redirect costs nothing that could run out.
        if !strategy.redirects() {
            let Some(fewer) = left.checked_sub(1) else {
                return;
            };
            *left = fewer;
        }
        self.event(Event::Detected { remote, knock });
        if self.config.hold_back.is_zero() {
            return self.attempt(mv, silence, remote, now);
        }
        self.abandon_attempt();
        mv.held = Some((now + self.config.hold_back, remote));
        self.state = State::Searching(mv, silence);
    }

    /// The server says that it is where nobody said it would be: it is asked there first.
    fn knock_from_elsewhere(&mut self, remote: SocketAddr, now: Instant) {
        // One that still speaks where it was has not moved.
        if now < self.heard + self.rtt || self.acceptable(vec![remote]).is_empty() {
            return;
        }
        let deadline = now + self.config.deadline;
        let (mut mv, silence) = match &self.state {
            State::Settled => {
                let parked = false;
                (
                    self.new_move(false, vec![], now),
                    Silence { deadline, parked },
                )
            }
            State::Searching(mv, silence) => (mv.clone(), *silence),
            State::Announced(_) | State::Arriving(..) => return,
        };
        let probes = self.facing(remote);
        if self.knocks_left == 0 || mv.probes_left < probes {
            return;
        }
        if !mv.targets.contains(&remote) {
            if mv.targets.len() >= MAX_ADDRESSES {
                return;
            }
            mv.targets.push(remote);
        }
        self.knocks_left -= 1;
        match self.unvalidated_target(&mut mv) {
            Some(_) => self.attempt(mv, silence, remote, now),
            None => {
                mv.probes_left -= probes;
                self.outputs.push_back(Output::Probe(vec![remote]));
                self.state = State::Searching(mv, silence);
            }
        }
    }

    /// Finds out whether it is the server that answers at `target`.
    fn attempt(&mut self, mut mv: Move, silence: Silence, target: SocketAddr, now: Instant) {
        self.abandon_attempt();
        mv.held = None;
        let until = now + LEAST_ATTEMPT.max(self.rtt * ATTEMPT_RTTS);
        let attempt = Attempt {
            target,
            since: now,
            until,
        };
        self.state = State::Arriving(mv, silence, attempt);
        if self.config.strategy.redirects() {
            self.redirect(Some(target));
            // What is being opened is to try its luck there now, and not when it would next.
            if !self.openings.is_empty() {
                self.abandon(self.path_remote());
            }
        }
    }

    fn end_attempt(&mut self, now: Instant) {
        let State::Arriving(mv, silence, attempt) = &self.state else {
            return;
        };
        if now < attempt.until {
            return;
        }
        let (mut mv, silence, failed) = (mv.clone(), *silence, attempt.target);
        mv.probe_at = now;
        if now >= mv.others_until {
            mv.failed.clear();
        }
        mv.failed.push(failed);
        mv.others_until = now + OTHERS_FIRST;
        if let Some(target) = self.unvalidated_target(&mut mv) {
            return self.attempt(mv, silence, target, now);
        }
        self.abandon_attempt();
        self.redirect(match self.config.strategy {
            Strategy::Proactive => None,
            _ => Some(self.remote),
        });
        self.state = State::Searching(mv, silence);
    }

    /// Ends a move that has reached its deadline.
    fn give_up(&mut self, now: Instant) {
        let (State::Searching(mv, silence) | State::Arriving(mv, silence, _)) = &self.state else {
            return;
        };
        if now < silence.deadline {
            return;
        }
        // A server that still speaks where it was has not moved, whatever answered elsewhere.
        let event = match now < self.heard + self.silence(LEAST_SILENCE) {
            true => Event::Cancelled {
                sequence: mv.sequence,
            },
            false => Event::Failed,
        };
        self.settle();
        self.event(event);
        // Whatever comes of it, the silence until now has had its consequence.
        self.heard = now;
    }

    /// The next target, if one may be gone to before anybody has answered there.
    fn unvalidated_target(&self, mv: &mut Move) -> Option<SocketAddr> {
        if !self.config.allow_unvalidated || !self.config.strategy.redirects() {
            return None;
        }
        let target = mv.targets.get(mv.blind % mv.targets.len().max(1)).copied();
        mv.blind += 1;
        target
    }

    /// `paper`: ends one of at least two paths, whose interface then looks for the new address.
    fn sacrifice_a_path(&mut self, now: Instant) -> Detection {
        let mut open = self.paths.iter_mut().filter(|p| !p.closing);
        let (Some(_), Some(path)) = (open.next(), open.next_back()) else {
            return Detection::default();
        };
        path.closing = true;
        self.outputs.push_back(Output::Close { path: path.id });
        Detection {
            local: Some(path.local),
            round: 0,
            next: Some(now + FIRST_ROUND),
        }
    }

    /// `paper`: when the detection paths are opened anew.
    fn round_at(&self) -> Option<Instant> {
        match &self.state {
            State::Announced(mv) | State::Searching(mv, _) => mv.detection.next,
            State::Settled | State::Arriving(..) => None,
        }
    }

    fn next_round(&mut self, now: Instant) {
        let (State::Announced(mv) | State::Searching(mv, _)) = &mut self.state else {
            return;
        };
        let old = mv.detection_target();
        let detection = &mut mv.detection;
        detection.round += 1;
        let more = detection.round < MAX_ROUNDS;
        detection.next = more.then(|| now + FIRST_ROUND * (1 << detection.round));
        self.abandon(old);
    }

    fn path_open(&mut self, now: Instant, id: u32, local: IpAddr, remote: SocketAddr) {
        self.openings
            .retain(|o| (o.local, o.remote) != (local, remote));
        self.paths.retain(|p| p.id != id);
        self.paths.push(Path {
            id,
            local,
            remote,
            closing: false,
        });
        let arrived = match &self.state {
            _ if self.config.strategy.redirects() => false,
            State::Arriving(_, _, attempt) => attempt.target == remote,
            State::Announced(mv) | State::Searching(mv, _) => {
                self.config.strategy == Strategy::Paper && mv.targets.contains(&remote)
            }
            State::Settled => false,
        };
        if arrived {
            self.arrive(remote, now);
        }
        self.close_stale();
    }

    /// The server is at `remote`.
    fn arrive(&mut self, remote: SocketAddr, now: Instant) {
        let sequence = self.newest;
        self.remote = remote;
        self.knocks_left = MAX_KNOCKS;
        self.heard = now;
        let path_remote = self.path_remote();
        let elsewhere = self.openings.iter().map(|o| o.remote);
        let elsewhere: BTreeSet<_> = elsewhere.filter(|r| *r != path_remote).collect();
        elsewhere.into_iter().for_each(|old| self.abandon(old));
        self.state = State::Settled;
        self.event(Event::Moved { sequence, remote });
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
        // The last one: the peer waits for another one only for a short time (draft-ietf-quic-multipath
        // §3.4).
        if self.paths.is_empty() {
            let waiting = self.openings.iter_mut().filter_map(|o| o.retry_at.as_mut());
            waiting.for_each(|at| *at = now);
        }
    }

    /// Closes the paths from where we or to where the server is no more, if there is a better one.
    fn close_stale(&mut self) {
        let (remote, locals) = (self.path_remote(), &self.locals);
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
        let (cut_off, jitter) = (self.is_cut_off(), self.jitter());
        if let State::Announced(mv) | State::Searching(mv, _) = &mut self.state {
            mv.probes_left -= round;
            mv.probe_at = now + mv.interval.mul_f64(jitter);
            let there = cut_off.then_some(self.remote);
            let targets = mv.targets.iter().copied().chain(there).collect();
            self.outputs.push_back(Output::Probe(targets));
        }
        if let State::Searching(mv, _) = &mut self.state {
            mv.interval = (mv.interval * 5 / 4).min(slowest);
        }
    }

    /// By what a time between probes is multiplied.
    fn jitter(&mut self) -> f64 {
        1.0 + (self.rng.f64() - 0.5) * JITTER
    }

    /// When the next round of probes is due; never once those of this move are used up.
    fn probe_at(&self) -> Option<Instant> {
        let (mv, kept) = match &self.state {
            _ if self.config.strategy == Strategy::Paper => return None,
            // They open the way for the knock through firewalls. Half are kept for the search.
            State::Announced(mv) => (mv, MAX_PROBES / 2),
            State::Searching(mv, _) => (mv, 0),
            State::Settled | State::Arriving(..) => return None,
        };
        (mv.probes_left >= kept + self.round()).then_some(mv.probe_at)
    }

    /// Probes in a round: from every local address to every target, and to where the server was if
    /// it could not tell us that it stays.
    fn round(&self) -> u32 {
        let targets = self.current().into_iter().flat_map(|mv| &mv.targets);
        let there = self.is_cut_off().then_some(&self.remote);
        targets
            .chain(there)
            .map(|target| self.facing(*target))
            .sum()
    }

    /// The local addresses of the family of a remote one.
    fn facing(&self, remote: SocketAddr) -> u32 {
        let facing = |l: &&IpAddr| l.is_ipv4() == remote.is_ipv4();
        self.locals.iter().filter(facing).count() as u32
    }

    /// Whether no path is left by which the server could be heard where it was.
    fn is_cut_off(&self) -> bool {
        let here = |path: &Path| self.locals.contains(&path.local);
        !self.paths.iter().any(here)
    }

    fn slow_interval(&self) -> Duration {
        SLOW_PROBES.max(self.rtt * 4)
    }

    fn new_move(&self, announced: bool, targets: Vec<SocketAddr>, now: Instant) -> Move {
        Move {
            sequence: self.newest,
            announced,
            targets,
            here: false,
            probe_at: now + self.slow_interval(),
            interval: self.slow_interval(),
            probes_left: MAX_PROBES,
            attempts_left: MAX_ATTEMPTS,
            failed: Vec::new(),
            others_until: now,
            held: None,
            leave_at: None,
            detection: Detection::default(),
            blind: 0,
        }
    }

    /// Where the server may be, should it have gone without a word.
    fn elsewhere(&self) -> Vec<SocketAddr> {
        let known: BTreeSet<_> = self.pool.iter().copied().chain([self.origin]).collect();
        known.into_iter().filter(|a| *a != self.remote).collect()
    }

    /// Those of these addresses that the server may be at, and is not.
    fn acceptable(&self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let current = self.remote;
        addresses.retain(|a| policy::acceptable(current.ip(), *a) && *a != current);
        addresses
    }

    fn abandon_attempt(&mut self) {
        match &self.state {
            State::Arriving(_, _, attempt) if !self.config.strategy.redirects() => {
                self.abandon(attempt.target);
            }
            State::Announced(mv) | State::Searching(mv, _)
                if self.config.strategy == Strategy::Paper =>
            {
                self.abandon(mv.detection_target());
            }
            _ => {}
        }
    }

    /// Gives up the openings to `target`.
    fn abandon(&mut self, target: SocketAddr) {
        self.openings.retain(|o| o.remote != target);
        self.outputs.push_back(Output::Abandon(target));
    }

    fn redirect(&mut self, to: Option<SocketAddr>) {
        if self.config.strategy.redirects() && self.redirected != to {
            self.redirected = to;
            self.outputs.push_back(Output::Redirect(to));
        }
    }

    /// Forgets the move that is under way, if any, and leaves no trace of it.
    fn settle(&mut self) {
        self.abandon_attempt();
        self.redirect(Some(self.remote));
        self.state = State::Settled;
    }

    fn retry_openings(&mut self, now: Instant) {
        let mut openings = std::mem::take(&mut self.openings);
        for opening in &mut openings {
            let (local, remote) = (opening.local, opening.remote);
            let due = opening.retry_at.is_some_and(|at| at <= now);
            if due && self.destination(local) == Some(remote) {
                opening.retry_at = None;
                self.outputs.push_back(Output::Open { local, remote });
            }
        }
        self.openings = openings;
    }

    /// Opens what is missing: a path from every local address to where the server is.
    fn open_missing(&mut self) {
        for local in self.locals.clone() {
            let Some(remote) = self.destination(local) else {
                continue;
            };
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

    /// Where a path from this address may be opened to; nowhere while the server is parked, since it
    /// cannot answer. One that is silent for no known reason may be cut off at our end.
    fn destination(&self, local: IpAddr) -> Option<SocketAddr> {
        let paper = self.config.strategy == Strategy::Paper;
        let destination = match &self.state {
            State::Announced(mv) if paper && mv.detection.local == Some(local) => {
                mv.detection_target()
            }
            State::Searching(mv, _) if paper => mv.detection_target(),
            State::Settled
            | State::Announced(_)
            | State::Searching(_, Silence { parked: false, .. }) => self.path_remote(),
            // Its datagrams go where all are redirected to.
            State::Arriving(..) if self.config.strategy.redirects() => self.path_remote(),
            State::Arriving(_, _, attempt) => attempt.target,
            State::Searching(..) => return None,
        };
        (destination.is_ipv4() == local.is_ipv4()).then_some(destination)
    }

    fn current(&self) -> Option<&Move> {
        match &self.state {
            State::Settled => None,
            State::Announced(mv) | State::Searching(mv, _) | State::Arriving(mv, _, _) => Some(mv),
        }
    }

    /// How long a server that is expected to send may be silent.
    fn silence(&self, least: Duration) -> Duration {
        (self.rtt * SILENCE_RTTS).max(least)
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// The name of the state, for tables and logs.
    pub fn state(&self) -> &'static str {
        match &self.state {
            State::Settled => "Settled",
            State::Announced(_) => "Announced",
            State::Searching(mv, _) if !mv.announced => "Searching (unannounced)",
            State::Searching(_, silence) if silence.parked => "Searching (parked)",
            State::Searching(..) => "Searching (silent)",
            State::Arriving(..) => "Arriving",
        }
    }
}

impl Move {
    /// `paper`: where the detection path is opened to in this round. A move has a target.
    fn detection_target(&self) -> SocketAddr {
        self.targets[self.detection.round as usize % self.targets.len()]
    }
}
