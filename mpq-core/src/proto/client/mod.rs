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
//!
//! The machine has parts, which know nothing of it and return what is to be done: its paths with the gate
//! before others are opened, their health, the search for the server, how much is sent for it, what
//! the server has said, and what only the strategies of the literature do. It alone assigns the phase of a
//! move, in one place.
//!
//! Whoever drives it translates: what happens becomes an [`Input`], and an [`Output`] a call. It looks
//! at the counters of the paths every [`ClientMachine::look_interval`], and gives them as
//! [`Input::Figures`].

mod announcement;
mod attempts;
mod baselines;
mod health;
mod knocks;
mod look;
mod machine;
mod paths;
mod probe_budget;
mod probes;
mod readiness;
mod search;
mod state;
mod strategy;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub use self::machine::ClientMachine;
pub use self::strategy::{Strategy, UnknownStrategy};
use super::frame::Frame;
use super::id::PathId;
use super::liveness::PathFigures;
use super::probe::{Echo, Hint};
use crate::limits::PATHS;

/// What a client may be told to do otherwise.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long the server may be silent in a move before it is given up.
    pub deadline: Duration,
    /// How long a server that is expected to send may be silent otherwise, before the connection is
    /// given up.
    pub idle_timeout: Duration,
    /// How it follows.
    pub strategy: Strategy,
    /// Whether there may be more paths than the first.
    pub multipath: bool,
    /// Sends the connection's datagrams to an address that nobody has validated, as the papers of
    /// the redirecting strategies do. For testbeds only.
    pub allow_unvalidated: bool,
    /// Ignores what this server does beyond the literature to be followed more easily: PARKED and its knocks,
    /// unless the strategy is about these. See [`Strategy`] for who profits from what.
    pub bare: bool,
    /// How long to wait with going to a new address once somebody answers there. Chosen at random
    /// by whoever drives the machine, so that a herd of clients does not arrive at once.
    pub hold_back: Duration,
    /// Path ids that the server grants at the same time.
    pub path_ids: u32,
    /// Of the times between probes, so that those of different clients do not come together.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(30),
            strategy: Strategy::default(),
            multipath: true,
            allow_unvalidated: false,
            bare: false,
            hold_back: Duration::ZERO,
            path_ids: PATHS,
            seed: 0,
        }
    }
}

impl Config {
    /// What the client says HELLO with.
    fn capabilities(&self) -> u64 {
        match self.strategy {
            Strategy::Restart => 0,
            strategy if strategy.redirects() => Frame::REDIRECT,
            _ if self.multipath => Frame::MULTIPATH,
            // Over one path only, there is no other to come along by.
            _ => 0,
        }
    }

    /// Whether a path is opened only where a probe was answered. The literature's clients know of none.
    fn asks_before_opening(&self) -> bool {
        self.strategy.probes() && !self.bare
    }

    /// Whether PARKED begins the search.
    fn heeds_parked(&self) -> bool {
        self.strategy.heeds_parked() && !self.bare
    }

    /// Whether the server's knock is followed.
    fn heeds_knocks(&self) -> bool {
        // It is all that this strategy has, in its paper as well.
        let needed = self.strategy == Strategy::Symmetric;
        self.strategy.heeds_knocks() && (needed || !self.bare)
    }
}

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The server said this.
    Frame(Frame),
    /// The local addresses that paths may be opened from, all of them, after a change of any interface.
    /// While there is none, paths stay as they are: they go on when something comes back.
    Locals(Vec<IpAddr>),
    /// The addresses by which everybody on one of our networks is reached; after each change of these networks,
    /// whether or not they are others then.
    Broadcasts(Vec<Ipv4Addr>),
    /// The counters of all validated paths, several times in a round trip and at once after a
    /// redirection.
    Figures(Vec<PathFigures>),
    /// Whether somebody waits for the server, so that silence means something.
    Expecting(bool),
    /// Somebody answers at a target of the announcement. A hint, not a proof.
    Answer {
        /// Where it arrives.
        local: IpAddr,
        /// Where it comes from.
        remote: SocketAddr,
        /// Whether it answers a probe, or the server knocks.
        hint: Hint,
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
    /// The answer to [`Output::LookAtHandshake`].
    Handshake(Handshake),
    /// A path could not be opened. That may work later.
    PathRefused {
        /// The local address.
        local: IpAddr,
        /// The remote address.
        remote: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// A validated path is no more.
    PathGone {
        /// QUIC's path id.
        path: u32,
    },
}

/// What of a connection's handshake matters for its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// It is confirmed (RFC 9001 §4.1.2).
    pub confirmed: bool,
    /// We have issued connection ids for another path.
    pub issued: bool,
    /// The server has.
    pub granted: bool,
}

