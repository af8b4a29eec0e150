//! What was known of the paths of a connection before its server was frozen, until new ones go on with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use super::Resume;
use super::careful_resume::{LIFETIME, Saved};

/// By the address of the client that a path led to.
#[derive(Debug, Default)]
pub(super) struct SavedPaths {
    paths: BTreeMap<SocketAddr, Saved>,
    /// When that was noted. The clock of the process may stand still while it is frozen; this one does not.
    at: Option<SystemTime>,
}

impl SavedPaths {
    /// What is known at `time`.
    pub(super) fn new(time: SystemTime, paths: impl Iterator<Item = (SocketAddr, Saved)>) -> Self {
        Self {
            paths: paths.collect(),
            at: Some(time),
        }
    }

    /// The server wakes at `time`. Whether new paths may go on with it: it is forgotten if it is too old (RFC 9959
    /// §4.3.1), or not wanted.
    pub(super) fn thaw(&mut self, time: SystemTime, resume: Resume) -> bool {
        // A clock that was set back does not say how old it is.
        let age = self.at.and_then(|at| time.duration_since(at).ok());
        let is_young = age.unwrap_or_default() <= LIFETIME;
        let is_of_use = is_young && resume != Resume::Off;
        if !is_of_use {
            self.paths.clear();
        }
        is_of_use
    }

    /// What a path may begin with before it is known for which it goes on: that with the smallest window. Only
    /// [`Resume::Aggressive`] has such paths.
    pub(super) fn least(&self, resume: Resume) -> Option<Saved> {
        let least = self.paths.values().min_by_key(|saved| saved.window);
        least.copied().filter(|_| resume == Resume::Aggressive)
    }

    /// What was known of the path that led there; only one can go on with it.
    pub(super) fn take(&mut self, remote: SocketAddr) -> Option<Saved> {
        self.paths.remove(&remote)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn saved(window: u64) -> Saved {
        let rtt = Duration::from_millis(40);
        Saved { rtt, window }
    }

    #[test]
    fn what_is_too_old_or_not_wanted_is_forgotten() {
        let (first, second) = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into());
        let then = SystemTime::UNIX_EPOCH + 1_000 * SECOND;
        for (age, resume, is_of_use, least) in [
            (Duration::ZERO, Resume::Careful, true, None),
            (LIFETIME, Resume::Careful, true, None),
            (LIFETIME, Resume::Aggressive, true, Some(saved(10))),
            (LIFETIME, Resume::Off, false, None),
            (LIFETIME + SECOND, Resume::Careful, false, None),
            (LIFETIME + SECOND, Resume::Aggressive, false, None),
        ] {
            let paths = [(first, saved(20)), (second, saved(10))];
            let mut paths = SavedPaths::new(then, paths.into_iter());
            assert_eq!(
                paths.thaw(then + age, resume),
                is_of_use,
                "{age:?} {resume:?}"
            );
            assert_eq!(paths.least(resume), least, "{age:?} {resume:?}");
            assert_eq!(paths.take(first), is_of_use.then_some(saved(20)));
            assert_eq!(paths.take(first), None);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_old() {
        let then = SystemTime::UNIX_EPOCH + 1_000 * SECOND;
        let mut paths = SavedPaths::new(then, std::iter::empty());
        assert!(paths.thaw(then - SECOND, Resume::Careful));
    }
}
