//! Where to connect: the command line's overrides, and names.
//!
//! [`Overrides`] are curl's `--connect-to` and `--resolve`, applied in this order. They change where
//! datagrams are sent, never the name in the certificate or in the request.
//!
//! A name is looked up in the hosts file, then by DNS (hickory), then by getaddrinfo, which may know
//! more (mDNS, a directory, a container's names). DNS is asked first because its answer tells a name
//! that does not exist from a server that does not answer, which decides whether to try again; and
//! because a query of ours, unlike getaddrinfo's, ends when nobody wants its answer any more.
//!
//! Nothing is kept from one look-up to the next, neither answers nor configuration: a download that
//! connects again asks again, so that it follows a name that points elsewhere by now, in another
//! network too. No TTL is outlived; caching is left to the system's name servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hickory_resolver::config::ResolveHosts;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::net::lookup_host;
use tokio::time::timeout;

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
    /// The addresses to connect to for `host` and `port`, in their order; at most `limit` is spent.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound) if there is no such name, and otherwise what kept us
    /// from knowing.
    pub async fn look_up(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = self.target(host, port);
        let addresses = match self.addresses(host, port) {
            Some(addresses) => addresses.to_vec(),
            None => match host.parse() {
                Ok(address) => vec![address],
                Err(_) => addresses_of(host, limit).await?,
            },
        };
        let with_port = |address| SocketAddr::new(address, port);
        Ok(addresses.into_iter().map(with_port).collect())
    }

    /// What `--connect-to` makes of a host and port.
    fn target<'a>(&'a self, host: &'a str, port: u16) -> (&'a str, u16) {
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
    fn addresses(&self, host: &str, port: u16) -> Option<&[IpAddr]> {
        let last = |wanted: &str| {
            let same =
                |entry: &&Resolve| entry.port == port && entry.host.eq_ignore_ascii_case(wanted);
            self.resolve.iter().rev().find(same)
        };
        let entry = last(host).or_else(|| last("*"))?;
        Some(&entry.addresses)
    }
}

/// The addresses of a name.
async fn addresses_of(host: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let listed = listed(&Hosts::from_system().unwrap_or_default(), host);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let asking = async {
        // Half of the time is left to getaddrinfo.
        let answer = timeout(limit / 2, by_dns(host)).await;
        let reason = match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(addresses) => return Ok(addresses),
            Err(reason) => reason,
        };
        match lookup_host((host, 0)).await {
            Ok(found) => Ok(found.map(|address| address.ip()).collect()),
            // Without a resolv.conf, say, it is getaddrinfo that knows why.
            Err(error) if reason.kind() == io::ErrorKind::Other => Err(error),
            Err(_) => Err(reason),
        }
    };
    timeout(limit, asking)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What the hosts file has; for one family only, mostly, which is then all there is.
fn listed(hosts: &Hosts, host: &str) -> Vec<IpAddr> {
    let Ok(name) = Name::from_utf8(host.to_ascii_lowercase()) else {
        return Vec::new();
    };
    [RecordType::AAAA, RecordType::A]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|lookup| {
            let addresses = lookup.answers().iter().filter_map(|r| r.data.ip_addr());
            addresses.collect::<Vec<_>>()
        })
        .collect()
}

/// What the servers of `/etc/resolv.conf` say.
async fn by_dns(host: &str) -> io::Result<Vec<IpAddr>> {
    let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    ask(&builder.build().map_err(io::Error::other)?, host).await
}

async fn ask(resolver: &TokioResolver, host: &str) -> io::Result<Vec<IpAddr>> {
    match resolver.lookup_ip(host).await {
        Ok(found) if found.iter().next().is_some() => Ok(found.iter().collect()),
        Ok(_) => Err(no_such_name()),
        Err(error) if error.is_no_records_found() => Err(no_such_name()),
        Err(NetError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn no_such_name() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such name")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_resolver::Resolver;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::proto::op::{Message, ResponseCode};
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::net::UdpSocket;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

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

    #[tokio::test]
    async fn overrides_come_before_names() {
        let given = overrides(&["b:2:192.0.2.1"], &["a:1:b:2"]);
        let found = given.look_up("a", 1, LIMIT).await.unwrap();
        assert_eq!(found, ["192.0.2.1:2".parse().unwrap()]);
        let found = given.look_up("2001:db8::1", 3, LIMIT).await.unwrap();
        assert_eq!(found, ["[2001:db8::1]:3".parse().unwrap()]);
    }

    #[test]
    fn the_hosts_file_is_read() {
        let mut hosts = Hosts::default();
        let text = "192.0.2.1 one both # none\n2001:db8::1 both\n192.0.2.2 one";
        hosts.read_hosts_conf(text.as_bytes()).unwrap();
        let of = |host| {
            let found = listed(&hosts, host);
            found.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("One"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(of("both"), ["2001:db8::1", "192.0.2.1"]);
        assert!(of("none").is_empty());
    }

    /// A name server that knows one name, whose address is another one each time.
    async fn name_server() -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            let mut answers = 0;
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let query = asked.queries[0].clone();
                let known = query.name().to_ascii() == "moved.test.";
                let code = if known {
                    ResponseCode::NoError
                } else {
                    ResponseCode::NXDomain
                };
                let metadata = &asked.metadata;
                let mut answer = Message::error_msg(metadata.id, metadata.op_code, code);
                if known && query.query_type() == RecordType::A {
                    answers += 1;
                    let address = RData::from(IpAddr::from([192, 0, 2, answers]));
                    answer.add_answer(Record::from_rdata(query.name().clone(), 0, address));
                }
                answer.add_query(query);
                socket
                    .send_to(&answer.to_vec().unwrap(), from)
                    .await
                    .unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_name_is_followed() {
        let server = name_server().await;
        let mut connection = ConnectionConfig::udp();
        connection.port = server.port();
        let server = NameServerConfig::new(server.ip(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let provider = TokioRuntimeProvider::default();
        let resolver = Resolver::builder_with_config(config, provider)
            .build()
            .unwrap();
        for expected in ["192.0.2.1", "192.0.2.2"] {
            let found = ask(&resolver, "moved.test").await.unwrap();
            assert_eq!(found, [expected.parse::<IpAddr>().unwrap()]);
        }
        let error = ask(&resolver, "gone.test").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
