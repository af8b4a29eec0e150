//! How much a client sends to addresses that nobody has proved to be the server's.
//!
//! The server names these addresses, and may name those of others (RFC 9000 §21.5.3). Whatever it says, and
//! however often, there is an allowance for each address, and one for all of them together. They last as long
//! as the connection and know nothing of moves. Each is a bucket: it is full at first, is emptied by what is
//! sent, and fills again at a rate. The rate of an address halves again and again, the more was sent there in
//! vain. Once the server was there, the address has a new allowance, and what was sent there is given back to all.
//!
//! Probes are counted, those before a path is opened there among them, and attempts, by what is sent for
//! them. Probes to where the server was proved to be are not. A knock that is returned is not: it has 27 bytes, and goes along with an attempt.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::proto::probe::PROBE_SIZE;

/// A datagram of a probe, or of a path that is being opened, which is padded like it, bytes.
const DATAGRAM: u64 = PROBE_SIZE as u64;
/// What an attempt sends from one local address, datagrams: challenges, and again those that were lost.
const ATTEMPT: u64 = 4;
/// Addresses whose allowances are known; of more, that which was sent to the longest time ago is forgotten.
const MAX_TARGETS: usize = 64;
const MICROS: u128 = 1_000_000;

/// What one address may be sent.
const TARGET: Limits = Limits {
    burst: 384 * DATAGRAM,
    rate: 2 * DATAGRAM,
    halved_after: 512 * DATAGRAM,
};
/// What all of them together may be sent. An address that is never named again says nothing about others.
const CONNECTION: Limits = Limits {
    burst: 1024 * DATAGRAM,
    rate: 8 * DATAGRAM,
    halved_after: u64::MAX,
};

#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bytes at once.
    burst: u64,
    /// Bytes in a second, later.
    rate: u64,
    /// The rate halves each time that so many bytes were sent.
    halved_after: u64,
}

/// Datagrams to be sent together: how many to each address.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Round(BTreeMap<IpAddr, u64>);

impl Round {
    /// So many probes to `target`, besides.
    pub(super) fn add_probes(&mut self, target: SocketAddr, probes: u32) {
        *self.0.entry(network(target.ip())).or_default() += u64::from(probes);
    }

    /// An attempt at `target` from so many local addresses.
    pub(super) fn attempt(target: SocketAddr, locals: u32) -> Self {
        let datagrams = ATTEMPT * u64::from(locals);
        Self(BTreeMap::from([(network(target.ip()), datagrams)]))
    }

    fn datagrams(&self) -> u64 {
        self.0.values().sum()
    }

    /// Probes to `target` alone.
    pub(super) fn probes(target: SocketAddr, probes: u32) -> Self {
        let mut round = Self::default();
        round.add_probes(target, probes);
        round
    }
}

/// What of an allowance is left after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserve {
    /// Nothing has to.
    Nothing,
    /// Enough for an attempt from each local address, should somebody answer.
    Attempt,
    /// Half of it, for when the server is silent.
    Half,
}

/// The allowances of one connection.
#[derive(Debug)]
pub(super) struct ProbeBudget {
    connection: Bucket,
    targets: BTreeMap<IpAddr, Bucket>,
}

