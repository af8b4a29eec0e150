//! A run of `mpq-get` and `mpq-serve`, by plain QUIC or over several paths.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mpq_core::proto::Strategy;
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

use crate::arms::mpq_get::{Download, DownloadEvent, Entry};
use crate::arms::sample::Side;
use crate::experiment::client_log;
use crate::experiment::record::{Mark, What};
use crate::experiment::scenario::{Arm, Move};
use crate::experiment::stage::{Outcome, Stage, replaced};
use crate::network::model::Emulation;
use crate::network::topology::Host::{self, ServerA, ServerB};
use crate::system::host::unix;

/// Before a client is started again. A server that leaves says so at once, and is not back for a while.
const START_PAUSE: Duration = Duration::from_millis(250);
/// How often it is started at the most.
const MOST_STARTS: u64 = 200;

/// Downloads while the server and the links do what the scenario says, and tells what that has shown.
pub(super) async fn download(stage: &Stage<'_>) -> Result<Outcome> {
    serve(stage, ServerA).await?;
    let mut download = start_client(stage, ServerA, 1)?;
    let start = unix();
    download
        .wait_for(|event| matches!(event, DownloadEvent::Connected { .. }))
        .await?;
    let zero = Instant::now();

    let rival = stage.scenario.rival.then(|| {
        let options = ["--protocol", "quic", "--interface", "eth0"];
        stage.testbed.download_as("rival", ServerA, &options)
    });
    let rival = async {
        match rival {
            Some(rival) => Ok(Some(rival?.finish().await?)),
            None => Ok(None),
        }
    };
    let moves = async {
        match &stage.scenario.moves {
            Some(moves) if moves.announce.is_some() => {
                let (marks, until_thaw) = migrate(stage, moves, zero).await?;
                Ok((marks, Some(until_thaw)))
            }
            Some(moves) => Ok((replace(stage, moves, zero).await?, None)),
            None => Ok((Vec::new(), None)),
        }
    };
    let links = stage.change_links(zero);
    let (programs, (marks, until_thaw), (), rival) =
        tokio::try_join!(programs(stage, download), moves, links, rival)?;

    let mut outcome = Outcome {
        start,
        marks,
        until_thaw,
        starts: programs.len() as u64,
        ..Outcome::default()
    };
    for entries in &programs {
        outcome.marks.extend(client_log::marks(entries));
    }
    let entries = programs.last().context("there is a last program")?;
    let (zero, done) = (client_log::started_at(entries)?, client_log::done(entries)?);
    ensure!(done.sha256 == stage.expected, "the content is not right");
    outcome.end = zero + done.seconds;
    outcome.handshakes = done.handshakes;
    outcome.requests = done.requests;
    outcome.payload = client_log::payload(entries);
    outcome.standstill = client_log::standstill(&programs);
    outcome.gap = client_log::gap(entries);
    if let Some(rival) = rival {
        outcome.share = Some(client_log::share(entries, &rival)?);
    }
    outcome.sent_again = stage.testbed.sent_again().await?;
    outcome.body = Some(
        programs
            .iter()
            .map(|entries| client_log::body(entries))
            .sum(),
    );
    Ok(outcome)
}

/// Follows the download, and starts another one at the new address whenever it fails, as the
/// paper's client was. Returns the events of each.
async fn programs(stage: &Stage<'_>, first: Download) -> Result<Vec<Vec<Entry>>> {
    let mut programs = Vec::new();
    let mut download = first;
    for starts in 2.. {
        let (status, entries) = download.end().await?;
        programs.push(entries);
        if status.success() {
            break;
        }
        ensure!(
            stage.scenario.moves.is_some() && starts <= MOST_STARTS,
            "mpq-get failed: {status}"
        );
        tokio::time::sleep(START_PAUSE).await;
        download = start_client(stage, ServerB, starts)?;
    }
    Ok(programs)
}

fn start_client(stage: &Stage<'_>, from: Host, number: u64) -> Result<Download> {
    let patience = format!("{}", stage.scenario.patience.as_secs_f64());
    let mut options = vec!["--interface", "eth0"];
    let strategy = stage.arm.strategy().map(|strategy| strategy.to_string());
    match &strategy {
        Some(strategy) => options.extend(["--interface", "eth1", "--strategy", strategy]),
        None => options.extend(["--protocol", "quic"]),
    }
    let is_ours = matches!(stage.arm.strategy(), None | Some(Strategy::Multipath));
    if stage.scenario.bare && !is_ours {
        options.push("--bare");
    }
    let segments = stage.scenario.segments.map(|parts| parts.to_string());
    if let Some(segments) = &segments {
        options.extend(["--segments", segments]);
    }
    // A server that has announced its move is waited for; one that is silent is given up.
    options.extend(["--idle-timeout", &patience]);
    // We start it again, as the paper's client was.
    options.extend(["--retry", "0"]);
    let download = stage
        .testbed
        .download_as(&format!("download-{number}"), from, &options)?;
    if let Some(pid) = download.pid() {
        stage.sampler.watch(Side::Client, pid);
    }
    Ok(download)
}

async fn serve(stage: &Stage<'_>, host: Host) -> Result<()> {
    let configure = |command: &mut Command| {
        if let Some(Move {
            announce: Some(announce),
            freeze,
            ..
        }) = &stage.scenario.moves
        {
            let lead = (*freeze - *announce).as_secs_f64();
            command.arg("--lead").arg(format!("{lead}s"));
        }
        if stage.arm.has_olia() {
            command.args(["--congestion", "olia"]);
        }
        if stage.arm == Arm::MultipathSlowStart {
            command.args(["--resume", "off"]);
        }
        if stage.arm == Arm::MultipathAggressive {
            command.args(["--resume", "aggressive"]);
        }
        if stage.arm == Arm::Pool {
            command
                .arg("--pool")
                .arg(ServerB.server_address().to_string());
        }
    };
    let content = stage.scenario.content();
    stage.testbed.serve(host, content, configure).await?;
    stage
        .sampler
        .watch(Side::Server, stage.testbed.server_pid()?);
    Ok(())
}

/// The server moves as it does: announced, and by CRIU. Returns what the links did until it was thawed, too.
async fn migrate(stage: &Stage<'_>, moves: &Move, zero: Instant) -> Result<(Vec<Mark>, Emulation)> {
    sleep_until(zero + moves.announce.unwrap_or_default()).await;
    let dump = stage.testbed.checkpoint(ServerA, ServerB).await?;
    if let Some(thaw) = moves.thaw(stage.number) {
        sleep_until(zero + thaw).await;
    }
    let until_thaw = stage.testbed.topology().emulation()?;
    let restored = stage.testbed.restore(ServerB).await?;
    stage.sampler.watch(Side::Server, restored.pid);
    let marks = vec![
        Mark::new(dump.dump_started, What::Frozen),
        Mark::new(dump.dumped, What::Dumped),
        Mark::new(restored.thawed, What::Thawed),
    ];
    Ok((marks, until_thaw))
}

/// The server dies, and another one takes its place.
async fn replace(stage: &Stage<'_>, moves: &Move, zero: Instant) -> Result<Vec<Mark>> {
    sleep_until(zero + moves.freeze).await;
    let frozen = unix();
    stage.testbed.kill()?;
    sleep_until(zero + moves.thaw(stage.number).unwrap_or(moves.freeze)).await;
    serve(stage, ServerB).await?;
    Ok(replaced(frozen, unix()))
}
