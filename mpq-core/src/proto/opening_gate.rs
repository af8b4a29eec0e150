//! Before a path is opened, a probe must be answered from its local address.
//!
//! The id of a path that the server never hears of is lost for good, and there are only so many. So
//! a path is opened only where the server has just answered a [probe](super::probe), or has knocked. Such
//! probes go to where a path is wanted, ever less often, down to once a second. They take from what may be sent
//! to an address, but cost no path id.
//!
//! A server need not answer probes (RFC 9000 §6 lets it limit that, and what is on the way may drop them). As
//! long as none was answered, they are therefore sent from where a path works, too: *controls*. If none
//! of these is answered, while the server is heard, then it answers none, and paths are opened untried. They
//! may all have been lost: so a probe goes with each such path, and the first answer ends that.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Between two probes, at first and in the end.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
const LAST_INTERVAL: Duration = Duration::from_secs(1);
/// For how long an answer tells that the way is open.
const FRESH: Duration = Duration::from_secs(3);
/// So many controls have to stay unanswered, for so long after the last one and for so many round trips.
const CONTROLS: u32 = 3;
const CONTROL_WAIT: Duration = Duration::from_millis(300);
const CONTROL_RTTS: u32 = 3;

/// Which addresses have been answered, and the paths that wait for an answer.
#[derive(Debug)]
pub(crate) struct OpeningGate {
    habit: Habit,
    /// When the last answer came.
    answers: BTreeMap<(IpAddr, SocketAddr), Instant>,
    waiting: BTreeMap<(IpAddr, SocketAddr), Waiting>,
    /// When the server was heard by a path.
    heard: Option<Instant>,
}

/// Whether probes are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// They may not be sent: paths are opened untried.
    Open,
    /// They are not, as it seems: the same, with a probe for each.
    Silent,
    /// Nobody knows yet.
    Untested(Controls),
    /// They are.
    Answers,
}

/// The controls that were sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Controls {
    sent: u32,
    first: Option<Instant>,
    last: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    probe_at: Instant,
    interval: Duration,
}

impl OpeningGate {
    /// One that is open everywhere, and stays so, if it may not probe.
    pub(crate) fn new(probes: bool) -> Self {
        Self {
            habit: match probes {
                true => Habit::Untested(Controls::default()),
                false => Habit::Open,
            },
            answers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            heard: None,
        }
    }

    /// A path is wanted: whether it may be opened now. If not, an answer is asked for.
    pub(crate) fn admits(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) -> bool {
        let place = (local, remote);
        let answered = self.answers.get(&place);
        if self.habit == Habit::Open || answered.is_some_and(|at| now < *at + FRESH) {
            self.waiting.remove(&place);
            return true;
        }
        // What waits is probed, as long as it is wanted.
        self.waiting.entry(place).or_insert(Waiting {
            probe_at: now,
            interval: FIRST_INTERVAL,
        });
        self.habit == Habit::Silent
    }

    /// What was answered there before counts no more: a path has failed.
    pub(crate) fn distrust(&mut self, local: IpAddr, remote: SocketAddr) {
        self.answers.remove(&(local, remote));
    }

    /// The same for all that was answered from here: the link is dead, or the address is gone.
    pub(crate) fn distrust_link(&mut self, local: IpAddr) {
        self.answers.retain(|(from, _), _| *from != local);
    }

    /// A probe was answered; whether a path was waiting for that.
    pub(crate) fn answered(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) -> bool {
        if let Habit::Untested(..) | Habit::Silent = self.habit {
            self.habit = Habit::Answers;
        }
        self.knocked(now, local, remote)
    }

    /// The server knocked, which says nothing of probes; the same.
    pub(crate) fn knocked(&mut self, now: Instant, local: IpAddr, remote: SocketAddr) -> bool {
        self.answers.retain(|_, at| now < *at + FRESH);
        self.answers.insert((local, remote), now);
        self.waiting.remove(&(local, remote)).is_some()
    }

    /// The server was heard by a path.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Whether it is not known if probes are answered.
    pub(crate) fn is_untested(&self) -> bool {
        matches!(self.habit, Habit::Untested(..))
    }

    /// A control is sent.
    pub(crate) fn control(&mut self, now: Instant) {
        if let Habit::Untested(controls) = &mut self.habit {
            controls.sent += 1;
            controls.first.get_or_insert(now);
            controls.last = Some(now);
        }
    }

    /// Opens the gate if no control was answered; returns what was waiting.
    pub(crate) fn judge(&mut self, now: Instant, rtt: Duration) -> Vec<(IpAddr, SocketAddr)> {
        let Habit::Untested(controls) = self.habit else {
            return Vec::new();
        };
        let wait = CONTROL_WAIT.max(rtt * CONTROL_RTTS);
        let waited = controls.last.is_some_and(|last| now >= last + wait);
        // What is silent altogether proves nothing.
        let is_heard = self.heard > controls.first;
        if controls.sent < CONTROLS || !waited || !is_heard {
            return Vec::new();
        }
        self.habit = Habit::Silent;
        self.clear()
    }

    /// Lets all pass that waits for an answer. For when no path is left: an id that is
    /// lost matters less than the time until the peer gives the connection up.
    pub(crate) fn clear(&mut self) -> Vec<(IpAddr, SocketAddr)> {
        std::mem::take(&mut self.waiting).into_keys().collect()
    }

    /// Only these paths are wanted still.
    pub(crate) fn retain(&mut self, wanted: impl Fn(IpAddr, SocketAddr) -> bool) {
        self.waiting
            .retain(|(local, remote), _| wanted(*local, *remote));
    }

