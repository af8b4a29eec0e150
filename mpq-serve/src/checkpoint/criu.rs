//! Finding CRIU, and running it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::control::wait_for;
use super::descendants;
use super::namespace::{self, Ended};
use super::notes::read_json;
use super::process::{Process, is_held};
use crate::error::Error;

/// The oldest version that works on today's kernels.
const OLDEST: (u32, u32) = (4, 2);

/// The file in which CRIU notes what a processor has.
const PROCESSOR: &str = "cpuinfo.img";
/// How long CRIU may take until it has stopped what it is to dump.
const BEGIN_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether a CRIU that has begun has let go again.
const HELD_INTERVAL: Duration = Duration::from_secs(1);

/// A CRIU that is new enough.
#[derive(Debug)]
pub struct Criu {
    program: PathBuf,
    version: String,
}

impl Criu {
    /// The one that is `named`, else that of `MPQ_CRIU`, else the first that is new enough of that in `PATH` and
    /// that which `cargo lab setup` unpacks.
    ///
    /// # Errors
    /// There is none, it is too old, or this is not root.
    pub fn find(command: &'static str, named: Option<&Path>) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotPermitted(command));
        }
        if let Some(program) = named.map(PathBuf::from).or_else(named_by_environment) {
            return Self::at(program);
        }
        let first = Self::at("criu".into());
        match unpacked() {
            Some(program) if first.is_err() => Self::at(program).or(first),
            _ => first,
        }
    }

    fn at(program: PathBuf) -> Result<Self, Error> {
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|_| Error::NoCriu)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.ok_or(Error::NoCriu)?.trim();
        match parse(version) {
            Some(parsed) if parsed >= OLDEST => Ok(Self {
                version: version.to_owned(),
                program,
            }),
            _ => Err(Error::OldCriu(version.into())),
        }
    }

    /// Its version, as it says it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the kernel can do what it needs.
    ///
    /// # Errors
    /// What it says is missing.
    pub fn check(&self) -> Result<(), String> {
        self.ask(&["check"], None)
    }

    /// What it notes of the processor of this host, for [`check_processor`](Self::check_processor) on another one; nothing if
    /// it knows nothing of processors of this kind. The folder is made for that.
    ///
    /// # Errors
    /// What it says.
    pub fn note_processor(&self, folder: &Path) -> Result<Vec<u8>, String> {
        self.ask(&["cpuinfo", "dump"], Some(folder))?;
        match fs::read(folder.join(PROCESSOR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            noted => noted.map_err(|error| format!("{PROCESSOR}: {error}")),
        }
    }

    /// Whether the processor of this host has what that other one has, of which this was noted. The folder is made for
    /// that.
    ///
    /// # Errors
    /// What it says is missing.
    pub fn check_processor(&self, folder: &Path, noted: &[u8]) -> Result<(), String> {
        let file = fs::write(folder.join(PROCESSOR), noted);
        file.map_err(|error| format!("{PROCESSOR}: {error}"))?;
        self.ask(&["cpuinfo", "check"], Some(folder))
    }

    /// Runs one of its checks to the end, which says on the standard error stream what is wrong.
    fn ask(&self, check: &[&str], folder: Option<&Path>) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(check).stdin(Stdio::null());
        if let Some(folder) = folder {
            command.arg("--images-dir").arg(folder);
        }
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_cause = |line: &&str| line.contains("Error") || line.contains("ERROR");
        let reason = said
            .lines()
            .find(is_cause)
            .or_else(|| said.lines().next_back());
        let check = check.join(" ");
        Err(format!(
            "criu {check}: {}",
            reason.unwrap_or_default().trim()
        ))
    }

    /// Dumps a process into `images`; it is gone then. CRIU runs `hook`, with this variable in its environment, at
    /// each of its steps; the one that is run when the images are complete can have the process go on.
    ///
    /// CRIU is ended if it has not begun in 20 s. It gives up by itself if it cannot stop the process within ten
    /// seconds (`--timeout`). From then on nobody ends it: its code is in the process, which could not go on.
    ///
    /// # Errors
    /// What CRIU's log says; or that it has not begun.
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
        let others = descendants::present();
        let begin = |criu: &Process| wait_until_begun(criu, &others, pid);
        run(command, images.join("dump.log"), begin)
    }

    /// Restores the process whose images these are, and leaves it. CRIU runs `hook` as in [`dump`](Self::dump); the
    /// one that is run when the process is restored, and does not run yet, can have it ended. CRIU has `lock` for as
    /// long as it runs, and is ended after `limit`. It runs by way of the first process of a namespace of ids, if `init` says
    /// how that is started.
    ///
    /// # Errors
    /// What CRIU's log says, or that it took too long. Processes that it has made may be left.
    pub fn restore(
        &self,
        images: &Path,
        hook: &Path,
        (name, value): (&str, String),
        lock: File,
        limit: Duration,
        init: Option<Command>,
    ) -> Result<(), String> {
        let mut command = self.command("restore", images);
        command
            // A folder that the server is in may have other permissions than where it was.
            .args(["--restore-detached", "--skip-file-rwx-check"])
            .arg("--action-script")
            .arg(hook)
            .env(name, &value);
        let log = images.join("restore.log");
        if let Some(mut init) = init {
            init.arg("--").arg(command.get_program());
            init.args(command.get_args()).env(name, value).stdin(lock);
            return run_within(init, images, &log, limit);
        }
        command.stdin(lock);
        let limited = |criu: &Process| {
            let is_late = !criu.ends_within(limit);
            if is_late {
                let _ = criu.kill();
            }
            is_late.then(|| took_too_long(limit))
        };
        run(command, log, limited)
    }

    fn command(&self, action: &str, images: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(action)
            // A server that was started from a shell is not the leader of its session.
            .arg("--shell-job")
            // It is restored in that of whoever does so, such as a unit of systemd, which would not know it otherwise.
            .arg("--manage-cgroups=ignore")
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

/// The one that the operator names.
pub fn named_by_environment() -> Option<PathBuf> {
    std::env::var_os("MPQ_CRIU").map(PathBuf::from)
}

/// Where `cargo lab setup` unpacks one.
fn unpacked() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty());
    // A service of systemd has no HOME: then it is that of the user.
    let cache = cache.map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    Some(cache.join("mpq/criu/usr/sbin/criu"))
}

