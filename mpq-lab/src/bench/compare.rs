//! What runs side by side, and the ratios of it.
//!
//! A round runs every arm once, one after the other, and yields one ratio of each kind. A run that
//! loses too much time to the machine's other tenants is repeated.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::process::Command;

use crate::arms::mpq_get::{Download, DownloadEvent, Summary};
use crate::arms::mpq_server::{Content, content_options, start_server};
use crate::arms::testbed::Testbed;
use crate::bench::ratios::Ratio;
use crate::network::model::Network;
use crate::network::topology::Host;
use crate::system::counters::{GB, MOST_STEAL, Steal, cpu};
use crate::system::host::built;

/// What the content is made from.
const SEED: u64 = 1;
/// How often a disturbed run is repeated before the least disturbed one counts.
const REPEATS: u32 = 3;
/// The ratios that are targets, by their names.
pub const GOODPUT: &str = "loopback, goodput: mpq / quinn";
/// The same.
pub const CLIENT_CPU: &str = "loopback, client CPU: mpq / quinn";
/// The same.
pub const SERVER_CPU: &str = "loopback, server CPU: mpq / quinn";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BenchArm {
    /// mpq-get and mpq-serve on loopback.
    Mpq,
    /// mpq-get by plain QUIC and quinn on loopback.
    Quinn,
    /// mpq over the first link alone.
    FirstLink,
    /// mpq over the second link alone.
    SecondLink,
    /// mpq over both links.
    BothLinks,
    /// mpq over both links, and half-way the server is moved to another host.
    Moved,
}

/// One download.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchRun {
    /// What was measured.
    pub arm: BenchArm,
    /// In which round, from 1.
    pub round: u32,
    /// Body bytes.
    pub bytes: u64,
    /// From the client's start to the last byte.
    pub seconds: f64,
    /// Seconds of CPU that the client used.
    pub client_cpu: f64,
    /// Seconds of CPU that the server used meanwhile; not known of one that was moved.
    pub server_cpu: Option<f64>,
    /// Seconds that the server was frozen.
    pub frozen: f64,
    /// The share of the machine's CPU time that its other tenants took.
    pub steal: f64,
    /// How often it was repeated as that was too much.
    pub repeats: u32,
}

/// Everything measured.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The ratios, as far as their arms were run.
    pub ratios: Vec<Ratio>,
    /// Every run.
    pub runs: Vec<BenchRun>,
}

/// Measures with these sizes in bytes, on the emulated network only with a CRIU to move servers.
///
/// # Errors
/// If a run fails or a body is not as it should be.
pub async fn compare(
    loopback_size: u64,
    lab_size: u64,
    rounds: u32,
    criu: Option<&Path>,
) -> Result<Comparison> {
    let content = |size| Content { size, seed: SEED };
    // Here, so that it takes no time from a run.
    let expected = [loopback_size, lab_size].map(|size| content(size).sha256());
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for arm in [BenchArm::Mpq, BenchArm::Quinn] {
            let once = || on_loopback(arm, content(loopback_size), &expected[0]);
            runs.push(undisturbed(arm, round, once).await?);
        }
    }
    for round in 1..=rounds {
        let Some(criu) = criu else { break };
        for arm in [
            BenchArm::FirstLink,
            BenchArm::SecondLink,
            BenchArm::BothLinks,
            BenchArm::Moved,
        ] {
            let once = || on_network(arm, content(lab_size), &expected[1], criu);
            runs.push(undisturbed(arm, round, once).await?);
        }
    }
    let ratios = ratios(&runs, rounds);
    Ok(Comparison { ratios, runs })
}

/// Runs until the machine was undisturbed, or for the last time.
async fn undisturbed<F>(arm: BenchArm, round: u32, once: impl Fn() -> F) -> Result<BenchRun>
where
    F: Future<Output = Result<Measured>>,
{
    let mut best: Option<BenchRun> = None;
    for repeats in 0..=REPEATS {
        let before = Steal::now()?;
        let Measured {
            done,
            client_cpu,
            server_cpu,
            frozen,
        } = once().await.with_context(|| format!("{arm:?}"))?;
        let run = BenchRun {
            arm,
            round,
            bytes: done.bytes,
            seconds: done.seconds,
            client_cpu,
            server_cpu,
            frozen,
            steal: before.share()?,
            repeats,
        };
        eprintln!(
            "{arm:?}, {round}: {:.3} s, steal {:.1}%",
            run.seconds,
            run.steal * 100.0
        );
        best = match best {
            Some(best) if best.steal <= run.steal => Some(BenchRun { repeats, ..best }),
            _ => Some(run),
        };
        if best.as_ref().is_some_and(|best| best.steal <= MOST_STEAL) {
            break;
        }
    }
    best.context("nothing was run")
}

/// What one run tells.
struct Measured {
    done: Summary,
    client_cpu: f64,
    server_cpu: Option<f64>,
    frozen: f64,
}

