//! The body, by one request or by several at once.
//!
//! In a round trip a stream carries no more than its flow-control window (RFC 9000 §4.1), which is small
//! here (see `mpq_core::limits`): 2 MiB are 840 Mbit/s at 20 ms. Once the paths carry most of it,
//! the parts that follow are asked for while what is before them still comes. Each fits into the window,
//! which so holds all of it however early it comes, and they are read one after the other, as one body:
//!
//! ```text
//! first answer ─────────────┤ left here
//!                           ├ part ┤ part ┤ part ┤ as many at once as --segments allows
//! ```
//!
//! What the server has sent of the first answer beyond that, a window at the most, is lost. An answer that
//! is no such part of the same version ends it all: the rest is asked for anew, as a whole.

use std::collections::VecDeque;
use std::future::ready;
use std::ops::Range;
use std::time::Instant;

use bytes::{Buf, Bytes};
use h3::error::StreamError;
use h3::quic::OpenStreams;
use mpq_core::client::PathInfo;

use super::bandwidth_delay::{BandwidthDelay, WINDOW};
use super::request::{Asked, Failure, Requests, answer};
use super::resume::{Answer, Partial};

/// Bytes of a part: what is left of a window by the head of the answer and by frames. One byte more, and
/// the end of each part would have to be waited for for a round trip.
const PART_LENGTH: u64 = WINDOW - (64 << 10);
/// What is left of a body.
pub(crate) struct SegmentedBody<S: OpenStreams<Bytes>> {
    /// What is read; nothing between two of them. One that is left is dropped, which stops it: h3-quinn 0.0.10
    /// panics in `stop_sending` while a read waits, <https://github.com/hyperium/h3/issues/330>.
    asked: Option<Asked<S>>,
    /// Offset at which it ends.
    end: u64,
    /// What follows, in order.
    parts: VecDeque<Part<S>>,
    /// What the parts are of.
    partial: Partial,
    /// Requests at a time.
    limit: usize,
    bandwidth_delay: BandwidthDelay,
    refused: bool,
}

struct Part<S: OpenStreams<Bytes>> {
    bytes: Range<u64>,
    asked: Asked<S>,
}

impl<S: OpenStreams<Bytes>> SegmentedBody<S> {
    /// What `asked` is answered with, up to the offset `end` where that is known; by no more than `limit`
    /// requests at a time.
    pub(crate) fn new(asked: Asked<S>, end: Option<u64>, partial: Partial, limit: usize) -> Self {
        let divisible = end.is_some() && end == partial.length && partial.version.is_ok();
        Self {
            asked: Some(asked),
            end: end.unwrap_or(u64::MAX),
            parts: VecDeque::new(),
            partial,
            limit: if divisible { limit } else { 1 },
            bandwidth_delay: BandwidthDelay::new(Instant::now()),
            refused: false,
        }
    }

    /// The bytes that follow `position`; none at the end, or where a part was
    /// [refused](SegmentedBody::was_refused).
    pub(crate) async fn next(
        &mut self,
        position: u64,
        requests: &mut Requests<'_, S>,
        paths: impl Fn() -> Vec<PathInfo>,
    ) -> Result<Option<Bytes>, Failure> {
        if self.limit > 1 {
            self.ask(position, requests, paths).await?;
        }
        let mut left = self.left(position);
        if left == 0 {
            if !self.turn().await? {
                return Ok(None);
            }
            left = self.left(position);
        }
        let Some(asked) = &mut self.asked else {
            return Ok(None);
        };
        let data = asked.recv_data().await?;
        Ok(data.map(|mut data| {
            let length = usize::try_from(left).unwrap_or(usize::MAX);
            data.copy_to_bytes(data.remaining().min(length))
        }))
    }

