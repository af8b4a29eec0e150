//! Where a server may send its clients (RFC 9000 §21.5 on request forgery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Ports below this are those of services that everybody knows, many of which answer datagrams.
const FIRST_USER_PORT: u16 = 1024;
/// Of those, the one that HTTP/3 has.
const HTTPS: u16 = 443;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Loopback,
    LinkLocal,
    Private,
    /// Between a provider and its customers (RFC 6598), or within an overlay network.
    Shared,
    Global,
}

impl Scope {
    /// Whether a server of this scope may name an address of `target`'s.
    fn allows(self, target: Self) -> bool {
        match self {
            Self::Loopback => target == self,
            Self::LinkLocal | Self::Private => target >= self && target != Self::Shared,
            Self::Shared | Self::Global => target >= self,
        }
    }
}

/// What a client lets a server send it to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    broadcasts: Vec<Ipv4Addr>,
}

impl Policy {
    /// These are the addresses from now on by which everybody on one of the client's networks is reached.
    pub(crate) fn set_broadcasts(&mut self, broadcasts: Vec<Ipv4Addr>) {
        self.broadcasts = broadcasts;
    }

    /// As [`acceptable`], and not to everybody on one of the client's networks.
    pub(crate) fn acceptable(&self, current: IpAddr, target: SocketAddr) -> bool {
        let is_broadcast = match target.ip().to_canonical() {
            IpAddr::V4(ip) => self.broadcasts.contains(&ip),
            IpAddr::V6(_) => false,
        };
        !is_broadcast && acceptable(current, target)
    }
}

/// Whether a server that is now at `current` may send its clients to `target`: to addresses of its
/// own scope or a wider one, so that a public server cannot reach into a client's own network, and
/// there to a port that is no other service's.
pub fn acceptable(current: IpAddr, target: SocketAddr) -> bool {
    let is_free = target.port() == HTTPS || target.port() >= FIRST_USER_PORT;
    match (scope(current), scope(target.ip())) {
        (Some(current), Some(target)) => is_free && current.allows(target),
        _ => false,
    }
}

/// The scope of a unicast address; `None` for what is not one, or leads elsewhere than it says.
fn scope(ip: IpAddr) -> Option<Scope> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => scope_v6(ip),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Option<Scope> {
    Some(match ip.octets() {
        // This network, multicast, and what is reserved, with the address of everybody (RFC 6890).
        [0, ..] | [224..=255, ..] => return None,
        [127, ..] => Scope::Loopback,
        [100, 64..128, ..] => Scope::Shared,
        _ if ip.is_link_local() => Scope::LinkLocal,
        _ if ip.is_private() => Scope::Private,
        _ => Scope::Global,
    })
}

fn scope_v6(ip: Ipv6Addr) -> Option<Scope> {
    if ip.is_multicast() {
        return None;
    }
    if ip.is_loopback() {
        return Some(Scope::Loopback);
    }
    Some(match ip.segments() {
        // Through a translator to IPv4 (RFC 6052): only to what all can reach.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return held(high, low),
        // Unspecified, translators of the client's own network, and other reserved ones (RFC 4291, RFC 8215).
        [0..0x100, ..] => return None,
        // 6to4 (RFC 3056) and Teredo (RFC 4380), whose IPv4 addresses of hosts and relays are sent to.
        [0x2002, high, low, ..] => return held(high, low),
        [0x2001, 0, ..] => return None,
        _ if ip.is_unicast_link_local() => Scope::LinkLocal,
        _ if ip.is_unique_local() => Scope::Private,
        // Site-local, which nobody has any more (RFC 3879).
        [0xfec0..0xff00, ..] => Scope::Private,
        _ => Scope::Global,
    })
}

