//! The streams that carry MIGRATION frames.

use bytes::Bytes;
use futures::{FutureExt, future};
use noq::{ReadError, WriteError};

use super::recv::RecvStream;
use crate::proto::frame::MIGRATION_STREAM_TYPE;

/// The type as it is written: a varint of four bytes (RFC 9000 §16).
const TYPE: [u8; 4] = (0b10 << 30 | MIGRATION_STREAM_TYPE as u32).to_be_bytes();

/// Opens a stream for MIGRATION frames towards the peer and writes its type.
///
/// # Errors
/// As noq's `open_uni` and `write_all`: the connection is lost, or the peer does not want the stream.
pub async fn open_migration_stream(conn: &noq::Connection) -> Result<noq::SendStream, WriteError> {
    let mut stream = conn.open_uni().await?;
    prefer(&stream);
    stream.write_all(&TYPE).await?;
    Ok(stream)
}

/// As [`open_migration_stream`], if that can be done at once: otherwise the peer does without. What is to be
/// written first on the stream comes with it.
pub(crate) fn try_open_migration_stream(
    conn: &noq::Connection,
) -> Option<(noq::SendStream, Vec<u8>)> {
    let stream = conn.open_uni().now_or_never()?.ok()?;
    prefer(&stream);
    Some((stream, TYPE.to_vec()))
}

/// Ahead of all bodies.
fn prefer(stream: &noq::SendStream) {
    // Fails once it is closed, which writing tells.
    let _ = stream.set_priority(1);
}

/// The peer's stream of MIGRATION frames, read up to and including its type.
pub struct MigrationStream(pub(super) RecvStream);

impl MigrationStream {
    /// The next bytes, in order, or `None` at the end of the stream. Cancel-safe. Chunks have
    /// nothing to do with frames.
    ///
    /// # Errors
    /// As noq's `read_chunk`: the peer reset the stream or the connection is lost. Later calls
    /// fail in the same way.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        future::poll_fn(|cx| self.0.poll_chunk(cx)).await
    }
}
