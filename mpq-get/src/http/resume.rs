//! Which bytes of a body are still to be asked for, and what the answer means for those there are.
//!
//! Bytes of two versions of a file must never be joined. So the rest is asked for only together
//! with a [`Validator`] of the version that the beginning is of, as `If-Range` (RFC 9110 §13.1.5),
//! and [`Partial::judge`] takes each answer for no more than it says:
//!
//! | answer to `Range: bytes=N-` | what becomes of the N bytes |
//! | --- | --- |
//! | 206 with a fitting Content-Range | the rest is added |
//! | 206 with any other | an error of the server's |
//! | 200 | started over: the file has changed, or the server knows no ranges |
//! | 416 with `bytes */N` | they are all there is |
//! | other 416, 412 | started over, by another request |
//! | everything else | kept; the request has failed |

use std::fmt;
use std::time::{Duration, SystemTime};

use headers::{ContentRange, Date, ETag, HeaderMapExt, LastModified};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap};
use http::{HeaderValue, StatusCode};

/// By how much a response's Date must exceed its Last-Modified. One second would do if both came
/// from the same clock (RFC 9110 §8.8.2.2), which a client cannot know; RFC 7232 has a minute.
const DATE_MARGIN: Duration = Duration::from_secs(60);

/// What tells one version of a file from every other: a strong entity tag or, where there is no
/// tag at all, a date that is strong enough. It is held as the value of `If-Range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validator(String);

impl Validator {
    /// That of a response; none if it has only weak ones (RFC 9110 §8.8.1, §13.1.5).
    pub fn of(headers: &HeaderMap) -> Option<Validator> {
        if let Some(tag) = headers.get(ETAG) {
            return Self::parse(tag.to_str().ok()?).filter(Self::is_tag);
        }
        let modified: SystemTime = headers.typed_get::<LastModified>()?.into();
        let date: SystemTime = headers.typed_get::<Date>()?.into();
        let settled = date
            .duration_since(modified)
            .is_ok_and(|age| age >= DATE_MARGIN);
        settled.then(|| Validator(httpdate::fmt_http_date(modified)))
    }

    /// Reads back what [`Display`](fmt::Display) has written; none if it is no strong tag and no
    /// date.
    pub fn parse(if_range: &str) -> Option<Validator> {
        let strong = if_range.parse::<ETag>().is_ok_and(|tag| !tag.is_weak());
        let known = strong || httpdate::parse_http_date(if_range).is_ok();
        known.then(|| Validator(if_range.to_owned()))
    }

    fn is_tag(&self) -> bool {
        self.0.starts_with('"')
    }

    /// Whether a response is of another version, as far as it says so.
    fn contradicts(&self, headers: &HeaderMap) -> bool {
        let tag = headers.get(ETAG).map(HeaderValue::as_bytes);
        self.is_tag() && tag.is_some_and(|tag| tag != self.0.as_bytes())
    }
}

/// The value of `If-Range`.
impl fmt::Display for Validator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why bytes that are there are of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Restart {
    /// The server has another version by now.
    #[error("the file has changed")]
    Changed,
    /// The server answers with the whole file only.
    #[error("the server does not send parts of the file")]
    NoRanges,
    /// Nothing strong tells the file's versions apart.
    #[error("the server gives nothing to tell this version of the file from another by")]
    NoValidator,
    /// The file ends before what there is of it, or there.
    #[error("the file is shorter than what there is of it")]
    Shorter,
    /// Nobody knows what the bytes are of.
    #[error("there is no record of what the .part file is of")]
    NoRecord,
    /// The bytes are of something else.
    #[error("the .part file is of {0}")]
    OtherUrl(String),
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The whole body follows. If there were bytes of it already, they are of no use.
    Whole(Option<Restart>),
    /// What is missing follows, up to this offset.
    Rest {
        /// Offset behind the last byte that follows.
        end: u64,
        /// Length of the whole file, where the server tells it.
        length: Option<u64>,
    },
    /// Nothing is missing.
    Complete,
    /// The bytes are of no use, and all of the body must be asked for anew.
    StartOver(Restart),
    /// The request has failed, which says nothing about the bytes.
    Refused,
}

