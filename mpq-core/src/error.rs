//! Why there is no connection, none any more, no server, or no move.

use std::io;
use std::net::SocketAddr;

use std::sync::Arc;
use std::time::Duration;

use h3::quic::ConnectionErrorIncoming;
use noq::ConnectionError;

use crate::net::{InterfaceError, Local};
use crate::proto::frame::EncodeError;
use crate::tls::{self, TlsError};

/// TLS alert 120, no_application_protocol, as a QUIC error (RFC 9001 §4.8).
const NO_ALPN: u64 = 0x100 + 120;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
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
    pub fn handshake(code: u64, reason: String) -> Self {
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
pub enum BindError {
    /// The address is in use, or not this host's.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The certificate or key is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Clients cannot be told where else the server may be found.
    #[error(transparent)]
    Elsewhere(#[from] EncodeError),
    /// noq refused.
    #[error("cannot start the endpoint: {0}")]
    Endpoint(io::Error),
}

/// Why a move did not take place. The server serves at its old address.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// One at a time.
    #[error("a move is under way already")]
    Busy,
    /// Clients cannot be told of it.
    #[error(transparent)]
    Announcement(#[from] EncodeError),
    /// The freeze failed.
    #[error("{0}")]
    Failed(String),
}
