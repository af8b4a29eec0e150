//! Multipath QUIC and live server migration: what both ends of mpq share.
//!
//! [`client::Client`] downloads over every interface and follows a server that moves;
//! [`server::Server`] serves, and moves with all of its connections. What to do when is decided by
//! the sans-IO machines of [`proto`], which also explains the protocol. Below are the sockets of each
//! interface ([`net`]), HTTP/3 over noq ([`mod@h3`]) and the congestion control.
//!
//! Data flows one way: sockets → noq → driver → machine → its outputs.
#![forbid(unsafe_code)]

pub mod client;
mod congestion;
mod error;
mod frame_io;
pub mod h3;
pub mod limits;
pub mod net;
pub mod proto;
#[cfg(feature = "qlog")]
mod qlog;
mod runtime;
pub mod server;
mod stats;
mod time;
pub mod tls;
mod transport;
mod usage;

pub use congestion::{Congestion, Resume, UnknownCongestion, UnknownResume};
pub use stats::{PathStats, PathTraffic, Traffic};
pub use usage::Usage;
