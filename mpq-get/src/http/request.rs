//! Requests, and the heads of their answers.

use std::cell::Cell;

use bytes::Bytes;
use h3::client::{RequestStream, SendRequest};
use h3::error::StreamError;
use h3::quic::OpenStreams;
use http::Response;
use http::header::{ACCEPT, IF_RANGE, RANGE, USER_AGENT};
use url::Url;

use super::resume::Validator;
use crate::error::Error;

/// A part is of use only as a whole, the first before the others (RFC 9218 §4). It is said aloud, since a server may
/// send the beginning of each part at once to a client that says nothing.
const IN_ORDER: &str = "u=3";

/// A request on its way, and its answer.
pub(crate) type Asked<S> = RequestStream<<S as OpenStreams<Bytes>>::BidiStream, Bytes>;

/// Why a body, or its head, did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Told(#[from] Error),
}

/// Asks for one URL, and counts the requests. The connection closes with the last of these.
pub(crate) struct Requests<'a, S: OpenStreams<Bytes>> {
    connection: SendRequest<S, Bytes>,
    url: &'a Url,
    count: &'a Cell<u64>,
}

impl<'a, S: OpenStreams<Bytes>> Requests<'a, S> {
    pub(crate) fn new(
        connection: SendRequest<S, Bytes>,
        url: &'a Url,
        count: &'a Cell<u64>,
    ) -> Self {
        Self {
            connection,
            url,
            count,
        }
    }

    /// Asks for all of the body, or for these bytes of this version or of whichever there is, as `Range` has them.
    pub(crate) async fn send(
        &mut self,
        part: Option<(&str, Option<&Validator>)>,
    ) -> Result<Asked<S>, Failure> {
        let mut get = http::Request::get(self.url.as_str())
            .header(USER_AGENT, concat!("mpq-get/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*");
        if let Some((bytes, version)) = part {
            get = get
                .header("priority", IN_ORDER)
                .header(RANGE, format!("bytes={bytes}"));
            if let Some(version) = version {
                get = get.header(IF_RANGE, version.to_string());
            }
        }
        let get = get.body(()).map_err(|e| Error::Url {
            url: self.url.to_string(),
            reason: e.to_string(),
        })?;
        let mut asked = self.connection.send_request(get).await?;
        self.count.set(self.count.get() + 1);
        asked.finish().await?;
        Ok(asked)
    }
}

/// Waits for the head of the answer.
pub(crate) async fn answer<S: OpenStreams<Bytes>>(
    asked: &mut Asked<S>,
) -> Result<Response<()>, Failure> {
    loop {
        let head = asked.recv_response().await?;
        if !head.status().is_informational() {
            return Ok(head);
        }
    }
}
