//! How the emulator is spoken to while it runs: a datagram each way on Unix sockets.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::network::link_model::Change;
use crate::network::model::{Emulation, Line, Network};

/// Where the sockets are. Only root gets at them.
const FOLDER: &str = "/run/mpq-lab";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// More than any message has, in bytes.
const LONGEST: usize = 16_384;

/// What the emulator can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ControlRequest {
    /// To change a link.
    Change(Line, Change),
    /// How the links are.
    Network,
    /// What has happened since this was last asked.
    Emulation,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlReply {
    Changed,
    Network(Box<Network>),
    Emulation(Emulation),
    Refused(String),
}

/// The emulator's socket.
#[derive(Debug)]
pub(super) struct Control(UnixDatagram);

impl Control {
    /// Opens the socket of the network of this name.
    pub(super) fn open(id: &str) -> Result<Control> {
        folder()?;
        remove(id)?;
        let socket = UnixDatagram::bind(path(id)).context("cannot open the control socket")?;
        socket.set_nonblocking(true)?;
        Ok(Control(socket))
    }

    /// Answers every request that is there.
    pub(super) fn serve(&self, mut answer: impl FnMut(ControlRequest) -> ControlReply) {
        let mut buffer = [0; LONGEST];
        while let Ok((length, from)) = self.0.recv_from(&mut buffer) {
            let reply = match serde_json::from_slice(&buffer[..length]) {
                Ok(request) => answer(request),
                Err(error) => ControlReply::Refused(format!("not understood: {error}")),
            };
            // One that has gone meanwhile does not need it.
            if let (Ok(text), Some(path)) = (serde_json::to_vec(&reply), from.as_pathname()) {
                let _ = self.0.send_to(&text, path);
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks the emulator of the network of this name.
///
/// # Errors
/// If there is none, or it refuses.
pub(super) fn ask(id: &str, request: &ControlRequest) -> Result<ControlReply> {
    let ask = || {
        let own = tempfile::Builder::new()
            .prefix("ask-")
            .tempdir_in(folder()?)?;
        let socket = UnixDatagram::bind(own.path().join("socket"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&serde_json::to_vec(request)?, path(id))?;
        let mut buffer = [0; LONGEST];
        // Where there is a limit of time, the system does not go on by itself after a signal (signal(7)), such as
        // that of a child that has ended.
        let length = loop {
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        anyhow::Ok(serde_json::from_slice(&buffer[..length])?)
    };
    match ask().with_context(|| format!("the emulator of {id} does not answer"))? {
        ControlReply::Refused(reason) => bail!(reason),
        reply => Ok(reply),
    }
}

/// The names of the networks that have, or had, an emulator.
pub(super) fn ids() -> Vec<String> {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.collect()
}

/// Removes the socket of an emulator that has ended.
pub(super) fn remove(id: &str) -> io::Result<()> {
    match fs::remove_file(path(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn path(id: &str) -> PathBuf {
    Path::new(FOLDER).join(id)
}

fn folder() -> Result<&'static Path> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(FOLDER);
    made.map_err(|error| anyhow!("cannot make {FOLDER}: {error}"))?;
    Ok(Path::new(FOLDER))
}
