//! Answers HTTP/3 requests for `/random` and for the files under a root.
//!
//! [`respond`] decides on the whole head first and then writes the body in chunks. It reads a
//! chunk, waits for the rate limit, then for the gate, and sends: while the gate is closed the
//! chunk lies in memory, no file is open, and the first thing to happen when the gate opens is
//! that it is sent.
//!
//! A response that does not come to its end is reset. QUIC streams finish when they are dropped,
//! which would make a truncated body look complete; a guard sees to it, also where the task is
//! cancelled.

use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h3::error::{Code, StreamError};
use h3::quic::SendStream;
use h3::server::RequestStream;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderMap,
    HeaderName, HeaderValue, LAST_MODIFIED,
};
use http::{Method, Request, Response, StatusCode};
use mpq_core::Gate;
use percent_encoding::percent_decode_str;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::files::{FindError, Root, StoredFile};
use crate::random::Random;
use crate::range::{Selection, Validators, select};

/// The largest piece of a body that is read and sent at a time, in bytes. What has been sent when
/// the gate closes still has to drain, and every running response holds one.
const CHUNK: u64 = 128 << 10;

/// The smallest piece, however slow the rate, in bytes.
const MIN_CHUNK: u64 = 1 << 10;

/// The depth of the rate limit's bucket: how much late time may be made up for.
const BURST: Duration = Duration::from_millis(50);

/// What the server has to offer.
#[derive(Debug, Clone)]
pub struct Site {
    /// What `/random` is.
    pub random: Random,
    /// The files, if any are served. `/random` wins over a file of that name.
    pub root: Option<Root>,
    /// The rate at which each body is written, in bit/s; as fast as it goes if none.
    pub limit_rate: Option<NonZeroU64>,
}

/// What was sent, for the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The status decided on.
    pub status: StatusCode,
    /// Bytes of the body handed to the connection.
    pub bytes: u64,
    /// Whether the response was finished; else its stream was reset.
    pub complete: bool,
}

/// Answers `request` on its stream, holding each chunk until the gate is open. Dropping the future
/// resets the stream.
pub async fn respond<S>(
    site: &Site,
    gate: &Gate,
    request: &Request<()>,
    stream: &mut RequestStream<S, Bytes>,
) -> Served
where
    S: SendStream<Bytes>,
{
    let (head, body) = site.answer(request).await;
    let status = head.status();
    let mut sending = Sending {
        stream,
        bytes: 0,
        complete: false,
    };
    if let Err(error) = sending.send(head, body, gate, site.limit_rate).await {
        tracing::debug!(%status, bytes = sending.bytes, "response not completed: {error}");
    }
    Served {
        status,
        bytes: sending.bytes,
        complete: sending.complete,
    }
}

/// A response under way.
struct Sending<'a, S: SendStream<Bytes>> {
    stream: &'a mut RequestStream<S, Bytes>,
    bytes: u64,
    complete: bool,
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Read(#[from] io::Error),
}