impl ProbeBudget {
    /// Nothing was sent yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            connection: Bucket::full(CONNECTION, now),
            targets: BTreeMap::new(),
        }
    }

    /// From when on a round is allowed, if nothing else is sent before; some time ago, if it is now.
    pub(super) fn ready_at(&self, round: &Round, reserve: Reserve) -> Instant {
        let mut ready_at = self.connection.ready_at(round.datagrams(), reserve);
        for (target, datagrams) in &round.0 {
            if let Some(bucket) = self.targets.get(target) {
                ready_at = ready_at.max(bucket.ready_at(*datagrams, reserve));
            }
        }
        ready_at
    }

    /// Whether a round is allowed now.
    pub(super) fn is_ready(&self, now: Instant, round: &Round) -> bool {
        self.ready_at(round, Reserve::Nothing) <= now
    }

    /// A round is sent.
    pub(super) fn spend(&mut self, now: Instant, round: &Round) {
        for (target, datagrams) in &round.0 {
            if !self.targets.contains_key(target) {
                self.make_room();
            }
            let full = Bucket::full(TARGET, now);
            let bucket = self.targets.entry(*target).or_insert(full);
            bucket.spend(now, datagrams * DATAGRAM);
        }
        self.connection.spend(now, round.datagrams() * DATAGRAM);
    }

    /// Sends a round, if it is allowed.
    pub(super) fn try_spend(&mut self, now: Instant, round: &Round) -> bool {
        let ready = self.is_ready(now, round);
        if ready {
            self.spend(now, round);
        }
        ready
    }

    /// The server was there: a path to that address was validated, or it has spoken from there. So nothing was sent to
    /// anybody else, and many moves in a row leave enough for the next one.
    pub(super) fn restore(&mut self, proved: SocketAddr) {
        if let Some(bucket) = self.targets.remove(&network(proved.ip())) {
            self.connection.give_back(bucket.sent);
        }
    }

    fn make_room(&mut self) {
        if self.targets.len() >= MAX_TARGETS {
            let oldest = self.targets.iter().min_by_key(|(_, bucket)| bucket.at);
            if let Some(oldest) = oldest.map(|(target, _)| *target) {
                self.targets.remove(&oldest);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    limits: Limits,
    /// Bytes that were left at that time.
    left: u64,
    at: Instant,
    /// Bytes that were ever sent.
    sent: u64,
}

impl Bucket {
    fn full(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            left: limits.burst,
            at: now,
            sent: 0,
        }
    }

    /// Bytes in a second, at the least one.
    fn rate(&self) -> u128 {
        let halvings = (self.sent / self.limits.halved_after).min(63);
        u128::from((self.limits.rate >> halvings).max(1))
    }

    fn ready_at(&self, datagrams: u64, reserve: Reserve) -> Instant {
        let burst = self.limits.burst;
        let reserve = match reserve {
            Reserve::Nothing => 0,
            Reserve::Attempt => ATTEMPT * datagrams * DATAGRAM,
            Reserve::Half => burst / 2,
        };
        // What is more than all that there can be would never be allowed.
        let needed = (datagrams * DATAGRAM + reserve).min(burst);
        let missing = u128::from(needed.saturating_sub(self.left));
        let micros = (missing * MICROS).div_ceil(self.rate());
        let wait = Duration::from_micros(micros.try_into().unwrap_or(u64::MAX));
        self.at + wait
    }

    fn spend(&mut self, now: Instant, bytes: u64) {
        let passed = now.saturating_duration_since(self.at).as_micros();
        let filled = passed.saturating_mul(self.rate()) / MICROS;
        let filled = u64::try_from(filled).unwrap_or(u64::MAX);
        let left = self.left.saturating_add(filled).min(self.limits.burst);
        self.left = left.saturating_sub(bytes);
        self.at = now;
        self.sent += bytes;
    }

    fn give_back(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes).min(self.limits.burst);
    }
}

