//! One direction of a link, as a model: it is told the time, and says what comes out and when.
//!
//! ```text
//! push ── drop-tail queue ── token bucket ── loss ── delay, jitter ── pop
//! ```
//!
//! Queue and bucket are those of tc-tbf(8). When a packet leaves is computed from the times of the
//! packets, not from those at which the model is asked: asked late, it still keeps its rate.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;

use crate::network::link_model::{Change, Shape};

/// One direction of a link for packets of type `P`. All times are since the same moment, and must
/// not decrease.
#[derive(Debug)]
pub(crate) struct Link<P> {
    shape: Shape,
    random: Rng,
    bucket: Bucket,
    queue: VecDeque<Waiting<P>>,
    /// Bytes in the queue.
    queued: u64,
    /// What has left the queue and is delayed, in order of the time at which it comes out.
    wire: VecDeque<(Duration, P)>,
    /// What has left the queue and is not delayed, in order of time.
    overtaking: VecDeque<(Duration, P)>,
    counters: Counters,
}

/// What has happened to packets that did not come out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Packets that found a full queue, or the link down.
    pub(crate) dropped: u64,
    /// Packets that were lost at random.
    pub(crate) lost: u64,
}

#[derive(Debug)]
struct Waiting<P> {
    packet: P,
    bytes: u64,
    since: Duration,
}