/// A 206 that does not answer what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("asked for what follows byte {offset}, the server sent {got}")]
pub struct RangeMismatch {
    offset: u64,
    got: String,
}

/// What there is of a body, from its first byte on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// How many bytes.
    pub bytes: u64,
    /// Length of the whole body, where known, in bytes.
    pub length: Option<u64>,
    /// What they are of, or why that does not help.
    pub version: Result<Validator, Restart>,
}

impl Default for Partial {
    /// Nothing yet.
    fn default() -> Partial {
        Partial {
            bytes: 0,
            length: None,
            version: Err(Restart::NoValidator),
        }
    }
}

impl Partial {
    /// Nothing yet of the whole body that a response announces.
    pub fn start(headers: &HeaderMap) -> Partial {
        let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        Partial {
            bytes: 0,
            length: length.and_then(|length| length.parse().ok()),
            version: Validator::of(headers).ok_or(Restart::NoValidator),
        }
    }

    /// The version whose rest can be asked for, if there is a beginning and its version is known.
    pub fn resumable(&self) -> Option<&Validator> {
        self.version.as_ref().ok().filter(|_| self.bytes > 0)
    }

    /// Whether all of the body is there.
    pub fn is_complete(&self) -> bool {
        self.length == Some(self.bytes)
    }

    /// What an answer means. It is taken to be one to a request for the rest if there is a
    /// [`resumable`](Partial::resumable) version, and otherwise to one for everything.
    ///
    /// # Errors
    /// [`RangeMismatch`] if the server sends a part other than the one asked for.
    pub fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Result<Answer, RangeMismatch> {
        let Some(version) = self.resumable() else {
            // A part of the body, which nobody asked for, is not what the file should hold.
            let whole = status.is_success() && status != StatusCode::PARTIAL_CONTENT;
            let lost = self.version.clone().err().filter(|_| self.bytes > 0);
            return Ok(if whole {
                Answer::Whole(lost)
            } else {
                Answer::Refused
            });
        };
        Ok(match status {
            StatusCode::PARTIAL_CONTENT => return self.rest(version, headers),
            StatusCode::RANGE_NOT_SATISFIABLE => self.end(headers),
            StatusCode::PRECONDITION_FAILED => Answer::StartOver(Restart::Changed),
            // The same version, whole: that the condition did not hold is not the reason.
            _ if status.is_success() && Validator::of(headers).as_ref() == Some(version) => {
                Answer::Whole(Some(Restart::NoRanges))
            }
            _ if status.is_success() => Answer::Whole(Some(Restart::Changed)),
            _ => Answer::Refused,
        })
    }

    fn rest(&self, version: &Validator, headers: &HeaderMap) -> Result<Answer, RangeMismatch> {
        let mismatch = || RangeMismatch {
            offset: self.bytes,
            got: match headers.get(CONTENT_RANGE) {
                Some(range) => String::from_utf8_lossy(range.as_bytes()).into_owned(),
                None => "a part without Content-Range".to_owned(),
            },
        };
        let range: ContentRange = headers.typed_get().ok_or_else(mismatch)?;
        let (first, last) = range.bytes_range().ok_or_else(mismatch)?;
        let end = last.checked_add(1).ok_or_else(mismatch)?;
        let length = range.bytes_len();
        let same_length = match (length, self.length) {
            (Some(there), Some(here)) => there == here,
            _ => true,
        };
        let inside = length.is_none_or(|length| end <= length);
        if first != self.bytes || !inside || !same_length || version.contradicts(headers) {
            return Err(mismatch());
        }
        let length = length.or(self.length);
        Ok(Answer::Rest { end, length })
    }

