//! A network with one `mpq-serve`, its downloads, and its moves between the hosts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::Command;

use crate::arms::mpq_get::Download;
use crate::arms::mpq_server::{
    Content, Dump, Restored, content_options, gone, json, lost_packets, output, start_server,
};
use crate::network::model::Network;
use crate::network::topology::{Host, Topology};
use crate::system::host::built;

/// How much of a log of CRIU is worth showing.
const CRIU_LINES: usize = 20;

/// A network with one server. Dropping it ends all that runs there and removes every file of it.
#[derive(Debug)]
pub struct Testbed {
    // First of all: the processes end before their files are removed.
    topology: Topology,
    // On tmpfs, as the images hold keys.
    images: TempDir,
    // There too, so that no disk is measured.
    scratch: TempDir,
    criu: PathBuf,
}

impl Testbed {
    /// Makes the network; servers use this CRIU. Needs root.
    ///
    /// # Errors
    /// If the network cannot be made.
    pub fn new(criu: &Path, network: &Network) -> Result<Testbed> {
        let private = || {
            tempfile::Builder::new()
                .prefix("mpq-lab-")
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in("/dev/shm")
                .context("cannot make a folder in memory")
        };
        Ok(Testbed {
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

    /// The folder in which each checkpoint makes one for its images.
    fn images(&self) -> &Path {
        self.images.path()
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
            .arg(host.server_address().to_string())
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
            .arg(format!("https://{}/random", from.server_address()));
        Download::start(command)
    }

    /// The server's process.
    ///
    /// # Errors
    /// If there is none.
    pub fn server_pid(&self) -> Result<i32> {
        let text = fs::read_to_string(self.pid_file()).context("no server runs")?;
        Ok(text.trim().parse()?)
    }

    /// Kills the server.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.server_pid()?), Signal::SIGKILL)?)
    }

    /// Ends the server, and returns the packets that it has sent again on all of its connections.
    ///
    /// It is ended since it need not know yet that its client has left: a CONNECTION_CLOSE may be
    /// lost, and nobody sends it again (RFC 9000 §10.2).
    ///
    /// # Errors
    /// If there is none, if it does not end, or if it tells nothing.
    pub async fn sent_again(&self) -> Result<u64> {
        let server = self.server_pid()?;
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
            .arg(to.server_address().to_string());
        let images = output(command).await?;
        let manifest = fs::read(Path::new(images.trim()).join("manifest.json"))?;
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
        let folders = fs::read_dir(self.images()).into_iter().flatten().flatten();
        let of =
            |folder: fs::DirEntry| ["dump.log", "restore.log"].map(|name| folder.path().join(name));
        for name in folders.flat_map(of) {
            let log = fs::read_to_string(&name).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(CRIU_LINES)..];
            if !tail.is_empty() {
                text += &format!("{}:\n{}\n", name.display(), tail.join("\n"));
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
