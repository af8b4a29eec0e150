//! What a client tells of a connection.

use std::net::IpAddr;

use super::paths::PathInfo;
use crate::proto::client::Event as MigrationEvent;

/// What an onlooker wants to know. With the feature `serde` it is an object with the name of what happened
/// as `event`, beside the fields.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(untagged))]
pub enum ClientEvent {
    /// Of this host's interfaces.
    Interface(InterfaceEvent),
    /// Of the connection's paths.
    Path(PathEvent),
    /// Of the server, and of its moves.
    Migration(MigrationEvent),
}

/// An interface, or an address of it, has come or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "event"))]
pub enum InterfaceEvent {
    /// It can be used from now on.
    #[cfg_attr(feature = "serde", serde(rename = "interface_up"))]
    Up {
        /// The interface's name.
        interface: String,
        /// The address.
        local: IpAddr,
    },
    /// It was asked for, and is left out until it can be used.
    #[cfg_attr(feature = "serde", serde(rename = "interface_left_out"))]
    LeftOut {
        /// Its name or address, as it was asked for.
        interface: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It cannot be used any more.
    #[cfg_attr(feature = "serde", serde(rename = "interface_down"))]
    Down {
        /// The interface's name.
        interface: String,
        /// The address.
        local: IpAddr,
    },
}

/// A path has come or gone.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "event"))]
pub enum PathEvent {
    /// It is being validated.
    #[cfg_attr(feature = "serde", serde(rename = "path_opened"))]
    Opened(PathInfo),
    /// It is in use.
    #[cfg_attr(feature = "serde", serde(rename = "path_validated"))]
    Validated(PathInfo),
    /// It is no more.
    #[cfg_attr(feature = "serde", serde(rename = "path_closed"))]
    Closed(PathInfo),
}

impl From<InterfaceEvent> for ClientEvent {
    fn from(event: InterfaceEvent) -> Self {
        Self::Interface(event)
    }
}

impl From<PathEvent> for ClientEvent {
    fn from(event: PathEvent) -> Self {
        Self::Path(event)
    }
}

impl From<MigrationEvent> for ClientEvent {
    fn from(event: MigrationEvent) -> Self {
        Self::Migration(event)
    }
}
