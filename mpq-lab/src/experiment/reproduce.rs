//! `cargo lab reproduce` and `cargo lab run`: experiments, each arm as often as asked for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use mpq_core::proto::Strategy;

use crate::arms::tcp;
use crate::experiment::results::Results;
use crate::experiment::scenario::{Arm, Scenario};
use crate::experiment::{plot, report, run};
use crate::network::calibrate::calibrate;
use crate::system::host::build_tools;
use crate::system::setup::{install, setup};

/// The paper's experiments, in the order of its figures, what its move is measured against, and why
/// CUBIC is the default.
///
/// # Errors
/// If a scenario's file is not there.
pub fn paper() -> Result<Vec<Scenario>> {
    let moves = Scenario::shipped("move")?;
    Ok(vec![
        Scenario::shipped("rtt")?,
        Scenario::shipped("no-move")?,
        moves.without_move(),
        moves,
        Scenario::shipped("move-short")?,
        Scenario::shipped("shared-bottleneck")?,
        Scenario::shipped("strategies")?,
    ])
}

/// Runs what is missing of these scenarios into `folder`, telling how long it will take, and writes
/// the report there. `runs` replaces their own number of runs.
///
/// # Errors
/// If a run fails; those before it are kept, and the next call goes on after them.
pub async fn reproduce(
    mut scenarios: Vec<Scenario>,
    runs: Option<u32>,
    folder: &Path,
) -> Result<PathBuf> {
    for scenario in &mut scenarios {
        scenario.runs = runs.unwrap_or(scenario.runs);
    }
    let criu = setup()?;
    install(&[plot::CONVERTER])?;
    let arms = || scenarios.iter().flat_map(|scenario| &scenario.arms);
    if arms().any(|arm| matches!(arm, Arm::Tcp | Arm::Mptcp)) {
        tcp::setup()?;
    }
    build_tools()?;

    let mut results = Results::open(folder, &scenarios)?;
    let mut networks: Vec<_> = scenarios.iter().map(|scenario| &scenario.network).collect();
    networks.dedup();
    let mut calibrations = Vec::new();
    for network in networks {
        // It refuses a network that is off.
        let calibration = calibrate(network).await?;
        eprintln!("{calibration}");
        calibrations.push(calibration.to_string());
    }

    // One run of every arm, then another of every arm: what drifts drifts for all of them.
    let mut plan: Vec<(&Scenario, Arm, u32)> = Vec::new();
    for scenario in &scenarios {
        for number in 1..=scenario.runs {
            plan.extend(scenario.arms.iter().map(|arm| (scenario, *arm, number)));
        }
    }
    plan.retain(|(scenario, arm, number)| !results.has(&scenario.name, *arm, *number));

    let mut spent = Vec::new();
    for (done, (scenario, arm, number)) in plan.iter().enumerate() {
        let start = Instant::now();
        let run = run::run(scenario, *arm, *number, &criu).await?;
        let turnaround = run.turnaround;
        results.add(run)?;
        spent.push((scenario.name.as_str(), *arm, start.elapsed()));
        eprintln!(
            "{}/{}: {}, {arm}, {number}: {turnaround:.3} s; {} left",
            done + 1,
            plan.len(),
            scenario.name,
            minutes(left(&plan[done + 1..], &spent))
        );
    }
    results.csv()?;
    report::write(&results, &scenarios, &calibrations)
}

/// How long what is left will take, from what the like has taken.
fn left(plan: &[(&Scenario, Arm, u32)], spent: &[(&str, Arm, Duration)]) -> Duration {
    let mean = |wanted: &dyn Fn(&str, Arm) -> bool| {
        let like = spent.iter().filter(|(name, arm, _)| wanted(name, *arm));
        let like: Vec<Duration> = like.map(|(_, _, time)| *time).collect();
        let count = u32::try_from(like.len()).ok().filter(|count| *count > 0)?;
        Some(like.iter().sum::<Duration>() / count)
    };
    let expected = plan.iter().map(|(scenario, arm, number)| {
        mean(&|name, other| name == scenario.name && other == *arm)
            .or_else(|| {
                // Nothing of the kind was run yet: as a download of all, with the outage.
                let moves = scenario.moves.as_ref()?;
                let outage = moves.thaw(*number).unwrap_or(moves.freeze);
                let follows = arm
                    .strategy()
                    .is_some_and(|strategy| strategy != Strategy::Restart);
                let lost = if follows {
                    Duration::ZERO
                } else {
                    scenario.patience
                };
                Some(outage + lost + Duration::from_secs(10))
            })
            .or_else(|| mean(&|_, _| true))
            .unwrap_or_default()
    });
    expected.sum()
}

fn minutes(time: Duration) -> String {
    format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_like() {
        let scenarios = paper().unwrap();
        let no_move = &scenarios[1];
        let plan = [(no_move, Arm::Quic, 2), (no_move, Arm::Multipath, 2)];
        let spent = [
            ("no-move", Arm::Quic, Duration::from_secs(8)),
            ("no-move", Arm::Quic, Duration::from_secs(10)),
            ("no-move", Arm::Multipath, Duration::from_secs(6)),
        ];
        assert_eq!(left(&plan, &spent), Duration::from_secs(15));
        assert_eq!(minutes(Duration::from_secs(75)), "1 min 15 s");
    }

    #[test]
    fn the_papers_experiments_are_all_there() {
        let scenarios = paper().unwrap();
        let names: Vec<_> = scenarios
            .iter()
            .map(|scenario| scenario.name.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "rtt",
                "no-move",
                "move-without",
                "move",
                "move-short",
                "shared-bottleneck",
                "strategies"
            ]
        );
    }
}
