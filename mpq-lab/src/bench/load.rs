//! `cargo lab herd`: many clients, each with a connection of its own over both links, download from
//! one server while it is moved.
//!
//! The clients are one process, which embeds `mpq-core`; the server is moved by CRIU between two hosts
//! of the emulated network. Told is how long the server's steps take, when each client goes on, what
//! the last one waited for, and what connections cost in memory and their bytes in CPU time.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Buf;
use http::Request;
use mpq_core::client::{Client, ClientConfig, ClientEvent, MigrationEvent};
use mpq_core::tls::Trust;
use mpq_get::report::events::DownloadEvent;
use mpq_serve::site::random::Random;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::arms::mpq_server::Content;
use crate::arms::testbed::Testbed;
use crate::experiment::statistics::{Range, range};
use crate::network::model::{Emulation, Network};
use crate::network::topology::Host;
use crate::system::counters::{GB, cpu, resident};
use crate::system::host::{build_tools, built, unix};
use crate::system::setup::setup;

/// How many clients there are, unless otherwise said.
const CLIENTS: u64 = 1000;
/// What each of them downloads, bytes.
const SIZE: u64 = 1_000_000;
/// Handshakes at a time.
const HANDSHAKES: usize = 32;
/// How long a client may go without a byte before it is lost: longer than any outage.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the content is made from.
const SEED: u64 = 1;

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many clients
    #[arg(long, value_name = "N", default_value_t = CLIENTS)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,

    /// Bytes that each of them downloads; with k, M, G (powers of 1000) or Ki, Mi, Gi (of 1024)
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = mpq_serve::units::size)]
    size: u64,
}

/// The paper's network, twice as fast, with queues that have room for little more than what a thousand
/// clients send at least: each of two thousand paths may have two packets in flight (RFC 9002 §7.2).
fn network() -> Network {
    let mut network = Network::default();
    for link in &mut network.links {
        link.rate *= 2;
        link.burst *= 8;
    }
    network
}

/// What the process of the clients is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientOptions {
    #[arg(long)]
    clients: u64,
    #[arg(long)]
    size: u64,
    #[arg(long)]
    server: SocketAddr,
}

/// What it tells, a line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// All handshakes are done.
    Connected,
    /// A quarter of all bytes is there.
    Quarter,
    /// All downloads are over.
    Over {
        /// How many had every byte as it should be.
        exact: u64,
        /// Why others were lost.
        lost: Vec<String>,
        /// Those that were downloading when the server moved, in the order in which they went on.
        resumed: Vec<Resumed>,
        /// What the last of them saw until its next byte.
        last: Vec<Step>,
    },
}

/// How a client went on; unix times in seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Resumed {
    /// The announcement came, if it did.
    announced: Option<f64>,
    /// Its first path to the server's new address was validated.
    moved: f64,
    /// The next byte of the body came. It may come in one packet with what validates the path.
    byte: f64,
}

/// What a client has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When: by the client, unix time in seconds; of a [`LoadResult`], seconds since the thaw.
    pub at: f64,
    /// In the words of `mpq-get`.
    pub what: String,
}

/// What one move with many clients has shown.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadResult {
    /// How many clients there were.
    pub clients: u64,
    /// How many had every byte as it should be.
    pub exact: u64,
    /// Why others were lost.
    pub lost: Vec<String>,
    /// Memory of the server without clients, and for each of their connections, bytes.
    pub memory: [f64; 2],
    /// CPU time of the server for what came before the move; seconds per GB (10^9 bytes).
    pub cpu: f64,
    /// From the announcement to the freeze, from there to complete images, and from there until the
    /// server runs again; seconds.
    pub steps: [f64; 3],
    /// How many went on after the move, and how many of them had its announcement before the thaw.
    pub announced: [usize; 2],
    /// From the thaw until each client that was downloading had a path to the server again; seconds.
    pub moved: Option<Range>,
    /// From the thaw until it had its next byte; seconds.
    pub resumed: Option<Range>,
    /// The same of the client with which 99 of 100 have gone on; seconds.
    pub percentile: Option<f64>,
    /// What the links have done since the thaw.
    pub links: Emulation,
    /// What the last client saw until its next byte.
    pub last: Vec<Step>,
}

/// Builds the tools, moves a server with many clients, and prints what that has shown.
///
/// # Errors
/// If a step fails, or a client is lost.
pub async fn load(options: &Options) -> Result<()> {
    let criu = setup()?;
    build_tools()?;
    let result = moved(&criu, options.clients, options.size).await?;
    print!("{result}");
    ensure!(
        result.exact == result.clients,
        "not every client has all bytes"
    );
    Ok(())
}

/// The clients that the project's targets are about: a thousand clients.
///
/// # Errors
/// If a step fails.
pub async fn once(criu: &Path) -> Result<LoadResult> {
    moved(criu, CLIENTS, SIZE).await
}

