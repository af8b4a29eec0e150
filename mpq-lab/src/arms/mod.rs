//! Who downloads, and from whom: each is run as its user would run it, as programs on hosts of the
//! network.
//!
//! - [`mpq_server`] starts `mpq-serve`, [`testbed`] is a network with one that can be moved, and
//!   [`mpq_get`] is a download, seen through its events.
//! - [`quinn_server`] is a server of plain QUIC; [`tcp`] has nginx and curl.
//! - [`attacker`] is somebody who means harm to a server.
//! - [`sample`] counts, for all of them alike, what arrives and what they use.

pub mod attacker;
pub mod mpq_get;
pub mod mpq_server;
pub mod quinn_server;
pub mod sample;
pub mod tcp;
pub mod testbed;
