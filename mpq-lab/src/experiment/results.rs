//! A folder of results: every run, one JSON object a line, written as soon as it is done, so that an
//! interrupted experiment goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::experiment::metrics::{self, Parts};
use crate::experiment::record::{Run, What};
use crate::experiment::scenario::{Arm, Scenario};
use crate::experiment::statistics;

/// The runs.
const RUNS: &str = "runs.jsonl";
/// What they are runs of.
const PLAN: &str = "plan.json";

/// The folder.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    runs: Vec<Run>,
}

impl Results {
    /// Opens or makes a folder for the results of these scenarios.
    ///
    /// # Errors
    /// If it cannot be written, or holds results of other scenarios of these names.
    pub fn open(folder: &Path, scenarios: &[Scenario]) -> Result<Results> {
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let file = folder.join(PLAN);
        let mut plan: BTreeMap<String, String> = match fs::read(&file) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("{}", file.display()))?
            }
            Err(_) => BTreeMap::new(),
        };
        for scenario in scenarios {
            // More runs of the same may be added later.
            let mut same = scenario.clone();
            same.runs = 0;
            let text = format!("{same:?}");
            let there = plan
                .entry(scenario.name.clone())
                .or_insert_with(|| text.clone());
            ensure!(
                *there == text,
                "{} holds results of another {}; name another folder with --out",
                folder.display(),
                scenario.name
            );
        }
        fs::write(&file, serde_json::to_string_pretty(&plan)?)?;
        let runs = match fs::read_to_string(folder.join(RUNS)) {
            // The last line may have been cut off; that run is done again.
            Ok(text) => text
                .lines()
                .map_while(|line| serde_json::from_str(line).ok())
                .collect(),
            Err(_) => Vec::new(),
        };
        let results = Results {
            folder: folder.to_owned(),
            runs,
        };
        results.rewrite()?;
        Ok(results)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All runs.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The runs of one arm in one scenario.
    pub fn of<'a>(&'a self, scenario: &'a str, arm: Arm) -> impl Iterator<Item = &'a Run> {
        let wanted = move |run: &&Run| run.scenario == scenario && run.arm == arm;
        self.runs.iter().filter(wanted)
    }

    /// Whether this run is there.
    pub fn has(&self, scenario: &str, arm: Arm, number: u32) -> bool {
        self.of(scenario, arm).any(|run| run.number == number)
    }

    /// Adds a run.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, run: Run) -> Result<()> {
        let mut file = File::options().append(true).open(self.folder.join(RUNS))?;
        file.write_all(format!("{}\n", serde_json::to_string(&run)?).as_bytes())?;
        self.runs.push(run);
        Ok(())
    }

    fn rewrite(&self) -> Result<()> {
        let lines: Result<Vec<_>, _> = self.runs.iter().map(serde_json::to_string).collect();
        let text: String = lines?.into_iter().map(|line| line + "\n").collect();
        Ok(fs::write(self.folder.join(RUNS), text)?)
    }

    /// Writes a line for each run, `runs.csv`, and one for each path and 100 ms, `throughput.csv`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn csv(&self) -> Result<()> {
        let mut runs = csv::Writer::from_path(self.folder.join("runs.csv"))?;
        runs.write_record([
            "scenario",
            "arm",
            "run",
            "turnaround_s",
            "bytes",
            "starts",
            "handshakes",
            "requests",
            "steady_bit_per_s",
            "payload_bit_per_s",
            "rtt_eth0_s",
            "rtt_eth1_s",
            "share",
            "announced_at_s",
            "frozen_at_s",
            "thawed_at_s",
            "detection_s",
            "first_byte_s",
            "recovered_s",
            "kept",
            "packets_sent_again",
            "packets_dropped",
            "packets_dropped_after_thaw",
            "wasted_bytes",
            "client_cpu_s",
            "client_peak_bytes",
            "server_cpu_s",
            "server_peak_bytes",
            "steal",
            "median_lateness_s",
            "worst_lateness_s",
            "repeats",
        ])?;
        for run in &self.runs {
            let parts = metrics::parts(run);
            let part = |pick: fn(&Parts) -> Option<f64>| text(parts.as_ref().and_then(pick));
            let rtt = |link: usize| text(statistics::median(run.rtt[link].iter().copied()));
            runs.write_record([
                run.scenario.clone(),
                run.arm.to_string(),
                run.number.to_string(),
                text(Some(run.turnaround)),
                run.bytes.to_string(),
                run.starts.to_string(),
                run.handshakes.to_string(),
                run.requests.to_string(),
                text(metrics::steady(run)),
                text(run.payload),
                rtt(0),
                rtt(1),
                text(run.share),
                text(run.when(What::Announced)),
                text(run.when(What::Frozen)),
                text(run.when(What::Thawed)),
                part(|parts| parts.detection),
                part(|parts| parts.first_byte),
                part(|parts| parts.recovered),
                part(|parts| parts.kept),
                run.sent_again.to_string(),
                run.dropped.to_string(),
                run.dropped_after_thaw
                    .map_or(String::new(), |packets| packets.to_string()),
                text(metrics::wasted(run)),
                text(Some(run.client.cpu)),
                run.client.peak_memory.to_string(),
                text(Some(run.server.cpu)),
                run.server.peak_memory.to_string(),
                text(Some(run.steal)),
                text(Some(run.median_lateness)),
                text(Some(run.worst_lateness)),
                run.repeats.to_string(),
            ])?;
        }
        runs.flush()?;

        let mut rates = csv::Writer::from_path(self.folder.join("throughput.csv"))?;
        rates.write_record([
            "scenario",
            "arm",
            "run",
            "t_s",
            "eth0_bit_per_s",
            "eth1_bit_per_s",
        ])?;
        for run in &self.runs {
            let (arm, number) = (run.arm.to_string(), run.number.to_string());
            for (t, [first, second]) in metrics::throughput(run) {
                rates.write_record([
                    &run.scenario,
                    &arm,
                    &number,
                    &format!("{t:.3}"),
                    &format!("{first:.0}"),
                    &format!("{second:.0}"),
                ])?;
            }
        }
        Ok(rates.flush()?)
    }

    /// The arms that a scenario has runs of, in order.
    pub fn arms(&self, scenario: &str) -> Vec<Arm> {
        let runs = self.runs.iter().filter(|run| run.scenario == scenario);
        let arms: BTreeSet<Arm> = runs.map(|run| run.arm).collect();
        arms.into_iter().collect()
    }
}

