//! `cargo lab linkfail`: a link dies under a download, for a moment or for good, and Multipath TCP stands
//! the same beside it.
//!
//! Three figures tell what happens. The *standstill* is the longest time in which the body did not grow.
//! *Idle* is the longest time in which the living link carried nothing while the other was dead: with a
//! long standstill and little idle time the flow is stalled, with both the connection is. *Total* is the
//! time from the client's start to the last byte in its file.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::arms::tcp;
use crate::experiment::record::Run;
use crate::experiment::run;
use crate::experiment::scenario::{Arm, Scenario};
use crate::system::setup;

/// The longest standstill, in seconds, while a link lives and the server is there.
pub const MOST_STANDSTILL: f64 = 0.5;
/// When the first link dies, in seconds after the handshake: the windows are open by then.
const DEATH: f64 = 1.5;
/// What 100 and 50 Mbit/s carry in six seconds with one of them dead for half of the time.
const SIZE: &str = "40M";

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Runs of each arm in each row
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only the rows whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    row: String,
}

/// A time in which a link carries nothing and says nothing, in seconds after the handshake.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outage {
    link: usize,
    from: f64,
    until: Option<f64>,
}

/// One way for links to die.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What happens, in words.
    pub name: String,
    size: &'static str,
    outages: Vec<Outage>,
    /// The body is asked for in one.
    whole: bool,
    /// Announcement, freeze and thaw of the server, in seconds after the handshake.
    moves: Option<[f64; 3]>,
}

/// All rows: each link for a moment, for long and for good, for long under a single request, both in turn, and
/// one during a move.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for link in [0, 1] {
        for (time, size) in [
            (Some(0.2), SIZE),
            (Some(0.5), SIZE),
            (Some(3.0), SIZE),
            (Some(25.0), "250M"),
            (None, SIZE),
        ] {
            let name = match time {
                Some(time) => format!("link {link} for {time} s"),
                None => format!("link {link} for good"),
            };
            let until = time.map(|time| DEATH + time);
            rows.push(Row {
                name,
                size,
                outages: vec![Outage {
                    link,
                    from: DEATH,
                    until,
                }],
                whole: false,
                moves: None,
            });
        }
    }
    for link in [0, 1] {
        rows.push(Row {
            name: format!("link {link} for 3 s, --segments 1"),
            size: SIZE,
            outages: vec![Outage {
                link,
                from: DEATH,
                until: Some(DEATH + 3.0),
            }],
            whole: true,
            moves: None,
        });
    }
    let outage = |link, from, until| Outage {
        link,
        from,
        until: Some(until),
    };
    rows.push(Row {
        name: "both in turn".to_owned(),
        size: "60M",
        outages: vec![outage(0, DEATH, 3.0), outage(1, 4.0, 5.5)],
        whole: false,
        moves: None,
    });
    for link in [0, 1] {
        rows.push(Row {
            name: format!("link {link} during a move"),
            size: SIZE,
            outages: vec![Outage {
                link,
                from: 1.7,
                until: None,
            }],
            whole: false,
            moves: Some([1.0, 1.2, 2.2]),
        });
    }
    rows
}

impl Row {
    /// The experiment. nginx does not move, so that Multipath TCP has a row only without a move.
    fn scenario(&self) -> Result<Scenario> {
        let mut text = format!("description = '{}'\nsize = '{}'\n", self.name, self.size);
        let arms = match self.moves {
            Some(_) => "arms = ['multipath']\n",
            None => "arms = ['multipath', 'mptcp']\n",
        };
        text += arms;
        if self.whole {
            text += "segments = 1\n";
        }
        if let Some([announce, freeze, thaw]) = self.moves {
            text += &format!(
                "[move]\nannounce = '{announce}s'\nfreeze = '{freeze}s'\nthaw = '{thaw}s'\n"
            );
        }
        for Outage { link, from, until } in &self.outages {
            let ends = [(Some(*from), false), (*until, true)];
            for (at, up) in ends.into_iter().filter_map(|(at, up)| Some((at?, up))) {
                text +=
                    &format!("[[events]]\nat = '{at}s'\nlink = {link}\nchange = {{ up = {up} }}\n");
            }
        }
        Scenario::parse(&format!("linkfail: {}", self.name), &text)
    }

