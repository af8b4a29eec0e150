//! Datagrams that ask whether a QUIC server is there, without a path and without any state.
//!
//! A *probe* is a long-header packet of a reserved version. Every QUIC server answers it with Version
//! Negotiation (RFC 9000 §6), which returns its two connection IDs, exchanged (RFC 8999 §6). A *knock* is
//! the restored server's own word: a packet of the same shape as that answer.
//!
//! Nothing of them is sent twice, so that nobody can tell which of them belong together (RFC 9000 §9.5).
//! One of the two connection IDs is random. The other one is its *tag*, a keyed hash of it. So an answer is
//! recognised without a table of what was sent, and only who has seen the probe can make one:
//!
//! - The key of the probes is the client's own ([`ProbeKey`]). Not even the server knows it, which names
//!   the addresses and could otherwise answer in the name of whoever is there. The tag covers both
//!   addresses, so that the answer from one place is none from another.
//! - The key of the knocks is known to both ends of the connection ([`KnockKey`]).
//!
//! Answers and knocks count once: whoever repeats one later says nothing ([`Recogniser`]).
//!
//! Still they are only hints; the server's address is validated by QUIC itself. The client's is, for a server that
//! has moved, when the client returns a knock ([`Echo`]): nobody else can know what was sent to there.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ring::hmac;

/// What a key is made from, bytes that nobody can guess.
pub type Secret = [u8; 32];

/// A connection ID of a probe or a knock.
type Id = [u8; 8];

/// The length of a probe, bytes: what may open a connection must be padded to it (RFC 9000 §14.1).
pub const PROBE_SIZE: usize = 1200;
/// The random bytes that a knock needs.
pub const KNOCK_RANDOM: usize = 1 + size_of::<Id>();
/// Hints that are not taken again: the answers of a client's first probes, and of two minutes more
/// (see `probe_budget`).
const REMEMBERED_HINTS: usize = 2_048;
/// Long header, and the fixed bit, which some load balancers want to see.
const LONG_HEADER: u8 = 0xc0;
/// The version that a knock says is spoken (RFC 9000 §15).
pub(super) const QUIC_V1: u32 = 1;

/// Makes a client's probes, and recognises their answers.
#[derive(Clone)]
pub struct ProbeKey(hmac::Key);

/// Makes a server's knocks, and recognises them.
#[derive(Clone)]
pub struct KnockKey(hmac::Key);

impl ProbeKey {
    /// The client's own; the server must not know the secret.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The probe that goes from `local` to `remote`, made of fresh random bytes.
    pub fn probe(&self, local: IpAddr, remote: SocketAddr, random: &[u8; PROBE_SIZE]) -> Vec<u8> {
        let (first, rest) = (random[0], &random[1..]);
        // One of those that are reserved to force negotiation (RFC 9000 §15).
        let version = [0, 1, 2, 3].map(|i| rest[i] & 0xf0 | 0x0a);
        let (nonce, padding) = rest[version.len()..]
            .split_first_chunk()
            .expect("it is longer");
        let mut packet = header(first, version, nonce, &self.tag(*nonce, local, remote));
        packet.extend_from_slice(&padding[..PROBE_SIZE - packet.len()]);
        packet
    }

    fn tag(&self, nonce: Id, local: IpAddr, remote: SocketAddr) -> Id {
        let mut covered = nonce.to_vec();
        for ip in [local, remote.ip()] {
            match ip.to_canonical() {
                IpAddr::V4(ip) => covered.extend_from_slice(&ip.octets()),
                IpAddr::V6(ip) => covered.extend_from_slice(&ip.octets()),
            }
        }
        covered.extend_from_slice(&remote.port().to_be_bytes());
        tag(&self.0, &covered)
    }
}

impl KnockKey {
    /// From a secret of the connection.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The datagram with which a thawed server says that it is there, made of fresh random bytes.
    pub fn knock(&self, random: &[u8; KNOCK_RANDOM]) -> Vec<u8> {
        let (first, nonce) = random.split_first_chunk::<1>().expect("it is longer");
        let mut packet = header(first[0], [0; 4], &tag(&self.0, nonce), nonce);
        packet.extend_from_slice(&QUIC_V1.to_be_bytes());
        packet
    }
}

/// What a client returns of a knock, before its first packet on a path to where that came from: the two
/// connection IDs, exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Echo {
    tag: Id,
    nonce: Id,
}

impl Echo {
    /// That of a knock, which a server keeps to compare it; `None` if it is none.
    pub fn of(knock: &[u8]) -> Option<Self> {
        let (tag, nonce) = returned_ids(knock)?;
        Some(Self { tag, nonce })
    }

