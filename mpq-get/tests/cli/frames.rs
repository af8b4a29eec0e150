//! Bodies in all the frames that HTTP/3 allows, from a server that writes them itself.

use bytes::Bytes;

use crate::server::{Outcome, SIZE, Server, body};

const DATA: u64 = 0;
const HEADERS: u64 = 1;
/// Of a type that means nothing (RFC 9114 §7.2.8).
const RESERVED: u64 = 0x21;

/// Where a body is cut in two.
const MIDDLE: usize = 1_507_328;

const PROTOCOLS: [&str; 2] = ["multipath", "quic"];

/// A varint of eight bytes (RFC 9000 §16).
fn varint(value: u64) -> [u8; 8] {
    (value | 0b11 << 62).to_be_bytes()
}

fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let length = varint(payload.len() as u64);
    [&varint(kind), &length, payload].concat()
}

/// The shortest of all: two zeros.
fn empty() -> Vec<u8> {
    vec![0, 0]
}

/// Status 200, with or without the length of the body. The fields are of QPACK's static table (RFC 9204 §A).
fn head(length: Option<usize>) -> Vec<u8> {
    let mut fields = vec![0, 0, 0xc0 | 25];
    if let Some(length) = length {
        let value = length.to_string();
        fields.extend([0x50 | 4, value.len() as u8]);
        fields.extend(value.as_bytes());
    }
    frame(HEADERS, &fields)
}

/// A body in two, with empty frames between its frames as often as told: at the start, in the middle, and
/// at the end, where trailers follow.
fn answer(length: Option<usize>, [start, middle, end]: [usize; 3]) -> Bytes {
    let body = body();
    let trailers = frame(HEADERS, &[0, 0, 0xc0 | 26]);
    [
        head(length),
        empty().repeat(start),
        frame(DATA, &body[..MIDDLE]),
        empty().repeat(middle),
        frame(RESERVED, b"nothing"),
        frame(DATA, &body[MIDDLE..]),
        empty().repeat(end),
        trailers,
    ]
    .concat()
    .into()
}

fn get(answer: Bytes, protocol: &str) -> Outcome {
    let server = Server::raw(answer);
    server.get(&["--protocol", protocol, "--retry", "0", "-s"], "file")
}

#[test]
fn an_empty_frame_is_not_the_end_of_a_body() {
    for protocol in PROTOCOLS {
        for length in [None, Some(SIZE)] {
            for empty in [[1, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 1], [2, 1, 2]] {
                let outcome = get(answer(length, empty), protocol);
                outcome.succeeds();
                let case = format!("{protocol}, length {length:?}, {empty:?} empty frames");
                assert!(
                    outcome.stdout == body(),
                    "{} bytes: {case}",
                    outcome.stdout.len()
                );
            }
        }
    }
}

#[test]
fn a_body_without_a_byte_is_one() {
    for protocol in PROTOCOLS {
        for length in [None, Some(0)] {
            let outcome = get([head(length), empty(), empty()].concat().into(), protocol);
            outcome.succeeds();
            assert_eq!(outcome.stdout, b"");
        }
    }
}

#[test]
fn a_body_that_ends_within_a_frame_is_cut_short() {
    for protocol in PROTOCOLS {
        for length in [None, Some(SIZE)] {
            // In the payload, and in the header of a frame.
            for missing in [1, SIZE - MIDDLE + 1] {
                let mut answer = [
                    head(length),
                    empty(),
                    frame(DATA, &body()[..MIDDLE]),
                    frame(DATA, &body()[MIDDLE..]),
                ]
                .concat();
                answer.truncate(answer.len() - missing);
                get(answer.into(), protocol).fails(95, "try again");
            }
        }
    }
}

#[test]
fn a_body_that_ends_after_a_frame_may_be_too_short() {
    for protocol in PROTOCOLS {
        let answer = [head(Some(SIZE)), frame(DATA, &body()[..MIDDLE]), empty()].concat();
        get(answer.into(), protocol).fails(18, "the body ended at 1507328 of 3000017 bytes");
    }
}

#[test]
fn a_server_that_breaks_the_rules_is_told_of_and_not_asked_again() {
    for protocol in PROTOCOLS {
        // DATA, of which HEADERS did not tell.
        let server = Server::raw(frame(DATA, b"abc").into());
        let options = ["--protocol", protocol, "--retry", "3", "-s"];
        server
            .get(&options, "file")
            .fails(95, "H3_FRAME_UNEXPECTED");
        assert_eq!(server.connections(), 1, "{protocol}");
    }
}

#[test]
fn a_server_that_does_not_let_http3_begin_is_told_of_and_not_asked_again() {
    for protocol in PROTOCOLS {
        let server = Server::narrow();
        let limits = ["--connect-timeout", "1", "--retry", "3", "-s"];
        let outcome = server.get(&[&["--protocol", protocol], &limits[..]].concat(), "file");
        outcome.fails(95, "streams");
        assert_eq!(server.connections(), 1, "{protocol}");
    }
}