/// What is one host's: an IPv4 address, or 64 bits of IPv6, of which a host has as many as it likes.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip => ip,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Probes as often as it is allowed, to one of the addresses after the other.
    struct Greedy {
        budget: ProbeBudget,
        start: Instant,
        now: Instant,
    }

    impl Greedy {
        fn new() -> Self {
            let start = Instant::now();
            Self {
                budget: ProbeBudget::new(start),
                start,
                now: start,
            }
        }

        /// How many datagrams are sent until then.
        fn probe(&mut self, until: Duration, mut next: impl FnMut() -> SocketAddr) -> u64 {
            let mut sent = 0;
            loop {
                let round = Round::probes(next(), 1);
                let ready = self.budget.ready_at(&round, Reserve::Nothing);
                self.now = self.now.max(ready);
                if self.now > self.start + until {
                    self.now = self.start + until;
                    return sent;
                }
                assert!(self.budget.try_spend(self.now, &round), "it was ready");
                sent += 1;
                assert!(sent <= 100_000, "it has no end");
            }
        }
    }

    #[test]
    fn the_longer_nobody_is_there_the_less_is_sent() {
        let mut greedy = Greedy::new();
        let victim = || address("192.0.2.1:443");
        assert_eq!(greedy.probe(Duration::ZERO, victim), 384);
        let mut sent = 384;
        for (until, least, most) in [
            (64 * SECOND, 511, 513),
            (300 * SECOND, 740, 760),
            (3_600 * SECOND, 1_900, 2_048),
            (24 * 3_600 * SECOND, 4_000, 5_000),
        ] {
            sent += greedy.probe(until, victim);
            assert!((least..=most).contains(&sent), "{sent} until {until:?}");
        }
    }

    #[test]
    fn ports_and_the_addresses_of_one_host_have_an_allowance_together() {
        for (host, other) in [
            ("192.0.2.1", "192.0.2.2:443"),
            ("[::ffff:192.0.2.1]", "192.0.2.2:443"),
            ("[2001:db8::1]", "[2001:db8:0:1::1]:443"),
        ] {
            let mut greedy = Greedy::new();
            let mut port = 1023;
            let sent = greedy.probe(Duration::ZERO, || {
                port += 1;
                address(&format!("{host}:{port}"))
            });
            assert_eq!(sent, 384, "{host}");
            assert_eq!(greedy.probe(Duration::ZERO, || address(other)), 384);
        }
        let mut greedy = Greedy::new();
        let mut host = 0;
        let sent = greedy.probe(Duration::ZERO, || {
            host += 1;
            address(&format!("[2001:db8::{host:x}]:443"))
        });
        assert_eq!(sent, 384);
    }

    #[test]
    fn no_number_of_addresses_is_sent_more_than_the_connection_may() {
        let mut greedy = Greedy::new();
        let mut host = 0;
        let mut next = || {
            host += 1;
            SocketAddr::from(([198, 18, (host >> 8) as u8, host as u8], 443))
        };
        assert_eq!(greedy.probe(Duration::ZERO, &mut next), 1_024);
        assert_eq!(greedy.probe(1_000 * SECOND, &mut next), 8 * 1_000);
        assert!(greedy.budget.targets.len() <= MAX_TARGETS);
    }

    #[test]
    fn where_the_server_was_the_allowance_is_new() {
        let mut greedy = Greedy::new();
        let server = || address("192.0.2.1:443");
        assert_eq!(greedy.probe(Duration::ZERO, server), 384);
        greedy.budget.restore(address("192.0.2.2:443"));
        assert_eq!(greedy.probe(Duration::ZERO, server), 0);
        greedy.budget.restore(server());
        assert_eq!(greedy.probe(Duration::ZERO, server), 384);
    }

    #[test]
    fn what_was_sent_to_where_the_server_was_is_there_for_others() {
        let mut greedy = Greedy::new();
        for host in 0..100 {
            let server = || SocketAddr::from(([192, 0, 2, host], 443));
            assert_eq!(greedy.probe(Duration::ZERO, server), 384, "move {host}");
            greedy.budget.restore(server());
        }
        // To where it was not, they are sent no more than before.
        let mut host = 0;
        let sent = greedy.probe(Duration::ZERO, || {
            host += 1;
            SocketAddr::from(([198, 18, 0, host], 443))
        });
        assert_eq!(sent, 1_024);
    }

    #[test]
    fn an_attempt_costs_four_datagrams_from_each_address() {
        for (sent, allowed) in [(376, true), (377, false)] {
            let now = Instant::now();
            let mut budget = ProbeBudget::new(now);
            let target = address("192.0.2.1:443");
            budget.spend(now, &Round::probes(target, sent));
            let attempt = Round::attempt(target, 2);
            assert_eq!(budget.is_ready(now, &attempt), allowed, "{sent}");
        }
    }

    #[test]
    fn what_is_kept_for_an_attempt_is_there_however_long_it_takes() {
        let start = Instant::now();
        let mut budget = ProbeBudget::new(start);
        let target = address("192.0.2.1:443");
        let round = Round::probes(target, 2);
        let (mut now, mut rounds) = (start, 0);
        while now < start + 3_600 * SECOND {
            budget.spend(now, &round);
            rounds += 1;
            assert!(rounds <= 2_048, "it is not held back");
            let attempt = Round::attempt(target, 2);
            assert!(budget.is_ready(now, &attempt), "{:?}", now - start);
            now = (now + MILLISECOND).max(budget.ready_at(&round, Reserve::Attempt));
        }
        // Slow probes leave half, which the search then has at once.
        let mut budget = ProbeBudget::new(start);
        let mut now = start;
        while now < start + 3_600 * SECOND {
            budget.spend(now, &round);
            now = (now + SECOND).max(budget.ready_at(&round, Reserve::Half));
        }
        let mut at_once = 0;
        while budget.try_spend(now, &round) {
            at_once += 2;
            assert!(at_once <= 384, "it has no end");
        }
        assert!(at_once >= 192, "{at_once}");
    }
}
