//! One run of an experiment: one arm downloads once, while the server and the links do what the
//! scenario says.
//!
//! All figures come from the client's events, the server's log and images, and the kernel's
//! counters; all times are in seconds since the client was started.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

use crate::bench::Bench;
use crate::download::{Done, Download, Entry, Event};
use crate::ping::ping;
use crate::results::revision;
use crate::sample::{MOST_STEAL, Sample, Sampler, Side, Steal, Usage, unix};
use crate::scenario::{Arm, LinkEvent, Move, Scenario};
use crate::tcp::{self, Curl, Nginx};
use crate::topology::Host::{self, Client, ServerA, ServerB};
use crate::topology::Topology;

/// A run in which a packet left a link later than by this part of the run's time is repeated: the
/// machine, or its host, stood still.
pub const MOST_LATENESS: f64 = 0.005;
/// How often a run is repeated before it counts as it is.
const REPEATS: u32 = 5;
/// How often a client is started again before the server counts as lost for good.
const STARTS: u64 = 10;
/// Pings of one run over each interface.
const PINGS: usize = 20;

/// What one run has shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// Who downloaded.
    pub arm: Arm,
    /// Which one of the arm's runs, from 1 on.
    pub number: u32,
    /// The revision of this project that ran.
    #[serde(default)]
    pub revision: String,
    /// From the client's start to the last byte in its file.
    pub turnaround: f64,
    /// Bytes of the content; its SHA-256 was as it must be.
    pub bytes: u64,
    /// How often a client was started.
    pub starts: u64,
    /// Handshakes of the last client.
    pub handshakes: u64,
    /// Requests of the last client.
    pub requests: u64,
    /// What happened, in order of time.
    pub marks: Vec<Mark>,
    /// What each interface had received, ten times a second.
    pub samples: Vec<Sample>,
    /// Round-trip times over each interface.
    pub rtt: [Vec<f64>; 2],
    /// Body bits a second from one second after the client's start until its end, as the client
    /// tells.
    pub payload: Option<f64>,
    /// What the download got of what it and its rival received while both ran.
    pub share: Option<f64>,
    /// Between the last body byte from the old address and the first from the new one, in seconds, as
    /// the client tells.
    #[serde(default)]
    pub gap: Option<f64>,
    /// Packets that the servers sent again: as their QUIC stack says, or as TCP's RetransSegs.
    pub sent_again: u64,
    /// Packets that a link has dropped or lost.
    #[serde(default)]
    pub dropped: u64,
    /// Body bytes that all clients received, if they tell.
    #[serde(default)]
    pub body: Option<u64>,
    /// What the clients used.
    pub client: Usage,
    /// What the servers used.
    pub server: Usage,
    /// Share of the CPU time that the machine's host gave to others.
    pub steal: f64,
    /// How late half of all packets left a link at most.
    pub median_lateness: f64,
    /// How late the latest packet left a link.
    pub worst_lateness: f64,
    /// How often it was run before it was not disturbed.
    pub repeats: u32,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Seconds since the client's start.
    pub t: f64,
    /// What it was.
    pub what: What,
}

impl Mark {
    fn new(t: f64, what: What) -> Mark {
        Mark { t, what }
    }
}

/// Things that happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The handshake was complete.
    Connected,
    /// The client was told of the move.
    Announced,
    /// The client was told that the server says nothing more.
    Parked,
    /// The server's process was frozen, or killed.
    Frozen,
    /// Its images were complete.
    Dumped,
    /// It ran again, or another one in its place.
    Thawed,
    /// The client noticed that nothing came.
    Silent,
    /// The client found the server at its new address.
    Detected,
    /// The connection went on there.
    Resumed,
    /// The first body byte from there.
    FirstByte,
    /// A client gave up.
    Lost,
}

impl Run {
    /// When this happened first, in seconds.
    pub fn when(&self, what: What) -> Option<f64> {
        self.marks
            .iter()
            .find(|mark| mark.what == what)
            .map(|mark| mark.t)
    }

    /// Between freeze and thaw, in seconds.
    pub fn outage(&self) -> Option<f64> {
        Some(self.when(What::Thawed)? - self.when(What::Frozen)?)
    }

    /// Whether the machine has disturbed it more than is allowed.
    pub fn disturbed(&self) -> bool {
        self.steal > MOST_STEAL || self.worst_lateness > MOST_LATENESS * self.turnaround
    }
}

