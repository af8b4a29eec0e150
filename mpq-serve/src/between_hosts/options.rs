//! What the operator says of a move to another host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::ssh::Ssh;
use crate::units::duration;
use crate::values::{pid, target};

/// The options of every move to another host.
#[derive(Debug, Clone, clap::Args)]
pub struct Transfer {
    /// Host to move to, B, as ssh names it
    #[arg(long, value_name = "[USER@]HOST", value_parser = host)]
    pub to: String,

    /// Address at which clients reach the server at B, which they are told
    #[arg(long, value_name = "ADDR:PORT", value_parser = target)]
    pub address: SocketAddr,

    /// Only look for what would be in the way of the move, on both hosts
    #[arg(long)]
    pub dry_run: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Directory, on either host, in which to make a new one for the images; by default in memory, in
    /// /run/mpq-serve/images
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,

    /// Program that reaches B, with its options, separated by spaces
    #[arg(long, value_name = "COMMAND", default_value = "ssh", value_parser = command)]
    pub ssh: String,
}

impl Transfer {
    /// What reaches B.
    pub fn ssh(&self) -> Ssh {
        Ssh::new(&self.ssh, &self.to)
    }
}

/// The options of `mpq-serve move`.
#[derive(Debug, Clone, clap::Args)]
pub struct MoveOptions {
    /// Where to, and how.
    #[command(flatten)]
    pub transfer: Transfer,

    /// Process id of the server
    #[arg(long, value_name = "PID", group = "server", value_parser = pid())]
    pub pid: Option<i32>,

    /// File that holds the process id of the server
    #[arg(long, value_name = "FILE", group = "server")]
    pub pid_file: Option<PathBuf>,

    /// Keep clients that cannot follow, such as browsers: a process stays at A and forwards what they and the server
    /// send, until the last of them has left
    #[arg(long)]
    pub forward: bool,

    /// Append the log to this file at B, instead of the one it is appended to at A
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// How mpq-serve is run at B, for the shell there, such as `sudo mpq-serve`; by default the program that the
    /// server runs, which must be there
    #[arg(long, value_name = "COMMAND")]
    pub remote_program: Option<String>,

    /// Once B serves, wait this long until all clients are back, and tell how many are; 0 does not wait. In s, or with
    /// ms, s, m or h
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub await_clients: Duration,

    /// Give up, and serve at A, if the restore at B takes longer; in s, or with ms, s, m or h
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub time_limit: Duration,
}

/// A host that ssh does not take for an option.
pub(crate) fn host(text: &str) -> Result<String, String> {
    match text.is_empty() || text.starts_with('-') {
        true => Err("expected [USER@]HOST".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// A program, with its options.
pub(crate) fn command(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err("expected a program".to_owned()),
        false => Ok(text.to_owned()),
    }
}
