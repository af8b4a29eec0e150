//! What a user would pick instead: HTTPS over TCP or Multipath TCP, by nginx and curl.
//!
//! Both are Debian's. nginx is unpacked rather than installed, since its package would start it
//! outside of the lab. `mptcpize` makes their TCP sockets multipath ones.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mpq_serve::site::random::Random;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::arms::mpq_server::Content;
use crate::network::topology::Host::{self, Client, Router, ServerA, ServerB};
use crate::network::topology::Topology;
use crate::system::apt;
use crate::system::host::{cache, run};
use crate::system::setup::install;

/// Installs curl and mptcpize, and unpacks nginx into the lab's folder. Needs root.
///
/// # Errors
/// If Debian's archive has not got them.
pub fn setup() -> Result<()> {
    install(&[("curl", "curl"), ("mptcpize", "mptcpize")])?;
    if !nginx()?.is_file() {
        apt::update()?;
        // nginx' libraries come the usual way.
        apt::install(&["libpcre2-8-0", "libssl3", "zlib1g"])?;
        apt::unpack(&["nginx"], &folder()?)?;
    }
    Ok(())
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("nginx"))
}

/// Where the program is, once it was set up.
///
/// # Errors
/// There is no folder for it.
pub fn nginx() -> Result<PathBuf> {
    Ok(folder()?.join("usr/sbin/nginx"))
}

/// Sets Multipath TCP up on the hosts, with the client's second address.
///
/// # Errors
/// If the kernel has no Multipath TCP.
pub fn prepare_multipath(topology: &Topology) -> Result<()> {
    for host in [Client, ServerA, ServerB] {
        let limits = [
            "mptcp",
            "limits",
            "set",
            "subflow",
            "2",
            "add_addr_accepted",
            "2",
        ];
        topology.run(host, "ip", &limits)?;
    }
    let second = [
        "mptcp", "endpoint", "add", "10.0.1.2", "dev", "eth1", "subflow",
    ];
    topology.run(Client, "ip", &second)
}

/// Cuts a server's cable.
///
/// # Errors
/// If that is not possible.
pub fn disconnect(topology: &Topology, server: Host) -> Result<()> {
    let port = if server == ServerA { "to-a" } else { "to-b" };
    topology.run(Router, "ip", &["link", "set", port, "down"])
}

/// Segments that the servers have sent again.
///
/// # Errors
/// If the kernel does not count them.
pub fn sent_again(topology: &Topology) -> Result<u64> {
    let mut sum = 0;
    for host in [ServerA, ServerB] {
        let text = topology.read(host, "/proc/net/snmp")?;
        sum += retransmitted(&text).context("the kernel does not count RetransSegs")?;
    }
    Ok(sum)
}

/// `RetransSegs` of the text of `/proc/net/snmp`: a line of names and one of numbers.
fn retransmitted(text: &str) -> Option<u64> {
    let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, numbers) = (tcp.next()?, tcp.next()?);
    let column = names
        .split_whitespace()
        .position(|name| name == "RetransSegs")?;
    numbers.split_whitespace().nth(column)?.parse().ok()
}

/// Whether the text of `/proc/net/tcp` has a socket that listens on this port.
fn listens(text: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    text.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let listening = fields.get(3) == Some(&LISTEN);
        listening && fields[1].ends_with(&format!(":{port:04X}"))
    })
}

/// Makes CUBIC, as our servers have it, the congestion control of all connections, and subflows of these, that
/// the sockets of a process accept.
///
/// From outside, since nginx has no such setting, and a kernel whose own default is another lets no namespace
/// make CUBIC its own. A route's does not hold for a second subflow: that takes it from the socket
/// (`sync_socket_options` in Linux' `net/mptcp/sockopt.c`).
fn have_cubic(child: &Child) -> Result<()> {
    let pid = child.id().context("has ended")?;
    let process = pidfd_open(
        Pid::from_raw(pid.try_into()?).context("no process id")?,
        PidfdFlags::empty(),
    )?;
    for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let number = file?.file_name().to_string_lossy().parse()?;
        let file = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
        let socket = SockRef::from(&file);
        // Fails if it is no socket.
        if socket.is_listener().unwrap_or(false) {
            socket.set_tcp_congestion(b"cubic")?;
        }
    }
    Ok(())
}

/// The SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(file: &Path) -> Result<String> {
    let said = run("sha256sum", [file])?;
    let digest = said.split_whitespace().next();
    Ok(digest.context("sha256sum says nothing")?.to_owned())
}

/// An nginx that serves one file, as `/random`.
#[derive(Debug)]
pub struct Nginx {
    folder: PathBuf,
    multipath: bool,
}

