//! Completions for shells.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Command;
use clap_complete::{Shell, generate_to};

use super::tools;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes the completions of the tools for each shell into a folder, and returns their files.
///
/// # Errors
/// If one cannot be written.
pub fn completions(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for tool in tools() {
        let mut tool = shown(&tool);
        let name = tool.get_name().to_owned();
        for shell in SHELLS {
            let file = generate_to(shell, &mut tool, &name, folder)?;
            if shell == Shell::Bash {
                // clap_complete 4.6 names a command of a tool with a dash in two ways, and so never finds its options.
                let [one, other] = ["__subcmd__", "__"].map(|dash| name.replace('-', dash));
                let text = fs::read_to_string(&file)?.replace(&one, &other);
                fs::write(&file, text)?;
            }
            files.push(file);
        }
    }
    Ok(files)
}

/// The command without those of its commands that are hidden: the generators would tell of them.
fn shown(command: &Command) -> Command {
    let subcommands = command.get_subcommands().filter(|of| !of.is_hide_set());
    let name: &'static str = command.get_name().to_owned().leak();
    let mut copy = Command::new(name)
        .about(command.get_about().cloned().unwrap_or_default())
        .args(command.get_arguments().cloned())
        .groups(command.get_groups().cloned())
        .subcommands(subcommands.map(shown));
    if command.get_version().is_some() {
        copy = copy.version(env!("CARGO_PKG_VERSION"));
    }
    copy
}
