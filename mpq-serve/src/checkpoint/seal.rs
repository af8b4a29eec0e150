//! A sealed file: one stream of bytes, encrypted and authenticated with a key of its own.
//!
//! Behind a head, which names the key, come parts of 64 KiB, each by AES-256-GCM in the STREAM construction (Hoang,
//! Reyhanitabar, Rogaway, Vizár, CRYPTO 2015): the nonce of a part has its number, and whether it is the last. So no
//! part can be changed, left out, added or put elsewhere unnoticed, and none can be missing at the end. A key
//! seals one file only, and so no nonce comes twice.

use std::io::{self, BufRead, Read, Write};
use std::mem;

use aes_gcm::aead::stream::{DecryptorBE32, EncryptorBE32};
use aes_gcm::{Aes256Gcm, KeyInit};
use data_encoding::HEXLOWER_PERMISSIVE;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

/// How a sealed file begins,
const MAGIC: &[u8; 24] = b"mpq-serve sealed file 1\n";
/// and how much of a digest of the key follows, bytes.
const ID: usize = 8;
/// Both.
const HEAD: usize = MAGIC.len() + ID;
/// The length of a part in clear, bytes,
const PART: usize = 1 << 16;
/// and by how much it is longer when sealed.
const TAG: usize = 16;
/// What of a nonce the construction does not use. It may be the same for all files: each has its own key.
const PREFIX: [u8; 7] = [0; 7];

/// What a file is sealed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// One that nobody has.
    ///
    /// # Errors
    /// The system gives out no random bytes.
    pub fn new() -> io::Result<Self> {
        let mut key = [0; 32];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| io::Error::other("the system gives out no random bytes"))?;
        Ok(Self(key))
    }

    /// As it was written; none if this is no key.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// For people and files: 64 hexadecimal digits.
    pub fn text(&self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0)
    }

    /// What tells it from others, and nothing of it.
    pub fn id(&self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.digest())
    }

    fn digest(&self) -> [u8; ID] {
        let digest = Sha256::new().chain_update(MAGIC).chain_update(self.0);
        digest.finalize()[..ID].try_into().expect("it is longer")
    }

    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..MAGIC.len()].copy_from_slice(MAGIC);
        head[MAGIC.len()..].copy_from_slice(&self.digest());
        head
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&self.0.into())
    }
}

/// Seals what is written to it. Without [`finish`](Self::finish) nobody can unseal it.
pub struct Sealing<W> {
    to: W,
    head: [u8; HEAD],
    stream: EncryptorBE32<Aes256Gcm>,
    part: Vec<u8>,
}

impl<W: Write> Sealing<W> {
    /// Into this file, with this key, which was not used before.
    ///
    /// # Errors
    /// Those of the file.
    pub fn new(key: &Key, mut to: W) -> io::Result<Self> {
        let head = key.head();
        to.write_all(&head)?;
        Ok(Self {
            to,
            head,
            stream: EncryptorBE32::from_aead(key.cipher(), &PREFIX.into()),
            part: Vec::with_capacity(PART + TAG),
        })
    }

    /// Says that this is all, and returns the file.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> io::Result<W> {
        let sealed = self
            .stream
            .encrypt_last_in_place(&self.head, &mut self.part);
        sealed.map_err(|_| too_long())?;
        self.to.write_all(&self.part)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Only now it is certain that the part is not the last.
        if self.part.len() == PART && !bytes.is_empty() {
            let sealed = self
                .stream
                .encrypt_next_in_place(&self.head, &mut self.part);
            sealed.map_err(|_| too_long())?;
            self.to.write_all(&self.part)?;
            self.part.clear();
        }
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn too_long() -> io::Error {
    io::Error::other("too long to be sealed")
}

/// Reads what was sealed, and only what is as it was sealed. The end has come once that was read.
pub struct Unsealing<R> {
    from: R,
    head: [u8; HEAD],
    state: State,
    /// What of the stream is there in clear, and how much of that was read.
    part: Vec<u8>,
    read: usize,
}

enum State {
    Within(Box<DecryptorBE32<Aes256Gcm>>),
    /// All of it was read.
    Ended,
    Damaged,
}

impl<R: BufRead> Unsealing<R> {
    /// From this file, with this key; none if it was sealed with another one.
    ///
    /// # Errors
    /// `InvalidData` or `UnexpectedEof`: it is no sealed file; those of the file.
    pub fn new(key: &Key, mut from: R) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        if !head.starts_with(MAGIC) {
            return Err(damaged("it does not begin as a sealed file"));
        }
        let stream = DecryptorBE32::from_aead(key.cipher(), &PREFIX.into());
        let of_this_key = || Self {
            from,
            head,
            state: State::Within(Box::new(stream)),
            part: Vec::new(),
            read: 0,
        };
        Ok((head == key.head()).then(of_this_key))
    }

    fn next(&mut self, mut stream: Box<DecryptorBE32<Aes256Gcm>>) -> io::Result<()> {
        self.part.clear();
        self.read = 0;
        let whole = PART + TAG;
        let length = (&mut self.from)
            .take(whole as u64)
            .read_to_end(&mut self.part)?;
        let is_last = length < whole || self.from.fill_buf()?.is_empty();
        let (unsealed, then) = match is_last {
            false => {
                let unsealed = stream.decrypt_next_in_place(&self.head, &mut self.part);
                (unsealed, State::Within(stream))
            }
            true => {
                let unsealed = stream.decrypt_last_in_place(&self.head, &mut self.part);
                (unsealed, State::Ended)
            }
        };
        if unsealed.is_err() {
            self.part.clear();
            return Err(not_as_sealed());
        }
        self.state = then;
        Ok(())
    }
}

