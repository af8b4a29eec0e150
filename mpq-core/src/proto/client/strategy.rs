//! The ways in which a client can follow a server, from the literature and ours.
//!
//! They share one [machine](super::ClientMachine), which asks a strategy only the questions answered here:
//!
//! | strategy | told by | looks for the server with | goes there by | source |
//! | --- | --- | --- | --- | --- |
//! | `multipath` | MIGRATION, the pool, a knock | probes | new paths from every interface | this project |
//! | `paper` | MIGRATION | paths that are opened over and over, and nothing else | these paths | "Server Migration with Multipath-QUIC" (2025), method |
//! | `proactive` | MIGRATION | probes, from the announcement on | redirection | Proactive-Explicit [1] |
//! | `reactive` | MIGRATION | probes, once the server is silent | redirection | Reactive-Explicit [1] |
//! | `pool` | nobody; knows the pool from ADDRESSES | probes to the pool, once the server is silent | redirection | Pool of Addresses [1] |
//! | `symmetric` | the server's knock from its new address | a probe back | redirection | Symmetric [1] |
//! | `restart` | nobody | nothing: the connection is lost, and made anew | – | plain QUIC |
//!
//! [1]: Puliafito, Conforti, Virdis, Mingozzi: "Server-side QUIC connection migration to support
//! microservice deployment at the edge", Pervasive and Mobile Computing 83 (2022).
//!
//! *Redirection* is below QUIC: the datagrams of the paths there are go to another address, and
//! what comes from there is shown to QUIC as if it came from the old one. It needs neither
//! multipath nor a second interface. What the single-path strategies do badly is kept: `proactive`
//! leaves a server that would still have delivered, `reactive` and `pool` notice the move only by
//! its silence, and all of them start the new path with the old one's congestion window and lose
//! what was in flight.
//!
//! # What the server helps with
//!
//! This server does more to be followed than the literature's do. A comparison has to say who profits:
//!
//! | strategy | drain | PARKED | knock | probes |
//! | --- | --- | --- | --- | --- |
//! | `multipath` | yes | yes | yes | yes |
//! | `paper` | yes | no | no | no |
//! | `proactive` | only if it ends before the client leaves | only if it comes before the client leaves | no | yes |
//! | `reactive` | yes | no | no | yes |
//! | `pool` | yes | no | no | yes |
//! | `symmetric` | yes | no | yes: in its paper, too, the server speaks first | yes |
//! | `restart` | in vain, as its connection is lost | no | no | no |
//!
//! *Drain*: before it is frozen, the server sends nothing new until all that is in flight is acknowledged. So
//! nothing is lost in the freeze, where in the papers what was in flight is. That is the server's doing, and no
//! client can switch it off. *PARKED* tells that this is so, where the papers' clients notice silence. The *knock*
//! tells that the server is back. *Probes* ask for that without any cost that could run out; the papers' clients
//! have datagrams of the connection instead, see below.
//! [`Config::bare`](super::Config::bare) does without PARKED and the knock in every strategy but `symmetric`,
//! which is nothing without the knock.
//!
//! # `paper`
//!
//! At the announcement one of the paths is ended, and from its interface a path is opened to the new address: the
//! detection path. The others, the continuation paths, go on. When the server ceases to respond (no packet for
//! four RTT, 300 ms at the least) they end: nothing is sent over them any more, and from their interfaces paths
//! to the new address are opened as well. What opens a path is repeated until it is answered, at intervals that
//! double. The first path that is answered is the move. No probe is sent, also not before a path is opened again.
//!
//! Two things differ from the letter, since noq cannot do them. Both are in `baselines.rs`, at `Detection`: a path
//! keeps its id while its opening is repeated, and a continuation path that has ended is closed in QUIC's
//! terms only once another one is there.
//!
//! # Addresses that nobody has validated
//!
//! The papers of the redirecting strategies send the connection's datagrams to the new address before
//! anybody has answered there. Here an address must first have answered a probe, as nobody could have in its name, not
//! even the server that names it; which is as much as address validation by token asks for (RFC 9000 §8.1),
//! unless [`Config::allow_unvalidated`](super::Config::allow_unvalidated) says otherwise.

use std::fmt;
use std::str::FromStr;

/// How a client follows its server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The old paths carry the download to the end; probes find the new address; new paths from
    /// every interface at once.
    #[default]
    Multipath,
    /// The paper's method: paths are opened to the new address until one is answered.
    Paper,
    /// Leaves the server at its announcement.
    Proactive,
    /// Leaves the server when it falls silent, whatever it says.
    Reactive,
    /// Tries the addresses it was given in advance when the server falls silent.
    Pool,
    /// Follows the server when it speaks from elsewhere.
    Symmetric,
    /// Does not follow.
    Restart,
}

impl Strategy {
    /// All of them, the default first.
    pub const ALL: [Self; 7] = [
        Self::Multipath,
        Self::Paper,
        Self::Proactive,
        Self::Reactive,
        Self::Pool,
        Self::Symmetric,
        Self::Restart,
    ];

    /// Whether it follows the server by redirecting datagrams, rather than by opening paths.
    pub fn redirects(self) -> bool {
        matches!(
            self,
            Self::Proactive | Self::Reactive | Self::Pool | Self::Symmetric
        )
    }

    /// Whether it heeds MIGRATION and what follows it.
    pub fn heeds_announcements(self) -> bool {
        matches!(
            self,
            Self::Multipath | Self::Paper | Self::Proactive | Self::Reactive
        )
    }

    /// Whether it sends probes, and follows those who answer them. Else nothing but paths that are opened finds
    /// the server.
    pub fn probes(self) -> bool {
        self != Self::Paper
    }

    /// Whether nothing is sent to the old address any more once the server is left, whether or not the new one
    /// is known to answer.
    pub fn leaves_at_once(self) -> bool {
        matches!(self, Self::Paper | Self::Proactive)
    }

    /// Whether PARKED tells it that the server is silent from now on.
    pub fn heeds_parked(self) -> bool {
        matches!(self, Self::Multipath | Self::Proactive)
    }

    /// Whether it heeds the server's knock.
    pub(crate) fn heeds_knocks(self) -> bool {
        matches!(self, Self::Multipath | Self::Symmetric)
    }

    /// Whether it looks at the addresses of its pool for a server that is silent without a word, or overdue.
    pub fn heeds_pool(self) -> bool {
        matches!(self, Self::Multipath | Self::Pool)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Multipath => "multipath",
            Self::Paper => "paper",
            Self::Proactive => "proactive",
            Self::Reactive => "reactive",
            Self::Pool => "pool",
            Self::Symmetric => "symmetric",
            Self::Restart => "restart",
        })
    }
}

/// A name that is none of [`Strategy::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected multipath, paper, proactive, reactive, pool, symmetric or restart")]
pub struct UnknownStrategy;

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        let named = |known: &Self| known.to_string() == name;
        Self::ALL.into_iter().find(named).ok_or(UnknownStrategy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
            assert!(UnknownStrategy.to_string().contains(&strategy.to_string()));
        }
        assert_eq!("none".parse::<Strategy>(), Err(UnknownStrategy));
    }
}
