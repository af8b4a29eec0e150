//! The testbed of mpq: network namespaces, a CRIU of its own, and runs of the two tools in them.
//!
//! [`setup`] installs what is missing, [`topology`] makes the network, [`bench`] runs a server and
//! a download on it and moves the server between hosts, [`demo`] shows one move with its figures,
//! [`compare`] measures ratios side by side, and [`check`] runs every test of the workspace. `cargo lab` is the command line of all that;
//! the tests in `tests/` use the library.

pub mod apt;
pub mod bench;
pub mod calibrate;
pub mod check;
pub mod compare;
pub mod criu;
pub mod demo;
pub mod document;
pub mod download;
pub mod emulator;
pub mod figures;
mod flood;
pub mod host;
pub mod paper;
pub mod plot;
pub mod quinn_server;
pub mod ratios;
pub mod report;
pub mod reproduce;
pub mod results;
pub mod run;
pub mod sample;
pub mod scenario;
pub mod setup;
pub mod shape;
pub mod standing;
pub mod tcp;
pub mod topology;
