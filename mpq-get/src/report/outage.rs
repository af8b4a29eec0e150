//! Measures the pause a move makes in the body, and what it is made of.
//!
//! The body's first chunk from the new address and the news that the server has moved come through
//! different tasks, in any order. So the longest pause is remembered from the first sign of a move
//! on, and told with the first chunk after the news. The news carry their own times.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::events::OutageParts;

/// Watches the arrival of body chunks around a move.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    last: Option<Instant>,
    longest: Option<Pause>,
    /// The move that is under way, or may be.
    watched: Option<Move>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pause {
    /// Between two consecutive chunks.
    length: Duration,
    /// When the second of them came.
    end: Instant,
}

/// When a move's steps were seen.
#[derive(Debug, Clone, Copy, Default)]
struct Move {
    announced: Option<Instant>,
    /// The last time that it parked or fell silent.
    parked: Option<Instant>,
    detected: Option<Instant>,
    moved: Option<(Instant, SocketAddr)>,
}

/// The end of a move's pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Resumption {
    /// The new address.
    pub(crate) remote: SocketAddr,
    /// When the body went on.
    pub(crate) at: Instant,
    /// What the time went to.
    pub(crate) parts: OutageParts,
}

impl Outage {
    /// A move is ahead.
    pub(crate) fn announced(&mut self, at: Instant) {
        self.watch().announced = Some(at);
    }

    /// The server stopped sending.
    pub(crate) fn parked(&mut self, at: Instant) {
        self.watch().parked = Some(at);
    }

    /// The server answers at its new address.
    pub(crate) fn detected(&mut self, at: Instant) {
        self.watch().detected = Some(at);
    }

    /// The server is now at `remote`.
    pub(crate) fn moved(&mut self, at: Instant, remote: SocketAddr) {
        self.watch().moved = Some((at, remote));
    }

    /// There will be no move.
    pub(crate) fn cancel(&mut self) {
        self.watched = None;
    }

    /// Whether a move is under way, or may be.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    fn watch(&mut self) -> &mut Move {
        if self.watched.is_none() {
            self.longest = None;
        }
        self.watched.get_or_insert_default()
    }

    /// A chunk came; after a move the first one ends the pause.
    pub(crate) fn chunk(&mut self, now: Instant) -> Option<Resumption> {
        let last = self.last.replace(now)?;
        let seen = self.watched?;
        let pause = Pause {
            length: now - last,
            end: now,
        };
        let longest = match self.longest {
            Some(longest) if longest.length >= pause.length => longest,
            _ => pause,
        };
        self.longest = Some(longest);
        let (moved, remote) = seen.moved?;
        self.cancel();
        let since = |from: Option<Instant>, to: Option<Instant>| {
            Some(to?.saturating_duration_since(from?).as_secs_f64())
        };
        Some(Resumption {
            remote,
            at: longest.end,
            parts: OutageParts {
                gap: longest.length.as_secs_f64(),
                announced_to_parked: since(seen.announced, seen.parked),
                parked_to_detected: since(seen.parked, seen.detected),
                detected_to_moved: since(seen.detected, Some(moved)),
                moved_to_first_byte: since(Some(moved), Some(longest.end)).unwrap_or(0.0),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds chunks at these milliseconds; the last one's answer: the gap and its end in
    /// milliseconds.
    fn chunks(outage: &mut Outage, start: Instant, at: &[u64]) -> Option<(u128, u128)> {
        let answer = feed(outage, start, at)?;
        let length = Duration::from_secs_f64(answer.parts.gap);
        Some((length.as_millis(), (answer.at - start).as_millis()))
    }

    fn feed(outage: &mut Outage, start: Instant, at: &[u64]) -> Option<Resumption> {
        let mut answer = None;
        for ms in at {
            answer = outage.chunk(start + Duration::from_millis(*ms));
        }
        answer
    }

    fn remote() -> SocketAddr {
        "10.1.0.3:443".parse().unwrap()
    }

    #[test]
    fn the_news_comes_before_the_first_chunk() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(chunks(&mut outage, start, &[0, 500]), None);
        outage.announced(at(505));
        assert_eq!(chunks(&mut outage, start, &[510]), None);
        outage.moved(at(800), remote());
        assert_eq!(chunks(&mut outage, start, &[910]), Some((400, 910)));
        assert_eq!(chunks(&mut outage, start, &[2000]), None, "told once");
    }

    #[test]
    fn the_news_comes_after_the_first_chunk() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        outage.parked(start);
        assert_eq!(chunks(&mut outage, start, &[0, 400, 401]), None);
        outage.moved(start + Duration::from_millis(401), remote());
        let told = feed(&mut outage, start, &[402]).unwrap();
        assert_eq!(told.at, start + Duration::from_millis(400));
        assert_eq!(told.parts.gap, 0.4);
        assert_eq!(told.parts.moved_to_first_byte, 0.0, "it came before");
    }

    #[test]
    fn a_cancelled_move_is_forgotten() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        outage.announced(start);
        assert_eq!(chunks(&mut outage, start, &[0, 400]), None);
        outage.cancel();
        outage.moved(start + Duration::from_millis(405), remote());
        let told = feed(&mut outage, start, &[410]).unwrap();
        assert_eq!(told.parts.gap, 0.01);
        assert_eq!(told.parts.announced_to_parked, None);
    }

    #[test]
    fn the_parts_of_a_move() {
        let (start, mut outage) = (Instant::now(), Outage::default());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(feed(&mut outage, start, &[0]), None);
        outage.announced(at(125));
        // It spoke again after it had seemed silent, and somebody else answered first.
        outage.parked(at(150));
        outage.parked(at(250));
        outage.detected(at(300));
        outage.detected(at(500));
        outage.moved(at(1000), remote());
        let told = feed(&mut outage, start, &[1125]).unwrap();
        let expected = OutageParts {
            gap: 1.125,
            announced_to_parked: Some(0.125),
            parked_to_detected: Some(0.25),
            detected_to_moved: Some(0.5),
            moved_to_first_byte: 0.125,
        };
        assert_eq!((told.remote, told.parts), (remote(), expected));
    }
}
