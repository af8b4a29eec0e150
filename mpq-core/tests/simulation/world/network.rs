//! The network: it delays, reorders, duplicates, loses and parts, and its links die without a word.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::MILLISECOND;
use crate::schedule::Dice;

/// The shortest round trip, and what is measured on the average.
pub(super) const RTT: Duration = Duration::from_millis(40);
pub(super) const MEASURED_RTT: Duration = Duration::from_millis(120);

/// The server's hosts. It starts at the first; the last two are no places to send a client to.
const HOSTS: [&str; 5] = [
    "10.1.0.1:443",
    "10.1.0.2:443",
    "10.1.0.3:443",
    "127.0.0.1:443",
    "224.0.0.1:443",
];
/// How many there are.
pub(super) const ALL: u8 = HOSTS.len() as u8;
/// Those of them that it may move to.
pub(super) const GOOD: u8 = 3;
/// That of them where a decoy may be.
pub(super) const DECOY: u8 = 2;

pub(crate) fn host(index: u8) -> SocketAddr {
    HOSTS[usize::from(index) % HOSTS.len()].parse().unwrap()
}

pub(super) fn local(index: u8) -> IpAddr {
    [10, 0, index, 1].into()
}

/// What becomes of a datagram.
pub(super) struct Network {
    dice: Dice,
    blackout: Instant,
    /// Until when a link, or the way from it to one host, swallows everything.
    links: BTreeMap<IpAddr, Instant>,
    partitions: BTreeMap<(IpAddr, SocketAddr), Instant>,
    /// When all of that is over.
    calm: Instant,
}

impl Network {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            dice: Dice::new(seed),
            blackout: now,
            links: BTreeMap::new(),
            partitions: BTreeMap::new(),
            calm: now,
        }
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.dice.below(end)
    }

    /// One way through, up to five times the usual time.
    pub(super) fn delay(&mut self) -> Duration {
        RTT / 2 + MILLISECOND * self.dice.below(80) as u32
    }

    /// How often a datagram arrives that is sent now: once, twice, or never.
    pub(super) fn copies(&mut self, now: Instant) -> u32 {
        match self.dice.below(20) {
            _ if now < self.blackout => 0,
            0 | 1 => 0,
            2 => 2,
            _ => 1,
        }
    }

    /// Whether there is a way between the two.
    pub(super) fn leads(&self, now: Instant, local: IpAddr, remote: SocketAddr) -> bool {
        if self.is_calm(now) {
            return true;
        }
        let is_over = |until: Option<&Instant>| until.is_none_or(|until| now >= *until);
        now >= self.blackout
            && is_over(self.links.get(&local))
            && is_over(self.partitions.get(&(local, remote)))
    }

    /// Whether there is a way between any two.
    pub(super) fn is_calm(&self, now: Instant) -> bool {
        now >= self.calm
    }

    pub(super) fn is_dark(&self, now: Instant) -> bool {
        now < self.blackout
    }

    pub(super) fn black_out(&mut self, until: Instant) {
        self.blackout = until;
        self.calm = self.calm.max(until);
    }

    pub(super) fn cut_link(&mut self, local: IpAddr, until: Instant) {
        self.links.insert(local, until);
        self.calm = self.calm.max(until);
    }

    pub(super) fn part(&mut self, local: IpAddr, remote: SocketAddr, until: Instant) {
        self.partitions.insert((local, remote), until);
        self.calm = self.calm.max(until);
    }
}
