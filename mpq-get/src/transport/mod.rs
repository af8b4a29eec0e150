//! The connection under HTTP/3: what a download needs of it, whichever QUIC carries it.
//!
//! That is [`mpq_core::client`], multipath, or for comparison [`plain_quic`].

pub mod plain_quic;

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use h3::client::SendRequest;
use h3::quic::OpenStreams;
use mpq_core::client::{Client, ClientConfig, ClientError, ClientEvent, ConnectError, PathInfo};
use tokio::sync::broadcast;

/// A connection to a server; the methods are those of [`Client`].
pub(crate) trait Connection: Sized {
    type Streams: OpenStreams<Bytes>;

    async fn connect(
        config: ClientConfig,
        remote: SocketAddr,
        server_name: &str,
    ) -> Result<Self, ConnectError>;

    /// The connection closes with the last of these.
    fn requests(&self) -> SendRequest<Self::Streams, Bytes>;

    fn events(&self) -> broadcast::Receiver<(Instant, ClientEvent)>;

    fn paths(&self) -> Vec<PathInfo>;

    fn multipath(&self) -> bool;

    fn handshakes(&self) -> u64;

    async fn failed(&self) -> ClientError;

    async fn close(self);
}

impl Connection for Client {
    type Streams = mpq_core::h3::OpenStreams;

    async fn connect(
        config: ClientConfig,
        remote: SocketAddr,
        server_name: &str,
    ) -> Result<Self, ConnectError> {
        Client::connect(config, remote, server_name).await
    }

    fn requests(&self) -> SendRequest<Self::Streams, Bytes> {
        Client::requests(self)
    }

    fn events(&self) -> broadcast::Receiver<(Instant, ClientEvent)> {
        Client::events(self)
    }

    fn paths(&self) -> Vec<PathInfo> {
        Client::paths(self)
    }

    fn multipath(&self) -> bool {
        Client::multipath(self)
    }

    fn handshakes(&self) -> u64 {
        Client::handshakes(self)
    }

    async fn failed(&self) -> ClientError {
        Client::closed(self).await
    }

    async fn close(self) {
        Client::close(self).await;
    }
}
