//! The migration protocol: its frames on the wire and the machines of both ends.
//!
//! The frames travel on one unidirectional stream in each direction, of an HTTP/3 stream type of
//! our own, which any other peer discards (RFC 9114 §6.2). They are therefore encrypted,
//! authenticated, ordered and retransmitted like everything else on the connection.
//!
//! ```text
//! client                                     server
//!   | HELLO ----------------------------------> |  Serving
//!   | <--------------------------- ADDRESSES    |  where else it may be found, if it says so
//!   | <--------------------------- MIGRATION    |  Announced: clients know where it will be
//!   | READY ----------------------------------> |
//!   |      (old paths carry the download)       |
//!   | <------------------------------ PARKED    |  Parking: writers stop, the network drains
//!   |                                           |  Parked: sockets closed; dumped … restored
//!   | probe -->                      <-- knock  |  Arriving: somebody answers at the new address
//!   | opens and validates paths ==============> |
//!   | <----------------------------- ARRIVED    |  Serving
//! ```
//!
//! If the server wakes at its old address, it sends CANCELLED and all goes on as before. A server
//! that moves without a word is looked for at the addresses of its pool, or followed when it knocks.
//! This is the default [`Strategy`]; there are others, for comparison.
//!
//! Both machines are sans-IO: inputs and the time go in, outputs are polled, and there is no
//! clock, socket or task inside. So they can be run against each other in virtual time
//! (`tests/simulation`), over a network that delays, reorders and loses, with failing
//! freezes, changing interfaces and forged answers. What holds in every run:
//!
//! - Probes and openings go only to the present address and to acceptable ones that the server has
//!   named or knocked from ([`policy`]); what is sent there is
//!   capped, for each address and for all of them, over the life of the connection.
//! - Answers are hints. Whoever answers and does not become a validated path in time is given up,
//!   and the search goes on. A server that still speaks where it was has not moved.
//! - The last path is never closed, and a client that was told of the move ends where the server
//!   is, with one path from each interface.
//! - After CANCELLED nothing is left of the move: no path, no opening, no timer.
//!
//! The tables below are made from the machines by `tests/migration_transitions.rs`. In them the
//! client has the local addresses x and y, paths 0 (x–A) and 1 (y–A), and was told of B; events
//! are in italics. The server has the clients 1 and 2, and 1 s of lead time.
//!
//! # The client's transitions
//!
#![doc = include_str!("client_states.svg")]
//!
#![doc = include_str!("client_transitions.md")]
//! # The server's transitions
//!
#![doc = include_str!("server_states.svg")]
//!
#![doc = include_str!("server_transitions.md")]
//! # The same move by each strategy
#![doc = include_str!("strategies.md")]
#![deny(clippy::disallowed_methods)]

pub mod client;
pub(crate) mod evacuation;
pub(crate) mod first_path;
pub mod forward;
pub mod frame;
mod id;
pub(crate) mod liveness;
pub(crate) mod opening_gate;
pub mod ownership;
pub mod policy;
pub mod probe;
pub mod server;
pub(crate) mod trace;
pub(crate) mod varint;

pub use client::{Strategy, UnknownStrategy};
pub use frame::Frame;
pub use id::PathId;
pub use liveness::PathFigures;
