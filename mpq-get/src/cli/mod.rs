//! The command line: its options, and the URL that is given with them.
//!
//! Everything that can be found wrong without the network is found here, before any file or
//! connection exists. What is made of it is a [`download::request`](crate::download::request).

pub mod args;
mod unknown;
mod url;

pub use self::unknown::read;