impl Nginx {
    /// Prepares it in a folder, which holds the content too.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(folder: &Path, content: Content, multipath: bool) -> Result<Nginx> {
        const CHUNK: u64 = 1 << 20;
        let folder = folder.join("nginx");
        fs::create_dir_all(folder.join("root"))?;
        let random = Random::new(content.size, content.seed);
        let mut file = fs::File::create(folder.join("root/random"))?;
        let mut buffer = vec![0; CHUNK as usize];
        for offset in (0..content.size).step_by(CHUNK as usize) {
            let part = &mut buffer[..CHUNK.min(content.size - offset) as usize];
            random.fill(offset, part);
            file.write_all(part)?;
        }
        let names = [ServerA, ServerB].map(|host| host.address().to_string());
        let identity = rcgen::generate_simple_self_signed(names)?;
        fs::write(folder.join("cert.pem"), identity.cert.pem())?;
        fs::write(folder.join("key.pem"), identity.signing_key.serialize_pem())?;
        Ok(Nginx { folder, multipath })
    }

    /// Starts it on a host, and returns when it accepts connections.
    ///
    /// # Errors
    /// What it says instead.
    pub async fn start(&self, topology: &Topology, host: Host) -> Result<Child> {
        let address = host.server_address();
        let folder = self.folder.display();
        let file = self.folder.join(format!("{address}.conf"));
        fs::write(
            &file,
            format!(
                "daemon off; master_process off; pid {folder}/{address}.pid;
                 user root;
                 error_log {folder}/error.log;
                 events {{}}
                 http {{
                   access_log off; sendfile on;
                   client_body_temp_path {folder}; proxy_temp_path {folder};
                   fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
                   ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
                   server {{ listen {address} ssl; root {folder}/root; }}
                 }}"
            ),
        )?;
        let log = self.folder.join("error.log");
        let mut command = mptcpize(topology, host, &nginx()?, self.multipath);
        let said = fs::File::options().create(true).append(true).open(&log)?;
        let mut child = command
            .arg("-e")
            .arg(&log)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .context("cannot start nginx")?;
        while !listens(&topology.read(host, "/proc/net/tcp")?, address.port()) {
            if let Some(status) = child.try_wait()? {
                bail!("nginx: {status}: {}", fs::read_to_string(&log)?.trim());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        have_cubic(&child).context("nginx cannot be given CUBIC")?;
        Ok(child)
    }
}

/// A download by curl.
#[derive(Debug)]
pub struct Curl {
    child: Child,
    file: PathBuf,
}

impl Curl {
    /// Starts it on the client. It gives up when nothing has come for as long as `patience`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        topology: &Topology,
        from: Host,
        folder: &Path,
        multipath: bool,
        patience: Duration,
    ) -> Result<Curl> {
        let file = folder.join("curl");
        let mut command = mptcpize(topology, Client, Path::new("curl"), multipath);
        let child = command
            .args(["--silent", "--show-error", "--fail", "--insecure"])
            .args(["--connect-timeout", "10", "--speed-limit", "1"])
            .args(["--speed-time", &patience.as_secs().max(1).to_string()])
            .arg("--output")
            .arg(&file)
            .arg(format!("https://{}/random", from.server_address()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start curl")?;
        Ok(Curl { child, file })
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end: the file, or what it said when it failed.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub async fn finish(mut self) -> Result<Result<PathBuf, String>> {
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).await?;
        }
        let status = self.child.wait().await?;
        Ok(match status.success() {
            true => Ok(self.file),
            false => Err(format!("{status}: {}", said.trim())),
        })
    }
}

/// A program on a host, with multipath sockets instead of TCP's if so asked.
fn mptcpize(topology: &Topology, host: Host, program: &Path, multipath: bool) -> Command {
    if !multipath {
        return topology.command(host, program);
    }
    let mut command = topology.command(host, "mptcpize");
    command.arg("run").arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmissions_are_found_by_name() {
        let text =
            "Ip: Forwarding\nIp: 1\nTcp: MaxConn OutSegs RetransSegs InErrs\nTcp: -1 90 7 0\n";
        assert_eq!(retransmitted(text), Some(7));
        assert_eq!(retransmitted("Tcp: OutSegs\nTcp: 1\n"), None);
    }

    #[test]
    fn a_listening_socket_is_found() {
        let text = "  sl  local_address rem_address   st\n   0: 0200010A:1151 00000000:0000 0A 0\n   1: 0200010A:1152 0200000A:9999 01 0\n";
        assert!(listens(text, 4433));
        assert!(!listens(text, 4434));
    }
}
