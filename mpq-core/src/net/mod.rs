//! What is below QUIC: which interfaces there are and when that changes, what they carry, and the
//! sockets on them.

pub(crate) mod address;
mod forwarded;
pub(crate) mod interfaces;
pub(crate) mod monitor;
pub(crate) mod mtu;
mod noq_udp;
mod old_paths;
pub(crate) mod refused;
mod routing;
pub(crate) mod socket;
mod socket_set;
pub(crate) mod sockets;
mod succession;

pub use interfaces::{InterfaceError, Local, usable};
pub use refused::refused;
pub use routing::source;
pub use socket::Bind;
pub(crate) use socket_set::Answer;
pub use sockets::Counters;
pub(crate) use sockets::Sockets;