/// Runs an arm until it was not disturbed, or often enough.
///
/// # Errors
/// If a step fails or the content is not right.
pub async fn run(scenario: &Scenario, arm: Arm, number: u32, criu: &Path) -> Result<Run> {
    let mut repeats = 0;
    loop {
        let mut run = once(scenario, arm, number, criu)
            .await
            .with_context(|| format!("{}, {arm}, run {number}", scenario.name))?;
        run.repeats = repeats;
        if !run.disturbed() || repeats == REPEATS {
            return Ok(run);
        }
        repeats += 1;
    }
}

/// What an arm tells of its run; times are unix times.
#[derive(Debug, Default)]
struct Outcome {
    start: f64,
    end: f64,
    starts: u64,
    handshakes: u64,
    requests: u64,
    marks: Vec<Mark>,
    rtt: [Vec<f64>; 2],
    payload: Option<f64>,
    share: Option<f64>,
    gap: Option<f64>,
    sent_again: u64,
    body: Option<u64>,
}

/// Runs an arm once, disturbed or not.
///
/// # Errors
/// If a step fails or the content is not right.
pub async fn once(scenario: &Scenario, arm: Arm, number: u32, criu: &Path) -> Result<Run> {
    let expected = scenario.content().sha256();
    let bench = Bench::new(criu, &scenario.network)?;
    let sampler = Sampler::start(bench.topology().namespace_file(Client));
    bench.topology().emulation()?;
    let steal = Steal::now()?;
    let bed = Bed {
        scenario,
        arm,
        bench: &bench,
        sampler: &sampler,
        expected: &expected,
    };
    let outcome = match arm {
        Arm::Ping => bed.pings().await,
        Arm::Tcp | Arm::Mptcp => bed.tcp().await,
        _ => bed.quic().await,
    };
    let mut outcome = outcome.with_context(|| format!("the logs:\n{}", bench.logs()))?;
    let steal = steal.share()?;
    let emulation = bench.topology().emulation()?;
    let counted = sampler.finish()?;

    for mark in &mut outcome.marks {
        mark.t -= outcome.start;
    }
    outcome.marks.sort_by(|a, b| a.t.total_cmp(&b.t));
    Ok(Run {
        scenario: scenario.name.clone(),
        arm,
        number,
        revision: revision(),
        turnaround: outcome.end - outcome.start,
        bytes: scenario.size,
        starts: outcome.starts,
        handshakes: outcome.handshakes,
        requests: outcome.requests,
        marks: outcome.marks,
        samples: since(counted.samples, outcome.start),
        rtt: outcome.rtt,
        payload: outcome.payload,
        share: outcome.share,
        gap: outcome.gap,
        sent_again: outcome.sent_again,
        dropped: emulation.dropped + emulation.lost,
        body: outcome.body,
        client: counted.client,
        server: counted.server,
        steal,
        median_lateness: emulation.median_lateness,
        worst_lateness: emulation.worst_lateness,
        repeats: 0,
    })
}

/// The samples with their times, and their bytes, counted from `start` on.
fn since(samples: Vec<Sample>, start: f64) -> Vec<Sample> {
    let base = samples.iter().rfind(|sample| sample.unix <= start);
    let base = base
        .or(samples.first())
        .map_or([0, 0], |sample| sample.received);
    samples
        .into_iter()
        .filter(|sample| sample.unix > start)
        .map(|sample| Sample {
            unix: sample.unix - start,
            received: [0, 1].map(|link| sample.received[link] - base[link]),
        })
        .collect()
}

/// What an arm runs on.
struct Bed<'a> {
    scenario: &'a Scenario,
    arm: Arm,
    bench: &'a Bench,
    sampler: &'a Sampler,
    expected: &'a str,
}

