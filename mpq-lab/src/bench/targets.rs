//! What mpq aims for, asked for and measured: the end of `cargo lab bench`.
//!
//! Everything but the loopback is measured on the paper's network. The round trip there takes 50 ms, and
//! the move is on the paper's timeline.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::arms::tcp;
use crate::bench::compare::{self, Comparison};
use crate::bench::load::LoadResult;
use crate::experiment::metrics::{self, parts};
use crate::experiment::record::Run;
use crate::experiment::run;
use crate::experiment::scenario::{Arm, Scenario};
use crate::experiment::statistics::{median, range};

/// One figure that mpq aims for.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// What is measured.
    pub what: &'static str,
    /// What the figures are counted in.
    pub unit: &'static str,
    /// The bound.
    pub asked: Bound,
    /// Which of the figures must be within the bound.
    pub judged: Judged,
    /// One figure for each run.
    pub values: Vec<f64>,
}

/// What a figure must not pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// It must be so large or less.
    AtMost(f64),
    /// It must be so large or more.
    AtLeast(f64),
}

/// Which of several figures counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The one in the middle.
    Median,
    /// The largest.
    Largest,
}

impl Target {
    fn new(
        what: &'static str,
        asked: Bound,
        unit: &'static str,
        values: impl IntoIterator<Item = f64>,
    ) -> Target {
        Target {
            what,
            unit,
            asked,
            judged: Judged::Median,
            values: values.into_iter().collect(),
        }
    }

    /// The figure that counts; none if nothing was measured.
    pub fn measured(&self) -> Option<f64> {
        match self.judged {
            Judged::Median => median(self.values.iter().copied()),
            Judged::Largest => self.values.iter().copied().reduce(f64::max),
        }
    }

    /// Whether it is within its bound; not if nothing was measured.
    pub fn is_reached(&self) -> bool {
        self.measured().is_some_and(|measured| match self.asked {
            Bound::AtMost(most) => measured <= most,
            Bound::AtLeast(least) => measured >= least,
        })
    }
}

/// A row of a table in Markdown.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, bound) = match self.asked {
            Bound::AtMost(most) => ("≤", most),
            Bound::AtLeast(least) => ("≥", least),
        };
        write!(f, "| {} | {sign} {bound} {} | ", self.what, self.unit)?;
        if let (Some(measured), Some(range)) = (self.measured(), range(self.values.clone())) {
            write!(f, "{measured:.3} ({:.3}–{:.3})", range.min, range.max)?;
        }
        let reached = if self.is_reached() { "yes" } else { "no" };
        write!(f, " | {} | {reached} |", self.values.len())
    }
}

/// Runs the experiments that the targets are about, so often.
///
/// # Errors
/// If a run fails or a body is not as it should be.
pub async fn runs(rounds: u32, criu: &Path) -> Result<Vec<Run>> {
    tcp::setup()?;
    let moves = Scenario::shipped("move")?;
    let plan = [
        (
            Scenario::shipped("no-move")?,
            vec![Arm::Multipath, Arm::Tcp, Arm::Mptcp],
        ),
        (moves.without_move(), vec![Arm::Multipath]),
        (moves, vec![Arm::Multipath]),
        (Scenario::shipped("move-live")?, vec![Arm::Multipath]),
    ];
    let mut runs = Vec::new();
    for number in 1..=rounds {
        for (scenario, arms) in &plan {
            for arm in arms {
                runs.push(once(scenario, *arm, number, criu).await?);
            }
        }
    }
    Ok(runs)
}

async fn once(scenario: &Scenario, arm: Arm, number: u32, criu: &Path) -> Result<Run> {
    let run = run::run(scenario, arm, number, criu).await?;
    let disturbed = if run.disturbed() { ", disturbed" } else { "" };
    eprintln!(
        "{}, {arm}, {number}: {:.3} s{disturbed}",
        scenario.name, run.turnaround
    );
    Ok(run)
}

