//! A server and a download on a [`Topology`], and the server's moves between its hosts.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::download::Download;
use crate::host::built;
use crate::topology::{Host, Network, Topology};

const PORT: u16 = 4433;

/// How much of a log of CRIU is worth showing.
const CRIU_LINES: usize = 20;

/// How long a server that has ended may stay a zombie.
const COLLECTED: Duration = Duration::from_secs(30);

/// How often a process is looked at.
const POLL: Duration = Duration::from_millis(1);

/// The content a server is to serve as `/random`.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// What the bytes are made from.
    pub seed: u64,
}

impl Content {
    /// The digest a download of it must have, in lower-case hexadecimal.
    pub fn sha256(self) -> String {
        mpq_serve::site::random::sha256(self.size, self.seed)
    }
}

/// When a server was stopped, as its images tell; unix times in seconds.
#[derive(Debug, Clone, Deserialize)]
pub struct Dump {
    /// The server's process.
    pub pid: i32,
    /// The server's process was frozen.
    pub dump_started: f64,
    /// Its images were complete.
    pub dumped: f64,
}

/// What a restored server says.
#[derive(Debug, Clone, Deserialize)]
pub struct Restored {
    /// The server's process.
    pub pid: i32,
    /// Unix time, in seconds, at which it ran again.
    pub thawed: f64,
}

/// A network with one server. Dropping it ends all that runs there and removes every file of it.
#[derive(Debug)]
pub struct Bench {
    // First of all: the processes end before their files are removed.
    topology: Topology,
    // On tmpfs, as the images hold keys.
    images: TempDir,
    // There too, so that no disk is measured.
    scratch: TempDir,
    criu: PathBuf,
}

impl Bench {
    /// Makes the network; servers use this CRIU. Needs root.
    ///
    /// # Errors
    /// If the network cannot be made.
    pub fn new(criu: &Path, network: &Network) -> Result<Bench> {
        let private = || {
            tempfile::Builder::new()
                .prefix("mpq-lab-")
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in("/dev/shm")
                .context("cannot make a folder in memory")
        };
        Ok(Bench {
            topology: Topology::new(network)?,
            images: private()?,
            scratch: private()?,
            criu: criu.to_owned(),
        })
    }

    /// The network.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The folder of the images.
    pub fn images(&self) -> PathBuf {
        self.images.path().join("images")
    }

    /// Where a server on this host is reached.
    pub fn address(host: Host) -> SocketAddr {
        SocketAddrV4::new(host.address(), PORT).into()
    }

