//! All that has a server frozen and brought back: the commands for scripts, the helper that runs CRIU,
//! and what a process must let go of before it can be frozen.
//!
//! [`command`] tells a server to have itself dumped; [`helper`] has CRIU do it ([`dump`]), and [`hook`] decides whether
//! it counts; [`restore`] brings a server back. They talk by [`notes`] in a [`control`] directory, and
//! leave [`images`], whose [`token`] is who may wake the server, and once; [`standstill`] waits for one from
//! another host. Images can be [`sealing`] [`seal`]ed. [`process`] and [`trust`] tell whose process and whose folder it is. [`forward`] stays where the server
//! was, if that is wanted. [`park`] is for those who dump a server by other means. [`criu`] finds and runs CRIU, and
//! [`descendants`] ends what it may leave. A server whose process ids are in use is restored in a [`namespace`] of its
//! own, whose first process is [`init`]; [`preflight`],
//! [`stdio`] and [`heap`] prepare the server's own process. [`proc`] reads what the kernel says of processes.
//!
//! The server does all of it by itself on SIGUSR1. When it is parked it has no socket, file or
//! standard stream open, and says so by a note; the helper, which is no child of it (CRIU dumps
//! children too), then dumps it. If that fails the helper says why, and the server goes on.
//!
//! A server of an ordinary [`owner`] has no right to be dumped: root has it dumped ([`for_user`]). Its own helper does all
//! but that.

pub mod command;
pub mod control;
pub mod criu;
pub mod descendants;
pub mod dump;
pub mod for_user;
pub mod forward;
pub mod heap;
pub mod helper;
pub mod hook;
pub mod images;
pub mod init;
pub mod namespace;
pub mod notes;
pub mod owner;
pub mod park;
pub mod preflight;
pub mod proc;
pub mod process;
pub mod restore;
pub mod seal;
pub mod sealing;
pub mod standstill;
pub mod stdio;
pub mod token;
pub mod trust;

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

/// For so long a restored server hears no signals: they may have been in its images.
pub const OLD_SIGNALS: Duration = Duration::from_millis(100);

/// Prints what a command has found out. What it was to do is done, also if nobody wants to hear of it.
pub fn say(line: &impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