/// All targets, with what these measurements say about them.
pub fn targets(comparison: &Comparison, runs: &[Run], loads: &[LoadResult]) -> Vec<Target> {
    use Bound::{AtLeast, AtMost};

    let of = |scenario: &'static str, arm| {
        runs.iter()
            .filter(move |run| run.scenario == scenario && run.arm == arm)
    };
    let both = || of("no-move", Arm::Multipath).map(|run| run.turnaround);
    let one = |round| {
        let mut runs = comparison.runs.iter();
        let run = runs.find(|run| run.arm == compare::BenchArm::FirstLink && run.round == round);
        run.map(|run| run.seconds)
    };
    let beside = |arm, ours: &dyn Fn(u32) -> Option<f64>| {
        let ratios = of("no-move", arm).filter_map(|run| Some(ours(run.number)? / run.turnaround));
        ratios.collect::<Vec<_>>()
    };
    let both_in = |number| {
        let mut runs = of("no-move", Arm::Multipath);
        Some(runs.find(|run| run.number == number)?.turnaround)
    };
    let without = || of("move-without", Arm::Multipath);
    let moved = || of("move", Arm::Multipath);
    let part =
        |of: fn(&metrics::Parts) -> Option<f64>| moved().filter_map(move |run| of(&parts(run)?));
    let stays = median(without().map(|run| run.turnaround)).unwrap_or(f64::NAN);
    let received = median(without().map(metrics::received)).unwrap_or(f64::NAN);
    let ratio = |name: &str| {
        let ratios = comparison.ratios.iter().find(|ratio| ratio.name == name);
        ratios.map(|ratio| ratio.rounds.clone()).unwrap_or_default()
    };

    vec![
        Target::new("100 MB over both links", AtMost(5.95), "s", both()),
        Target {
            judged: Judged::Largest,
            ..Target::new("the slowest of these", AtMost(6.3), "s", both())
        },
        Target::new(
            "to Multipath TCP (nginx, curl) in the same round",
            AtMost(1.0),
            "times",
            beside(Arm::Mptcp, &both_in),
        ),
        Target::new(
            "100 MB over one link",
            AtMost(8.75),
            "s",
            (1..).map_while(one),
        ),
        Target::new(
            "to TCP (nginx, curl) in the same round",
            AtMost(1.01),
            "times",
            beside(Arm::Tcp, &one),
        ),
        Target::new(
            "added by a move beyond its outage",
            AtMost(0.15),
            "s",
            moved().filter_map(|run| metrics::added(run, stays)),
        ),
        Target::new(
            "rate from the announcement to the freeze, of that before",
            AtLeast(0.99),
            "times",
            part(|parts| parts.kept),
        ),
        Target::new(
            "from the thaw to the first byte (2 round trips)",
            AtMost(0.1),
            "s",
            part(|parts| parts.first_byte),
        ),
        Target::new(
            "from the thaw to 90% of the rate (6 round trips)",
            AtMost(0.3),
            "s",
            part(|parts| parts.recovered),
        ),
        Target::new(
            "received because of a move, of all",
            AtMost(0.001),
            "times",
            moved().map(|run| metrics::received(run) / received - 1.0),
        ),
        Target::new(
            "live move by CRIU: pause in the body",
            AtMost(0.25),
            "s",
            of("move-live", Arm::Multipath).filter_map(|run| run.gap),
        ),
        Target::new(
            "1 GB on loopback: time, of plain quinn's",
            AtMost(0.75),
            "times",
            ratio(compare::GOODPUT).into_iter().map(f64::recip),
        ),
        Target::new(
            "CPU of the client, of plain quinn's",
            AtMost(1.0),
            "times",
            ratio(compare::CLIENT_CPU),
        ),
        Target::new(
            "CPU of the server, of plain quinn's",
            AtMost(1.0),
            "times",
            ratio(compare::SERVER_CPU),
        ),
        Target {
            judged: Judged::Largest,
            ..Target::new(
                "clients lost of a herd through one move",
                AtMost(0.0),
                "",
                loads.iter().map(|load| (load.clients - load.exact) as f64),
            )
        },
        Target::new(
            "from the thaw until the last of them goes on",
            AtMost(2.0),
            "s",
            // Never, if none does.
            loads
                .iter()
                .map(|load| load.resumed.map_or(f64::INFINITY, |resumed| resumed.max)),
        ),
    ]
}

/// The table, in Markdown.
pub fn table(targets: &[Target]) -> String {
    let head = "| target | asked for | measured: median (smallest–largest) | runs | reached |\n\
                | --- | --- | --- | --- | --- |\n";
    let rows = targets.iter().map(|target| format!("{target}\n"));
    rows.fold(head.to_owned(), |table, row| table + &row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_reached_by_what_counts() {
        let mut target = Target::new("a thing", Bound::AtMost(2.0), "s", [1.0, 2.0, 9.0]);
        assert!(target.is_reached());
        assert_eq!(
            target.to_string(),
            "| a thing | ≤ 2 s | 2.000 (1.000–9.000) | 3 | yes |"
        );
        target.judged = Judged::Largest;
        assert!(!target.is_reached());
        target.asked = Bound::AtLeast(9.0);
        assert!(target.is_reached());
        target.values.clear();
        assert!(!target.is_reached(), "nothing was measured");
        assert!(target.to_string().ends_with("|  | 0 | no |"));
    }
}
