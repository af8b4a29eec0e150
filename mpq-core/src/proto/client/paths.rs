//! The paths that there are, those that are being opened, and those that are missing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Output;

/// Before an opening is tried again: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// The paths of one connection. What is to be done with them is returned.
#[derive(Debug)]
pub(super) struct Paths {
    locals: Vec<IpAddr>,
    open: Vec<Path>,
    openings: Vec<Opening>,
}

#[derive(Debug)]
struct Path {
    id: u32,
    local: IpAddr,
    remote: SocketAddr,
    /// Its closing was asked for.
    closing: bool,
}

#[derive(Debug)]
struct Opening {
    local: IpAddr,
    remote: SocketAddr,
    /// When to try again, if it was refused; `None` while under way.
    retry_at: Option<Instant>,
    backoff: Duration,
}

/// Where paths may be opened to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destination {
    /// `paper`: from this address to there only.
    pub(super) detection: Option<(IpAddr, SocketAddr)>,
    /// From all others.
    pub(super) others: Option<SocketAddr>,
}

impl Destination {
    /// Where a path from this address may be opened to.
    fn of(self, local: IpAddr) -> Option<SocketAddr> {
        let destination = match self.detection {
            Some((detecting, target)) if detecting == local => Some(target),
            _ => self.others,
        };
        destination.filter(|remote| remote.is_ipv4() == local.is_ipv4())
    }
}

impl Paths {
    /// The first one.
    pub(super) fn new(local: IpAddr, remote: SocketAddr) -> Self {
        Self {
            locals: vec![local],
            open: vec![Path {
                id: 0,
                local,
                remote,
                closing: false,
            }],
            openings: Vec::new(),
        }
    }

    /// These are the local addresses from now on.
    pub(super) fn set_locals(&mut self, locals: Vec<IpAddr>) {
        self.openings.retain(|o| locals.contains(&o.local));
        self.locals = locals;
    }

    /// How many local addresses are of the family of a remote one.
    pub(super) fn facing(&self, remote: SocketAddr) -> u32 {
        let facing = |l: &&IpAddr| l.is_ipv4() == remote.is_ipv4();
        self.locals.iter().filter(facing).count() as u32
    }

    /// Whether no path is left by which the server could be heard where it was.
    pub(super) fn is_cut_off(&self) -> bool {
        let here = |path: &Path| self.locals.contains(&path.local);
        !self.open.iter().any(here)
    }

    /// A path is validated.
    pub(super) fn opened(&mut self, id: u32, local: IpAddr, remote: SocketAddr) {
        self.openings
            .retain(|o| (o.local, o.remote) != (local, remote));
        self.open.retain(|p| p.id != id);
        self.open.push(Path {
            id,
            local,
            remote,
            closing: false,
        });
    }

    /// A path could not be opened. Without a time to try again it stays on the list, and is not opened
    /// again.
    pub(super) fn refused(&mut self, now: Instant, local: IpAddr, remote: SocketAddr, retry: bool) {
        let same = |o: &&mut Opening| (o.local, o.remote) == (local, remote);
        if let Some(opening) = self.openings.iter_mut().find(same) {
            opening.retry_at = retry.then(|| now + opening.backoff);
            opening.backoff = (opening.backoff * 2).min(LAST_RETRY);
        }
    }

    /// A path is no more.
    pub(super) fn gone(&mut self, now: Instant, id: u32) {
        let Some(index) = self.open.iter().position(|p| p.id == id) else {
            return;
        };
        let path = self.open.remove(index);
        // Whoever took it away may do so again: no haste.
        if !path.closing && self.locals.contains(&path.local) {
            self.openings.push(Opening {
                local: path.local,
                remote: path.remote,
                retry_at: Some(now + LAST_RETRY),
                backoff: LAST_RETRY,
            });
        }
        // The last one: the peer waits for another one only for a short time (draft-ietf-quic-multipath
        // §3.4).
        if self.open.is_empty() {
            let waiting = self.openings.iter_mut().filter_map(|o| o.retry_at.as_mut());
            waiting.for_each(|at| *at = now);
        }
    }

    /// Ends one of at least two paths; where from it was.
    pub(super) fn sacrifice(&mut self) -> Option<(IpAddr, Output)> {
        let mut open = self.open.iter_mut().filter(|p| !p.closing);
        let (Some(_), Some(path)) = (open.next(), open.next_back()) else {
            return None;
        };
        path.closing = true;
        Some((path.local, Output::Close { path: path.id }))
    }

    /// Closes the paths from where we or to where the server is no more, if there is a better one.
    pub(super) fn close_stale(&mut self, remote: SocketAddr) -> Vec<Output> {
        let locals = &self.locals;
        let wanted = |p: &Path| p.remote == remote && locals.contains(&p.local);
        if !self.open.iter().any(|p| wanted(p) && !p.closing) {
            return Vec::new();
        }
        let stale = |p: &&mut Path| !wanted(p) && !p.closing;
        let close = |path: &mut Path| {
            path.closing = true;
            Output::Close { path: path.id }
        };
        self.open.iter_mut().filter(stale).map(close).collect()
    }

    /// Whether any path is being opened.
    pub(super) fn has_openings(&self) -> bool {
        !self.openings.is_empty()
    }

    /// Where paths are being opened to, other than `remote`.
    pub(super) fn openings_elsewhere(&self, remote: SocketAddr) -> BTreeSet<SocketAddr> {
        let remotes = self.openings.iter().map(|o| o.remote);
        remotes.filter(|r| *r != remote).collect()
    }

    /// Gives up the openings to `target`.
    pub(super) fn abandon(&mut self, target: SocketAddr) -> Output {
        self.openings.retain(|o| o.remote != target);
        Output::Abandon(target)
    }

    /// When an opening is tried again.
    pub(super) fn retry_at(&self, destination: Destination) -> Option<Instant> {
        let wanted = |o: &&Opening| destination.of(o.local) == Some(o.remote);
        let openings = self.openings.iter().filter(wanted);
        openings.filter_map(|o| o.retry_at).min()
    }

    /// Tries the openings that are due again.
    pub(super) fn retry(&mut self, now: Instant, destination: Destination) -> Vec<Output> {
        let due = |o: &&mut Opening| {
            o.retry_at.is_some_and(|at| at <= now) && destination.of(o.local) == Some(o.remote)
        };
        let open = |opening: &mut Opening| {
            opening.retry_at = None;
            let (local, remote) = (opening.local, opening.remote);
            Output::Open { local, remote }
        };
        self.openings.iter_mut().filter(due).map(open).collect()
    }

    /// Opens what is missing: a path from every local address to where it may be.
    pub(super) fn open_missing(&mut self, destination: Destination) -> Vec<Output> {
        let mut outputs = Vec::new();
        for &local in &self.locals {
            let Some(remote) = destination.of(local) else {
                continue;
            };
            let here = |l: IpAddr, r: SocketAddr| (l, r) == (local, remote);
            let open = |p: &Path| here(p.local, p.remote) && !p.closing;
            let there =
                self.open.iter().any(open) || self.openings.iter().any(|o| here(o.local, o.remote));
            if !there {
                self.openings.push(Opening {
                    local,
                    remote,
                    retry_at: None,
                    backoff: FIRST_RETRY,
                });
                outputs.push(Output::Open { local, remote });
            }
        }
        outputs
    }
}
