//! The report of an experiment: `report.md`, with the pictures it shows, beside the raw results.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::experiment::metrics::{self, Parts};
use crate::experiment::paper;
use crate::experiment::plot::{self, Column, Course};
use crate::experiment::record::{MOST_LATENESS, Run, What};
use crate::experiment::results::Results;
use crate::experiment::scenario::{Arm, Scenario};
use crate::experiment::statistics::{self, Range};
use crate::system::counters::MOST_STEAL;

/// Writes the report and its pictures, and returns its path.
///
/// # Errors
/// If a file cannot be written or a picture not be made.
pub fn write(
    results: &Results,
    scenarios: &[Scenario],
    calibrations: &[String],
) -> Result<PathBuf> {
    let mut report = Report {
        results,
        text: String::new(),
    };
    report.head(scenarios)?;
    report.network(calibrations)?;
    for scenario in scenarios {
        report.scenario(scenario)?;
    }
    report.controller()?;
    let file = results.folder().join("report.md");
    fs::write(&file, report.text)?;
    Ok(file)
}

struct Report<'a> {
    results: &'a Results,
    text: String,
}

impl Report<'_> {
    fn head(&mut self, scenarios: &[Scenario]) -> Result<()> {
        let runs = self.results.runs();
        let repeats: u32 = runs.iter().map(|run| run.repeats).sum();
        let disturbed = runs.iter().filter(|run| run.disturbed()).count();
        let most = |value: fn(&Run) -> f64| runs.iter().map(value).fold(0.0, f64::max);
        let revisions: BTreeSet<&str> = runs.iter().map(|run| run.revision.as_str()).collect();
        let names: Vec<_> = scenarios
            .iter()
            .map(|scenario| scenario.name.as_str())
            .collect();
        writeln!(
            self.text,
            "# Results\n\n\
             {} runs of {}; kernel {}, {} cores, revision {}.\n\n\
             A run that lost more than {:.0}% of its time to other tenants of the machine, or in \
             which a packet left a link late by more than {:.1}% of its time, was repeated: {repeats} were. \
             {disturbed} stayed disturbed after that and count as they are. The most time that a \
             run lost was {:.1}%; the latest packet was {:.1} ms late, and the median of the worst \
             run {:.3} ms.\n\n\
             A result is the mean, with (smallest–largest) of the runs. Where the paper has the \
             same, its result is beside ours.\n",
            runs.len(),
            names.join(", "),
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            std::thread::available_parallelism()?,
            revisions.into_iter().collect::<Vec<_>>().join(", "),
            MOST_STEAL * 100.0,
            MOST_LATENESS * 100.0,
            most(|run| run.steal) * 100.0,
            most(|run| run.worst_lateness) * 1e3,
            most(|run| run.median_lateness) * 1e3,
        )?;
        Ok(())
    }

    fn network(&mut self, calibrations: &[String]) -> Result<()> {
        writeln!(
            self.text,
            "## The network (Table 2), asked for and measured\n"
        )?;
        for calibration in calibrations {
            writeln!(self.text, "```\n{}\n```\n", calibration.trim_end())?;
        }
        writeln!(
            self.text,
            "## Who downloads (Table 3)\n\n\
             | arm | server | client | congestion control |\n| --- | --- | --- | --- |\n\
             | quic | mpq-serve (noq, h3) | mpq-get --protocol quic (quinn, h3) | CUBIC |\n\
             | multipath | mpq-serve (noq, h3) | mpq-get (noq, h3) | CUBIC, a window for each path |\n\
             | multipath-olia | mpq-serve (noq, h3) | mpq-get (noq, h3) | OLIA, coupled |\n\
             | multipath-slow-start | mpq-serve --resume off (noq, h3) | mpq-get (noq, h3) \
             | CUBIC, a window for each path |\n\
             | multipath-aggressive | mpq-serve --resume aggressive (noq, h3) | mpq-get (noq, h3) \
             | CUBIC, a window for each path |\n\
             | paper-olia | mpq-serve (noq, h3) | mpq-get --strategy paper (noq, h3) | OLIA, coupled |\n\
             | paper, proactive, reactive, pool, symmetric, restart | mpq-serve (noq, h3) \
             | mpq-get --strategy … (noq, h3) | CUBIC, a window for each path |\n\
             | tcp | nginx, HTTPS | curl | CUBIC |\n\
             | mptcp | nginx, HTTPS, mptcpize | curl, mptcpize | CUBIC, a window for each subflow |\n\
             | the paper's QUIC | quic-go | quic-go | CUBIC |\n\
             | the paper's Multipath QUIC | mp-quic | mp-quic | OLIA |\n"
        )?;
        Ok(())
    }

    fn scenario(&mut self, scenario: &Scenario) -> Result<()> {
        let name = &scenario.name;
        let arms = self.results.arms(name);
        if arms.is_empty() {
            return Ok(());
        }
        writeln!(self.text, "## {name}\n\n{}.\n", scenario.description)?;
        if arms == [Arm::Ping] {
            return self.rtt(scenario);
        }
        self.turnaround(scenario, &arms)?;
        if scenario.moves.is_some() {
            self.moved(scenario, &arms)?;
        }
        self.cost(scenario, &arms)?;
        self.pictures(scenario, &arms)
    }

    fn rtt(&mut self, scenario: &Scenario) -> Result<()> {
        writeln!(
            self.text,
            "| RTT, ms | ours | the paper's (Figure 6) |\n| --- | --- | --- |"
        )?;
        let mut columns = Vec::new();
        for (link, paper) in paper::RTT.into_iter().enumerate() {
            let runs = self.results.of(&scenario.name, Arm::Ping);
            let values: Vec<f64> = runs
                .filter_map(|run| statistics::range(run.rtt[link].iter().copied()))
                .map(|range| range.mean * 1e3)
                .collect();
            let paper = scaled(paper, 1e3);
            let ours = statistics::range(values.iter().copied());
            writeln!(
                self.text,
                "| eth{link} | {} | {} |",
                cell(ours, 2),
                cell(Some(paper), 2)
            )?;
            columns.push(Column {
                name: format!("eth{link}"),
                values,
                paper: Some(paper),
            });
        }
        self.strips(&scenario.name, "Round-trip time", "ms", &columns)
    }

    fn turnaround(&mut self, scenario: &Scenario, arms: &[Arm]) -> Result<()> {
        let figures_of = |moved| {
            if moved {
                "Figures 11, 12"
            } else {
                "Figures 7, 8"
            }
        };
        let moved = scenario.moves.is_some();
        writeln!(
            self.text,
            "{} MB. Steady is the rate of IP packets after the first second and until the server \
             stops; payload is the body's, from the first second to the end.\n\n\
             | arm | turnaround, s | the paper's, 100 MB ({}) | steady, Mbit/s | the paper's \
             | payload, Mbit/s | client starts |\n\
             | --- | --- | --- | --- | --- | --- | --- |",
            scenario.size as f64 / 1e6,
            figures_of(moved),
        )?;
        let mut columns = Vec::new();
        for arm in arms {
            let runs: Vec<&Run> = self.results.of(&scenario.name, *arm).collect();
            let of = |value: &dyn Fn(&Run) -> Option<f64>| {
                statistics::range(runs.iter().filter_map(|run| value(run)))
            };
            let paper = paper::turnaround(*arm, moved).filter(|_| is_the_papers(scenario));
            let rate = paper::throughput(*arm).filter(|_| is_the_papers(scenario));
            writeln!(
                self.text,
                "| {arm} | {} | {} | {} | {} | {} | {} |",
                cell(of(&|run| Some(run.turnaround)), 2),
                cell(paper, 2),
                cell(of(&|run| Some(metrics::steady(run)? / 1e6)), 1),
                rate.map_or(String::new(), |rate| format!("{:.0}", rate / 1e6)),
                cell(of(&|run| Some(run.payload? / 1e6)), 1),
                cell(of(&|run| Some(run.starts as f64)), 1),
            )?;
            columns.push(Column {
                name: arm.to_string(),
                values: runs.iter().map(|run| run.turnaround).collect(),
                // The paper's would only press ours together.
                paper: None,
            });
            if let Some(share) = of(&|run| run.share) {
                writeln!(
                    self.text,
                    "| | share of the bottleneck beside one plain QUIC download: {} | | | | | |",
                    cell(Some(share), 2)
                )?;
            }
        }
        self.strips(&scenario.name, "Turnaround", "s", &columns)
    }

    fn moved(&mut self, scenario: &Scenario, arms: &[Arm]) -> Result<()> {
        writeln!(
            self.text,
            "### The timeline (Table 4), seconds after the client's start\n\n\
             | arm | announced | frozen | thawed | outage |\n| --- | --- | --- | --- | --- |\n\
             | asked for, after the handshake | {} | {} | {} | |",
            asked(scenario.moves.iter().filter_map(|moves| moves.announce)),
            asked(scenario.moves.iter().map(|moves| moves.freeze)),
            asked(scenario.moves.iter().flat_map(|moves| moves.thaws.clone())),
        )?;
        for arm in arms {
            let of = |value: &dyn Fn(&Run) -> Option<f64>| self.range(scenario, *arm, value);
            writeln!(
                self.text,
                "| {arm} | {} | {} | {} | {} |",
                cell(of(&|run| run.when(What::Announced)), 3),
                cell(of(&|run| run.when(What::Frozen)), 3),
                cell(of(&|run| run.when(What::Thawed)), 3),
                cell(of(&Run::outage), 3),
            )?;
        }

        let without = if scenario.name == "move" {
            "move-without"
        } else {
            "no-move"
        };
        writeln!(
            self.text,
            "\n### What the move cost\n\n\
             Added is the turnaround less the outage and less the mean of the same arm without a \
             move ({without}). The paper's: 3.94 s for Multipath QUIC, 34.46 s for QUIC, with its \
             outage of 10 s.\n\n\
             | arm | added, s | ratio to no move | the paper's ratio | thaw to found, s \
             | thaw to first byte, s | thaw to 90% of the rate, s | rate from announcement to freeze |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for arm in arms {
            let before = self.results.of(without, arm.without_move());
            let before = statistics::range(before.map(|run| run.turnaround));
            let before = before.map(|range| range.mean);
            let of = |value: &dyn Fn(&Run) -> Option<f64>| self.range(scenario, *arm, value);
            let part =
                |pick: fn(Parts) -> Option<f64>| of(&|run| metrics::parts(run).and_then(pick));
            let paper = paper::turnaround(*arm, true)
                .zip(paper::turnaround(*arm, false))
                .map_or(String::new(), |(with, without)| {
                    format!("{:.2}", with.mean / without.mean)
                });
            writeln!(
                self.text,
                "| {arm} | {} | {} | {paper} | {} | {} | {} | {} |",
                cell(of(&|run| metrics::added(run, before?)), 3),
                cell(of(&|run| Some(run.turnaround / before?)), 2),
                cell(part(|parts| parts.detection), 3),
                cell(part(|parts| parts.first_byte), 3),
                cell(part(|parts| parts.recovered), 3),
                cell(part(|parts| Some(parts.kept? * 100.0)), 1),
            )?;
        }
        writeln!(
            self.text,
            "\nThe rate is in percent of that before the announcement.\n"
        )?;
        self.outages(scenario, arms)?;
        if arms.contains(&Arm::Paper) {
            self.order(scenario, arms, without)?;
        }
        Ok(())
    }

    /// Whether an arm finds the server sooner after some outages than after others, if there are several.
    fn outages(&mut self, scenario: &Scenario, arms: &[Arm]) -> Result<()> {
        let moves = scenario.moves.iter().filter(|moves| moves.thaws.len() > 1);
        for moves in moves {
            let asked = moves.thaws.iter().map(|thaw| *thaw - moves.freeze);
            let asked: BTreeSet<Duration> = asked.collect();
            let heads = asked
                .iter()
                .map(|outage| format!(" {} s |", outage.as_secs_f64()));
            writeln!(
                self.text,
                "### From thaw to first byte, s, by the outage that was asked for\n\n\
                 | arm |{}\n| --- |{}",
                heads.collect::<String>(),
                " --- |".repeat(asked.len())
            )?;
            for arm in arms {
                let cells = asked.iter().map(|outage| {
                    let first_byte = |run: &Run| {
                        let of_this = moves.outage(run.number) == Some(*outage);
                        metrics::parts(run).filter(|_| of_this)?.first_byte
                    };
                    format!(" {} |", cell(self.range(scenario, *arm, &first_byte), 3))
                });
                let cells: String = cells.collect();
                writeln!(self.text, "| {arm} |{cells}")?;
            }
            writeln!(self.text)?;
        }
        Ok(())
    }

    /// The strategies, best first, by what they added and by what they wasted.
    fn order(&mut self, scenario: &Scenario, arms: &[Arm], without: &str) -> Result<()> {
        let mean = |name: &str, arm: Arm, value: fn(&Run) -> f64| {
            statistics::range(self.results.of(name, arm).map(value)).map(|range| range.mean)
        };
        let mut rows = Vec::new();
        for arm in arms {
            let base = arm.without_move();
            let Some((turnaround, received)) = mean(without, base, |run| run.turnaround).zip(mean(
                without,
                base,
                metrics::received,
            )) else {
                return Ok(());
            };
            let added = self.range(scenario, *arm, &|run| metrics::added(run, turnaround));
            let wasted = self.range(scenario, *arm, &|run| Some(metrics::wasted(run)? / 1e6));
            let beyond = self.range(scenario, *arm, &|run| {
                Some((metrics::received(run) - received) / 1e6)
            });
            if let (Some(added), Some(wasted), Some(beyond)) = (added, wasted, beyond) {
                rows.push((arm, added, wasted, beyond));
            }
        }
        rows.sort_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
        writeln!(
            self.text,
            "### The strategies in order\n\n\
             Wasted is what was sent for nothing: again, though no link had dropped it, or to a client \
             that had it. Beyond is what the client's interfaces received more than of the same content \
             from a server that stays; that is packets of other sizes, too, and what validates paths.\n\n\
             | strategy | added, s | wasted, MB | beyond, MB |\n| --- | --- | --- | --- |"
        )?;
        for (arm, added, wasted, beyond) in rows {
            writeln!(
                self.text,
                "| {arm} | {} | {} | {} |",
                cell(Some(added), 3),
                cell(Some(wasted), 3),
                cell(Some(beyond), 2)
            )?;
        }
        writeln!(self.text, "\n{ORDER}\n")?;
        Ok(())
    }

    fn cost(&mut self, scenario: &Scenario, arms: &[Arm]) -> Result<()> {
        writeln!(
            self.text,
            "### Resources\n\n\
             | arm | packets sent again | dropped after the thaw | client CPU, s | server CPU, s \
             | client peak, MB | server peak, MB |\n| --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for arm in arms {
            let of = |value: fn(&Run) -> f64| self.range(scenario, *arm, &|run| Some(value(run)));
            let after_thaw = |run: &Run| run.dropped_after_thaw.map(|packets| packets as f64);
            writeln!(
                self.text,
                "| {arm} | {} | {} | {} | {} | {} | {} |",
                cell(of(|run| run.sent_again as f64), 0),
                cell(self.range(scenario, *arm, &after_thaw), 0),
                cell(of(|run| run.client.cpu), 2),
                cell(of(|run| run.server.cpu), 2),
                cell(of(|run| run.client.peak_memory as f64 / 1e6), 1),
                cell(of(|run| run.server.peak_memory as f64 / 1e6), 1),
            )?;
        }
        writeln!(self.text)?;
        Ok(())
    }

    /// Throughput over time of the run with the median turnaround, for each arm.
    fn pictures(&mut self, scenario: &Scenario, arms: &[Arm]) -> Result<()> {
        for arm in arms {
            let mut runs: Vec<&Run> = self.results.of(&scenario.name, *arm).collect();
            runs.sort_by(|a, b| a.turnaround.total_cmp(&b.turnaround));
            let run = runs[runs.len() / 2];
            let marks = [
                (What::Announced, "MIGRATION"),
                (What::Frozen, "freeze"),
                (What::Thawed, "thaw"),
                (What::Lost, "given up"),
            ];
            let course = Course {
                rates: metrics::throughput(run),
                marks: marks
                    .into_iter()
                    .filter_map(|(what, name)| Some((run.when(what)?, name)))
                    .collect(),
                paper: paper::throughput(*arm).filter(|_| is_the_papers(scenario)),
            };
            let name = format!("{}-{arm}-throughput", scenario.name);
            let title = format!(
                "Throughput: {}, {arm}, the run of the median turnaround",
                scenario.name
            );
            let svg = self.results.folder().join(&name).with_extension("svg");
            plot::course(&svg, &title, &course)?;
            self.picture(&name)?;
        }
        Ok(())
    }

    fn strips(&mut self, scenario: &str, what: &str, unit: &str, columns: &[Column]) -> Result<()> {
        let name = format!("{scenario}-{}", what.to_lowercase().replace(' ', "-"));
        let svg = self.results.folder().join(&name).with_extension("svg");
        plot::strips(&svg, &format!("{what}: {scenario}"), unit, columns)?;
        self.picture(&name)
    }

    fn picture(&mut self, name: &str) -> Result<()> {
        plot::png(&self.results.folder().join(name).with_extension("svg"))?;
        writeln!(self.text, "\n![{name}]({name}.svg)\n")?;
        Ok(())
    }

    fn controller(&mut self) -> Result<()> {
        let of = |arm| statistics::range(self.results.of("no-move", arm).map(|run| run.turnaround));
        let (Some(cubic), Some(olia)) = (of(Arm::Multipath), of(Arm::MultipathOlia)) else {
            return Ok(());
        };
        writeln!(
            self.text,
            "## The default congestion controller\n\n\
             CUBIC, a window for each path: 100 MB over both paths took {} s with it and {} s with \
             OLIA (`--congestion olia`).",
            cell(Some(cubic), 2),
            cell(Some(olia), 2)
        )?;
        let share = |arm| {
            let runs = self.results.of("shared-bottleneck", arm);
            statistics::range(runs.filter_map(|run| run.share))
        };
        if let (Some(cubic), Some(olia)) = (share(Arm::Multipath), share(Arm::MultipathOlia)) {
            writeln!(
                self.text,
                "OLIA is for paths that share a bottleneck: beside one plain connection its two \
                 paths took {} of the link, and CUBIC's {}. The default is for interfaces that are \
                 there to be used at once, each with a link of its own.",
                cell(Some(olia), 2),
                cell(Some(cubic), 2)
            )?;
        }
        Ok(())
    }

    fn range(
        &self,
        scenario: &Scenario,
        arm: Arm,
        value: &dyn Fn(&Run) -> Option<f64>,
    ) -> Option<Range> {
        statistics::range(self.results.of(&scenario.name, arm).filter_map(value))
    }
}

