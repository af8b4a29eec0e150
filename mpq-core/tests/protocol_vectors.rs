//! The test vectors of `docs/protocol.md`, read from the document itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mpq_core::proto::forward::ForwardKey;
use mpq_core::proto::probe::{Echo, Hint, KnockKey, ProbeKey, Recogniser, Secret};
use mpq_core::proto::{Frame, frame, policy};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// The rows of the table under the heading that begins so, without the table's own head.
fn rows<const COLUMNS: usize>(heading: &str) -> Vec<[&'static str; COLUMNS]> {
    let heading = format!("\n### {heading} ");
    let (_, section) = DOCUMENT.split_once(&heading).expect("it has the heading");
    let section = section.split("\n#").next().expect("there is one");
    let lines = section.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = lines.skip(2).map(|line| {
        let cells = line.trim_end_matches('|').split(" |");
        let cells: Vec<_> = cells
            .map(|cell| cell.trim().trim_matches('`'))
            .take(COLUMNS)
            .collect();
        cells.try_into().unwrap_or_else(|_| panic!("{line}"))
    });
    let rows: Vec<_> = rows.collect();
    assert!(!rows.is_empty(), "{heading}");
    rows
}

/// Splits `item*count`.
fn repeated(text: &str) -> (&str, usize) {
    match text.split_once('*') {
        Some((item, count)) => (item, count.parse().expect("a number")),
        None => (text, 1),
    }
}

/// Bytes in hexadecimal, with spaces between them.
fn bytes(text: &str) -> Vec<u8> {
    let repeated = text.split_whitespace().map(repeated);
    let bytes = repeated.flat_map(|(hex, count)| {
        assert_eq!(hex.len(), 2, "{text}");
        vec![u8::from_str_radix(hex, 16).expect("hexadecimal"); count]
    });
    bytes.collect()
}

