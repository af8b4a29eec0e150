//! The server's end: accepts connections, and moves with all of them.
//!
//! [`Server::relocate`] drives the [machine](crate::proto::server) through one move. The freeze
//! itself is the caller's: a future that resolves once the process has woken, wherever that is.
//! Each connection has a task that reads its migration stream and watches its paths.

mod gate;
mod hub;
mod listener;
mod peer;
mod peer_tasks;
mod relocate;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use noq::PathId;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

pub use self::gate::Gate;
use self::hub::Hub;
use self::listener::Listener;
use self::peer::Peer;
use self::relocate::Relocation;
pub use self::relocate::Thaw;
use crate::congestion::Congestion;
use crate::congestion::send_control::SendControl;
pub use crate::error::{BindError, MoveError};
use crate::h3::{Connection, NO_ERROR};
use crate::net::address::canonical;
use crate::net::{Bind, Counters, mtu};
use crate::proto::server::{AlternativeAddresses, Announcement, Output};
use crate::stats::Traffic;
use crate::tls::{self, Identity};
use crate::transport;

/// How long a handshake may take. noq has no limit of its own without an idle timeout, and whoever
/// sends only the first datagram of one would be remembered for ever.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Debug, Clone, Default)]
pub struct ServerConfig {
    /// How fast each connection may send.
    pub congestion: Congestion,
    /// Where clients may look for a server that has vanished.
    pub elsewhere: AlternativeAddresses,
    /// Has the paths after a move begin with slow start, rather than go on carefully where the old
    /// ones were (RFC 9959).
    pub slow_start: bool,
}

/// A server and its connections; clones share them.
#[derive(Debug, Clone)]
pub struct Server {
    listener: Arc<Listener>,
    config: ServerConfig,
    crypto: noq::ServerConfig,
    hub: Arc<Hub>,
    /// What only a move in progress cares for.
    moving: Arc<AsyncMutex<mpsc::UnboundedReceiver<Output>>>,
}

/// A connection with a client: its requests, and the gate that their bodies are to pass.
pub struct Session {
    /// Accepts the requests. It must be polled for migration to work.
    pub h3: h3::server::Connection<Connection, Bytes>,
    /// Closed while the server is parked.
    pub gate: Gate,
    /// The client's first address.
    pub remote: SocketAddr,
    /// Resolves when the connection is over.
    pub traffic: oneshot::Receiver<Traffic>,
}

impl Server {
    /// Listens on `listen`; an unspecified IPv6 address takes IPv4 as well.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(
        listen: SocketAddr,
        identity: &Identity,
        config: ServerConfig,
    ) -> Result<Self, BindError> {
        config.elsewhere.check()?;
        let crypto = noq::ServerConfig::with_crypto(Arc::new(tls::server_config(identity)?));
        let listener = Arc::new(Listener::bind(listen, crypto.clone())?);
        let (outputs, moving) = mpsc::unbounded_channel();
        Ok(Self {
            listener,
            crypto,
            hub: Arc::new(Hub::new(config.elsewhere.clone(), outputs)),
            config,
            moving: Arc::new(AsyncMutex::new(moving)),
        })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Handshakes accepted since the start.
    pub fn handshakes(&self) -> u64 {
        self.listener.endpoint.stats().accepted_handshakes
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.listener.endpoint.open_connections()
    }

    /// Datagrams lost below QUIC.
    pub fn counters(&self) -> Counters {
        self.listener.sockets.counters()
    }

    /// The number of the newest announcement; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.hub.sequence()
    }

    /// The next connection whose handshake is under way; `None` once the server is closed. The
    /// future inside completes with the handshake, and is best awaited in a task of its own.
    pub async fn accept(&self) -> Option<impl Future<Output = Option<Session>> + Send + use<>> {
        let incoming = self.listener.endpoint.accept().await?;
        // Connections do not share their congestion control.
        let mut config = self.crypto.clone();
        let send_control = Arc::new(SendControl::new(self.config.congestion.factory()));
        let listen = Bind::from(self.local_addr());
        let largest = mtu::largest([&listen], canonical(incoming.remote_address()));
        config.transport_config(transport::server_transport(send_control.clone(), largest));
        let sockets = self.listener.sockets.clone();
        let hub = self.hub.clone();
        Some(async move {
            let connecting = incoming.accept_with(Arc::new(config)).ok()?;
            let connected = tokio::time::timeout(HANDSHAKE, connecting).await;
            let connection = connected.ok()?.ok()?;
            transport::update_keys(&connection);
            let remote = canonical(connection.path(PathId::ZERO)?.remote_address().ok()?);
            let gate = Gate::default();
            let (mut quic, stream) = Connection::new(connection.clone());
            let send_window = quic.bound(send_control.clone());
            let peer = Peer::new(
                &connection,
                remote,
                gate.clone(),
                sockets,
                send_control,
                send_window,
            );
            let traffic = peer_tasks::start(hub, connection, peer, stream);
            let h3 = h3::server::builder()
                .send_grease(false)
                .build(quic)
                .await
                .ok()?;
            Some(Session {
                h3,
                gate,
                remote,
                traffic,
            })
        })
    }

    /// Stops accepting, closes all connections, and waits until the peers were told.
    pub async fn close(&self) {
        self.listener
            .endpoint
            .close(NO_ERROR, b"the server is leaving");
        self.listener.endpoint.wait_all_draining().await;
    }

    /// Moves: announces it, parks after the lead time, awaits `freeze` with nothing in flight and
    /// no socket open, and goes on where it says, with the same connections. Returns the new
    /// address once all clients are there, or after 30 s.
    ///
    /// # Errors
    /// [`MoveError`]; the server then serves at its old address, and its clients know.
    pub async fn relocate(
        &self,
        announcement: Announcement,
        freeze: impl Future<Output = Thaw>,
        on_reopened: impl FnOnce(SocketAddr),
    ) -> Result<SocketAddr, MoveError> {
        announcement.check()?;
        let mut outputs = self.moving.try_lock().map_err(|_| MoveError::Busy)?;
        let relocation = Relocation {
            hub: &self.hub,
            listener: &self.listener,
            is_careful: self.config.congestion.has_window() && !self.config.slow_start,
        };
        relocation
            .run(&mut outputs, announcement, freeze, on_reopened)
            .await
    }
}
