//! How large a datagram may be tried towards an address: what the interface there carries, as the
//! kernel knows. Path MTU discovery (RFC 9000 §14.3) finds out what the whole way carries.

use std::net::SocketAddr;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::IpMtu;

use super::socket::Bind;

/// Without any knowledge: what Ethernet carries of IPv6, less room for a tunnel.
const DEFAULT_PAYLOAD: u16 = 1452;
/// The most, bytes. The kernel takes 64 KiB at once, and noq hands it ten datagrams.
const LARGEST_TRIED: u16 = 6550;

/// The largest UDP payload that is worth trying from one of these to `remote`, bytes.
pub(crate) fn largest<'a>(binds: impl IntoIterator<Item = &'a Bind>, remote: SocketAddr) -> u16 {
    let payload = binds.into_iter().filter_map(|bind| payload(bind, remote));
    payload.max().unwrap_or(DEFAULT_PAYLOAD).min(LARGEST_TRIED)
}

fn payload(bind: &Bind, remote: SocketAddr) -> Option<u16> {
    let any_port = Bind {
        address: SocketAddr::new(bind.address.ip(), 0),
        ..bind.clone()
    };
    let socket = any_port.open().ok()?;
    socket.connect(remote).ok()?;
    let mtu = getsockopt(&socket, IpMtu).ok()?;
    let headers = match remote {
        SocketAddr::V4(_) => 20 + 8,
        SocketAddr::V6(_) => 40 + 8,
    };
    u16::try_from(mtu - headers).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_more_than_anybody_wants() {
        for ip in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(ip.parse().unwrap(), 9);
            let bind = Bind::from(address);
            assert!(payload(&bind, address).unwrap() > LARGEST_TRIED, "{ip}");
            assert_eq!(largest([&bind], address), LARGEST_TRIED);
        }
    }

    #[test]
    fn without_a_route_it_is_what_anything_carries() {
        let bind = Bind::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        let far = SocketAddr::from(([192, 0, 2, 1], 9));
        assert_eq!(largest([&bind], far), DEFAULT_PAYLOAD);
        assert_eq!(largest([], far), DEFAULT_PAYLOAD);
    }
}
