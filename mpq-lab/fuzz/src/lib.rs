//! Fuzz targets: everything in mpq that reads what comes from the network, and the two machines of
//! the migration against each other. Each is a function of any bytes that must not panic, and that
//! asserts what it says.
//!
//! `cargo test -p mpq-fuzz` runs each of them on the committed corpus and on a few thousand
//! mutations of it, with the stable compiler and the same every time. To go on for long, with
//! coverage (needs `cargo install cargo-fuzz`, a nightly toolchain and a C++ compiler):
//!
//! ```text
//! cd mpq-lab/fuzz && cargo +nightly fuzz run --fuzz-dir . --features libfuzzer schedules
//! ```
#![forbid(unsafe_code)]

#[path = "../../../mpq-core/tests/simulation/fair.rs"]
mod fair;
#[allow(dead_code, reason = "the simulation uses all of it")]
#[path = "../../../mpq-core/tests/simulation/schedule.rs"]
mod schedule;
#[allow(dead_code, reason = "the simulation uses all of it")]
#[path = "../../../mpq-core/tests/simulation/world/mod.rs"]
mod world;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mpq_core::proto::frame::{self, Decoder};
use mpq_core::proto::probe::{Echo, Hint, KnockKey, ProbeKey, Recogniser};
use mpq_get::download::retry::retry_after;
use mpq_get::http::resume::{Answer, Partial, Validator};
use mpq_serve::site::conditional::{Selection, Validators, select};

/// A target.
pub type Target = fn(&[u8]);

/// All targets by their names, which are also those of their corpora.
pub const TARGETS: [(&str, Target); 5] = [
    ("frames", frames),
    ("answers", answers),
    ("requests", requests),
    ("responses", responses),
    ("schedules", schedules),
];

/// The migration stream: what is read is what would be written, however it was cut.
pub fn frames(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let read = |chunks: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            loop {
                match decoder.frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
        (frames, None)
    };
    let whole = read(&mut std::iter::once(bytes));
    let cut = read(&mut bytes.chunks(usize::from(*size).max(1)));
    assert_eq!(whole, cut);
    let mut written = frame::preamble();
    for frame in &whole.0 {
        assert_eq!(frame.encode(&mut written), Ok(()), "{frame:?}");
    }
    assert_eq!(read(&mut std::iter::once(&written[..])), (whole.0, None));
}

/// Answers of probes, and knocks: nobody makes one without the key, and with it a packet that begins as
/// these bytes do is one.
pub fn answers(bytes: &[u8]) {
    let (local, remote) = ([10, 0, 0, 1].into(), ([10, 1, 0, 2], 443).into());
    let knocks = KnockKey::new(&[2; 32]);
    let mut recogniser = Recogniser::new(ProbeKey::new(&[1; 32]), knocks.clone());
    let mut hint = |packet: &[u8]| recogniser.hint(local, remote, packet);
    assert_eq!(hint(bytes), None);
    if let Some(echo) = Echo::read(bytes) {
        assert_eq!(Echo::read(&echo.datagram(bytes[0])), Some(echo));
    }
    let Some((random, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let knock = knocks.knock(random);
    let whatever_follows = [&knock[..23], rest].concat();
    let echo = Echo::of(&knock).expect("it is a knock");
    assert_eq!(hint(&knock[..22]), None);
    assert_eq!(hint(&whatever_follows), Some(Hint::Knock(echo)));
    assert_eq!(Echo::read(&echo.datagram(random[0])), Some(echo));
}

/// A request's conditions and ranges: a part is never empty and lies within the file.
pub fn requests(bytes: &[u8]) {
    let Some((fields, rest)) = fields(bytes) else {
        return;
    };
    let len = rest.iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
    let file = Validators {
        len,
        etag: "\"a\"",
        modified: "Sun, 06 Nov 1994 08:49:37 GMT".parse().ok(),
    };
    let now = std::time::SystemTime::UNIX_EPOCH.into();
    for method in [Method::GET, Method::HEAD] {
        if let Selection::Part(range) = select(&method, &fields, &file, now) {
            assert_eq!(method, Method::GET);
            assert!(range.start < range.end && range.end <= len, "{range:?}");
        }
    }
}

/// A response to a request for the rest: the rest begins where what is there ends.
pub fn responses(bytes: &[u8]) {
    let Some((fields, rest)) = fields(bytes) else {
        return;
    };
    for value in fields.values().filter_map(|value| value.to_str().ok()) {
        let _ = retry_after(value, std::time::SystemTime::UNIX_EPOCH);
        if let Some(validator) = Validator::parse(value) {
            assert_eq!(validator.to_string(), value);
        }
    }
    let bytes = rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    for status in [200, 206, 304, 404, 412, 416, 503] {
        let status = StatusCode::from_u16(status).expect("a valid one");
        let held = Partial {
            bytes,
            ..Partial::start(&fields)
        };
        match held.judge(status, &fields) {
            Ok(Answer::Rest { end, length }) => {
                assert!(held.resumable().is_some() && end > held.bytes);
                assert!(length.is_none_or(|length| end <= length));
            }
            Ok(Answer::Complete) => assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE),
            _ => {}
        }
    }
}

/// The machines of client and server over a bad network, in virtual time.
pub fn schedules(bytes: &[u8]) {
    world::simulate(&schedule::Schedule::from_bytes(bytes));
}

/// Fields from the lines of a text, as `name: value`, and what follows the first empty line.
fn fields(bytes: &[u8]) -> Option<(HeaderMap, &[u8])> {
    let mut fields = HeaderMap::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        fields.append(name, value);
    }
    Some((fields, &rest[..rest.len().min(8)]))
}