/// A frame as the document writes it: its name, and `name=value` for each field.
fn frame(text: &str) -> Frame {
    let mut words = text.split(' ');
    let name = words.next().unwrap_or_default();
    let mut field = |wanted: &str| {
        let (name, value) = words.next().and_then(|word| word.split_once('=')).unwrap();
        assert_eq!(name, wanted, "{text}");
        value
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let addresses = |text: &str| -> Vec<SocketAddr> {
        let addresses = text.split(',').filter(|address| !address.is_empty());
        addresses.map(|address| address.parse().unwrap()).collect()
    };
    let frame = match name {
        "HELLO" => Frame::Hello {
            capabilities: number(field("capabilities")),
        },
        "MIGRATION" => Frame::Migration {
            sequence: number(field("sequence")),
            targets: addresses(field("targets")),
            outage: Duration::from_millis(number(field("outage"))),
            lead: Duration::from_millis(number(field("lead"))),
        },
        "READY" => Frame::Ready {
            sequence: number(field("sequence")),
        },
        "PARKED" => Frame::Parked {
            sequence: number(field("sequence")),
        },
        "CANCELLED" => Frame::Cancelled {
            sequence: number(field("sequence")),
        },
        "ARRIVED" => Frame::Arrived {
            sequence: number(field("sequence")),
        },
        "ADDRESSES" => Frame::Addresses {
            pool: addresses(field("pool")),
            name: {
                let (part, count) = repeated(field("name"));
                (!part.is_empty()).then(|| part.repeat(count))
            },
        },
        _ => panic!("{text}"),
    };
    assert_eq!(words.next(), None, "{text}");
    frame
}

/// An error as the document writes it; `None` if it is none.
fn error(text: &str) -> Option<frame::FrameError> {
    let (kind, number) = text.rsplit_once(' ')?;
    let number = number.parse();
    Some(match kind {
        "version" => frame::FrameError::Version(number.unwrap()),
        "too long" => frame::FrameError::TooLong(number.unwrap()),
        "malformed" => frame::FrameError::Malformed(number.unwrap()),
        _ => return None,
    })
}

/// What the decoder makes of a stream that comes in these pieces.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<frame::FrameError>) {
    let mut decoder = frame::Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// As [`read`], whole and in pieces of each size, which must come to the same.
fn read_however_cut(stream: &[u8]) -> (Vec<Frame>, Option<frame::FrameError>) {
    let whole = read([stream]);
    for size in 1..stream.len().min(64) {
        assert_eq!(read(stream.chunks(size)), whole, "in pieces of {size}");
    }
    whole
}

#[test]
fn the_stream_has_its_type() {
    for [encoded, number] in rows("A.1.") {
        // A variable-length integer (RFC 9000 §16), read here by other means than ours.
        let encoded = bytes(encoded);
        assert_eq!(encoded.len(), 1 << (encoded[0] >> 6));
        let mut number_of = [0; 8];
        number_of[8 - encoded.len()..].copy_from_slice(&encoded);
        number_of[8 - encoded.len()] &= 0x3f;
        assert_eq!(u64::from_be_bytes(number_of), frame::MIGRATION_STREAM_TYPE);
        assert_eq!(number, format!("{:#x}", frame::MIGRATION_STREAM_TYPE));
    }
}

#[test]
fn frames_are_written_and_read_as_documented() {
    for [what, encoded, text] in rows("A.2.") {
        let (encoded, frame) = (bytes(encoded), frame(text));
        let mut written = Vec::new();
        assert_eq!(frame.encode(&mut written), Ok(()), "{what}");
        assert_eq!(written, encoded, "{what}: {text}");
        let stream = [frame::preamble(), encoded].concat();
        assert_eq!(read_however_cut(&stream), (vec![frame], None), "{what}");
    }
}

#[test]
fn every_frame_has_a_vector() {
    let numbers: Vec<_> = rows("A.2.")
        .into_iter()
        .map(|[_, encoded, _]: [_; 3]| bytes(encoded)[0])
        .collect();
    for number in 1..=7 {
        assert!(numbers.contains(&number), "type {number}");
    }
}

#[test]
fn streams_are_read_as_documented() {
    for [what, stream, texts] in rows("A.3.") {
        let texts = texts.split("; ").filter(|text| *text != "nothing");
        let frames: Vec<_> = texts.map(frame).collect();
        let stream = bytes(stream);
        assert_eq!(read_however_cut(&stream), (frames, None), "{what}");
    }
}

#[test]
fn streams_with_an_error_are_given_up_as_documented() {
    for [what, stream, texts] in rows("A.4.") {
        let (frames, last) = texts.rsplit_once("; ").unwrap_or(("", texts));
        let frames = frames.split("; ").filter(|text| !text.is_empty());
        let frames: Vec<_> = frames.map(frame).collect();
        let error = error(last);
        assert!(error.is_some(), "{texts}");
        assert_eq!(read_however_cut(&bytes(stream)), (frames, error), "{what}");
    }
}

#[test]
fn datagrams_outside_of_the_connection_are_made_as_documented() {
    let mut made = BTreeMap::<_, u32>::new();
    let mut echo = None;
    for [what, key, from, to, random, datagram] in rows("A.5.") {
        let key: Option<Secret> = bytes(key).try_into().ok();
        let random = bytes(random);
        let sent = match what {
            "probe" => ProbeKey::new(&key.expect("a key")).probe(
                from.parse().unwrap(),
                to.parse().unwrap(),
                &random.try_into().expect("as many bytes as a probe has"),
            ),
            "knock" => {
                let knock =
                    KnockKey::new(&key.expect("a key")).knock(&random.try_into().expect("9 bytes"));
                echo = Echo::of(&knock);
                knock
            }
            "echo" => echo.expect("a knock is above").datagram(random[0]),
            "introduction" => {
                ForwardKey::new(&key.expect("a key")).introduction(from.parse().unwrap(), random[0])
            }
            _ => panic!("{what}"),
        };
        assert_eq!(sent, bytes(datagram), "{what}");
        *made.entry(what).or_default() += 1;
    }
    assert_eq!(
        made,
        BTreeMap::from([("probe", 2), ("knock", 1), ("echo", 1), ("introduction", 2)])
    );
}

#[test]
fn answers_and_knocks_are_told_from_other_datagrams() {
    let mut recogniser = Recogniser::new(ProbeKey::new(&[0x11; 32]), KnockKey::new(&[0x22; 32]));
    let local = "10.0.0.1".parse().unwrap();
    for [what, from, datagram, taken_for] in rows("A.6.") {
        let found = recogniser.hint(local, from.parse().unwrap(), &bytes(datagram));
        let found = match found {
            Some(Hint::Answer) => "answer",
            Some(Hint::Knock(_)) => "knock",
            None => "none",
        };
        assert_eq!(found, taken_for, "{what}");
    }
}

#[test]
fn the_default_policy_is_as_documented() {
    for [current, target, acceptable] in rows("A.7.") {
        let found = policy::acceptable(current.parse().unwrap(), target.parse().unwrap());
        let found = if found { "yes" } else { "no" };
        assert_eq!(found, acceptable, "from {current} to {target}");
    }
}
