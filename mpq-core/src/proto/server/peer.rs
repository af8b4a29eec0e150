//! The machine of one connection of a server: hears the client, gives up paths and clients that are silent, and
//! finds out after a move that the client has come along.
//!
//! Whoever drives it translates. What has to be looked up is asked for by an [`Output`] and comes with an
//! [`Input`], so that the machine says how often that is done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

pub use super::arrival::OldPath;
use super::arrival::{self, Word};
use super::farewell::{Farewell, Next};
use super::idle::Idle;
use super::lost::Lost;
use super::{Input as ServerInput, Stage};
use crate::proto::frame::Frame;
use crate::proto::liveness::{Liveness, PathFigures, Verdict};

/// How often the paths of a connection are compared, and how often one is looked at that has nothing to be
/// compared with.
const COMPARE_INTERVAL: Duration = Duration::from_millis(200);
const LOOK_INTERVAL: Duration = Duration::from_secs(6);
/// How often a client that is missing is listened for.
const LISTEN_INTERVAL: Duration = Duration::from_millis(2);

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The client said this.
    Frame(Frame),
    /// A path is validated.
    PathOpen(u32),
    /// One is no more.
    PathGone(u32),
    /// The answer to [`Output::Look`].
    Figures {
        /// What the server does.
        stage: Stage,
        /// Frames received on the connection.
        received: u64,
        /// The counters of all validated paths.
        paths: Vec<PathFigures>,
    },
    /// The server woke, and its sockets are about to be opened: the client is missing, and the paths that there are
    /// are those of before. These of [`PeerMachine::next_paths`] are among them, though none is known to be validated.
    Woken(Vec<u32>),
    /// They are open. These of the paths of before lead to where they did.
    Reopened(Vec<u32>),
    /// The answer to [`Output::Listen`].
    Heard {
        /// What the server does.
        stage: Stage,
        /// Those of [`PeerMachine::next_paths`] that there are, whether or not they are validated.
        new: Vec<u32>,
        /// The paths of before.
        old: Vec<OldPath>,
    },
    /// The answer to [`Output::LookInFlight`]: bytes in flight on the paths of before.
    InFlight(u64),
    /// The client is to be knocked at.
    Knock,
    /// The client cannot follow. Its paths are forwarded: they are what they were.
    Keep,
    /// The client cannot follow, and is to be told.
    Dismiss,
    /// The answer to [`Output::LookWhetherTold`].
    Told {
        /// Whether nothing is in flight that could still be acknowledged.
        has_arrived: bool,
        /// Whether the end of the connection is sent.
        is_closed: bool,
    },
    /// What waits for the client is to be sent.
    Release,
    /// The server has not moved: the paths go on as they are.
    Stay,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Tell the server's machine.
    Server(ServerInput),
    /// Write our migration stream from now on.
    Speak,
    /// Say [`Input::Figures`].
    Look,
    /// Send something on a path that must be acknowledged.
    Ping(u32),
    /// Close a path.
    Close(u32),
    /// The client is silent: give the connection up.
    Idle,
    /// Say [`Input::Heard`].
    Listen,
    /// The client has made these paths to the new address: they may begin with what was known of the old ones.
    Followed(Vec<u32>),
    /// Say [`Input::InFlight`].
    LookInFlight,
    /// Send one packet on each of these paths that must be acknowledged, though they are held.
    Ask(Vec<u32>),
    /// Say from where the server is now that it is there, to where the client was over this path.
    Knock {
        /// QUIC's path id.
        path: u32,
        /// Whether to say it from the address where the path leads, of several that the server has.
        at_home: bool,
    },
    /// Tell the client to make no more requests.
    GoAway,
    /// Say [`Input::Told`].
    LookWhetherTold,
    /// Close the connection of a client that cannot follow.
    Dismiss,
    /// The paths of before are used again.
    KeepPaths,
    /// Send what waits for the client.
    Release,
}

/// The machine of one connection.
#[derive(Debug)]
pub struct PeerMachine {
    /// Its number.
    id: u64,
    has_spoken: bool,
    /// It redirects its datagrams when the server moves, and its paths stay what they are.
    redirects: bool,
    open: BTreeSet<u32>,
    /// The newest of all that were ever open.
    newest: u32,
    /// The newest of those from before the last freeze.
    newest_old: u32,
    /// Those from before the freeze, until the first one from after it is validated; and whether each leads to where
    /// it did.
    old: BTreeMap<u32, bool>,
    /// There is one from after the freeze.
    followed: bool,
    /// They are forwarded, and whether that is known to have begun.
    is_kept: bool,
    is_forwarded: bool,
    liveness: Liveness,
    idle: Idle,
    look_at: Instant,
    /// It has not been heard of since the freeze; and when it is listened for, once the sockets are open.
    is_missing: bool,
    listen_at: Option<Instant>,
    lost: Option<Lost>,
    /// It is being told to go.
    farewell: Option<Farewell>,
    outputs: VecDeque<Output>,
}

