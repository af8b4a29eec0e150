//! Multipath QUIC and live server migration: what both ends of mpq share.
//!
//! [`client::Client`] downloads over every interface and follows a server that moves;
//! [`server::Server`] serves, and moves with all of its connections. Between them and noq are the
//! [`path`]s: the sockets of each interface, probes, and the manager. What to do when is decided by
//! the sans-IO machines of [`migration`], which also explains the protocol.
//!
//! Data flows one way: sockets → noq → path manager → machine → its outputs.
#![forbid(unsafe_code)]

pub mod client;
mod congestion;
pub mod endpoint;
mod gate;
pub mod h3_noq;
pub mod migration;
pub mod path;
#[cfg(feature = "qlog")]
mod qlog;
mod runtime;
pub mod server;
pub mod tls;
mod traffic;
mod usage;

pub use congestion::{Congestion, UnknownCongestion};
pub use gate::Gate;
pub use traffic::{Carried, PathTraffic, Traffic};
pub use usage::Usage;