async fn moved(criu: &Path, clients: u64, size: u64) -> Result<LoadResult> {
    let testbed = Testbed::new(criu, &network())?;
    run(&testbed, clients, size)
        .await
        .with_context(|| format!("the logs:\n{}", testbed.logs()))
}

/// Moves a server while so many clients download so many bytes each.
///
/// # Errors
/// If a step fails.
pub async fn run(testbed: &Testbed, clients: u64, size: u64) -> Result<LoadResult> {
    let content = Content { size, seed: SEED };
    testbed.serve(Host::ServerA, content, |_| ()).await?;
    let empty = memory(testbed)?;
    let mut command = testbed.topology().command(Host::Client, built("mpq-lab")?);
    let mut process = command
        .arg("herd-clients")
        .args(["--clients", &clients.to_string()])
        .args(["--size", &size.to_string()])
        .args(["--server", &Host::ServerA.server_address().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the clients")?;
    let output = process.stdout.take().context("it is piped")?;
    let mut lines = BufReader::new(output).lines();
    let mut result = LoadResult {
        clients,
        exact: 0,
        lost: Vec::new(),
        memory: [empty, 0.0],
        cpu: 0.0,
        steps: [0.0; 3],
        announced: [0; 2],
        moved: None,
        resumed: None,
        percentile: None,
        links: Emulation::default(),
        last: Vec::new(),
    };
    let (mut idle, mut thawed) = (0.0, f64::INFINITY);
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line)? {
            Word::Connected => {
                result.memory[1] = (memory(testbed)? - empty) / clients as f64;
                idle = used(testbed)?;
            }
            Word::Quarter => {
                result.cpu = (used(testbed)? - idle) / (quarter(clients, size) as f64 / GB);
                let announced = unix();
                let dump = testbed.checkpoint(Host::ServerA, Host::ServerB).await?;
                let restored = testbed.restore(Host::ServerB).await?;
                thawed = restored.thawed;
                // It counts from here on.
                testbed.topology().emulation()?;
                result.steps = [
                    dump.dump_started - announced,
                    dump.dumped - dump.dump_started,
                    thawed - dump.dumped,
                ];
            }
            Word::Over {
                exact,
                lost,
                resumed,
                last,
            } => {
                (result.exact, result.lost) = (exact, lost);
                let announced = |at: &&Resumed| at.announced.is_some_and(|told| told < thawed);
                result.announced = [resumed.len(), resumed.iter().filter(announced).count()];
                result.moved = range(resumed.iter().map(|at| at.moved - thawed));
                result.resumed = range(resumed.iter().map(|at| at.byte - thawed));
                let hundredth = resumed.iter().rev().nth(resumed.len() / 100);
                result.percentile = hundredth.map(|at| at.byte - thawed);
                result.links = testbed.topology().emulation()?;
                result.last = last;
                result.last.iter_mut().for_each(|step| step.at -= thawed);
            }
        }
    }
    let status = process.wait().await?;
    ensure!(status.success(), "the clients have failed: {status}");
    Ok(result)
}

/// What is resident of the server, bytes.
fn memory(testbed: &Testbed) -> Result<f64> {
    let resident = resident(testbed.server_pid()?).context("the server is gone")?;
    Ok(resident as f64)
}

/// CPU time that the server has used, seconds.
fn used(testbed: &Testbed) -> Result<f64> {
    cpu(testbed.server_pid()?).context("the server is gone")
}

/// After how many bytes the server is moved.
fn quarter(clients: u64, size: u64) -> u64 {
    clients * size / 4
}

