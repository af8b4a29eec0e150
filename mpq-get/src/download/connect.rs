//! Finding the server: which addresses are tried, and in which order.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use mpq_core::client::ClientConfig;
use mpq_core::proto::policy::acceptable;

use super::request::DownloadRequest;
use super::transfer::Transfer;
use crate::error::Error;
use crate::resolve::look_up;
use crate::transport::Connection;

/// Connects to the first of the host's addresses that answers; they share the time there is. After
/// them come those that the server was known at.
pub(super) async fn connect<C: Connection>(
    request: &DownloadRequest,
    transfer: &Transfer,
) -> Result<(C, SocketAddr), Error> {
    let host = request.host();
    let start = Instant::now();
    let limit = request.client.connect_timeout;
    let unknown = |source| Error::Host {
        host: host.clone(),
        source,
    };
    let look_up = async |name: &str| look_up(&request.overrides, name, request.port(), limit).await;
    let mut known = Vec::from_iter(transfer.remote.get());
    known.extend(transfer.pool.borrow().iter());
    let name = transfer.name.borrow().clone().filter(|name| *name != host);
    let by_name = async {
        let (Some(name), Some(before)) = (name, transfer.remote.get()) else {
            return Vec::new();
        };
        let mut found = look_up(&name).await.unwrap_or_default();
        // Its word may send us no further than an announcement may.
        found.retain(|address| acceptable(before.ip(), *address));
        found
    };
    let (found, by_name) = tokio::join!(look_up(&host), by_name);
    known.extend(by_name);
    let addresses = candidates(found, &known).map_err(unknown)?;

    let mut last = unknown(io::ErrorKind::NotFound.into());
    for (index, remote) in addresses.iter().copied().enumerate() {
        let waiting = (addresses.len() - index) as u32;
        let connect_timeout = limit.saturating_sub(start.elapsed()) / waiting;
        let config = ClientConfig {
            connect_timeout,
            ..request.client.clone()
        };
        last = match C::connect(config, remote, &host).await {
            Ok(client) => return Ok((client, remote)),
            Err(error) => Error::connecting(error, remote, &host),
        };
        // Anything else, a bad certificate say, is the answer; another address would only hide it.
        if !matches!(
            last,
            Error::Refused(_)
                | Error::Unreachable { .. }
                | Error::Timeout(_)
                | Error::Interface { .. }
                | Error::NoInterface(_)
        ) {
            break;
        }
    }
    Err(last)
}

/// Where to look for a server: where its name says and then where it was `known`, since a name does
/// not follow every move, and may not be found at all.
fn candidates(
    found: io::Result<Vec<SocketAddr>>,
    known: &[SocketAddr],
) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = match found {
        Err(_) if !known.is_empty() => Vec::new(),
        found => found?,
    };
    for address in known {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_looked_for_where_its_name_says_and_where_it_was() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (old, new) = (address("10.1.0.2:443"), address("10.1.0.3:443"));
        let ok = |found: &[SocketAddr], known: &[SocketAddr]| {
            candidates(Ok(found.to_vec()), known).unwrap()
        };
        assert_eq!(ok(&[old, new], &[]), [old, new]);
        assert_eq!(ok(&[old], &[new, new, old]), [old, new]);
        assert_eq!(ok(&[new, old], &[old]), [new, old]);
        let lost = || Err(io::ErrorKind::TimedOut.into());
        assert_eq!(candidates(lost(), &[new]).unwrap(), [new]);
        let error = candidates(lost(), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
