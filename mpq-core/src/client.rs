//! The client's end: one connection over every interface, which follows the server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use noq::{ConnectionError, VarInt};
use tokio::sync::{broadcast, mpsc, watch};

use crate::congestion::Congestion;
use crate::endpoint;
use crate::h3_noq;
use crate::migration::Strategy;
use crate::path::interfaces::{self, InterfaceError, Local};
use crate::path::manager::{Manager, PathTable};
use crate::path::mtu;
use crate::path::netlink;
use crate::path::probe;
use crate::path::sockets::{Bind, Sockets, mapped};
use crate::tls::{self, TlsError, Trust};

/// Events that a slow reader may fall behind; a move makes about ten.
const EVENTS: usize = 1024;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Which certificates are accepted.
    pub trust: Trust,
    /// Interface names or IP addresses to use; all usable ones if empty.
    pub interfaces: Vec<String>,
    /// How long the server may be silent in a move.
    pub migration_timeout: Duration,
    /// How long the server may be silent otherwise.
    pub idle_timeout: Duration,
    /// How long the handshake may take.
    pub connect_timeout: Duration,
    /// How fast the client may send.
    pub congestion: Congestion,
    /// How the client follows the server.
    pub strategy: Strategy,
    /// Has the strategies that redirect send to addresses that nobody has validated; for testbeds.
    pub allow_unvalidated: bool,
    /// Up to how long, chosen at random, the client waits with going to a new address, so that many
    /// clients do not arrive at once.
    pub hold_back: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            trust: Trust::System,
            interfaces: Vec::new(),
            migration_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            congestion: Congestion::default(),
            strategy: Strategy::default(),
            allow_unvalidated: false,
            hold_back: Duration::ZERO,
        }
    }
}

/// How long a closed connection's peer is waited for.
const CLOSING: Duration = Duration::from_secs(1);

/// A connection to a server.
pub struct Client {
    connection: noq::Connection,
    endpoint: noq::Endpoint,
    requests: h3::client::SendRequest<h3_noq::OpenStreams, Bytes>,
    /// Reads nothing, so that whoever takes it has all since the start.
    events: Mutex<broadcast::Receiver<(Instant, ClientEvent)>>,
    paths: PathTable,
    commands: mpsc::UnboundedSender<bool>,
    failure: watch::Receiver<Option<ClientError>>,
}

/// A path, now or as it was when it was closed.
#[derive(Debug, Clone)]
pub struct PathInfo {
    /// QUIC's path id.
    pub id: u32,
    /// Interface that it leaves by.
    pub interface: String,
    /// Local address.
    pub local: IpAddr,
    /// The server's address.
    pub remote: SocketAddr,
    /// How far it is.
    pub state: PathState,
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// UDP payload received, bytes.
    pub received: u64,
    /// UDP payload sent, bytes.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
}

/// The life of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Challenged, not answered yet.
    Opening,
    /// In use.
    Validated,
    /// No more.
    Closed,
}

