//! What an arm runs on, what it tells of its run, and what the scenario does meanwhile to any arm.

use anyhow::Result;
use tokio::time::{Instant, sleep_until};

use crate::arms::sample::Sampler;
use crate::arms::testbed::Testbed;
use crate::experiment::record::{Mark, What};
use crate::experiment::scenario::{Arm, Scenario};
use crate::network::model::Emulation;

/// How often a client is started again before the server counts as lost for good.
pub(super) const MOST_STARTS: u64 = 10;

/// What an arm runs on.
pub(super) struct Stage<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) arm: Arm,
    /// Which one of the arm's runs.
    pub(super) number: u32,
    pub(super) testbed: &'a Testbed,
    pub(super) sampler: &'a Sampler,
    /// The digest that a download must have.
    pub(super) expected: &'a str,
}

/// What an arm tells of its run; times are unix times. See [`Run`](super::record::Run) for what they are.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) starts: u64,
    pub(super) handshakes: u64,
    pub(super) requests: u64,
    pub(super) marks: Vec<Mark>,
    pub(super) rtt: [Vec<f64>; 2],
    pub(super) payload: Option<f64>,
    pub(super) share: Option<f64>,
    pub(super) gap: Option<f64>,
    pub(super) standstill: Option<f64>,
    pub(super) sent_again: u64,
    pub(super) body: Option<u64>,
    /// What the links did until the server was thawed.
    pub(super) until_thaw: Option<Emulation>,
}

impl Stage<'_> {
    /// Changes the links when their time has come.
    pub(super) async fn change_links(&self, zero: Instant) -> Result<()> {
        let mut events: Vec<_> = self.scenario.events.iter().collect();
        events.sort_by_key(|event| event.at);
        for event in events {
            sleep_until(zero + event.at).await;
            self.testbed.topology().set(event.link, &event.change)?;
        }
        Ok(())
    }
}

/// That one server was killed and another one was there later.
pub(super) fn replaced(frozen: f64, thawed: f64) -> Vec<Mark> {
    vec![
        Mark::new(frozen, What::Frozen),
        Mark::new(thawed, What::Thawed),
    ]
}
