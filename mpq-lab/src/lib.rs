//! The testbed of mpq; `cargo lab` is its command line, and the tests in `tests/` use it as a library.
//!
//! Each folder uses only those above it in this list:
//!
//! - [`system`]: the machine the lab runs on, and the programs it installs there.
//! - [`network`]: hosts of network namespaces, and emulated links between them.
//! - [`arms`]: who downloads: `mpq-get` and `mpq-serve`, plain quinn, nginx and curl; and what is
//!   counted meanwhile.
//! - [`experiment`]: a scenario is data; each arm runs it again and again, and a report compares the
//!   results with the paper's.
//! - [`mod@bench`]: ratios side by side, many clients at once, and the targets of the project.
//!
//! Beside them, a file for each of the other commands: [`demo`] shows one move, which
//! [`move_summary`] puts in figures; [`check`] is `cargo lab test`, [`guards`] takes the guards of
//! the protocol out one by one, and [`mutants`] changes whatever its machines do. [`package`] makes what
//! packages of the tools have.

pub mod arms;
pub mod bench;
pub mod check;
pub mod demo;
pub mod experiment;
pub mod guards;
pub mod move_summary;
pub mod mutants;
pub mod network;
pub mod package;
pub mod system;