fn text(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| format!("{value:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::record::examples::moved;

    fn scenario(size: &str) -> Scenario {
        let text = format!("description = ''\nsize = '{size}'\narms = ['multipath']");
        Scenario::parse("test", &text).unwrap()
    }

    #[test]
    fn results_are_kept_and_those_of_others_are_not_mixed_in() {
        let folder = tempfile::tempdir().unwrap();
        let open = |size| Results::open(folder.path(), &[scenario(size)]);
        open("1M").unwrap().add(moved()).unwrap();
        // The machine went down while a run was written.
        let file = folder.path().join(RUNS);
        let whole = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{whole}{}", &whole[..whole.len() / 2])).unwrap();

        let mut results = open("1M").unwrap();
        assert_eq!(results.runs(), [moved()]);
        assert!(results.has("test", Arm::Multipath, 1));
        assert!(!results.has("test", Arm::Quic, 1));
        let second = Run {
            number: 2,
            ..moved()
        };
        results.add(second.clone()).unwrap();
        assert_eq!(open("1M").unwrap().runs(), [moved(), second]);
        assert!(open("2M").unwrap_err().to_string().contains("test"));

        results.csv().unwrap();
        let lines = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(lines("runs.csv").lines().count(), 3);
        let samples = 2 * metrics::throughput(&moved()).len();
        assert_eq!(lines("throughput.csv").lines().count(), 1 + samples);
    }
}
