//! Why there is no connection, none any more, no server, or no move.

use std::io;
use std::net::SocketAddr;

use std::sync::Arc;
use std::time::Duration;

use h3::error::Code;
use h3::quic::ConnectionErrorIncoming;
use noq::ConnectionError;

use crate::net::{InterfaceError, Local};
use crate::proto::frame::EncodeError;
use crate::tls::{self, TlsError};

/// QUIC's errors that may be over the next time (RFC 9000 §20.1).
const NO_ERROR: u64 = 0x00;
const INTERNAL_ERROR: u64 = 0x01;
const CONNECTION_REFUSED: u64 = 0x02;
const APPLICATION_ERROR: u64 = 0x0c;
/// TLS alert 120, no_application_protocol, as a QUIC error (RFC 9001 §4.8).
const NO_ALPN: u64 = 0x100 + 120;

/// What caused an error, where that is one of several kinds.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server's name leads nowhere.
    #[error("cannot resolve {name}: {source}")]
    Name {
        /// As it was given.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// An interface that was asked for cannot be used.
    #[error("interface {name}: {reason}")]
    Interface {
        /// What the user named.
        name: String,
        /// What is wrong with it.
        reason: Cause,
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
    Certificate(#[source] Cause),
    /// What is to be trusted cannot be found out.
    #[error(transparent)]
    Trust(#[from] TlsError),
    /// TLS failed otherwise.
    #[error("TLS: {0}")]
    Tls(#[source] Cause),
    /// The server speaks QUIC, but not HTTP/3: no protocol in common (RFC 7301 §3.2), or no version.
    #[error("the server does not speak HTTP/3: {0}")]
    NotHttp3(#[source] Cause),
    /// The server does not let us open the streams that HTTP/3 needs.
    #[error("the server does not speak HTTP/3: {0}")]
    Streams(#[from] TooFewStreams),
    /// HTTP/3 could not begin.
    #[error("HTTP/3 could not begin: {0}")]
    Http3(#[source] h3::error::ConnectionError),
    /// The ends do not understand each other's QUIC, or there can be no connection to such a name. It will be
    /// the same the next time.
    #[error("QUIC: {0}")]
    Protocol(#[source] Cause),
    /// QUIC failed otherwise.
    #[error("QUIC: {0}")]
    Quic(#[source] Cause),
}

/// The peer lets us open fewer unidirectional streams than HTTP/3 needs at least (RFC 9114 §6.2). The
/// connection was closed with H3_GENERAL_PROTOCOL_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it allows {allowed} unidirectional streams, and HTTP/3 needs 3")]
pub struct TooFewStreams {
    /// How many it allows.
    pub allowed: usize,
}

/// Why a connection was lost.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server was silent for longer than the idle timeout.
    #[error("the server fell silent")]
    Idle,
    /// The server announced a move and did not come back: for longer than the migration timeout, or until it was
    /// clear that somebody else is where it wanted to be.
    #[error("the server did not come back from its move{}", occupied(.answered))]
    Migration {
        /// Who has answered there, the last one first, and does not know this connection. It may serve the same:
        /// the best place for another one.
        answered: Vec<SocketAddr>,
        /// Where else the server may be, as it said itself.
        elsewhere: Vec<SocketAddr>,
    },
    /// The server broke the rules of HTTP/3, and was left for that.
    #[error("the server broke the rules of HTTP/3 ({code}: {reason})")]
    Http3 {
        /// What it was told.
        code: Code,
        /// What was wrong.
        reason: String,
    },
    /// The server closed the connection.
    #[error("the server closed the connection ({code}{})", words(.reason))]
    ClosedByServer {
        /// Why, in HTTP/3's terms (RFC 9114 §8.1).
        code: Code,
        /// Why, in its own words. Empty if it gave none.
        reason: String,
    },
    /// The connection was closed at this end.
    #[error("the connection is over")]
    Closed,
    /// QUIC ended it.
    #[error("{0}")]
    Quic(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

fn words(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}

/// Says who is where the server is not.
fn occupied(answered: &[SocketAddr]) -> String {
    match answered.first() {
        Some(other) => format!(": {other} answers, and does not know the connection"),
        None => ": nobody answers at its new address".to_owned(),
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
                    reason: error.into(),
                }
            }
            _ => error.into(),
        }
    }

    /// Whether another address of the same host may do better. A bad certificate, say, is an answer, which
    /// another address would only hide.
    pub(crate) fn is_of_the_address(&self) -> bool {
        use ConnectError::{Interface, NoInterface, Refused, Socket, Timeout};
        matches!(
            self,
            Interface { .. } | NoInterface { .. } | Socket(_) | Refused | Timeout
        )
    }

    /// A handshake that ended with this QUIC error code (RFC 9000 §20.1).
    pub fn handshake(code: u64, cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        match code {
            NO_ALPN => Self::NotHttp3(cause),
            _ if tls::is_certificate_alert(code) => Self::Certificate(cause),
            0x100..0x200 => Self::Tls(cause),
            NO_ERROR | INTERNAL_ERROR | CONNECTION_REFUSED | APPLICATION_ERROR => Self::Quic(cause),
            _ => Self::Protocol(cause),
        }
    }
}

impl From<InterfaceError> for ConnectError {
    fn from(error: InterfaceError) -> Self {
        match error {
            InterfaceError::Unusable { name, reason } => Self::Interface {
                name,
                reason: reason.into(),
            },
            InterfaceError::None { family } => Self::NoInterface { family },
            InterfaceError::List(error) => Self::Socket(error),
        }
    }
}

impl From<ConnectionError> for ConnectError {
    fn from(error: ConnectionError) -> Self {
        if let Some(unaccepted) = tls::certificate_error(&error) {
            return Self::Certificate(unaccepted.into());
        }
        let code = match &error {
            ConnectionError::TransportError(error) => error.code,
            ConnectionError::ConnectionClosed(close) => close.error_code,
            ConnectionError::TimedOut => return Self::Timeout,
            ConnectionError::VersionMismatch => return Self::NotHttp3(error.into()),
            _ => return Self::Quic(error.into()),
        };
        Self::handshake(code.into(), error)
    }
}

impl ClientError {
    /// Of a connection that noq says is over; `by_h3` is why h3 closed it, if it did.
    pub(crate) fn closed(error: &ConnectionError, by_h3: Option<(Code, String)>) -> Self {
        match (error, by_h3) {
            (ConnectionError::TimedOut, _) => Self::Idle,
            (ConnectionError::LocallyClosed, Some((code, reason))) if code != Code::H3_NO_ERROR => {
                Self::Http3 { code, reason }
            }
            (ConnectionError::LocallyClosed, _) => Self::Closed,
            (ConnectionError::ApplicationClosed(close), _) => Self::ClosedByServer {
                code: u64::from(close.error_code).into(),
                reason: String::from_utf8_lossy(&close.reason).into(),
            },
            (error, _) => Self::Quic(Arc::new(error.clone())),
        }
    }
}

/// For whoever reads or writes on a connection that was given up.
impl From<ClientError> for ConnectionErrorIncoming {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Idle => Self::Timeout,
            error => Self::Undefined(Arc::new(error)),
        }
    }
}

/// Why an answer, or the rest of its body, does not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// What was asked for cannot be part of a URL.
    #[error("no URL can be made of it: {0}")]
    Url(#[from] http::Error),
    /// HTTP/3 failed, or the connection was lost; [`Client::closed`](crate::client::Client::closed) says why.
    #[error(transparent)]
    Stream(#[from] h3::error::StreamError),
    /// The body is not as long as its head had it (RFC 9114 §4.1.2).
    #[error("{received} bytes came of a body of {announced}")]
    Length {
        /// Bytes.
        received: u64,
        /// Bytes.
        announced: u64,
    },
}

/// Why a client that came is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// It speaks QUIC, but not HTTP/3: no protocol in common (RFC 7301 §3.2), or no version.
    #[error("the client does not speak HTTP/3: {0}")]
    NotHttp3(#[source] ConnectionError),
    /// The handshake failed otherwise, or the client closed the connection in it.
    #[error("the handshake failed: {0}")]
    Handshake(#[source] ConnectionError),
    /// The handshake, or the beginning of HTTP/3, took longer than this.
    #[error("the handshake took longer than {0:?}")]
    Timeout(Duration),
    /// The client does not let us open the streams that HTTP/3 needs.
    #[error("the client does not speak HTTP/3: {0}")]
    Streams(#[from] TooFewStreams),
    /// HTTP/3 could not begin.
    #[error("HTTP/3 could not begin: {0}")]
    Http3(#[source] h3::error::ConnectionError),
}

impl From<ConnectionError> for AcceptError {
    fn from(error: ConnectionError) -> Self {
        let code = match &error {
            ConnectionError::TransportError(error) => error.code,
            ConnectionError::ConnectionClosed(close) => close.error_code,
            ConnectionError::VersionMismatch => return Self::NotHttp3(error),
            _ => return Self::Handshake(error),
        };
        match u64::from(code) {
            NO_ALPN => Self::NotHttp3(error),
            _ => Self::Handshake(error),
        }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address is in use, or not this host's.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The certificate or key is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Clients cannot be told where else the server may be found.
    #[error(transparent)]
    Elsewhere(#[from] EncodeError),
    /// noq refused.
    #[error("cannot start the endpoint: {0}")]
    Endpoint(#[source] io::Error),
}

/// Why a move did not take place. The server serves at its old address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// One at a time.
    #[error("a move is under way already")]
    Busy,
    /// Clients cannot be told of it.
    #[error(transparent)]
    Announcement(#[from] EncodeError),
    /// The freeze failed: what [`Thaw::Failed`](crate::server::Thaw::Failed) said.
    #[error("{0}")]
    NotFrozen(#[source] Cause),
    /// The new address cannot be listened on.
    #[error("it cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The server woke where it had been, though it was to go elsewhere.
    #[error("it woke at its old address, {0}")]
    Stayed(SocketAddr),
    /// The server was closed, or the runtime ends, and the move with it.
    #[error("it was interrupted: the server is closed, or the runtime ends")]
    Interrupted,
    /// The server has handed over ([`Server::hand_over`](crate::server::Server::hand_over)).
    #[error("another process has taken over, and this one only finishes its connections")]
    HandedOver,
    /// The server has taken over from another one, which would not be reached at another address.
    #[error("the process that it has taken over from has not finished its connections yet")]
    Elder,
}

/// Why a server did not hand over; it is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// Its clients would be lost.
    #[error("it is moving: try again when the move is over")]
    Moving,
    /// Only one process can take over.
    #[error("another process has taken over already: take over from that one")]
    HandedOver,
    /// What it takes cannot be had from the system.
    #[error("the system refuses: {0}")]
    System(#[source] io::Error),
}
