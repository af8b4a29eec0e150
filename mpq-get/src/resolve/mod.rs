//! Where to connect: the command line's overrides, and names.
//!
//! [`overrides`] are curl's `--connect-to` and `--resolve`, applied in this order. They change where
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

mod names;
pub mod overrides;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use self::names::addresses_of;
use self::overrides::Overrides;

/// The addresses to connect to for `host` and `port`, in their order; at most `limit` is spent.
///
/// # Errors
/// [`NotFound`](io::ErrorKind::NotFound) if there is no such name, and otherwise what kept us
/// from knowing.
pub async fn look_up(
    overrides: &Overrides,
    host: &str,
    port: u16,
    limit: Duration,
) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = overrides.target(host, port);
    let addresses = match overrides.addresses(host, port) {
        Some(addresses) => addresses.to_vec(),
        None => match host.parse() {
            Ok(address) => vec![address],
            Err(_) => addresses_of(host, limit).await?,
        },
    };
    let with_port = |address| SocketAddr::new(address, port);
    Ok(addresses.into_iter().map(with_port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn overrides_come_before_names() {
        let given = Overrides {
            resolve: vec!["b:2:192.0.2.1".parse().unwrap()],
            connect_to: vec!["a:1:b:2".parse().unwrap()],
        };
        let found = look_up(&given, "a", 1, LIMIT).await.unwrap();
        assert_eq!(found, ["192.0.2.1:2".parse().unwrap()]);
        let found = look_up(&given, "2001:db8::1", 3, LIMIT).await.unwrap();
        assert_eq!(found, ["[2001:db8::1]:3".parse().unwrap()]);
    }
}
