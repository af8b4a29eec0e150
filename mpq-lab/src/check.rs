//! `cargo lab test`: format, lints and every test of the workspace.
//!
//! All of it is one release build, the one that `cargo lab` itself and the demo use.

use anyhow::{Context, Result};

use crate::arms::tcp;
use crate::system::host::{cargo, show};
use crate::system::setup::setup;
use crate::system::{aioquic, runc, sshd};

/// mpq-core with all that is optional.
const OF_CORE: [&str; 3] = ["--package", "mpq-core", "--all-features"];

/// Checks the workspace; `arguments` go to `cargo test`.
///
/// Where the privileged tests cannot run they are skipped, except in CI (`CI=true`).
///
/// # Errors
/// If a check fails, or privileged tests cannot run in CI.
pub fn check(arguments: &[String]) -> Result<()> {
    show(&mut cargo(&["fmt", "--all", "--check"]))?;
    for what in [&["--workspace"][..], &OF_CORE] {
        let mut lint = cargo(&["clippy", "--release"]);
        lint.args(what)
            .args(["--all-targets", "--", "-D", "warnings"]);
        show(&mut lint)?;
    }
    let mut document = cargo(&["doc", "--release", "--no-deps"]);
    show(document.args(OF_CORE).env("RUSTDOCFLAGS", "-D warnings"))?;
    // The privileged tests run the tools as programs.
    show(&mut cargo(&["build", "--release", "--workspace", "--bins"]))?;

    let mut test = cargo(&["test", "--release", "--workspace"]);
    test.args(arguments);
    // The arms over TCP need more than the demo does, and so do moves by ssh, containers, and a client that is not ours.
    let more = || {
        tcp::setup()?;
        sshd::setup()?;
        runc::setup()?;
        aioquic::setup()
    };
    match setup().and_then(|criu| more().map(|()| criu)) {
        Ok(criu) => {
            test.env("MPQ_CRIU", criu).env("MPQ_LAB_PRIVILEGED", "1");
        }
        Err(error) if std::env::var("CI").is_ok_and(|value| value == "true") => {
            return Err(error).context("the privileged tests cannot run here");
        }
        Err(error) => eprintln!("Without the privileged tests: {error:#}"),
    }
    show(&mut test)?;
    features()
}

/// Tests what the workspace leaves out: mpq-core's features, with those of its tests that they add to, and the
/// examples in its documentation.
fn features() -> Result<()> {
    let targets: [&[&str]; 2] = [&["--lib", "--test", "examples"], &["--doc"]];
    for targets in targets {
        show(cargo(&["test", "--release"]).args(OF_CORE).args(targets))?;
    }
    Ok(())
}
