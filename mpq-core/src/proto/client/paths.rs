//! The paths that there are, those that are being opened, and those that are missing.
//!
//! A path id is used once, and the server grants a new one only for a path that it knows to be closed. An id
//! whose path the server never heard of is spent for good. So a path is opened only after an
//! [answer](crate::proto::opening_gate), and to where the server is, no more paths than leave as many ids
//! over: each of them can move.

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
    /// It is not too early for others than the first one.
    allowed: bool,
    /// Path ids that there are at the same time, used ones among them.
    ids: u32,
    /// Those of them that nobody has answered, and that the server may never have heard of.
    spent: u32,
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
    /// When to try again, if it was refused; `None` while under way, or while it waits until it is tried.
    retry_at: Option<Instant>,
    backoff: Duration,
    /// It has a path id.
    under_way: bool,
}

/// Where paths may be opened to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destination<'a> {
    /// `paper`: who opens paths to all targets, and to nowhere else.
    pub(super) detection: Detection,
    pub(super) targets: &'a [SocketAddr],
    /// From all others.
    pub(super) others: Option<SocketAddr>,
    /// Whether the server may be there from now on, so that the ids may be used that are kept for a move.
    pub(super) is_new: bool,
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

    /// Whether a path from here may take one of the ids that are kept for a move.
    fn has_reserve(self, local: IpAddr) -> bool {
        self.is_new || self.detection.includes(local)
    }
}

