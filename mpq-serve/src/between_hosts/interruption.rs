//! The operator ends a move: what is done until then is undone, instead of being left as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::Error;
use crate::log;

/// Whether SIGINT, SIGTERM or SIGHUP came.
#[derive(Debug, Clone)]
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// Hears them from now on, instead of what they would do to the process.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch() -> Result<Self, Error> {
        let hear = || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let guard = runtime.enter();
            let signals = (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            );
            drop(guard);
            Ok((runtime, signals))
        };
        let heard = hear().map_err(|error: std::io::Error| Error::Start(error.to_string()));
        let (runtime, (mut interrupt, mut terminate, mut hangup)) = heard?;
        let came = Arc::<AtomicBool>::default();
        let told = came.clone();
        thread::spawn(move || {
            // The next ones do nothing.
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            told.store(true, Ordering::Relaxed);
            log::tell("told to end: the move is undone, unless the server was handed over");
        });
        Ok(Self(came))
    }

    /// Whether one came.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
