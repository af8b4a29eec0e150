//! `cargo lab bench`: ratios of what runs side by side, so that they mean the same on any machine.
//!
//! - On loopback `mpq-get` and `mpq-serve`, over one path, against the same client program with
//!   `--protocol quic` and a server of plain quinn (see [`quinn_server`](crate::arms::quinn_server)):
//!   goodput and CPU time. Both clients discard the body after its SHA-256, both servers make it by
//!   the same code, and both use their default congestion control.
//! - On the emulated network a download over both links against the sum of those over each.
//! - There too a download during which the server is moved, less the time that the server was
//!   frozen, against one without.
//! - Last the [`targets`] of the project.
//!
//! [`compare`] runs all that and makes [`ratios`] of it; [`load`] moves a server under many clients, which is
//! `cargo lab herd` too. [`attacks`] is a command of its own, as [`linkfail`] is.

pub mod attacks;
pub mod compare;
pub mod linkfail;
pub mod load;
pub mod ratios;
pub mod targets;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::system::host::build_tools;
use crate::system::setup::setup;

/// The content on the emulated network is that of the demo, bytes.
const LAB_SIZE: u64 = 100_000_000;

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Bytes of each download on loopback; with k, M, G (powers of 1000) or Ki, Mi, Gi (of 1024)
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = mpq_serve::units::size)]
    size: u64,

    /// Runs of each kind
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only what needs no emulated network
    #[arg(long)]
    loopback: bool,

    /// Write every run and the ratios to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Builds the tools, measures, and prints the ratios.
///
/// # Errors
/// If a run fails or a body is not as it should be.
pub async fn bench(options: &Options) -> Result<()> {
    let criu = match options.loopback {
        true => None,
        false => setup()
            .inspect_err(|reason| eprintln!("Without the emulated network: {reason:#}"))
            .ok(),
    };
    build_tools()?;

    let rounds = options.rounds;
    let comparison = compare::compare(options.size, LAB_SIZE, rounds, criu.as_deref()).await?;
    println!("{comparison}");
    if let Some(criu) = &criu {
        let runs = targets::runs(rounds, criu).await?;
        let mut loads = Vec::new();
        for _ in 0..rounds {
            let load = load::once(criu).await?;
            println!("\n{load}");
            loads.push(load);
        }
        let targets = targets::targets(&comparison, &runs, &loads);
        println!("\n{}", targets::table(&targets));
    }
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&comparison)?;
        fs::write(file, text + "\n").with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}