impl PeerMachine {
    /// The machine of a connection of this number, whose first path is open.
    pub fn new(now: Instant, id: u64) -> Self {
        Self {
            id,
            has_spoken: false,
            redirects: false,
            open: BTreeSet::from([0]),
            newest: 0,
            newest_old: 0,
            old: BTreeMap::new(),
            followed: false,
            is_kept: false,
            is_forwarded: false,
            liveness: Liveness::of_server(),
            idle: Idle::new(now),
            look_at: now + LOOK_INTERVAL,
            is_missing: false,
            listen_at: None,
            lost: None,
            farewell: None,
            outputs: VecDeque::new(),
        }
    }

    /// Whether the client's paths stay what they are when the server moves: it redirects its datagrams, or they are
    /// forwarded.
    pub fn keeps_paths(&self) -> bool {
        self.redirects || self.is_kept
    }

    /// Whether they are forwarded.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether the client is being told to go.
    pub fn is_leaving(&self) -> bool {
        self.farewell.is_some()
    }

    /// Whether the client has not been heard of since the freeze.
    pub fn is_missing(&self) -> bool {
        self.is_missing
    }

    /// The ids of the paths that the client can make next, and of those that it has made while it is missing.
    pub fn next_paths(&self) -> RangeInclusive<u32> {
        arrival::next_paths(match self.is_missing {
            true => self.newest_old,
            false => self.newest,
        })
    }

