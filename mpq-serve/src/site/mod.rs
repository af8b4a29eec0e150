//! What the server offers, `/random` and the files under a root, and how HTTP/3 requests for it are
//! answered.
//!
//! [`files`] and [`random`] have the bytes; [`conditional`] reads from a request's header which of them
//! it wants; `answer` decides on the head; `content` is what a body is made of, `chunks` are its pieces, as fast as
//! `pace` and as large as `held` allows, and `send` sends them.
//!
//! [`respond`] decides on the whole head first and then writes the body in chunks. It reads a
//! chunk, waits for the rate limits, and sends. Sending waits while the server is parked: the chunk
//! lies in memory then, no file is open ([`descriptors`]), and the first thing to happen after the move is that it is
//! sent.
//!
//! A response that does not come to its end is reset. QUIC streams finish when they are dropped,
//! which would make a truncated body look complete; a guard sees to it, also where the task is
//! cancelled.

mod answer;
mod chunks;
pub mod conditional;
mod content;
pub mod descriptors;
mod digests;
pub mod files;
mod held;
mod listing;
mod pace;
pub mod random;
mod request;
mod send;
mod stored;
mod versions;

use std::num::NonZeroU64;

use bytes::Bytes;
use h3::error::Code;
use h3::quic::{RecvStream, SendStream};
use h3::server::RequestStream;
use http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use tokio::time::Instant;

pub(crate) use self::chunks::Chunks;
use self::files::Root;
pub(crate) use self::pace::{Pace, Paces};
use self::random::Random;
pub(crate) use self::send::Patience;
use self::send::Sending;

/// What the server has to offer.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// What `/random` is, if there is one and no file of that name.
    pub random: Option<Random>,
    /// The files, if any are served.
    pub root: Option<Root>,
    /// Whether a directory without an index is answered with what is in it.
    pub listing: bool,
    /// Whether the scripts of other sites may read what there is (the CORS protocol of the Fetch standard).
    pub cors: bool,
    /// Fields that are added to each response, in place of those of the same name.
    pub header: HeaderMap,
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

/// Fields of a response that nobody but the server can know, or that HTTP/3 has no use for.
pub fn is_of_the_server(name: &HeaderName) -> bool {
    answer::OWN.contains(name) || request::OF_A_CONNECTION.contains(name)
}

/// What a client may have of the server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// How fast it is sent bodies, all of them together.
    pub(crate) paces: Paces,
    /// How long it may take nothing; for ever if none.
    pub(crate) patience: Option<Patience>,
}

impl Site {
    /// How fast one body is sent to a client that shares these with others.
    pub(crate) fn paces(&self, shared: &Paces) -> Paces {
        let mut paces = shared.clone();
        paces.extend(self.limit_rate.map(|rate| Pace::new(rate, Instant::now())));
        paces
    }
}

/// Answers `request` on its stream. Dropping the future resets the stream. A malformed request has no answer but the
/// reset (RFC 9114 §4.1.2).
pub async fn respond<S>(
    site: &Site,
    request: &Request<()>,
    stream: &mut RequestStream<S, Bytes>,
) -> Served
where
    S: SendStream<Bytes> + RecvStream,
{
    respond_on(&Terms::default(), site, request, stream).await
}

/// As [`respond`], to a client with these terms.
pub(crate) async fn respond_on<S>(
    terms: &Terms,
    site: &Site,
    request: &Request<()>,
    stream: &mut RequestStream<S, Bytes>,
) -> Served
where
    S: SendStream<Bytes> + RecvStream,
{
    let (head, body) = match read_body(request, stream).await {
        Ok(None) => site.answer(request).await,
        Ok(Some(status)) => site.refusal(request, status),
        Err(why) => {
            stream.stop_sending(Code::H3_MESSAGE_ERROR);
            stream.stop_stream(Code::H3_MESSAGE_ERROR);
            return Served {
                status: StatusCode::BAD_REQUEST,
                bytes: 0,
                cut: Some(why),
            };
        }
    };
    let status = head.status();
    let mut sending = Sending::new(stream, terms.patience.as_ref());
    let sent = sending.send(head, body, site.paces(&terms.paces)).await;
    let bytes = sending.bytes();
    drop(sending);
    // What was not read of the request is not needed (§4.1).
    stream.stop_sending(Code::H3_NO_ERROR);
    Served {
        status,
        bytes,
        cut: sent.err().map(|error| error.to_string()),
    }
}

/// Reads the body that a request should not need, if its length was told. Returns the status where that is too much.
///
/// # Errors
/// The request is malformed; why.
async fn read_body<S>(
    request: &Request<()>,
    stream: &mut RequestStream<S, Bytes>,
) -> Result<Option<StatusCode>, String>
where
    S: RecvStream,
{
    let header = request.headers();
    if let Some(flaw) = request::flaw(header) {
        return Err(flaw);
    }
    // Methods that are not allowed need not wait for what would come.
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let Some(length) = request::body_length(header)?.filter(|_| is_read) else {
        return Ok(None);
    };
    if length > request::MAX_BODY {
        return Ok(Some(StatusCode::PAYLOAD_TOO_LARGE));
    }
    match request::has_body(stream, length).await {
        Ok(true) => Ok(None),
        Ok(false) => Err("the body is not as long as content-length says".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
