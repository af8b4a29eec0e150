//! The testbed of mpq: network namespaces, a CRIU of its own, and runs of the two tools in them.
//!
//! [`setup`] installs what is missing, [`topology`] makes the network, [`bench`] runs a server and
//! a download on it and moves the server between hosts, [`demo`] shows one move with its figures,
//! and [`check`] runs every test of the workspace. `cargo lab` is the command line of all that;
//! the tests in `tests/` use the library.

pub mod apt;
pub mod bench;
pub mod check;
pub mod criu;
pub mod demo;
pub mod download;
pub mod host;
pub mod report;
pub mod setup;
pub mod topology;
