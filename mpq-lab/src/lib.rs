//! The testbed of mpq; `cargo lab` is its command line, and the tests in `tests/` use it as a library.
//!
//! - Set-up: [`setup`] installs what is missing ([`apt`], [`criu`]); [`check`] runs every test of the
//!   workspace.
//! - The network: [`topology`] makes hosts of network namespaces, [`emulator`] the links between them
//!   as a [`shape`] says; [`calibrate`] measures whether it does, and [`standing`] leaves one up.
//! - A run: [`bench`] runs a server and a [`download`] on a network and moves the server between
//!   hosts; [`demo`] shows one move, and [`report`] its figures.
//! - Experiments: a [`scenario`] is data; [`run`] lets an arm ([`tcp`] has those of others) download
//!   once, while [`sample`] counts; [`reproduce`] repeats that into [`results`], and [`figures`],
//!   [`plot`] and [`document`] make a report of them, beside what the [`paper`] has.
//! - Side by side with plain quinn ([`quinn_server`]): [`compare`] and its [`ratios`].

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
pub mod guards;
pub mod herd;
pub mod host;
pub mod paper;
mod ping;
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
pub mod targets;
pub mod tcp;
pub mod topology;
