//! The way of the body, from a connection to the output.

use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use h3::quic::OpenStreams;
use headers::{AcceptRanges, HeaderMap, HeaderMapExt, LastModified};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderName, Response};

use super::request::DownloadRequest;
use super::retry;
use super::transfer::Transfer;
use crate::error::Error;
use crate::http::request::{Asked, Failure, Requests, answer};
use crate::http::resume::{Answer, Partial, is_end};
use crate::http::segments::SegmentedBody;
use crate::output::Output;
use crate::output::part_meta::PartMeta;
use crate::report::events::DownloadEvent;
use crate::transport::Connection;

/// Asks for what is missing and hands it to `output`, which it opens when the server has answered
/// with something to write. Also ends when the output has failed; that error comes from
/// [`Output::close`].
pub(super) async fn fetch(
    client: &impl Connection,
    remote: SocketAddr,
    request: &DownloadRequest,
    transfer: &Transfer,
    output: &mut Option<Output>,
) -> Result<(), Failure> {
    let mut requests = Requests::new(client.requests(), &request.url, &transfer.requests);
    let mut segments = request.segments;
    let end = loop {
        let begun = begin(&mut requests, remote, request, transfer, output).await?;
        let (Some(Begun { asked, end, ranges }), Some(output)) = (begun, output.as_ref()) else {
            return Ok(());
        };
        if !ranges {
            segments = 1;
        }
        let partial = transfer.partial.borrow().clone();
        let mut body = SegmentedBody::new(asked, end, partial, segments);
        loop {
            let position = transfer.partial.borrow().bytes;
            let next = body.next(position, &mut requests, || client.paths());
            let Some(chunk) = next.await? else { break };
            transfer.arrived();
            let length = chunk.len() as u64;
            transfer.is_writing.set(true);
            let taken = output.write(chunk).await;
            transfer.is_writing.set(false);
            if !taken {
                return Ok(());
            }
            // Not before: if the connection is lost while the writer is waited for, it will not be
            // written, and must be asked for again.
            transfer.add(length);
        }
        if !body.was_refused() {
            break end;
        }
        segments = 1;
    };
    // Neither QUIC nor h3 compares the body with its announced length (RFC 9114, section 4.1.2).
    let partial = transfer.partial.borrow();
    let received = partial.bytes;
    if let Some(end) = end.filter(|end| received > *end) {
        let reason = format!("{received} bytes came where {end} were announced");
        return Err(Error::Http3(reason).into());
    }
    match partial.length.or(end) {
        Some(expected) if received < expected => Err(Error::Short { received, expected }.into()),
        _ => Ok(()),
    }
}

/// An answer whose body is to come.
struct Begun<S: OpenStreams<Bytes>> {
    asked: Asked<S>,
    /// Offset at which it ends, where known.
    end: Option<u64>,
    /// Whether parts of it can be asked for.
    ranges: bool,
}

/// Asks for everything or for what is missing until the server's answer has it, and opens the output.
/// Nothing follows if nothing is missing, or the output has failed.
async fn begin<S: OpenStreams<Bytes>>(
    requests: &mut Requests<'_, S>,
    remote: SocketAddr,
    request: &DownloadRequest,
    transfer: &Transfer,
    output: &mut Option<Output>,
) -> Result<Option<Begun<S>>, Failure> {
    loop {
        let partial = transfer.partial.borrow().clone();
        let offset = partial.bytes;
        let rest = format!("{offset}-");
        if let Some(bytes) = transfer.file.get() {
            let asked = format!("{bytes}-");
            let mut asked = requests.send(Some((&asked, None))).await?;
            let head = answer::<S>(&mut asked).await?;
            if is_end(bytes, head.status(), head.headers()) {
                *output = Some(Output::complete(transfer.place())?);
                return Ok(None);
            }
            // It is another file: that which comes replaces it when it is complete.
            transfer.file.set(None);
        }
        let part = partial
            .resumable()
            .map(|version| (rest.as_str(), Some(version)));
        let mut asked = requests.send(part).await?;
        let head = answer::<S>(&mut asked).await?;
        let judged = partial.judge(head.status(), head.headers());
        let answer = judged.map_err(|mismatch| Error::Http3(mismatch.to_string()))?;
        if matches!(answer, Answer::Rest { .. } | Answer::Complete) && output.is_none() {
            *output = Some(Output::go_on(transfer.place(), offset)?);
        }
        match answer {
            Answer::Whole(lost) => {
                if let Some(why) = lost {
                    if output
                        .as_ref()
                        .is_some_and(|output| !output.is_restartable())
                    {
                        return Err(Error::CannotStartOver(why).into());
                    }
                    let reason = why.to_string();
                    transfer.tell(DownloadEvent::Restarted { reason });
                }
                let start = Partial::start(head.headers());
                let record = PartMeta::of(request.url.as_str(), &start);
                let end = start.length;
                transfer.modified.set(modified(head.headers()));
                *transfer.partial.borrow_mut() = start;
                if let Some(output) = output.as_ref() {
                    if !output.start_over(record).await {
                        return Ok(None);
                    }
                } else {
                    *output = Some(Output::create(transfer.place(), &record)?);
                }
                let ranges = head.headers().typed_get() == Some(AcceptRanges::bytes());
                return Ok(Some(Begun { asked, end, ranges }));
            }
            Answer::Rest { end, length } => {
                transfer.partial.borrow_mut().length = length;
                transfer.modified.set(modified(head.headers()));
                transfer.tell(DownloadEvent::Reconnected { offset, remote });
                return Ok(Some(Begun {
                    asked,
                    end: Some(end),
                    ranges: true,
                }));
            }
            Answer::Complete => return Ok(None),
            // The next request is for everything.
            Answer::StartOver(why) => transfer.partial.borrow_mut().version = Err(why),
            Answer::Refused => return Err(refused(&head).into()),
        }
    }
}

/// When the server's file was changed last, as it says.
fn modified(headers: &HeaderMap) -> Option<SystemTime> {
    headers.typed_get::<LastModified>().map(SystemTime::from)
}

/// The error that an answer stands for.
fn refused(head: &Response<()>) -> Error {
    let header = |name: HeaderName| head.headers().get(name)?.to_str().ok();
    Error::Status {
        status: head.status(),
        location: header(LOCATION).map(str::to_owned),
        retry_after: header(RETRY_AFTER)
            .and_then(|value| retry::retry_after(value, SystemTime::now())),
    }
}
