//! Which local addresses a client uses: one of each interface that is up and can reach the server's
//! address family, or those that the user named. At the start one of those that were named must be there
//! ([`usable`]), and all of them may come and go ([`changed`]). The same interfaces' addresses of the other
//! family are used as well, should the server move there.
//!
//! Of several addresses of an interface the kernel chooses, as for any socket, and so it does which interface
//! is the first one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use if_addrs::{IfAddr, Interface};

use super::routing;
use super::socket::Bind;

/// The name of the loopback interface, on which every address of 127.0.0.0/8 is local.
const LOOPBACK: &str = "lo";

/// A local address to open paths from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Interface name, such as `eth0`.
    pub interface: String,
    /// The address that datagrams leave from.
    pub ip: IpAddr,
    /// The interface's number, if it has one: it is another once it was removed and made anew.
    pub index: Option<u32>,
}

impl Local {
    /// The socket for this address: any free port, bound to the interface so that it leaves by
    /// it whatever the routing table prefers.
    pub fn bind(&self) -> Bind {
        Bind {
            address: SocketAddr::new(self.ip, 0),
            device: Some(self.interface.clone()),
            shared: false,
        }
    }
}

/// Why there is no usable interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// An interface or address that was asked for cannot be used.
    #[error("interface {name}: {reason}")]
    Unusable {
        /// What the user named.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing is up that has an address of the server's family.
    #[error("no interface is up that has an {family} address")]
    None {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The operating system would not list its interfaces.
    #[error("cannot list the network interfaces: {0}")]
    List(#[from] io::Error),
}

/// The local addresses to reach `server` from: those in `wanted` (interface names or IP addresses), in that
/// order, or all usable ones, that which the routing table would choose before the others; and after them
/// those of the other family. The first one is to carry the handshake.
///
/// # Errors
/// If all wanted interfaces are unknown, down, or without an address of the family, what is wrong with the first one;
/// or if there is none at all.
pub fn usable(server: IpAddr, wanted: &[String]) -> Result<Vec<Local>, InterfaceError> {
    let all = if_addrs::get_if_addrs()?;
    let mut locals = choose(&all, server, wanted)?;
    if wanted.is_empty()
        && let Some(source) = routing::source_by(server, None)
    {
        put_first(&mut locals, &all, source);
    }
    locals.extend(remaining(&all, of_other_family(server), wanted, &[]));
    Ok(locals)
}

/// Those in `wanted` that [`usable`] leaves out, though it has others, and why.
pub(crate) fn left_out(server: IpAddr, wanted: &[String]) -> Vec<(String, String)> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let left_out = |asked| match asked {
        Err(InterfaceError::Unusable { name, reason }) => Some((name, reason)),
        _ => None,
    };
    asked(&all, server, wanted).filter_map(left_out).collect()
}

/// Puts the interface that has this address before the others.
fn put_first(locals: &mut [Local], all: &[Interface], source: IpAddr) {
    let by = all.iter().find(|i| i.ip() == source);
    let preferred = locals
        .iter()
        .position(|l| by.is_some_and(|by| l.interface == by.name));
    if let Some(index) = preferred {
        locals[..=index].rotate_right(1);
    }
}

/// As [`usable`], of those that are there now, be it none. An address that is `used` stays the
/// choice of its interface for as long as it is there, whatever else the interface has got.
fn present(server: IpAddr, wanted: &[String], used: &[Local]) -> io::Result<Vec<Local>> {
    let all = if_addrs::get_if_addrs()?;
    let of = |server| remaining(&all, server, wanted, used);
    Ok([of(server), of(of_other_family(server))].concat())
}

/// What has become of the addresses in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Those that are not there any more.
    pub(crate) gone: Vec<Local>,
    /// Those that are there now, and whether they are new.
    pub(crate) present: Vec<(Local, bool)>,
}

/// Compares the addresses that are `used` with those that are [`present`].
///
/// # Errors
/// If the operating system does not list its interfaces.
pub(crate) fn changed(server: IpAddr, wanted: &[String], used: &[Local]) -> io::Result<Change> {
    let present = present(server, wanted, used)?;
    let gone = used.iter().filter(|local| !present.contains(local));
    let gone = gone.cloned().collect();
    let present = present.into_iter().map(|local| {
        let is_new = !used.contains(&local);
        (local, is_new)
    });
    let present = present.collect();
    Ok(Change { gone, present })
}

/// The addresses by which everybody on one of this host's networks is reached: the last one of each, and
/// the first one, which some hosts take for the same (RFC 1122 §3.3.6); none if the operating system does
/// not list its interfaces.
pub(crate) fn broadcasts() -> Vec<Ipv4Addr> {
    broadcasts_of(&if_addrs::get_if_addrs().unwrap_or_default())
}