/// All clients, on the client's host.
///
/// # Errors
/// If one cannot connect.
pub async fn clients(options: ClientOptions) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut connecting = JoinSet::new();
    for _ in 0..options.clients {
        let handshakes = handshakes.clone();
        connecting.spawn(async move {
            let _turn = handshakes.acquire().await;
            let config = ClientConfig {
                trust: Trust::Insecure,
                interfaces: ["eth0", "eth1"].map(str::to_owned).into(),
                ..ClientConfig::default()
            };
            Client::connect(config, options.server, "localhost").await
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = connecting.join_next().await {
        clients.push(client??);
    }
    tell(&Word::Connected)?;

    let random = Random::new(options.size, SEED);
    let total = Arc::new(AtomicU64::new(0));
    let quarter = quarter(options.clients, options.size);
    let mut downloads = JoinSet::new();
    for client in clients {
        let total = total.clone();
        downloads.spawn(async move {
            let count = |bytes: u64| {
                let before = total.fetch_add(bytes, Ordering::Relaxed);
                if before < quarter && before + bytes >= quarter {
                    tell(&Word::Quarter)?;
                }
                anyhow::Ok(())
            };
            let result = tokio::select! {
                result = download(&client, random, count) => result,
                error = client.closed() => Err(error.into()),
            };
            client.close().await;
            result
        });
    }
    let (mut exact, mut lost, mut resumed) = (0, Vec::new(), Vec::new());
    while let Some(result) = downloads.join_next().await {
        match result? {
            Ok(at) => {
                exact += 1;
                resumed.extend(at);
            }
            Err(error) => lost.push(format!("{error:#}")),
        }
    }
    resumed.sort_by(|(a, _), (b, _)| a.byte.total_cmp(&b.byte));
    let (resumed, mut seen): (Vec<Resumed>, Vec<Vec<Step>>) = resumed.into_iter().unzip();
    let last = seen.pop().unwrap_or_default();
    tell(&Word::Over {
        exact,
        lost,
        resumed,
        last,
    })
}

fn tell(word: &Word) -> Result<()> {
    println!("{}", serde_json::to_string(word)?);
    Ok(())
}

/// Downloads, and returns how that went on after a move meanwhile, and what was seen until then.
async fn download(
    client: &Client,
    random: Random,
    count: impl Fn(u64) -> Result<()>,
) -> Result<Option<(Resumed, Vec<Step>)>> {
    let mut events = client.events();
    let (mut announced, mut moved) = (None, None);
    // Nothing comes between the freeze and the answer from the new address, and what comes first then may be
    // here before the word that the connection has moved.
    let (mut detected, mut byte, mut steps) = (false, None, Vec::new());
    let mut received = 0;
    let mut requests = client.requests();
    let request = Request::get("https://localhost/random").body(())?;
    let mut stream = requests.send_request(request).await?;
    stream.finish().await?;
    stream.recv_response().await?;
    loop {
        let Ok(chunk) = timeout(PATIENCE, stream.recv_data()).await else {
            bail!("no byte came for {PATIENCE:?}: {:#?}", client.paths());
        };
        let Some(mut chunk) = chunk? else { break };
        while let Ok((at, event)) = events.try_recv() {
            let at = unix() - at.elapsed().as_secs_f64();
            match event {
                ClientEvent::Migration(MigrationEvent::Announced { .. }) => announced = Some(at),
                ClientEvent::Migration(MigrationEvent::Detected { .. }) => detected = true,
                ClientEvent::Migration(MigrationEvent::Moved { .. }) => moved = Some(at),
                _ => {}
            }
            if byte.is_none() {
                let what = DownloadEvent::from(event).to_string();
                steps.push(Step { at, what });
            }
        }
        if detected && byte.is_none() {
            byte = Some(unix());
        }
        let length = chunk.remaining();
        // Made where they are needed: a thousand bodies would not fit in memory.
        let mut expected = vec![0; length];
        random.fill(received, &mut expected);
        ensure!(
            chunk.copy_to_bytes(length) == expected,
            "another byte than there should be"
        );
        received += length as u64;
        count(length as u64)?;
    }
    ensure!(received == random.size(), "{received} bytes only");
    let resumed = moved.zip(byte).map(|(moved, byte)| Resumed {
        announced,
        moved,
        byte,
    });
    Ok(resumed.map(|resumed| (resumed, steps)))
}

impl fmt::Display for LoadResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [empty, each] = self.memory;
        let [park, dump, restore] = self.steps;
        writeln!(
            f,
            "clients      {} with two paths each, {} of them with every byte as it should be",
            self.clients, self.exact
        )?;
        for reason in &self.lost {
            writeln!(f, "lost         {reason}")?;
        }
        writeln!(
            f,
            "memory       {:.1} MB of the server alone, {:.1} kB for each connection",
            empty / 1e6,
            each / 1e3
        )?;
        writeln!(
            f,
            "CPU          {:.2} s of the server for each GB before the move",
            self.cpu
        )?;
        writeln!(
            f,
            "outage       {park:.3} s from the announcement to the freeze, {dump:.3} s dump, \
             {restore:.3} s until it runs again"
        )?;
        let [resumed, announced] = self.announced;
        writeln!(
            f,
            "announced    to {announced} of the {resumed} that went on"
        )?;
        for (what, after) in [("new path", self.moved), ("resumed", self.resumed)] {
            let Some(after) = after else { continue };
            writeln!(
                f,
                "{what:<13}{:.3} s (first), {:.3} s (mean), {:.3} s (last) after the thaw",
                after.min, after.mean, after.max
            )?;
        }
        if let Some(percentile) = self.percentile {
            writeln!(f, "             {percentile:.3} s for 99 of 100")?;
        }
        let Emulation {
            packets, dropped, ..
        } = self.links;
        let share = 100.0 * dropped as f64 / (packets + dropped).max(1) as f64;
        writeln!(
            f,
            "links        {packets} packets carried since the thaw, {dropped} dropped ({share:.1}%)"
        )?;
        if !self.last.is_empty() {
            writeln!(f, "the last one saw, in seconds from the thaw on:")?;
        }
        for Step { at, what } in &self.last {
            writeln!(f, "{at:>11.3}  {what}")?;
        }
        Ok(())
    }
}
