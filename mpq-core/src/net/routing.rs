//! What the kernel would do: the source address of datagrams that nobody has bound to one. It follows the
//! routing table, and RFC 6724 where an interface has several addresses: none that is deprecated or
//! still being checked, and of the scope, prefix and kind (temporary or not) that suits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Nothing is sent there.
const PORT: u16 = 443;
/// Addresses of nobody, for the way to anybody (RFC 5737, RFC 3849).
const ANYBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ANYBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The address that the kernel sends from to `remote`, by its routing table and RFC 6724. Nothing is sent.
///
/// # Errors
/// There is no route (`NetworkUnreachable`, most often), or the kernel has no more sockets.
pub fn source(remote: SocketAddr) -> io::Result<IpAddr> {
    try_source(remote, None)
}

/// The address that datagrams to `remote` come from, if they leave by `device`, or by whichever the routing
/// table says. To any address if `remote` is unspecified. `None` if there is no route.
pub(super) fn source_by(remote: IpAddr, device: Option<&str>) -> Option<IpAddr> {
    let remote = match remote {
        IpAddr::V4(ip) if ip.is_unspecified() => ANYBODY_V4.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => ANYBODY_V6.into(),
        ip => ip,
    };
    let source = try_source(SocketAddr::new(remote, PORT), device).ok();
    source.filter(|ip| !ip.is_unspecified())
}

/// A socket of UDP that is connected sends nothing, and has an address.
fn try_source(remote: SocketAddr, device: Option<&str>) -> io::Result<IpAddr> {
    let domain = Domain::for_address(remote);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.connect(&remote.into())?;
    let local = socket.local_addr()?.as_socket();
    local
        .map(|local| local.ip())
        .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_loopback_comes_from_there() {
        for (remote, local) in [("127.0.0.9", "127.0.0.1"), ("::1", "::1")] {
            let local = Some(local.parse().unwrap());
            let remote = remote.parse().unwrap();
            assert_eq!(source_by(remote, None), local);
            assert_eq!(source_by(remote, Some("lo")), local);
            assert_eq!(source_by(remote, Some("none")), None);
            assert_eq!(source((remote, PORT).into()).ok(), local);
        }
    }
}
