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

/// Connects to the first of the host's addresses that answers; they share the time there is. Before them comes who
/// has answered in the place of a server that was lost, and after them where that was or may be.
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
    known.extend(transfer.announced.borrow().iter());
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
    let answered = transfer.answered.borrow().clone();
    let (addresses, named) = candidates(&answered, found, &known).map_err(unknown)?;

    let mut last = unknown(io::ErrorKind::NotFound.into());
    let mut reason = None;
    for (index, remote) in addresses.iter().copied().enumerate() {
        let waiting = (addresses.len() - index) as u32;
        let connect_timeout = limit.saturating_sub(start.elapsed()) / waiting;
        let config = ClientConfig {
            connect_timeout,
            ..request.client.clone()
        };
        let error = match C::connect(config, remote, &host).await {
            Ok(client) => return Ok((client, remote)),
            Err(error) => Error::connecting(error, remote, &host),
        };
        // Who may be another one has no say in why there is no connection.
        if !named.contains(&remote) && transfer.remote.get() != Some(remote) {
            last = error;
            continue;
        }
        let error = reason.insert(error);
        // Anything else, a bad certificate say, is the answer; another address would only hide it.
        if !matches!(
            error,
            Error::Refused(_)
                | Error::Unreachable { .. }
                | Error::Timeout(_)
                | Error::Interface { .. }
                | Error::NoInterface(_)
        ) {
            break;
        }
    }
    Err(reason.unwrap_or(last))
}

/// Where to look for a server: who has `answered`, where its name says, and then where it was `known`, since a name
/// does not follow every move, and may not be found at all. And those of the name alone.
fn candidates(
    answered: &[SocketAddr],
    found: io::Result<Vec<SocketAddr>>,
    known: &[SocketAddr],
) -> io::Result<(Vec<SocketAddr>, Vec<SocketAddr>)> {
    let named = match found {
        Err(_) if !known.is_empty() || !answered.is_empty() => Vec::new(),
        found => found?,
    };
    let mut addresses = Vec::new();
    for address in [answered, &named, known].concat() {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok((addresses, named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_looked_for_where_its_name_says_and_where_it_was() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (old, new) = (address("10.1.0.2:443"), address("10.1.0.3:443"));
        let ok = |found: &[SocketAddr], known: &[SocketAddr]| {
            candidates(&[], Ok(found.to_vec()), known).unwrap().0
        };
        assert_eq!(ok(&[old, new], &[]), [old, new]);
        assert_eq!(ok(&[old], &[new, new, old]), [old, new]);
        assert_eq!(ok(&[new, old], &[old]), [new, old]);
        let lost = || Err(io::ErrorKind::TimedOut.into());
        assert_eq!(candidates(&[], lost(), &[new]).unwrap().0, [new]);
        let (all, named) = candidates(&[new], Ok(vec![old]), &[old, new]).unwrap();
        assert_eq!((all, named), (vec![new, old], vec![old]));
        let error = candidates(&[], lost(), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