impl Bed<'_> {
    async fn pings(&self) -> Result<Outcome> {
        let start = unix();
        let mut outcome = Outcome {
            start,
            ..Outcome::default()
        };
        for (link, rtt) in outcome.rtt.iter_mut().enumerate() {
            *rtt = ping(self.bench.topology(), link, PINGS).await?;
            ensure!(
                rtt.len() == PINGS,
                "only {} of {PINGS} pings over link {link}",
                rtt.len()
            );
        }
        outcome.end = unix();
        Ok(outcome)
    }

    /// `mpq-get` and `mpq-serve`.
    async fn quic(&self) -> Result<Outcome> {
        let serve = |host| self.serve_quic(host);
        serve(ServerA).await?;
        let mut download = self.download(ServerA, 1)?;
        let start = unix();
        download
            .wait_for(|event| matches!(event, Event::Connected { .. }))
            .await?;
        let zero = Instant::now();

        let rival = self.scenario.rival.then(|| {
            let options = ["--protocol", "quic", "--interface", "eth0"];
            self.bench.download_as("rival", ServerA, &options)
        });
        let rival = async {
            match rival {
                Some(rival) => Ok(Some(rival?.finish().await?)),
                None => Ok(None),
            }
        };
        let moves = async {
            match self.scenario.moves {
                Some(moves) if moves.announce.is_some() => self.migrate(moves, zero).await,
                Some(moves) => self.replace(moves, zero).await,
                None => Ok(Vec::new()),
            }
        };
        let links = links(self.bench.topology(), &self.scenario.events, zero);
        let (programs, marks, (), rival) =
            tokio::try_join!(self.programs(download), moves, links, rival)?;

        let mut outcome = Outcome {
            start,
            marks,
            starts: programs.len() as u64,
            ..Outcome::default()
        };
        for entries in &programs {
            outcome.marks.extend(marks_of(entries));
        }
        let entries = programs.last().context("there is a last program")?;
        let (zero, done) = (zero_of(entries)?, done_of(entries)?);
        ensure!(done.sha256 == self.expected, "the content is not right");
        outcome.end = zero + done.seconds;
        outcome.handshakes = done.handshakes;
        outcome.requests = done.requests;
        outcome.payload = payload(entries);
        outcome.gap = gap(entries);
        if let Some(rival) = rival {
            outcome.share = Some(share(entries, &rival)?);
        }
        outcome.sent_again = self.bench.sent_again().await?;
        outcome.body = Some(programs.iter().map(|entries| body(entries)).sum());
        Ok(outcome)
    }

    /// Follows the download, and starts another one at the new address whenever it fails, as the
    /// paper's client was. Returns the events of each.
    async fn programs(&self, first: Download) -> Result<Vec<Vec<Entry>>> {
        let mut programs = Vec::new();
        let mut download = first;
        for starts in 2.. {
            let (status, entries) = download.end().await?;
            programs.push(entries);
            if status.success() {
                break;
            }
            ensure!(
                self.scenario.moves.is_some() && starts <= STARTS,
                "mpq-get failed: {status}"
            );
            download = self.download(ServerB, starts)?;
        }
        Ok(programs)
    }

    fn download(&self, from: Host, number: u64) -> Result<Download> {
        let patience = format!("{}", self.scenario.patience.as_secs_f64());
        let mut options = vec!["--interface", "eth0"];
        let strategy = self.arm.strategy().map(|strategy| strategy.to_string());
        match &strategy {
            Some(strategy) => options.extend(["--interface", "eth1", "--strategy", strategy]),
            None => options.extend(["--protocol", "quic"]),
        }
        // A server that has announced its move is waited for; one that is silent is given up.
        options.extend(["--idle-timeout", &patience]);
        // We start it again, as the paper's client was.
        options.extend(["--retry", "0"]);
        let download = self
            .bench
            .download_as(&format!("download-{number}"), from, &options)?;
        if let Some(pid) = download.pid() {
            self.sampler.watch(Side::Client, pid);
        }
        Ok(download)
    }

    async fn serve_quic(&self, host: Host) -> Result<()> {
        let configure = |command: &mut Command| {
            if let Some(Move {
                announce: Some(announce),
                freeze,
                ..
            }) = self.scenario.moves
            {
                let lead = (freeze - announce).as_secs_f64();
                command.arg("--lead").arg(format!("{lead}s"));
            }
            if self.arm == Arm::MultipathOlia {
                command.args(["--congestion", "olia"]);
            }
            if self.arm == Arm::MultipathSlowStart {
                command.arg("--slow-start");
            }
            if self.arm == Arm::Pool {
                command
                    .arg("--pool")
                    .arg(Bench::address(ServerB).to_string());
            }
        };
        let content = self.scenario.content();
        self.bench.serve(host, content, configure).await?;
        self.sampler.watch(Side::Server, self.bench.server()?);
        Ok(())
    }

    /// The server moves as it does: announced, and by CRIU.
    async fn migrate(&self, moves: Move, zero: Instant) -> Result<Vec<Mark>> {
        sleep_until(zero + moves.announce.unwrap_or_default()).await;
        let dump = self.bench.checkpoint(ServerA, ServerB).await?;
        if let Some(thaw) = moves.thaw {
            sleep_until(zero + thaw).await;
        }
        let restored = self.bench.restore(ServerB).await?;
        self.sampler.watch(Side::Server, restored.pid);
        Ok(vec![
            Mark::new(dump.dump_started, What::Frozen),
            Mark::new(dump.dumped, What::Dumped),
            Mark::new(restored.thawed, What::Thawed),
        ])
    }

    /// The server dies, and another one takes its place.
    async fn replace(&self, moves: Move, zero: Instant) -> Result<Vec<Mark>> {
        sleep_until(zero + moves.freeze).await;
        let frozen = unix();
        self.bench.kill()?;
        sleep_until(zero + moves.thaw.unwrap_or(moves.freeze)).await;
        self.serve_quic(ServerB).await?;
        Ok(killed(frozen, unix()))
    }

    /// curl and nginx.
    async fn tcp(&self) -> Result<Outcome> {
        let multipath = self.arm == Arm::Mptcp;
        let topology = self.bench.topology();
        if multipath {
            tcp::prepare_multipath(topology)?;
        }
        let nginx = Nginx::new(self.bench.scratch(), self.scenario.content(), multipath)?;
        let mut first = nginx.start(topology, ServerA).await?;
        self.watch(Side::Server, first.id());

        let (zero, start) = (Instant::now(), unix());
        let curls = async {
            let mut lost = Vec::new();
            for starts in 1..=STARTS {
                let host = if starts == 1 { ServerA } else { ServerB };
                let curl = Curl::start(
                    topology,
                    host,
                    self.bench.scratch(),
                    multipath,
                    self.scenario.patience,
                )?;
                self.watch(Side::Client, curl.pid());
                match curl.finish().await? {
                    Ok(file) => return Ok((lost, starts, unix(), file)),
                    Err(why) if self.scenario.moves.is_none() => bail!("curl: {why}"),
                    Err(_) => lost.push(Mark::new(unix(), What::Lost)),
                }
            }
            bail!("curl has failed {STARTS} times")
        };
        let moves = async {
            let Some(moves) = self.scenario.moves else {
                return Ok((Vec::new(), None));
            };
            // Its host falls silent, as one does that is suspended.
            sleep_until(zero + moves.freeze).await;
            let frozen = unix();
            tcp::disconnect(topology, ServerA)?;
            first.start_kill()?;
            sleep_until(zero + moves.thaw.unwrap_or(moves.freeze)).await;
            let second = nginx.start(topology, ServerB).await?;
            self.watch(Side::Server, second.id());
            Ok((killed(frozen, unix()), Some(second)))
        };
        let links = links(topology, &self.scenario.events, zero);
        let ((lost, starts, end, file), (mut marks, second), ()) =
            tokio::try_join!(curls, moves, links)?;
        let sent_again = tcp::sent_again(topology)?;
        drop(second);
        ensure!(
            tcp::sha256(&file)? == self.expected,
            "the content is not right"
        );
        marks.extend(lost);
        Ok(Outcome {
            start,
            end,
            starts,
            handshakes: 1,
            requests: 1,
            marks,
            sent_again,
            ..Outcome::default()
        })
    }

    fn watch(&self, side: Side, pid: Option<u32>) {
        if let Some(pid) = pid.and_then(|pid| pid.try_into().ok()) {
            self.sampler.watch(side, pid);
        }
    }
}

