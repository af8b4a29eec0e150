//! The content of `/random`: bytes made from a seed as they are sent.
//!
//! The bytes are the ChaCha8 key stream (zero nonce, counter from zero) under the key that holds
//! the seed in little-endian order, followed by zeros. A stream cipher can be entered at any block,
//! so any part of a file of any size costs only its own length, and both ends of a transfer can
//! compute its SHA-256 without a file.

use data_encoding::HEXLOWER;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// A pseudo-random file that is never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    size: u64,
    seed: u64,
}

impl Random {
    /// The file of `size` bytes that `seed` stands for.
    pub fn new(size: u64, seed: u64) -> Self {
        Self { size, seed }
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the bytes from `offset` on over the whole of `buffer`. What lies beyond
    /// [`Random::size`] is not part of the file: the caller does not ask for it.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        const WORD: u64 = 4;
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let mut stream = ChaCha8Rng::from_seed(key);
        stream.set_word_pos(u128::from(offset / WORD));

        // The generator moves in words; an offset inside one takes the rest of that word first.
        let inside = (offset % WORD) as usize;
        let mut rest = buffer;
        if inside != 0 {
            let word = stream.next_u32().to_le_bytes();
            let head = (word.len() - inside).min(rest.len());
            rest[..head].copy_from_slice(&word[inside..inside + head]);
            rest = &mut rest[head..];
        }
        stream.fill_bytes(rest);
    }

    /// A strong entity tag (RFC 9110 §8.8.3): same size and seed, same bytes, on every host.
    pub fn etag(&self) -> String {
        format!("\"chacha8-{:x}-{:x}\"", self.size, self.seed)
    }
}

/// The SHA-256 of the file of `size` bytes that `seed` stands for, in lower-case hex.
pub fn sha256(size: u64, seed: u64) -> String {
    let random = Random::new(size, seed);
    let mut buffer = vec![0; 64 << 10];
    let mut hash = Sha256::new();
    let mut offset = 0;
    while offset < size {
        let len = (buffer.len() as u64).min(size - offset);
        let part = &mut buffer[..len as usize];
        random.fill(offset, part);
        hash.update(part);
        offset += len;
    }
    HEXLOWER.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(random: Random, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        random.fill(offset, &mut buffer);
        buffer
    }

    #[test]
    fn every_part_is_a_part_of_the_whole() {
        let random = Random::new(5000, 7);
        let whole = bytes(random, 0, 5000);
        for offset in (0..70).chain([255, 256, 257, 1023, 4097, 4999]) {
            for len in [0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 256, 257, 900] {
                let end = (offset + len).min(5000);
                assert_eq!(
                    bytes(random, offset as u64, end - offset),
                    whole[offset..end],
                    "{len} bytes at {offset}"
                );
            }
        }
    }

    #[test]
    fn large_offsets_do_not_repeat_small_ones() {
        let random = Random::new(u64::MAX, 1);
        // 256 GiB is where a 32-bit block counter would start again.
        assert_ne!(bytes(random, 0, 64), bytes(random, 1 << 38, 64));
        assert_eq!(
            bytes(random, (1 << 38) - 3, 64)[3..],
            bytes(random, 1 << 38, 61)
        );
    }

    #[test]
    fn the_content_is_the_published_key_stream() {
        // First bytes of ChaCha8 under the zero key and nonce (draft-strombergson, TC1).
        let expected = [
            0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6, 0x7f, 0x5b, 0xb8, 0xe8, 0x1f, 0x09,
            0xa5, 0xa1,
        ];
        assert_eq!(bytes(Random::new(16, 0), 0, 16), expected);
        assert_ne!(bytes(Random::new(16, 1), 0, 16), expected);
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let size = (64 << 10) + 5;
        let whole = bytes(Random::new(size, 3), 0, size as usize);
        let expected = HEXLOWER.encode(&Sha256::digest(&whole));
        assert_eq!(sha256(size, 3), expected);
        assert_eq!(
            sha256(0, 3),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn the_tag_tells_size_and_seed_apart() {
        let tags = [(1, 2), (2, 1), (12, 1), (1, 21)].map(|(a, b)| Random::new(a, b).etag());
        for (i, tag) in tags.iter().enumerate() {
            assert!(tag.starts_with('"') && tag.ends_with('"'));
            assert!(!tags[..i].contains(tag));
        }
    }
}
