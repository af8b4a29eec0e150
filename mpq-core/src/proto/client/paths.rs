//! The paths that there are, those that are being opened, and those that are missing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::baselines::Detection;
use super::{Output, Refusal};
use crate::proto::opening_gate::OpeningGate;

/// Before an opening is tried again: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// The paths of one connection. What is to be done with them is returned.
#[derive(Debug)]
pub(super) struct Paths {
    locals: Vec<IpAddr>,
    open: Vec<Path>,
    openings: Vec<Opening>,
    gate: OpeningGate,
}

#[derive(Debug)]
struct Path {
    id: u32,
    local: IpAddr,
    remote: SocketAddr,
    /// Its closing was asked for.
    closing: bool,
    /// It goes over another link, and is closed soon.
    evacuated: bool,
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
pub(super) struct Destination<'a> {
    /// `paper`: who opens paths to all targets, and to nowhere else.
    pub(super) detection: Detection,
    pub(super) targets: &'a [SocketAddr],
    /// From all others.
    pub(super) others: Option<SocketAddr>,
}

impl Destination<'_> {
    /// Where paths from this address may be opened to.
    fn of(self, local: IpAddr) -> impl Iterator<Item = SocketAddr> {
        let detects = self.detection.includes(local);
        let targets = self.targets.iter().copied().filter(move |_| detects);
        let other = self.others.filter(|_| !detects);
        let reaches = move |remote: &SocketAddr| remote.is_ipv4() == local.is_ipv4();
        targets.chain(other).filter(reaches)
    }

    /// Whether a path may be opened from here to there.
    fn is(self, local: IpAddr, remote: SocketAddr) -> bool {
        self.of(local).any(|there| there == remote)
    }
}

impl Paths {
    /// The first one. Before others are opened again, `gate` asks.
    pub(super) fn new(local: IpAddr, remote: SocketAddr, gate: OpeningGate) -> Self {
        Self {
            locals: vec![local],
            open: vec![Path {
                id: 0,
                local,
                remote,
                closing: false,
                evacuated: false,
            }],
            openings: Vec::new(),
            gate,
        }
    }

    /// These are the local addresses from now on. What is being opened from others is given up.
    pub(super) fn set_locals(&mut self, locals: Vec<IpAddr>) -> Vec<Output> {
        let gone = self.locals.iter().filter(|l| !locals.contains(l));
        let outputs = gone.map(|local| Output::AbandonFrom(*local)).collect();
        self.retain_openings(|o| locals.contains(&o.local));
        self.locals = locals;
        outputs
    }

    fn retain_openings(&mut self, wanted: impl Fn(&Opening) -> bool) {
        self.openings.retain(wanted);
        let openings = &self.openings;
        let is_opening = |l, r| openings.iter().any(|o| (o.local, o.remote) == (l, r));
        self.gate.retain(is_opening);
    }

    /// The numbers of the paths that are in use.
    pub(super) fn in_use(&self) -> impl Iterator<Item = u32> {
        let in_use = self.open.iter().filter(|p| !p.closing);
        in_use.map(|path| path.id)
    }

    /// Whether there is a path from every local address to `remote`, and none to anywhere else.
    pub(super) fn are_all_at(&self, remote: SocketAddr) -> bool {
        let there = self.open.iter().filter(|p| p.remote == remote).count();
        there == self.open.len() && there == self.facing(remote) as usize
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
        self.retain_openings(|o| (o.local, o.remote) != (local, remote));
        self.open.retain(|p| p.id != id);
        self.open.push(Path {
            id,
            local,
            remote,
            closing: false,
            evacuated: false,
        });
    }

