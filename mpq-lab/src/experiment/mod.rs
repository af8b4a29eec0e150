//! `cargo lab reproduce` and `cargo lab run`: experiments, from a file that says what to do to a report
//! of what came of it.
//!
//! - [`scenario`] reads what an experiment is.
//! - [`run`] runs one arm once: `stage` is what it runs on, `run_mpq` and `run_tcp` are the ways to do
//!   it, and [`record`] is what it has shown.
//! - [`results`] keeps the records; [`metrics`] and [`statistics`] make figures of them.
//! - [`report`] writes the figures down, with pictures by [`plot`], beside those of the [`paper`].
//! - [`reproduce`] does all of this in order.

mod client_log;
pub mod metrics;
pub mod paper;
pub mod plot;
pub mod record;
pub mod report;
pub mod reproduce;
pub mod results;
pub mod run;
mod run_mpq;
mod run_tcp;
pub mod scenario;
mod stage;
pub mod statistics;
