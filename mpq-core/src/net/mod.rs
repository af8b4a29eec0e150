//! What is below QUIC: which interfaces there are and when that changes, what they carry, and the
//! sockets on them.

pub(crate) mod interfaces;
pub(crate) mod monitor;
pub(crate) mod mtu;
pub(crate) mod refused;
pub(crate) mod sockets;

pub use interfaces::{InterfaceError, Local, present, usable};
pub use refused::refused;
pub use sockets::{Answer, Bind, Counters, Sockets};