fn killed(frozen: f64, thawed: f64) -> Vec<Mark> {
    vec![
        Mark::new(frozen, What::Frozen),
        Mark::new(thawed, What::Thawed),
    ]
}

/// Changes the links when their time has come.
async fn links(topology: &Topology, events: &[LinkEvent], zero: Instant) -> Result<()> {
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by_key(|event| event.at);
    for event in events {
        sleep_until(zero + event.at).await;
        topology.set(event.link, &event.change)?;
    }
    Ok(())
}

fn zero_of(entries: &[Entry]) -> Result<f64> {
    let found = entries.iter().find_map(|entry| match entry.event {
        Event::Connected { unix } => Some(unix),
        _ => None,
    });
    found.context("the client has not connected")
}

fn done_of(entries: &[Entry]) -> Result<&Done> {
    match entries.last().map(|entry| &entry.event) {
        Some(Event::Done(done)) => Ok(done),
        other => bail!("the client's last event is {other:?}"),
    }
}

/// What a client saw, at unix times.
fn marks_of(entries: &[Entry]) -> Vec<Mark> {
    // One that never connected saw nothing.
    let Ok(zero) = zero_of(entries) else {
        return Vec::new();
    };
    let marks = entries.iter().filter_map(|entry| {
        let what = match entry.event {
            Event::Connected { .. } => What::Connected,
            Event::MigrationAnnounced { .. } => What::Announced,
            Event::Parked { .. } => What::Parked,
            Event::Silent => What::Silent,
            Event::Detected { .. } => What::Detected,
            Event::Resumed { .. } => What::Resumed,
            Event::FirstByteAfterMove { .. } => What::FirstByte,
            Event::Error { .. } => What::Lost,
            _ => return None,
        };
        Some(Mark::new(zero + entry.t, what))
    });
    marks.collect()
}