    /// The longest time in which a living link carried nothing while the other was dead, in seconds.
    fn idle(&self, run: &Run) -> f64 {
        let handshake = run.marks.first().map_or(0.0, |mark| mark.t);
        let idle = self.outages.iter().map(|outage| {
            let end = run.turnaround - handshake;
            let until = outage.until.unwrap_or(end).min(end);
            let during = |t: f64| (handshake + outage.from..handshake + until).contains(&t);
            let samples = run.samples.iter().filter(|sample| during(sample.unix));
            let mut longest = 0.0_f64;
            let mut last: Option<(f64, u64)> = None;
            for sample in samples {
                let received = sample.received[1 - outage.link];
                match last {
                    Some((since, before)) if before == received => {
                        longest = longest.max(sample.unix - since);
                    }
                    _ => last = Some((sample.unix, received)),
                }
            }
            longest
        });
        idle.fold(0.0, f64::max)
    }

    /// Runs mpq once and, if asked for, Multipath TCP after it, where that can do the same.
    ///
    /// # Errors
    /// If a run fails or the content is not right.
    pub async fn run(&self, number: u32, beside: bool, criu: &Path) -> Result<Outcome> {
        let scenario = self.scenario()?;
        let ours = run::run(&scenario, Arm::Multipath, number, criu).await?;
        let mptcp = match beside && scenario.arms.contains(&Arm::Mptcp) {
            true => Some(run::run(&scenario, Arm::Mptcp, number, criu).await?),
            false => None,
        };
        Ok(Outcome {
            standstill: ours.standstill.unwrap_or(f64::INFINITY),
            outage: ours.outage().unwrap_or(0.0),
            idle: self.idle(&ours),
            total: ours.turnaround,
            connections: ours.starts - 1 + ours.handshakes,
            requests: ours.requests,
            mptcp: mptcp.map(|run| run.turnaround),
        })
    }
}

/// What one round of a row has shown; times in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The longest time without a byte of the body.
    pub standstill: f64,
    /// For how long the server was frozen.
    pub outage: f64,
    /// The longest time in which the living link carried nothing.
    pub idle: f64,
    /// From start to end.
    pub total: f64,
    /// Connections made.
    pub connections: u64,
    /// Requests sent on the last of them.
    pub requests: u64,
    /// What Multipath TCP took for the same.
    pub mptcp: Option<f64>,
}

impl Outcome {
    /// What is not as it should be; nothing if all is.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.connections != 1 {
            faults.push(format!("{} connections", self.connections));
        }
        if self.standstill > MOST_STANDSTILL + self.outage {
            faults.push(format!("{:.2} s of standstill", self.standstill));
        }
        if self.mptcp.is_some_and(|mptcp| self.total > mptcp) {
            faults.push("slower than Multipath TCP".to_owned());
        }
        faults
    }
}

/// A row of a table in Markdown.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mptcp = self
            .mptcp
            .map_or("–".to_owned(), |total| format!("{total:.2}"));
        let Self {
            standstill,
            idle,
            total,
            connections,
            ..
        } = self;
        write!(
            f,
            "{connections} | {standstill:.2} | {idle:.2} | {total:.2} | {mptcp}"
        )
    }
}

/// Runs all rows, prints a table, and fails if a run is not as it should be.
///
/// # Errors
/// If a run fails, or has faults.
pub async fn linkfail(options: &Options) -> Result<()> {
    let criu = setup::setup()?;
    tcp::setup()?;
    println!("| links | connections | standstill, s | idle, s | total, s | Multipath TCP, s |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    for row in rows().iter().filter(|row| row.name.contains(&options.row)) {
        for number in 1..=options.rounds {
            let outcome = row.run(number, true, &criu).await?;
            println!("| {} | {outcome} |", row.name);
            let faults = outcome.faults();
            if !faults.is_empty() {
                wrong.push(format!("{}, {number}: {}", row.name, faults.join(", ")));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("not as it should be: {}", wrong.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_row_is_an_experiment() {
        for row in rows() {
            let scenario = row.scenario().unwrap();
            let changes: usize = row
                .outages
                .iter()
                .map(|o| 1 + usize::from(o.until.is_some()))
                .sum();
            assert_eq!(scenario.events.len(), changes, "{}", row.name);
            let first = scenario.events[0].at;
            assert!(first >= Duration::from_secs(1), "{first:?}");
        }
    }

    #[test]
    fn faults_are_named() {
        let good = Outcome {
            standstill: 0.3,
            outage: 0.0,
            idle: 0.0,
            total: 5.0,
            connections: 1,
            requests: 1,
            mptcp: Some(6.0),
        };
        assert_eq!(good.faults(), [""; 0]);
        let bad = Outcome {
            standstill: 0.6,
            total: 7.0,
            connections: 2,
            ..good
        };
        assert_eq!(bad.faults().len(), 3);
        let frozen = Outcome {
            standstill: 1.4,
            outage: 1.0,
            ..good
        };
        assert_eq!(frozen.faults(), [""; 0]);
    }
}
