//! Plain QUIC, by quinn: one path, and nothing that knows of moves.
//!
//! It is what the paper "Server Migration with Multipath-QUIC" compares its proposal with: when the
//! server has gone, such a client learns it from its idle timeout (RFC 9000 §10.1). It therefore
//! sends no keep-alives, whose first one after the server's last word would put the timeout off
//! once more.

use std::net::SocketAddr;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h3::client::SendRequest;
use h3::error::{Code, LocalError};
use h3::quic::ConnectionErrorIncoming;
use mpq_core::client::{
    ClientConfig, ClientError, ClientEvent, ConnectError, PathEvent, PathInfo, PathState,
};
use mpq_core::h3::WholeBodies;
use mpq_core::limits::{CONNECTION_WINDOW, FIELD_SECTION, SEND_WINDOW, STREAM_WINDOW};
use mpq_core::net::{Bind, Local, refused, source, usable};
use mpq_core::tls;
use mpq_core::{Congestion, PathId};
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt,
    VarIntBoundsExceeded,
};
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};

use super::Connection;

/// In this time the last word of a connection is sent, unless no datagram can be sent at all.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(100);
/// How often to look whether it is.
const CLOSING_INTERVAL: Duration = Duration::from_millis(1);

/// What HTTP/3 closes a connection with that is no longer needed.
const NO_ERROR: VarInt = VarInt::from_u32(Code::H3_NO_ERROR.value() as u32);

/// What a connection is closed with whose server cannot be one of HTTP/3.
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(Code::H3_GENERAL_PROTOCOL_ERROR.value() as u32);

/// A connection by quinn.
pub(crate) struct PlainQuic {
    connection: quinn::Connection,
    endpoint: Endpoint,
    requests: SendRequest<WholeBodies<h3_quinn::OpenStreams>, Bytes>,
    /// What h3 says of its end.
    end: watch::Receiver<Option<h3::error::ConnectionError>>,
    local: Local,
    events: broadcast::Sender<(Instant, ClientEvent)>,
}

/// quinn's settings at both ends, with the windows of [`mpq_core::limits`]. On one path OLIA is
/// NewReno.
///
/// # Errors
/// If the idle timeout does not fit into QUIC's transport parameter, 2⁶² ms.
pub fn transport(
    idle_timeout: Duration,
    congestion: Congestion,
) -> Result<TransportConfig, VarIntBoundsExceeded> {
    let factory: Arc<dyn ControllerFactory + Send + Sync> = match congestion {
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
        Congestion::NewReno | Congestion::Olia => Arc::new(NewRenoConfig::default()),
    };
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(factory)
        .max_idle_timeout(Some(IdleTimeout::try_from(idle_timeout)?))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW);
    Ok(config)
}

impl Connection for PlainQuic {
    type Streams = WholeBodies<h3_quinn::OpenStreams>;

    async fn connect(
        config: ClientConfig,
        remote: SocketAddr,
        server_name: &str,
    ) -> Result<Self, ConnectError> {
        let (local, bind) = local(&config.interfaces, remote)?;
        let crypto = QuicClientConfig::try_from(tls::rustls_client(&config.trust)?)
            .map_err(|error| ConnectError::Tls(error.into()))?;
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        let transport = transport(config.idle_timeout, config.congestion)
            .map_err(|error| ConnectError::Protocol(format!("idle timeout: {error}").into()))?;
        quic.transport_config(Arc::new(transport));
        let socket = bind
            .open()
            .map_err(|error| ConnectError::socket(slice::from_ref(&local), error))?;
        let handle = socket.try_clone()?;
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            None,
            socket,
            Arc::new(TokioRuntime),
        )?;
        let connecting = endpoint
            .connect_with(quic, remote, server_name)
            .map_err(|error| ConnectError::Protocol(error.into()))?;
        let connection = tokio::select! {
            connected = connecting => connected.map_err(handshake_error)?,
            () = refused(handle, remote) => return Err(ConnectError::Refused),
            () = sleep(config.connect_timeout) => return Err(ConnectError::Timeout),
        };

