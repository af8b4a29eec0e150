//! `cargo lab attacks`: how fast a good client is beside somebody who means harm, and what the server needs meanwhile.
//!
//! For each kind of attack a server of its own stands on the emulated network. A download over both links, of 20 and
//! 10 Mbit/s, alternates with one during the attack. The attacker sits beside the server, where no link slows it down.
//! A download takes from the start of its program to its end, so that a handshake which is held up counts.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::arms::attacker::{Attack, Attacker};
use crate::arms::mpq_get::DownloadEvent;
use crate::arms::mpq_server::Content;
use crate::arms::testbed::Testbed;
use crate::bench::ratios::Ratio;
use crate::network::model::Network;
use crate::network::topology::Host;
use crate::system::counters::usage;
use crate::system::host::build_tools;
use crate::system::setup::setup;

/// What a good client keeps of its rate at least.
pub const LEAST_KEPT: f64 = 0.8;
/// What is resident of a server under attack at most, bytes.
pub const MOST_MEMORY: u64 = 256 << 20;
/// About a second and a half on the links.
const CONTENT: Content = Content {
    size: 5_000_000,
    seed: 1,
};
/// Bit/s of the links.
const RATES: [u64; 2] = [20_000_000, 10_000_000];

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Pairs of downloads of each kind of attack
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only this kind of attack
    #[arg(long, value_name = "KIND")]
    attack: Option<Attack>,
}

/// What one kind of attack has done.
#[derive(Debug, Clone)]
pub struct Outcome {
    attack: Attack,
    /// What the attacker did in one round, in the middle.
    pub deeds: u64,
    /// The good client's rate during the attack against that without, Mbit/s.
    pub kept: Ratio,
    /// What was resident of the server at most before the first attack, and at the end; bytes.
    pub memory: [u64; 2],
}

impl Outcome {
    /// What is not as it should be; nothing if all is.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.kept.median < LEAST_KEPT {
            faults.push(format!(
                "{:.0}% of the rate is kept",
                100.0 * self.kept.median
            ));
        }
        if self.memory[1] > MOST_MEMORY {
            faults.push(format!("{} MiB of memory", self.memory[1] >> 20));
        }
        faults
    }
}

/// A row of a table in Markdown.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            attack,
            deeds,
            kept,
            memory: [before, most],
        } = self;
        write!(
            f,
            "| {} | {deeds} {} | {:.1} | {:.1} | {:.0}% ({:.0}–{:.0}) | {} | {} |",
            attack.name(),
            attack.deeds(),
            kept.other,
            kept.one,
            100.0 * kept.median,
            100.0 * kept.min,
            100.0 * kept.max,
            before >> 20,
            most >> 20,
        )
    }
}

/// Of each outcome's row.
pub fn heading() -> String {
    format!(
        "| attack | each time | alone, Mbit/s | during it | kept, of {:.0}% at least | memory before, MiB | \
         at most, {} allowed |\n| --- | --- | --- | --- | --- | --- | --- |",
        100.0 * LEAST_KEPT,
        MOST_MEMORY >> 20
    )
}

/// Measures so many pairs.
///
/// # Errors
/// If a download fails, or has other bytes than it should.
pub async fn measure(attack: Attack, rounds: u32, criu: &Path) -> Result<Outcome> {
    let mut network = Network::default();
    for (link, rate) in network.links.iter_mut().zip(RATES) {
        link.rate = rate;
    }
    let testbed = Testbed::new(criu, &network)?;
    testbed.serve(Host::ServerA, CONTENT, |_| ()).await?;
    let expected = CONTENT.sha256();
    let server = testbed.server_pid()?;
    let memory =
        || Ok::<_, anyhow::Error>(usage(server).context("the server is gone")?.peak_memory);
    let (mut pairs, mut deeds, mut before) = (Vec::new(), Vec::new(), None);
    for _ in 0..rounds {
        let alone = rate(&testbed, &expected).await?;
        before.get_or_insert(memory()?);
        let attacker = Attacker::start(testbed.topology(), attack).await?;
        let attacked = rate(&testbed, &expected).await;
        let attacked = attacked.with_context(|| format!("during the {}", attack.name()))?;
        deeds.push(attacker.stop().await?);
        pairs.push((attacked, alone));
    }
    deeds.sort_unstable();
    Ok(Outcome {
        attack,
        deeds: deeds[deeds.len() / 2],
        kept: Ratio::new(attack.name(), "Mbit/s", &pairs).context("no rounds")?,
        memory: [before.context("no rounds")?, memory()?],
    })
}

/// Of one download, Mbit/s.
async fn rate(testbed: &Testbed, expected: &str) -> Result<f64> {
    let entries = testbed.download(Host::ServerA)?.finish().await?;
    let Some(DownloadEvent::Done(done)) = entries.into_iter().last().map(|entry| entry.event)
    else {
        bail!("mpq-get does not say that it has ended");
    };
    ensure!(done.sha256 == expected, "other bytes than there should be");
    Ok(done.bytes as f64 * 8e-6 / done.seconds)
}

/// Measures all, prints a table, and fails if something is not as it should be.
///
/// # Errors
/// As [`measure`], or what is not.
pub async fn attacks(options: &Options) -> Result<()> {
    let criu = setup()?;
    build_tools()?;
    println!("{}", heading());
    let mut wrong = Vec::new();
    for attack in Attack::ALL {
        if options.attack.is_some_and(|only| only != attack) {
            continue;
        }
        let outcome = measure(attack, options.rounds, &criu).await?;
        println!("{outcome}");
        let faults = outcome.faults().into_iter();
        wrong.extend(faults.map(|fault| format!("{}: {fault}", attack.name())));
    }
    ensure!(
        wrong.is_empty(),
        "not as it should be: {}",
        wrong.join("; ")
    );
    Ok(())
}