impl Paths {
    /// The first one, of as many as there are `ids`. Before others are opened, `gate` asks.
    pub(super) fn new(local: IpAddr, remote: SocketAddr, gate: OpeningGate, ids: u32) -> Self {
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
            allowed: false,
            ids,
            spent: 0,
        }
    }

    /// These are the local addresses from now on. What is being opened from others is given up.
    pub(super) fn set_locals(&mut self, locals: Vec<IpAddr>) -> Vec<Output> {
        let (gate, before) = (&mut self.gate, &self.locals);
        let gone = before.iter().filter(|l| !locals.contains(l));
        let outputs = gone.map(|local| {
            gate.distrust_link(*local);
            Output::AbandonFrom(*local)
        });
        let outputs = outputs.collect();
        self.retain_openings(|o| locals.contains(&o.local));
        self.locals = locals;
        outputs
    }

    fn retain_openings(&mut self, wanted: impl Fn(&Opening) -> bool) {
        let given_up = self.openings.iter().filter(|o| o.under_way && !wanted(o));
        self.spent += given_up.count() as u32;
        self.openings.retain(wanted);
        let openings = &self.openings;
        let is_opening = |l, r| openings.iter().any(|o| (o.local, o.remote) == (l, r));
        self.gate.retain(is_opening);
    }

    /// Whether another path may be opened to where the server is: with it, there must be as many ids over as
    /// there are paths.
    fn leaves_reserve(&self) -> bool {
        let closing = self.open.iter().filter(|p| p.closing).count();
        let under_way = self.openings.iter().filter(|o| o.under_way).count();
        let paths = self.open.len() - closing + under_way + 1;
        let used = self.spent as usize + closing;
        // Without a way to the server there may be no next move.
        self.is_cut_off() || used + 2 * paths <= self.ids as usize
    }

    /// Whether a path may be opened now, and takes an id: from where, to where. If not, it waits.
    fn begin(
        &mut self,
        now: Instant,
        index: usize,
        destination: Destination<'_>,
    ) -> Option<(IpAddr, SocketAddr)> {
        let Opening { local, remote, .. } = self.openings[index];
        // The first ways to a server that may answer no probes are all lost: that cannot be found out.
        let is_lost = self.is_cut_off() && self.gate.is_untested();
        let admitted = self.open.is_empty() || is_lost || self.gate.admits(now, local, remote);
        let has_id = destination.has_reserve(local) || self.leaves_reserve();
        let opening = &mut self.openings[index];
        if !admitted || !self.allowed {
            opening.retry_at = None;
            return None;
        }
        if !has_id {
            opening.retry_at = Some(now + LAST_RETRY);
            return None;
        }
        (opening.retry_at, opening.under_way) = (None, true);
        Some((local, remote))
    }

    /// The numbers of the paths that are in use.
    pub(super) fn in_use(&self) -> impl Iterator<Item = u32> {
        let in_use = self.open.iter().filter(|p| !p.closing);
        in_use.map(|path| path.id)
    }

    /// The local addresses that paths are open from.
    pub(super) fn locals_in_use(&self) -> BTreeSet<IpAddr> {
        self.open.iter().map(|path| path.local).collect()
    }

    /// Whether all paths lead to `remote`, and there is one from each of these local addresses that reaches it still.
    pub(super) fn are_all_at(&self, remote: SocketAddr, from: &BTreeSet<IpAddr>) -> bool {
        let is_at = |path: &Path| {
            path.remote == remote && self.locals.contains(&path.local) && !path.closing
        };
        let has_path = |local: &IpAddr| self.open.iter().any(|path| path.local == *local);
        let reaches = |l: &&IpAddr| from.contains(l) && l.is_ipv4() == remote.is_ipv4();
        !self.open.is_empty()
            && self.open.iter().all(is_at)
            && self.locals.iter().filter(reaches).all(has_path)
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
        let same = |o: &&mut Opening| (o.local, o.remote) == (local, remote);
        let opening = self.openings.iter_mut().find(same);
        // Its id is not spent.
        opening.into_iter().for_each(|o| o.under_way = false);
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

    /// It is no more too early for paths: those that have waited are opened now.
    pub(super) fn allow(&mut self, now: Instant) {
        self.allowed = true;
        let waiting = self.openings.iter_mut().filter(|o| !o.under_way);
        waiting.for_each(|opening| opening.retry_at = Some(now));
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
        let mut had_id = false;
        if let Some(opening) = self.openings.iter_mut().find(same) {
            had_id = std::mem::take(&mut opening.under_way);
            opening.retry_at = Some(now + opening.backoff);
            opening.backoff = (opening.backoff * 2).min(LAST_RETRY);
        }
        if refusal == Refusal::NoAnswer {
            self.spent += u32::from(had_id);
            self.gate.distrust(local, remote);
            self.hurry_if_none_is_left(now);
        }
    }

    /// A path is no more. What was answered from there before says nothing any more.
    pub(super) fn gone(&mut self, now: Instant, id: u32) {
        let Some(index) = self.open.iter().position(|p| p.id == id) else {
            return;
        };
        let path = self.open.remove(index);
        // Whoever took it away may do so again: no haste.
        if !path.closing && !path.evacuated {
            self.open_at(now + LAST_RETRY, path.local, path.remote);
        }
        self.gate.distrust(path.local, path.remote);
        self.hurry_if_none_is_left(now);
        // The last one: the peer waits for another one only for a short time
        // (draft-ietf-quic-multipath §3.4).
        if self.open.is_empty() {
            let waiting = self.openings.iter_mut().filter_map(|o| o.retry_at.as_mut());
            waiting.for_each(|at| *at = now);
        }
    }

    /// Without any path, no opening waits for the answer of a probe.
    fn hurry_if_none_is_left(&mut self, now: Instant) {
        if self.open.is_empty() {
            let held = self.gate.clear();
            self.hurry(now, &held);
        }
    }

    fn hurry(&mut self, now: Instant, places: &[(IpAddr, SocketAddr)]) {
        let wanted = |o: &&mut Opening| !o.under_way && places.contains(&(o.local, o.remote));
        let openings = self.openings.iter_mut().filter(wanted);
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
                under_way: false,
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
        self.gate.distrust_link(local);
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

    /// The probes that are due before paths may be opened: from where, to where. As long as no probe was ever
    /// answered, they go from where a path works as well.
    pub(super) fn probes(
        &mut self,
        now: Instant,
        destination: Destination<'_>,
    ) -> Vec<(IpAddr, SocketAddr)> {
        let mut probes = self.gate.probes(now, |l, r| destination.is(l, r));
        let works = |p: &&Path| !p.closing && self.locals.contains(&p.local);
        let remotes = probes.iter().map(|(_, remote)| *remote);
        let mut working =
            remotes.flat_map(|r| self.open.iter().filter(works).find(|p| p.remote == r));
        if self.gate.is_untested()
            && let Some(path) = working.next()
        {
            self.gate.control(now);
            probes.push((path.local, path.remote));
        }
        probes
    }

    /// The server was heard by a path.
    pub(super) fn heard(&mut self, now: Instant) {
        self.gate.heard(now);
    }

    /// A probe was answered, or the server knocked.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
        knock: bool,
    ) {
        let was_waiting = match knock {
            true => self.gate.knocked(now, local, remote),
            false => self.gate.answered(now, local, remote),
        };
        if was_waiting {
            self.hurry(now, &[(local, remote)]);
        }
    }

    /// Tries the openings that are due again, unless they have to wait for the answer of a probe. Returns what is to
    /// be opened: from where, to where.
    pub(super) fn retry(
        &mut self,
        now: Instant,
        rtt: Duration,
        destination: Destination<'_>,
    ) -> Vec<(IpAddr, SocketAddr)> {
        let untried = self.gate.judge(now, rtt);
        self.hurry(now, &untried);
        let is_due = |o: &Opening| {
            o.retry_at.is_some_and(|at| at <= now) && destination.is(o.local, o.remote)
        };
        let due = (0..self.openings.len()).filter(|index| is_due(&self.openings[*index]));
        let due: Vec<_> = due.collect();
        let begin = |index| self.begin(now, index, destination);
        due.into_iter().filter_map(begin).collect()
    }

    /// Opens what is missing: a path from every local address to where it may be. Returns the same.
    pub(super) fn open_missing(
        &mut self,
        now: Instant,
        destination: Destination<'_>,
    ) -> Vec<(IpAddr, SocketAddr)> {
        let mut opened = Vec::new();
        for index in 0..self.locals.len() {
            let local = self.locals[index];
            for remote in destination.of(local) {
                let here = |l: IpAddr, r: SocketAddr| (l, r) == (local, remote);
                let open = |p: &Path| here(p.local, p.remote) && !p.closing;
                let wanted = |o: &Opening| here(o.local, o.remote);
                if self.open.iter().any(open) || self.openings.iter().any(wanted) {
                    continue;
                }
                self.openings.push(Opening {
                    local,
                    remote,
                    retry_at: None,
                    backoff: FIRST_RETRY,
                    under_way: false,
                });
                opened.extend(self.begin(now, self.openings.len() - 1, destination));
            }
        }
        opened
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    #[test]
    fn a_dead_path_is_closed_and_wanted_again_unless_it_is_the_last_one() {
        let now = Instant::now();
        let remote = ([10, 1, 0, 1], 443).into();
        let [x, y]: [IpAddr; 2] = [[10, 0, 0, 1], [10, 0, 1, 1]].map(IpAddr::from);
        let destination = Destination {
            detection: Detection::Off,
            targets: &[],
            others: Some(remote),
            is_new: false,
        };
        let mut paths = Paths::new(x, remote, OpeningGate::new(true), 16);
        paths.set_locals(vec![x, y]);
        assert_eq!(paths.close_dead(now, 0), None, "it is the only one");
        paths.opened(1, y, remote);
        assert_eq!(paths.retry_at(destination), None);
        let closed = paths.close_dead(now, 1);
        assert_eq!(closed, Some(Output::Close { path: 1 }));
        assert_eq!(paths.in_use().collect::<Vec<_>>(), [0]);
        assert_eq!(paths.retry_at(destination), Some(now));
        assert_eq!(paths.close_dead(now, 1), None, "it is being closed");
        assert_eq!(
            paths.close_dead(now, 0),
            None,
            "the other one does not count"
        );
    }
}
