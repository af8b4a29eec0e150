//! The signals that end a download.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens for them from now on.
    pub(super) fn new() -> Result<Signals, Error> {
        let listen = |kind| {
            signal(kind).map_err(|e| Error::Usage(format!("cannot listen for signals: {e}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one, and says what that makes of the download.
    pub(super) async fn recv(&mut self) -> Error {
        tokio::select! {
            _ = self.interrupt.recv() => Error::Signal(2),
            _ = self.terminate.recv() => Error::Signal(15),
        }
    }
}