fn broadcasts_of(all: &[Interface]) -> Vec<Ipv4Addr> {
    let networks = all.iter().filter_map(|interface| match &interface.addr {
        // Of two addresses or one, none is everybody's (RFC 3021).
        IfAddr::V4(v4) if v4.prefixlen < 31 => Some((v4.ip, v4.netmask, v4.broadcast)),
        _ => None,
    });
    let broadcasts = networks.flat_map(|(ip, mask, broadcast)| {
        [
            Some(ip | !mask),
            Some(ip & mask),
            broadcast.filter(|b| *b != ip),
        ]
    });
    broadcasts.flatten().collect()
}

/// An address that asks of an interface what the server's does, but for its family.
fn of_other_family(server: IpAddr) -> IpAddr {
    match (server.is_ipv4(), server.is_loopback()) {
        (true, true) => Ipv6Addr::LOCALHOST.into(),
        (true, false) => Ipv6Addr::UNSPECIFIED.into(),
        (false, true) => Ipv4Addr::LOCALHOST.into(),
        (false, false) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn choose(
    all: &[Interface],
    server: IpAddr,
    wanted: &[String],
) -> Result<Vec<Local>, InterfaceError> {
    if !wanted.is_empty() {
        let (locals, left_out): (Vec<_>, Vec<_>) =
            asked(all, server, wanted).partition(Result::is_ok);
        let first = left_out.into_iter().find_map(Result::err);
        return match first {
            Some(error) if locals.is_empty() => Err(error),
            _ => Ok(locals.into_iter().flatten().collect()),
        };
    }
    let locals = every(all, server, &[]);
    if locals.is_empty() {
        return Err(InterfaceError::None {
            family: family(server),
        });
    }
    Ok(locals)
}

/// What becomes of each wanted one. An address of the other family serves only if there is something of the
/// server's, too.
fn asked<'a>(
    all: &'a [Interface],
    server: IpAddr,
    wanted: &'a [String],
) -> impl Iterator<Item = Result<Local, InterfaceError>> + 'a {
    let other = move |name: &String| {
        let ip = name.parse::<IpAddr>();
        ip.is_ok_and(|ip| ip.is_ipv4() != server.is_ipv4())
    };
    let several = wanted.iter().any(|name| !other(name));
    let names = wanted.iter().filter(move |name| !several || !other(name));
    names.map(move |name| named(all, server, name, &[]))
}

fn remaining(all: &[Interface], server: IpAddr, wanted: &[String], used: &[Local]) -> Vec<Local> {
    if wanted.is_empty() {
        return every(all, server, used);
    }
    let named = |name: &String| named(all, server, name, used).ok();
    wanted.iter().filter_map(named).collect()
}

/// One address of every interface that suits: a second one of the same link adds nothing.
fn every(all: &[Interface], server: IpAddr, used: &[Local]) -> Vec<Local> {
    let mut locals: Vec<Local> = Vec::new();
    for interface in all.iter().filter(|i| suits(i, server)) {
        if !locals.iter().any(|l| l.interface == interface.name) {
            locals.extend(one_of(all, server, &interface.name, used));
        }
    }
    locals
}

/// The address of an interface to use: the one that is used already, or the kernel's choice; its first, if
/// that has none.
fn one_of(all: &[Interface], server: IpAddr, name: &str, used: &[Local]) -> Option<Local> {
    let mut addresses = all.iter().filter(|i| i.name == name && is_fit(i, server));
    let local = |i: &Interface| Local {
        interface: i.name.clone(),
        ip: i.ip(),
        index: i.index,
    };
    let in_use = |i: &&Interface| used.contains(&local(i));
    if let Some(used) = addresses.clone().find(in_use) {
        return Some(local(used));
    }
    // An interface with one address has no choice.
    let choice = addresses.clone().nth(1);
    let choice = choice.and_then(|_| routing::source_by(server, Some(name)));
    addresses
        .clone()
        .find(|i| Some(i.ip()) == choice)
        .or_else(|| addresses.next())
        .map(local)
}

