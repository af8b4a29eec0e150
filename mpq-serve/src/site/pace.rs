//! How fast a body is sent, and in how large pieces.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

/// The largest piece of a body that is read and sent at a time, in bytes. What has been sent when
/// the server parks still has to drain, and every running response holds one.
const CHUNK: u64 = 128 << 10;

/// The smallest piece, however slow the rate, in bytes.
const MIN_CHUNK: u64 = 1 << 10;

/// The depth of the rate limit's bucket: how much late time may be made up for.
const BURST: Duration = Duration::from_millis(50);

/// The rate limit of one body: a token bucket, kept as the time at which it is next full enough.
pub(super) struct Pace {
    rate: Option<NonZeroU64>,
    next: Instant,
}

impl Pace {
    /// A limit of `rate` bit/s, none if there is none, from `now` on.
    pub(super) fn new(rate: Option<NonZeroU64>, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// How much to send at a time, in bytes: no more than [`BURST`] carries.
    pub(super) fn chunk(&self) -> u64 {
        self.rate.map_or(CHUNK, |rate| {
            let burst = (rate.get() as f64 / 8.0 * BURST.as_secs_f64()) as u64;
            burst.clamp(MIN_CHUNK, CHUNK)
        })
    }

    /// When `bytes` more may be sent, and counts them.
    pub(super) fn reserve(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        // A wait while the server is parked must not be followed by a burst of all that was missed.
        let earliest = now.checked_sub(BURST).unwrap_or(self.next);
        let at = self.next.max(earliest);
        self.next = at + Duration::from_secs_f64(bytes as f64 * 8.0 / rate.get() as f64);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_the_rate_and_a_pause_is_not_made_up_for() {
        let rate = 8_000_000; // 1 MB/s
        let mut now = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(rate), now);
        let chunk = pace.chunk();
        assert_eq!(chunk, 50_000);
        let mut seconds_for = |bytes: u64, now: &mut Instant| {
            let start = *now;
            for _ in 0..bytes / chunk {
                *now = pace.reserve(chunk, *now).unwrap().max(*now);
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
    fn chunks_are_bounded_at_every_rate() {
        for (rate, expected) in [(1, MIN_CHUNK), (u64::MAX, CHUNK)] {
            let pace = Pace::new(NonZeroU64::new(rate), Instant::now());
            assert_eq!(pace.chunk(), expected);
        }
        assert_eq!(Pace::new(None, Instant::now()).chunk(), CHUNK);
    }
}
