//! How the answer of a probe, or a knock, becomes an attempt to reach the server there.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::machine::ClientMachine;
use super::probe_budget::Round;
use super::state::{Attempt, Move, Phase, Silence};
use super::{Event, Output, Sign};
use crate::proto::frame::MAX_ADDRESSES;
use crate::proto::probe::Hint;

/// How long whoever answers may take to become a path, in RTT and at the least, before the search
/// goes on.
const ATTEMPT_RTTS: u32 = 8;
const LEAST_ATTEMPT: Duration = Duration::from_secs(2);

impl ClientMachine {
    /// Somebody answers, or knocks.
    pub(super) fn answer(&mut self, local: IpAddr, remote: SocketAddr, hint: Hint, now: Instant) {
        let knock = hint != Hint::Answer;
        if let Hint::Knock(echo) = hint {
            self.knocks.came(local, remote, echo);
        }
        let strategy = self.config.strategy;
        let is_target = |mv: &Move| mv.targets.contains(&remote);
        let known = self.current().is_some_and(is_target);
        // A knock from elsewhere may be another's, repeated.
        if !knock || (self.config.heeds_knocks() && (known || remote == self.remote)) {
            // QUIC's paths know it by the address that it had at first, if datagrams are redirected.
            let known_as = match self.redirected {
                Some(to) if to == remote => self.path_remote(),
                _ => remote,
            };
            self.paths.answered(now, local, known_as, knock);
        }
        if !strategy.probes() || (knock && !self.config.heeds_knocks()) {
            return;
        }
        if remote == self.remote {
            // It woke where it was, and is to hear of us; what is missing of the paths to there is opened again.
            if let Phase::Searching(silence) = self.phase {
                let parked = false;
                self.enter(Phase::Searching(Silence { parked, ..silence }));
                self.redirect(Some(remote));
                self.ping_all();
            }
            return;
        }
        if known && !knock {
            self.mv.search.answered(remote);
        }
        if knock && (!known || strategy.redirects()) {
            return self.knock_from_elsewhere(remote, now);
        }
        let silence = match self.phase {
            Phase::Searching(silence) => silence,
            // Another one's answer led us astray.
            Phase::Arriving(silence, attempt) if knock && attempt.target != remote => silence,
            // PARKED may have been lost with the old paths; the knock says the same.
            Phase::Announced if knock => {
                let deadline = now + self.config.deadline;
                let parked = true;
                Silence { deadline, parked }
            }
            _ => return,
        };
        let search = &self.mv.search;
        let others_first = !knock && search.prefers_others(now, remote);
        let is_held = search.held.is_some();
        let attempt = Round::attempt(remote, self.paths.facing(remote));
        let is_allowed = self.budget.is_ready(now, &attempt);
        let is_sought = known || !knock && self.mv.is_wider(remote);
        if !is_sought || others_first || is_held || !is_allowed {
            return;
        }
        let takes = match known {
            true => self.take_attempt(knock),
            false => self.mv.take_wider(remote),
        };
        if !takes {
            return;
        }
        let by = if knock { Sign::Knock } else { Sign::Probe };
        self.event(Event::Detected { remote, by });
        if self.config.hold_back.is_zero() {
            return self.attempt(silence, remote, now);
        }
        self.abandon_attempt();
        self.mv.search.held = Some((now + self.config.hold_back, remote));
        self.enter(Phase::Searching(silence));
    }

    /// Takes one of the attempts at a target. Whether there was one left; to redirect costs nothing that could run
    /// out.
    fn take_attempt(&mut self, knock: bool) -> bool {
        if self.config.strategy.redirects() {
            return true;
        }
        let left = match knock {
            true => &mut self.knocks_left,
            false => &mut self.mv.search.attempts_left,
        };
        let Some(fewer) = left.checked_sub(1) else {
            return false;
        };
        *left = fewer;
        true
    }

    /// The server says that it is where nobody said it would be: it is asked there first.
    fn knock_from_elsewhere(&mut self, remote: SocketAddr, now: Instant) {
        // One that still speaks where it was has not moved.
        let acceptable = self.announcements.acceptable(self.remote, vec![remote]);
        if now < self.heard + self.rtt || acceptable.is_empty() {
            return;
        }
        let silence = match self.phase {
            Phase::Settled => {
                self.begin_move(false, vec![], now);
                let deadline = now + self.config.deadline;
                let parked = false;
                Silence { deadline, parked }
            }
            Phase::Searching(silence) => silence,
            Phase::Announced | Phase::Arriving(..) => return,
        };
        let probes = Round::probes(remote, self.paths.facing(remote));
        if self.knocks_left == 0 || !self.budget.is_ready(now, &probes) {
            return;
        }
        let targets = &mut self.mv.targets;
        if !targets.contains(&remote) {
            if targets.len() >= MAX_ADDRESSES {
                return;
            }
            targets.push(remote);
        }
        self.knocks_left -= 1;
        match self.mv.unvalidated_target(&self.config) {
            Some(_) => self.attempt(silence, remote, now),
            None => {
                self.budget.spend(now, &probes);
                self.outputs.push_back(Output::Probe(vec![remote]));
                self.enter(Phase::Searching(silence));
            }
        }
    }

    /// Finds out whether it is the server that answers at `target`.
    pub(super) fn attempt(&mut self, silence: Silence, target: SocketAddr, now: Instant) {
        self.abandon_attempt();
        self.mv.search.held = None;
        let cost = Round::attempt(target, self.paths.facing(target));
        self.budget.spend(now, &cost);
        let attempt = Attempt {
            target,
            since: now,
            until: now + LEAST_ATTEMPT.max(self.rtt * ATTEMPT_RTTS),
        };
        self.enter(Phase::Arriving(silence, attempt));
        if self.config.strategy.redirects() {
            self.redirect(Some(target));
            // What is being opened is to try its luck there now, and not when it would next.
            if self.paths.has_openings() {
                self.abandon(self.path_remote());
            }
        }
    }

    /// Gives up whoever answers and does not become a path in time.
    pub(super) fn end_attempt(&mut self, now: Instant) {
        let Phase::Arriving(silence, attempt) = self.phase else {
            return;
        };
        if now < attempt.until {
            return;
        }
        self.mv.search.failed(now, attempt.target);
        let deadline = silence.deadline.min(self.deadline(now));
        let silence = Silence {
            deadline,
            ..silence
        };
        if let Some(target) = self.mv.unvalidated_target(&self.config) {
            return self.attempt(silence, target, now);
        }
        self.abandon_attempt();
        self.redirect(match self.config.strategy {
            strategy if strategy.leaves_at_once() => None,
            _ => Some(self.remote),
        });
        self.enter(Phase::Searching(silence));
    }
}
