//! Paths: which interfaces there are, the sockets on them, cheap probes, and the driver.
//!
//! Data flows one way: [`sockets`] → noq → [`manager`] → the sans-IO machine of
//! [`migration`](crate::migration) → its outputs, which the manager turns into calls of noq again.

pub mod interfaces;
pub mod probe;
pub mod sockets;
