//! The server's end: accepts connections, and moves with all of them.
//!
//! [`Server::relocate`] drives the [machine](crate::proto::server) through one move. The freeze
//! itself is the caller's: a future that resolves once the process has woken, wherever that is.
//! Each connection has a task that reads its migration stream and watches its paths.

#[cfg(feature = "axum")]
mod acceptor;
mod caller;
mod handover;
mod hub;
mod listener;
mod peer;
mod peer_tasks;
mod refusal;
mod relocate;

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

#[cfg(feature = "axum")]
pub use self::acceptor::Acceptor;
use self::caller::Moves;
pub use self::caller::Thaw;
pub use self::handover::Estate;
use self::hub::Hub;
use self::listener::{Listener, Ticket};
use self::peer::Peer;
use self::relocate::Relocation;
use crate::congestion::send_control::SendControl;
use crate::congestion::{Algorithm, Congestion, Resume};
pub use crate::error::{AcceptError, BindError, Cause, HandOverError, MoveError, TooFewStreams};
use crate::forwarder::Forwarding;
use crate::h3::gate::Gate;
use crate::h3::{Connection, NO_ERROR, Turns};
use crate::limits::{FIELD_SECTION, HANDSHAKES, UNVALIDATED_HANDSHAKES};
use crate::net::address::canonical;
use crate::net::{Bind, Counters, mtu};
use crate::proto::server::admission::Limits;
use crate::proto::server::{AlternativeAddresses, Announcement, Arrivals};
use crate::stats::Traffic;
use crate::tls::{self, Identity, TlsError};
use crate::transport;

/// How long undoing a move may hold up the end of a server. It takes milliseconds; a move that is made can take longer.
const UNDOING_LIMIT: Duration = Duration::from_secs(1);

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// How fast each connection may send.
    pub congestion: Congestion,
    /// Where clients may look for a server that has vanished.
    pub elsewhere: AlternativeAddresses,
    /// How the paths begin after a move.
    pub resume: Resume,
    /// How long a handshake may take, with the beginning of HTTP/3. noq has no limit of its own without an idle
    /// timeout, and whoever sends only the first datagram of one would be remembered for ever.
    pub handshake_timeout: Duration,
    /// How many handshakes there may be at a time with clients whose address is not validated. Who comes beyond has to
    /// prove it first (Retry, RFC 9000 §8.1.2), which takes a round trip more. With 0, everybody has to.
    pub unvalidated_handshakes: usize,
    /// How many handshakes there may be at a time with all clients. Who comes beyond gets no answer, and tries again.
    pub handshakes: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            congestion: Congestion::default(),
            elsewhere: AlternativeAddresses::default(),
            resume: Resume::default(),
            handshake_timeout: Duration::from_secs(10),
            unvalidated_handshakes: UNVALIDATED_HANDSHAKES,
            handshakes: HANDSHAKES,
        }
    }
}

/// A server and its connections; clones share them.
#[derive(Debug, Clone)]
pub struct Server {
    listener: Arc<Listener>,
    config: ServerConfig,
    /// What the next connection is accepted with.
    crypto: Arc<RwLock<noq::ServerConfig>>,
    hub: Arc<Hub>,
    moves: Arc<Moves>,
    /// What a forwarder has to know.
    forwarding: Arc<Mutex<Option<Forwarding>>>,
}

/// Ends a handshake that takes too long.
async fn in_time<T>(
    limit: Duration,
    handshake: impl Future<Output = Result<T, AcceptError>>,
) -> Result<T, AcceptError> {
    let in_time = tokio::time::timeout(limit, handshake);
    in_time.await.unwrap_or(Err(AcceptError::Timeout(limit)))
}

/// A handshake under way, which goes on while it is awaited; best in a task of its own.
pub struct Handshake {
    remote: SocketAddr,
    session: Pin<Box<dyn Future<Output = Result<Session, AcceptError>> + Send>>,
}

