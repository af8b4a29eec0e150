//! Which knocks are returned.
//!
//! Before the first packet of a path to where the server has knocked from, its knock goes back there from the address
//! that it came to. That proves to the server that the client can be reached at this address, so that it need not be
//! validated by a challenge first. See [`Echo`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};

use crate::proto::probe::Echo;

/// The last knock at each of our addresses, until it is returned.
#[derive(Debug, Default)]
pub(super) struct Knocks(BTreeMap<IpAddr, (SocketAddr, Echo)>);

impl Knocks {
    /// The server has knocked at `local`, from `remote`.
    pub(super) fn came(&mut self, local: IpAddr, remote: SocketAddr, echo: Echo) {
        self.0.insert(local, (remote, echo));
    }

    /// A path is about to be opened: what is to be returned before, once.
    pub(super) fn take(&mut self, local: IpAddr, remote: SocketAddr) -> Option<Echo> {
        match self.0.entry(local) {
            Entry::Occupied(last) if last.get().0 == remote => Some(last.remove().1),
            _ => None,
        }
    }

    /// The networks are others: there, a knock would tell whose it is.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::probe::KnockKey;

    #[test]
    fn the_last_knock_goes_back_once_and_only_to_where_it_came_from() {
        let [x, y]: [IpAddr; 2] = ["10.0.0.1", "10.0.1.1"].map(|ip| ip.parse().unwrap());
        let [b, c]: [SocketAddr; 2] = ["10.1.0.2:1", "10.1.0.3:1"].map(|a| a.parse().unwrap());
        let key = KnockKey::new(&[1; 32]);
        let [first, last] = [[1; 9], [2; 9]].map(|r| Echo::of(&key.knock(&r)).unwrap());
        let mut knocks = Knocks::default();
        knocks.came(x, b, first);
        knocks.came(x, b, last);
        assert_eq!(knocks.take(y, b), None, "it came to another address");
        assert_eq!(knocks.take(x, c), None, "it came from another address");
        assert_eq!(knocks.take(x, b), Some(last));
        assert_eq!(knocks.take(x, b), None, "it went back");
        knocks.came(x, b, first);
        knocks.came(x, c, last);
        assert_eq!(knocks.take(x, b), None, "the last one counts");
        knocks.forget();
        assert_eq!(knocks.take(x, c), None);
    }
}
