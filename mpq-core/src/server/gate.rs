//! The gate in front of body writers: closed while a server is parked.
//!
//! A server that is about to be frozen must have nothing in flight (draft in `proto`'s docs),
//! so it stops its writers between two chunks and lets the network drain. Whoever writes a body
//! calls [`Gate::passed`] before each chunk.

use tokio::sync::watch;

/// Stops and releases the body writers of one connection. Clones share one gate.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Gate {
    /// Holds every writer at its next chunk.
    pub fn close(&self) {
        self.0.send_replace(false);
    }

    /// Releases the writers.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Whether writers may go on.
    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the gate is open; at once where it is.
    pub async fn passed(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}
