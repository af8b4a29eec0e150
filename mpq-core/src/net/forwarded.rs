//! The clients of a server that has moved for whom a forwarder stands at an old address: noq knows them by the
//! addresses that they have, and the network by those of the forwarder's sockets.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::proto::forward::{self, ForwardKey};

/// Those of a server's clients that are forwarded.
#[derive(Debug, Default)]
pub(super) struct Forwarded {
    key: Option<ForwardKey>,
    /// Where what is for a client goes: nowhere, as long as nobody has introduced it.
    sockets: HashMap<SocketAddr, Option<SocketAddr>>,
    /// Whose socket it is.
    clients: HashMap<SocketAddr, SocketAddr>,
    /// The clients by the addresses that introductions name. For one that came by way of an earlier forwarder, that is
    /// the forwarder's socket.
    names: HashMap<SocketAddr, SocketAddr>,
}

impl Forwarded {
    /// Whether nobody is.
    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The server has moved. Of these clients each is forwarded as soon as it is introduced.
    pub(super) fn expect(&mut self, key: ForwardKey, clients: &[SocketAddr]) {
        let name = |client| forward::name(self.name(client));
        let names = clients.iter().map(|client| (name(*client), *client));
        let names = names.collect();
        *self = Self {
            key: Some(key),
            sockets: clients.iter().map(|client| (*client, None)).collect(),
            clients: HashMap::new(),
            names,
        };
    }

    /// A client is gone: whoever has its address later is itself there.
    pub(super) fn end(&mut self, client: SocketAddr) {
        if let Some(Some(socket)) = self.sockets.remove(&client) {
            self.clients.remove(&socket);
        }
        self.names.retain(|_, of| *of != client);
    }

    /// By what address the network knows a client.
    pub(super) fn name(&self, client: SocketAddr) -> SocketAddr {
        match self.sockets.get(&client) {
            Some(Some(socket)) => *socket,
            _ => client,
        }
    }

    /// Whether a packet is an introduction.
    pub(super) fn is_introduction(&self, packet: &[u8]) -> bool {
        let key = self.key.as_ref();
        key.is_some_and(|key| key.introduced(packet).is_some())
    }

    /// Whether a packet that came from `socket` is an introduction. The first one counts: who repeats it from elsewhere
    /// takes no client away.
    pub(super) fn introduce(&mut self, socket: SocketAddr, packet: &[u8]) -> bool {
        let Some(name) = self.key.as_ref().and_then(|key| key.introduced(packet)) else {
            return false;
        };
        if let Some(client) = self.names.get(&name)
            && let Some(unknown @ None) = self.sockets.get_mut(client)
        {
            *unknown = Some(socket);
            self.clients.insert(socket, *client);
        }
        true
    }

    /// Where what is for there goes; `None` if nowhere.
    pub(super) fn socket(&self, to: SocketAddr) -> Option<SocketAddr> {
        self.sockets.get(&to).copied().unwrap_or(Some(to))
    }

    /// From whom it is what came from there.
    pub(super) fn client(&self, from: SocketAddr) -> SocketAddr {
        self.clients.get(&from).copied().unwrap_or(from)
    }

    /// Whether somebody forwards for this client.
    pub(super) fn is_introduced(&self, client: SocketAddr) -> bool {
        matches!(self.sockets.get(&client), Some(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8) -> SocketAddr {
        ([10, 0, 0, host], 443).into()
    }

    #[test]
    fn who_is_introduced_is_where_the_forwarder_is() {
        let key = ForwardKey::new(&[1; 32]);
        let mut forwarded = Forwarded::default();
        assert!(!forwarded.introduce(at(9), &key.introduction(at(1), 0)));
        forwarded.expect(key.clone(), &[at(1), at(2)]);
        assert_eq!(forwarded.socket(at(1)), None, "it is not there any more");
        assert_eq!(forwarded.socket(at(3)), Some(at(3)), "it is not forwarded");
        assert!(!forwarded.introduce(at(9), b"anything else"));
        assert!(forwarded.introduce(at(9), &key.introduction(at(1), 0)));
        assert!(forwarded.introduce(at(8), &key.introduction(at(1), 0)));
        assert!(forwarded.introduce(at(8), &key.introduction(at(3), 0)));
        let ends = |client| (forwarded.socket(client), forwarded.is_introduced(client));
        assert_eq!(ends(at(1)), (Some(at(9)), true));
        assert_eq!(ends(at(2)), (None, false));
        assert_eq!(forwarded.client(at(9)), at(1));
        assert_eq!(forwarded.client(at(8)), at(8));
    }

    #[test]
    fn a_client_of_the_same_link_is_introduced_though_its_scope_is_not_told() {
        let key = ForwardKey::new(&[1; 32]);
        let client = "[fe80::1%2]:50000".parse().unwrap();
        let mut forwarded = Forwarded::default();
        forwarded.expect(key.clone(), &[client]);
        assert!(forwarded.introduce(at(9), &key.introduction(client, 0)));
        assert_eq!(forwarded.socket(client), Some(at(9)));
        assert_eq!(forwarded.client(at(9)), client);
    }

    #[test]
    fn after_another_move_a_forwarder_forwards_for_the_one_before() {
        let [first, second] = [[1; 32], [2; 32]].map(|secret| ForwardKey::new(&secret));
        let mut forwarded = Forwarded::default();
        forwarded.expect(first.clone(), &[at(1)]);
        forwarded.introduce(at(9), &first.introduction(at(1), 0));
        assert_eq!(forwarded.name(at(1)), at(9));
        forwarded.expect(second.clone(), &[at(1)]);
        assert_eq!(forwarded.socket(at(1)), None);
        assert!(!forwarded.introduce(at(7), &first.introduction(at(9), 0)));
        assert!(forwarded.introduce(at(8), &second.introduction(at(9), 0)));
        assert_eq!(forwarded.socket(at(1)), Some(at(8)));
        assert_eq!(forwarded.client(at(8)), at(1));
        assert_eq!(forwarded.client(at(9)), at(9), "that one is gone");
    }

    #[test]
    fn whoever_has_the_address_of_a_client_that_is_gone_is_not_forwarded() {
        let key = ForwardKey::new(&[1; 32]);
        let mut forwarded = Forwarded::default();
        forwarded.expect(key.clone(), &[at(1), at(2)]);
        forwarded.introduce(at(9), &key.introduction(at(1), 0));
        for client in [at(1), at(2)] {
            forwarded.end(client);
            forwarded.introduce(at(9), &key.introduction(client, 0));
            assert_eq!(forwarded.socket(client), Some(client));
        }
        assert_eq!(forwarded.client(at(9)), at(9));
        assert!(forwarded.is_empty());
    }
}
