//! How much of bodies is held in memory: pieces that were read, and that no connection has taken yet.
//!
//! A client that asks for a lot and reads nothing makes each response hold a piece. So pieces are the smaller the more
//! of them are held already, by all responses of the server together.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// So much may be held until pieces are as small as they can be, bytes.
const ENOUGH: u64 = 48 << 20;
/// A piece takes this part of what is left of that at the most: some three hundred responses have whole ones.
const SHARE: u64 = 64;
/// The least that it is worth to read at a time, bytes.
const LEAST: u64 = 8 << 10;

/// Bytes that are held.
#[derive(Debug)]
pub(super) struct Held(AtomicU64);

/// By all responses.
pub(super) static HELD: Held = Held(AtomicU64::new(0));

impl Held {
    /// Room for a piece of at most so many bytes.
    pub(super) fn room(&'static self, most: u64) -> Room {
        let left = ENOUGH.saturating_sub(self.0.load(Ordering::Relaxed));
        let bytes = most.min((left / SHARE).max(LEAST));
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Room { held: self, bytes }
    }
}

/// Room for a piece, until this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    held: &'static Held,
    bytes: u64,
}

impl Room {
    /// How many bytes there is room for.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The piece that it was for, which has the room from now on.
    pub(super) fn filled(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Piece { bytes, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Piece {
    bytes: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: u64 = 128 << 10;

    fn nothing() -> &'static Held {
        Box::leak(Box::new(Held(AtomicU64::new(0))))
    }

    #[test]
    fn pieces_become_smaller_the_more_are_held() {
        let held = nothing();
        let rooms: Vec<_> = (0..5_000).map(|_| held.room(WHOLE)).collect();
        assert!(rooms[..300].iter().all(|room| room.bytes() == WHOLE));
        assert!(rooms.is_sorted_by(|one, next| one.bytes() >= next.bytes()));
        assert_eq!(rooms.last().map(Room::bytes), Some(LEAST));
        assert_eq!(held.room(100).bytes(), 100);
        let all: u64 = rooms.iter().map(Room::bytes).sum();
        assert!(all < ENOUGH + 5_000 * LEAST, "{all}");
    }

    #[test]
    fn room_is_there_again_once_the_last_part_of_a_piece_is_gone() {
        let held = nothing();
        let room = held.room(WHOLE);
        let piece = room.filled(vec![7; WHOLE as usize].into());
        let part = piece.slice(..10);
        drop(piece);
        assert_eq!(held.0.load(Ordering::Relaxed), WHOLE);
        assert_eq!(part, [7; 10].as_slice());
        drop(part);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }
}