/// Returns when CRIU has ended, or has to, since it has not begun to dump this process in time: what is to be said then.
/// Of the descendants of this process, CRIU and its own are all but the `spared`.
fn wait_until_begun(criu: &Process, spared: &[i32], dumped: i32) -> Option<String> {
    let mut limit = BEGIN_LIMIT;
    while !criu.ends_within(limit) {
        // Whether it has begun is certain while it stands still.
        if descendants::end_unless(spared, || is_held(dumped)) {
            let limit = BEGIN_LIMIT.as_secs();
            return Some(format!("CRIU has not begun in {limit} s"));
        }
        limit = HELD_INTERVAL;
    }
    None
}

/// Runs CRIU to its end. `watch` may end it before, and says why.
fn run(
    mut command: Command,
    log: PathBuf,
    watch: impl FnOnce(&Process) -> Option<String>,
) -> Result<(), String> {
    let run = || {
        descendants::keep()?;
        let mut criu = command.spawn()?;
        let why = watch(&Process::open(criu.id() as i32)?);
        Ok((criu.wait()?, why))
    };
    let (status, why) = run().map_err(|error: io::Error| error.to_string())?;
    match (status.success(), why) {
        (true, _) => Ok(()),
        (false, Some(why)) => Err(format!("{why} (see {})", log.display())),
        (false, None) => Err(failed(&status.to_string(), &log)),
    }
}

/// The same by way of the first process of a namespace, which says what has become of CRIU, and stays.
fn run_within(mut init: Command, images: &Path, log: &Path, limit: Duration) -> Result<(), String> {
    let ended = images.join(namespace::ENDED);
    for left in [&ended, &images.join(namespace::SEEN)] {
        let _ = fs::remove_file(left);
    }
    let start = descendants::keep().and_then(|()| namespace::start(&mut init));
    let started = start
        .and_then(|child| Process::open(child.id() as i32))
        .map_err(|error| format!("no namespace of process ids can be made: {error}"))?;
    let ended = || {
        // Looked at before its last word is.
        let is_gone = started.has_ended();
        let gone = || Ended {
            success: false,
            status: "the first process of its namespace has ended".to_owned(),
        };
        read_json(&ended).or_else(|| is_gone.then(gone))
    };
    match wait_for(limit, ended) {
        Some(Ended { success: true, .. }) => Ok(()),
        Some(Ended { status, .. }) => Err(failed(&status, log)),
        None => {
            let _ = started.kill();
            let why = took_too_long(limit);
            Err(format!("{why} (see {})", log.display()))
        }
    }
}

fn took_too_long(limit: Duration) -> String {
    format!("CRIU took longer than {} s", limit.as_secs_f64())
}

/// Why it has, as its log says.
fn failed(status: &str, log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The first error is the cause; those after it follow from it. That RLIMIT_NOFILE cannot be
    // raised is said each time and harmless.
    let is_cause = |line: &&str| line.contains("Error") && !line.contains("rlimit");
    let error = text.lines().find(is_cause);
    let error = error.unwrap_or("no error in its log");
    let (error, log) = (error.trim(), log.display());
    format!("CRIU: {status}: {error} (see {log})")
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