    /// Starts a server on this host and returns when it serves.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn serve(
        &self,
        host: Host,
        content: Content,
        configure: impl FnOnce(&mut Command),
    ) -> Result<()> {
        let mut command = self.mpq_serve(host)?;
        command
            .arg("--listen")
            .arg(Self::address(host).to_string())
            .arg("--images")
            .arg(self.images())
            .arg("--pid-file")
            .arg(self.pid_file())
            .args(content_options(content));
        configure(&mut command);
        let mut server = start_server(command, &self.log_file()).await?;
        // Once it is dumped somebody must collect it; see checkpoint.
        tokio::spawn(async move { server.wait().await });
        Ok(())
    }

    /// Starts a download from this host over both of the client's interfaces.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn download(&self, from: Host) -> Result<Download> {
        self.download_as(
            "download",
            from,
            &["--interface", "eth0", "--interface", "eth1"],
        )
    }

    /// Starts a download into a file of this name, with these options.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn download_as(&self, name: &str, from: Host, options: &[&str]) -> Result<Download> {
        let mut command = self.topology.command(Host::Client, built("mpq-get")?);
        command
            .arg("--insecure")
            .args(options)
            .arg("--output")
            .arg(self.scratch.path().join(name))
            .arg(format!("https://{}/random", Self::address(from)));
        Download::start(command)
    }

    /// The server's process.
    ///
    /// # Errors
    /// If there is none.
    pub fn server(&self) -> Result<i32> {
        let text = fs::read_to_string(self.pid_file()).context("no server runs")?;
        Ok(text.trim().parse()?)
    }

    /// Kills the server.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.server()?), Signal::SIGKILL)?)
    }

    /// Ends the server, and returns the packets that it has sent again on all of its connections.
    ///
    /// It is ended since it need not know yet that its client has left: a CONNECTION_CLOSE may be
    /// lost, and nobody sends it again (RFC 9000 §10.2).
    ///
    /// # Errors
    /// If there is none, if it does not end, or if it tells nothing.
    pub async fn sent_again(&self) -> Result<u64> {
        let server = self.server()?;
        kill(Pid::from_raw(server), Signal::SIGTERM)?;
        gone(server).await?;
        let log = fs::read_to_string(self.log_file())?;
        let lost: Vec<u64> = log.lines().filter_map(lost_packets).collect();
        ensure!(!lost.is_empty(), "the server tells no figures");
        Ok(lost.iter().sum())
    }

    /// A folder in memory for whatever a run needs.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Announces the move from one host to the other and returns when the images are complete.
    ///
    /// # Errors
    /// What the server says, if it cannot be dumped; it is still where it was then.
    pub async fn checkpoint(&self, from: Host, to: Host) -> Result<Dump> {
        let mut command = self.mpq_serve(from)?;
        command
            .arg("checkpoint")
            .arg("--pid-file")
            .arg(self.pid_file())
            .arg("--migrate-to")
            .arg(Self::address(to).to_string());
        output(command).await?;
        let manifest = fs::read(self.images().join("manifest.json"))?;
        let dump: Dump = serde_json::from_slice(&manifest).context("a manifest of another kind")?;
        // All hosts share this machine's process ids, and the restored server needs its own again.
        gone(dump.pid).await?;
        Ok(dump)
    }

    /// Brings the dumped server back on this host and returns when it serves.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn restore(&self, host: Host) -> Result<Restored> {
        let mut command = self.mpq_serve(host)?;
        command
            .arg("restore")
            .arg("--images")
            .arg(self.images())
            .arg("--pid-file")
            .arg(self.pid_file());
        json(&output(command).await?)
    }

    /// What the server has logged so far, and the end of what CRIU has, for the message of a failure.
    pub fn logs(&self) -> String {
        let mut text = fs::read_to_string(self.log_file()).unwrap_or_default();
        for name in ["dump.log", "restore.log"] {
            let log = fs::read_to_string(self.images().join(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(CRIU_LINES)..];
            if !tail.is_empty() {
                text += &format!("{name}:\n{}\n", tail.join("\n"));
            }
        }
        text
    }

    fn mpq_serve(&self, host: Host) -> Result<Command> {
        let mut command = self.topology.command(host, built("mpq-serve")?);
        command.env("MPQ_CRIU", &self.criu);
        Ok(command)
    }

    fn pid_file(&self) -> PathBuf {
        self.scratch.path().join("server.pid")
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("server.log")
    }
}

/// Waits for a process to be gone, and not to be a zombie that its parent has yet to collect.
async fn gone(pid: i32) -> Result<()> {
    let gone = async {
        while Path::new("/proc").join(pid.to_string()).exists() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(COLLECTED, gone)
        .await
        .context("nobody collects the process of the server; pid 1 should")
}

/// The lost packets of a line of a server's log, if it tells of a connection's end and not of one of
/// its paths'.
fn lost_packets(line: &str) -> Option<u64> {
    let (_, figures) = line.split_once("stats ")?;
    if figures.contains(" path=") {
        return None;
    }
    let lost = figures
        .split_whitespace()
        .find_map(|figure| figure.strip_prefix("lost_packets="))?;
    lost.parse().ok()
}

/// The options that make a server serve this content.
pub fn content_options(content: Content) -> [String; 4] {
    let Content { size, seed } = content;
    [
        "--random".into(),
        size.to_string(),
        "--seed".into(),
        seed.to_string(),
    ]
}

/// Starts a server that logs to a file, and returns when it says there that it listens.
///
/// # Errors
/// What it says instead.
pub async fn start_server(mut command: Command, log: &Path) -> Result<Child> {
    // What it says before it has a log goes there too.
    let file = File::options().create(true).append(true).open(log)?;
    let mut child = command
        .arg("--log-file")
        .arg(log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start mpq-serve")?;
    loop {
        let ended = child.try_wait()?;
        let said = fs::read_to_string(log)?;
        // Half a line has no address yet.
        let mut lines = said.split_inclusive('\n');
        if lines.any(|line| line.contains("listening on") && line.ends_with('\n')) {
            return Ok(child);
        }
        if let Some(status) = ended {
            bail!("mpq-serve did not start: {status}: {}", said.trim());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Runs a command to its end and returns what it wrote to standard output; what it wrote to
/// standard error becomes the error.
async fn output(mut command: Command) -> Result<String> {
    // Files, not pipes: a restored server takes them over, so that a pipe would never end.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let status = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .status()
        .await?;
    let read = |file: &mut File| {
        file.rewind()?;
        io::read_to_string(file)
    };
    let said = read(&mut err)?;
    ensure!(status.success(), "{status}: {}", said.trim());
    Ok(read(&mut out)?)
}

fn json<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line.trim()).with_context(|| format!("unexpected output: {line}"))
}
