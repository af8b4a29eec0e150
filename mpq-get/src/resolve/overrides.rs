//! The command line's overrides: what is typed for them, and what they make of a host and port.

use std::net::IpAddr;
use std::str::FromStr;

/// Addresses for a host and port: `HOST:PORT:ADDR[,ADDR]...`, where `*` as host stands for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    host: String,
    port: u16,
    addresses: Vec<IpAddr>,
}

/// Another host and port for a host and port: `HOST1:PORT1:HOST2:PORT2`. An empty `HOST1` or
/// `PORT1` stands for all, an empty `HOST2` or `PORT2` for what is in the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectTo {
    from: (Option<String>, Option<u16>),
    to: (Option<String>, Option<u16>),
}

/// Text that is no override.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct BadOverride(&'static str);

/// Where to connect to, regardless of DNS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Of `--resolve`; the last one that names the host counts, then the last one for all.
    pub resolve: Vec<Resolve>,
    /// Of `--connect-to`; the first one that matches counts.
    pub connect_to: Vec<ConnectTo>,
}

impl FromStr for Resolve {
    type Err = BadOverride;

    fn from_str(text: &str) -> Result<Resolve, BadOverride> {
        let parse = || {
            // curl lets an entry with + expire, which makes no difference here.
            let (host, rest) = split_host(text.strip_prefix('+').unwrap_or(text))?;
            let (port, addresses) = rest.split_once(':')?;
            let addresses = addresses.split(',').map(|address| {
                let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                bare.unwrap_or(address).parse().ok()
            });
            Some(Resolve {
                host: Some(host.to_owned()).filter(|host| !host.is_empty())?,
                port: port.parse().ok()?,
                addresses: addresses.collect::<Option<_>>()?,
            })
        };
        parse().ok_or(BadOverride("HOST:PORT:ADDR[,ADDR]..."))
    }
}

impl FromStr for ConnectTo {
    type Err = BadOverride;

    fn from_str(text: &str) -> Result<ConnectTo, BadOverride> {
        let port = |text: &str| match text {
            "" => Some(None),
            _ => text.parse().ok().map(Some),
        };
        let host = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let parse = || {
            let (host1, rest) = split_host(text)?;
            let (port1, rest) = rest.split_once(':')?;
            let (host2, port2) = split_host(rest)?;
            Some(ConnectTo {
                from: (host(host1), port(port1)?),
                to: (host(host2), port(port2)?),
            })
        };
        parse().ok_or(BadOverride("HOST1:PORT1:HOST2:PORT2"))
    }
}

/// The host before the first colon, without the brackets around an IPv6 address, and the rest.
fn split_host(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(text) => {
            let (host, rest) = text.split_once(']')?;
            Some((host, rest.strip_prefix(':')?))
        }
        None => text.split_once(':'),
    }
}

impl Overrides {
    /// What `--connect-to` makes of a host and port.
    pub(super) fn target<'a>(&'a self, host: &'a str, port: u16) -> (&'a str, u16) {
        let matching = self.connect_to.iter().find(|entry| {
            let (from_host, from_port) = &entry.from;
            let same_host = |from: &String| from.eq_ignore_ascii_case(host);
            from_host.as_ref().is_none_or(same_host) && from_port.is_none_or(|from| from == port)
        });
        match matching.map(|entry| &entry.to) {
            Some((to_host, to_port)) => {
                (to_host.as_deref().unwrap_or(host), to_port.unwrap_or(port))
            }
            None => (host, port),
        }
    }

    /// What `--resolve` has for a host and port.
    pub(super) fn addresses(&self, host: &str, port: u16) -> Option<&[IpAddr]> {
        let last = |wanted: &str| {
            let same =
                |entry: &&Resolve| entry.port == port && entry.host.eq_ignore_ascii_case(wanted);
            self.resolve.iter().rev().find(same)
        };
        let entry = last(host).or_else(|| last("*"))?;
        Some(&entry.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(resolve: &[&str], connect_to: &[&str]) -> Overrides {
        Overrides {
            resolve: resolve.iter().map(|text| text.parse().unwrap()).collect(),
            connect_to: connect_to
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
        }
    }

    fn addresses(overrides: &Overrides, host: &str, port: u16) -> Option<Vec<String>> {
        let found = overrides.addresses(host, port)?;
        Some(found.iter().map(IpAddr::to_string).collect())
    }

    #[test]
    fn addresses_are_given_for_a_host_and_port() {
        let given = overrides(
            &["a:1:192.0.2.1,[2001:db8::1],2001:db8::2", "+b:1:192.0.2.2"],
            &[],
        );
        let of_a = ["192.0.2.1", "2001:db8::1", "2001:db8::2"].map(str::to_owned);
        assert_eq!(addresses(&given, "A", 1), Some(of_a.to_vec()));
        let of_b = vec!["192.0.2.2".to_owned()];
        assert_eq!(addresses(&given, "b", 1), Some(of_b));
        assert_eq!(addresses(&given, "a", 2), None);
        assert_eq!(addresses(&given, "c", 1), None);
    }

    #[test]
    fn the_last_address_given_counts_and_a_star_last() {
        let given = overrides(&["a:1:192.0.2.1", "a:1:192.0.2.2", "*:1:192.0.2.3"], &[]);
        let one = |host| addresses(&given, host, 1).unwrap().concat();
        assert_eq!(one("a"), "192.0.2.2");
        assert_eq!(one("b"), "192.0.2.3");
    }

    #[test]
    fn another_host_is_connected_to() {
        let target = |entries: &[&str], host: &str, port| {
            let given = overrides(&[], entries);
            let (host, port) = given.target(host, port);
            format!("{host} {port}")
        };
        assert_eq!(target(&["a:1:b:2"], "A", 1), "b 2");
        assert_eq!(target(&["a:1:b:2"], "a", 3), "a 3");
        assert_eq!(target(&["a:1:b:2"], "c", 1), "c 1");
        assert_eq!(target(&["::b:2"], "c", 3), "b 2");
        assert_eq!(target(&["a:1::2"], "a", 1), "a 2");
        assert_eq!(target(&["a:1:b:"], "a", 1), "b 1");
        assert_eq!(target(&["a:1:[::1]:2"], "a", 1), "::1 2");
        assert_eq!(target(&["[::1]:1:b:2"], "::1", 1), "b 2");
        assert_eq!(target(&["a:1:b:2", "::c:3"], "a", 1), "b 2");
        assert_eq!(target(&["::c:3", "a:1:b:2"], "a", 1), "c 3");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in [
            "",
            "a",
            "a:1",
            "a:1:",
            "a:1:b",
            "a:x:192.0.2.1",
            ":1:192.0.2.1",
            "a:1:192.0.2.1,",
        ] {
            assert!(text.parse::<Resolve>().is_err(), "{text}");
        }
        for text in [
            "",
            "a",
            "a:1",
            "a:1:b",
            "a:x:b:2",
            "a:1:b:x",
            "[::1:1:b:2",
            "a:1:b:2:3",
        ] {
            assert!(text.parse::<ConnectTo>().is_err(), "{text}");
        }
    }
}
