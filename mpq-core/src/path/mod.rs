//! Paths: which interfaces there are, when that changes, what they carry, the sockets on them, cheap
//! probes, which paths have died silently, and the driver.
//!
//! Data flows one way: [`sockets`] → noq → `manager` → the sans-IO machine of
//! [`migration`](crate::migration) → its outputs, which the manager turns into calls of noq again.

pub(crate) mod doubt;
pub mod interfaces;
pub(crate) mod manager;
pub(crate) mod mtu;
pub(crate) mod netlink;
pub mod probe;
pub(crate) mod silence;
pub mod sockets;
