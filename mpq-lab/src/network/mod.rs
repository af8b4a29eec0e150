//! The network that everything runs on: what it is asked to be, how it is made, and whether it is so.
//!
//! - [`link_model`] says what one link does to packets, and [`model`] what all of them are together.
//! - [`emulator`] is the process that does that to packets; [`topology`] makes the hosts around it.
//! - [`calibrate`] measures whether the links are as asked for, by `flood` and `ping`.
//! - [`up`] leaves a network up, for work by hand.

pub mod calibrate;
pub mod emulator;
mod flood;
pub mod link_model;
pub mod model;
pub(crate) mod ping;
pub mod topology;
pub mod up;
