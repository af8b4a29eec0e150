//! The rounds of probes of a search: when the next one is due and allowed, and where it goes.

use std::net::SocketAddr;
use std::time::Instant;

use super::Output;
use super::machine::ClientMachine;
use super::probe_budget::{Reserve, Round};
use super::search::jitter;
use super::state::Phase;
use crate::proto::frame::MAX_ADDRESSES;

/// How often who answers where an overdue server is looked for may be gone to in one move. Each time may cost path
/// ids that a frozen server cannot grant again.
const MOST_WIDER: u32 = 2;

impl ClientMachine {
    /// A round is sent.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.mv.search.is_overdue(now) {
            self.widen();
        }
        self.budget.spend(now, &self.round());
        let jitter = jitter(&mut self.rng);
        self.mv.search.probed(now, self.rtt, jitter);
        self.outputs.push_back(Output::Probe(self.probed()));
    }

    /// When the next round is due, and there is enough left for it.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        let reserve = match self.phase {
            _ if !self.config.strategy.probes() => return None,
            // They open the way for the knock through firewalls.
            Phase::Announced => Reserve::Half,
            Phase::Searching(_) => Reserve::Attempt,
            Phase::Settled | Phase::Arriving(..) => return None,
        };
        let allowed_at = self.budget.ready_at(&self.round(), reserve);
        Some(self.mv.search.probe_at().max(allowed_at))
    }

    /// What is probed: the targets; where the server was if it may come back there, or could not tell us that it
    /// stays; and all places if it is overdue.
    fn probed(&self) -> Vec<SocketAddr> {
        let wider = self.mv.wider.as_ref();
        let there = self.mv.here || self.paths.is_cut_off() || wider.is_some();
        let there = there.then_some(self.remote);
        let wider = wider.into_iter().flat_map(|(places, _)| places);
        self.mv
            .targets
            .iter()
            .chain(wider)
            .copied()
            .chain(there)
            .collect()
    }

    /// From now on the server is looked for wherever it has said that it may be, and where it was: it may have
    /// gone on without a word that got through.
    fn widen(&mut self) {
        if self.mv.wider.is_some() || !self.config.strategy.heeds_pool() {
            return;
        }
        let mut places = self.announcements.elsewhere(self.remote);
        places.retain(|place| !self.mv.targets.contains(place));
        places.truncate(MAX_ADDRESSES.saturating_sub(self.mv.targets.len()));
        self.mv.wider = Some((places, MOST_WIDER));
    }

    /// A round of probes: from every local address to all that is probed.
    fn round(&self) -> Round {
        let mut round = Round::default();
        for target in self.probed() {
            round.add_probes(target, self.paths.facing(target));
        }
        round
    }
}