    /// When the next probe is due, of those that are `wanted` now.
    pub(crate) fn probe_at(&self, wanted: impl Fn(IpAddr, SocketAddr) -> bool) -> Option<Instant> {
        let waiting = self.waiting.iter();
        let wanted = waiting.filter(|((local, remote), _)| wanted(*local, *remote));
        wanted.map(|(_, waiting)| waiting.probe_at).min()
    }

    /// The probes that are due, of those that are `wanted` now: from where, to where.
    pub(crate) fn probes(
        &mut self,
        now: Instant,
        wanted: impl Fn(IpAddr, SocketAddr) -> bool,
    ) -> Vec<(IpAddr, SocketAddr)> {
        let mut probes = Vec::new();
        for ((local, remote), waiting) in &mut self.waiting {
            if waiting.probe_at <= now && wanted(*local, *remote) {
                waiting.probe_at = now + waiting.interval;
                waiting.interval = (waiting.interval * 2).min(LAST_INTERVAL);
                probes.push((*local, *remote));
            }
        }
        probes
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    fn places() -> (IpAddr, SocketAddr, SocketAddr) {
        let remote = |text: &str| text.parse().unwrap();
        (
            "10.0.1.2".parse().unwrap(),
            remote("10.1.0.2:1"),
            remote("10.1.0.3:1"),
        )
    }

    fn any(_: IpAddr, _: SocketAddr) -> bool {
        true
    }

    #[test]
    fn an_answer_lets_paths_pass_there_until_it_is_old_or_one_has_failed() {
        let (local, a, b) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(true);
        assert!(!gate.admits(now, local, a));
        assert_eq!(gate.probes(now, any), [(local, a)]);
        assert!(
            !gate.answered(now, local, b),
            "it was answered before it was asked"
        );
        assert!(gate.answered(now, local, a));
        assert!(gate.admits(now, local, a) && gate.admits(now, local, b));
        assert_eq!(gate.probe_at(any), None);
        assert!(!gate.admits(now + FRESH, local, a));
        gate.distrust(local, a);
        assert!(gate.admits(now, local, b) && !gate.admits(now, local, a));
        gate.distrust_link(local);
        assert!(!gate.admits(now, local, b));
    }

    #[test]
    fn who_may_not_probe_opens_paths_untried() {
        let (local, a, _) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(false);
        assert!(gate.admits(now, local, a));
        assert_eq!((gate.probes(now, any), gate.probe_at(any)), (vec![], None));
    }

    #[test]
    fn probes_come_no_more_than_once_a_second_in_the_end() {
        let (local, a, _) = places();
        let start = Instant::now();
        let mut gate = OpeningGate::new(true);
        gate.admits(start, local, a);
        let mut probes = 0;
        for step in 0..1000 {
            let now = start + Duration::from_millis(10) * step;
            // To want it again hurries nothing.
            gate.admits(now, local, a);
            probes += gate.probes(now, any).len();
        }
        // At 0, 0.1, 0.3, 0.7 and 1.5 s, and then each second.
        assert_eq!(probes, 13);
    }

    #[test]
    fn probes_go_only_to_where_a_path_is_wanted_now() {
        let (local, a, b) = places();
        let now = Instant::now();
        let mut gate = OpeningGate::new(true);
        assert!(!gate.admits(now, local, a) && !gate.admits(now, local, b));
        let to = |wanted| move |_: IpAddr, remote: SocketAddr| remote == wanted;
        assert_eq!(gate.probes(now, to(b)), [(local, b)]);
        assert_eq!(gate.probe_at(to(b)), Some(now + FIRST_INTERVAL));
        assert_eq!(gate.probe_at(to(a)), Some(now));
        gate.retain(to(b));
        assert_eq!(gate.probes(now, to(a)), []);
        assert_eq!(gate.probe_at(to(a)), None);
    }

    #[test]
    fn one_answer_proves_that_probes_are_answered_after_all() {
        let (local, a, b) = places();
        let start = Instant::now();
        let mut gate = OpeningGate::new(true);
        (0..CONTROLS).for_each(|_| gate.control(start));
        gate.heard(start + RTT);
        let now = start + CONTROL_WAIT;
        gate.judge(now, RTT);
        assert!(gate.admits(now, local, a));
        assert_eq!(gate.probes(now, any), [(local, a)]);
        gate.knocked(now, local, b);
        assert!(gate.admits(now + FRESH, local, b), "a knock proves nothing");
        gate.answered(now, local, a);
        assert!(gate.admits(now, local, a) && !gate.admits(now + FRESH, local, b));
    }

    #[test]
    fn a_server_that_answers_no_control_while_it_is_heard_answers_none() {
        let (local, a, _) = places();
        let start = Instant::now();
        for (heard, answers) in [(true, false), (false, false), (true, true)] {
            let mut gate = OpeningGate::new(true);
            gate.admits(start, local, a);
            for _ in 0..CONTROLS {
                assert!(gate.judge(start + CONTROL_WAIT, RTT).is_empty());
                gate.control(start);
            }
            if answers {
                gate.answered(start, "10.0.0.2".parse().unwrap(), a);
            }
            if heard {
                gate.heard(start + RTT);
            }
            assert!(gate.judge(start, RTT).is_empty(), "it has had no time");
            let opens = heard && !answers;
            let opened = gate.judge(start + CONTROL_WAIT, RTT);
            assert_eq!(opened.contains(&(local, a)), opens);
            assert_eq!(gate.admits(start + CONTROL_WAIT, local, a), opens);
        }
    }
}
