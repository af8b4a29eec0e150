//! Which addresses of clients are validated, at a server that has moved, by the [`Echo`] of a knock.
//!
//! noq validates each new path by a challenge, and until then sends no data on it. That costs a round trip. But
//! it takes a path for valid if it leads to where a valid one leads, as far as is known: where our own address is
//! not shown to it, the client's decides. So packets from a client that has returned a knock are shown
//! without our address. They have to be so from the first one on, since noq keeps what it saw first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::proto::probe::{Echo, has_long_header};

/// The knocks of one move, and who has returned them.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// What was sent where.
    expected: HashMap<SocketAddr, Vec<Echo>>,
    /// At which of our addresses a client's is validated.
    validated: HashMap<SocketAddr, Option<IpAddr>>,
}

impl Echoes {
    /// A knock goes to `remote`.
    pub(super) fn expect(&mut self, remote: SocketAddr, knock: &[u8]) {
        let expected = self.expected.entry(remote).or_default();
        expected.extend(Echo::of(knock));
    }

    /// Whether what came from `remote` to `local` is nothing but the echo of a knock that went there. That it
    /// did validates `remote`, if it is `new`.
    pub(super) fn take<'a>(
        &mut self,
        local: Option<IpAddr>,
        remote: SocketAddr,
        mut packets: impl Iterator<Item = &'a [u8]>,
        is_new: impl FnOnce() -> bool,
    ) -> bool {
        let Some(expected) = self.expected.get(&remote) else {
            return false;
        };
        let is_echo = |packet: &[u8]| {
            has_long_header(packet)
                && Echo::read(packet).is_some_and(|echo| expected.contains(&echo))
        };
        if !packets.all(is_echo) {
            return false;
        }
        if is_new() {
            self.validated.entry(remote).or_insert(local);
        }
        true
    }

    /// Knocks are over: no echo counts any more.
    pub(super) fn end(&mut self) {
        self.expected.clear();
    }

    /// Our address is another one now: nobody has returned a knock from there.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether `remote` is validated at `local`.
    pub(super) fn is_validated(&self, local: Option<IpAddr>, remote: SocketAddr) -> bool {
        self.validated.get(&remote) == Some(&local)
    }

    /// From which of our addresses what goes to `remote` has to come, if that is not shown to noq.
    pub(super) fn source(&self, remote: SocketAddr) -> Option<IpAddr> {
        *self.validated.get(&remote)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::probe::KnockKey;

    #[test]
    fn only_who_returns_a_knock_from_where_it_went_is_validated() {
        let [here, there] = ["10.0.0.1:1", "10.0.0.2:1"].map(|a| a.parse().unwrap());
        let local = Some("10.1.0.3".parse().unwrap());
        let knocks = KnockKey::new(&[1; 32]);
        let [knock, never_sent] = [[1; 9], [2; 9]].map(|random| knocks.knock(&random));
        let echo = |knock: &[u8]| Echo::of(knock).unwrap().datagram(0);
        let mut echoes = Echoes::default();
        let take = |echoes: &mut Echoes, remote, packet: &[u8], is_new| {
            echoes.take(local, remote, [packet].into_iter(), || is_new)
        };
        assert!(!take(&mut echoes, here, &echo(&knock), true));
        echoes.expect(here, &knock);
        assert!(!take(&mut echoes, here, &echo(&never_sent), true));
        assert!(!take(&mut echoes, here, &knock, true), "reflected");
        assert!(!take(&mut echoes, there, &echo(&knock), true));
        assert!(take(&mut echoes, here, &echo(&knock), false));
        let validated = |echoes: &Echoes| echoes.is_validated(local, here);
        assert!(!validated(&echoes), "noq knows it already");
        assert!(take(&mut echoes, here, &echo(&knock), true));
        assert!(validated(&echoes) && !echoes.is_validated(None, here));
        assert!(!echoes.is_validated(local, there));
        assert_eq!(echoes.source(here), local);
        echoes.end();
        assert!(validated(&echoes) && !take(&mut echoes, here, &echo(&knock), true));
        echoes.forget();
        assert!(!validated(&echoes));
    }
}
