//! `cargo lab guards`: whether there is a test for every guard of the protocol.
//!
//! `guards.toml` has a change of the source for each guard that takes it out, and the test that must
//! fail then. The changes are made to a copy of the workspace, which has a build of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::system::host::{cargo, run};

/// Of the simulation, for a guard that only it knows.
const SCHEDULES: &str = "5000";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guards {
    guard: Vec<Guard>,
}

/// How a guard is taken out, and who must notice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guard {
    name: String,
    file: PathBuf,
    guard: String,
    without: String,
    test: String,
}

/// Takes out every guard in turn, and prints what its test says.
///
/// # Errors
/// If a guard is not where the list has it, or if one can be taken out unnoticed.
pub fn check() -> Result<()> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(lab.join("guards.toml"))?;
    let Guards { guard: guards } = toml::from_str(&list).context("guards.toml")?;
    let build = lab.join("../target/guards");
    let copy = tempfile::tempdir()?;
    let files = run("git", ["-C", &lab.join("..").to_string_lossy(), "ls-files"])?;
    for file in files.lines() {
        let to = copy.path().join(file);
        fs::create_dir_all(to.parent().context("it is in the folder")?)?;
        fs::copy(lab.join("..").join(file), to).with_context(|| file.to_owned())?;
    }
    for guard in &guards {
        let passes = guard.holds(copy.path(), &build)?;
        ensure!(passes, "with all guards, this fails: {}", guard.test);
    }
    let mut unnoticed = Vec::new();
    for guard in &guards {
        let noticed = guard.is_missed(copy.path(), &build)?;
        println!(
            "{}  {}",
            if noticed { "missed  " } else { "UNNOTICED" },
            guard.name
        );
        if !noticed {
            unnoticed.push(guard.name.as_str());
        }
    }
    ensure!(unnoticed.is_empty(), "unnoticed: {}", unnoticed.join(", "));
    println!("{} guards, and a test for each", guards.len());
    Ok(())
}

impl Guard {
    /// Whether its test fails without it.
    fn is_missed(&self, copy: &Path, build: &Path) -> Result<bool> {
        let path = copy.join(&self.file);
        let source = fs::read_to_string(&path).with_context(|| self.file.display().to_string())?;
        ensure!(
            source.matches(&self.guard).count() == 1,
            "“{}” is not once in {}",
            self.guard,
            self.file.display()
        );
        fs::write(&path, source.replacen(&self.guard, &self.without, 1))?;
        let passes = self.holds(copy, build);
        fs::write(&path, source)?;
        Ok(!passes?)
    }

    /// Whether its test passes.
    fn holds(&self, copy: &Path, build: &Path) -> Result<bool> {
        // Not a release build, which takes longer.
        let mut command: Command = cargo(&["test", "--quiet"]);
        command
            .args(self.test.split_whitespace())
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", build)
            .env("MPQ_SCHEDULES", SCHEDULES);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        // Otherwise it was not even built, or there is no such test.
        let ran = said.contains("test result:") && !said.contains("running 0 tests");
        if !ran {
            bail!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guard_is_where_the_list_has_it() {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
        let list = fs::read_to_string(lab.join("guards.toml")).unwrap();
        let guards: Guards = toml::from_str(&list).unwrap();
        for guard in guards.guard {
            let source = fs::read_to_string(lab.join("..").join(&guard.file)).unwrap();
            let found = source.matches(&guard.guard).count();
            assert_eq!(found, 1, "{}: {}", guard.name, guard.guard);
        }
    }
}
