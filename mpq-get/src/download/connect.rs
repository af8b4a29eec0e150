//! Finding the server: which addresses are tried, in which order, and when (RFC 8305, "Happy Eyeballs").

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use mpq_core::client::ClientConfig;
use mpq_core::proto::policy::acceptable;

use tokio::time::sleep;

use super::request::DownloadRequest;
use super::transfer::Transfer;
use crate::error::Error;
use crate::resolve::look_up;
use crate::transport::Connection;

/// How long one address is waited for before another one is tried as well (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the first of the host's addresses that answers. Before them comes who
/// has answered in the place of a server that was lost, and after them where that was or may be. One begins when
/// the one before has failed, or has not answered for a moment; that one goes on.
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

    let attempt = |remote: SocketAddr| {
        let config = ClientConfig {
            connect_timeout: limit.saturating_sub(start.elapsed()),
            ..request.client.clone()
        };
        let connecting = C::connect(config, remote, &host);
        async move { (remote, connecting.await) }
    };
    let mut last = unknown(io::ErrorKind::NotFound.into());
    let mut reason = None;
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        if running.is_empty() {
            let Some(next) = waiting.next() else { break };
            running.push(attempt(next));
        }
        let delay = async {
            match waiting.len() {
                0 => pending().await,
                _ => sleep(ATTEMPT_DELAY).await,
            }
        };
        let ended = tokio::select! {
            ended = running.next() => ended,
            () = delay => None,
        };
        // One of them has failed, or does not answer.
        running.extend(waiting.next().map(&attempt));
        let Some((remote, ended)) = ended else {
            continue;
        };
        let error = match ended {
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
    let named = interleaved(&named);
    let mut addresses = Vec::new();
    for address in [answered, &named, known].concat() {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok((addresses, named))
}

/// The same addresses, of one family and the other in turns, each in its order (RFC 8305 §4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let is_first = |address: &&SocketAddr| address.is_ipv4() == first;
    let mut ones = addresses.iter().filter(is_first);
    let mut others = addresses.iter().filter(|address| !is_first(address));
    let mut all = Vec::with_capacity(addresses.len());
    while all.len() < addresses.len() {
        all.extend(ones.next());
        all.extend(others.next());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let address = |text: &&str| text.parse::<SocketAddr>().unwrap();
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "0.0.0.1:1", "0.0.0.2:1"];
        let all: Vec<_> = all.iter().map(address).collect();
        let order = |first: usize| match interleaved(&all[first..])[..] {
            [one, two, ..] => [one, two],
            _ => unreachable!("there are several"),
        };
        assert_eq!(order(0), [all[0], all[3]]);
        assert_eq!(order(3), [all[3], all[4]]);
        assert_eq!(interleaved(&all).len(), all.len());
        assert_eq!(interleaved(&[]), []);
    }

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
