//! What the server has said: where it will be, where else it may be, and that it is there.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use super::state::{Move, Phase};
use super::strategy::Strategy;
use crate::proto::policy::Policy;

/// What the server has said so far.
#[derive(Debug)]
pub(super) struct Announcements {
    /// The number of the newest one; 0 before the first.
    newest: u64,
    /// Where the server was at first.
    origin: SocketAddr,
    pool: Vec<SocketAddr>,
    policy: Policy,
}

impl Announcements {
    /// Nothing yet, by a server that is at `origin`.
    pub(super) fn new(origin: SocketAddr) -> Self {
        Self {
            newest: 0,
            origin,
            pool: Vec::new(),
            policy: Policy::default(),
        }
    }

    /// Whether an announcement is newer than all before.
    pub(super) fn is_new(&self, sequence: u64) -> bool {
        sequence > self.newest
    }

    /// This one is the newest now.
    pub(super) fn set_newest(&mut self, sequence: u64) {
        self.newest = sequence;
    }

    /// The number of the newest announcement; 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Takes note of the server's pool; returns those of its addresses that are acceptable.
    pub(super) fn set_pool(
        &mut self,
        current: SocketAddr,
        pool: Vec<SocketAddr>,
    ) -> Vec<SocketAddr> {
        let acceptable = |a: &SocketAddr| self.policy.acceptable(current.ip(), *a);
        self.pool = pool.into_iter().filter(acceptable).collect();
        self.pool.clone()
    }

    /// By these addresses from now on, everybody on one of our networks is reached.
    pub(super) fn set_broadcasts(&mut self, broadcasts: Vec<Ipv4Addr>) {
        self.policy.set_broadcasts(broadcasts);
    }

    /// Those of these addresses that a server may be at, and is not.
    pub(super) fn acceptable(
        &self,
        current: SocketAddr,
        mut addresses: Vec<SocketAddr>,
    ) -> Vec<SocketAddr> {
        addresses.retain(|a| self.policy.acceptable(current.ip(), *a) && *a != current);
        addresses
    }

    /// Where the server may be, should it have gone from `remote` without a word.
    pub(super) fn elsewhere(&self, remote: SocketAddr) -> Vec<SocketAddr> {
        let known: BTreeSet<_> = self.pool.iter().copied().chain([self.origin]).collect();
        known.into_iter().filter(|a| *a != remote).collect()
    }

    /// Where the server is that says ARRIVED, if the client does not know it yet.
    ///
    /// Mostly that is only a confirmation. But the path's own event may be late; and so may be the
    /// announcement, of a move that was followed without it. Of an attempt that was given up, the
    /// search goes on. What is redirected comes from there only, also where nothing was announced.
    pub(super) fn arrived(
        &self,
        sequence: u64,
        strategy: Strategy,
        remote: SocketAddr,
        (phase, mv): (Phase, &Move),
    ) -> Option<SocketAddr> {
        let this = match mv.announced {
            true => mv.sequence == sequence,
            false => strategy.redirects() && sequence > self.newest,
        };
        if !this {
            return None;
        }
        match phase {
            Phase::Settled => None,
            Phase::Arriving(_, attempt) => Some(attempt.target),
            // A server that is here again was heard first. This one is elsewhere: the path's event will say where.
            Phase::Searching(_) if strategy == Strategy::Paper && !mv.targets.is_empty() => None,
            _ => mv.here.then_some(remote),
        }
    }
}
