//! How a command is run on either host.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use mpq_core::printable;

use super::engine::{Script, words};
use crate::between_hosts::interruption::Interruption;
use crate::between_hosts::ssh::Ssh;

/// What ssh ends with if the command did not (ssh(1)).
const UNREACHABLE: i32 = 255;

/// A host.
#[derive(Debug, Clone)]
pub enum Host {
    /// This one.
    Here,
    /// One that a program such as ssh reaches.
    There(Ssh),
}

/// Why a step of a move was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unrun {
    /// It has failed.
    Failed(String),
    /// It is not known whether it was done.
    Unreachable(String),
    /// The operator ends the move.
    Interrupted,
}

impl fmt::Display for Unrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) | Self::Unreachable(reason) => f.write_str(reason),
            Self::Interrupted => f.write_str("it was told to end"),
        }
    }
}

impl Interruption {
    pub(super) fn check(&self) -> Result<(), Unrun> {
        match self.came() {
            true => Err(Unrun::Interrupted),
            false => Ok(()),
        }
    }
}

impl Host {
    /// Runs it, to its end.
    ///
    /// # Errors
    /// It has failed, and what it said last; or that is not known.
    pub fn run(&self, script: &Script) -> Result<(), Unrun> {
        let mut command = self.command(script);
        let output = command.stdin(Stdio::null()).output();
        self.outcome(script, output)
    }

    /// Copies a folder of this host to the same place there, where it must not be yet. Only root can read it there.
    ///
    /// # Errors
    /// It cannot be read or written, or the host cannot be reached.
    pub fn copy(&self, folder: &Path) -> Result<(), Unrun> {
        let failed = |error: io::Error| Unrun::Failed(format!("tar: {error}"));
        let (name, parent) = (
            folder.display().to_string(),
            folder.parent().unwrap_or(folder),
        );
        let Script(parent) = words(["mkdir", "-p", &parent.display().to_string()]);
        let Script(make) = words(["mkdir", &name]);
        let Script(extract) = words(["tar", "-C", &name, "-x"]);
        let script = Script(format!("umask 077 && {parent} && {make} && {extract}"));
        let mut archive = Command::new("tar")
            .args(["-C", &name, "-c", "."])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let sent = self.send(&script, &mut archive);
        match archive.wait().map_err(failed)? {
            status if status.success() => sent,
            status => sent.and(Err(Unrun::Failed(format!("tar: {status}")))),
        }
    }

    fn send(&self, script: &Script, archive: &mut Child) -> Result<(), Unrun> {
        let mut command = self.command(script);
        let from = archive.stdout.take().map_or(Stdio::null(), Stdio::from);
        let output = command.stdin(from).output();
        self.outcome(script, output)
    }

    fn command(&self, Script(script): &Script) -> Command {
        match self {
            Self::Here => {
                let mut command = Command::new("sh");
                // A Ctrl-C of the terminal does not end the engine in the middle of its work.
                command.args(["-c", script]).process_group(0);
                command
            }
            Self::There(ssh) => ssh.command(script),
        }
    }

    fn outcome(&self, script: &Script, output: io::Result<Output>) -> Result<(), Unrun> {
        let output = output.map_err(|error| Unrun::Failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        let Script(script) = script;
        let reason = match last {
            Some(line) => printable(line.trim()),
            None => format!("{script}: {}", output.status),
        };
        Err(match (self, output.status.code()) {
            (Self::There(_), None | Some(UNREACHABLE)) => Unrun::Unreachable(reason),
            _ => Unrun::Failed(reason),
        })
    }
}
