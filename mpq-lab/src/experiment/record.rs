//! What one run of an experiment has shown; results are kept as these.
//!
//! All times are in seconds since the client was started.

use serde::{Deserialize, Serialize};

use crate::arms::sample::Sample;
use crate::experiment::scenario::Arm;
use crate::system::counters::{MOST_STEAL, Usage};

/// A run in which a packet left a link later than by this part of the run's time is repeated: the
/// machine, or its host, stood still.
pub const MOST_LATENESS: f64 = 0.005;
/// What one run has shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// Who downloaded.
    pub arm: Arm,
    /// Which one of the arm's runs, from 1 on.
    pub number: u32,
    /// The revision of this project that ran.
    #[serde(default)]
    pub revision: String,
    /// From the client's start to the last byte in its file.
    pub turnaround: f64,
    /// Bytes of the content; its SHA-256 was as it must be.
    pub bytes: u64,
    /// How often a client was started.
    pub starts: u64,
    /// Handshakes of the last client.
    pub handshakes: u64,
    /// Requests of the last client.
    pub requests: u64,
    /// What happened, in order of time.
    pub marks: Vec<Mark>,
    /// What each interface had received, ten times a second.
    pub samples: Vec<Sample>,
    /// Round-trip times over each interface.
    pub rtt: [Vec<f64>; 2],
    /// Body bits a second from one second after the client's start until its end, as the client
    /// tells.
    pub payload: Option<f64>,
    /// What the download got of what it and its rival received while both ran.
    pub share: Option<f64>,
    /// Between the last body byte from the old address and the first from the new one, in seconds, as
    /// the client tells.
    #[serde(default)]
    pub gap: Option<f64>,
    /// The longest time in which the body did not grow, in seconds, as the client tells.
    #[serde(default)]
    pub standstill: Option<f64>,
    /// Packets that the servers sent again: as their QUIC stack says, or as TCP's RetransSegs.
    pub sent_again: u64,
    /// Packets that a link has dropped or lost.
    #[serde(default)]
    pub dropped: u64,
    /// Those of them after a move's thaw.
    #[serde(default)]
    pub dropped_after_thaw: Option<u64>,
    /// Body bytes that all clients received, if they tell.
    #[serde(default)]
    pub body: Option<u64>,
    /// What the clients used.
    pub client: Usage,
    /// What the servers used.
    pub server: Usage,
    /// Share of the CPU time that the machine's host gave to others.
    pub steal: f64,
    /// How late half of all packets left a link at most.
    pub median_lateness: f64,
    /// How late the latest packet left a link.
    pub worst_lateness: f64,
    /// How often it was run before it was not disturbed.
    pub repeats: u32,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Seconds since the client's start.
    pub t: f64,
    /// What it was.
    pub what: What,
}

impl Mark {
    /// That this happened then.
    pub(crate) fn new(t: f64, what: What) -> Mark {
        Mark { t, what }
    }
}

/// Things that happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The handshake was complete.
    Connected,
    /// The client was told of the move.
    Announced,
    /// The client was told that the server says nothing more.
    Parked,
    /// The server's process was frozen, or killed.
    Frozen,
    /// Its images were complete.
    Dumped,
    /// It ran again, or another one in its place.
    Thawed,
    /// The client noticed that nothing came.
    Silent,
    /// The client found the server at its new address.
    Detected,
    /// The connection went on there.
    Resumed,
    /// The first body byte from there.
    FirstByte,
    /// A client gave up.
    Lost,
}

impl Run {
    /// When this happened first, in seconds.
    pub fn when(&self, what: What) -> Option<f64> {
        self.marks
            .iter()
            .find(|mark| mark.what == what)
            .map(|mark| mark.t)
    }

    /// Between freeze and thaw, in seconds.
    pub fn outage(&self) -> Option<f64> {
        Some(self.when(What::Thawed)? - self.when(What::Frozen)?)
    }

    /// Whether the machine has disturbed it more than is allowed.
    pub fn disturbed(&self) -> bool {
        self.steal > MOST_STEAL || self.worst_lateness > MOST_LATENESS * self.turnaround
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;

    /// 100 Mbit/s over the first interface, 50 over the second, and nothing from 2 s to 4 s.
    pub(crate) fn moved() -> Run {
        let mut received = [0, 0];
        let samples = (0..=60).map(|tick| {
            let unix = f64::from(tick) / 10.0;
            if tick > 0 && !(21..=40).contains(&tick) {
                received = [received[0] + 1_250_000, received[1] + 625_000];
            }
            Sample { unix, received }
        });
        let mark = |t, what| Mark { t, what };
        Run {
            scenario: "test".into(),
            arm: Arm::Multipath,
            number: 1,
            revision: String::new(),
            turnaround: 6.0,
            bytes: 1,
            starts: 1,
            handshakes: 1,
            requests: 1,
            marks: vec![
                mark(1.5, What::Announced),
                mark(1.9, What::Parked),
                mark(2.0, What::Frozen),
                mark(4.0, What::Thawed),
                mark(4.1, What::Detected),
                mark(4.2, What::FirstByte),
            ],
            samples: samples.collect(),
            rtt: [Vec::new(), Vec::new()],
            payload: None,
            share: None,
            gap: None,
            standstill: None,
            sent_again: 7,
            dropped: 5,
            dropped_after_thaw: Some(3),
            body: Some(3),
            client: Usage::default(),
            server: Usage::default(),
            steal: 0.0,
            median_lateness: 0.0,
            worst_lateness: 0.0,
            repeats: 0,
        }
    }
}
