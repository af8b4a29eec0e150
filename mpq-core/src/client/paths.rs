//! The paths of a connection, and what they have carried.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use noq::WeakPathHandle;

use crate::proto::{PathFigures, PathId};
use crate::stats::figures;

/// A path, now or as it was when it was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PathInfo {
    /// QUIC's path id.
    #[cfg_attr(feature = "serde", serde(rename = "path"))]
    pub id: PathId,
    /// Interface that it leaves by.
    pub interface: String,
    /// Local address.
    pub local: IpAddr,
    /// The server's address.
    pub remote: SocketAddr,
    /// How far it is.
    pub state: PathState,
    /// Round-trip time, smoothed; `None` until something has come over it.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    #[cfg_attr(feature = "serde", serde(with = "crate::seconds::option"))]
    pub rtt: Option<Duration>,
    /// UDP payload received, bytes.
    #[cfg_attr(feature = "serde", serde(rename = "bytes"))]
    pub received: u64,
    /// UDP payload sent, bytes.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
}

/// The life of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PathState {
    /// Challenged, not answered yet.
    Opening,
    /// In use.
    Validated,
    /// No more.
    Closed,
}

/// All paths of a connection, also those that are closed; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct PathTable(Arc<Mutex<BTreeMap<PathId, Entry>>>);

#[derive(Debug)]
struct Entry {
    info: PathInfo,
    handle: Option<WeakPathHandle>,
}

impl PathTable {
    pub(super) fn all(&self) -> Vec<PathInfo> {
        let mut entries = self.0.lock().unwrap();
        entries
            .values_mut()
            .map(|entry| entry.refresh().clone())
            .collect()
    }

    /// Whether a path is validated.
    pub(super) fn is_validated(&self, id: PathId) -> bool {
        let entries = self.0.lock().unwrap();
        let entry = entries.get(&id);
        entry.is_some_and(|entry| entry.info.state == PathState::Validated)
    }

    /// The counters of the validated paths.
    pub(super) fn figures(&self) -> Vec<PathFigures> {
        let entries = self.0.lock().unwrap();
        let validated = entries
            .values()
            .filter(|entry| entry.info.state == PathState::Validated);
        let figures = validated.filter_map(|entry| {
            let path = entry.handle.as_ref()?.upgrade()?;
            Some(figures(&path))
        });
        figures.collect()
    }

    /// Changes a path's state; `None` if it is unknown or was in that state.
    pub(super) fn set(&self, id: PathId, state: PathState) -> Option<PathInfo> {
        let mut entries = self.0.lock().unwrap();
        let entry = entries
            .get_mut(&id)
            .filter(|entry| entry.info.state != state)?;
        entry.refresh();
        entry.info.state = state;
        Some(entry.info.clone())
    }

    pub(super) fn insert(&self, info: PathInfo, handle: Option<WeakPathHandle>) {
        self.0
            .lock()
            .unwrap()
            .insert(info.id, Entry { info, handle });
    }
}

impl Entry {
    fn refresh(&mut self) -> &PathInfo {
        if let Some(path) = self.handle.as_ref().and_then(WeakPathHandle::upgrade) {
            let stats = path.stats();
            // Before that, noq has only a guess.
            let measured = self.info.state != PathState::Opening && stats.udp_rx.bytes > 0;
            self.info.rtt = measured.then_some(stats.rtt);
            self.info.received = stats.udp_rx.bytes;
            self.info.sent = stats.udp_tx.bytes;
            self.info.lost = stats.lost_packets;
        }
        &self.info
    }
}
