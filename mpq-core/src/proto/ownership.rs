//! Whose datagram it is, where one process has taken over the socket of another.
//!
//! All that clients send comes to the one that has taken over. Of that, what is for connections of the other one, its
//! *elder*, is the elder's: it goes on with them until they are over. The connection ID that a packet is for decides, as it
//! does at a load balancer, on whichever path the packet comes.
//!
//! An ID has three random bytes and five of a keyed hash of those ([`IdKey`]). The key is drawn by the process that issues
//! the IDs, and known to it and to whom it has handed over. Nobody else can tell which IDs are of one process
//! (RFC 9000 §5.1). A client's first packets are for an ID that the client has drawn, and so are probes: they are for the
//! one that has taken over. A client that was asked to prove its address (Retry) comes back with an ID of who has asked,
//! and so it does later in its handshake: each handshake ends where it began.
//!
//! Of a whole 2^40 of IDs, one that is not an elder's is taken for one.

use std::fmt;

use ring::hmac;

use super::probe::{Secret, has_long_header};

/// A connection ID of a server.
pub type Id = [u8; ID_LENGTH];

/// The random bytes that an ID needs. Three are enough for 16 million IDs.
pub const ID_RANDOM: usize = 3;
/// The length of an ID, bytes.
pub const ID_LENGTH: usize = 8;

/// Makes the connection IDs of a server, and recognises them.
#[derive(Clone)]
pub struct IdKey {
    secret: Secret,
    key: hmac::Key,
}

impl IdKey {
    /// From a secret that nobody but the server knows.
    pub fn new(secret: Secret) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Self { secret, key }
    }

    /// What it was made from, for who takes over.
    pub fn secret(&self) -> Secret {
        self.secret
    }

    /// The ID with these random bytes.
    pub fn id(&self, random: [u8; ID_RANDOM]) -> Id {
        let hash = hmac::sign(&self.key, &random);
        let mut id = Id::default();
        id[..ID_RANDOM].copy_from_slice(&random);
        id[ID_RANDOM..].copy_from_slice(&hash.as_ref()[..ID_LENGTH - ID_RANDOM]);
        id
    }

    /// Whether it has made this ID.
    pub fn has_made(&self, id: Id) -> bool {
        let (random, _) = id.split_first_chunk().expect("it is longer");
        self.id(*random) == id
    }
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey")
    }
}

/// Whose the packets of a buffer are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parted {
    /// They are for the process that has received them.
    Own,
    /// They are for its elder.
    Elders,
    /// Some are for each.
    Both {
        /// What is left of the buffer: the packets for this process.
        own: usize,
        /// Those for the elder.
        elders: Vec<u8>,
    },
}

/// The IDs of the processes before this one, whose connections are not over yet.
#[derive(Debug, Clone)]
pub struct Elders(Vec<IdKey>);

impl Elders {
    /// By the keys of all of them, the one that was first included: what is for that is passed on by the one after it.
    pub fn new(keys: Vec<IdKey>) -> Self {
        Self(keys)
    }

    /// Their keys.
    pub fn keys(&self) -> &[IdKey] {
        &self.0
    }

    /// Whether a datagram is for a connection of theirs. All packets in one have the same destination
    /// (RFC 9000 §12.2).
    pub fn own(&self, datagram: &[u8]) -> bool {
        destination(datagram).is_some_and(|id| self.0.iter().any(|key| key.has_made(id)))
    }

    /// Says whose the datagrams are that the kernel has joined (GRO), each of `stride` bytes but for the last, which may be
    /// shorter. If both have some, those that stay are moved to the beginning.
    pub fn part(&self, joined: &mut [u8], stride: usize) -> Parted {
        let stride = stride.max(1);
        let are_elders: Vec<_> = joined.chunks(stride).map(|one| self.own(one)).collect();
        if !are_elders.contains(&true) {
            return Parted::Own;
        }
        if !are_elders.contains(&false) {
            return Parted::Elders;
        }
        let (mut own, mut elders) = (0, Vec::new());
        for (index, is_elders) in are_elders.into_iter().enumerate() {
            let start = index * stride;
            let end = joined.len().min(start + stride);
            if is_elders {
                elders.extend_from_slice(&joined[start..end]);
            } else {
                joined.copy_within(start..end, own);
                own += end - start;
            }
        }
        Parted::Both { own, elders }
    }
}

