//! `cargo lab mutants`: what in the machines of the protocol no test watches.
//!
//! `cargo mutants` changes them in a thousand places, one after the other, and runs the tests each time. With all of
//! mpq-core, a build takes most of a minute. The machines need neither sockets nor noq nor TLS, so they are laid out
//! as a package of their own, which has the name and the paths of mpq-core: a build takes about two seconds.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::Table;

use crate::system::host::{cargo, run};

/// What the machines and their tests use. Another one makes the build fail, which names it.
const DEPENDENCIES: [&str; 8] = [
    "arbitrary",
    "bytes",
    "fastrand",
    "layout-rs",
    "proptest",
    "ring",
    "thiserror",
    "tracing",
];
/// The crate: `proto`, and what it uses of the rest. Who else uses `proto` is missing.
const LIB: &str = "#![allow(dead_code, missing_docs)]\npub mod limits;\npub mod proto;\n";
/// What is copied. It is changed where it lies.
const FILES: [&str; 5] = [
    "Cargo.lock",
    "docs/protocol.md",
    "mpq-core/src/limits.rs",
    "mpq-core/src/proto",
    "mpq-core/tests",
];
/// Schedules of the simulation for each mutant, if `MPQ_SCHEDULES` does not say.
const SCHEDULES: &str = "3000";

/// Tries the mutants; `arguments` go to `cargo mutants`.
///
/// # Errors
/// If `cargo mutants` is not installed, if the tests fail without any change, or if there is a change that none
/// notices.
pub fn mutants(arguments: &[String]) -> Result<()> {
    if run("cargo", ["mutants", "--version"]).is_err() {
        bail!("there is no `cargo mutants` here; run `cargo install --locked cargo-mutants`");
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = workspace.join("target/mutants");
    let package = target.join("package");
    lay_out(&workspace, &package).context("cannot lay out the machines as a package")?;
    let mut command = cargo(&["mutants", "--in-place"]);
    command
        .arg("--dir")
        .arg(&package)
        .arg("--config")
        .arg(workspace.join(".cargo/mutants.toml"))
        .arg("--output")
        .arg(&target)
        .args(arguments)
        // Whatever fails is enough.
        .env("PROPTEST_MAX_SHRINK_ITERS", "0");
    if std::env::var_os("MPQ_SCHEDULES").is_none() {
        command.env("MPQ_SCHEDULES", SCHEDULES);
    }
    let status = command.status().context("cannot run `cargo mutants`")?;
    match status.code() {
        Some(0) => Ok(()),
        // As its manual has it: some were missed, or had no end.
        Some(2 | 3) => bail!(
            "no test notices what is listed above: write one, or say in .cargo/mutants.toml why not"
        ),
        _ => bail!("`cargo mutants`: {status}"),
    }
}

/// Makes the package anew; what has been built of it stays.
fn lay_out(workspace: &Path, package: &Path) -> Result<()> {
    let core = package.join("mpq-core");
    match fs::remove_dir_all(&core) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    for file in FILES {
        let to = package.join(file);
        fs::create_dir_all(to.parent().context("it is in the package")?)?;
        run(
            "cp",
            [
                "-rT".as_ref(),
                workspace.join(file).as_os_str(),
                to.as_os_str(),
            ],
        )?;
    }
    fs::write(core.join("src/lib.rs"), LIB)?;
    let read = |file: &str| -> Result<Table> {
        let text = fs::read_to_string(workspace.join(file))?;
        Ok(text.parse()?)
    };

    let mut whole = read("Cargo.toml")?;
    let members = table(&mut whole, "workspace")?;
    members.insert("members".to_owned(), vec!["mpq-core"].into());
    // The others are not there.
    table(members, "dependencies")?.retain(|_, of| of.get("path").is_none());
    fs::write(package.join("Cargo.toml"), whole.to_string())?;

    let mut own = read("mpq-core/Cargo.toml")?;
    for other in ["features", "example"] {
        own.remove(other);
    }
    for dependencies in ["dependencies", "dev-dependencies"] {
        table(&mut own, dependencies)?.retain(|name, _| DEPENDENCIES.contains(&name));
    }
    fs::write(core.join("Cargo.toml"), own.to_string())?;
    Ok(())
}

fn table<'a>(of: &'a mut Table, name: &str) -> Result<&'a mut Table> {
    let value = of.get_mut(name).and_then(|value| value.as_table_mut());
    value.with_context(|| format!("Cargo.toml has no table “{name}”"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_has_the_machines_and_little_else() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let package = tempfile::tempdir().unwrap();
        lay_out(&workspace, package.path()).unwrap();
        let metadata = [
            "metadata",
            "--offline",
            "--no-deps",
            "--format-version",
            "1",
        ];
        let output = cargo(&metadata)
            .current_dir(package.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let dependencies = metadata["packages"][0]["dependencies"].as_array().unwrap();
        let names: Vec<_> = dependencies.iter().map(|of| &of["name"]).collect();
        assert_eq!(names.len(), DEPENDENCIES.len(), "{names:?}");
        assert!(package.path().join("mpq-core/src/proto/mod.rs").is_file());
        assert!(!package.path().join("mpq-core/src/client").exists());
    }
}