    /// Something happened.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Frame(Frame::Hello { capabilities }) => self.hello(capabilities),
            Input::Frame(Frame::Ready { .. }) => self.tell(ServerInput::Ready(self.id)),
            // The server's frames; a client has no reason to send them.
            Input::Frame(_) => {}
            Input::PathOpen(path) => {
                self.open.insert(path);
                self.newest = self.newest.max(path);
                if self.open.len() > 1 {
                    self.look_at = self.look_at.min(now + COMPARE_INTERVAL);
                }
                // That one of before is validated may be heard of only now.
                if path > self.newest_old {
                    self.followed |= self.is_missing;
                    self.close_old();
                    self.tell(ServerInput::Established(self.id));
                }
            }
            Input::PathGone(path) => drop(self.open.remove(&path)),
            Input::Figures {
                stage,
                received,
                paths,
            } => self.figures(now, stage, received, &paths),
            Input::Woken(unvalidated) => {
                let old = self.open.iter().copied().chain(unvalidated);
                self.old = old.map(|path| (path, false)).collect();
                let newest = self.old.keys().next_back().copied();
                self.newest = self.newest.max(newest.unwrap_or_default());
                self.newest_old = self.newest;
                self.followed = false;
                self.is_missing = true;
                self.idle.woken();
            }
            Input::Reopened(at_home) => {
                for (path, is_at_home) in &mut self.old {
                    *is_at_home = self.is_kept || at_home.contains(path);
                }
                self.listen_at = self.is_missing.then_some(now);
            }
            Input::Heard { stage, new, old } => self.heard(now, stage, new, &old),
            Input::InFlight(bytes) => {
                let paths = self.lost.as_mut().map(|lost| lost.ask(bytes));
                self.ask(paths.unwrap_or_default());
            }
            Input::Knock => self.knock(),
            Input::Keep => (self.is_kept, self.is_forwarded) = (true, false),
            Input::Dismiss => {
                self.farewell = Some(Farewell::new(now));
                self.outputs.push_back(Output::GoAway);
            }
            Input::Told {
                has_arrived,
                is_closed,
            } => {
                let farewell = self.farewell.as_mut();
                match farewell.map(|farewell| farewell.step(now, has_arrived, is_closed)) {
                    Some(Next::Close) => self.outputs.push_back(Output::Dismiss),
                    Some(Next::Over) => self.farewell = None,
                    Some(Next::Wait) | None => {}
                }
            }
            // Not on the old paths before it is known that the client is there: they may lead nowhere.
            Input::Release => {
                if !self.followed {
                    self.outputs.push_back(Output::KeepPaths);
                }
                self.outputs.push_back(Output::Release);
            }
            Input::Stay => {
                self.is_kept = false;
                self.old.clear();
                self.end_arrival();
            }
        }
    }

    /// What is due at `now` is done.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.look_at {
            self.look_at = now + self.look_interval();
            self.outputs.push_back(Output::Look);
        }
        if self.listen_at.is_some_and(|at| now >= at) {
            // Again after the answer.
            self.listen_at = None;
            self.outputs.push_back(Output::Listen);
        }
        if let Some(farewell) = &mut self.farewell
            && now >= farewell.next_timeout()
        {
            farewell.looks(now);
            self.outputs.push_back(Output::LookWhetherTold);
        }
        if let Some(lost) = &mut self.lost
            && lost.next_timeout().is_some_and(|at| now >= at)
        {
            lost.looks(now);
            self.outputs.push_back(Output::LookInFlight);
        }
    }

    /// When [`PeerMachine::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Instant {
        let ask_at = self.lost.as_ref().and_then(Lost::next_timeout);
        let told_at = self.farewell.as_ref().map(Farewell::next_timeout);
        let others = [self.listen_at, ask_at, told_at].into_iter().flatten();
        others.fold(self.look_at, Instant::min)
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Only the first counts. One that can neither redirect nor make paths cannot come along.
    fn hello(&mut self, capabilities: u64) {
        if std::mem::replace(&mut self.has_spoken, true) {
            return;
        }
        self.outputs.push_back(Output::Speak);
        self.redirects = capabilities & Frame::REDIRECT != 0;
        if self.redirects || capabilities & Frame::MULTIPATH != 0 {
            self.is_kept = false;
            self.tell(ServerInput::Hello(self.id));
        }
    }

    fn look_interval(&self) -> Duration {
        match self.open.len() > 1 {
            true => COMPARE_INTERVAL,
            false => LOOK_INTERVAL,
        }
    }

    /// Closes paths that have died silently, so that what was sent on them is sent again on others. Not while
    /// the server parks, where no path has anything to say; and there is nothing to compare a single one with.
    fn figures(&mut self, now: Instant, stage: Stage, received: u64, paths: &[PathFigures]) {
        if stage == Stage::Parking {
            self.liveness = Liveness::of_server();
        } else {
            let several = if paths.len() > 1 { paths } else { &[] };
            for verdict in self.liveness.look(now, several, false) {
                self.outputs.push_back(match verdict {
                    Verdict::Ping(path) => Output::Ping(path),
                    Verdict::Close(path) => Output::Close(path),
                });
            }
        }
        if self.idle.is_over(now, received, stage) {
            self.outputs.push_back(Output::Idle);
        }
    }

    fn heard(&mut self, now: Instant, stage: Stage, new: Vec<u32>, old: &[OldPath]) {
        if !self.is_missing {
            return;
        }
        if stage == Stage::Serving {
            return self.end_arrival();
        }
        if self.is_kept && !self.is_forwarded && old.iter().any(|old| old.is_forwarded) {
            // It may have nothing to say before it is spoken to.
            self.is_forwarded = true;
            self.ask(self.old.keys().copied().collect());
        }
        let input = match arrival::heard(new, old, &self.old, self.redirects) {
            None => {
                self.listen_at = Some(now + LISTEN_INTERVAL);
                return;
            }
            Some(Word::OnNew(paths)) => {
                self.follow(now, paths);
                return self.tell(ServerInput::Established(self.id));
            }
            Some(Word::WhereItWas) => ServerInput::Stayed(self.id),
            Some(Word::Redirected) => ServerInput::Established(self.id),
        };
        // The paths of before go on.
        self.old.clear();
        self.end_arrival();
        self.tell(input);
    }

    /// It is listened for no longer.
    fn end_arrival(&mut self) {
        (self.is_missing, self.listen_at) = (false, None);
    }

    /// The client has made paths to the new address.
    fn follow(&mut self, now: Instant, paths: Vec<u32>) {
        self.end_arrival();
        self.followed = true;
        let old = self.old.keys().copied().collect();
        self.lost = Some(Lost::new(now, old));
        self.outputs.push_back(Output::Followed(paths));
    }

    /// Closes the paths of before, as soon as there are others: what is sent on them from here never arrives,
    /// since the client knows them by our old address. Those of a client that redirects are what they were.
    fn close_old(&mut self) {
        let old = std::mem::take(&mut self.old);
        if !self.keeps_paths() {
            let close = old.into_keys().map(Output::Close);
            self.outputs.extend(close);
        }
    }

    /// Says where the server is now, and asks for an answer on the paths that may work as before.
    fn knock(&mut self) {
        for (&path, &at_home) in &self.old {
            self.outputs.push_back(Output::Knock { path, at_home });
        }
        let at_home = self.old.iter().filter(|(_, at_home)| **at_home);
        let at_home = at_home.map(|(path, _)| *path).collect();
        self.ask(at_home);
    }

    fn ask(&mut self, paths: Vec<u32>) {
        if !paths.is_empty() {
            self.outputs.push_back(Output::Ask(paths));
        }
    }

    fn tell(&mut self, input: ServerInput) {
        self.outputs.push_back(Output::Server(input));
    }
}
