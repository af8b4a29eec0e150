//! The plainest of all requests. For others there is [`Client::requests`].

use bytes::{Buf, Bytes};
use h3::client::RequestStream;
use http::header::CONTENT_LENGTH;
use http::{Request, Response, StatusCode};

use super::Client;
use crate::error::RequestError;
use crate::h3::BidiStream;

impl Client {
    /// Asks for a path, with its query if it has one, and waits for the head of the answer. The body comes in
    /// pieces ([`Body::chunk`]), also while the server moves; the client has to live as long.
    ///
    /// # Errors
    /// See [`RequestError`]. An answer that tells of a failure is an answer.
    pub async fn get(&self, path: &str) -> Result<Response<Body>, RequestError> {
        let url = format!("https://{}{path}", self.authority);
        let request = Request::get(url).body(())?;
        let mut stream = self.requests().send_request(request).await?;
        stream.finish().await?;
        loop {
            let head = stream.recv_response().await?;
            if !head.status().is_informational() {
                let announced = announced(&head);
                return Ok(head.map(|()| Body {
                    stream,
                    announced,
                    received: 0,
                }));
            }
        }
    }
}

/// How long the body is to be, as far as the head says so.
fn announced(head: &Response<()>) -> Option<u64> {
    // RFC 9110 §8.6: it is that of another answer.
    if head.status() == StatusCode::NOT_MODIFIED {
        return None;
    }
    let length = head.headers().get(CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The body of an answer.
pub struct Body {
    stream: RequestStream<BidiStream<Bytes>, Bytes>,
    announced: Option<u64>,
    received: u64,
}

impl Body {
    /// The next bytes; `None` at the end, when all that was announced is there.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RequestError> {
        let chunk = self.stream.recv_data().await?;
        let chunk = chunk.map(|mut chunk| chunk.copy_to_bytes(chunk.remaining()));
        self.received += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        // Neither QUIC nor h3 compares them (RFC 9114 §4.1.2).
        let is_wrong = |announced: u64| match chunk {
            Some(_) => self.received > announced,
            None => self.received != announced,
        };
        match self.announced {
            Some(announced) if is_wrong(announced) => Err(RequestError::Length {
                received: self.received,
                announced,
            }),
            _ => Ok(chunk),
        }
    }
}
