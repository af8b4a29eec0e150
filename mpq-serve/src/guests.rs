//! Who is connected, over QUIC or TCP: how many there may be, and how much they may be sent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::Instant;

use crate::site::{Pace, Paces};

/// How many connections there may be at a time, and how fast they are sent bodies, in bit/s. There is no limit
/// where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) connections: Option<NonZeroUsize>,
    pub(crate) connections_of_an_address: Option<NonZeroUsize>,
    pub(crate) rate_of_a_connection: Option<NonZeroU64>,
    pub(crate) rate_of_an_address: Option<NonZeroU64>,
    pub(crate) rate: Option<NonZeroU64>,
}

/// Why somebody cannot come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("refused: there are {0} connections, as many as may be")]
    Server(NonZeroUsize),
    #[error("refused: this address has {0} connections, as many as it may have")]
    Address(NonZeroUsize),
}

/// All that are connected.
#[derive(Debug)]
pub(crate) struct Guests {
    limits: Limits,
    /// What all share.
    pace: Option<Pace>,
    present: Mutex<Present>,
}

#[derive(Debug, Default)]
struct Present {
    count: usize,
    by_address: HashMap<IpAddr, OfAddress>,
}

/// Those of one address.
#[derive(Debug)]
struct OfAddress {
    count: usize,
    pace: Option<Pace>,
}

/// One connection, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Guest {
    all: Arc<Guests>,
    address: IpAddr,
    /// How fast it is sent bodies, all together.
    pub(crate) paces: Paces,
}

impl Guests {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            pace: limits.rate.map(pace),
            present: Mutex::default(),
        }
    }

    /// Whether there is room for a client of this address, which it may not have proved yet.
    ///
    /// # Errors
    /// There is none, and why.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), Full> {
        self.room(&self.present(), host(address))
    }

    /// A client has come from this address.
    ///
    /// # Errors
    /// There is no room for it, and why.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Guest, Full> {
        let address = host(address);
        let limits = &self.limits;
        let mut present = self.present();
        self.room(&present, address)?;
        present.count += 1;
        let of_address = present
            .by_address
            .entry(address)
            .or_insert_with(|| OfAddress {
                count: 0,
                pace: limits.rate_of_an_address.map(pace),
            });
        of_address.count += 1;
        let mut paces = Paces::default();
        paces.extend(limits.rate_of_a_connection.map(pace));
        paces.extend(of_address.pace.clone());
        paces.extend(self.pace.clone());
        Ok(Guest {
            all: self.clone(),
            address,
            paces,
        })
    }

    fn room(&self, present: &Present, address: IpAddr) -> Result<(), Full> {
        let of_address = present.by_address.get(&address).map_or(0, |of| of.count);
        let is_full = |limit: &NonZeroUsize, count| count >= limit.get();
        let Limits {
            connections,
            connections_of_an_address,
            ..
        } = self.limits;
        if let Some(limit) = connections.filter(|limit| is_full(limit, present.count)) {
            return Err(Full::Server(limit));
        }
        match connections_of_an_address.filter(|limit| is_full(limit, of_address)) {
            Some(limit) => Err(Full::Address(limit)),
            None => Ok(()),
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().expect("nobody panics")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut present = self.all.present();
        present.count -= 1;
        if let Some(of_address) = present.by_address.get_mut(&self.address) {
            of_address.count -= 1;
            if of_address.count == 0 {
                present.by_address.remove(&self.address);
            }
        }
    }
}

fn pace(rate: NonZeroU64) -> Pace {
    Pace::new(rate, Instant::now())
}

/// What counts as one address: of IPv6 the prefix of 64 bits, since a host may have all the rest (RFC 4291 §2.5.1).
fn host(address: IpAddr) -> IpAddr {
    const PREFIX: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & PREFIX).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn there_are_as_many_as_may_be_until_one_leaves() {
        let [two, three] = [2, 3].map(|count| NonZeroUsize::new(count).unwrap());
        let guests = Arc::new(Guests::new(Limits {
            connections: Some(three),
            connections_of_an_address: Some(two),
            ..Limits::default()
        }));
        let enter = |address: &str| guests.enter(ip(address));
        let first = enter("192.0.2.1").unwrap();
        // The same one.
        let _second = enter("::ffff:192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.1").err(), Some(Full::Address(two)));
        assert_eq!(guests.check(ip("192.0.2.1")), Err(Full::Address(two)));
        assert_eq!(guests.check(ip("192.0.2.2")), Ok(()));
        let third = enter("2001:db8::1").unwrap();
        for address in ["192.0.2.1", "192.0.2.2", "2001:db8::2"] {
            assert_eq!(enter(address).err(), Some(Full::Server(three)));
        }
        drop(first);
        let _fourth = enter("192.0.2.1").unwrap();
        drop(third);
        assert_eq!(
            guests.present().by_address.len(),
            1,
            "nothing is left of it"
        );
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let one = NonZeroUsize::new(1).unwrap();
        let guests = Arc::new(Guests::new(Limits {
            connections_of_an_address: Some(one),
            ..Limits::default()
        }));
        let _first = guests.enter(ip("2001:db8::1")).unwrap();
        let full = guests.enter(ip("2001:db8::ffff:0:0:1")).err();
        assert_eq!(full, Some(Full::Address(one)));
        assert!(guests.enter(ip("2001:db8:0:1::1")).is_ok());
    }
}