    /// Whether the server has not sent a part that it was asked for.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused
    }

    /// Bytes until the next part.
    fn left(&self, position: u64) -> u64 {
        let next = self.parts.front();
        next.map_or(u64::MAX, |part| part.bytes.start - position)
    }

    /// Asks for as many parts as there may be, if there shall be any.
    async fn ask(
        &mut self,
        position: u64,
        requests: &mut Requests<'_, S>,
        paths: impl Fn() -> Vec<PathInfo>,
    ) -> Result<(), Failure> {
        let (Some(length), Ok(version)) = (self.partial.length, &self.partial.version) else {
            return Ok(());
        };
        // The first answer has all of the rest.
        let first = self.end == length && self.parts.is_empty();
        if first && !self.bandwidth_delay.exceeds_a_window(Instant::now(), paths) {
            return Ok(());
        }
        while self.parts.len() + 1 < self.limit {
            // A window of what is read now may be on its way already.
            let at_once = self.end.min(position + WINDOW);
            let start = self.parts.back().map_or(at_once, |part| part.bytes.end);
            if start == length {
                break;
            }
            let end = length.min(start + PART_LENGTH);
            let range = format!("{start}-{}", end - 1);
            let asked = requests.send(Some((range.as_str(), Some(version))));
            let asked = if start == position {
                // All of what is read is there; the server may allow no other before it is over.
                self.asked = None;
                asked.await?
            } else {
                // The server may allow fewer at a time.
                tokio::select! {
                    biased;
                    asked = asked => asked?,
                    () = ready(()) => break,
                }
            };
            let bytes = start..end;
            self.parts.push_back(Part { bytes, asked });
        }
        Ok(())
    }

    /// Goes on with the next part, or drops all of them.
    async fn turn(&mut self) -> Result<bool, Failure> {
        let Some(mut part) = self.parts.pop_front() else {
            return Ok(false);
        };
        self.asked = None;
        let before = Partial {
            bytes: part.bytes.start,
            ..self.partial.clone()
        };
        let answer = match answer::<S>(&mut part.asked).await {
            Ok(head) => before.judge(head.status(), head.headers()).ok(),
            Err(lost @ Failure::Stream(StreamError::ConnectionError { .. })) => return Err(lost),
            Err(_) => None,
        };
        let fits = matches!(answer, Some(Answer::Rest { end, .. }) if end == part.bytes.end);
        if fits {
            self.asked = Some(part.asked);
            self.end = part.bytes.end;
        } else {
            self.parts.clear();
            self.refused = true;
        }
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use h3::error::Code;
    use mpq_core::client::{Client, ClientConfig};
    use mpq_core::server::{Server, ServerConfig};
    use mpq_core::tls::{Identity, Trust};
    use mpq_serve::site::random::Random;
    use mpq_serve::site::{Site, respond};
    use url::Url;

    use super::*;
    use crate::http::bandwidth_delay::tests::{RTT, path};
    use crate::transport::Connection;
    use crate::transport::plain_quic::PlainQuic;

    /// By quinn.
    type Streams = <PlainQuic as Connection>::Streams;

    /// Some parts and a bit.
    const SIZE: u64 = 5 * PART_LENGTH + 12_345;

    /// A server whose first answer is of the first seed, and the others of the second.
    async fn serve(seeds: [u64; 2]) -> SocketAddr {
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(listen, &identity, ServerConfig::default()).unwrap();
        let address = server.local_addr();
        let [mut site, next] = seeds.map(|seed| {
            Arc::new(Site {
                random: Some(Random::new(SIZE, seed)),
                ..Site::default()
            })
        });
        tokio::spawn(async move {
            let mut session = server.accept().await.unwrap().await.unwrap();
            while let Ok(Some(request)) = session.h3.accept().await {
                let site = std::mem::replace(&mut site, next.clone());
                tokio::spawn(async move {
                    let (request, mut stream) = request.resolve_request().await.unwrap();
                    respond(&site, &request, &mut stream).await
                });
            }
        });
        address
    }

    async fn connect<C: Connection>(remote: SocketAddr) -> (C, Url) {
        let config = ClientConfig {
            trust: Trust::Insecure,
            ..ClientConfig::default()
        };
        let client = C::connect(config, remote, "localhost").await.unwrap();
        (client, "https://localhost/random".parse().unwrap())
    }

    /// Reads by so many requests at a time, as if the paths had no end. Returns what came, the number of
    /// requests, and whether a part was refused.
    async fn read<C: Connection>(remote: SocketAddr, limit: usize) -> (Vec<u8>, u64, bool) {
        let (client, url) = connect::<C>(remote).await;
        let count = Cell::new(0);
        let mut requests = Requests::new(client.requests(), &url, &count);
        let mut asked = requests.send(None).await.unwrap();
        let head = answer::<C::Streams>(&mut asked).await.unwrap();
        let partial = Partial::start(head.headers());
        let mut body = SegmentedBody::new(asked, Some(SIZE), partial, limit);
        body.bandwidth_delay.make_endless();
        let mut got = Vec::new();
        let endless = || vec![path(0, u64::MAX, RTT)];
        while let Some(chunk) = body
            .next(got.len() as u64, &mut requests, endless)
            .await
            .unwrap()
        {
            got.extend_from_slice(&chunk);
        }
        (got, count.get(), body.was_refused())
    }

    fn content(seed: u64) -> Vec<u8> {
        let mut content = vec![0; SIZE as usize];
        Random::new(SIZE, seed).fill(0, &mut content);
        content
    }

    #[tokio::test]
    async fn parts_make_the_body() {
        let whole = content(1);
        for limit in [1, 2, 8] {
            let by_noq = read::<Client>(serve([1, 1]).await, limit).await;
            let by_quinn = read::<PlainQuic>(serve([1, 1]).await, limit).await;
            for (got, requests, refused) in [by_noq, by_quinn] {
                assert!(got == whole, "{} bytes by {limit}", got.len());
                // The first goes on for a window after the second.
                let parts = (SIZE - WINDOW).div_ceil(PART_LENGTH);
                let expected = if limit == 1 { 1 } else { 1 + parts };
                assert_eq!(requests, expected, "{limit} at a time");
                assert!(!refused);
            }
        }
    }

    #[tokio::test]
    async fn a_part_of_another_version_is_not_taken() {
        let whole = content(1);
        let (got, _, refused) = read::<Client>(serve([1, 2]).await, 3).await;
        assert!(refused);
        assert_eq!(got.len() as u64, WINDOW);
        assert!(got == whole[..got.len()]);
    }

    /// Asks for everything, and looks once for the answer, which cannot be there yet.
    async fn wait(requests: &mut Requests<'_, Streams>) -> Asked<Streams> {
        let mut asked = requests.send(None).await.unwrap();
        tokio::select! {
            biased;
            _ = asked.recv_response() => unreachable!("nobody else has run"),
            () = ready(()) => asked,
        }
    }

    #[tokio::test]
    async fn what_is_waited_for_can_be_left() {
        let (client, url) = connect::<PlainQuic>(serve([1, 1]).await).await;
        let count = Cell::new(0);
        let mut requests = Requests::new(client.requests(), &url, &count);
        let mut first = requests.send(None).await.unwrap();
        let head = answer::<Streams>(&mut first).await.unwrap();
        let partial = Partial::start(head.headers());

        let mut body = SegmentedBody::new(wait(&mut requests).await, Some(SIZE), partial, 2);
        body.bandwidth_delay.make_endless();
        let endless = || vec![path(0, u64::MAX, RTT)];
        body.ask(0, &mut requests, endless).await.unwrap();
        assert!(body.turn().await.unwrap());
    }

    /// When it can, [`SegmentedBody`] may stop with a code of HTTP/3 what it leaves.
    #[tokio::test]
    #[should_panic(expected = "on a `None` value")]
    async fn h3_quinn_cannot_stop_what_is_waited_for() {
        let (client, url) = connect::<PlainQuic>(serve([1, 1]).await).await;
        let count = Cell::new(0);
        let mut requests = Requests::new(client.requests(), &url, &count);
        let mut asked = wait(&mut requests).await;
        asked.stop_sending(Code::H3_REQUEST_CANCELLED);
    }
}
