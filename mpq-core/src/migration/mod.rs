//! The migration protocol: its frames on the wire and the machines of both ends.
//!
//! The frames travel on one unidirectional stream in each direction, of an HTTP/3 stream type of
//! our own, which any other peer discards (RFC 9114 §6.2). They are therefore encrypted,
//! authenticated, ordered and retransmitted like everything else on the connection.
//!
//! ```text
//! client                                     server
//!   | HELLO ----------------------------------> |  Serving
//!   | <--------------------------- MIGRATION    |  Announced: clients know where it will be
//!   | READY ----------------------------------> |
//!   |      (old paths carry the download)       |
//!   | <------------------------------ PARKED    |  Parking: writers stop, the network drains
//!   |                                           |  Parked: sockets closed; dumped … restored
//!   | probe -->                      <-- knock  |  Resuming: somebody answers at the new address
//!   | opens and validates paths ==============> |
//!   | <----------------------------- ARRIVED    |  Serving
//! ```
//!
//! If the server wakes at its old address, it sends CANCELLED and all goes on as before.
//!
//! Both machines are sans-IO: inputs and the time go in, outputs are polled, and there is no
//! clock, socket or task inside.
//!
//! # The client's transitions
#![doc = include_str!("client_transitions.md")]
//! # The server's transitions
#![doc = include_str!("server_transitions.md")]
#![deny(clippy::disallowed_methods)]

pub mod client;
pub mod frame;
pub mod policy;
pub mod server;

pub use frame::Frame;
