//! Sending a response: its head, then its body in chunks, as the rate limit lets it.

use std::io;
use std::num::NonZeroU64;

use bytes::Bytes;
use h3::error::{Code, StreamError};
use h3::quic::SendStream;
use h3::server::RequestStream;
use http::Response;

use super::chunks::Chunks;
use super::content::Excerpt;

/// A response under way.
pub(super) struct Sending<'a, S: SendStream<Bytes>> {
    stream: &'a mut RequestStream<S, Bytes>,
    bytes: u64,
    complete: bool,
}

/// Why a response did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Read(#[from] io::Error),
}

impl<'a, S: SendStream<Bytes>> Sending<'a, S> {
    /// Nothing is sent yet.
    pub(super) fn new(stream: &'a mut RequestStream<S, Bytes>) -> Self {
        Self {
            stream,
            bytes: 0,
            complete: false,
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
        rate: Option<NonZeroU64>,
    ) -> Result<(), SendError> {
        self.stream.send_response(head).await?;
        if let Some(excerpt) = body {
            let mut chunks = Chunks::new(excerpt, rate);
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk?;
                let len = chunk.len() as u64;
                self.stream.send_data(chunk).await?;
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