/// Why a path could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no path id for it. The server may grant one yet.
    NoId,
    /// It was not validated in time, or was given up before. Its id may be lost for good.
    NoAnswer,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to the server.
    Send(Frame),
    /// Say [`Input::Handshake`].
    LookAtHandshake,
    /// Send a probe to every one of these addresses from every local address.
    Probe(Vec<SocketAddr>),
    /// Send a probe from where a path is wanted: an answer says that one may be opened. Or from where one
    /// works, to learn whether the server answers probes at all.
    ProbeFrom {
        /// From this local address.
        local: IpAddr,
        /// To there.
        target: SocketAddr,
    },
    /// Send the datagrams of QUIC's paths to the server's address, as it is before a move, to this one
    /// instead, and take those from there for theirs; or send them to nobody, and go on hearing that address.
    /// What came before does not count: [`Input::Figures`] is to follow at once.
    Redirect(Option<SocketAddr>),
    /// Return a knock. What is sent on a path to there comes after it.
    Echo {
        /// From this local address.
        local: IpAddr,
        /// To there.
        remote: SocketAddr,
        /// What is returned.
        echo: Echo,
    },
    /// Open and validate a path.
    Open {
        /// From here.
        local: IpAddr,
        /// To there.
        remote: SocketAddr,
    },
    /// Give up the paths to this address that are not validated yet.
    Abandon(SocketAddr),
    /// The same for those from this local address, which is no more.
    AbandonFrom(IpAddr),
    /// Send something on a path that must be acknowledged.
    Ping {
        /// QUIC's path id.
        path: u32,
    },
    /// Have a path, whose link is dead, go over the link of another one.
    Evacuate {
        /// Its QUIC path id.
        path: u32,
        /// That of the other one.
        over: u32,
    },
    /// Close a path.
    Close {
        /// QUIC's path id.
        path: u32,
    },
    /// For whoever watches.
    Event(Event),
}

/// What an onlooker wants to know. With the feature `serde`, `event` has the name of what happened, and times
/// are in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "event", rename_all = "snake_case"))]
pub enum Event {
    /// The server will move.
    #[cfg_attr(feature = "serde", serde(rename = "migration_announced"))]
    Announced {
        /// Of the announcement.
        sequence: u64,
        /// Those of the announced addresses that are acceptable.
        targets: Vec<SocketAddr>,
        /// Time until it parks.
        #[cfg_attr(feature = "serde", serde(with = "crate::seconds"))]
        lead: Duration,
        /// How long it expects to be away.
        #[cfg_attr(feature = "serde", serde(with = "crate::seconds"))]
        outage: Duration,
    },
    /// Where else the server may be found.
    Addresses {
        /// Those of its addresses that are acceptable.
        pool: Vec<SocketAddr>,
        /// A DNS name that leads to it.
        #[cfg_attr(
            feature = "serde",
            serde(default, skip_serializing_if = "Option::is_none")
        )]
        name: Option<String>,
    },
    /// An announcement was not acceptable: the server may not send us there.
    #[cfg_attr(feature = "serde", serde(rename = "migration_refused"))]
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
        /// How it made itself known.
        by: Sign,
    },
    /// The first path to the new address is validated, or the server has answered there to redirected
    /// datagrams.
    #[cfg_attr(feature = "serde", serde(rename = "resumed"))]
    Moved {
        /// Of the newest announcement; 0 if there was none.
        sequence: u64,
        /// The server's address from now on.
        remote: SocketAddr,
    },
    /// All paths are on the new address, from each interface that had one before.
    Settled {
        /// The server's address.
        remote: SocketAddr,
    },
    /// A path's link is dead while another one works; the path is closed.
    #[cfg_attr(feature = "serde", serde(rename = "path_dead"))]
    Dead {
        /// Which one.
        path: PathId,
    },
    /// The server stays.
    Cancelled {
        /// Of the announcement.
        sequence: u64,
    },
    /// The server was silent for longer than the deadline. The connection is lost.
    #[cfg_attr(feature = "serde", serde(rename = "migration_failed"))]
    Failed,
    /// The server was silent for longer than the idle timeout. The connection is lost.
    Idle,
}

/// How a server at another address makes itself known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Sign {
    /// It answers our probe.
    Probe,
    /// It knocks.
    Knock,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Knock => "knock",
        })
    }
}
