//! What is done after a look at the counters of the paths.

use std::time::{Duration, Instant};

use super::machine::ClientMachine;
use super::{Event, Output};
use crate::proto::evacuation::Step;
use crate::proto::liveness::PathFigures;

/// How often counters are to be looked at: in a move or a download, and otherwise.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const LOOK_INTERVAL_SETTLED: Duration = Duration::from_millis(50);
/// A longer one is most often the time that this process or host stood still. Where it is real (satellites, full
/// queues), the client only acts somewhat too early.
const LONGEST_RTT: Duration = Duration::from_secs(1);

impl ClientMachine {
    /// How long after one look at the counters the next is due ([`Input::Figures`](super::Input::Figures)).
    pub fn look_interval(&self) -> Duration {
        match self.is_settled() && !self.expecting {
            true => LOOK_INTERVAL_SETTLED,
            false => LOOK_INTERVAL,
        }
    }

    /// What the counters tell is done.
    pub(super) fn look(&mut self, now: Instant, figures: &[PathFigures]) {
        if let Some(rtt) = figures.iter().map(|path| path.rtt).max() {
            self.rtt = rtt.min(LONGEST_RTT);
        }
        if self.health.is_heard(figures) {
            self.paths.heard(now);
            self.heard(now);
        } else if self.expecting
            && !self.is_moving()
            && now >= self.heard + self.config.idle_timeout
        {
            self.event(Event::Idle);
            self.heard = now;
        }
        let in_use: Vec<_> = figures
            .iter()
            .filter(|path| self.paths.in_use().any(|id| id == path.id))
            .copied()
            .collect();
        let (downloading, moving) = (self.expecting, self.is_moving());
        for step in self.health.look(now, &in_use, downloading, moving) {
            match step {
                Step::Ask(path) => self.outputs.push_back(Output::Ping { path }),
                Step::Evacuate { path, over } => {
                    self.paths.evacuated(now, path);
                    self.outputs.push_back(Output::Evacuate { path, over });
                }
                Step::Close(path) => {
                    if let Some(close) = self.paths.close_dead(now, path) {
                        self.event(Event::Dead { path: path.into() });
                        self.outputs.push_back(close);
                    }
                }
            }
        }
    }
}
