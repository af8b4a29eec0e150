//! `cargo lab package`: what packages of the tools have beside the programs, made from their options, and a package
//! for Debian.

mod completions;
mod debian;
mod manual;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Subcommand};
pub use completions::completions;
pub use debian::debian;
pub use manual::manual;

/// What there is to make.
#[derive(Debug, Clone, Subcommand)]
pub enum What {
    /// The man pages of the tools and their commands
    Man {
        /// Folder for them
        dir: PathBuf,
    },
    /// Completions for bash, zsh and fish
    Completions {
        /// Folder for them
        dir: PathBuf,
    },
    /// A package for Debian, of both tools with man pages, completions and units for systemd
    Deb {
        /// Folder for it
        dir: PathBuf,

        /// Folder of the programs [default: they are built, with the profile `dist`]
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
}

/// Makes it, and prints the names of the files.
///
/// # Errors
/// If the folder cannot be written, or the package cannot be made.
pub fn make(what: &What) -> Result<()> {
    let (What::Man { dir } | What::Completions { dir } | What::Deb { dir, .. }) = what;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let files = match what {
        What::Man { dir } => manual(dir)?,
        What::Completions { dir } => completions(dir)?,
        What::Deb { dir, programs } => vec![debian(dir, programs.as_deref())?],
    };
    for file in files {
        println!("{}", file.display());
    }
    Ok(())
}

/// The command lines of the tools.
fn tools() -> [Command; 2] {
    [
        mpq_get::cli::args::Args::command(),
        mpq_serve::args::Args::command(),
    ]
}