/// Body bytes that a client received.
fn body(entries: &[Entry]) -> u64 {
    let told = entries.iter().rev().find_map(|entry| match &entry.event {
        Event::Progress { bytes } => Some(*bytes),
        Event::Done(done) => Some(done.bytes),
        _ => None,
    });
    told.unwrap_or(0)
}

/// Body bits a second after the first second of a download that took longer.
fn payload(entries: &[Entry]) -> Option<f64> {
    let (from, early) = entries.iter().find_map(|entry| match entry.event {
        Event::Progress { bytes } if entry.t >= 1.0 => Some((entry.t, bytes)),
        _ => None,
    })?;
    let done = done_of(entries).ok()?;
    Some((done.bytes - early) as f64 * 8.0 / (done.seconds - from))
}

/// The pause that a move makes in the body, in seconds.
fn gap(entries: &[Entry]) -> Option<f64> {
    entries.iter().find_map(|entry| match entry.event {
        Event::FirstByteAfterMove { gap, .. } => Some(gap),
        _ => None,
    })
}

/// The first's part of what both received until the first of them was done.
fn share(first: &[Entry], second: &[Entry]) -> Result<f64> {
    let end =
        |entries: &[Entry]| Ok::<_, anyhow::Error>(zero_of(entries)? + done_of(entries)?.seconds);
    let until = end(first)?.min(end(second)?);
    let from = zero_of(first)?.max(zero_of(second)?);
    let received = |entries: &[Entry], until: f64| {
        let zero = zero_of(entries)?;
        let bytes = entries.iter().rev().find_map(|entry| match &entry.event {
            Event::Progress { bytes } if zero + entry.t <= until => Some(*bytes),
            _ => None,
        });
        Ok::<_, anyhow::Error>(bytes.unwrap_or(0) as f64)
    };
    let of = |entries| Ok::<_, anyhow::Error>(received(entries, until)? - received(entries, from)?);
    let (first, second) = (of(first)?, of(second)?);
    ensure!(first + second > 0.0, "nothing was received while both ran");
    Ok(first / (first + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(seconds: f64) -> Event {
        Event::Done(Done {
            bytes: 0,
            seconds,
            sha256: String::new(),
            handshakes: 1,
            requests: 1,
            paths: Vec::new(),
        })
    }

    fn entries(unix: f64, events: Vec<(f64, Event)>) -> Vec<Entry> {
        let start = (0.1, Event::Connected { unix });
        [start]
            .into_iter()
            .chain(events)
            .map(|(t, event)| Entry { t, event })
            .collect()
    }

    #[test]
    fn a_share_is_counted_while_both_run() {
        let progress = |bytes| Event::Progress { bytes };
        let first = entries(
            100.0,
            vec![
                (1.0, progress(50)),
                (2.0, progress(200)),
                (3.0, progress(350)),
                (3.5, done(3.5)),
            ],
        );
        let second = entries(
            101.0,
            vec![
                (1.0, progress(100)),
                (2.0, progress(200)),
                (9.0, progress(900)),
                (9.5, done(9.5)),
            ],
        );
        // From 101 to 103.5: the first receives 300, the second 200.
        assert_eq!(share(&first, &second).unwrap(), 0.6);
    }

    #[test]
    fn samples_are_counted_from_the_start_on() {
        let at = |unix, received| Sample { unix, received };
        let samples = vec![at(1.0, [10, 20]), at(2.0, [30, 50]), at(3.0, [70, 90])];
        assert_eq!(since(samples, 2.5), [at(0.5, [40, 40])]);
    }
}
