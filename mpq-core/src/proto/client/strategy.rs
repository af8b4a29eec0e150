//! The ways in which a client can follow a server, from the literature and ours.
//!
//! They share one [machine](super::ClientMachine), which asks a strategy only the questions answered here:
//!
//! | strategy | told by | looks for the server with | goes there by | source |
//! | --- | --- | --- | --- | --- |
//! | `multipath` | MIGRATION, the pool, a knock | probes | new paths from every interface | this project |
//! | `paper` | MIGRATION | one path that is opened over and over | that path, then the others | "Server Migration with Multipath-QUIC" (2025), method |
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
//! Their papers send the connection's datagrams to the new address before anybody has answered
//! there. Here an address must first have returned the unguessable token of a probe, which is as
//! much as address validation by token asks for (RFC 9000 §8.1), unless
//! [`Config::allow_unvalidated`](super::Config::allow_unvalidated) says otherwise.

use std::fmt;
use std::str::FromStr;

/// How a client follows its server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The old paths carry the download to the end; probes find the new address; new paths from
    /// every interface at once.
    #[default]
    Multipath,
    /// The paper's method: one path becomes the detection path at the announcement.
    Paper,
    /// Leaves the server at its announcement.
    Proactive,
    /// Leaves the server when it falls silent.
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

    /// Whether it heeds the server's knock.
    pub fn heeds_knocks(self) -> bool {
        matches!(self, Self::Multipath | Self::Symmetric)
    }

    /// Whether it looks for a server that is silent without a word at the addresses of its pool.
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
