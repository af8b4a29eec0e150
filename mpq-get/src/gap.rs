//! Measures the pause a move makes in the body.
//!
//! The body's first chunk from the new address and the news that the server has moved come through
//! different tasks, in any order. So the longest pause is remembered from the first sign of a move
//! on, and told with the first chunk after the news.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Watches the arrival of body chunks around a move.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    last: Option<Instant>,
    watching: bool,
    longest: Option<Pause>,
    moved: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    /// Between two consecutive chunks.
    pub(crate) length: Duration,
    /// When the second of them came.
    pub(crate) end: Instant,
}

impl Gap {
    /// A move may be ahead.
    pub(crate) fn watch(&mut self) {
        if !self.watching {
            self.watching = true;
            self.longest = None;
        }
    }

    /// There will be no move.
    pub(crate) fn cancel(&mut self) {
        *self = Gap {
            last: self.last,
            ..Gap::default()
        };
    }

    /// The server is now at `remote`.
    pub(crate) fn moved(&mut self, remote: SocketAddr) {
        self.watch();
        self.moved = Some(remote);
    }

    /// A chunk came; after a move the first one yields the new address and the pause.
    pub(crate) fn chunk(&mut self, now: Instant) -> Option<(SocketAddr, Pause)> {
        let last = self.last.replace(now)?;
        if !self.watching {
            return None;
        }
        let pause = Pause {
            length: now - last,
            end: now,
        };
        let longest = match self.longest {
            Some(longest) if longest.length >= pause.length => longest,
            _ => pause,
        };
        self.longest = Some(longest);
        let remote = self.moved?;
        self.cancel();
        Some((remote, longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds chunks at these milliseconds; the last one's answer in milliseconds.
    fn chunks(gap: &mut Gap, start: Instant, at: &[u64]) -> Option<(u128, u128)> {
        let mut answer = None;
        for ms in at {
            answer = gap.chunk(start + Duration::from_millis(*ms));
        }
        answer.map(|(_, pause)| (pause.length.as_millis(), (pause.end - start).as_millis()))
    }

    fn remote() -> SocketAddr {
        "10.1.0.3:443".parse().unwrap()
    }

    #[test]
    fn the_news_comes_before_the_first_chunk() {
        let (start, mut gap) = (Instant::now(), Gap::default());
        assert_eq!(chunks(&mut gap, start, &[0, 500]), None);
        gap.watch();
        assert_eq!(chunks(&mut gap, start, &[510]), None);
        gap.moved(remote());
        assert_eq!(chunks(&mut gap, start, &[910]), Some((400, 910)));
        assert_eq!(chunks(&mut gap, start, &[2000]), None, "told once");
    }

    #[test]
    fn the_news_comes_after_the_first_chunk() {
        let (start, mut gap) = (Instant::now(), Gap::default());
        gap.watch();
        assert_eq!(chunks(&mut gap, start, &[0, 400, 401]), None);
        gap.moved(remote());
        assert_eq!(chunks(&mut gap, start, &[402]), Some((400, 400)));
    }

    #[test]
    fn a_cancelled_move_is_forgotten() {
        let (start, mut gap) = (Instant::now(), Gap::default());
        gap.watch();
        assert_eq!(chunks(&mut gap, start, &[0, 400]), None);
        gap.cancel();
        gap.watch();
        gap.moved(remote());
        assert_eq!(chunks(&mut gap, start, &[410]), Some((10, 410)));
    }
}
