//! Multipath QUIC and live server migration.
pub mod migration;
pub mod h3_noq;
pub mod tls;
pub mod path;
