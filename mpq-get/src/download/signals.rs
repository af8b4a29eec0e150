//! What ends a download from without: a signal, or the time that it may take.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use tokio::time::sleep_until;

use crate::error::Error;

/// SIGINT and SIGTERM, and a time.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The time, and how long that was from the start on.
    limit: Option<(Instant, Duration)>,
}

impl Signals {
    /// Listens for them from now on.
    ///
    /// # Errors
    /// [`Error::Usage`] if the system does not allow it.
    pub fn new() -> Result<Signals, Error> {
        let listen = |kind| {
            signal(kind).map_err(|e| Error::Usage(format!("cannot listen for signals: {e}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            limit: None,
        })
    }

    /// The same, and no longer than this from now on.
    pub fn within(self, limit: Option<Duration>) -> Signals {
        // A time that no clock reaches is no limit.
        let limit = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        Signals { limit, ..self }
    }

    /// Waits for one, and says what that makes of the download. The time passes once.
    pub async fn recv(&mut self) -> Error {
        let time = self.limit;
        let limit = async move {
            match time {
                Some((at, limit)) => {
                    sleep_until(at.into()).await;
                    limit
                }
                None => pending().await,
            }
        };
        tokio::select! {
            limit = limit => {
                self.limit = None;
                Error::MaxTime(limit)
            }
            _ = self.interrupt.recv() => Error::Signal(2),
            _ = self.terminate.recv() => Error::Signal(15),
        }
    }
}
