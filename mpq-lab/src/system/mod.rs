//! The machine the lab runs on: its programs and packages, what its kernel counts, and which revision
//! of this project is there. Nothing here knows of networks or downloads.

pub mod aioquic;
pub mod apt;
pub mod counters;
pub mod criu;
pub mod host;
pub mod revision;
pub mod runc;
pub mod setup;
pub mod sshd;