    /// From what a server has received; `None` if it is something else.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let (nonce, tag) = returned_ids(packet)?;
        Some(Self { tag, nonce })
    }

    /// The datagram that returns it, with a random byte.
    pub fn datagram(self, random: u8) -> Vec<u8> {
        let mut packet = header(random, [0; 4], &self.nonce, &self.tag);
        packet.extend_from_slice(&QUIC_V1.to_be_bytes());
        packet
    }
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeKey")
    }
}

impl fmt::Debug for KnockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnockKey")
    }
}

/// What a client takes for a hint that somebody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// A probe was answered.
    Answer,
    /// The server knocked; what it may be returned.
    Knock(Echo),
}

/// Tells a client's hints from all else that it receives.
#[derive(Debug, Clone)]
pub struct Recogniser {
    probes: ProbeKey,
    knocks: KnockKey,
    /// The connection IDs of the last hints, and between where they were.
    taken: VecDeque<(Echo, IpAddr, SocketAddr)>,
}

impl Recogniser {
    /// With the key of its own probes, and that of the server's knocks.
    pub fn new(probes: ProbeKey, knocks: KnockKey) -> Self {
        Self {
            probes,
            knocks,
            taken: VecDeque::new(),
        }
    }

    /// What a packet is that came from `remote` to `local`; `None` if it is no hint. Each counts once:
    /// later, it says no more that somebody is there.
    pub fn hint(&mut self, local: IpAddr, remote: SocketAddr, packet: &[u8]) -> Option<Hint> {
        let echo = Echo::of(packet)?;
        let hint = if echo.tag == self.probes.tag(echo.nonce, local, remote) {
            Hint::Answer
        } else if echo.tag == tag(&self.knocks.0, &echo.nonce) {
            Hint::Knock(echo)
        } else {
            return None;
        };
        // Somebody who copies a knock, and is faster from elsewhere, must not take it from the server.
        let hinted = (echo, local, remote);
        if self.taken.contains(&hinted) {
            return None;
        }
        self.taken.truncate(REMEMBERED_HINTS - 1);
        self.taken.push_front(hinted);
        Some(hint)
    }
}

/// The destination and the source ID of a Version Negotiation packet, if they have the lengths of ours.
fn returned_ids(packet: &[u8]) -> Option<(Id, Id)> {
    let (_, rest) = packet.split_first()?;
    let rest = rest.strip_prefix(&[0; 4])?;
    let (destination, rest) = id(rest)?;
    let (source, _) = id(rest)?;
    has_long_header(packet).then_some((destination, source))
}

/// A connection ID with its length before it, if that is ours.
fn id(bytes: &[u8]) -> Option<(Id, &[u8])> {
    let rest = bytes.strip_prefix(&[size_of::<Id>() as u8])?;
    let (id, rest) = rest.split_first_chunk()?;
    Some((*id, rest))
}

/// Whether a packet is none of a connection that is made already (RFC 9000 §17).
pub(crate) fn has_long_header(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0x80 != 0)
}

fn tag(key: &hmac::Key, covered: &[u8]) -> Id {
    let tag = hmac::sign(key, covered);
    *tag.as_ref().first_chunk().expect("it is longer")
}

