//! The end of a connection whose client cannot follow a server that moves: it is told, so that it can connect
//! anew at once instead of waiting for somebody who is not there any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::peer::Peer;
use crate::h3::NO_ERROR;

/// What the client is told with H3_NO_ERROR.
pub(super) const REASON: &[u8] =
    b"the server moves and this connection cannot follow: connect again";
/// How long GOAWAY and what was in flight may take to be acknowledged.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long noq may take to send the end of the connection.
const CLOSING: Duration = Duration::from_millis(100);
/// How often is looked.
const STEP: Duration = Duration::from_millis(2);

/// Says GOAWAY (RFC 9114 §5.2), lets that arrive, and closes the connection. Until that is sent,
/// [`Peer::is_leaving`] is true.
pub(super) async fn dismiss(peer: Arc<Peer>) {
    peer.leaving.store(true, Ordering::Relaxed);
    peer.go_away.send();
    let start = Instant::now();
    while start.elapsed() < LAST_WORDS && !peer.send_control.drain(Instant::now()) {
        tokio::time::sleep(STEP).await;
    }
    if let Some(connection) = peer.connection.upgrade() {
        connection.close(NO_ERROR, REASON);
        let start = Instant::now();
        let is_sent = || connection.stats().frame_tx.connection_close > 0;
        while start.elapsed() < CLOSING && !is_sent() {
            tokio::time::sleep(STEP).await;
        }
    }
    peer.leaving.store(false, Ordering::Relaxed);
}
