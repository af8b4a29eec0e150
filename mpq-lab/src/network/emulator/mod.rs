//! Emulates links: a process with a network device in either host's namespace that moves packets
//! between them, at the rate and with the delay and the losses of a [`Shape`](crate::network::link_model::Shape).
//!
//! It needs TUN devices of the kernel, and nothing else: no netem.

mod control;
mod lateness;
mod link;
mod process;
mod tun;
mod wires;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::link_model::Change;
use crate::network::model::{Emulation, Line, Network};
use crate::system::host::{built, run};
use control::{ControlReply, ControlRequest, ask};
use process::Setting;
pub(crate) use wires::Direction;

/// The name of the command that is the process.
const COMMAND: &str = "emulate";

/// How long the process may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process of `cargo lab emulate`; see the other items for how it is used.
///
/// # Errors
/// If it cannot do its work.
pub fn emulate() -> Result<()> {
    process::run()
}

/// Starts the emulator of the network of this name, between two network namespaces that are given as
/// files; its devices are there when this returns. It ends with the standard input of the child, or
/// `stays`.
pub(crate) fn start(
    id: &str,
    client: PathBuf,
    router: PathBuf,
    network: &Network,
    stays: bool,
) -> Result<Child> {
    let setting = Setting {
        id: id.to_owned(),
        client,
        router,
        network: network.clone(),
        stays,
    };
    let mut child = Command::new(built("mpq-lab")?)
        .args([COMMAND, id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if stays {
            Stdio::null()
        } else {
            Stdio::inherit()
        })
        .spawn()
        .context("cannot start the emulator")?;
    let told = tell(&mut child, &setting);
    if told.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    told.context("cannot emulate links")?;
    // It needs the processor rarely and for microseconds, but then at once. Without that it is less
    // exact, which it tells by its lateness.
    let _ = run("chrt", ["--fifo", "--pid", "10", &child.id().to_string()]);
    Ok(child)
}

fn tell(child: &mut Child, setting: &Setting) -> Result<()> {
    let stdin = child.stdin.as_mut().context("no standard input")?;
    writeln!(stdin, "{}", serde_json::to_string(setting)?)?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let said: Result<(), String> =
        serde_json::from_str(&line).context("it has ended without a word")?;
    said.map_err(|reason| anyhow!(reason))
}

/// Changes a link.
pub(crate) fn change(id: &str, line: Line, change: &Change) -> Result<()> {
    match ask(id, &ControlRequest::Change(line, change.clone()))? {
        ControlReply::Changed => Ok(()),
        other => bail!("the emulator answers {other:?}"),
    }
}

/// How the links are.
pub(crate) fn network(id: &str) -> Result<Network> {
    match ask(id, &ControlRequest::Network)? {
        ControlReply::Network(network) => Ok(*network),
        other => bail!("the emulator answers {other:?}"),
    }
}

/// What the emulator has done since this was last asked.
pub(crate) fn emulation(id: &str) -> Result<Emulation> {
    match ask(id, &ControlRequest::Emulation)? {
        ControlReply::Emulation(emulation) => Ok(emulation),
        other => bail!("the emulator answers {other:?}"),
    }
}

/// The names of the networks that have, or had, an emulator.
pub(crate) fn ids() -> Vec<String> {
    control::ids()
}

/// Ends the emulator of the network of this name, whoever has started it.
pub(crate) fn stop(id: &str) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let end = Instant::now() + PATIENCE;
        while !pids(id)?.is_empty() && Instant::now() < end {
            for pid in pids(id)? {
                // It may have ended by itself meanwhile.
                let _ = kill(pid, signal);
            }
            thread::sleep(PATIENCE / 400);
        }
    }
    ensure!(pids(id)?.is_empty(), "the emulator of {id} does not end");
    Ok(control::remove(id)?)
}

/// The emulators of a network, known by their command line.
fn pids(id: &str) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile; one that was not collected yet has no command line.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        if words.get(1..3) == Some(&[COMMAND.as_bytes(), id.as_bytes()])
            && words[0].ends_with(b"mpq-lab")
        {
            pids.push(Pid::from_raw(pid));
        }
    }
    Ok(pids)
}
