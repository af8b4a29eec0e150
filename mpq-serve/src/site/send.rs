//! Sending a response: its head, then its body in chunks, as the rate limits let it, and as long as the client takes it.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use h3::error::{Code, StreamError};
use h3::quic::SendStream;
use h3::server::RequestStream;
use http::Response;
use mpq_core::h3::Turns;
use tokio::time::{Instant, sleep};

use super::chunks::Chunks;
use super::content::Excerpt;
use super::pace::Paces;

/// A response under way.
pub(super) struct Sending<'a, S: SendStream<Bytes>> {
    stream: &'a mut RequestStream<S, Bytes>,
    bytes: u64,
    complete: bool,
    patience: Option<&'a Patience>,
}

/// Why a response did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("the client took nothing for {0:?}")]
    Stalled(Duration),
}

/// How long a client may take nothing of what it has asked for.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    pub(crate) limit: Duration,
    /// Of its connection: an answer may have to wait until others are through.
    pub(crate) turns: Turns,
}

impl Patience {
    /// Looks so often in each time of `limit`.
    const LOOKS: u32 = 4;

    /// Does this, as long as the client takes anything.
    async fn within<T>(
        this: Option<&Self>,
        work: impl Future<Output = Result<T, StreamError>>,
    ) -> Result<T, SendError> {
        let Some(Self { limit, turns }) = this else {
            return Ok(work.await?);
        };
        let mut work = pin!(work);
        let mut taken = None;
        let mut since = Instant::now();
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => return Ok(done?),
                () = sleep(*limit / Self::LOOKS) => {}
            }
            let before = std::mem::replace(&mut taken, turns.taken());
            if taken.is_none() || taken != before {
                since = Instant::now();
            } else if since.elapsed() >= *limit {
                return Err(SendError::Stalled(*limit));
            }
        }
    }
}

impl<'a, S: SendStream<Bytes>> Sending<'a, S> {
    /// Nothing is sent yet.
    pub(super) fn new(
        stream: &'a mut RequestStream<S, Bytes>,
        patience: Option<&'a Patience>,
    ) -> Self {
        Self {
            stream,
            bytes: 0,
            complete: false,
            patience,
        }
    }

    /// Bytes of the body handed to the connection so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sends the head and, in chunks, the body. Is over once the client has acknowledged all of it.
    pub(super) async fn send(
        &mut self,
        head: Response<()>,
        body: Option<Excerpt>,
        paces: Paces,
    ) -> Result<(), SendError> {
        Patience::within(self.patience, self.stream.send_response(head)).await?;
        if let Some(excerpt) = body {
            let mut chunks = Chunks::new(excerpt, paces);
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk?;
                let len = chunk.len() as u64;
                Patience::within(self.patience, self.stream.send_data(chunk)).await?;
                self.bytes += len;
            }
        }
        self.stream.finish().await?;
        self.complete = true;
        Ok(())
    }
}

impl<S: SendStream<Bytes>> Drop for Sending<'_, S> {
    fn drop(&mut self) {
        if !self.complete {
            self.stream.stop_stream(Code::H3_INTERNAL_ERROR);
        }
    }
}