    /// What 416 says: with the length, that there is nothing behind the bytes (RFC 9110 §15.5.17).
    fn end(&self, headers: &HeaderMap) -> Answer {
        let ends = is_end(self.bytes, StatusCode::RANGE_NOT_SATISFIABLE, headers);
        if ends && self.length.is_none_or(|here| here == self.bytes) {
            Answer::Complete
        } else {
            Answer::StartOver(Restart::Shorter)
        }
    }
}

/// Whether an answer to a request for what follows says that the file ends just there.
pub fn is_end(bytes: u64, status: StatusCode, headers: &HeaderMap) -> bool {
    let there = headers
        .typed_get::<ContentRange>()
        .filter(|range| range.bytes_range().is_none())
        .and_then(|range| range.bytes_len());
    status == StatusCode::RANGE_NOT_SATISFIABLE && there == Some(bytes)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use http::header::{DATE, LAST_MODIFIED};

    use super::*;

    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const SAME_MINUTE: &str = "Sun, 06 Nov 1994 08:50:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:50:37 GMT";

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    fn validator(fields: &[(HeaderName, &str)]) -> Option<String> {
        Validator::of(&headers(fields)).map(|validator| validator.to_string())
    }

    /// 40 of the 100 bytes of version "a".
    fn partial() -> Partial {
        Partial {
            bytes: 40,
            length: Some(100),
            version: Ok(Validator::parse("\"a\"").unwrap()),
        }
    }

    fn judge(partial: &Partial, status: u16, fields: &[(HeaderName, &str)]) -> Option<Answer> {
        let status = StatusCode::from_u16(status).unwrap();
        partial.judge(status, &headers(fields)).ok()
    }

    #[test]
    fn only_strong_validators_count() {
        assert_eq!(validator(&[(ETAG, "\"a\"")]).as_deref(), Some("\"a\""));
        let dates = [(LAST_MODIFIED, MODIFIED), (DATE, LATER)];
        assert_eq!(validator(&dates).as_deref(), Some(MODIFIED));
        for weak in [
            &[] as &[_],
            &[(ETAG, "W/\"a\"")],
            &[(ETAG, "a")],
            // Where there is a tag, the date must not be used in its place.
            &[(ETAG, "W/\"a\""), (LAST_MODIFIED, MODIFIED), (DATE, LATER)],
            &[(LAST_MODIFIED, MODIFIED)],
            &[(LAST_MODIFIED, MODIFIED), (DATE, SAME_MINUTE)],
            &[(LAST_MODIFIED, LATER), (DATE, MODIFIED)],
        ] {
            assert_eq!(validator(weak), None, "{weak:?}");
        }
    }

    #[test]
    fn validators_are_read_back() {
        for written in ["\"a\"", MODIFIED] {
            assert_eq!(Validator::parse(written).unwrap().to_string(), written);
        }
        for other in ["", "a", "W/\"a\"", "\"a", "\"a\"\r\nx: y"] {
            assert_eq!(Validator::parse(other), None, "{other}");
        }
    }

    #[test]
    fn everything_is_asked_for_where_the_version_is_unknown() {
        let nothing = Partial::default();
        assert_eq!(nothing.resumable(), None);
        assert_eq!(judge(&nothing, 200, &[]), Some(Answer::Whole(None)));
        let part = [(CONTENT_RANGE, "bytes 0-99/100")];
        assert_eq!(judge(&nothing, 206, &part), Some(Answer::Refused));
        assert_eq!(judge(&nothing, 503, &[]), Some(Answer::Refused));
        let useless = Partial {
            version: Err(Restart::NoRecord),
            ..partial()
        };
        assert_eq!(useless.resumable(), None);
        let lost = Some(Restart::NoRecord);
        assert_eq!(judge(&useless, 200, &[]), Some(Answer::Whole(lost)));
    }

    #[test]
    fn the_rest_must_fit() {
        let rest = |range| judge(&partial(), 206, &[(CONTENT_RANGE, range)]);
        let whole_rest = Answer::Rest {
            end: 100,
            length: Some(100),
        };
        assert_eq!(rest("bytes 40-99/100"), Some(whole_rest.clone()));
        assert_eq!(rest("bytes 40-99/*"), Some(whole_rest));
        // Less than was asked for is allowed (RFC 9110 §15.3.7).
        let some = Answer::Rest {
            end: 60,
            length: Some(100),
        };
        assert_eq!(rest("bytes 40-59/100"), Some(some));
        for mismatch in [
            "bytes 39-99/100",
            "bytes 41-99/100",
            "bytes 0-99/100",
            "bytes 40-100/100",
            "bytes 40-98/99",
            "bytes 40-100/101",
            "bytes 40-18446744073709551615/*",
            "bytes 40-39/100",
            "bytes */100",
            "bytes 40-99",
            "lines 40-99/100",
            "",
        ] {
            assert_eq!(rest(mismatch), None, "{mismatch}");
        }
        assert_eq!(judge(&partial(), 206, &[]), None);
        let tagged = |tag| {
            let fields = [(CONTENT_RANGE, "bytes 40-99/100"), (ETAG, tag)];
            judge(&partial(), 206, &fields)
        };
        assert!(tagged("\"a\"").is_some());
        assert_eq!(tagged("\"b\""), None, "two versions must not be joined");
    }

    #[test]
    fn a_mismatch_is_told() {
        let fields = headers(&[(CONTENT_RANGE, "bytes 0-1/2")]);
        let mismatch = partial().judge(StatusCode::PARTIAL_CONTENT, &fields);
        let text = mismatch.unwrap_err().to_string();
        assert!(text.contains("byte 40") && text.contains("bytes 0-1/2"));
    }

    #[test]
    fn the_whole_is_started_over() {
        let whole = |fields: &[_]| judge(&partial(), 200, fields);
        let no_ranges = Some(Restart::NoRanges);
        assert_eq!(whole(&[(ETAG, "\"a\"")]), Some(Answer::Whole(no_ranges)));
        for changed in [&[(ETAG, "\"b\"")] as &[_], &[]] {
            let answer = Some(Answer::Whole(Some(Restart::Changed)));
            assert_eq!(whole(changed), answer);
        }
        let changed = Some(Answer::StartOver(Restart::Changed));
        assert_eq!(judge(&partial(), 412, &[]), changed);
    }

    #[test]
    fn a_range_behind_the_end() {
        let end = |partial: &Partial, range| judge(partial, 416, &[(CONTENT_RANGE, range)]);
        let all = Partial {
            bytes: 100,
            ..partial()
        };
        let unknown = Partial {
            length: None,
            ..all.clone()
        };
        assert_eq!(end(&all, "bytes */100"), Some(Answer::Complete));
        assert_eq!(end(&unknown, "bytes */100"), Some(Answer::Complete));
        let over = Some(Answer::StartOver(Restart::Shorter));
        assert_eq!(end(&partial(), "bytes */30"), over);
        assert_eq!(
            end(&partial(), "bytes */40"),
            over,
            "another length than ours"
        );
        assert_eq!(end(&all, "bytes */99"), over);
        assert_eq!(end(&all, "bytes 0-99/100"), over);
        assert_eq!(judge(&all, 416, &[]), over);
    }

    #[test]
    fn other_answers_say_nothing_about_the_bytes() {
        for status in [302, 404, 429, 500, 503] {
            assert_eq!(judge(&partial(), status, &[]), Some(Answer::Refused));
        }
    }

    #[test]
    fn a_response_begins_a_body() {
        let start = Partial::start(&headers(&[(CONTENT_LENGTH, "7"), (ETAG, "\"a\"")]));
        assert_eq!((start.bytes, start.length), (0, Some(7)));
        assert!(start.version.is_ok() && start.resumable().is_none());
        assert!(!start.is_complete());
        assert!(Partial { bytes: 7, ..start }.is_complete());
    }
}
