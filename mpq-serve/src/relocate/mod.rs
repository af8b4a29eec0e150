//! A move of the server: announced, prepared, and gone through, by CRIU or within the process.
//!
//! [`mover`] has one move after the other, each of which is a [`single`] one, and sees its [`progress`].

mod mover;
mod progress;
mod single;

pub(crate) use self::mover::Mover;