/// What an onlooker wants to know.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "as in `migration::client::Event`")]
pub enum ClientEvent {
    /// An interface, or an address of it, can be used from now on.
    InterfaceUp { interface: String, local: IpAddr },
    /// It cannot be used any more.
    InterfaceDown { interface: String, local: IpAddr },
    /// A path is being opened.
    PathOpened(PathInfo),
    /// A path is in use.
    PathValidated(PathInfo),
    /// A path is no more.
    PathClosed(PathInfo),
    /// The server will move.
    Announced {
        sequence: u64,
        targets: Vec<SocketAddr>,
        lead: Duration,
        outage: Duration,
    },
    /// Where else the server may be found.
    Addresses {
        pool: Vec<SocketAddr>,
        name: Option<String>,
    },
    /// The server is about to be frozen.
    Parked { sequence: u64 },
    /// The server fell silent without parking, or without any word.
    Silent,
    /// Somebody answers at a target; `by` is `probe` or `knock`.
    Detected {
        remote: SocketAddr,
        by: &'static str,
    },
    /// The server is at its new address: the first path there is validated, or it has answered to
    /// redirected datagrams.
    Moved { sequence: u64, remote: SocketAddr },
    /// All paths are on the new address.
    Settled { remote: SocketAddr },
    /// The server stays.
    Cancelled { sequence: u64 },
    /// The move was refused or took too long.
    Failed { reason: String },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An interface that was asked for cannot be used.
    #[error("interface {name}: {reason}")]
    Interface {
        /// What the user named.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing is up for this address family.
    #[error("no interface is up that has an {family} address")]
    NoInterface {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The operating system refused a socket.
    #[error("cannot open a socket: {0}")]
    Socket(#[from] io::Error),
    /// Nobody listens there (ICMP said so).
    #[error("connection refused")]
    Refused,
    /// Nobody answered in time.
    #[error("no answer")]
    Timeout,
    /// The server's certificate is not trusted.
    #[error("the server's certificate is not trusted: {0}")]
    Certificate(String),
    /// The CA file is of no use.
    #[error("{0}")]
    CaFile(String),
    /// TLS failed otherwise.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server speaks QUIC, but not HTTP/3.
    #[error("the server does not speak HTTP/3: {0}")]
    NotHttp3(String),
    /// QUIC failed otherwise.
    #[error("QUIC: {0}")]
    Connection(String),
}

/// Why a connection was lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The server was silent for longer than the idle timeout.
    #[error("the server fell silent")]
    Idle,
    /// The server was silent for longer than the migration timeout.
    #[error("the server did not come back: {0}")]
    Migration(String),
    /// QUIC or the server ended it.
    #[error("{0}")]
    Closed(String),
}

impl Client {
    /// Connects to `remote`, whose certificate must be for `server_name`, from every interface:
    /// the handshake over the first, further paths as soon as the server allows.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        config: ClientConfig,
        remote: SocketAddr,
        server_name: &str,
    ) -> Result<Self, ConnectError> {
        // Before the list is made, so that no change is missed.
        let changes = netlink::changes().unwrap_or_else(|error| {
            tracing::warn!("changes of the network interfaces will go unnoticed: {error}");
            mpsc::channel(1).1
        });
        let locals = interfaces::usable(remote.ip(), &config.interfaces)?;
        let mut crypto = noq::ClientConfig::new(Arc::new(tls::client_config(&config.trust)?));
        let binds: Vec<Bind> = locals.iter().map(Local::bind).collect();
        let largest = mtu::largest(&binds, remote);
        crypto.transport_config(endpoint::client_transport(config.congestion, largest));
        let (sockets, answers) =
            Sockets::open(&binds).map_err(|error| ConnectError::socket(&locals, error))?;
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            endpoint::config(),
            None,
            sockets.for_endpoint(),
            Arc::new(noq::TokioRuntime),
        )?;
        let connecting = endpoint
            .connect_with(crypto, mapped(remote), server_name)
            .map_err(|error| ConnectError::Connection(error.to_string()))?;
        let connection = tokio::select! {
            connected = connecting => connected?,
            () = refused(&binds[0], remote) => return Err(ConnectError::Refused),
            () = tokio::time::sleep(config.connect_timeout) => return Err(ConnectError::Timeout),
        };

        let (mut quic, stream) = h3_noq::Connection::new(connection.clone());
        quic.read(endpoint::order(largest));
        let (mut driver, requests) = h3::client::builder()
            .send_grease(false)
            .build(quic)
            .await
            .map_err(|error| ConnectError::NotHttp3(error.to_string()))?;
        tokio::spawn(async move { driver.wait_idle().await });

        let (sender, events) = broadcast::channel(EVENTS);
        let (commands, to_manager) = mpsc::unbounded_channel();
        let (failed, failure) = watch::channel(None);
        let paths = PathTable::default();
        let manager = Manager::new(
            endpoint.clone(),
            &connection,
            sockets,
            locals,
            remote,
            paths.clone(),
            sender,
            &config,
        );
        tokio::spawn(manager.run(answers, stream, to_manager, changes, failed));
        let events = Mutex::new(events);
        Ok(Self {
            connection,
            endpoint,
            requests,
            events,
            paths,
            commands,
            failure,
        })
    }

