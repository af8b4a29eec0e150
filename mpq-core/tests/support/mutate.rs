//! Bytes that are almost right.

/// One of the corpus with some bytes changed, left out, repeated or taken from another.
pub(crate) fn mutated(rng: &mut fastrand::Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.choice(corpus).expect("there is one").clone();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..=bytes.len());
        let end = rng.usize(at..=bytes.len()).min(at + 8);
        match rng.u32(..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u32(..8),
            1 if at < bytes.len() => {
                bytes[at] = *rng
                    .choice(&[0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xff])
                    .expect("some")
            }
            2 => drop(bytes.drain(at..end)),
            3 => bytes.splice(at..at, bytes[at..end].to_vec()).for_each(drop),
            _ => {
                let other = rng.choice(corpus).expect("there is one");
                let from = rng.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}