fn named(
    all: &[Interface],
    server: IpAddr,
    name: &str,
    used: &[Local],
) -> Result<Local, InterfaceError> {
    let unusable = |reason: String| InterfaceError::Unusable {
        name: name.to_owned(),
        reason,
    };
    if let Ok(ip) = name.parse::<IpAddr>() {
        if ip.is_ipv4() != server.is_ipv4() {
            return Err(unusable(format!(
                "the server's address {server} is not of its family"
            )));
        }
        let (interface, index) = match all.iter().find(|i| i.ip() == ip) {
            Some(interface) if !interface.is_oper_up() => {
                return Err(unusable(format!(
                    "its interface {} is down",
                    interface.name
                )));
            }
            Some(interface) => (interface.name.clone(), interface.index),
            None if ip.is_loopback() => (LOOPBACK.to_owned(), None),
            None => return Err(unusable("no interface has this address".into())),
        };
        return Ok(Local {
            interface,
            ip,
            index,
        });
    }
    if !all.iter().any(|i| i.name == name) {
        let mut names: Vec<_> = all.iter().map(|i| i.name.as_str()).collect();
        names.dedup();
        return Err(unusable(format!(
            "there is none of this name; there are {}",
            names.join(", ")
        )));
    }
    one_of(all, server, name, used)
        .ok_or_else(|| unusable(format!("it is down or has no {} address", family(server))))
}

/// Whether an interface nobody named is worth a path to this server.
fn suits(interface: &Interface, server: IpAddr) -> bool {
    is_fit(interface, server) && interface.is_loopback() == server.is_loopback()
}

