//! Looking up a name: in the hosts file, by DNS, by getaddrinfo.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use hickory_resolver::config::ResolveHosts;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long an answer for IPv6 is waited for when there is one for IPv4 (RFC 8305 §3).
const V6_DELAY: Duration = Duration::from_millis(50);
/// The same for IPv4. It is longer, since IPv6 may turn out not to work.
const V4_DELAY: Duration = Duration::from_millis(300);

/// The addresses of a name, for which at most `limit` is spent.
pub(super) async fn addresses_of(host: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
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

/// Asks for both families at once. When one is known, the other is not waited for much longer: there are name servers
/// that never answer for IPv6 (RFC 8305 §3).
async fn ask(resolver: &TokioResolver, host: &str) -> io::Result<Vec<IpAddr>> {
    let mut v6 = pin!(ask_for(resolver, host, RecordType::AAAA));
    let mut v4 = pin!(ask_for(resolver, host, RecordType::A));
    let (v6, v4) = tokio::select! {
        first = &mut v6 => {
            let second = within(&first, V4_DELAY, v4).await;
            (first, second)
        }
        first = &mut v4 => {
            let second = within(&first, V6_DELAY, v6).await;
            (second, first)
        }
    };
    match (v6, v4) {
        (Ok(v6), Ok(v4)) => Ok([v6, v4].concat()),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        // That there is none is known only if both say so.
        (Err(error), Err(other)) => Err(match error.kind() {
            io::ErrorKind::NotFound => other,
            _ => error,
        }),
    }
}

/// The answer for the second family, which is limited if there is one for the first.
async fn within(
    first: &io::Result<Vec<IpAddr>>,
    delay: Duration,
    second: impl Future<Output = io::Result<Vec<IpAddr>>>,
) -> io::Result<Vec<IpAddr>> {
    match first {
        Ok(_) => timeout(delay, second)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        Err(_) => second.await,
    }
}

async fn ask_for(
    resolver: &TokioResolver,
    host: &str,
    kind: RecordType,
) -> io::Result<Vec<IpAddr>> {
    let found = match resolver.lookup(host, kind).await {
        Ok(found) => found,
        Err(error) if error.is_no_records_found() => return Err(no_such_name()),
        Err(NetError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
        Err(error) => return Err(io::Error::other(error)),
    };
    let addresses = found.answers().iter().filter_map(|r| r.data.ip_addr());
    let addresses: Vec<_> = addresses.collect();
    match addresses.is_empty() {
        true => Err(no_such_name()),
        false => Ok(addresses),
    }
}

fn no_such_name() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such name")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use hickory_resolver::Resolver;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::proto::op::{Message, ResponseCode};
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::net::UdpSocket;

    use super::*;

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
                let known = query.name().to_ascii() != "gone.test.";
                // As there are some.
                if query.name().to_ascii() == "mute.test." && query.query_type() != RecordType::A {
                    continue;
                }
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

    /// One that asks this server.
    fn resolver(server: SocketAddr) -> TokioResolver {
        let mut connection = ConnectionConfig::udp();
        connection.port = server.port();
        let server = NameServerConfig::new(server.ip(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let provider = TokioRuntimeProvider::default();
        let resolver = Resolver::builder_with_config(config, provider);
        resolver.build().unwrap()
    }

    #[tokio::test]
    async fn a_server_that_is_mute_for_one_family_does_not_hold_up_the_other() {
        let resolver = resolver(name_server().await);
        let asked = tokio::time::Instant::now();
        let found = ask(&resolver, "mute.test").await.unwrap();
        assert_eq!(found, [IpAddr::from([192, 0, 2, 1])]);
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
    }

    #[tokio::test]
    async fn a_name_is_followed() {
        let resolver = resolver(name_server().await);
        for expected in ["192.0.2.1", "192.0.2.2"] {
            let found = ask(&resolver, "moved.test").await.unwrap();
            assert_eq!(found, [expected.parse::<IpAddr>().unwrap()]);
        }
        let error = ask(&resolver, "gone.test").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
