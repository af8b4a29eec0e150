//! Which addresses of clients are validated, at a server that has moved, by the [`Echo`] of a knock.
//!
//! QUIC validates each new path by a challenge, and until then sends no more than three times what came (RFC 9000
//! §8.1). That costs a round trip, which an echo saves.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::proto::probe::{Echo, has_long_header};

/// The knocks of one move, and who has returned them.
#[derive(Debug, Default)]
pub(crate) struct Echoes {
    /// What was sent where.
    expected: HashMap<SocketAddr, HashSet<Echo>>,
    /// At which of our addresses a client's is validated.
    validated: HashMap<SocketAddr, IpAddr>,
}

impl Echoes {
    /// A knock goes to `remote`.
    pub(crate) fn expect(&mut self, remote: SocketAddr, knock: &[u8]) {
        let expected = self.expected.entry(remote).or_default();
        expected.extend(Echo::of(knock));
    }

    /// Whether what came from `remote` is nothing but echoes of knocks that went there, and one at least: anybody
    /// can send an empty datagram.
    pub(crate) fn are<'a>(
        &self,
        remote: SocketAddr,
        packets: impl Iterator<Item = &'a [u8]>,
    ) -> bool {
        let Some(expected) = self.expected.get(&remote) else {
            return false;
        };
        let mut packets = packets.peekable();
        packets.peek().is_some()
            && packets.all(|packet| {
                has_long_header(packet)
                    && Echo::read(packet).is_some_and(|echo| expected.contains(&echo))
            })
    }

    /// An echo came from `remote` to `local`.
    pub(crate) fn validate(&mut self, local: IpAddr, remote: SocketAddr) {
        self.validated.insert(remote, local);
    }

    /// Whether `remote` is validated at `local`.
    pub(crate) fn is_validated(&self, local: IpAddr, remote: SocketAddr) -> bool {
        self.validated.get(&remote) == Some(&local)
    }

    /// Knocks are over: no echo counts any more.
    pub(crate) fn end(&mut self) {
        self.expected.clear();
    }

    /// Another move: nobody is validated at where the server is then.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::probe::KnockKey;

    #[test]
    fn only_who_returns_a_knock_from_where_it_went_has_an_echo() {
        let [here, there] = ["10.0.0.1:1", "10.0.0.2:1"].map(|a| a.parse().unwrap());
        let knocks = KnockKey::new(&[1; 32]);
        let [knock, never_sent] = [[1; 9], [2; 9]].map(|random| knocks.knock(&random));
        let echo = |knock: &[u8]| Echo::of(knock).unwrap().datagram(0);
        let mut echoes = Echoes::default();
        let are = |echoes: &Echoes, remote, packet: &[u8]| echoes.are(remote, [packet].into_iter());
        assert!(!are(&echoes, here, &echo(&knock)));
        echoes.expect(here, &knock);
        assert!(!are(&echoes, here, &echo(&never_sent)));
        assert!(!are(&echoes, here, &knock), "reflected");
        assert!(!are(&echoes, there, &echo(&knock)));
        assert!(are(&echoes, here, &echo(&knock)));
        assert!(!are(&echoes, here, &[]), "an empty packet");
        assert!(
            !echoes.are(here, std::iter::empty()),
            "an empty datagram has no packet"
        );
        echoes.end();
        assert!(!are(&echoes, here, &echo(&knock)));
    }

    #[test]
    fn an_address_is_validated_at_one_of_ours_until_the_next_move() {
        let remote = "10.0.0.1:1".parse().unwrap();
        let [local, other] = ["10.1.0.3", "10.1.0.4"].map(|a| a.parse().unwrap());
        let mut echoes = Echoes::default();
        echoes.validate(local, remote);
        echoes.end();
        assert!(echoes.is_validated(local, remote) && !echoes.is_validated(other, remote));
        echoes.forget();
        assert!(!echoes.is_validated(local, remote));
    }
}
