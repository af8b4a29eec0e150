//! What all connections share: the site, who is connected, and where it is written down what became of each response.

use std::sync::Arc;
use std::time::Duration;

use crate::access::{AccessLog, Entry, Handshake};
use crate::checkpoint::heap::Leftovers;
use crate::guests::{Full, Guests};
use crate::metrics::Metrics;
use crate::site::Site;

/// The site, its access log and its figures.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) site: Site,
    pub(crate) access: AccessLog,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) guests: Arc<Guests>,
    /// How long a client may take nothing of what it has asked for; for ever if none.
    pub(crate) send_timeout: Option<Duration>,
    /// What is free of its memory.
    pub(crate) leftovers: Leftovers,
}

impl Service {
    /// There is no room for a client.
    pub(crate) fn refused(&self, handshake: &Handshake, full: Full) {
        self.metrics.refused_connections.inc();
        self.access.failed(handshake, &full.to_string());
        tracing::debug!("{}: {full}", handshake.remote());
    }

    /// A response is over.
    pub(crate) fn responded(&self, entry: &Entry) {
        let cut = entry.cut.is_some();
        self.metrics.responded(entry.status, entry.bytes, cut);
        self.access.log(entry);
        self.leftovers.add();
    }
}

/// A response that is running, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Running(Arc<Metrics>);

impl Running {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.running.inc();
        Self(metrics.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}
