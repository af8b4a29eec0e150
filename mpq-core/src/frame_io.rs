//! MIGRATION frames on their streams.

use tokio::sync::mpsc;

use crate::h3::{MigrationStream, try_open_migration_stream};
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

/// The stream for our frames.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    connection: noq::WeakConnectionHandle,
    stream: noq::SendStream,
    /// What is not written yet.
    bytes: Vec<u8>,
}

impl FrameWriter {
    /// `None` where the peer allows no stream for it: that one does without, and its connection is one of
    /// HTTP/3 as any other.
    pub(crate) fn open(connection: &noq::Connection) -> Option<Self> {
        let opened = try_open_migration_stream(connection);
        if opened.is_none() {
            tracing::info!("the peer allows no stream for MIGRATION frames");
        }
        let (stream, mut bytes) = opened?;
        bytes.extend(frame::preamble());
        Some(Self {
            connection: connection.weak_handle(),
            stream,
            bytes,
        })
    }

    /// Writes frames until the connection is over; calls `before` before each, and `after`.
    pub(crate) async fn write(
        mut self,
        mut frames: mpsc::UnboundedReceiver<Frame>,
        before: impl Fn(),
        after: impl Fn(),
    ) {
        while let Some(frame) = frames.recv().await {
            if let Err(error) = frame.encode(&mut self.bytes) {
                tracing::error!("the peer is not told {frame:?}: {error}");
            }
            before();
            let is_alive = self.connection.is_alive();
            if !is_alive || self.stream.write_all(&self.bytes).await.is_err() {
                return;
            }
            after();
            self.bytes.clear();
        }
    }
}
