//! What the counters of the paths tell: whether the server is heard, and which links are dead.

use std::time::Instant;

use crate::proto::evacuation::{Evacuation, Step};
use crate::proto::liveness::{Liveness, PathFigures, Verdict};

/// The validated paths, as they were when they were last looked at.
#[derive(Debug)]
pub(super) struct Health {
    liveness: Liveness,
    /// Whether a path may go over another link: not where the strategy has redirected all of them.
    evacuates: bool,
    evacuation: Evacuation,
    /// Each path's id, and the frames received on it. `None` if those are not to be compared with.
    received: Option<Vec<(u32, u64)>>,
}

impl Health {
    /// Without any path.
    pub(super) fn new(evacuates: bool) -> Self {
        Self {
            liveness: Liveness::of_client(),
            evacuates,
            evacuation: Evacuation::default(),
            received: Some(Vec::new()),
        }
    }

    /// What was received until the next look does not count: it was under way before a redirection.
    pub(super) fn forget_received(&mut self) {
        self.received = None;
    }

    /// Whether anything has come on a path since the last look. What the server sends to others, which
    /// were given up, says nothing about where it is.
    pub(super) fn is_heard(&mut self, figures: &[PathFigures]) -> bool {
        let received = figures.iter().map(|f| (f.id, f.received)).collect();
        let before = self.received.replace(received);
        let is_new = |f: &PathFigures, before: &[_]| !before.contains(&(f.id, f.received));
        before.is_some_and(|before| figures.iter().any(|f| is_new(f, &before)))
    }

    /// What is to be done with the paths in use. In a move the server is silent on all of them, which
    /// says nothing about their links.
    pub(super) fn look(
        &mut self,
        now: Instant,
        figures: &[PathFigures],
        downloading: bool,
        moving: bool,
    ) -> Vec<Step> {
        if moving {
            self.liveness = Liveness::of_client();
            self.evacuation.forget_links();
            return Vec::new();
        }
        let stream = downloading && self.evacuates;
        let mut steps = self.evacuation.look(now, figures, stream);
        let verdicts = self.liveness.look(now, figures, downloading);
        steps.extend(verdicts.into_iter().map(|verdict| match verdict {
            Verdict::Ping(id) => Step::Ask(id),
            Verdict::Close(id) => Step::Close(id),
        }));
        steps
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_under_way_before_a_redirection_is_not_heard() {
        let mut health = Health::new(true);
        let mut has_received = |received, forgets| {
            if forgets {
                health.forget_received();
            }
            health.is_heard(&[PathFigures {
                id: 0,
                rtt: Duration::ZERO,
                sent: 0,
                received,
            }])
        };
        assert!(has_received(1, false) && !has_received(1, false));
        assert!(!has_received(2, true), "it was under way");
        assert!(!has_received(2, false) && has_received(3, false));
    }
}