    /// A path could not be opened, and is tried again later.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
        refusal: Refusal,
    ) {
        let same = |o: &&mut Opening| (o.local, o.remote) == (local, remote);
        if let Some(opening) = self.openings.iter_mut().find(same) {
            opening.retry_at = Some(now + opening.backoff);
            opening.backoff = (opening.backoff * 2).min(LAST_RETRY);
        }
        if refusal == Refusal::NoAnswer {
            self.gate.add(local);
            self.end_doubts_if_none_is_left(now);
        }
    }

    /// A path is no more. The server closes what is silent at its end, which puts our address in doubt,
    /// or what it has moved away from: all that does not lead to where it is, `settled_at`.
    pub(super) fn gone(
        &mut self,
        now: Instant,
        id: u32,
        by_server: bool,
        settled_at: Option<SocketAddr>,
    ) {
        let Some(index) = self.open.iter().position(|p| p.id == id) else {
            return;
        };
        let path = self.open.remove(index);
        // Whoever took it away may do so again: no haste.
        if !path.closing && !path.evacuated {
            self.open_at(now + LAST_RETRY, path.local, path.remote);
        }
        if by_server && settled_at == Some(path.remote) {
            self.gate.add(path.local);
        }
        self.end_doubts_if_none_is_left(now);
        // The last one: the peer waits for another one only for a short time
        // (draft-ietf-quic-multipath §3.4).
        if self.open.is_empty() {
            let waiting = self.openings.iter_mut().filter_map(|o| o.retry_at.as_mut());
            waiting.for_each(|at| *at = now);
        }
    }

    /// Without any path, no opening waits for the answer of a probe.
    fn end_doubts_if_none_is_left(&mut self, now: Instant) {
        if !self.open.is_empty() {
            return;
        }
        let held = self.gate.clear();
        let was_held = |o: &&mut Opening| held.contains(&(o.local, o.remote));
        let openings = self.openings.iter_mut().filter(was_held);
        openings.for_each(|opening| opening.retry_at = Some(now));
    }

    fn open_at(&mut self, at: Instant, local: IpAddr, remote: SocketAddr) {
        let is_known = |o: &Opening| (o.local, o.remote) == (local, remote);
        if self.locals.contains(&local) && !self.openings.iter().any(is_known) {
            self.openings.push(Opening {
                local,
                remote,
                retry_at: Some(at),
                backoff: LAST_RETRY,
            });
        }
    }

    /// A path whose link is dead goes over another one, and is opened anew once that is answered.
    pub(super) fn evacuated(&mut self, now: Instant, id: u32) {
        let Some(path) = self.open.iter_mut().find(|p| p.id == id && !p.closing) else {
            return;
        };
        path.evacuated = true;
        let (local, remote) = (path.local, path.remote);
        self.doubt(now, local, remote);
    }

    /// Closes a path whose link is dead, unless it is the last one.
    pub(super) fn close_dead(&mut self, now: Instant, id: u32) -> Option<Output> {
        let is_other = |p: &Path| p.id != id && !p.closing;
        if !self.open.iter().any(is_other) {
            return None;
        }
        let path = self.open.iter_mut().find(|p| p.id == id && !p.closing)?;
        path.closing = true;
        if !path.evacuated {
            let (local, remote) = (path.local, path.remote);
            self.doubt(now, local, remote);
        }
        Some(Output::Close { path: id })
    }

    /// A path is wanted from where one has just failed: the gate asks first, at once.
    fn doubt(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) {
        self.gate.add(local);
        self.open_at(now, local, remote);
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
        self.retain_openings(|o| o.remote != target);
        Output::Abandon(target)
    }

    /// When an opening is tried again, or asked for with a probe.
    pub(super) fn retry_at(&self, destination: Destination<'_>) -> Option<Instant> {
        let wanted = |o: &&Opening| destination.is(o.local, o.remote);
        let openings = self.openings.iter().filter(wanted);
        let probe_at = self.gate.probe_at(|l, r| destination.is(l, r));
        openings.filter_map(|o| o.retry_at).chain(probe_at).min()
    }

    /// The probes that are due of addresses from where a path has failed: from where, to where.
    pub(super) fn probes(
        &mut self,
        now: Instant,
        destination: Destination<'_>,
    ) -> Vec<(IpAddr, SocketAddr)> {
        self.gate.probes(now, |l, r| destination.is(l, r))
    }

    /// Such a probe was answered.
    pub(super) fn answered(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) {
        let same = |o: &&mut Opening| (o.local, o.remote) == (local, remote);
        if self.gate.answered(local, remote)
            && let Some(opening) = self.openings.iter_mut().find(same)
        {
            opening.retry_at = Some(now);
        }
    }

    /// Tries the openings that are due again, unless they have to wait for the answer of a probe.
    pub(super) fn retry(&mut self, now: Instant, destination: Destination<'_>) -> Vec<Output> {
        let mut outputs = Vec::new();
        for opening in &mut self.openings {
            let (local, remote) = (opening.local, opening.remote);
            let is_due = opening.retry_at.is_some_and(|at| at <= now);
            if is_due && destination.is(local, remote) {
                opening.retry_at = None;
                if !self.gate.hold(now, local, remote) {
                    outputs.push(Output::Open { local, remote });
                }
            }
        }
        outputs
    }

    /// Opens what is missing: a path from every local address to where it may be.
    pub(super) fn open_missing(
        &mut self,
        now: Instant,
        destination: Destination<'_>,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        let from = |&local: &IpAddr| destination.of(local).map(move |remote| (local, remote));
        for (local, remote) in self.locals.iter().flat_map(from) {
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
                if !self.gate.hold(now, local, remote) {
                    outputs.push(Output::Open { local, remote });
                }
            }
        }
        outputs
    }
}
