//! The two forms of an address: ours, and the one that noq knows.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The IPv4 form of an IPv6-mapped address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The form in which noq knows an address: IPv6, mapped where it is IPv4.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(_) => address,
    }
}