    /// What sends requests; for one request at a time, or clone it.
    pub fn requests(&self) -> h3::client::SendRequest<h3_noq::OpenStreams, Bytes> {
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

    /// Handshakes that this client started.
    pub fn handshakes(&self) -> u64 {
        self.endpoint.stats().outgoing_handshakes
    }

    /// Says whether a download is running, so that the server's silence means something.
    pub fn expecting(&self, downloading: bool) {
        let _ = self.commands.send(downloading);
    }

    /// Resolves when the connection is lost.
    pub async fn failed(&self) -> ClientError {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or(ClientError::Idle),
            Err(_) => ClientError::Closed("the connection is over".into()),
        }
    }

    /// Closes the connection, and tells the server. Waits for its answer, but not for long: a server
    /// that has vanished gives none.
    pub async fn close(self) {
        // H3_NO_ERROR (RFC 9114 §8.1).
        self.connection.close(VarInt::from_u32(0x100), b"");
        let _ = tokio::time::timeout(CLOSING, self.endpoint.wait_all_draining()).await;
    }
}

/// Resolves if ICMP says that nobody listens at `remote`: an unconnected socket never hears of it.
pub async fn refused(bind: &Bind, remote: SocketAddr) {
    let refused = async {
        let socket = tokio::net::UdpSocket::bind(SocketAddr::new(bind.address.ip(), 0)).await?;
        socket.bind_device(bind.device.as_ref().map(String::as_bytes))?;
        socket.connect(remote).await?;
        socket.send(&probe::probe(*b"refused?")).await?;
        socket.recv(&mut [0; 64]).await
    };
    match refused.await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => std::future::pending().await,
    }
}

impl ConnectError {
    /// A failure to open sockets for these local addresses.
    pub fn socket(locals: &[Local], error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::PermissionDenied => {
                let names: Vec<_> = locals.iter().map(|l| l.interface.as_str()).collect();
                Self::Interface {
                    name: names.join(", "),
                    reason: error.to_string(),
                }
            }
            _ => error.into(),
        }
    }

    /// A handshake that ended with this QUIC error code (RFC 9000 §20.1).
    pub fn handshake(code: u64, reason: String) -> Self {
        /// TLS alert 120, no_application_protocol, as a QUIC error (RFC 9001 §4.8).
        const NO_ALPN: u64 = 0x100 + 120;
        match code {
            NO_ALPN => Self::NotHttp3(reason),
            _ if tls::is_certificate_alert(code) => Self::Certificate(reason),
            0x100..0x200 => Self::Tls(reason),
            _ => Self::Connection(reason),
        }
    }
}

impl From<InterfaceError> for ConnectError {
    fn from(error: InterfaceError) -> Self {
        match error {
            InterfaceError::Unusable { name, reason } => Self::Interface { name, reason },
            InterfaceError::None { family } => Self::NoInterface { family },
            InterfaceError::List(error) => Self::Socket(error),
        }
    }
}

impl From<TlsError> for ConnectError {
    fn from(error: TlsError) -> Self {
        Self::CaFile(error.to_string())
    }
}

impl From<ConnectionError> for ConnectError {
    fn from(error: ConnectionError) -> Self {
        if tls::is_certificate_error(&error) {
            return Self::Certificate(error.to_string());
        }
        let code = match &error {
            ConnectionError::TransportError(error) => error.code,
            ConnectionError::ConnectionClosed(close) => close.error_code,
            ConnectionError::TimedOut => return Self::Timeout,
            ConnectionError::VersionMismatch => return Self::NotHttp3(error.to_string()),
            _ => return Self::Connection(error.to_string()),
        };
        Self::handshake(code.into(), error.to_string())
    }
}

impl From<&ConnectionError> for ClientError {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Idle,
            error => Self::Closed(error.to_string()),
        }
    }
}