async fn on_loopback(arm: BenchArm, content: Content, expected: &str) -> Result<Measured> {
    let scratch = tempfile::tempdir()?;
    let log = scratch.path().join("server.log");
    let (mut command, protocol) = match arm {
        BenchArm::Quinn => {
            let mut command = Command::new(built("mpq-lab")?);
            command.arg("quinn-server");
            (command, "quic")
        }
        _ => (Command::new(built("mpq-serve")?), "multipath"),
    };
    command
        .args(["--listen", "127.0.0.1:0"])
        .args(content_options(content));
    let mut server = start_server(command, &log).await?;
    let pid = server.id().context("the server has ended")?.try_into()?;
    let said = fs::read_to_string(&log)?;
    let address = said
        .lines()
        .find_map(|line| line.split_once("listening on "))
        .context("the server says no address")?
        .1;

    let mut client = Command::new(built("mpq-get")?);
    client
        .args(["--silent", "--insecure", "--interface", "127.0.0.1"])
        .args(["--protocol", protocol, "--output", "/dev/null"])
        .arg(format!("https://{address}/random"));
    let before = cpu(pid).context("the server has ended")?;
    let (done, client_cpu) = finished(Download::start(client)?, expected).await?;
    let after = cpu(pid).context("the server has ended")?;
    // It cleans up after itself.
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    server.wait().await?;
    Ok(Measured {
        done,
        client_cpu,
        server_cpu: Some(after - before),
        frozen: 0.0,
    })
}

async fn on_network(
    arm: BenchArm,
    content: Content,
    expected: &str,
    criu: &Path,
) -> Result<Measured> {
    let testbed = Testbed::new(criu, &Network::default())?;
    testbed.serve(Host::ServerA, content, |_| ()).await?;
    let server = testbed.server_pid()?;
    let interfaces: &[&str] = match arm {
        BenchArm::FirstLink => &["eth0"],
        BenchArm::SecondLink => &["eth1"],
        _ => &["eth0", "eth1"],
    };
    let interfaces = interfaces.iter().flat_map(|name| ["--interface", name]);
    let options: Vec<_> = interfaces.chain(["--silent"]).collect();
    let before = cpu(server).context("the server has ended")?;
    let mut download = testbed.download_as("download", Host::ServerA, &options)?;
    let measured = async {
        let mut frozen = 0.0;
        if arm == BenchArm::Moved {
            download.wait_for_bytes(content.size / 2).await?;
            let dump = testbed.checkpoint(Host::ServerA, Host::ServerB).await?;
            let restored = testbed.restore(Host::ServerB).await?;
            frozen = restored.thawed - dump.dump_started;
        }
        let (done, client_cpu) = finished(download, expected).await?;
        anyhow::Ok(Measured {
            done,
            client_cpu,
            server_cpu: cpu(server)
                .filter(|_| arm != BenchArm::Moved)
                .map(|after| after - before),
            frozen,
        })
    };
    measured
        .await
        .with_context(|| format!("the logs:\n{}", testbed.logs()))
}

/// A download's figures and the CPU time that it has used, in seconds, once it is complete.
async fn finished(mut download: Download, expected: &str) -> Result<(Summary, f64)> {
    let pid = download.pid().context("mpq-get has ended")?;
    download
        .wait_for(|event| matches!(event, DownloadEvent::Done(_)))
        .await?;
    // All is done but its exit, and nobody has waited for it yet.
    let cpu = cpu(pid).context("mpq-get has been waited for")?;
    let entries = download.finish().await?;
    let done = entries.into_iter().find_map(|entry| match entry.event {
        DownloadEvent::Done(done) => Some(done),
        _ => None,
    });
    let done = done.context("just seen")?;
    ensure!(
        done.sha256 == expected,
        "the body is not what the server has"
    );
    Ok((done, cpu))
}

fn ratios(runs: &[BenchRun], rounds: u32) -> Vec<Ratio> {
    let of = |arm, round| {
        let wanted = move |run: &&BenchRun| run.arm == arm && run.round == round;
        runs.iter().find(wanted)
    };
    let goodput = |run: &BenchRun| run.bytes as f64 * 8e-6 / run.seconds;
    let per_gb = |run: &BenchRun, cpu: f64| cpu / (run.bytes as f64 / GB);
    let ratio = |name, unit, pair: &dyn Fn(u32) -> Option<(f64, f64)>| {
        Ratio::new(
            name,
            unit,
            &(1..=rounds).filter_map(pair).collect::<Vec<_>>(),
        )
    };
    let loopback = |figure: &dyn Fn(&BenchRun) -> Option<f64>, round| {
        Some((
            figure(of(BenchArm::Mpq, round)?)?,
            figure(of(BenchArm::Quinn, round)?)?,
        ))
    };
    [
        ratio(GOODPUT, "Mbit/s", &|round| {
            loopback(&|run| Some(goodput(run)), round)
        }),
        ratio(CLIENT_CPU, "s per GB", &|round| {
            loopback(&|run| Some(per_gb(run, run.client_cpu)), round)
        }),
        ratio(SERVER_CPU, "s per GB", &|round| {
            loopback(&|run| Some(per_gb(run, run.server_cpu?)), round)
        }),
        ratio("goodput: both links / sum of each", "Mbit/s", &|round| {
            let alone =
                [BenchArm::FirstLink, BenchArm::SecondLink].map(|arm| of(arm, round).map(goodput));
            Some((
                goodput(of(BenchArm::BothLinks, round)?),
                alone[0]? + alone[1]?,
            ))
        }),
        ratio(
            "time: with a move, less the freeze / without",
            "s",
            &|round| {
                let moved = of(BenchArm::Moved, round)?;
                let stays = of(BenchArm::BothLinks, round)?;
                Some((moved.seconds - moved.frozen, stays.seconds))
            },
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ratio in &self.ratios {
            writeln!(f, "{ratio}")?;
        }
        let steal = self.runs.iter().map(|run| run.steal).fold(0.0, f64::max);
        let repeats: u32 = self.runs.iter().map(|run| run.repeats).sum();
        write!(
            f,
            "Medians of the rounds (smallest to largest) and medians of the figures. Of the CPU time \
             of a run, other tenants of the machine took {:.1}% at the most; {repeats} runs were \
             repeated for that.",
            steal * 100.0
        )
    }
}
