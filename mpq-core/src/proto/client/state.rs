//! How far a move is, and what is known of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Config;
use super::baselines::{Detection, Turns};
use super::paths::Destination;
use super::search::Search;
use super::strategy::Strategy;

/// How far a move is. [`Move`] has the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No move is under way.
    Settled,
    /// A move is announced; the old paths work.
    Announced,
    /// The server is silent: since it parked, or for no known reason.
    Searching(Silence),
    /// Somebody answers at a target; it is being found out whether it is the server.
    Arriving(Silence, Attempt),
}

/// The server is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence {
    /// When it is given up.
    pub(super) deadline: Instant,
    /// It said that it would be.
    pub(super) parked: bool,
}

/// It is being found out whether it is the server that answers there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) target: SocketAddr,
    pub(super) since: Instant,
    /// When the search goes on.
    pub(super) until: Instant,
}

/// What is known of the move that is under way; of no meaning while there is none.
#[derive(Debug)]
pub(super) struct Move {
    /// Of the newest announcement.
    pub(super) sequence: u64,
    /// Whether that is what the move is for; else the server went without a word.
    pub(super) announced: bool,
    pub(super) targets: Vec<SocketAddr>,
    /// The server's present address, if the announcement names it, too: it may be silent and come back
    /// where it is.
    pub(super) here: bool,
    /// Where else a server that is overdue is looked for, and how often who answers there may be gone to still: it
    /// may be another server, and must not use up the attempts for this one.
    pub(super) wider: Option<(Vec<SocketAddr>, u32)>,
    pub(super) search: Search,
    /// `proactive`: when the old address is left.
    pub(super) leave_at: Option<Instant>,
    /// `paper`: the address whose path was ended so that it looks for the server.
    pub(super) detecting: Option<IpAddr>,
    /// Which target is gone to unvalidated next.
    turns: Turns,
}

impl Move {
    /// One of which nothing has been done yet.
    pub(super) fn new(
        search: Search,
        sequence: u64,
        announced: bool,
        targets: Vec<SocketAddr>,
    ) -> Self {
        Self {
            sequence,
            announced,
            targets,
            here: false,
            wider: None,
            search,
            leave_at: None,
            detecting: None,
            turns: Turns::default(),
        }
    }

    /// Whether it is looked for there, since it is overdue.
    pub(super) fn is_wider(&self, remote: SocketAddr) -> bool {
        self.wider
            .as_ref()
            .is_some_and(|(places, _)| places.contains(&remote))
    }

    /// Takes one of the attempts at such a place, which is not looked at again. Whether there was one left.
    pub(super) fn take_wider(&mut self, remote: SocketAddr) -> bool {
        let Some((places, left)) = self.wider.as_mut().filter(|(_, left)| *left > 0) else {
            return false;
        };
        places.retain(|place| *place != remote);
        *left -= 1;
        true
    }

    /// The next target, if one may be gone to before anybody has answered there.
    pub(super) fn unvalidated_target(&mut self, config: &Config) -> Option<SocketAddr> {
        if !config.allow_unvalidated || !config.strategy.redirects() {
            return None;
        }
        self.turns.next(&self.targets)
    }

    /// Where paths may be opened to, of which nobody knows yet whether they lead to the server.
    pub(super) fn opened_to(&self, phase: Phase, strategy: Strategy) -> Vec<SocketAddr> {
        match phase {
            Phase::Arriving(_, attempt) if !strategy.redirects() => vec![attempt.target],
            Phase::Announced | Phase::Searching(_) if strategy == Strategy::Paper => {
                self.targets.clone()
            }
            _ => Vec::new(),
        }
    }

    /// Whether the server is at `remote` if a path to there is validated.
    pub(super) fn leads_to(&self, remote: SocketAddr, phase: Phase, strategy: Strategy) -> bool {
        match phase {
            _ if strategy.redirects() => false,
            Phase::Arriving(_, attempt) => attempt.target == remote,
            Phase::Announced | Phase::Searching(_) => {
                strategy == Strategy::Paper && self.targets.contains(&remote)
            }
            Phase::Settled => false,
        }
    }

    /// Where paths may be opened to, if those that there are lead to `remote`; nowhere while the server
    /// is parked, since it cannot answer. One that is silent for no known reason may be cut off at our
    /// end.
    pub(super) fn destination(
        &self,
        phase: Phase,
        strategy: Strategy,
        remote: SocketAddr,
    ) -> Destination<'_> {
        let others = match phase {
            Phase::Settled | Phase::Announced | Phase::Searching(Silence { parked: false, .. }) => {
                Some(remote)
            }
            // Its datagrams go where all are redirected to.
            Phase::Arriving(..) if strategy.redirects() => Some(remote),
            Phase::Arriving(_, attempt) => Some(attempt.target),
            Phase::Searching(_) => None,
        };
        let detection = match (phase, self.detecting) {
            (Phase::Announced, Some(local)) => Detection::From(local),
            (Phase::Searching(_), _) if strategy == Strategy::Paper => Detection::FromAll,
            _ => Detection::Off,
        };
        Destination {
            detection,
            targets: &self.targets,
            others,
            is_new: matches!(phase, Phase::Arriving(..)),
        }
    }

    /// The name of a state, for tables and logs.
    pub(super) fn name(&self, phase: Phase) -> &'static str {
        match phase {
            Phase::Settled => "Settled",
            Phase::Announced => "Announced",
            Phase::Searching(_) if !self.announced => "Searching (unannounced)",
            Phase::Searching(silence) if silence.parked => "Searching (parked)",
            Phase::Searching(_) => "Searching (silent)",
            Phase::Arriving(..) => "Arriving",
        }
    }
}
