//! The server's machine: announces a move, parks, and goes on where it wakes.
//!
//! It knows its clients by numbers. Whoever drives it freezes the process at [`Output::Dump`] and
//! says what became of it: [`Input::Thawed`] at another address, or [`Input::Failed`] where it was.

mod machine;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::machine::ServerMachine;
use super::frame::{EncodeError, Frame};

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
    /// Nothing is in flight any more, or it was waited for long enough.
    Quiet,
    /// The sockets are closed.
    Closed,
    /// There is no move: the server woke where it was.
    Failed,
    /// Whoever wanted the move wants it no more.
    Abandoned,
    /// The server woke at another address.
    Thawed(SocketAddr),
    /// The sockets are open again.
    Reopened,
    /// A client has a path to the new address.
    Established(u64),
    /// A client is heard where it was heard before: for it, the server is at the same address as then.
    Stayed(u64),
}

/// A move that the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Where the server will be. If that is nowhere, it goes without a word.
    pub targets: Vec<SocketAddr>,
    /// Time between the announcement and parking.
    pub lead: Duration,
    /// How long the server expects to be silent.
    pub outage: Duration,
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
    /// Release the body writers of a client.
    OpenGate(u64),
    /// Tell a client that cannot follow to connect anew, and end its connection.
    Dismiss(u64),
    /// Wait until nothing is in flight and those dismissed are gone, then say [`Input::Quiet`].
    Drain,
    /// Close the sockets, then say [`Input::Closed`].
    CloseSockets,
    /// Freeze the process.
    Dump,
    /// Open the sockets at this address, or at the old one, then say [`Input::Reopened`].
    Reopen(Option<SocketAddr>),
    /// Knock at every address that these clients were known at.
    Knock(Vec<u64>),
    /// The move is over: the server is elsewhere, or stays where it was. Gates that are still
    /// closed, of connections that do not speak the protocol, are to be opened.
    Done {
        /// Whether it moved.
        moved: bool,
    },
}
