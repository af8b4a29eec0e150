//! `cargo lab test`: format, lints and every test of the workspace.
//!
//! All of it is one release build, the one that `cargo lab` itself and the demo use.

use anyhow::{Context, Result};

use crate::arms::tcp;
use crate::system::host::{cargo, show};
use crate::system::setup::setup;

/// Checks the workspace; `arguments` go to `cargo test`.
///
/// Where the privileged tests cannot run they are skipped, except in CI (`CI=true`).
///
/// # Errors
/// If a check fails, or privileged tests cannot run in CI.
pub fn check(arguments: &[String]) -> Result<()> {
    show(&mut cargo(&["fmt", "--all", "--check"]))?;
    show(&mut cargo(&[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    show(&mut cargo(&[
        "clippy",
        "--release",
        "--package",
        "mpq-core",
        "--all-features",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    let mut documentation = cargo(&[
        "doc",
        "--release",
        "--package",
        "mpq-core",
        "--all-features",
    ]);
    show(
        documentation
            .arg("--no-deps")
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    // The privileged tests run the tools as programs.
    show(&mut cargo(&["build", "--release", "--workspace", "--bins"]))?;

    let mut test = cargo(&["test", "--release", "--workspace"]);
    test.args(arguments);
    // The arms over TCP need more than the demo does.
    match setup().and_then(|criu| tcp::setup().map(|()| criu)) {
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
    let of_core = [
        "test",
        "--release",
        "--package",
        "mpq-core",
        "--all-features",
    ];
    let targets: [&[&str]; 2] = [&["--lib", "--test", "examples"], &["--doc"]];
    for targets in targets {
        show(cargo(&of_core).args(targets))?;
    }
    Ok(())
}
