//! The server's machines: one announces a move, parks, and goes on where it wakes; and each connection has one.
//!
//! [`ServerMachine`] knows its clients by numbers. Whoever drives it freezes the process at [`Output::Dump`] and
//! says what became of it: [`Input::Thawed`], or [`Input::Failed`] where it was. Its parts are how the clients
//! stand with it, how long it waits for what is in flight, and when it knocks at whom. What of that is to be waited
//! for on each connection is told by a [`Landing`](flight::Landing).
//!
//! Before that, [`Admission`](admission::Admission) tells whose handshake may begin.
//!
//! [`PeerMachine`](peer::PeerMachine) is that of one connection. It hears the client, watches its paths and gives up
//! those that are silent, and after a move finds out that the client has come along. What it has to tell the
//! server's machine is among its outputs, and it is told the [`Stage`] of that one: they share nothing, and
//! may run in different threads.

pub mod admission;
mod arrival;
mod clients;
mod drain;
pub(crate) mod echoes;
mod farewell;
pub mod flight;
mod idle;
mod knocks;
mod lost;
mod machine;
pub mod peer;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::machine::ServerMachine;
use super::frame::{EncodeError, Frame};
use super::policy::acceptable;

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A client's handshake is done.
    Connected(u64),
    /// A client speaks the protocol, and can follow.
    Hello(u64),
    /// A client's connection is over.
    Gone(u64),
    /// A client looks out for the new address.
    Ready(u64),
    /// The operator wants a move.
    Announce(Announcement),
    /// Nothing is in flight any more.
    Quiet,
    /// The sockets are closed.
    Closed,
    /// There is no move: the server woke where it was.
    Failed,
    /// Whoever wanted the move wants it no more.
    Abandoned,
    /// The server woke.
    Thawed {
        /// Where it is to listen.
        listen: SocketAddr,
        /// Where it listened before.
        before: SocketAddr,
    },
    /// The sockets are open again.
    Reopened,
    /// They cannot be opened now.
    NotReopened,
    /// A client has a path to the new address.
    Established(u64),
    /// A client is heard where it was heard before: for it, the server is at the same address as then.
    Stayed(u64),
}

/// A move that the operator wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Where the server will be. If that is nowhere, it goes without a word.
    pub targets: Vec<SocketAddr>,
    /// Time between the announcement and parking.
    pub lead: Duration,
    /// How long the server expects to be silent.
    pub outage: Duration,
    /// Somebody at the old address will [forward](crate::forwarder): clients that cannot follow are kept.
    pub forwarded: bool,
}

/// How far a move is, as far as connections have to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No move is under way.
    Serving,
    /// One is.
    Moving,
    /// The server is about to be frozen, or is not all there yet: no path has anything to say.
    Parking,
}

/// What has become of the clients of a server that has moved, since it listens at its new address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// How many were to come along: those that can follow, or are forwarded.
    pub expected: usize,
    /// Of these, those that are with it again.
    pub arrived: usize,
    /// Of these, those whose connections have ended before they were.
    pub gone: usize,
    /// Besides, those that cannot follow: they were told to connect anew.
    pub dismissed: usize,
    /// Whether nobody is waited for any longer.
    pub is_over: bool,
}

/// Where else a server may be found; its clients are told with their HELLO.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlternativeAddresses {
    /// Alternative addresses.
    pub pool: Vec<SocketAddr>,
    /// A DNS name that leads to it.
    pub name: Option<String>,
}

impl Announcement {
    /// Whether clients can be told of it.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn check(&self) -> Result<(), EncodeError> {
        let mut targets = self.targets.iter();
        if let Some(target) = targets.find(|target| !acceptable(target.ip(), **target)) {
            return Err(EncodeError::Unacceptable(*target));
        }
        match self.targets.is_empty() {
            true => Ok(()),
            false => self.frame(0).encode(&mut Vec::new()),
        }
    }

    pub(super) fn frame(&self, sequence: u64) -> Frame {
        Frame::Migration {
            sequence,
            targets: self.targets.clone(),
            outage: self.outage,
            lead: self.lead,
        }
    }
}

impl AlternativeAddresses {
    /// Whether clients can be told of them.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn check(&self) -> Result<(), EncodeError> {
        self.frame().encode(&mut Vec::new())
    }

    pub(super) fn frame(&self) -> Frame {
        Frame::Addresses {
            pool: self.pool.clone(),
            name: self.name.clone(),
        }
    }
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to a client.
    Send(u64, Frame),
    /// Hold all body writers.
    CloseGates,
    /// Hold the body writers of a client that has connected since.
    CloseGate(u64),
    /// Release the body writers of a client.
    OpenGate(u64),
    /// A client that cannot follow is kept: [`peer::Input::Keep`].
    Keep(u64),
    /// Tell a client that cannot follow to connect anew, and end its connection: [`peer::Input::Dismiss`].
    Dismiss(u64),
    /// Wait until nothing is in flight and those dismissed are gone, then say [`Input::Quiet`]. Not any longer
    /// than until [`Output::Hold`], or the end of the move.
    Drain,
    /// Send nothing new on any connection, until the move is over.
    Hold,
    /// Close the sockets, then say [`Input::Closed`].
    CloseSockets,
    /// Freeze the process.
    Dump,
    /// The server is elsewhere: look out for who comes, leave the paths of before, and begin new ones as they are to
    /// begin after a move.
    Wake,
    /// Open the sockets at this address, or at the old one, then say [`Input::Reopened`] or [`Input::NotReopened`].
    Reopen(Option<SocketAddr>),
    /// Knock at every address that these clients were known at: [`peer::Input::Knock`].
    Knock(Vec<u64>),
    /// The move is over: the server is elsewhere, or stays where it was. Gates that are still
    /// closed, of connections that do not speak the protocol, are to be opened.
    Done {
        /// Whether it moved.
        moved: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::frame::MAX_ADDRESSES;

    #[test]
    fn what_clients_cannot_be_told_of_is_refused_before_they_are() {
        let many = vec![SocketAddr::from(([10, 1, 0, 1], 443)); MAX_ADDRESSES + 1];
        let to = |targets: &[SocketAddr]| Announcement {
            targets: targets.to_vec(),
            ..Announcement::default()
        };
        let too_many = Err(EncodeError::TooManyAddresses(MAX_ADDRESSES + 1));
        assert_eq!(to(&many).check(), too_many);
        assert_eq!(to(&many[1..]).check(), Ok(()));
        // They are told of nothing.
        assert_eq!(to(&[]).check(), Ok(()));

        let at = |pool: &[SocketAddr]| AlternativeAddresses {
            pool: pool.to_vec(),
            name: None,
        };
        assert_eq!(at(&many).check(), too_many);
        assert_eq!(at(&many[1..]).check(), Ok(()));
    }
}