/// Why the strategies come in that order.
const ORDER: &str = "\
`multipath` finds the server by its knock, and the first packet on each new path begins with half of \
what the old one had in flight. The redirecting ones answer the knock with a probe, and go on a round \
trip later. They keep their old paths and take for granted that the new place carries what the old \
one did; what `multipath` receives beyond them is the price of validating two paths (RFC 9000 §8.2) \
and of finding out their MTU (§14.3). Nothing is wasted where the server is silent before it is frozen \
until all has arrived; only `restart` has the body sent twice. `reactive` \
and `pool` search only once the server has been silent, `pool` for a second since nothing was \
announced to it; `proactive` stops listening to a server that would still have delivered, so that \
what is in flight is sent again and the lead time is lost. `paper` gives one of its paths up at the \
announcement, and finds the server by its paths' openings, which are repeated at doubled intervals. `restart` waits for \
its idle timeout and downloads all of it again.";

/// Whether the paper has results of its own for it.
fn is_the_papers(scenario: &Scenario) -> bool {
    ["no-move", "move", "move-short"].contains(&scenario.name.as_str())
}

fn scaled(range: Range, by: f64) -> Range {
    Range {
        mean: range.mean * by,
        min: range.min * by,
        max: range.max * by,
    }
}

/// "mean (min–max)".
fn cell(range: Option<Range>, digits: usize) -> String {
    range.map_or(String::new(), |Range { mean, min, max }| {
        format!("{mean:.digits$} ({min:.digits$}–{max:.digits$})")
    })
}

fn asked(times: impl Iterator<Item = Duration>) -> String {
    let times: Vec<_> = times.map(|time| time.as_secs_f64().to_string()).collect();
    times.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_as_the_paper_writes_it() {
        let range = scaled(paper::RTT[0], 1e3);
        assert_eq!(cell(Some(range), 2), "53.33 (51.50–54.94)");
        assert_eq!(cell(None, 2), "");
    }
}
