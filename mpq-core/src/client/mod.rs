//! The client's end: one connection over every interface, which follows the server.

mod config;
mod driver;
mod event;
mod first_path;
mod get;
mod name;
mod opening;
mod paths;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, watch};

pub use self::config::ClientConfig;
use self::driver::Driver;
pub use self::event::{ClientEvent, InterfaceEvent, PathEvent};
use self::first_path::Opened;
pub use self::get::Body;
use self::paths::PathTable;
pub use self::paths::{PathInfo, PathState};
pub use crate::error::{Cause, ClientError, ConnectError, RequestError, TooFewStreams};
use crate::h3::{Connection, NO_ERROR, OpenStreams};
use crate::limits::FIELD_SECTION;
use crate::net::address::canonical;
use crate::net::{interfaces, monitor};
pub use crate::proto::client::Event as MigrationEvent;
use crate::transport;

/// Events that a slow reader may fall behind; a move makes about ten.
const EVENT_CAPACITY: usize = 1024;

/// In this time the last word of a connection is sent, unless no datagram can be sent at all.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(100);
/// How often to look whether it is.
const CLOSING_INTERVAL: Duration = Duration::from_millis(1);

/// A connection to a server.
pub struct Client {
    connection: noq::Connection,
    endpoint: noq::Endpoint,
    requests: h3::client::SendRequest<OpenStreams, Bytes>,
    /// The server, as URLs name it.
    authority: String,
    /// Reads nothing, so that whoever takes it has all since the start.
    events: Mutex<broadcast::Receiver<(Instant, ClientEvent)>>,
    paths: PathTable,
    failure: watch::Receiver<Option<ClientError>>,
}

impl Client {
    /// Connects to `remote`, whose certificate must be for `server_name`, from every interface: the handshake
    /// over the one that the routing table would choose (or that [`ClientConfig::interfaces`] names first), and
    /// if nothing answers there in 250 ms, over the others as well; further paths as soon as the server
    /// allows, and wherever it answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        config: ClientConfig,
        remote: SocketAddr,
        server_name: &str,
    ) -> Result<Self, ConnectError> {
        let remote = canonical(remote);
        // Before the list is made, so that no change is missed.
        let changes = monitor::changes().unwrap_or_else(|error| {
            tracing::warn!("changes of the network interfaces will go unnoticed: {error}");
            mpsc::channel(1).1
        });
        let locals = interfaces::usable(remote.ip(), &config.interfaces)?;
        let Opened {
            connection,
            endpoint,
            sockets,
            answers,
            locals,
            largest,
        } = first_path::open(&config, locals, remote, server_name).await?;

        let (mut quic, stream) = Connection::new(connection.clone());
        quic.read(transport::order(largest));
        quic.open_critical_streams()?;
        let supervision = quic.supervision();
        let mut http = h3::client::builder();
        let http = http
            .max_field_section_size(FIELD_SECTION)
            .send_grease(false)
            .build(quic);
        // The server may allow streams, and nothing to be written on them.
        let (mut http, requests) = tokio::time::timeout(config.connect_timeout, http)
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(ConnectError::Http3)?;
        tokio::spawn(async move { http.wait_idle().await });

        let (sender, events) = broadcast::channel(EVENT_CAPACITY);
        for (interface, reason) in interfaces::left_out(remote.ip(), &config.interfaces) {
            let event = InterfaceEvent::LeftOut { interface, reason };
            // There is a receiver: the first one.
            let _ = sender.send((Instant::now(), event.into()));
        }
        let (failed, failure) = watch::channel(None);
        let paths = PathTable::default();
        let driver = Driver::new(
            endpoint.clone(),
            &connection,
            sockets,
            locals,
            remote,
            paths.clone(),
            sender,
            supervision,
            &config,
        );
        tokio::spawn(driver.run(answers, stream, changes, failed));
        let events = Mutex::new(events);
        Ok(Self {
            connection,
            endpoint,
            requests,
            authority: name::authority(server_name, remote.port()),
            events,
            paths,
            failure,
        })
    }

    /// What sends requests; for one request at a time, or clone it.
    pub fn requests(&self) -> h3::client::SendRequest<OpenStreams, Bytes> {
        self.requests.clone()
    }

    /// What happens, with the time. The first receiver has everything since the connection was
    /// made, later ones what is to come.
    pub fn events(&self) -> broadcast::Receiver<(Instant, ClientEvent)> {
        let mut events = self.events.lock().unwrap();
        let later = events.resubscribe();
        std::mem::replace(&mut *events, later)
    }

    /// All paths that there are or were.
    pub fn paths(&self) -> Vec<PathInfo> {
        self.paths.all()
    }

    /// Whether multipath was negotiated.
    pub fn multipath(&self) -> bool {
        self.connection.is_multipath_enabled()
    }

    /// Handshakes of this connection: one. Those over other interfaces that were given up as this one was
    /// complete first are not counted.
    pub fn handshakes(&self) -> u64 {
        self.endpoint.stats().outgoing_handshakes
    }

    /// Resolves when the connection is lost. Whatever waits on it fails then, too.
    pub async fn closed(&self) -> ClientError {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or(ClientError::Idle),
            Err(_) => ClientError::Closed,
        }
    }

    /// Closes the connection, and tells the server. Does not wait for its answer: if that word is lost, the server
    /// finds out by its own timeout (RFC 9000 §10.2).
    pub async fn close(self) {
        self.connection.close(NO_ERROR, b"");
        let told = async {
            while self.connection.stats().frame_tx.connection_close == 0 {
                tokio::time::sleep(CLOSING_INTERVAL).await;
            }
        };
        let _ = tokio::time::timeout(CLOSING_TIMEOUT, told).await;
    }
}
