//! One run of an experiment: one arm downloads once, while the server and the links do what the
//! scenario says.
//!
//! All figures come from the client's events, the server's log and images, and the kernel's
//! counters; all times are in seconds since the client was started.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::arms::sample::{Sample, Sampler};
use crate::arms::testbed::Testbed;
use crate::experiment::record::Run;
use crate::experiment::scenario::{Arm, Scenario};
use crate::experiment::stage::{Outcome, Stage};
use crate::experiment::{run_mpq, run_tcp};
use crate::network::ping::ping;
use crate::network::topology::Host::Client;
use crate::network::topology::Topology;
use crate::system::counters::Steal;
use crate::system::host::unix;
use crate::system::revision::revision;

/// How often a run is repeated before it counts as it is.
const REPEATS: u32 = 5;
/// Pings of one run over each interface.
const PINGS: usize = 20;

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

/// Runs an arm once, disturbed or not.
///
/// # Errors
/// If a step fails or the content is not right.
pub async fn once(scenario: &Scenario, arm: Arm, number: u32, criu: &Path) -> Result<Run> {
    let expected = scenario.content().sha256();
    let testbed = Testbed::new(criu, &scenario.network)?;
    let sampler = Sampler::start(testbed.topology().namespace_file(Client));
    testbed.topology().emulation()?;
    let steal = Steal::now()?;
    let stage = Stage {
        scenario,
        arm,
        number,
        testbed: &testbed,
        sampler: &sampler,
        expected: &expected,
    };
    let outcome = match arm {
        Arm::Ping => pings(testbed.topology()).await,
        Arm::Tcp | Arm::Mptcp => run_tcp::download(&stage).await,
        _ => run_mpq::download(&stage).await,
    };
    let mut outcome = outcome.with_context(|| format!("the logs:\n{}", testbed.logs()))?;
    let steal = steal.share()?;
    let after_thaw = testbed.topology().emulation()?;
    let emulation = outcome.until_thaw.unwrap_or_default().and_then(after_thaw);
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
        standstill: outcome.standstill,
        sent_again: outcome.sent_again,
        dropped: emulation.missing(),
        dropped_after_thaw: outcome.until_thaw.map(|_| after_thaw.missing()),
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

/// Round-trip times over each interface.
async fn pings(topology: &Topology) -> Result<Outcome> {
    let start = unix();
    let mut outcome = Outcome {
        start,
        ..Outcome::default()
    };
    for (link, rtt) in outcome.rtt.iter_mut().enumerate() {
        *rtt = ping(topology, link, PINGS).await?;
        ensure!(
            rtt.len() == PINGS,
            "only {} of {PINGS} pings over link {link}",
            rtt.len()
        );
    }
    outcome.end = unix();
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_from_the_start_on() {
        let at = |unix, received| Sample { unix, received };
        let samples = vec![at(1.0, [10, 20]), at(2.0, [30, 50]), at(3.0, [70, 90])];
        assert_eq!(since(samples, 2.5), [at(0.5, [40, 40])]);
    }
}
