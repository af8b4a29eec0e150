//! Man pages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::tools;

const SECTION: &str = "1";

/// Writes the man pages of the tools and of their commands into a folder, and returns their files.
///
/// # Errors
/// If one cannot be written.
pub fn manual(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for mut tool in tools() {
        // Commands get their whole names.
        tool = tool.disable_help_subcommand(true);
        tool.build();
        let commands = tool.get_subcommands().filter(|of| !of.is_hide_set());
        for page in [&tool].into_iter().chain(commands) {
            let name = page.get_display_name().unwrap_or(page.get_name());
            let file = folder.join(format!("{name}.{SECTION}"));
            fs::write(&file, text(page)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
            files.push(file);
        }
    }
    Ok(files)
}

fn text(command: &Command) -> Result<Vec<u8>> {
    // All options would be a long line. They follow anyway.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    let page = Man::new(command.clone().override_usage(usage))
        .section(SECTION)
        // None, for the same page at any time. An empty one would be left out, and what follows take its place.
        .date(" ")
        .source(concat!("mpq ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(notes) = command.get_after_long_help().or(command.get_after_help()) {
        write_notes(&notes.to_string(), &mut text)?;
    }
    Ok(text)
}

/// Writes what follows the options: prose, and then tables, each with a heading.
fn write_notes(notes: &str, out: &mut Vec<u8>) -> Result<()> {
    let is_table = |block: &&str| block.lines().skip(1).any(|line| line.starts_with(' '));
    let (tables, prose): (Vec<_>, Vec<_>) = notes.trim().split("\n\n").partition(is_table);
    let mut roff = Roff::new();
    roff.control("SH", ["NOTES"]);
    for block in prose {
        roff.control("PP", []);
        roff.text([roman(block)]);
    }
    for table in tables {
        let (heading, lines) = table.split_once('\n').unwrap_or((table, ""));
        roff.control("SS", [heading.trim_end_matches(':')]);
        // As it is, line by line.
        roff.control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    roff.to_writer(out)?;
    Ok(())
}
