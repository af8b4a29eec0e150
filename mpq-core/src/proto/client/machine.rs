//! The machine itself: what happens, and what the client does about it.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::announcement::Announcements;
use super::baselines::LEAVING;
use super::health::Health;
use super::knocks::Knocks;
use super::paths::{Destination, Paths};
use super::probe_budget::{ProbeBudget, Round};
use super::readiness::Readiness;
use super::search::{Search, jitter};
use super::state::{Move, Phase, Silence};
use super::strategy::Strategy;
use super::{Config, Event, Input, Output};
use crate::proto::frame::Frame;
use crate::proto::opening_gate::OpeningGate;

/// Silence of a server that is expected to send, in RTT and at the least, until it is believed.
const SILENCE_RTTS: u32 = 4;
const LEAST_SILENCE: Duration = Duration::from_millis(300);
/// The same for one that has not said that it would go.
const LEAST_UNANNOUNCED: Duration = Duration::from_secs(1);
/// How often knocks are followed up until the next move, since each time may cost path ids, as with
/// answers of probes, or send a datagram to whoever is named by a knock that somebody repeats. A knock is
/// more likely the server's own.
const MAX_KNOCKS: u32 = 8;

/// The machine of one connection.
#[derive(Debug)]
pub struct ClientMachine {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) mv: Move,
    /// The server's first address, which QUIC's paths keep if datagrams are redirected.
    origin: SocketAddr,
    /// The server's present address.
    pub(super) remote: SocketAddr,
    /// Where redirected datagrams go.
    pub(super) redirected: Option<SocketAddr>,
    pub(super) announcements: Announcements,
    readiness: Readiness,
    pub(super) paths: Paths,
    pub(super) knocks: Knocks,
    pub(super) budget: ProbeBudget,
    pub(super) health: Health,
    /// How many knocks are still followed up, until the server is at another address or says that
    /// it will be.
    pub(super) knocks_left: u32,
    pub(super) rtt: Duration,
    pub(super) heard: Instant,
    pub(super) expecting: bool,
    /// The server is at another address, and not all paths are there yet: from where there were some before.
    settling: Option<BTreeSet<IpAddr>>,
    pub(super) rng: fastrand::Rng,
    pub(super) outputs: VecDeque<Output>,
}

impl ClientMachine {
    /// A machine for a connection to `remote`, whose first path is open from `local`.
    pub fn new(now: Instant, config: Config, local: IpAddr, remote: SocketAddr) -> Self {
        let hello = Frame::Hello {
            capabilities: config.capabilities(),
        };
        let rtt = LEAST_SILENCE;
        let health = Health::new(!config.strategy.redirects());
        let gate = OpeningGate::new(config.asks_before_opening());
        let (ids, multipath) = (config.path_ids, config.multipath);
        Self {
            rng: fastrand::Rng::with_seed(config.seed),
            config,
            phase: Phase::Settled,
            mv: Move::new(Search::new(now, rtt, 1.0), 0, false, Vec::new()),
            origin: remote,
            remote,
            redirected: Some(remote),
            announcements: Announcements::new(remote),
            readiness: Readiness::new(now, multipath),
            paths: Paths::new(local, remote, gate, ids),
            knocks: Knocks::default(),
            budget: ProbeBudget::new(now),
            health,
            knocks_left: MAX_KNOCKS,
            rtt,
            heard: now,
            expecting: false,
            settling: None,
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
        self.phase == Phase::Settled
    }

    /// The name of the state, for tables and logs.
    pub fn state(&self) -> &'static str {
        self.mv.name(self.phase)
    }