/// The ID that a packet is for, if it is as long as those of a server of ours (RFC 8999 §5).
fn destination(packet: &[u8]) -> Option<Id> {
    let rest = match has_long_header(packet) {
        // The first byte, the version, and the length.
        true => packet.get(5..)?.strip_prefix(&[ID_LENGTH as u8])?,
        false => packet.get(1..)?,
    };
    rest.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::probe::{Echo, KnockKey, PROBE_SIZE, ProbeKey};

    const OWN: Secret = [1; 32];
    const LAST: Secret = [2; 32];
    const FIRST: Secret = [3; 32];

    fn elders() -> Elders {
        Elders::new([LAST, FIRST].map(IdKey::new).into())
    }

    fn short(id: Id, size: usize) -> Vec<u8> {
        [&[0x40][..], &id, &vec![0; size - 1 - ID_LENGTH]].concat()
    }

    /// Initial, 0-RTT, Handshake or Retry, of this version.
    fn long(kind: u8, version: u32, id: &[u8]) -> Vec<u8> {
        let first = [0xc0 | kind << 4];
        [&first[..], &version.to_be_bytes(), &[id.len() as u8], id].concat()
    }

    #[test]
    fn probes_echoes_and_first_packets_are_for_who_has_taken_over() {
        let elders = elders();
        let (local, remote) = ("10.0.0.1".parse().unwrap(), "10.1.0.2:443".parse().unwrap());
        let probe = ProbeKey::new(&[4; 32]).probe(local, remote, &[5; PROBE_SIZE]);
        let knock = KnockKey::new(&[6; 32]).knock(&[7; 9]);
        let echo = Echo::of(&knock).unwrap().datagram(8);
        for packet in [
            &probe,
            &knock,
            &echo,
            &long(0, 1, &[9; 8]),
            &long(0, 1, &[9; 20]),
        ] {
            assert!(!elders.own(packet));
        }
    }

    #[test]
    fn a_handshake_ends_where_it_began() {
        let id = IdKey::new(FIRST).id([4, 5, 6]);
        for kind in 0..4 {
            assert!(elders().own(&long(kind, 1, &id)));
        }
        let longer = [&id[..], &[0]].concat();
        assert!(!elders().own(&long(0, 1, &longer)), "an ID is not longer");
    }

    proptest! {
        #[test]
        fn each_id_is_known_by_its_key_and_by_no_other(random: [u8; 3], size in 9..100_usize) {
            for (secret, is_elders) in [(OWN, false), (LAST, true), (FIRST, true)] {
                let id = IdKey::new(secret).id(random);
                prop_assert!(IdKey::new(secret).has_made(id));
                prop_assert_eq!(elders().own(&short(id, size)), is_elders);
                prop_assert_eq!(elders().own(&long(2, 1, &id)), is_elders);
            }
        }

        #[test]
        fn whatever_comes_is_read(packet in vec(any::<u8>(), 0..40)) {
            prop_assert!(!elders().own(&packet));
        }

        /// None is lost or changed, and the order stays.
        #[test]
        fn joined_datagrams_are_parted(owners in vec(any::<bool>(), 1..12), last in 9..30_usize) {
            const STRIDE: usize = 30;
            let count = owners.len();
            let datagrams: Vec<_> = owners.iter().enumerate().map(|(index, is_elders)| {
                let key = IdKey::new(if *is_elders { LAST } else { OWN });
                short(key.id([index as u8; 3]), if index + 1 == count { last } else { STRIDE })
            }).collect();
            let of = |wanted| -> Vec<u8> {
                let all = owners.iter().zip(&datagrams);
                all.filter(|(owner, _)| **owner == wanted).flat_map(|(_, it)| it.clone()).collect()
            };
            let mut joined = datagrams.concat();
            match elders().part(&mut joined, STRIDE) {
                Parted::Own => prop_assert!(of(true).is_empty()),
                Parted::Elders => prop_assert!(of(false).is_empty()),
                Parted::Both { own, elders } => {
                    prop_assert_eq!(&joined[..own], of(false));
                    prop_assert_eq!(elders, of(true));
                }
            }
        }
    }
}