impl<P> Link<P> {
    pub(crate) fn new(shape: Shape, random: Rng) -> Link<P> {
        Link {
            bucket: Bucket::new(&shape),
            shape,
            random,
            queue: VecDeque::new(),
            queued: 0,
            wire: VecDeque::new(),
            overtaking: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What has happened since the last call.
    pub(crate) fn take_counters(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }

    /// Takes a packet of so many bytes, or gives back one that is dropped.
    pub(crate) fn push(&mut self, packet: P, bytes: u64, now: Duration) -> Result<(), P> {
        self.advance(now);
        if !self.shape.up || self.queued + bytes > self.shape.queue() {
            self.counters.dropped += 1;
            return Err(packet);
        }
        self.queued += bytes;
        self.queue.push_back(Waiting {
            packet,
            bytes,
            since: now,
        });
        Ok(())
    }

    /// The next packet that has come out until now, and when.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<(Duration, P)> {
        let due = self.due(now)?;
        let first = |line: &VecDeque<(Duration, P)>| line.front().is_some_and(|(at, _)| *at == due);
        if first(&self.overtaking) {
            self.overtaking.pop_front()
        } else {
            self.wire.pop_front()
        }
    }

    /// When the packet that [`Link::pop`] would give came out.
    pub(crate) fn due(&mut self, now: Duration) -> Option<Duration> {
        self.advance(now);
        self.on_the_way().filter(|due| *due <= now)
    }

    /// Nothing comes out before this time, if nothing is pushed.
    pub(crate) fn next(&self) -> Option<Duration> {
        let soonest = if self.shape.reorder > 0.0 {
            Duration::ZERO
        } else {
            self.shape.delay - self.shape.jitter
        };
        let queue = self.departure().map(|departure| departure + soonest);
        self.on_the_way().into_iter().chain(queue).min()
    }

    /// Makes the link another one from now on. What is on its way arrives as it would have, unless
    /// the link goes down.
    ///
    /// # Errors
    /// If a link cannot be so; it is as before then.
    pub(crate) fn change(&mut self, change: &Change, now: Duration) -> Result<(), String> {
        let mut shape = self.shape.clone();
        shape.apply(change);
        shape.check()?;
        self.advance(now);
        self.bucket.reshape(&shape, now);
        self.shape = shape;
        if !self.shape.up {
            let gone = self.queue.len() + self.wire.len() + self.overtaking.len();
            self.counters.dropped += gone as u64;
            self.queue.clear();
            self.queued = 0;
            self.wire.clear();
            self.overtaking.clear();
        }
        Ok(())
    }

    fn on_the_way(&self) -> Option<Duration> {
        let lines = [self.overtaking.front(), self.wire.front()];
        lines.into_iter().flatten().map(|(due, _)| *due).min()
    }

    /// When the first packet of the queue leaves it.
    fn departure(&self) -> Option<Duration> {
        let head = self.queue.front()?;
        Some(self.bucket.ready(head.bytes, head.since))
    }

    fn advance(&mut self, now: Duration) {
        while let Some(departure) = self.departure().filter(|departure| *departure <= now) {
            let Some(head) = self.queue.pop_front() else {
                return;
            };
            self.queued -= head.bytes;
            self.bucket.spend(head.bytes, departure);
            self.leave(head.packet, departure);
        }
    }

    /// What becomes of a packet after the queue.
    fn leave(&mut self, packet: P, departure: Duration) {
        if self.chance(self.shape.loss) {
            self.counters.lost += 1;
        } else if self.chance(self.shape.reorder) {
            self.overtaking.push_back((departure, packet));
        } else {
            let swing = 2.0 * self.shape.jitter.as_secs_f64();
            let swing = Duration::from_secs_f64(swing * self.random.f64());
            let due = departure + (self.shape.delay - self.shape.jitter) + swing;
            let last = self.wire.back().map(|(last, _)| *last);
            self.wire
                .push_back((due.max(last.unwrap_or_default()), packet));
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.f64() < probability
    }
}

/// A token bucket. Tokens are counted in bits times nanoseconds a second, so that nothing is rounded
/// away.
#[derive(Debug)]
struct Bucket {
    rate: u128,
    depth: u128,
    tokens: u128,
    /// The time `tokens` is of.
    at: Duration,
}

impl Bucket {
    /// A full one.
    fn new(shape: &Shape) -> Bucket {
        let depth = cost(shape.burst);
        Bucket {
            rate: shape.rate.into(),
            depth,
            tokens: depth,
            at: Duration::ZERO,
        }
    }

    fn tokens(&self, at: Duration) -> u128 {
        let since = at.saturating_sub(self.at).as_nanos();
        self.depth.min(self.tokens + self.rate * since)
    }

    /// When there are tokens for so many bytes that wait since then.
    fn ready(&self, bytes: u64, since: Duration) -> Duration {
        let from = since.max(self.at);
        let missing = cost(bytes).saturating_sub(self.tokens(from));
        let wait = missing.div_ceil(self.rate);
        from + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, bytes: u64, at: Duration) {
        self.tokens = self.tokens(at).saturating_sub(cost(bytes));
        self.at = at;
    }

    fn reshape(&mut self, shape: &Shape, now: Duration) {
        let tokens = self.tokens(now);
        self.rate = shape.rate.into();
        self.depth = cost(shape.burst);
        self.tokens = tokens.min(self.depth);
        self.at = now;
    }
}

fn cost(bytes: u64) -> u128 {
    u128::from(bytes) * 8_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;
    use proptest::prelude::*;

    const PACKET: u64 = 1500;

    fn link(change: &str) -> Link<u32> {
        let mut shape = Shape::default();
        shape.apply(&change.parse().unwrap());
        shape.check().unwrap();
        Link::new(shape, Rng::with_seed(7))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// All that comes out until then, with the times at which it did.
    fn drain(link: &mut Link<u32>, until: Duration) -> Vec<(Duration, u32)> {
        std::iter::from_fn(|| link.pop(until)).collect()
    }

    fn numbers(out: &[(Duration, u32)]) -> Vec<u32> {
        out.iter().map(|(_, number)| *number).collect()
    }

    #[test]
    fn a_packet_takes_the_delay() {
        let mut link = link("");
        link.push(1, PACKET, ms(3)).unwrap();
        assert_eq!(link.next(), Some(ms(28)));
        assert_eq!(link.pop(ms(28) - Duration::from_nanos(1)), None);
        assert_eq!(link.pop(ms(28)), Some((ms(28), 1)));
        assert_eq!((link.pop(ms(99)), link.next()), (None, None));
    }

    #[test]
    fn the_bucket_lets_its_depth_pass_at_once() {
        let mut link = link("rate=12M,burst=15k,latency=10ms,delay=0s");
        for number in 0..20 {
            link.push(number, PACKET, ms(5)).unwrap();
        }
        // Ten packets are the burst; then one a millisecond.
        let out = drain(&mut link, ms(5));
        assert_eq!(numbers(&out), Vec::from_iter(0..10));
        let out = drain(&mut link, ms(100));
        let expected: Vec<_> = (0..10).map(|i| (ms(u64::from(i) + 6), i + 10)).collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn the_queue_drops_what_it_has_no_bytes_for() {
        // It holds 15,000 and 1,500 bytes.
        let mut link = link("rate=12M,burst=15k,latency=1ms,delay=0s");
        let pushed = (0..30).filter(|number| link.push(*number, PACKET, ms(0)).is_ok());
        // Ten leave at once as the bucket is full, eleven wait.
        assert_eq!(pushed.count(), 21);
        assert_eq!(link.counters.dropped, 9);
        assert_eq!(link.queued, 16_500);
        assert_eq!(link.push(30, 1, ms(0)), Err(30));
        assert_eq!(link.push(31, 1500, ms(1)), Ok(()));
        assert_eq!(link.push(32, 1, ms(1)), Err(32));
    }

    #[test]
    fn the_rate_is_kept_when_it_is_asked_late() {
        for (rate, stall) in [("100M", 1), ("50M", 7), ("1G", 2), ("10M", 30)] {
            let mut link = link(&format!("rate={rate},delay=25ms"));
            let rate = link.shape.rate as f64;
            // Half as much again as fits, and nobody looks for milliseconds.
            let gap = Duration::from_secs_f64(PACKET as f64 * 8.0 / rate / 1.5);
            let mut now = Duration::ZERO;
            let mut looked = Duration::ZERO;
            let mut bytes = 0;
            for number in 0.. {
                now += gap;
                let _ = link.push(number, PACKET, now);
                if now > looked + ms(stall) {
                    looked = now;
                    let out = drain(&mut link, now);
                    // After the burst, so that what counts is the rate.
                    let late = out.iter().filter(|(due, _)| *due > Duration::from_secs(2));
                    bytes += late.count() as u64 * PACKET;
                }
                if now > Duration::from_secs(4) {
                    break;
                }
            }
            let measured = bytes as f64 * 8.0 / (now.as_secs_f64() - 2.0);
            assert!((measured / rate - 1.0).abs() < 0.01, "{measured} of {rate}");
        }
    }

    #[test]
    fn so_many_are_lost_as_asked_for() {
        let mut link = link("loss=0.01,rate=1G,burst=10M");
        for number in 0..100_000 {
            let now = Duration::from_micros(20 * u64::from(number));
            link.push(number, PACKET, now).unwrap();
        }
        let out = drain(&mut link, Duration::from_secs(60));
        let lost = link.take_counters().lost;
        assert_eq!(out.len() as u64 + lost, 100_000);
        // Five standard deviations of 31.
        assert!((845..1155).contains(&lost), "{lost}");
        assert_eq!(link.take_counters(), Counters::default());
    }

    #[test]
    fn so_many_overtake_as_asked_for() {
        let mut link = link("reorder=0.25");
        for number in 0..1000 {
            link.push(number, PACKET, ms(u64::from(number))).unwrap();
        }
        let out = drain(&mut link, Duration::from_secs(60));
        assert_eq!(out.len(), 1000);
        assert!(out.is_sorted_by_key(|(due, _)| *due));
        let soon = out
            .iter()
            .filter(|(due, number)| *due == ms(u64::from(*number)));
        assert!((180..320).contains(&soon.count()));
        assert!(!numbers(&out).is_sorted());
    }

    #[test]
    fn jitter_swings_around_the_delay() {
        let mut link = link("jitter=5ms");
        for number in 0..1000 {
            link.push(number, PACKET, ms(20 * u64::from(number)))
                .unwrap();
        }
        let out = drain(&mut link, Duration::from_secs(60));
        let delay = |(due, number): &(Duration, u32)| *due - ms(20 * u64::from(*number));
        let delays: Vec<_> = out.iter().map(delay).collect();
        let (min, max) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*min >= ms(20) && *min < ms(21), "{min:?}");
        assert!(*max <= ms(30) && *max > ms(29), "{max:?}");
    }

    #[test]
    fn a_link_that_goes_down_drops_everything() {
        let mut link = link("rate=12M,burst=1500,latency=10ms");
        for number in 0..5 {
            link.push(number, PACKET, ms(0)).unwrap();
        }
        link.change(&"up=false".parse().unwrap(), ms(2)).unwrap();
        assert_eq!(link.push(5, PACKET, ms(3)), Err(5));
        link.change(&"up=true".parse().unwrap(), ms(4)).unwrap();
        link.push(6, PACKET, ms(5)).unwrap();
        assert_eq!(numbers(&drain(&mut link, ms(999))), [6]);
        assert_eq!(link.counters.dropped, 6);
    }

    #[test]
    fn a_change_takes_effect_at_once_and_wrong_ones_do_not() {
        let mut link = link("rate=12M,burst=1500,latency=100ms,delay=0s");
        for number in 0..20 {
            link.push(number, PACKET, ms(0)).unwrap();
        }
        link.change(&"rate=120M".parse().unwrap(), ms(5)).unwrap();
        // One at 0 from the bucket and one a millisecond until 5, the rest a tenth of one apart.
        let out = drain(&mut link, ms(99));
        assert_eq!(out[5].0, ms(5));
        assert_eq!(out[19].0, ms(5) + Duration::from_micros(1400));

        let before = link.shape.clone();
        assert!(link.change(&"loss=2".parse().unwrap(), ms(99)).is_err());
        assert_eq!(link.shape, before);
    }

    proptest! {
        /// Whatever comes whenever, and whenever it is fetched: what was taken comes out in order,
        /// never before the delay, never faster than burst and rate allow.
        #[test]
        fn nothing_is_lost_reordered_or_too_fast(
            steps in prop::collection::vec((0..3_000_000u64, 1..=1500u64, any::<bool>()), 1..300),
            changes in prop::collection::vec((0..300usize, 0..60_000_000u64), 0..4),
        ) {
            let mut link = link("rate=10M,burst=6k,latency=5ms");
            let (mut now, mut taken, mut out) = (Duration::ZERO, Vec::new(), Vec::new());
            for (index, (gap, bytes, fetch)) in steps.into_iter().enumerate() {
                now += Duration::from_nanos(gap);
                for (_, delay) in changes.iter().filter(|(at, _)| *at == index) {
                    let change = Change { delay: Some(Duration::from_nanos(*delay)), ..Change::default() };
                    link.change(&change, now).unwrap();
                }
                if link.push(index as u32, bytes, now).is_ok() {
                    taken.push((index as u32, bytes, now));
                }
                prop_assert!(link.queued <= link.shape.queue());
                if fetch {
                    let next = link.next();
                    let fetched = drain(&mut link, now);
                    prop_assert!(fetched.iter().all(|(due, _)| *due <= now && Some(*due) >= next));
                    out.extend(fetched);
                }
            }
            out.extend(drain(&mut link, now + Duration::from_secs(60)));

            let kept: Vec<u32> = taken.iter().map(|(number, ..)| *number).collect();
            prop_assert_eq!(numbers(&out), kept);
            prop_assert!(out.is_sorted_by_key(|(due, _)| *due));
            for ((due, _), (_, _, since)) in out.iter().zip(&taken) {
                prop_assert!(*due >= *since);
            }
            if changes.is_empty() {
                for (first, (from, _)) in out.iter().enumerate() {
                    let mut bits = 0.0;
                    for ((due, _), (_, bytes, since)) in out.iter().zip(&taken).skip(first) {
                        prop_assert!(*due >= *since + ms(25));
                        bits += *bytes as f64 * 8.0;
                        let most = 6000.0 * 8.0 + 10e6 * (*due - *from).as_secs_f64();
                        prop_assert!(bits <= most + 1.0);
                    }
                }
            }
        }
    }
}
