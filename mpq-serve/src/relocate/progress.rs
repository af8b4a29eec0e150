//! How far a move is.

use std::time::Instant;

use tokio::sync::watch;

use crate::checkpoint::OLD_SIGNALS;

/// How far a move is, and whether it is to be ended.
pub(super) struct Progress {
    pub(super) step: watch::Sender<Step>,
    pub(super) leave: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The server serves, and its clients may know.
    Announced,
    /// It is about to be frozen, or is.
    Parked,
    /// It was not, and serves where it was.
    Stayed,
    /// It woke elsewhere, and waits for its clients from then on.
    Woken(Instant),
}

impl Step {
    /// Whether a signal that comes now may have been in the images: it came when CRIU had stopped the process, and is
    /// delivered first of all.
    pub(super) fn hears_old_signals(self) -> bool {
        matches!(self, Self::Woken(at) if at.elapsed() < OLD_SIGNALS)
    }
}