/// Whether datagrams to the server can leave from this address. An interface counts as up if Linux
/// says that it runs (`IFF_RUNNING`), which loopback and tunnels do as well.
fn is_fit(interface: &Interface, server: IpAddr) -> bool {
    interface.is_oper_up()
        && interface.ip().is_ipv4() == server.is_ipv4()
        && !interface.is_link_local()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use if_addrs::{IfOperStatus, Ifv4Addr, Ifv6Addr};

    fn interface(name: &str, ip: &str, oper_status: IfOperStatus) -> Interface {
        let addr = match ip.parse().unwrap() {
            IpAddr::V4(ip) => IfAddr::V4(Ifv4Addr {
                ip,
                netmask: [255, 255, 255, 0].into(),
                prefixlen: 24,
                broadcast: None,
            }),
            IpAddr::V6(ip) => IfAddr::V6(Ifv6Addr {
                ip,
                netmask: ip,
                prefixlen: 64,
                broadcast: None,
            }),
        };
        Interface {
            name: name.into(),
            addr,
            index: None,
            oper_status,
            is_p2p: false,
        }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("lo", "127.0.0.1", IfOperStatus::Up),
            interface("eth0", "10.0.0.2", IfOperStatus::Up),
            interface("eth0", "10.0.0.3", IfOperStatus::Up),
            interface("eth0", "fe80::1", IfOperStatus::Up),
            interface("eth1", "10.0.1.2", IfOperStatus::Up),
            interface("eth1", "2001:db8::2", IfOperStatus::Up),
            interface("wlan0", "10.0.2.2", IfOperStatus::Unknown),
        ]
    }

    fn ips(locals: Result<Vec<Local>, InterfaceError>) -> Result<Vec<String>, String> {
        locals
            .map(|l| l.iter().map(|l| l.ip.to_string()).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn all_that_are_up_one_address_each_of_the_servers_family() {
        let host = host();
        let of = |server: &str| ips(choose(&host, server.parse().unwrap(), &[]));
        assert_eq!(of("10.1.0.2").unwrap(), ["10.0.0.2", "10.0.1.2"]);
        assert_eq!(of("2001:db8::9").unwrap(), ["2001:db8::2"]);
        assert_eq!(of("127.0.0.2").unwrap(), ["127.0.0.1"]);
        assert_eq!(
            of("::1").unwrap_err(),
            "no interface is up that has an IPv6 address"
        );
    }

    #[test]
    fn the_interface_that_the_routing_table_chooses_comes_first() {
        let host = host();
        let server = "10.1.0.2".parse().unwrap();
        for (source, order) in [
            // Whichever of its addresses it is.
            ("10.0.1.2", ["10.0.1.2", "10.0.0.2"]),
            ("10.0.0.3", ["10.0.0.2", "10.0.1.2"]),
            ("10.9.9.9", ["10.0.0.2", "10.0.1.2"]),
        ] {
            let mut locals = choose(&host, server, &[]).unwrap();
            put_first(&mut locals, &host, source.parse().unwrap());
            assert_eq!(ips(Ok(locals)).unwrap(), order, "{source}");
        }
    }

    #[test]
    fn named_ones_by_name_or_address() {
        let host = host();
        let of = |server: &str, name: &str| {
            ips(choose(&host, server.parse().unwrap(), &[name.to_owned()]))
        };
        assert_eq!(of("10.1.0.2", "eth1").unwrap(), ["10.0.1.2"]);
        assert_eq!(of("10.1.0.2", "10.0.0.3").unwrap(), ["10.0.0.3"]);
        assert_eq!(of("127.0.0.1", "127.0.0.3").unwrap(), ["127.0.0.3"]);
        assert!(of("10.1.0.2", "wlan0").unwrap_err().contains("down"));
        assert!(of("10.1.0.2", "10.0.2.2").unwrap_err().contains("down"));
        assert!(
            of("10.1.0.2", "ppp0")
                .unwrap_err()
                .contains("there are lo, eth0, eth1, wlan0")
        );
        assert!(
            of("10.1.0.2", "10.9.9.9")
                .unwrap_err()
                .contains("no interface has")
        );
        assert!(
            of("10.1.0.2", "2001:db8::2")
                .unwrap_err()
                .contains("family")
        );
        assert!(
            of("2001:db8::9", "eth0")
                .unwrap_err()
                .contains("no IPv6 address")
        );
    }

    #[test]
    fn of_several_those_that_are_down_or_gone_are_left_out() {
        let of = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
            ips(choose(&host(), "10.1.0.2".parse().unwrap(), &wanted))
        };
        assert_eq!(of(&["wlan0", "eth1", "ppp0"]).unwrap(), ["10.0.1.2"]);
        assert_eq!(of(&["10.9.9.9", "eth0"]).unwrap(), ["10.0.0.2"]);
        // What is wrong with the first one is told, if none is left.
        assert!(of(&["wlan0", "ppp0"]).unwrap_err().contains("down"));
    }

    #[test]
    fn an_address_of_the_other_family_is_not_asked_of_the_server() {
        let wanted = ["2001:db8::2", "eth0"].map(str::to_owned);
        let of = |server: &str| {
            let server = server.parse().unwrap();
            let first = ips(choose(&host(), server, &wanted));
            let other = remaining(&host(), of_other_family(server), &wanted, &[]);
            (first, ips(Ok(other)).unwrap())
        };
        let (first, other) = of("10.1.0.2");
        assert_eq!(first.unwrap(), ["10.0.0.2"]);
        assert_eq!(other, ["2001:db8::2"]);
        let every = |server: &str| {
            let server = of_other_family(server.parse().unwrap());
            ips(Ok(remaining(&host(), server, &[], &[]))).unwrap()
        };
        assert_eq!(every("10.1.0.2"), ["2001:db8::2"]);
        assert_eq!(every("2001:db8::9"), ["10.0.0.2", "10.0.1.2"]);
        assert_eq!(every("::1"), ["127.0.0.1"]);
    }

    #[test]
    fn what_is_gone_is_left_out_and_comes_back() {
        let wanted = ["eth1", "10.0.0.3", "wlan0"].map(str::to_owned);
        let of = |all: &[Interface]| {
            let locals = remaining(all, "10.1.0.2".parse().unwrap(), &wanted, &[]);
            ips(Ok(locals)).unwrap()
        };
        let mut host = host();
        assert_eq!(of(&host), ["10.0.1.2", "10.0.0.3"]);
        host[6].oper_status = IfOperStatus::Up;
        assert_eq!(of(&host), ["10.0.1.2", "10.0.0.3", "10.0.2.2"]);
        host.retain(|i| i.name == "lo");
        assert_eq!(of(&host), [""; 0]);
    }

    #[test]
    fn an_address_in_use_is_kept_while_it_is_there() {
        let mut host = host();
        let used = Local {
            interface: "eth0".into(),
            ip: "10.0.0.3".parse().unwrap(),
            index: None,
        };
        for wanted in [vec![], vec!["eth0".to_owned(), "eth1".to_owned()]] {
            let of = |all: &[Interface]| {
                let server = "10.1.0.2".parse().unwrap();
                ips(Ok(remaining(
                    all,
                    server,
                    &wanted,
                    std::slice::from_ref(&used),
                )))
                .unwrap()
            };
            host[2].oper_status = IfOperStatus::Up;
            assert_eq!(of(&host), ["10.0.0.3", "10.0.1.2"]);
            host[2].oper_status = IfOperStatus::Unknown;
            assert_eq!(of(&host), ["10.0.0.2", "10.0.1.2"]);
        }
    }

    #[test]
    fn everybody_on_a_network_is_known() {
        let wide = interface("eth0", "192.168.7.5", IfOperStatus::Up);
        let mut pair = interface("tun0", "10.0.0.1", IfOperStatus::Up);
        if let IfAddr::V4(v4) = &mut pair.addr {
            (v4.netmask, v4.prefixlen) = ([255, 255, 255, 254].into(), 31);
        }
        let v6 = interface("eth0", "2001:db8::5", IfOperStatus::Up);
        let expected: [Ipv4Addr; 2] = [[192, 168, 7, 255].into(), [192, 168, 7, 0].into()];
        assert_eq!(broadcasts_of(&[wide, pair, v6]), expected);
    }
}
