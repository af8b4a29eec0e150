//! Where an announcement may send a client (RFC 9000 §21.5 on request forgery).

use std::net::{IpAddr, SocketAddr};

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Loopback,
    LinkLocal,
    Private,
    Global,
}

/// Whether a server that is now at `current` may send its clients to `target`: to addresses of its
/// own scope or a wider one, so that a public server cannot reach into a client's own network.
pub fn acceptable(current: IpAddr, target: SocketAddr) -> bool {
    let wider = |current, target| match current {
        Scope::Loopback => target == Scope::Loopback,
        _ => target >= current,
    };
    match (scope(current), scope(target.ip())) {
        (Some(current), Some(target_scope)) => target.port() != 0 && wider(current, target_scope),
        _ => false,
    }
}

/// The scope of a unicast address; `None` for what is not one.
fn scope(ip: IpAddr) -> Option<Scope> {
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return None;
    }
    if ip.is_loopback() {
        return Some(Scope::Loopback);
    }
    Some(match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => return None,
        IpAddr::V4(ip) if ip.is_link_local() => Scope::LinkLocal,
        IpAddr::V4(ip) if ip.is_private() => Scope::Private,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Scope::LinkLocal,
        IpAddr::V6(ip) if ip.is_unique_local() => Scope::Private,
        _ => Scope::Global,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_scope_or_a_wider_one() {
        let scopes = [
            ["127.0.0.1", "[::1]"],
            ["169.254.1.1", "[fe80::1]"],
            ["10.1.0.2", "[fd00::1]"],
            ["192.0.2.1", "[2001:db8::1]"],
        ];
        for (i, current) in scopes.iter().enumerate() {
            for (j, target) in scopes.iter().enumerate() {
                for (current, target) in current.iter().flat_map(|c| target.map(|t| (c, t))) {
                    let current = current.trim_matches(['[', ']']).parse().unwrap();
                    let target = format!("{target}:443").parse().unwrap();
                    let expected = if i == 0 { j == 0 } else { j >= i };
                    assert_eq!(acceptable(current, target), expected, "{current} {target}");
                }
            }
        }
    }

    #[test]
    fn never_what_is_no_hosts_address() {
        for target in [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "10.0.0.1:0",
            "[ff02::1]:1",
        ] {
            assert!(
                !acceptable("10.0.0.2".parse().unwrap(), target.parse().unwrap()),
                "{target}"
            );
        }
    }
}