impl Handshake {
    /// The client's address, which is not validated yet (RFC 9000 §8.1).
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// There is no room for it: the client is told so at once (CONNECTION_REFUSED, RFC 9000 §20.1), unless it was
    /// awaited already.
    pub fn refuse(self) {
        // noq refuses what is neither accepted nor ignored.
        drop(self);
    }
}

impl Future for Handshake {
    type Output = Result<Session, AcceptError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.session.as_mut().poll(cx)
    }
}

/// A connection with a client. What is written to its requests waits while the server is parked.
pub struct Session {
    /// Accepts the requests. Moves do not need it to be polled.
    pub h3: h3::server::Connection<Connection, Bytes>,
    /// The client's first address.
    pub remote: SocketAddr,
    /// Takes what the client says of the order of the answers (RFC 9218).
    pub turns: Turns,
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
        Self::start(identity, config, |crypto, limits| {
            Listener::bind(listen, crypto, limits)
        })
    }

    /// As [`bind`](Self::bind), on a UDP socket that is bound, such as a supervisor passes on.
    ///
    /// A move closes it. If the server then stays, it opens another one at that address. Should the one who has passed
    /// it on still have it, both need `SO_REUSEADDR`, which this other one has.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn from_socket(
        socket: std::net::UdpSocket,
        identity: &Identity,
        config: ServerConfig,
    ) -> Result<Self, BindError> {
        Self::start(identity, config, |crypto, limits| {
            Listener::adopt(socket, crypto, limits)
        })
    }

    /// Takes over from a server that has [handed over](Self::hand_over), at the same address. What is for that one is
    /// passed on to it, until it has ended. Before that, this one does not [move](Self::relocate).
    ///
    /// # Errors
    /// See [`BindError`]. The other one goes on.
    pub fn succeed(
        estate: Estate,
        identity: &Identity,
        config: ServerConfig,
    ) -> Result<Self, BindError> {
        Self::start(identity, config, |crypto, limits| {
            Listener::succeed(estate, crypto, limits)
        })
    }

    /// Gives what another process needs to [succeed](Self::succeed) this one, which receives nothing by itself
    /// from then on. Its connections go on, by what the other one passes on; new ones come to the other one. If that
    /// ends, or never takes what it is given, the server is as it was before.
    ///
    /// A server that has handed over does not [move](Self::relocate). To have its connections end with what is running, tell
    /// clients to [come again](Self::dismiss).
    ///
    /// # Errors
    /// [`HandOverError`]; the server is as it was.
    pub fn hand_over(&self) -> Result<Estate, HandOverError> {
        let _claim = self.moves.claim().ok_or(HandOverError::Moving)?;
        if !self.moves.are_over() {
            return Err(HandOverError::Moving);
        }
        let sockets = &self.listener.sockets;
        if sockets.has_heir() {
            return Err(HandOverError::HandedOver);
        }
        let elders = sockets.elders();
        let keys = std::iter::once(&self.listener.ids).chain(&elders);
        let ids = keys.map(|key| key.secret()).collect();
        let give = || -> std::io::Result<_> {
            let (own, stream) = UnixStream::pair()?;
            Ok((sockets.hand_over(own)?, stream))
        };
        let (socket, stream) = give().map_err(HandOverError::System)?;
        Ok(Estate {
            socket,
            stream,
            ids,
        })
    }

    /// Receives by itself again, without the one that was given what it needs: that has not succeeded in time, and must not
    /// from now on.
    pub fn take_back(&self) {
        self.listener.sockets.take_back();
    }

    /// Whether another process has taken over, and is there.
    pub fn has_handed_over(&self) -> bool {
        self.listener.sockets.has_heir()
    }

    /// Whether a server that this one has taken over from still has connections, as far as is known: it has not ended.
    pub fn has_elder(&self) -> bool {
        !self.listener.sockets.elders().is_empty()
    }

    /// Tells the clients that there are now that no more requests are answered (GOAWAY, RFC 9114 §5.2): for those they
    /// make another connection, which is that of who has taken over. What is running goes on.
    pub fn dismiss(&self) {
        for (_, peer) in self.hub.peers() {
            peer.go_away.send();
        }
    }

    fn start(
        identity: &Identity,
        config: ServerConfig,
        listen: impl FnOnce(noq::ServerConfig, Limits) -> Result<Listener, BindError>,
    ) -> Result<Self, BindError> {
        config.elsewhere.check()?;
        let crypto = transport::server(Arc::new(tls::server_config(identity)?));
        let limits = Limits {
            unvalidated: config.unvalidated_handshakes,
            all: config.handshakes,
        };
        let listener = Arc::new(listen(crypto.clone(), limits)?);
        let (outputs, moving) = mpsc::unbounded_channel();
        Ok(Self {
            listener,
            crypto: Arc::new(RwLock::new(crypto)),
            hub: Arc::new(Hub::new(config.elsewhere.clone(), outputs)),
            config,
            moves: Arc::new(Moves::new(moving)),
            forwarding: Arc::default(),
        })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The certificate and key of connections that are made from now on; those that there are stay as they are.
    ///
    /// # Errors
    /// They cannot be used. The ones before stay in use.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), TlsError> {
        let crypto = tls::server_config(identity)?;
        self.crypto.write().unwrap().crypto = Arc::new(crypto);
        Ok(())
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

    /// What has become of the clients in the newest move, since the server listens at its new address.
    pub fn arrivals(&self) -> Arrivals {
        self.hub.arrivals()
    }

    /// What a [`Forwarder`](crate::forwarder::Forwarder) at the present address has to know. There is something from
    /// the freeze of a move on that was announced as [forwarded](Announcement::forwarded), until that has failed or the
    /// next one begins.
    pub fn forwarding(&self) -> Option<Forwarding> {
        self.forwarding.lock().unwrap().clone()
    }

    /// The next client that comes; `None` once the server is closed. Its handshake goes on while it is awaited,
    /// and fails as [`AcceptError`] says.
    pub async fn accept(&self) -> Option<Handshake> {
        let (incoming, ticket) = self.listener.accept().await?;
        let remote = canonical(incoming.remote_address());
        let connected = self.connected(incoming, ticket, remote);
        let session = in_time(self.config.handshake_timeout, async move {
            let (quic, traffic) = connected.await?;
            let turns = quic.turns();
            let mut builder = h3::server::builder();
            builder
                .max_field_section_size(FIELD_SECTION)
                .send_grease(false);
            let h3 = builder.build(quic).await;
            Ok(Session {
                h3: h3.map_err(AcceptError::Http3)?,
                remote,
                turns,
                traffic,
            })
        });
        Some(Handshake {
            remote,
            session: Box::pin(session),
        })
    }

    /// A connection without HTTP/3 yet, and what tells its traffic.
    fn connected(
        &self,
        incoming: noq::Incoming,
        ticket: Ticket,
        remote: SocketAddr,
    ) -> impl Future<Output = Result<(Connection, oneshot::Receiver<Traffic>), AcceptError>> + Send + use<>
    {
        // Connections do not share their congestion control.
        let mut config = self.crypto.read().unwrap().clone();
        let send_control = Arc::new(SendControl::new(Algorithm::new(self.config.congestion)));
        let listen = Bind::from(self.local_addr());
        let largest = mtu::largest([&listen], remote);
        config.transport_config(transport::server_transport(send_control.clone(), largest));
        let listener = self.listener.clone();
        let sockets = listener.sockets.clone();
        let hub = self.hub.clone();
        let (crypto, refusal) = refusal::watch(config.crypto.clone());
        config.crypto = crypto;
        async move {
            let local = incoming.local_ip();
            let connection = match incoming.accept_with(Arc::new(config))?.await {
                Ok(connection) => connection,
                Err(error) => {
                    if let Some(datagram) = refusal.datagram(&error) {
                        sockets.send(local, remote, &datagram);
                    }
                    return Err(error.into());
                }
            };
            drop(ticket);
            transport::update_keys(&connection);
            let gate = Gate::default();
            let (mut quic, stream) = Connection::new(connection.clone());
            quic.open_critical_streams()?;
            let send_window = quic.bound(send_control.clone(), gate.clone());
            let peer = Peer::new(
                &connection,
                remote,
                gate,
                sockets,
                send_control,
                send_window,
                quic.go_away(),
            );
            if listener.refuses() {
                quic.go_away().send();
            }
            let supervision = quic.supervision();
            let traffic = peer_tasks::start(hub, connection, peer, stream, supervision);
            Ok((quic, traffic))
        }
    }

    /// What gives the connections to an axum or tonic service; see [`Acceptor`].
    #[cfg(feature = "axum")]
    pub fn acceptor(&self) -> Acceptor {
        Acceptor::new(self.clone())
    }

    /// Takes no new connections and no new requests from now on. The former are refused, by whoever goes on to
    /// [`accept`](Self::accept); clients are told of the latter (GOAWAY, RFC 9114 §5.2). What is running goes on.
    pub fn go_away(&self) {
        self.listener.refuse();
        self.dismiss();
    }

    /// Stops accepting, closes all connections, and waits until the peers were told. A move is undone first, if it has not
    /// come to the new address yet.
    pub async fn close(&self) {
        self.moves.close();
        // Nobody can be told while the server is parked.
        let _ = timeout(UNDOING_LIMIT, self.moves.outputs()).await;
        self.listener
            .endpoint
            .close(NO_ERROR, b"the server is leaving");
        self.listener.endpoint.wait_all_draining().await;
    }

    /// Moves to another address of this host at once; as [`Server::relocate`], with nothing to freeze.
    ///
    /// # Errors
    /// As there.
    pub async fn move_to(&self, address: SocketAddr) -> Result<SocketAddr, MoveError> {
        let announcement = Announcement {
            targets: vec![address],
            lead: Duration::ZERO,
            outage: Duration::ZERO,
            forwarded: false,
        };
        self.relocate(announcement, async { Thaw::At(address) }, |_| ())
            .await
    }

    /// Moves: announces it, parks after the lead time, awaits `freeze` with nothing in flight and
    /// no socket open, and goes on where it says, with the same connections. Returns the new
    /// address once all clients are there, or 30 s after it was opened. An address that this host does not have, or
    /// where somebody else listens, is tried for 10 s. An announcement without targets tells clients nothing: they look
    /// for the server once it is silent.
    ///
    /// If the future is dropped, the move is undone: the server serves at its old address, and its clients
    /// know. Once it listens at the new one, there is nothing to undo, and the move is completed. Another
    /// move waits until that is done. Where somebody else has taken the old address meanwhile, that is tried until it is
    /// free; whoever does not want to wait for it drops the future, or [closes](Self::close) the server.
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
        let _claim = self.moves.claim().ok_or(MoveError::Busy)?;
        if self.has_handed_over() {
            return Err(MoveError::HandedOver);
        }
        if self.has_elder() {
            return Err(MoveError::Elder);
        }
        let mut outputs = self.moves.outputs().await;
        let (caller, requests) = self.moves.pair();
        let mut relocation = Relocation {
            hub: self.hub.clone(),
            listener: self.listener.clone(),
            resume: self.config.resume,
            caller,
            abandoned: false,
            draining: Vec::new(),
            forwarding: self.forwarding.clone(),
        };
        tokio::spawn(async move {
            let moved = relocation.run(&mut outputs, announcement).await;
            // The next move may begin as soon as the caller knows of this one.
            drop(outputs);
            relocation.caller.is_over(moved);
        });
        requests.serve(freeze, on_reopened).await
    }
}