    /// Something happened.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Frame(frame) => self.frame(now, frame),
            Input::Locals(locals) => self.set_locals(locals),
            Input::Broadcasts(broadcasts) => {
                self.announcements.set_broadcasts(broadcasts);
                self.knocks.forget();
            }
            Input::Figures(figures) => self.look(now, &figures),
            Input::Expecting(expecting) => {
                self.expecting = expecting;
                self.heard = now;
            }
            Input::Answer {
                local,
                remote,
                hint,
            } => self.answer(local, remote, hint, now),
            Input::PathOpen {
                path,
                local,
                remote,
            } => self.path_open(now, path, local, remote),
            Input::Handshake(handshake) => {
                if self.readiness.seen(now, handshake) {
                    self.paths.allow(now);
                }
            }
            Input::PathRefused {
                local,
                remote,
                refusal,
            } => self.paths.refused(now, local, remote, refusal),
            Input::PathGone { path } => self.paths.gone(now, path),
        }
        self.open_paths(now);
        self.end_settling();
    }

    /// What is due at `now` is done.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.leave_at().is_some_and(|at| now >= at) {
            self.leave(now);
        }
        if self.readiness.begin_look(now) {
            self.outputs.push_back(Output::LookAtHandshake);
        }
        self.give_up(now);
        self.end_attempt(now);
        if let Phase::Searching(silence) = self.phase
            && let Some((at, target)) = self.mv.search.held
            && now >= at
        {
            self.attempt(silence, target, now);
        }
        if self.probe_at().is_some_and(|at| now >= at) {
            self.probe(now);
        }
        self.open_paths(now);
        self.end_settling();
    }

    /// When [`ClientMachine::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let (search, held) = match self.phase {
            Phase::Settled | Phase::Announced => (None, None),
            Phase::Searching(silence) => (
                Some(silence.deadline),
                self.mv.search.held.map(|(at, _)| at),
            ),
            Phase::Arriving(silence, attempt) => (Some(silence.deadline.min(attempt.until)), None),
        };
        let retry = self.paths.retry_at(self.destination());
        let look = self.readiness.look_at();
        let all = [look, self.leave_at(), self.probe_at(), retry, search, held];
        all.into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Paths are opened from what is there now. Where nothing is, the machine keeps what it knows.
    fn set_locals(&mut self, locals: Vec<IpAddr>) {
        if locals.is_empty() {
            return;
        }
        if self.config.multipath {
            let abandoned = self.paths.set_locals(locals);
            self.outputs.extend(abandoned);
            self.close_stale();
        }
        // The server answers to where it last heard of a path.
        self.ping_all();
    }

    fn frame(&mut self, now: Instant, frame: Frame) {
        match frame {
            Frame::Migration {
                sequence,
                targets,
                outage,
                lead,
            } => self.announced(now, sequence, targets, lead, outage),
            Frame::Parked { sequence } => {
                if let Phase::Announced | Phase::Searching(_) = self.phase
                    && (self.mv.announced, self.mv.sequence) == (true, sequence)
                {
                    self.event(Event::Parked { sequence });
                    if self.config.heeds_parked() {
                        self.search(true, now);
                    }
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
                let pool = self.announcements.set_pool(self.remote, pool);
                self.event(Event::Addresses { pool, name });
            }
            Frame::Arrived { sequence } => {
                let (strategy, state) = (self.config.strategy, (self.phase, &self.mv));
                let announcements = &self.announcements;
                if let Some(remote) = announcements.arrived(sequence, strategy, self.remote, state)
                {
                    self.arrive(remote, now);
                }
            }
            // A client's frames; a server has no reason to send them.
            Frame::Hello { .. } | Frame::Ready { .. } => {}
        }
    }

    fn announced(
        &mut self,
        now: Instant,
        sequence: u64,
        targets: Vec<SocketAddr>,
        lead: Duration,
        outage: Duration,
    ) {
        let strategy = self.config.strategy;
        if !self.announcements.is_new(sequence) || !strategy.heeds_announcements() {
            return;
        }
        // What is redirected comes from there only.
        if let Phase::Arriving(_, attempt) = self.phase
            && strategy.redirects()
        {
            self.arrive(attempt.target, now);
        }
        self.announcements.set_newest(sequence);
        self.knocks_left = MAX_KNOCKS;
        let here = targets.contains(&self.remote);
        let targets = self.announcements.acceptable(self.remote, targets);
        let there = here.then_some(self.remote);
        let event = Event::Announced {
            sequence,
            targets: targets.iter().copied().chain(there).collect(),
            lead,
            outage,
        };
        // A knock was faster: the server is there already.
        if let Phase::Arriving(_, attempt) = self.phase
            && targets.contains(&attempt.target)
        {
            let mv = &mut self.mv;
            (mv.sequence, mv.announced, mv.targets) = (sequence, true, targets);
            return self.event(event);
        }
        self.settle();
        if targets.is_empty() && !here {
            return self.event(Event::Refused { sequence });
        }
        self.heard = now;
        self.begin_move(true, targets, now);
        self.mv.here = here;
        self.mv.search.expect(now, lead, outage);
        match strategy {
            // There is nowhere else to go to.
            _ if self.mv.targets.is_empty() => {}
            Strategy::Proactive => self.mv.leave_at = Some(now + LEAVING),
            Strategy::Paper => self.sacrifice_a_path(),
            _ => {}
        }
        self.enter(Phase::Announced);
        self.outputs
            .push_back(Output::Send(Frame::Ready { sequence }));
        self.event(event);
    }

    /// Something came from the server.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        if let Phase::Settled | Phase::Announced = self.phase {
            self.budget.restore(self.remote);
        }
        match self.phase {
            Phase::Searching(Silence { parked: false, .. }) => {
                let jitter = jitter(&mut self.rng);
                self.mv.search.pause(now, self.rtt, jitter);
                self.redirect(Some(self.remote));
                self.enter(match self.mv.announced {
                    true => Phase::Announced,
                    false => Phase::Settled,
                });
            }
            // What was under way before the redirection does not count.
            Phase::Arriving(_, attempt)
                if self.config.strategy.redirects() && now >= attempt.since + self.rtt / 2 =>
            {
                self.arrive(attempt.target, now);
            }
            _ => {}
        }
    }

    /// When the old address is left: it is silent, or the strategy does not wait for that.
    fn leave_at(&self) -> Option<Instant> {
        let silent_at = |least| self.heard + self.silence(least);
        match self.phase {
            Phase::Announced => self
                .mv
                .leave_at
                .or(self.expecting.then(|| silent_at(LEAST_SILENCE))),
            Phase::Settled if self.expecting && self.config.strategy.heeds_pool() => {
                let somewhere = !self.announcements.elsewhere(self.remote).is_empty();
                somewhere.then(|| silent_at(LEAST_UNANNOUNCED))
            }
            _ => None,
        }
    }

    fn leave(&mut self, now: Instant) {
        match self.phase {
            Phase::Announced => {
                let parked = self.mv.leave_at.is_some();
                if !parked {
                    self.event(Event::Silent);
                }
                self.search(parked, now);
            }
            Phase::Settled => {
                let targets = self.announcements.elsewhere(self.remote);
                self.begin_move(false, targets, now);
                self.event(Event::Silent);
                self.search(false, now);
            }
            _ => {}
        }
    }

    pub(super) fn search(&mut self, parked: bool, now: Instant) {
        let jitter = jitter(&mut self.rng);
        self.mv.search.begin(now, parked, self.rtt, jitter);
        self.mv.leave_at = None;
        let deadline = self.deadline(now);
        let silence = Silence { deadline, parked };
        if let Some(target) = self.mv.unvalidated_target(&self.config) {
            return self.attempt(silence, target, now);
        }
        if self.config.strategy.leaves_at_once() && !self.mv.targets.is_empty() {
            self.redirect(None);
        }
        self.enter(Phase::Searching(silence));
    }

    /// When a server that is silent from now on is given up. Without an announcement, the idle timeout comes first.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        let deadline = now + self.config.deadline;
        let occupied = self.mv.search.give_up_at(now);
        occupied
            .filter(|_| self.mv.announced)
            .map_or(deadline, |at| at.min(deadline))
    }

    /// Where else another connection may find the server: who has answered there in the last move, the last one
    /// first; and where it has said that it may be.
    pub fn elsewhere(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let answered = self.mv.search.who_answered().to_vec();
        let mut said = self.mv.targets.clone();
        said.extend(self.announcements.elsewhere(self.remote));
        let mut seen = BTreeSet::from([self.remote]);
        seen.extend(&answered);
        said.retain(|address| seen.insert(*address));
        (answered, said)
    }

    /// Ends a move that has reached its deadline.
    fn give_up(&mut self, now: Instant) {
        let (Phase::Searching(silence) | Phase::Arriving(silence, _)) = self.phase else {
            return;
        };
        if now < silence.deadline {
            return;
        }
        // A server that still speaks where it was has not moved, whatever answered elsewhere.
        let event = match now < self.heard + self.silence(LEAST_SILENCE) {
            true => Event::Cancelled {
                sequence: self.mv.sequence,
            },
            false => Event::Failed,
        };
        self.settle();
        self.event(event);
        // Whatever comes of it, the silence until now has had its consequence.
        self.heard = now;
    }

    /// `paper`: the interface of a path looks for the new address from now on.
    fn sacrifice_a_path(&mut self) {
        if let Some((local, close)) = self.paths.sacrifice() {
            self.outputs.push_back(close);
            self.mv.detecting = Some(local);
        }
    }

    fn path_open(&mut self, now: Instant, id: u32, local: IpAddr, remote: SocketAddr) {
        self.paths.opened(id, local, remote);
        self.budget.restore(remote);
        let strategy = self.config.strategy;
        if self.mv.leads_to(remote, self.phase, strategy) {
            self.arrive(remote, now);
        }
        self.close_stale();
    }

    /// The server is at `remote`.
    fn arrive(&mut self, remote: SocketAddr, now: Instant) {
        let sequence = self.announcements.newest();
        self.remote = remote;
        self.budget.restore(remote);
        self.knocks_left = MAX_KNOCKS;
        self.heard = now;
        self.redirect(Some(remote));
        let elsewhere = self.paths.openings_elsewhere(self.path_remote());
        elsewhere.into_iter().for_each(|old| self.abandon(old));
        self.enter(Phase::Settled);
        // An interface that nobody could be reached from before is not waited for.
        self.settling = Some(self.paths.locals_in_use());
        self.event(Event::Moved { sequence, remote });
    }

    /// Tells once all paths are where the server is.
    fn end_settling(&mut self) {
        let Some(in_use) = &self.settling else {
            return;
        };
        if self.paths.are_all_at(self.path_remote(), in_use) {
            self.settling = None;
            let remote = self.remote;
            self.event(Event::Settled { remote });
        }
    }

    /// What is known of a move that begins, whatever its phase will be.
    pub(super) fn begin_move(&mut self, announced: bool, targets: Vec<SocketAddr>, now: Instant) {
        let sequence = self.announcements.newest();
        let search = Search::new(now, self.rtt, jitter(&mut self.rng));
        self.mv = Move::new(search, sequence, announced, targets);
    }

    pub(super) fn abandon_attempt(&mut self) {
        let targets = self.mv.opened_to(self.phase, self.config.strategy);
        targets.into_iter().for_each(|target| self.abandon(target));
    }

    /// Gives up the openings to `target`.
    pub(super) fn abandon(&mut self, target: SocketAddr) {
        let abandon = self.paths.abandon(target);
        self.outputs.push_back(abandon);
    }

    pub(super) fn redirect(&mut self, to: Option<SocketAddr>) {
        let was = std::mem::replace(&mut self.redirected, to);
        let strategy = self.config.strategy;
        if strategy.redirects() && was != to {
            self.health.forget_received();
            self.outputs.push_back(Output::Redirect(to));
            // Whoever is there learns from it that we are.
            if to.is_some() {
                self.ping_all();
            }
        }
        // New paths lead to the new address: what was sent to nobody goes to where its paths lead again.
        if strategy == Strategy::Paper && was.is_some() != to.is_some() {
            self.outputs.push_back(Output::Redirect(to));
        }
    }

    /// Forgets the move that is under way, if any, and leaves no trace of it.
    fn settle(&mut self) {
        self.abandon_attempt();
        self.redirect(Some(self.remote));
        self.enter(Phase::Settled);
    }

    /// All changes of the phase go through here.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    fn close_stale(&mut self) {
        let closed = self.paths.close_stale(self.path_remote());
        self.outputs.extend(closed);
    }

    /// Opens the paths that are missing, once it is known that the server answers there.
    fn open_paths(&mut self, now: Instant) {
        let (strategy, remote) = (self.config.strategy, self.path_remote());
        let destination = self.mv.destination(self.phase, strategy, remote);
        let retried = self.paths.retry(now, self.rtt, destination);
        let opened = self.paths.open_missing(now, destination);
        for (local, remote) in retried.into_iter().chain(opened) {
            if let Some(echo) = self.knocks.take(local, remote) {
                self.outputs.push_back(Output::Echo {
                    local,
                    remote,
                    echo,
                });
            }
            self.outputs.push_back(Output::Open { local, remote });
        }
        for (local, remote) in self.paths.probes(now, destination) {
            let target = match self.config.strategy.redirects() {
                true => self.redirected,
                false => Some(remote),
            };
            // Where it is proved to be, an interface that never reaches it takes nothing from the allowance of a move.
            let target = target.filter(|target| {
                let probe = Round::probes(*target, 1);
                *target == self.remote || self.budget.try_spend(now, &probe)
            });
            let probe = target.map(|target| Output::ProbeFrom { local, target });
            self.outputs.extend(probe);
        }
    }

    pub(super) fn ping_all(&mut self) {
        let pings = self.paths.in_use().map(|path| Output::Ping { path });
        self.outputs.extend(pings);
    }

    pub(super) fn destination(&self) -> Destination<'_> {
        let (phase, strategy) = (self.phase, self.config.strategy);
        self.mv.destination(phase, strategy, self.path_remote())
    }

    pub(super) fn current(&self) -> Option<&Move> {
        (self.phase != Phase::Settled).then_some(&self.mv)
    }

    /// How long a server that is expected to send may be silent.
    fn silence(&self, least: Duration) -> Duration {
        (self.rtt * SILENCE_RTTS).max(least)
    }

    pub(super) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}
