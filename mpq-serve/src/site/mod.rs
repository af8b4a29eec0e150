//! What the server offers, `/random` and the files under a root, and how HTTP/3 requests for it are
//! answered.
//!
//! [`files`] and [`random`] have the bytes; [`conditional`] reads from a request's header which of them
//! it wants; `content` is what a body is made of, `chunks` are its pieces, as fast as
//! `pace` allows, and `send` sends them.
//!
//! [`respond`] decides on the whole head first and then writes the body in chunks. It reads a
//! chunk, waits for the rate limit, and sends. Sending waits while the server is parked: the chunk
//! lies in memory then, no file is open, and the first thing to happen after the move is that it is
//! sent.
//!
//! A response that does not come to its end is reset. QUIC streams finish when they are dropped,
//! which would make a truncated body look complete; a guard sees to it, also where the task is
//! cancelled.

mod chunks;
pub mod conditional;
mod content;
pub mod files;
mod pace;
pub mod random;
mod send;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h3::quic::SendStream;
use h3::server::RequestStream;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderMap,
    HeaderName, HeaderValue, LAST_MODIFIED,
};
use http::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::task::spawn_blocking;

pub(crate) use self::chunks::Chunks;
use self::conditional::{Selection, Validators, select};
use self::content::Content;
pub(crate) use self::content::Excerpt;
use self::files::{FindError, Root};
use self::random::Random;
use self::send::Sending;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The status decided on.
    pub status: StatusCode,
    /// Bytes of the body that the client has acknowledged; of a response that was cut, those handed to the
    /// connection, of which some may not have come.
    pub bytes: u64,
    /// Why the response was cut, if it was. Its stream was reset then.
    pub cut: Option<String>,
}

/// Answers `request` on its stream. Dropping the future resets the stream.
pub async fn respond<S>(
    site: &Site,
    request: &Request<()>,
    stream: &mut RequestStream<S, Bytes>,
) -> Served
where
    S: SendStream<Bytes>,
{
    let (head, body) = site.answer(request).await;
    let status = head.status();
    let mut sending = Sending::new(stream);
    let sent = sending.send(head, body, site.limit_rate).await;
    Served {
        status,
        bytes: sending.bytes(),
        cut: sent.err().map(|error| error.to_string()),
    }
}

impl Site {
    /// Decides on the head of the response, and what its body is, if it has one.
    pub(crate) async fn answer(&self, request: &Request<()>) -> (Response<()>, Option<Excerpt>) {
        let method = request.method();
        let mut header = HeaderMap::new();
        // Without it, nobody could tell how strong a Last-Modified is (RFC 9110 §6.6.1, §8.8.2.2).
        let date = httpdate::fmt_http_date(SystemTime::now());
        header.extend(HeaderValue::try_from(date).map(|date| (DATE, date)));
        let (status, body) = if *method == Method::GET || *method == Method::HEAD {
            match self.find(request.uri().path()).await {
                Ok(content) => part(content, method, request.headers(), &mut header),
                Err(status) => (status, Some(Excerpt::whole(Content::text(status)))),
            }
        } else {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            header.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            (status, Some(Excerpt::whole(Content::text(status))))
        };

        if let Some(Excerpt { content, range }) = &body {
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

/// Picks what the request's conditions and range ask for, and adds the fields that say so.
fn part(
    content: Content,
    method: &Method,
    conditions: &HeaderMap,
    header: &mut HeaderMap,
) -> (StatusCode, Option<Excerpt>) {
    let (etag, modified) = match &content {
        Content::Random(random) => (random.etag(), None),
        Content::File(file) => (file.etag(), file.modified()),
        Content::Text(_) => return (StatusCode::OK, Some(Excerpt::whole(content))),
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
        Selection::Whole => (StatusCode::OK, Some(Excerpt::whole(content))),
        Selection::Part(range) => {
            let (first, last) = (range.start, range.end - 1);
            add(CONTENT_RANGE, format!("bytes {first}-{last}/{len}"));
            (
                StatusCode::PARTIAL_CONTENT,
                Some(Excerpt { content, range }),
            )
        }
        Selection::NotModified => (StatusCode::NOT_MODIFIED, None),
        Selection::PreconditionFailed => {
            let status = StatusCode::PRECONDITION_FAILED;
            (status, Some(Excerpt::whole(Content::text(status))))
        }
        Selection::Unsatisfiable => {
            add(CONTENT_RANGE, format!("bytes */{len}"));
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            (status, Some(Excerpt::whole(Content::text(status))))
        }
    };
    add(ACCEPT_RANGES, "bytes".into());
    add(ETAG, etag);
    if let Some(modified) = modified {
        add(LAST_MODIFIED, modified.to_string());
    }
    (status, body)
}
