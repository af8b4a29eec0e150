//! MIGRATION frames on their streams.

use std::pin::pin;

use futures::{Stream, StreamExt, stream};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::h3::{MigrationStream, try_open_migration_stream};
use crate::proto::Frame;
use crate::proto::frame::{self, Decoder, FrameError};

/// How many frames of a client wait to be written. It says HELLO once, and what it says beside that is an answer to
/// the newest announcement: if it waits, those before are of no use.
const UNWRITTEN: usize = 4;

/// What a client wants to be written, and where that comes out: the newest if there is too much. A server that reads
/// nothing can announce without end.
pub(crate) fn newest() -> (broadcast::Sender<Frame>, impl Stream<Item = Frame>) {
    let (sender, receiver) = broadcast::channel(UNWRITTEN);
    let frames = stream::unfold(receiver, async |mut receiver| {
        loop {
            match receiver.recv().await {
                Ok(frame) => return Some((frame, receiver)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    (sender, frames)
}

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
        frames: impl Stream<Item = Frame>,
        before: impl Fn(),
        after: impl Fn(),
    ) {
        let mut frames = pin!(frames);
        while let Some(frame) = frames.next().await {
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn of_many_frames_that_wait_the_newest_are_written() {
        let (sender, frames) = newest();
        let mut frames = pin!(frames);
        let ready = |sequence| Frame::Ready { sequence };
        let _ = sender.send(ready(0));
        assert_eq!(frames.next().now_or_never(), Some(Some(ready(0))));
        assert_eq!(frames.next().now_or_never(), None);
        for sequence in 1..=1_000 {
            let _ = sender.send(ready(sequence));
        }
        drop(sender);
        let waiting: Vec<_> = frames.collect().now_or_never().unwrap();
        assert_eq!(waiting, [997, 998, 999, 1_000].map(ready));
    }
}
