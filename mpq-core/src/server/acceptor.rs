//! Services of axum, tonic and the like over a server that moves, by what h3-util asks of a QUIC.

use bytes::Bytes;
use h3_util::server::H3Acceptor;
use tokio::task::JoinSet;

use super::{Server, in_time};
use crate::error::AcceptError;
use crate::h3::{BidiStream, Connection, OpenStreams, RecvStream, SendStream, WholeBody};
use crate::net::address::canonical;

/// Accepts the connections of a [`Server`] for axum-h3's `H3Router`, tonic-h3's or whatever else takes an
/// [`H3Acceptor`]. Clients whose handshake fails are logged and left.
///
/// Answers go in the order of PRIORITY_UPDATE frames (RFC 9218), but nobody tells of `Priority` fields here. Requests
/// whose header is larger than [`FIELD_SECTION`](crate::limits::FIELD_SECTION) are refused, but axum-h3 does not tell
/// clients of that limit beforehand.
pub struct Acceptor {
    server: Server,
    handshakes: JoinSet<Result<Connection, AcceptError>>,
}

impl Acceptor {
    pub(super) fn new(server: Server) -> Self {
        Self {
            server,
            handshakes: JoinSet::new(),
        }
    }
}

impl H3Acceptor for Acceptor {
    type CONN = Connection;
    type OS = OpenStreams;
    type SS = SendStream<Bytes>;
    type RS = WholeBody<RecvStream>;
    type BS = BidiStream<Bytes>;

    async fn accept(&mut self) -> Result<Option<Connection>, h3_util::Error> {
        loop {
            tokio::select! {
                incoming = self.server.listener.accept() => {
                    let Some((incoming, ticket)) = incoming else {
                        return Ok(None);
                    };
                    let remote = canonical(incoming.remote_address());
                    let limit = self.server.config.handshake_timeout;
                    let connected = in_time(limit, self.server.connected(incoming, ticket, remote));
                    self.handshakes
                        .spawn(async { connected.await.map(|(connection, _)| connection) });
                }
                Some(done) = self.handshakes.join_next() => match done? {
                    Ok(connection) => return Ok(Some(connection)),
                    Err(error) => tracing::info!("a client is not served: {error}"),
                }
            }
        }
    }
}
