//! What a client tells of a connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::paths::PathInfo;

/// What an onlooker wants to know.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "as in `proto::client::Event`")]
pub enum ClientEvent {
    /// An interface, or an address of it, can be used from now on.
    InterfaceUp { interface: String, local: IpAddr },
    /// It cannot be used any more.
    InterfaceDown { interface: String, local: IpAddr },
    /// A path is being opened.
    PathOpened(PathInfo),
    /// A path is in use.
    PathValidated(PathInfo),
    /// A path is no more.
    PathClosed(PathInfo),
    /// The server will move.
    Announced {
        sequence: u64,
        targets: Vec<SocketAddr>,
        lead: Duration,
        outage: Duration,
    },
    /// Where else the server may be found.
    Addresses {
        pool: Vec<SocketAddr>,
        name: Option<String>,
    },
    /// The server is about to be frozen.
    Parked { sequence: u64 },
    /// The server fell silent without parking, or without any word.
    Silent,
    /// Somebody answers at a target; `by` is `probe` or `knock`.
    Detected {
        remote: SocketAddr,
        by: &'static str,
    },
    /// The server is at its new address: the first path there is validated, or it has answered to
    /// redirected datagrams.
    Moved { sequence: u64, remote: SocketAddr },
    /// All paths are on the new address.
    Settled { remote: SocketAddr },
    /// The server stays.
    Cancelled { sequence: u64 },
    /// The move was refused or took too long.
    Failed { reason: String },
}