/// The scope of an IPv6 address that holds one of IPv4, where the way there begins or ends.
fn held(high: u16, low: u16) -> Option<Scope> {
    let ip = Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    scope_v4(ip).filter(|scope| *scope == Scope::Global)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_acceptable(current: &str, target: &str) -> bool {
        acceptable(current.parse().unwrap(), target.parse().unwrap())
    }

    #[test]
    fn only_the_same_scope_or_a_wider_one() {
        let scopes = [
            ["127.0.0.1", "::1"],
            ["169.254.1.1", "fe80::1"],
            ["10.1.0.2", "fd00::1"],
            ["100.64.0.1", "100.127.255.255"],
            ["192.0.2.1", "2001:db8::1"],
        ];
        let (loopback, shared) = (0, 3);
        for (i, current) in scopes.iter().enumerate() {
            for (j, target) in scopes.iter().enumerate() {
                for (current, target) in current.iter().flat_map(|c| target.map(|t| (c, t))) {
                    let target = SocketAddr::new(target.parse().unwrap(), 443);
                    let expected = i == j || j > i && i != loopback && j != shared;
                    let found = acceptable(current.parse().unwrap(), target);
                    assert_eq!(found, expected, "{current} {target}");
                }
            }
        }
    }

    #[test]
    fn never_what_is_no_hosts_address() {
        for target in [
            "0.0.0.0:443",
            "0.1.2.3:443",
            "224.0.0.1:443",
            "240.0.0.1:443",
            "255.255.255.255:443",
            "[::]:443",
            "[::10.0.0.1]:443",
            "[::ffff:0.0.0.1]:443",
            "[::ffff:0:a00:1]:443",
            "[ff02::1]:443",
        ] {
            for current in ["10.0.0.2", "169.254.1.1", "127.0.0.1", "192.0.2.1"] {
                assert!(!is_acceptable(current, target), "{current} {target}");
            }
        }
    }

    #[test]
    fn an_address_within_another_counts() {
        for (target, expected) in [
            ("[::ffff:198.51.100.1]:443", true),
            ("[::ffff:10.0.0.1]:443", false),
            ("[64:ff9b::198.51.100.1]:443", true),
            ("[64:ff9b::10.0.0.1]:443", false),
            ("[64:ff9b::100.64.0.1]:443", false),
            ("[64:ff9b::127.0.0.1]:443", false),
            ("[64:ff9b:1::198.51.100.1]:443", false),
            ("[2002:c633:6401::1]:443", true),
            ("[2002:a00:1::1]:443", false),
            ("[2002:7f00:1::1]:443", false),
            ("[2001::1]:443", false),
            ("[fec0::1]:443", false),
        ] {
            assert_eq!(is_acceptable("192.0.2.1", target), expected, "{target}");
        }
        // Not even for who is in such a network: it is the translator's that is meant.
        assert!(!is_acceptable("10.0.0.2", "[64:ff9b::10.0.0.1]:443"));
    }

    #[test]
    fn no_other_services_port() {
        for port in [0, 1, 53, 80, 123, 442, 444, 853, 1023] {
            assert!(
                !is_acceptable("192.0.2.1", &format!("192.0.2.2:{port}")),
                "{port}"
            );
        }
        for port in [443, 1024, 4433, 65535] {
            assert!(
                is_acceptable("192.0.2.1", &format!("192.0.2.2:{port}")),
                "{port}"
            );
        }
    }

    #[test]
    fn never_to_everybody_on_a_network_of_ours() {
        let mut policy = Policy::default();
        let acceptable = |policy: &Policy, target: &str| {
            policy.acceptable("10.0.0.2".parse().unwrap(), target.parse().unwrap())
        };
        assert!(acceptable(&policy, "10.0.0.255:443"));
        policy.set_broadcasts(vec![[10, 0, 0, 255].into()]);
        assert!(!acceptable(&policy, "10.0.0.255:443"));
        assert!(!acceptable(&policy, "[::ffff:10.0.0.255]:443"));
        assert!(acceptable(&policy, "10.0.0.254:443"));
        assert!(!acceptable(&policy, "127.0.0.1:443"));
    }
}