impl<R: BufRead> Read for Unsealing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.part.len() {
            // Whatever goes wrong is final.
            match mem::replace(&mut self.state, State::Damaged) {
                State::Within(stream) => self.next(stream)?,
                State::Ended => {
                    self.state = State::Ended;
                    return Ok(0);
                }
                State::Damaged => return Err(not_as_sealed()),
            }
        }
        let length = (&self.part[self.read..]).read(buffer)?;
        self.read += length;
        Ok(length)
    }
}

fn not_as_sealed() -> io::Error {
    damaged("it was cut or changed")
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(key: &Key, clear: &[u8]) -> Vec<u8> {
        let mut sealing = Sealing::new(key, Vec::new()).unwrap();
        sealing.write_all(clear).unwrap();
        sealing.finish().unwrap()
    }

    /// What is read until the end or an error, and whether that was the end.
    fn unsealed(key: &Key, sealed: &[u8]) -> (Vec<u8>, bool) {
        let mut clear = Vec::new();
        let Ok(Some(mut unsealing)) = Unsealing::new(key, sealed) else {
            return (clear, false);
        };
        let is_whole = unsealing.read_to_end(&mut clear).is_ok();
        // It is no better the second time.
        assert_eq!(unsealing.read(&mut [0]).is_ok(), is_whole);
        (clear, is_whole)
    }

    /// Bytes that differ from part to part.
    fn clear(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / PART + at) as u8).collect()
    }

    #[test]
    fn what_was_sealed_is_unsealed_whatever_its_length() {
        let key = Key::new().unwrap();
        for length in [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 7] {
            let clear = clear(length);
            let sealed = sealed(&key, &clear);
            let parts = length.div_ceil(PART).max(1);
            assert_eq!(sealed.len(), HEAD + length + parts * TAG);
            assert_eq!(unsealed(&key, &sealed), (clear, true), "{length}");
        }
    }

    #[test]
    fn a_key_is_known_by_its_id_and_can_be_written_down() {
        let (key, other) = (Key::new().unwrap(), Key::new().unwrap());
        assert!(key != other && key.id() != other.id());
        assert!(Key::parse(&format!(" {}\n", key.text())).as_ref() == Some(&key));
        let text = key.text();
        for wrong in ["", "00", &text[1..], &format!("{text}00"), &"x".repeat(64)] {
            assert!(Key::parse(wrong).is_none(), "{wrong}");
        }
        let sealed = sealed(&key, b"secret");
        assert!(Unsealing::new(&other, &sealed[..]).unwrap().is_none());
        assert!(Unsealing::new(&key, &b"another file, which is long enough"[..]).is_err());
    }

    /// What can become of a sealed file on its way.
    #[derive(Debug, Clone)]
    enum Damage {
        Flip(prop::sample::Index, u8),
        Cut(prop::sample::Index),
        Add(Vec<u8>),
        Swap(prop::sample::Index, prop::sample::Index),
        Repeat(prop::sample::Index),
        LeaveOut(prop::sample::Index),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            (index(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
            index().prop_map(Damage::Cut),
            prop::collection::vec(any::<u8>(), 1..100).prop_map(Damage::Add),
            (index(), index()).prop_map(|(one, other)| Damage::Swap(one, other)),
            index().prop_map(Damage::Repeat),
            index().prop_map(Damage::LeaveOut),
        ]
    }

    fn damaged(sealed: &[u8], damage: Damage) -> Vec<u8> {
        let (head, body) = sealed.split_at(HEAD);
        let mut parts: Vec<_> = body.chunks(PART + TAG).map(<[u8]>::to_vec).collect();
        let mut bytes = sealed.to_vec();
        match damage {
            Damage::Flip(at, bit) => {
                bytes[at.index(sealed.len())] ^= 1 << bit;
                return bytes;
            }
            Damage::Cut(at) => {
                bytes.truncate(at.index(sealed.len()));
                return bytes;
            }
            Damage::Add(more) => return [bytes, more].concat(),
            Damage::Swap(one, other) => {
                let count = parts.len();
                parts.swap(one.index(count), other.index(count));
            }
            Damage::Repeat(at) => {
                let at = at.index(parts.len());
                parts.insert(at, parts[at].clone());
            }
            Damage::LeaveOut(at) => drop(parts.remove(at.index(parts.len()))),
        }
        [head, &parts.concat()].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn whatever_becomes_of_a_sealed_file_is_noticed(
            length in prop_oneof![0..100usize, 0..4 * PART, Just(PART), Just(2 * PART), Just(3 * PART)],
            damage in damage(),
        ) {
            let (key, clear) = (Key([7; 32]), clear(length));
            let whole = sealed(&key, &clear);
            let damaged = damaged(&whole, damage);
            prop_assume!(damaged != whole);
            let (read, is_whole) = unsealed(&key, &damaged);
            prop_assert!(!is_whole);
            // What is read until then is true.
            prop_assert!(clear.starts_with(&read));
        }
    }
}
