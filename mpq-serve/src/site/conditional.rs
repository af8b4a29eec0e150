//! Which part of a file a request asks for, if any: preconditions and ranges.
//!
//! [`select`] is a pure function of the request's header and of what is known of the file. It
//! takes the steps of RFC 9110 §13.2.2 in their order. A field that is not valid is as if it were
//! not there.

use std::ops::Range;

use http::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};
use http::{HeaderValue, Method};
use httpdate::HttpDate;

/// What a request's conditions are held against.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// Length in bytes.
    pub len: u64,
    /// Entity tag, with its quotes.
    pub etag: &'a str,
    /// Time of the last change.
    pub modified: Option<HttpDate>,
}

/// What to answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// 200, all of it.
    Whole,
    /// 206, these bytes; never empty.
    Part(Range<u64>),
    /// 304: the client has it.
    NotModified,
    /// 412: it is not what the client thinks it is.
    PreconditionFailed,
    /// 416: the range lies behind the end.
    Unsatisfiable,
}

/// Decides what a GET or HEAD request is answered with at the time `now`.
pub fn select(
    method: &Method,
    header: &HeaderMap,
    file: &Validators<'_>,
    now: HttpDate,
) -> Selection {
    if header.contains_key(IF_MATCH) {
        if !lists(header, IF_MATCH, |tag| tag == "*" || same(tag, file.etag)) {
            return Selection::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified)) = (date(header, IF_UNMODIFIED_SINCE), file.modified)
        && modified > since
    {
        return Selection::PreconditionFailed;
    }

    if header.contains_key(IF_NONE_MATCH) {
        // Weak comparison (§8.8.3.2): a tag that lost its strength on the way still counts.
        if lists(header, IF_NONE_MATCH, |tag| {
            tag == "*" || opaque(tag) == opaque(file.etag)
        }) {
            return Selection::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(header, IF_MODIFIED_SINCE), file.modified)
        && modified <= since
    {
        return Selection::NotModified;
    }

    // §14.2: only GET knows ranges.
    if *method == Method::GET && if_range_holds(header, file, now) {
        range(header, file.len)
    } else {
        Selection::Whole
    }
}

/// Whether a member of a list field satisfies `matches`.
fn lists(header: &HeaderMap, name: HeaderName, matches: impl Fn(&str) -> bool) -> bool {
    header
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(members)
        .any(|member| matches(member.trim()))
}

/// The members of a list of entity tags. A comma between quotes is part of a tag, which knows no escapes (§8.8.3).
fn members(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    })
}

/// A tag without its mark of weakness.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Whether both tags stand for the very same bytes: the strong comparison (§8.8.3.2).
fn same(a: &str, b: &str) -> bool {
    a == b && !a.starts_with("W/")
}

/// The value of a field that may be there once.
fn single(header: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = header.get_all(name).iter();
    let value = values.next().map(HeaderValue::to_str)?.ok()?;
    values.next().is_none().then_some(value.trim())
}

fn date(header: &HeaderMap, name: HeaderName) -> Option<HttpDate> {
    single(header, name)?.parse().ok()
}

/// §13.1.5. A date only counts as strong once its second is over (§8.8.2.2).
fn if_range_holds(header: &HeaderMap, file: &Validators<'_>, now: HttpDate) -> bool {
    if !header.contains_key(IF_RANGE) {
        return true;
    }
    let Some(condition) = single(header, IF_RANGE) else {
        return false;
    };
    match condition.parse::<HttpDate>() {
        Ok(date) => file.modified == Some(date) && date < now,
        Err(_) => same(condition, file.etag),
    }
}

/// §14.1.2. Several ranges are answered with all of it, as §14.2 allows.
fn range(header: &HeaderMap, len: u64) -> Selection {
    let Some((first, last)) = single(header, RANGE).and_then(positions) else {
        return Selection::Whole;
    };
    let range = match (first, last) {
        (Some(first), Some(last)) if last < first => return Selection::Whole,
        (Some(first), Some(last)) => first..last.saturating_add(1).min(len),
        (Some(first), None) => first..len,
        (None, Some(suffix)) => len.saturating_sub(suffix)..len,
        (None, None) => return Selection::Whole,
    };
    if range.is_empty() {
        Selection::Unsatisfiable
    } else {
        Selection::Part(range)
    }
}

