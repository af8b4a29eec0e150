//! Finding CRIU, and running it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;

/// The oldest version that works on today's kernels.
const OLDEST: (u32, u32) = (4, 2);

/// A CRIU that is new enough.
#[derive(Debug)]
pub struct Criu(PathBuf);

impl Criu {
    /// The one that `MPQ_CRIU` names, else that in `PATH`.
    ///
    /// # Errors
    /// There is none, it is too old, or this is not root.
    pub fn find(command: &'static str) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotPermitted(command));
        }
        let program = std::env::var_os("MPQ_CRIU").map_or_else(|| "criu".into(), PathBuf::from);
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|_| Error::NoCriu)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.ok_or(Error::NoCriu)?.trim();
        match parse(version) {
            Some(version) if version >= OLDEST => Ok(Self(program)),
            _ => Err(Error::OldCriu(version.into())),
        }
    }

    /// Dumps a process into `images`; it is gone then. CRIU runs `hook`, with this variable in its environment, at
    /// each of its steps; the one that is run when the images are complete can have the process go on.
    ///
    /// # Errors
    /// What CRIU's log says.
    pub fn dump(
        &self,
        pid: i32,
        images: &Path,
        hook: &Path,
        (name, value): (&str, String),
    ) -> Result<(), String> {
        let mut command = self.command("dump", images);
        command
            .args(["--tree", &pid.to_string(), "--action-script"])
            .arg(hook)
            .env(name, value);
        run(command, images.join("dump.log"))
    }

    /// Restores the process whose images these are, as a child of nobody here.
    ///
    /// # Errors
    /// What CRIU's log says.
    pub fn restore(&self, images: &Path) -> Result<(), String> {
        let mut command = self.command("restore", images);
        command.arg("--restore-detached").stdin(Stdio::null());
        run(command, images.join("restore.log"))
    }

    fn command(&self, action: &str, images: &Path) -> Command {
        let mut command = Command::new(&self.0);
        command
            .arg(action)
            // A server that was started from a shell is not the leader of its session.
            .arg("--shell-job")
            .args([
                "-v2",
                "--log-file",
                &format!("{action}.log"),
                "--images-dir",
            ])
            .arg(images)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

fn run(mut command: Command, log: PathBuf) -> Result<(), String> {
    let status = command.status().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&log).unwrap_or_default();
    // The first error is the cause; those after it follow from it. That RLIMIT_NOFILE cannot be
    // raised is said each time and harmless.
    let is_cause = |line: &&str| line.contains("Error") && !line.contains("rlimit");
    let error = text.lines().find(is_cause);
    let error = error.unwrap_or("no error in its log");
    Err(format!(
        "CRIU: {status}: {} (see {})",
        error.trim(),
        log.display()
    ))
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse("4.2.1"), Some((4, 2)));
        assert_eq!(parse("3.17"), Some((3, 17)));
        assert_eq!(parse("4"), None);
        assert!(parse("4.10").unwrap() >= OLDEST && parse("4.1.1").unwrap() < OLDEST);
    }
}
