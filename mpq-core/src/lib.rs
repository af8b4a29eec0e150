//! Multipath QUIC and live server migration.
#![forbid(unsafe_code)]

mod gate;
pub mod h3_noq;
pub mod migration;
pub mod path;
pub mod tls;

pub use gate::Gate;
