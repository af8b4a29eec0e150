//! The client's side of the protocol.

mod machine;
mod strategy;

pub use machine::{Client, Config, Event, Input, Output};
pub use strategy::{Strategy, UnknownStrategy};
