//! `mpq-serve move`: a running server moves from this host, A, to another one, B, by one command.
//!
//! [`source`] runs at A. It starts [`target`] at B, by ssh, and they talk through its [`channel`], which [`ssh`] opens, in [`messages`]:
//!
//! 1. A says what the server [`needs`], and B what it [finds](findings). All that is in the way is told at once, and no
//!    client has heard of a move.
//! 2. The server announces its move, parks, and is dumped, as by `mpq-serve checkpoint`.
//! 3. The images go to B, which restores the server. It stands still there, without the token of its images
//!    ([`standstill`](crate::checkpoint::standstill)).
//! 4. A gives up its own images, and then sends the token. From here on the server can run at B only.
//! 5. B says that it serves, and A wipes its images.
//! 6. B says how many clients are back, until all are, or the operator has waited long enough.
//!
//! Whatever fails before the fourth step, or [whoever](interruption) ends it, has the server woken at A, which tells
//! its clients that it stays. [`options`] is what the operator says, and [`timing`] what the steps took.

pub mod channel;
pub mod findings;
pub mod interruption;
pub mod messages;
pub mod needs;
pub mod options;
pub mod source;
pub mod ssh;
pub mod target;
pub mod timing;