/// The two numbers of `bytes=first-last`, either of which may be missing.
fn positions(value: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, set) = value.split_once('=')?;
    let (first, last) = set.trim().split_once('-')?;
    let number = |text: &str| match text {
        "" => Some(None),
        // More than 64 bits can only mean "beyond every end".
        _ if text.bytes().all(|b| b.is_ascii_digit()) => {
            Some(Some(text.parse().unwrap_or(u64::MAX)))
        }
        _ => None,
    };
    unit.trim()
        .eq_ignore_ascii_case("bytes")
        .then_some((number(first)?, number(last)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Selection::{NotModified, Part, PreconditionFailed, Unsatisfiable, Whole};

    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    /// Selection from a file of 100 bytes.
    fn of(method: Method, now: &str, fields: &[(HeaderName, &str)]) -> Selection {
        let file = Validators {
            len: 100,
            etag: "\"a\"",
            modified: MODIFIED.parse().ok(),
        };
        let header = fields
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect();
        select(&method, &header, &file, now.parse().unwrap())
    }

    fn get(fields: &[(HeaderName, &str)]) -> Selection {
        of(Method::GET, LATER, fields)
    }

    #[test]
    fn ranges() {
        for (value, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=5-9", Part(5..10)),
            ("BYTES = 5-9", Part(5..10)),
            ("bytes=99-", Part(99..100)),
            ("bytes=0-", Part(0..100)),
            ("bytes=50-1000", Part(50..100)),
            ("bytes=50-99999999999999999999999", Part(50..100)),
            ("bytes=0-18446744073709551615", Part(0..100)),
            ("bytes=-1", Part(99..100)),
            ("bytes=-1000", Part(0..100)),
            ("bytes=100-", Unsatisfiable),
            ("bytes=100-200", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=9-5", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=--2", Whole),
            ("bytes=0-1,5-6", Whole),
            ("lines=0-1", Whole),
        ] {
            assert_eq!(get(&[(RANGE, value)]), expected, "{value}");
        }
        assert_eq!(get(&[]), Whole);
        assert_eq!(get(&[(RANGE, "bytes=0-1"), (RANGE, "bytes=2-3")]), Whole);
        assert_eq!(of(Method::HEAD, LATER, &[(RANGE, "bytes=0-1")]), Whole);
    }

    #[test]
    fn an_empty_file_has_no_range() {
        let file = Validators {
            len: 0,
            etag: "\"a\"",
            modified: None,
        };
        for value in ["bytes=0-", "bytes=-5", "bytes=0-0"] {
            let header = HeaderMap::from_iter([(RANGE, value.parse().unwrap())]);
            let now = LATER.parse().unwrap();
            assert_eq!(select(&Method::GET, &header, &file, now), Unsatisfiable);
        }
    }

    #[test]
    fn if_range() {
        let part = |condition, now| {
            of(
                Method::GET,
                now,
                &[(RANGE, "bytes=1-1"), (IF_RANGE, condition)],
            )
        };
        assert_eq!(part("\"a\"", LATER), Part(1..2));
        assert_eq!(part("\"b\"", LATER), Whole);
        assert_eq!(part("W/\"a\"", LATER), Whole);
        assert_eq!(part("nonsense", LATER), Whole);
        assert_eq!(part(MODIFIED, LATER), Part(1..2));
        // The file could have been changed again within that second.
        assert_eq!(part(MODIFIED, MODIFIED), Whole);
        assert_eq!(part(BEFORE, LATER), Whole);
    }

    #[test]
    fn a_weak_tag_joins_nothing() {
        let file = Validators {
            len: 100,
            etag: "W/\"a\"",
            modified: None,
        };
        let with = |fields: &[(HeaderName, &str)]| {
            let header = fields
                .iter()
                .map(|(name, value)| (name.clone(), value.parse().unwrap()))
                .collect();
            select(&Method::GET, &header, &file, LATER.parse().unwrap())
        };
        for tag in ["W/\"a\"", "\"a\""] {
            assert_eq!(with(&[(RANGE, "bytes=1-1"), (IF_RANGE, tag)]), Whole);
            assert_eq!(with(&[(IF_MATCH, tag)]), PreconditionFailed);
            assert_eq!(with(&[(IF_NONE_MATCH, tag)]), NotModified);
        }
        assert_eq!(with(&[(IF_NONE_MATCH, "\"b\"")]), Whole);
    }

    #[test]
    fn a_comma_between_quotes_is_part_of_a_tag() {
        let with = |etag, field: HeaderName, value: &str| {
            let file = Validators {
                len: 100,
                etag,
                modified: None,
            };
            let header = HeaderMap::from_iter([(field, value.parse().unwrap())]);
            select(&Method::GET, &header, &file, LATER.parse().unwrap())
        };
        for (etag, list, listed) in [
            ("\"a,b\"", "\"x\", \"a,b\"", true),
            ("\"a,b\"", "\"a,b\",\"x\"", true),
            ("\"a,\"", "W/\"x,\" , \"a,\"", true),
            ("\"a\"", "\"x,\"a\",y\"", false),
            ("\"a\"", "\"x\\\", \"a\"", true),
            ("\"a\"", "\"a", false),
        ] {
            let expected = if listed { NotModified } else { Whole };
            assert_eq!(with(etag, IF_NONE_MATCH, list), expected, "{list}");
            let expected = if listed { Whole } else { PreconditionFailed };
            assert_eq!(with(etag, IF_MATCH, list), expected, "{list}");
        }
    }

    #[test]
    fn not_modified() {
        for (field, value, expected) in [
            (IF_NONE_MATCH, "\"a\"", NotModified),
            (IF_NONE_MATCH, "\"b\", W/\"a\"", NotModified),
            (IF_NONE_MATCH, "*", NotModified),
            (IF_NONE_MATCH, "\"b\"", Whole),
            (IF_MODIFIED_SINCE, MODIFIED, NotModified),
            (IF_MODIFIED_SINCE, LATER, NotModified),
            (IF_MODIFIED_SINCE, BEFORE, Whole),
            (IF_MODIFIED_SINCE, "yesterday", Whole),
        ] {
            assert_eq!(get(&[(field, value)]), expected, "{value}");
        }
        // The tag is the better witness.
        assert_eq!(
            get(&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, LATER)]),
            Whole
        );
        assert_eq!(
            get(&[(IF_NONE_MATCH, "\"a\""), (RANGE, "bytes=900-")]),
            NotModified
        );
    }

    #[test]
    fn failed_preconditions() {
        for (field, value, expected) in [
            (IF_MATCH, "\"b\"", PreconditionFailed),
            (IF_MATCH, "W/\"a\"", PreconditionFailed),
            (IF_MATCH, "\"b\", \"a\"", Whole),
            (IF_MATCH, "*", Whole),
            (IF_UNMODIFIED_SINCE, BEFORE, PreconditionFailed),
            (IF_UNMODIFIED_SINCE, MODIFIED, Whole),
        ] {
            assert_eq!(get(&[(field, value)]), expected, "{value}");
        }
    }
}
