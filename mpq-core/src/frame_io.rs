//! MIGRATION frames on their streams.

use tokio::sync::mpsc;

use crate::h3::{MigrationStream, open_migration_stream};
use crate::proto::Frame;
use crate::proto::frame::{self, Decoder, FrameError};

/// Reads the peer's frames.
pub(crate) struct FrameReader {
    stream: MigrationStream,
    decoder: Decoder,
}

impl FrameReader {
    pub(crate) fn new(stream: MigrationStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// The next frame; `None` at the end of the stream, or of the connection. Cancel-safe.
    ///
    /// # Errors
    /// The stream cannot be read on.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk().await {
                Ok(Some(chunk)) => self.decoder.push(&chunk),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }
}

/// Writes frames to the peer until the connection is over; calls `before` before each, and `after`.
pub(crate) async fn write_frames(
    connection: noq::Connection,
    mut frames: mpsc::UnboundedReceiver<Frame>,
    before: impl Fn(),
    after: impl Fn(),
) {
    let weak = connection.weak_handle();
    let Ok(mut stream) = open_migration_stream(&connection).await else {
        return;
    };
    drop(connection);
    let mut bytes = frame::preamble();
    while let Some(frame) = frames.recv().await {
        if let Err(error) = frame.encode(&mut bytes) {
            tracing::error!("the peer is not told {frame:?}: {error}");
        }
        before();
        if !weak.is_alive() || stream.write_all(&bytes).await.is_err() {
            return;
        }
        after();
        bytes.clear();
    }
}