/// The bits of the first byte that have no meaning are as random as the rest.
pub(super) fn header(first: u8, version: [u8; 4], destination: &[u8], source: &[u8]) -> Vec<u8> {
    let mut packet = vec![LONG_HEADER | first];
    packet.extend_from_slice(&version);
    for id in [destination, source] {
        packet.push(u8::try_from(id.len()).expect("connection IDs are short"));
        packet.extend_from_slice(id);
    }
    packet
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn recogniser() -> Recogniser {
        Recogniser::new(ProbeKey::new(&[1; 32]), KnockKey::new(&[2; 32]))
    }

    fn random<const LENGTH: usize>() -> [u8; LENGTH] {
        std::array::from_fn(|_| fastrand::u8(..))
    }

    fn places() -> (IpAddr, SocketAddr) {
        let (local, remote) = ("10.0.0.1", "10.1.0.2:443");
        (local.parse().unwrap(), remote.parse().unwrap())
    }

    /// What every QUIC server answers (RFC 8999 §6).
    fn version_negotiation(probe: &[u8]) -> Vec<u8> {
        assert_eq!((probe[5], probe[14]), (8, 8));
        let (destination, source) = (&probe[5..14], &probe[14..23]);
        [&[0xc0, 0, 0, 0, 0], source, destination, &[0, 0, 0, 1]].concat()
    }

    #[test]
    fn an_answer_is_recognised_where_the_probe_was_sent_from_and_to_only() {
        let (mut recogniser, (local, remote)) = (recogniser(), places());
        let probe = recogniser.probes.probe(local, remote, &random());
        assert_eq!(probe.len(), 1200);
        assert_eq!(recogniser.hint(local, remote, &probe), None);
        let answer = version_negotiation(&probe);
        let hint = |local, remote| recogniser.clone().hint(local, remote, &answer);
        assert_eq!(hint(local, remote), Some(Hint::Answer));
        let mapped = "[::ffff:10.1.0.2]:443".parse().unwrap();
        assert_eq!(hint(local, mapped), Some(Hint::Answer));
        assert_eq!(hint("10.0.0.2".parse().unwrap(), remote), None);
        for other in ["10.1.0.3:443", "10.1.0.2:444", "[2001:db8::1]:443"] {
            assert_eq!(hint(local, other.parse().unwrap()), None, "{other}");
        }
        let knocks = recogniser.knocks.clone();
        let mut other_client = Recogniser::new(ProbeKey::new(&[3; 32]), knocks);
        assert_eq!(other_client.hint(local, remote, &answer), None);
    }

    #[test]
    fn an_answer_counts_once() {
        let (mut recogniser, (local, remote)) = (recogniser(), places());
        let key = recogniser.probes.clone();
        let answer = || version_negotiation(&key.probe(local, remote, &random()));
        let first = answer();
        for count in 0..REMEMBERED_HINTS {
            let next = if count == 0 { first.clone() } else { answer() };
            let hint = recogniser.hint(local, remote, &next);
            assert_eq!(hint, Some(Hint::Answer), "{count}");
            assert_eq!(recogniser.hint(local, remote, &first), None, "{count}");
        }
        recogniser.hint(local, remote, &answer());
        assert_eq!(recogniser.taken.len(), REMEMBERED_HINTS);
    }

    #[test]
    fn a_knock_is_recognised_wherever_it_comes_from() {
        let (mut recogniser, (local, remote)) = (recogniser(), places());
        let knock = recogniser.knocks.knock(&random());
        assert_eq!(knock.len(), 27);
        let hint = recogniser.hint(local, remote, &knock);
        assert_eq!(hint, Some(Hint::Knock(Echo::of(&knock).unwrap())));
        let again = recogniser.hint(local, remote, &knock);
        assert_eq!(again, None, "it counts once");
        let elsewhere = recogniser.hint(local, "10.1.0.9:443".parse().unwrap(), &knock);
        assert!(elsewhere.is_some(), "and for each place");
        let of_another_connection = KnockKey::new(&[3; 32]).knock(&random());
        let hint = recogniser.hint(local, remote, &of_another_connection);
        assert_eq!(hint, None);
    }

    #[test]
    fn an_echo_returns_both_ids_of_its_knock_and_no_other() {
        let knocks = KnockKey::new(&[2; 32]);
        let [knock, other] = [knocks.knock(&random()), knocks.knock(&random())];
        let echo = Echo::of(&knock).unwrap();
        let datagram = echo.datagram(0);
        assert_eq!(datagram.len(), knock.len());
        assert_eq!(Echo::read(&datagram), Some(echo));
        assert_ne!(Echo::read(&knock), Some(echo), "a knock that is reflected");
        assert_ne!(Echo::read(&datagram), Echo::of(&other));
        assert_eq!(Echo::read(&datagram[..22]), None);
    }

    /// Whoever sees several of them must not be able to tell that they are of one client, or one server.
    #[test]
    fn no_two_have_anything_in_common() {
        const COUNT: usize = 200;
        let (recogniser, (local, remote)) = (recogniser(), places());
        let probes = (0..COUNT).map(|_| recogniser.probes.probe(local, remote, &random()));
        let knocks = (0..COUNT).map(|_| recogniser.knocks.knock(&random()));
        let mut ids = BTreeSet::new();
        let mut versions = BTreeSet::new();
        for packet in probes.chain(knocks) {
            ids.extend([packet[6..14].to_vec(), packet[15..23].to_vec()]);
            versions.insert(packet[1..5].to_vec());
            if packet.len() == PROBE_SIZE {
                assert!(packet[1..5].iter().all(|byte| byte & 0x0f == 0x0a));
                assert!(packet[23..].windows(8).all(|window| window != [0; 8]));
            }
        }
        assert_eq!(ids.len(), 4 * COUNT);
        assert!(versions.len() > COUNT / 2, "{}", versions.len());
    }

    #[test]
    fn anything_else_is_no_hint() {
        let (mut recogniser, (local, remote)) = (recogniser(), places());
        let knock = recogniser.knocks.knock(&random());
        let mut hint = |packet: &[u8]| recogniser.hint(local, remote, packet);
        for end in 0..23 {
            assert_eq!(hint(&knock[..end]), None, "cut at {end}");
        }
        for (at, byte) in [
            (0, 0x40),
            (4, 1),
            (5, 7),
            (14, 7),
            (6, !knock[6]),
            (22, !knock[22]),
        ] {
            let mut other = knock.clone();
            other[at] = byte;
            assert_eq!(hint(&other), None, "another byte {at}");
        }
    }
}