impl<S: SendStream<Bytes>> Sending<'_, S> {
    async fn send(
        &mut self,
        head: Response<()>,
        body: Option<Body>,
        gate: &Gate,
        rate: Option<NonZeroU64>,
    ) -> Result<(), SendError> {
        gate.passed().await;
        self.stream.send_response(head).await?;
        if let Some(Body { content, mut range }) = body {
            let mut pace = Pace::new(rate, Instant::now());
            while !range.is_empty() {
                let len = pace.chunk().min(range.end - range.start);
                let chunk = content.read(range.start, len as usize).await?;
                if let Some(at) = pace.reserve(len, Instant::now()) {
                    sleep_until(at).await;
                }
                gate.passed().await;
                self.stream.send_data(chunk).await?;
                range.start += len;
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

/// The rate limit of one body: a token bucket, kept as the time at which it is next full enough.
struct Pace {
    rate: Option<NonZeroU64>,
    next: Instant,
}

impl Pace {
    fn new(rate: Option<NonZeroU64>, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// How much to send at a time, in bytes: no more than [`BURST`] carries.
    fn chunk(&self) -> u64 {
        self.rate.map_or(CHUNK, |rate| {
            let burst = (rate.get() as f64 / 8.0 * BURST.as_secs_f64()) as u64;
            burst.clamp(MIN_CHUNK, CHUNK)
        })
    }

    /// When `bytes` more may be sent, and counts them.
    fn reserve(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        // A wait at the gate must not be followed by a burst of all that was missed.
        let earliest = now.checked_sub(BURST).unwrap_or(self.next);
        let at = self.next.max(earliest);
        self.next = at + Duration::from_secs_f64(bytes as f64 * 8.0 / rate.get() as f64);
        Some(at)
    }
}

/// Part of some content.
struct Body {
    content: Content,
    range: Range<u64>,
}

/// Where bytes come from.
enum Content {
    Random(Random),
    File(Arc<StoredFile>),
    Text(Bytes),
}

impl Content {
    /// The text that goes with a status that is not a success.
    fn text(status: StatusCode) -> Self {
        Self::Text(format!("{status}\n").into())
    }

    fn len(&self) -> u64 {
        match self {
            Self::Random(random) => random.size(),
            Self::File(file) => file.len(),
            Self::Text(text) => text.len() as u64,
        }
    }

    fn content_type(&self) -> &'static str {
        match self {
            Self::Random(_) => "application/octet-stream",
            Self::File(file) => file.content_type(),
            Self::Text(_) => "text/plain; charset=utf-8",
        }
    }

    /// Exactly `len` bytes at `offset`, which lie inside.
    async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Random(random) => {
                let mut buffer = vec![0; len];
                random.fill(offset, &mut buffer);
                Ok(buffer.into())
            }
            Self::File(file) => {
                let file = Arc::clone(file);
                spawn_blocking(move || file.read(offset, len)).await?
            }
            Self::Text(text) => Ok(text.slice(offset as usize..offset as usize + len)),
        }
    }
}

impl Site {
    /// Decides on the head of the response, and what its body is, if it has one.
    async fn answer(&self, request: &Request<()>) -> (Response<()>, Option<Body>) {
        let method = request.method();
        let mut header = HeaderMap::new();
        // Without it, nobody could tell how strong a Last-Modified is (RFC 9110 §6.6.1, §8.8.2.2).
        let date = httpdate::fmt_http_date(SystemTime::now());
        header.extend(HeaderValue::try_from(date).map(|date| (DATE, date)));
        let (status, body) = if *method == Method::GET || *method == Method::HEAD {
            match self.find(request.uri().path()).await {
                Ok(content) => part(content, method, request.headers(), &mut header),
                Err(status) => (status, Some(whole(Content::text(status)))),
            }
        } else {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            header.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            (status, Some(whole(Content::text(status))))
        };

        if let Some(Body { content, range }) = &body {
            let media_type = HeaderValue::from_static(content.content_type());
            header.insert(CONTENT_TYPE, media_type);
            header.insert(CONTENT_LENGTH, (range.end - range.start).into());
        }
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = header;
        (head, body.filter(|_| *method != Method::HEAD))
    }

    /// What lies at a URL path as it came, or why there is nothing.
    async fn find(&self, path: &str) -> Result<Content, StatusCode> {
        let path = percent_decode_str(path)
            .decode_utf8()
            .ok()
            .filter(|path| !path.contains('\0'))
            .ok_or(StatusCode::BAD_REQUEST)?;
        if path == "/random" {
            return Ok(Content::Random(self.random));
        }
        let root = self.root.clone().ok_or(StatusCode::NOT_FOUND)?;
        let name = path.into_owned();
        let found = spawn_blocking(move || root.find(&name))
            .await
            .unwrap_or_else(|error| Err(FindError::Io(error.into())));
        match found {
            Ok(file) => Ok(Content::File(Arc::new(file))),
            Err(FindError::NotFound) => Err(StatusCode::NOT_FOUND),
            Err(FindError::Forbidden) => Err(StatusCode::FORBIDDEN),
            Err(error @ FindError::Io(_)) => {
                tracing::warn!("{error}");
                Err(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

fn whole(content: Content) -> Body {
    Body {
        range: 0..content.len(),
        content,
    }
}

/// Picks what the request's conditions and range ask for, and adds the fields that say so.
fn part(
    content: Content,
    method: &Method,
    conditions: &HeaderMap,
    header: &mut HeaderMap,
) -> (StatusCode, Option<Body>) {
    let (etag, modified) = match &content {
        Content::Random(random) => (random.etag(), None),
        Content::File(file) => (file.etag(), file.modified()),
        Content::Text(_) => return (StatusCode::OK, Some(whole(content))),
    };
    let len = content.len();
    let validators = Validators {
        len,
        etag: &etag,
        modified,
    };
    let selection = select(method, conditions, &validators, SystemTime::now().into());

    let mut add = |name: HeaderName, value: String| {
        // All of them are made of visible ASCII.
        if let Ok(value) = HeaderValue::try_from(value) {
            header.insert(name, value);
        }
    };
    let (status, body) = match selection {
        Selection::Whole => (StatusCode::OK, Some(whole(content))),
        Selection::Part(range) => {
            let (first, last) = (range.start, range.end - 1);
            add(CONTENT_RANGE, format!("bytes {first}-{last}/{len}"));
            (StatusCode::PARTIAL_CONTENT, Some(Body { content, range }))
        }
        Selection::NotModified => (StatusCode::NOT_MODIFIED, None),
        Selection::PreconditionFailed => {
            let status = StatusCode::PRECONDITION_FAILED;
            (status, Some(whole(Content::text(status))))
        }
        Selection::Unsatisfiable => {
            add(CONTENT_RANGE, format!("bytes */{len}"));
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            (status, Some(whole(Content::text(status))))
        }
    };
    add(ACCEPT_RANGES, "bytes".into());
    add(ETAG, etag);
    if let Some(modified) = modified {
        add(LAST_MODIFIED, modified.to_string());
    }
    (status, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_the_rate_and_a_pause_is_not_made_up_for() {
        let rate = 8_000_000; // 1 MB/s
        let mut now = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(rate), now);
        let chunk = pace.chunk();
        assert_eq!(chunk, 50_000);
        let mut seconds_for = |bytes: u64, now: &mut Instant| {
            let start = *now;
            for _ in 0..bytes / chunk {
                *now = pace.reserve(chunk, *now).unwrap().max(*now);
            }
            (*now - start).as_secs_f64()
        };

        let took = seconds_for(2_000_000, &mut now);
        assert!((1.9..=2.01).contains(&took), "{took} s");
        now += Duration::from_secs(60);
        let took = seconds_for(1_000_000, &mut now);
        assert!((0.85..=1.01).contains(&took), "{took} s for 1 MB");
    }

    #[test]
    fn chunks_are_bounded_at_every_rate() {
        for (rate, expected) in [(1, MIN_CHUNK), (u64::MAX, CHUNK)] {
            let pace = Pace::new(NonZeroU64::new(rate), Instant::now());
            assert_eq!(pace.chunk(), expected);
        }
        assert_eq!(Pace::new(None, Instant::now()).chunk(), CHUNK);
    }
}
