//! Who means harm to a server: many first datagrams, readers that stop, headers and frames that are too large, and
//! bytes that are nonsense.
//!
//! An attack is a process of its own on another host of the network, by a cable that nothing slows down. It has
//! what the others leave of the CPU, as if its machine were another, and goes at a [pace](PACE): how much one machine
//! can do to its neighbour by using all of it up is not the question.

mod datagrams;
#[path = "../../../../mpq-core/tests/support/initial.rs"]
#[allow(dead_code, reason = "tests use all of it")]
mod initial;
mod streams;

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{interval, timeout};

use crate::network::topology::{Host, Topology};
use crate::system::host::built;

/// Addresses that are nobody's (RFC 2544). On the attacker's host all of them are its own, so that it can send from
/// each; answers to them find no way.
const NOBODYS: &str = "198.18.0.0/15";
/// Between two turns of an attack that goes on.
const PACE: Duration = Duration::from_millis(3);
/// Until an attack has begun, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// First datagrams of handshakes that never go on, 3,333 in a second: each from another port, every other from
    /// another address as well.
    Flood,
    /// Responses by the thousand, none of which is read.
    SlowReaders,
    /// Headers of 25,000 fields, headers that never end, and frames of 200 MB.
    HeaderBombs,
    /// Frames that may not be there or are none, and connections that end by them.
    Frames,
    /// Datagrams that only look like QUIC's.
    Datagrams,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Flood,
        Self::SlowReaders,
        Self::HeaderBombs,
        Self::Frames,
        Self::Datagrams,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flood => "flood of first datagrams",
            Self::SlowReaders => "slow readers",
            Self::HeaderBombs => "header bombs",
            Self::Frames => "malformed frames",
            Self::Datagrams => "malformed datagrams",
        }
    }

    /// What is counted of it.
    pub fn deeds(self) -> &'static str {
        match self {
            Self::Flood | Self::Datagrams => "datagrams",
            Self::SlowReaders => "responses not read",
            Self::HeaderBombs => "requests",
            Self::Frames => "connections",
        }
    }
}

/// What the attacker is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long)]
    attack: Attack,
    #[arg(long)]
    server: SocketAddr,
}

/// How much harm was done.
#[derive(Debug, Clone, Default)]
struct Deeds(Arc<AtomicU64>);

impl Deeds {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Attacks until the standard input ends. Tells when it has begun, and how much it has done in the end.
///
/// # Errors
/// If it cannot.
pub async fn attack(options: Options) -> Result<()> {
    let Options { attack, server } = options;
    let deeds = Deeds::default();
    let client = Arc::new(streams::Client::new(server)?);
    let (done, clients) = (deeds.clone(), client.clone());
    let mut attacking = tokio::spawn(async move {
        match attack {
            Attack::Flood => datagrams::flood(server, &done).await,
            Attack::Datagrams => datagrams::nonsense(server, &done).await,
            Attack::SlowReaders => streams::read_slowly(clients, &done).await,
            Attack::HeaderBombs => streams::bomb(clients, &done).await,
            Attack::Frames => streams::confuse(clients, &done).await,
        }
    });
    let begun = async {
        let mut look = interval(PACE);
        while deeds.so_far() < streams::begun(attack) {
            look.tick().await;
        }
    };
    tokio::select! {
        result = &mut attacking => return result?,
        result = timeout(PATIENCE, begun) => result.context("the attack does not begin")?,
    }
    println!("{}", deeds.so_far());
    let mut over = Vec::new();
    let mut input = tokio::io::stdin();
    tokio::select! {
        result = &mut attacking => result??,
        result = input.read_to_end(&mut over) => drop(result?),
    }
    println!("{}", deeds.so_far());
    attacking.abort();
    // The next download is to be alone.
    client.close().await;
    Ok(())
}

/// An attack that is under way, from server B's host against server A.
#[derive(Debug)]
pub struct Attacker {
    process: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Attacker {
    /// Begins.
    ///
    /// # Errors
    /// If it cannot.
    pub async fn start(topology: &Topology, attack: Attack) -> Result<Self> {
        let route = ["route", "replace", "local", NOBODYS, "dev", "lo"];
        topology.run(Host::ServerB, "ip", &route)?;
        let mut command: Command = topology.command(Host::ServerB, "nice");
        let kind = attack.to_possible_value().context("it has a name")?;
        let mut process = command
            .args(["-n", "19"])
            .arg(built("mpq-lab")?)
            .args(["attack", "--attack", kind.get_name()])
            .args(["--server", &Host::ServerA.server_address().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the attacker")?;
        let output = process.stdout.take().context("it is piped")?;
        let mut attacker = Self {
            input: process.stdin.take().context("it is piped")?,
            process,
            lines: BufReader::new(output).lines(),
        };
        attacker.count().await.context(attack.name())?;
        Ok(attacker)
    }

    /// Ends it. How much it has done.
    ///
    /// # Errors
    /// If it has ended before.
    pub async fn stop(mut self) -> Result<u64> {
        drop(self.input);
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let done = line??.context("the attacker has ended")?.parse()?;
        let status = self.process.wait().await?;
        ensure!(status.success(), "the attacker has failed: {status}");
        Ok(done)
    }

    async fn count(&mut self) -> Result<u64> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.context("the attack does not begin")??;
        Ok(line.context("the attacker has ended")?.parse()?)
    }
}
