//! Which requests are no requests (RFC 9114 §4.1.2).

use bytes::{Buf, Bytes};
use h3::error::StreamError;
use h3::quic::RecvStream;
use h3::server::RequestStream;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue};

/// The longest body of a request that is read, bytes. Nothing needs one.
pub(super) const MAX_BODY: u64 = 64 << 10;

/// Fields of one connection, which HTTP/3 has no use for (RFC 9114 §4.2).
pub(super) const OF_A_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Why a request is malformed by its header, if it is.
pub(super) fn flaw(header: &HeaderMap) -> Option<String> {
    if let Some(name) = OF_A_CONNECTION
        .iter()
        .find(|name| header.contains_key(*name))
    {
        return Some(format!("{name} has no place in HTTP/3"));
    }
    let is_trailers = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"trailers");
    if !header.get_all(TE).iter().all(is_trailers) {
        return Some("te may only be trailers".to_owned());
    }
    body_length(header).err()
}

/// How many bytes the body is said to have, if anything is said.
///
/// # Errors
/// What is said is no number.
pub(super) fn body_length(header: &HeaderMap) -> Result<Option<u64>, String> {
    let mut lengths = header.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(None);
    };
    let digits = length.to_str().unwrap_or_default();
    let number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.then(|| digits.parse().ok()).flatten();
    match lengths.all(|other| other == length) {
        true => number.map(Some),
        false => None,
    }
    .ok_or_else(|| "content-length is no number".to_owned())
}

/// Reads the body to its end, or to the first byte that is too much. Returns whether it is so long.
pub(super) async fn has_body<S: RecvStream>(
    stream: &mut RequestStream<S, Bytes>,
    length: u64,
) -> Result<bool, StreamError> {
    let mut rest = Some(length);
    while let Some(left) = rest {
        let Some(data) = stream.recv_data().await? else {
            break;
        };
        rest = left.checked_sub(data.remaining() as u64);
    }
    Ok(rest == Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        // Appends, as fields of one name may be there twice.
        let mut header = HeaderMap::new();
        for (name, value) in fields {
            header.append(name, value);
        }
        header
    }

    #[test]
    fn fields_of_a_connection_are_flaws() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("te", "trailers, gzip"),
            ("content-length", "a"),
            ("content-length", "+1"),
            ("content-length", ""),
        ] {
            assert!(flaw(&header(&[(name, value)])).is_some(), "{name}: {value}");
        }
        for fields in [
            &[("te", "trailers")][..],
            &[("content-length", "5")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("accept", "*/*")],
            &[],
        ] {
            assert_eq!(flaw(&header(fields)), None, "{fields:?}");
        }
        let two = [("content-length", "5"), ("content-length", "6")];
        assert!(flaw(&header(&two)).is_some());
    }
}
