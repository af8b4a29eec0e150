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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::proto::client::search::Search;
    use crate::proto::client::state::{Attempt, Silence};

    const NEWEST: u64 = 7;

    /// Where a client learns that its server is, which was at A and says ARRIVED.
    fn arrived(sequence: u64, strategy: Strategy, phase: Phase, mv: &Move) -> Option<SocketAddr> {
        let mut announcements = Announcements::new(server('A'));
        announcements.set_newest(NEWEST);
        announcements.arrived(sequence, strategy, server('A'), (phase, mv))
    }

    fn server(name: char) -> SocketAddr {
        ([10, 1, 0, name as u8], 443).into()
    }

    /// A move to B, or back to where it is.
    fn a_move(announced: bool, here: bool) -> Move {
        let search = Search::new(Instant::now(), Duration::ZERO, 1.0);
        let mut mv = Move::new(search, NEWEST, announced, vec![server('B')]);
        mv.here = here;
        mv
    }

    fn silence() -> Silence {
        Silence {
            deadline: Instant::now(),
            parked: true,
        }
    }

    #[test]
    fn without_an_announcement_arrived_says_where_only_who_redirects() {
        let now = Instant::now();
        let attempt = Attempt {
            target: server('B'),
            since: now,
            until: now,
        };
        let phase = Phase::Arriving(silence(), attempt);
        for (sequence, strategy, known) in [
            (NEWEST - 1, Strategy::Pool, false),
            (NEWEST, Strategy::Pool, false),
            (NEWEST + 1, Strategy::Pool, true),
            (NEWEST + 1, Strategy::Multipath, false),
        ] {
            let found = arrived(sequence, strategy, phase, &a_move(false, false));
            assert_eq!(found, known.then_some(server('B')), "{sequence} {strategy}");
        }
    }

    #[test]
    fn a_server_that_stays_here_arrives_once_and_with_paths_to_elsewhere_their_event_counts() {
        let here = a_move(true, true);
        let mut only_here = a_move(true, true);
        only_here.targets.clear();
        let searching = Phase::Searching(silence());
        for (strategy, phase, mv, known) in [
            (Strategy::Multipath, Phase::Settled, &here, false),
            (Strategy::Multipath, Phase::Announced, &here, true),
            (Strategy::Multipath, searching, &here, true),
            (Strategy::Paper, searching, &here, false),
            (Strategy::Paper, searching, &only_here, true),
        ] {
            let found = arrived(NEWEST, strategy, phase, mv);
            assert_eq!(found, known.then_some(server('A')), "{strategy} {phase:?}");
        }
    }
}