        let h3 = WholeBodies::new(h3_quinn::Connection::new(connection.clone()));
        let mut http = h3::client::builder();
        let http = http
            .max_field_section_size(FIELD_SECTION)
            .send_grease(false)
            .build(h3);
        let (mut http, requests) = match timeout(config.connect_timeout, http).await {
            Ok(built) => built.map_err(ConnectError::Http3)?,
            // It waits for nothing else, and does not say how many streams it has got.
            Err(_) => {
                let words = "the streams that HTTP/3 needs are not allowed";
                connection.close(PROTOCOL_ERROR, words.as_bytes());
                return Err(ConnectError::NotHttp3(words.into()));
            }
        };
        let (ended, end) = watch::channel(None);
        tokio::spawn(async move { ended.send(Some(http.wait_idle().await)) });
        Ok(Self {
            connection,
            endpoint,
            requests,
            end,
            local,
            events: broadcast::Sender::new(1),
        })
    }

    fn requests(&self) -> SendRequest<Self::Streams, Bytes> {
        self.requests.clone()
    }

    fn events(&self) -> broadcast::Receiver<(Instant, ClientEvent)> {
        let events = self.events.subscribe();
        let path = ClientEvent::Path(PathEvent::Validated(self.path()));
        // Only fails without a receiver.
        let _ = self.events.send((Instant::now(), path));
        events
    }

    fn paths(&self) -> Vec<PathInfo> {
        vec![self.path()]
    }

    fn multipath(&self) -> bool {
        false
    }

    fn handshakes(&self) -> u64 {
        self.endpoint.stats().outgoing_handshakes
    }

    async fn failed(&self) -> ClientError {
        match self.connection.closed().await {
            ConnectionError::TimedOut => ClientError::Idle,
            ConnectionError::ApplicationClosed(close) => ClientError::ClosedByServer {
                code: close.error_code.into_inner().into(),
                reason: String::from_utf8_lossy(&close.reason).into(),
            },
            ConnectionError::LocallyClosed => {
                let mut end = self.end.clone();
                let end = end.wait_for(Option::is_some).await;
                end.map_or(ClientError::Closed, |end| closed_by_h3(end.as_ref()))
            }
            error => ClientError::Quic(Arc::new(error)),
        }
    }

    async fn close(self) {
        self.connection.close(NO_ERROR, b"");
        let told = async {
            while self.connection.stats().frame_tx.connection_close == 0 {
                sleep(CLOSING_INTERVAL).await;
            }
        };
        let _ = timeout(CLOSING_TIMEOUT, told).await;
    }
}

impl PlainQuic {
    fn path(&self) -> PathInfo {
        let stats = self.connection.stats();
        PathInfo {
            id: PathId::default(),
            interface: self.local.interface.clone(),
            local: self.local.ip,
            remote: self.connection.remote_address(),
            state: match self.connection.close_reason() {
                None => PathState::Validated,
                Some(_) => PathState::Closed,
            },
            rtt: Some(stats.path.rtt),
            received: stats.udp_rx.bytes,
            sent: stats.udp_tx.bytes,
            lost: stats.path.lost_packets,
        }
    }
}

/// A connection that was closed at this end, as h3 has it.
fn closed_by_h3(end: Option<&h3::error::ConnectionError>) -> ClientError {
    use h3::error::ConnectionError::{Local, Remote};
    let (code, reason) = match end {
        Some(Local {
            error: LocalError::Application { code, reason, .. },
            ..
        }) => (*code, reason),
        // Of a body that ends within a frame.
        Some(Remote {
            0: ConnectionErrorIncoming::InternalError(reason),
            ..
        }) => (Code::H3_INTERNAL_ERROR, reason),
        _ => return ClientError::Closed,
    };
    match code {
        Code::H3_NO_ERROR => ClientError::Closed,
        code => ClientError::Http3 {
            code,
            reason: reason.clone(),
        },
    }
}

/// The first wanted interface, or the address that the system would send from.
fn local(wanted: &[String], remote: SocketAddr) -> Result<(Local, Bind), ConnectError> {
    let (name, free) = match wanted.first() {
        Some(name) => (name.clone(), false),
        None => (source(remote)?.to_string(), true),
    };
    let local = usable(remote.ip(), &[name])?.remove(0);
    let bind = local.bind();
    let device = bind.device.filter(|_| !free);
    Ok((local, Bind { device, ..bind }))
}

fn handshake_error(error: ConnectionError) -> ConnectError {
    let code = match &error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        ConnectionError::TimedOut => return ConnectError::Timeout,
        ConnectionError::VersionMismatch => return ConnectError::NotHttp3(error.into()),
        _ => return ConnectError::Quic(error.into()),
    };
    ConnectError::handshake(code.into(), error)
}
