//! How fast bodies are sent, and in how large pieces.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// The largest piece of a body that is read and sent at a time, in bytes. What has been sent when
/// the server parks still has to drain, and every running response holds one.
const CHUNK: u64 = 128 << 10;

/// The smallest piece, however slow the rate, in bytes.
const MIN_CHUNK: u64 = 1 << 10;

/// The depth of a rate limit's bucket: how much late time may be made up for.
const BURST: Duration = Duration::from_millis(50);

/// A rate limit: a token bucket, kept as the time at which it is next full enough. Clones share it: what one of them
/// sends, the others cannot, and they take turns.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    rate: NonZeroU64,
    next: Arc<Mutex<Instant>>,
}

impl Pace {
    /// A limit of `rate` bit/s, from `now` on.
    pub(crate) fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self {
            rate,
            next: Arc::new(Mutex::new(now)),
        }
    }

    /// How much to send at a time, in bytes: no more than [`BURST`] carries.
    fn chunk(&self) -> u64 {
        let burst = (self.rate.get() as f64 / 8.0 * BURST.as_secs_f64()) as u64;
        burst.clamp(MIN_CHUNK, CHUNK)
    }

    /// When `bytes` more may be sent, and counts them.
    fn reserve(&self, bytes: u64, now: Instant) -> Instant {
        let mut next = self.next.lock().expect("nobody panics");
        // A wait while the server is parked must not be followed by a burst of all that was missed.
        let at = now.checked_sub(BURST).map_or(*next, |it| it.max(*next));
        *next = at + Duration::from_secs_f64(bytes as f64 * 8.0 / self.rate.get() as f64);
        at
    }
}

/// All the limits that a body has to keep to: its own, and those that it shares with others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paces(Vec<Pace>);

impl Paces {
    pub(super) fn chunk(&self) -> u64 {
        self.0.iter().map(Pace::chunk).min().unwrap_or(CHUNK)
    }

    pub(super) fn reserve(&self, bytes: u64, now: Instant) -> Option<Instant> {
        self.0.iter().map(|pace| pace.reserve(bytes, now)).max()
    }
}

impl Extend<Pace> for Paces {
    fn extend<T: IntoIterator<Item = Pace>>(&mut self, more: T) {
        self.0.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: NonZeroU64 = NonZeroU64::new(8_000_000).unwrap(); // 1 MB/s

    #[test]
    fn the_pace_is_the_rate_and_a_pause_is_not_made_up_for() {
        let mut now = Instant::now();
        let pace = Pace::new(RATE, now);
        let chunk = pace.chunk();
        assert_eq!(chunk, 50_000);
        let seconds_for = |bytes: u64, now: &mut Instant| {
            let start = *now;
            for _ in 0..bytes / chunk {
                *now = pace.reserve(chunk, *now).max(*now);
            }
            (*now - start).as_secs_f64()
        };

        let took = seconds_for(2_000_000, &mut now);
        assert!((1.9..=2.01).contains(&took), "{took} s");
        now += Duration::from_secs(60);
        let took = seconds_for(1_000_000, &mut now);
        assert!((0.85..=1.01).contains(&took), "{took} s for 1 MB");
    }

    #[test]
    fn bodies_that_share_a_pace_have_it_together_and_each_its_own() {
        let now = Instant::now();
        let shared = Pace::new(RATE, now);
        let own = NonZeroU64::new(RATE.get() / 4).unwrap();
        let mut bodies = [Paces::default(), Paces::default()];
        bodies
            .iter_mut()
            .for_each(|body| body.extend([shared.clone()]));
        bodies[1].extend([Pace::new(own, now)]);
        assert_eq!(bodies.each_ref().map(Paces::chunk), [50_000, 12_500]);
        // They come in turn.
        let [mut last, mut slow] = [now; 2];
        for _ in 0..10 {
            last = bodies[0].reserve(50_000, now).unwrap();
            slow = bodies[1].reserve(50_000, now).unwrap();
        }
        // 18 and 9 pieces are before theirs.
        let after = |at: Instant| (at - now).as_secs_f64();
        assert!((0.85..=0.96).contains(&after(last)), "{}", after(last));
        assert!((1.7..=1.81).contains(&after(slow)), "{}", after(slow));
        assert_eq!(Paces::default().reserve(1, now), None);
    }

    #[test]
    fn chunks_are_bounded_at_every_rate() {
        for (rate, expected) in [(1, MIN_CHUNK), (u64::MAX, CHUNK)] {
            let pace = Pace::new(NonZeroU64::new(rate).unwrap(), Instant::now());
            assert_eq!(pace.chunk(), expected);
        }
        assert_eq!(Paces::default().chunk(), CHUNK);
    }
}
