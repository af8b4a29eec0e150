//! Over which interface a connection is opened.
//!
//! The one that the routing table would choose comes first. If nothing answers there, the others are tried as
//! well, all together: a handshake over each. The first one that is complete wins, and the rest is dropped
//! (compare RFC 8305, which does so with addresses). So an interface that leads nowhere costs a moment.
//!
//! What a server says counts for all ways to it: if it does not want the connection, it is not asked again over
//! another interface. That nobody listens there may be the word of whoever stands in between, so the others
//! have a little time to prove it wrong.

use std::time::{Duration, Instant};

/// How long the first interface is alone (RFC 8305 §5: the Connection Attempt Delay).
pub(crate) const HEAD_START: Duration = Duration::from_millis(250);
/// The same if something has come, so that the handshake is only slow.
const LONG_HEAD_START: Duration = Duration::from_secs(2);
/// How long a refusal may be proved wrong.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// Why an attempt has ended, the least telling first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// Nothing could be sent, or nothing came of it.
    Local,
    /// Nobody listens there, as the network has it.
    Refused,
    /// The server, or whoever is there, has answered, and there is no connection.
    Answered,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Begin a handshake over this interface.
    Start(usize),
    /// There is no connection, for the reason that this one has.
    Fail(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Waiting,
    Running,
    Failed(Failure, Instant),
}

/// The attempts to open one connection, at most one over each interface.
#[derive(Debug)]
pub(crate) struct Race {
    start: Instant,
    attempts: Vec<Attempt>,
    heard: bool,
}

impl Race {
    /// One over so many interfaces, the preferred one first.
    pub(crate) fn new(now: Instant, interfaces: usize) -> Self {
        Self {
            start: now,
            attempts: vec![Attempt::Waiting; interfaces],
            heard: false,
        }
    }

    /// Something has come in answer to an attempt.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
    }

    /// An attempt has failed.
    pub(crate) fn failed(&mut self, now: Instant, interface: usize, failure: Failure) {
        self.attempts[interface] = Attempt::Failed(failure, now);
    }

    /// What is to be done next.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Step> {
        if let Some(worst) = self.decided(now) {
            return Some(Step::Fail(worst));
        }
        let is_waiting = |attempt: &Attempt| *attempt == Attempt::Waiting;
        let next = self.attempts.iter().position(is_waiting)?;
        if next > 0 && !self.others_start(now) {
            return None;
        }
        self.attempts[next] = Attempt::Running;
        Some(Step::Start(next))
    }

    /// When [`Race::poll`] has something to do, whether or not anything happens before.
    pub(crate) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let others = self.attempts.contains(&Attempt::Waiting);
        let others = others.then(|| self.others_at());
        let given_up = self
            .failures()
            .find(|(_, failure, _)| *failure == Failure::Refused);
        let given_up = given_up.map(|(_, _, at)| at + REFUSED_WAIT);
        others
            .into_iter()
            .chain(given_up)
            .filter(|at| *at > now)
            .min()
    }

    /// Whose reason there is for that there is no connection.
    fn decided(&self, now: Instant) -> Option<usize> {
        // Of equal ones, the first.
        let (index, failure, at) = self
            .failures()
            .rev()
            .max_by_key(|(_, failure, _)| *failure)?;
        let is = |state| self.attempts.contains(&state);
        let is_over = match failure {
            Failure::Answered => !is(Attempt::Running),
            Failure::Refused => now >= at + REFUSED_WAIT,
            Failure::Local => false,
        };
        let none_is_left = !is(Attempt::Running) && !is(Attempt::Waiting);
        (is_over || none_is_left).then_some(index)
    }

    fn failures(&self) -> impl DoubleEndedIterator<Item = (usize, Failure, Instant)> {
        let attempts = self.attempts.iter().enumerate();
        attempts.filter_map(|(index, attempt)| match attempt {
            Attempt::Failed(failure, at) => Some((index, *failure, *at)),
            _ => None,
        })
    }

    fn others_at(&self) -> Instant {
        self.start
            + if self.heard {
                LONG_HEAD_START
            } else {
                HEAD_START
            }
    }

    fn others_start(&self, now: Instant) -> bool {
        let answered = self
            .failures()
            .any(|(_, failure, _)| failure == Failure::Answered);
        !answered && (now >= self.others_at() || self.failures().next().is_some())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    fn steps(race: &mut Race, now: Instant) -> Vec<Step> {
        std::iter::from_fn(|| match race.poll(now) {
            Some(Step::Fail(_)) | None => None,
            step => step,
        })
        .collect()
    }

    #[test]
    fn the_others_start_once_the_first_one_has_had_its_time() {
        for (heard, delay) in [(false, HEAD_START), (true, LONG_HEAD_START)] {
            let now = Instant::now();
            let mut race = Race::new(now, 3);
            assert_eq!(steps(&mut race, now), [Step::Start(0)]);
            assert_eq!(race.next_timeout(now), Some(now + HEAD_START));
            if heard {
                race.heard();
            }
            assert_eq!(race.next_timeout(now), Some(now + delay));
            let early = now + delay - Duration::from_millis(1);
            assert_eq!(steps(&mut race, early), []);
            let others = [Step::Start(1), Step::Start(2)];
            assert_eq!(steps(&mut race, now + delay), others);
            assert_eq!(race.next_timeout(now + delay), None);
        }
    }

    #[test]
    fn the_others_start_at_once_if_the_first_one_fails() {
        for failure in [Failure::Local, Failure::Refused] {
            let now = Instant::now();
            let mut race = Race::new(now, 2);
            steps(&mut race, now);
            race.failed(now, 0, failure);
            assert_eq!(steps(&mut race, now), [Step::Start(1)]);
            assert_eq!(race.poll(now), None, "the other one may succeed");
            race.failed(now, 1, Failure::Local);
            assert_eq!(race.poll(now), Some(Step::Fail(0)));
        }
    }

    #[test]
    fn what_the_server_says_is_said_for_all() {
        let now = Instant::now();
        let mut race = Race::new(now, 2);
        steps(&mut race, now);
        race.failed(now, 0, Failure::Answered);
        assert_eq!(race.poll(now), Some(Step::Fail(0)));

        // What runs already may still succeed.
        let mut race = Race::new(now, 2);
        steps(&mut race, now);
        steps(&mut race, now + HEAD_START);
        race.failed(now, 1, Failure::Answered);
        assert_eq!(race.poll(now + HEAD_START), None);
        race.failed(now, 0, Failure::Local);
        assert_eq!(race.poll(now + HEAD_START), Some(Step::Fail(1)));
    }

    #[test]
    fn a_refusal_is_believed_after_a_while() {
        let now = Instant::now();
        let mut race = Race::new(now, 2);
        steps(&mut race, now);
        race.failed(now, 0, Failure::Refused);
        steps(&mut race, now);
        assert_eq!(race.next_timeout(now), Some(now + REFUSED_WAIT));
        let due = race.next_timeout(now + REFUSED_WAIT);
        assert_eq!(due, None, "it has something to do now");
        assert_eq!(race.poll(now + REFUSED_WAIT), Some(Step::Fail(0)));
    }
}
