//! `cargo lab demo`: one download, one move half-way, and its figures.
//!
//! With root and CRIU the server is moved between two network namespaces. Without, it moves from
//! one loopback address to another in one process, and two more loopback addresses stand for the
//! client's interfaces.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::arms::mpq_get::Download;
use crate::arms::mpq_server::{Content, content_options, start_server};
use crate::arms::testbed::Testbed;
use crate::move_summary::{MoveSummary, Outage};
use crate::network::model::Network;
use crate::network::topology::Host;
use crate::system::host::{build_tools, built};
use crate::system::setup::setup;

const CONTENT: Content = Content {
    size: 100_000_000,
    seed: 1,
};

/// Makes the move long enough to be seen.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows the move that is possible here, and says which one that is.
///
/// # Errors
/// If a step fails, or the download is not as promised.
pub async fn demo() -> Result<()> {
    let criu = setup();
    eprintln!("Building mpq-get and mpq-serve");
    build_tools()?;
    let summary = match criu {
        Ok(criu) => {
            eprintln!(
                "Moving the server with CRIU from {} to {}, each in a network namespace of its own, \
                 and waiting {} s in between",
                Host::ServerA.server_address(),
                Host::ServerB.server_address(),
                PAUSE.as_secs()
            );
            between_hosts(&criu).await?
        }
        Err(reason) => {
            eprintln!("Moving the server in one process on loopback, not with CRIU: {reason:#}");
            on_loopback().await?
        }
    };
    println!("\n{summary}");
    summary.verify()
}

async fn between_hosts(criu: &Path) -> Result<MoveSummary> {
    let testbed = Testbed::new(criu, &Network::default())?;
    testbed.serve(Host::ServerA, CONTENT, |_| ()).await?;
    let mut download = testbed.download(Host::ServerA)?;
    let (outage, entries) = async {
        download.wait_for_bytes(CONTENT.size / 2).await?;
        let dump = testbed.checkpoint(Host::ServerA, Host::ServerB).await?;
        tokio::time::sleep(PAUSE).await;
        let restored = testbed.restore(Host::ServerB).await?;
        let outage = Outage {
            frozen: dump.dump_started,
            thawed: restored.thawed,
        };
        anyhow::Ok((outage, download.finish().await?))
    }
    .await
    .with_context(|| format!("the logs:\n{}", testbed.logs()))?;
    let target = Host::ServerB.server_address();
    MoveSummary::new(&entries, CONTENT.sha256(), target, Some(outage))
}

/// Moves a server from one loopback address to another, without privileges.
///
/// # Errors
/// If a step fails.
pub async fn on_loopback() -> Result<MoveSummary> {
    let (from, target) = free_addresses()?;
    let scratch = tempfile::tempdir()?;
    let mut command = Command::new(built("mpq-serve")?);
    command
        .args(["--listen", &from.to_string()])
        .args(["--migrate-to", &target.to_string()])
        .args(["--move-in-process", &format!("{}s", PAUSE.as_secs())])
        // Loopback would be over too soon.
        .args(["--limit-rate", "150M"])
        .args(content_options(CONTENT));
    let mut server = start_server(command, &scratch.path().join("server.log")).await?;
    let pid = server.id().context("mpq-serve has ended")?;
    let pid = Pid::from_raw(pid.try_into()?);

    let mut command = Command::new(built("mpq-get")?);
    command
        .args([
            "--insecure",
            "--interface",
            "127.0.0.1",
            "--interface",
            "127.0.0.3",
        ])
        .arg("--output")
        .arg(scratch.path().join("download"))
        .arg(format!("https://{from}/random"));
    let mut download = Download::start(command)?;
    download.wait_for_bytes(CONTENT.size / 2).await?;
    kill(pid, Signal::SIGUSR1)?;
    let entries = download.finish().await?;
    kill(pid, Signal::SIGTERM)?;
    server.wait().await?;
    MoveSummary::new(&entries, CONTENT.sha256(), target, None)
}

/// The same free UDP port of two loopback addresses.
fn free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    for _ in 0..16 {
        let a = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        if let Ok(b) = UdpSocket::bind(("127.0.0.2", a.port())) {
            return Ok((a, b.local_addr()?));
        }
    }
    bail!("no UDP port is free on both 127.0.0.1 and 127.0.0.2")
}
