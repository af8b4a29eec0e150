//! Opens a connection: handshakes over one interface or several, each with a socket and an endpoint of its
//! own, so that those that come to nothing leave no trace in the connection. `proto::first_path` decides.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::config::ClientConfig;
use crate::error::ConnectError;
use crate::net::address::mapped;
use crate::net::{Answer, Bind, Local, Sockets, mtu, refused};
use crate::proto::first_path::{Failure, Race, Step};
use crate::time::sleep_until;
use crate::{tls, transport};

/// A connection whose handshake is complete.
pub(super) struct Opened {
    pub(super) connection: noq::Connection,
    pub(super) endpoint: noq::Endpoint,
    pub(super) sockets: Sockets,
    pub(super) answers: mpsc::Receiver<Answer>,
    /// The local addresses that there are sockets for. The first one is that of the first path.
    pub(super) locals: Vec<Local>,
    /// The largest UDP payload that is worth trying, bytes.
    pub(super) largest: u16,
}

/// Connects from one of `locals`, of which the first is preferred. The others have sockets in the end, too;
/// but for those that cannot, as an IPv6 address that is still being checked (RFC 4862 §5.4).
///
/// # Errors
/// See [`ConnectError`]. The reason of the attempt that tells most, if several have failed.
pub(super) async fn open(
    config: &ClientConfig,
    locals: Vec<Local>,
    remote: SocketAddr,
    server_name: &str,
) -> Result<Opened, ConnectError> {
    let crypto = Arc::new(tls::client_config(&config.trust)?);
    let binds: Vec<Bind> = locals.iter().map(Local::bind).collect();
    let largest = mtu::largest(&binds, remote);
    let connect = |sockets, answers| {
        let mut crypto = noq::ClientConfig::new(crypto.clone());
        crypto.transport_config(transport::client_transport(config.congestion, largest));
        handshake(crypto, sockets, answers, remote, server_name)
    };
    let reaches = |local: &&Local| local.ip.is_ipv4() == remote.is_ipv4();
    let candidates: Vec<_> = locals.iter().filter(reaches).collect();
    let race = race(&candidates, connect);
    let (winner, attempt) = tokio::time::timeout(config.connect_timeout, race)
        .await
        .map_err(|_| ConnectError::Timeout)??;

    let first = candidates[winner].clone();
    let others = locals.into_iter().filter(|local| *local != first);
    let has_socket = |local: &Local| match attempt.sockets.add(&[local.bind()]) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("cannot use {} at {}: {error}", local.interface, local.ip);
            false
        }
    };
    let others: Vec<_> = others.filter(has_socket).collect();
    Ok(Opened {
        connection: attempt.connection,
        endpoint: attempt.endpoint,
        sockets: attempt.sockets,
        answers: attempt.answers,
        locals: [vec![first], others].concat(),
        largest,
    })
}

/// A handshake that is complete.
struct Attempt {
    connection: noq::Connection,
    endpoint: noq::Endpoint,
    sockets: Sockets,
    answers: mpsc::Receiver<Answer>,
}

/// Has handshakes race from these local addresses; which one was first. Whoever drops this drops them all.
async fn race<F>(
    candidates: &[&Local],
    connect: impl Fn(Sockets, mpsc::Receiver<Answer>) -> F,
) -> Result<(usize, Attempt), ConnectError>
where
    F: Future<Output = Result<Attempt, ConnectError>>,
{
    let mut race = Race::new(Instant::now(), candidates.len());
    let mut errors = BTreeMap::new();
    let mut sockets = Vec::new();
    let mut running = FuturesUnordered::new();
    loop {
        if sockets.iter().any(Sockets::is_heard) {
            race.heard();
        }
        let now = Instant::now();
        while let Some(step) = race.poll(now) {
            let interface = match step {
                Step::Start(interface) => interface,
                Step::Fail(interface) => {
                    let error = errors.remove(&interface);
                    return Err(error.unwrap_or(ConnectError::Timeout));
                }
            };
            let local = candidates[interface];
            match Sockets::open(&[local.bind()]) {
                Ok((opened, answers)) => {
                    sockets.push(opened.clone());
                    let attempt = connect(opened, answers);
                    running.push(attempt.map(move |result| (interface, result)));
                }
                Err(error) => {
                    race.failed(now, interface, Failure::Local);
                    errors.insert(
                        interface,
                        ConnectError::socket(slice::from_ref(local), error),
                    );
                }
            }
        }
        let due = race.next_timeout(now);
        tokio::select! {
            Some((interface, result)) = running.next() => match result {
                Ok(attempt) => return Ok((interface, attempt)),
                Err(error) => {
                    let local = &candidates[interface].interface;
                    tracing::info!("no connection over {local}: {error}");
                    race.failed(Instant::now(), interface, failure(&error));
                    errors.insert(interface, error);
                }
            },
            () = sleep_until(due) => {}
        }
    }
}

fn failure(error: &ConnectError) -> Failure {
    match error {
        ConnectError::Refused => Failure::Refused,
        error if error.is_of_the_address() => Failure::Local,
        _ => Failure::Answered,
    }
}

/// A handshake over the only one of these sockets.
async fn handshake(
    crypto: noq::ClientConfig,
    sockets: Sockets,
    answers: mpsc::Receiver<Answer>,
    remote: SocketAddr,
    server_name: &str,
) -> Result<Attempt, ConnectError> {
    let endpoint = noq::Endpoint::new_with_abstract_socket(
        transport::config(),
        None,
        sockets.for_endpoint(),
        Arc::new(noq::TokioRuntime),
    )?;
    let handle = sockets.handle(remote)?;
    let connecting = endpoint
        .connect_with(crypto, mapped(remote), server_name)
        .map_err(|error| ConnectError::Protocol(error.into()))?;
    let connection = tokio::select! {
        connected = connecting => connected?,
        () = refused(handle, remote) => return Err(ConnectError::Refused),
    };
    Ok(Attempt {
        connection,
        endpoint,
        sockets,
        answers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Identity, Trust};

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_is_left_out() {
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let crypto = Arc::new(tls::server_config(&identity).unwrap());
        let config = noq::ServerConfig::with_crypto(crypto);
        let server = noq::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let remote = server.local_addr().unwrap();
        tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            connection.closed().await
        });
        let local = |ip: &str| Local {
            interface: "lo".into(),
            ip: ip.parse().unwrap(),
            index: None,
        };
        let config = ClientConfig {
            trust: Trust::Insecure,
            ..ClientConfig::default()
        };
        // Nobody has these.
        let [missing, other] = ["192.0.2.7", "192.0.2.8"].map(local);
        let locals = vec![missing.clone(), local("127.0.0.3"), other.clone()];
        let opened = open(&config, locals, remote, "localhost").await.unwrap();
        assert_eq!(opened.locals, [local("127.0.0.3")]);
        assert_eq!(opened.sockets.locals().len(), 1);

        let none = open(&config, vec![missing, other], remote, "localhost").await;
        let error = none.err().expect("there is none to connect from");
        assert!(matches!(error, ConnectError::Interface { .. }), "{error}");
    }
}
