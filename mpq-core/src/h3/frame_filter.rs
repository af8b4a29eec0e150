//! What h3 gets to see of a stream: its frames without what h3 0.0.8 (and its main branch of January 2026) takes
//! wrongly, and no more of them than may be held.
//!
//! **The end of a body.** h3 knows it by there being nothing left of a DATA frame: `RequestStream::recv_data` ends
//! - with an empty DATA frame (`poll_data` of its `frame.rs`, `remaining_data == 0`), which RFC 9114 §7.2.1
//!   allows anywhere in a body. What follows is never read.
//! - with a stream that ends within a DATA frame, if all of its bytes had been read before the end was known
//!   (there, `(None, true)`). RFC 9114 §7.1 has it that such a stream is an error.
//!
//! **Large frames.** h3 holds all of a frame but DATA before it looks at it (`FrameDecoder::decode`), and each piece
//! of it with the datagram that brought it. What it does not know it throws away then. Here that goes as it comes,
//! and of all others no more is held than [`FIELD_SECTION`]: a frame that announces more is an error, and so is a
//! HEADERS frame that stands for more.
//!
//! Nobody seems to have reported any of it (<https://github.com/hyperium/h3/issues>); `tests/h3_noq.rs` tells when
//! the first can go.
//!
//! All else is passed on as it is, errors of the protocol included: those are h3's to find.

use bytes::{Buf, Bytes};

use super::field_section;
use super::frame_header::Header;
use crate::limits::FIELD_SECTION;
use crate::proto::varint::read_varint;

/// Of the one unidirectional stream whose frames h3 reads (RFC 9114 §6.2.1).
pub(super) const CONTROL_STREAM_TYPE: u64 = 0x00;

/// Frame types (RFC 9114 §7.2).
const DATA: u64 = 0x00;
const HEADERS: u64 = 0x01;
const MAX_PUSH_ID: u64 = 0x0d;
/// All up to here are known to h3, at least as those that nobody may use.
const LAST_OF_THE_FIRST: u64 = 0x09;

/// Part of a frame's header, which h3 complains about where it is all that there is.
const PART_OF_A_HEADER: Bytes = Bytes::from_static(&[0x40]);

/// Passes on the bytes of a stream, as far as h3 is to see them.
#[derive(Debug)]
pub(super) struct FrameFilter {
    /// What was put in and not handed out yet.
    chunk: Bytes,
    /// Part of what is looked at or passed on in one, whose rest has not come.
    part: Vec<u8>,
    state: State,
    /// A HEADERS frame has come. Before that a DATA frame is an error (RFC 9114 §4.1).
    begun: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum State {
    /// The type of a unidirectional stream.
    Type,
    /// The header of a frame.
    Header,
    /// So many bytes of a DATA frame, which are passed on as they come.
    Data(u64),
    /// So many bytes of a frame that is left out.
    Skip(u64),
    /// The rest of a frame that is passed on in one.
    Whole(Whole),
    /// Bytes of a stream that has no frames.
    Anything,
}

/// A frame that is passed on in one.
#[derive(Debug, Clone, Copy)]
struct Whole {
    kind: u64,
    /// Bytes of its header, and of all of it.
    header: usize,
    length: usize,
}

/// The stream has ended within a DATA frame.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the stream ended within a DATA frame, {0} bytes before its end")]
pub(super) struct Truncated(u64);

/// A frame is larger than what may be held of it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a frame of type {kind:#x} has {size} bytes; no more than {FIELD_SECTION} are taken")]
pub(super) struct TooLarge {
    kind: u64,
    /// Bytes of its payload; of HEADERS, as RFC 9114 §4.2.2 counts them.
    size: u64,
}

impl TooLarge {
    /// It is the header of a message, or its trailer.
    pub(super) fn is_header(&self) -> bool {
        self.kind == HEADERS
    }
}

impl FrameFilter {
    /// For a request stream.
    pub(super) fn of_request() -> Self {
        Self::new(State::Header)
    }

    /// For a unidirectional stream, from its type on.
    pub(super) fn of_unidirectional() -> Self {
        Self::new(State::Type)
    }

    fn new(state: State) -> Self {
        Self {
            chunk: Bytes::new(),
            part: Vec::new(),
            state,
            begun: false,
        }
    }

    /// Takes the next bytes of the stream, in chunks as they come. What came before is to be [popped](Self::pop).
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty());
        self.chunk = chunk;
    }

    /// The next bytes for h3, never an empty chunk. None if there are none before more are pushed.
    ///
    /// # Errors
    /// There is nothing more to be had then.
    pub(super) fn pop(&mut self) -> Result<Option<Bytes>, TooLarge> {
        loop {
            match self.state {
                State::Whole(whole) if self.part.len() == whole.length => {
                    self.state = State::Header;
                    return self.whole(whole).map(Some);
                }
                _ if self.chunk.is_empty() => return Ok(None),
                State::Whole(whole) => {
                    self.take(whole.length);
                }
                State::Header => {
                    if let Some(header) = self.take_header() {
                        self.state = self.begin(&header)?;
                        match self.state {
                            State::Whole(_) => {}
                            State::Data(_) => return Ok(Some(self.take_part())),
                            _ => self.part.clear(),
                        }
                    }
                }
                State::Data(0) | State::Skip(0) => self.state = State::Header,
                State::Data(left) => {
                    let here = self.here(left);
                    self.state = State::Data(left - here as u64);
                    return Ok(Some(self.chunk.split_to(here)));
                }
                State::Skip(left) => {
                    let here = self.here(left);
                    self.state = State::Skip(left - here as u64);
                    self.chunk.advance(here);
                }
                State::Type => {
                    self.take(self.part.len() + 1);
                    if let Some(kind) = read_varint(&mut &self.part[..]) {
                        self.state = match kind {
                            CONTROL_STREAM_TYPE => State::Header,
                            _ => State::Anything,
                        };
                        return Ok(Some(self.take_part()));
                    }
                }
                State::Anything => return Ok(Some(std::mem::take(&mut self.chunk))),
            }
        }
    }

    /// What is left at the end of the stream: once, the part of a frame, which h3 is to complain about.
    ///
    /// # Errors
    /// Each time, if the last frame is a DATA frame and not all there.
    pub(super) fn finish(&mut self) -> Result<Option<Bytes>, Truncated> {
        match self.state {
            State::Data(left) if left > 0 => Err(Truncated(left)),
            State::Skip(left) if left > 0 => {
                self.state = State::Header;
                Ok(Some(PART_OF_A_HEADER))
            }
            _ => Ok(Some(self.take_part()).filter(|part| !part.is_empty())),
        }
    }

    /// Bytes of the chunk that belong to so many.
    fn here(&self, left: u64) -> usize {
        left.min(self.chunk.len() as u64) as usize
    }

    /// Has the part grow to this length, as far as there is enough.
    fn take(&mut self, length: usize) {
        let more = self.chunk.len().min(length - self.part.len());
        self.part.extend_from_slice(&self.chunk[..more]);
        self.chunk.advance(more);
    }

    fn take_part(&mut self) -> Bytes {
        std::mem::take(&mut self.part).into()
    }

    /// The header of a frame, if it is complete now: then the part is that.
    fn take_header(&mut self) -> Option<Header> {
        let before = self.part.len();
        let more = self.chunk.len().min(Header::LONGEST - before);
        self.part.extend_from_slice(&self.chunk[..more]);
        let header = Header::read(&self.part);
        let length = header
            .as_ref()
            .map_or(before + more, |header| header.length);
        self.part.truncate(length);
        self.chunk.advance(length - before);
        header
    }

    /// A frame begins. What comes of it.
    fn begin(&mut self, header: &Header) -> Result<State, TooLarge> {
        self.begun |= header.kind == HEADERS;
        match header.kind {
            DATA if header.payload == 0 && self.begun => Ok(State::Header),
            DATA => Ok(State::Data(header.payload)),
            kind @ (..=LAST_OF_THE_FIRST | MAX_PUSH_ID) => {
                let size = header.payload;
                if size > FIELD_SECTION {
                    return Err(TooLarge { kind, size });
                }
                Ok(State::Whole(Whole {
                    kind,
                    header: header.length,
                    length: header.length + size as usize,
                }))
            }
            _ => Ok(State::Skip(header.payload)),
        }
    }

    /// A frame that is complete, if it does not stand for more than it is.
    fn whole(&mut self, whole: Whole) -> Result<Bytes, TooLarge> {
        let frame = self.take_part();
        if whole.kind == HEADERS {
            let size = field_section::size(&frame[whole.header..]);
            if size > FIELD_SECTION {
                let kind = whole.kind;
                return Err(TooLarge { kind, size });
            }
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The varint of so many bytes.
    fn varint(value: u64, length: usize) -> Vec<u8> {
        let class = length.trailing_zeros() as u64;
        let bits = class << (8 * length - 2) | value;
        bits.to_be_bytes()[8 - length..].to_vec()
    }

    fn frame(kind: u64, payload: &[u8], lengths: [usize; 2]) -> Vec<u8> {
        let length = payload.len() as u64;
        [
            &varint(kind, lengths[0]),
            &varint(length, lengths[1]),
            payload,
        ]
        .concat()
    }

    /// What comes of these chunks.
    fn filtered(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<u8>, Option<Truncated>) {
        let mut frames = FrameFilter::of_request();
        let mut out = Vec::new();
        for chunk in chunks {
            frames.push(chunk);
            while let Some(bytes) = frames.pop().unwrap() {
                assert!(!bytes.is_empty());
                out.extend(bytes);
            }
        }
        match frames.finish() {
            Err(truncated) => {
                assert_eq!(
                    frames.finish().as_ref(),
                    Err(&truncated),
                    "it is told again"
                );
                (out, Some(truncated))
            }
            Ok(part) => {
                out.extend(part.into_iter().flatten());
                assert_eq!(frames.finish(), Ok(None));
                (out, None)
            }
        }
    }

    /// Bytes of two digits each, cut at the bars.
    fn chunks(text: &str) -> Vec<Bytes> {
        let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap();
        let chunk = |text: &str| text.split_whitespace().map(byte).collect();
        text.split('|').map(chunk).collect()
    }

    #[test]
    fn empty_data_frames_are_dropped_after_the_head_and_nowhere_else() {
        for (input, output) in [
            ("", ""),
            ("01 00 | 00 00", "01 00"),
            ("01 00 00 00 00 00", "01 00"),
            ("01 00 00 00 00 01 aa 00 00", "01 00 00 01 aa"),
            // Whatever the lengths of the varints, and wherever they are cut.
            (
                "01 00 40 00 00 | 00 80 00 | 00 00 | 80 | 00 00 00 00",
                "01 00",
            ),
            ("01 00 00 | 01 | aa", "01 00 00 01 aa"),
            ("01 01 | 00 00 00 04 00", "01 01 00 04 00"),
            // An error that h3 is to find.
            ("00 00 01 00", "00 00 01 00"),
            // In a payload they are none.
            (
                "01 02 00 00 00 03 00 00 00 04 02 00 00",
                "01 02 00 00 00 03 00 00 00 04 02 00 00",
            ),
            // A part of a header is passed on at the end.
            ("01 00 00 00 00", "01 00 00"),
            ("01 00 00 | 00 80 | 00 00", "01 00 80 00 00"),
            ("01 | 40", "01 40"),
            // And what lacks of a frame that is not DATA, h3 sees.
            ("01 05 aa", "01 05 aa"),
            // What it does not know, is left out, however large.
            ("01 00 21 00 00 01 aa", "01 00 00 01 aa"),
            ("01 00 | 21 02 bb bb 00 01 aa", "01 00 00 01 aa"),
            ("80 | 0f 07 00 40 | 02 bb | bb 01 00", "01 00"),
            ("01 00 21 02 bb", "01 00 40"),
            ("0a 03 01 02 03", ""),
        ] {
            let whole = |text| chunks(text).concat();
            assert_eq!(filtered(chunks(input)), (whole(output), None), "{input}");
        }
    }

    #[test]
    fn a_data_frame_that_is_cut_short_is_told() {
        for (input, output, left) in [
            ("01 00 00 02 aa", "01 00 00 02 aa", 1),
            ("01 00 00 | 02", "01 00 00 02", 2),
            ("00 01", "00 01", 1),
        ] {
            let expected = (chunks(output).concat(), Some(Truncated(left)));
            assert_eq!(filtered(chunks(input)), expected, "{input}");
        }
    }

    #[test]
    fn payload_is_not_copied() {
        let mut frames = FrameFilter::of_request();
        let stream =
            Bytes::from([frame(HEADERS, b"", [1, 1]), frame(DATA, &[7; 100], [1, 2])].concat());
        frames.push(stream.slice(..50));
        assert_eq!(frames.pop().unwrap().unwrap(), stream.slice(..2));
        assert_eq!(frames.pop().unwrap().unwrap(), stream.slice(2..5));
        for (chunk, from) in [(None, 5), (Some(stream.slice(50..)), 50)] {
            chunk.into_iter().for_each(|chunk| frames.push(chunk));
            let passed = frames.pop().unwrap().unwrap();
            assert_eq!(passed.as_ptr(), stream.slice(from..).as_ptr());
            assert_eq!(frames.pop(), Ok(None));
        }
    }

    #[test]
    fn a_frame_is_passed_on_when_all_of_it_is_there() {
        let mut frames = FrameFilter::of_request();
        for byte in [0x01, 0x02, 0x00] {
            frames.push(vec![byte].into());
            assert_eq!(frames.pop(), Ok(None));
        }
        frames.push(vec![0x00, 0x00].into());
        let frame = frames.pop().unwrap().unwrap();
        assert_eq!(frame, &[0x01, 0x02, 0x00, 0x00][..]);
        assert_eq!(frames.pop(), Ok(None));
    }

    #[test]
    fn no_more_is_held_of_a_frame_than_may_be() {
        let limit = FIELD_SECTION as usize;
        // A field of as many bytes, where QPACK has two before it, and the length of the name and that of the value.
        let field = |length: usize| {
            let mut block = vec![0x00, 0x00, 0x21, b'a', 0x7f];
            block.extend([
                0x80 | (length - 127) as u8,
                0x80 | ((length - 127) >> 7) as u8,
            ]);
            block.push(((length - 127) >> 14) as u8);
            block.resize(block.len() + length, b'b');
            block
        };
        let many = |fields: usize| [vec![0x00, 0x00], vec![0xd1; fields]].concat();
        for (kind, payload, size) in [
            (HEADERS, field(limit - 33), None),
            (HEADERS, field(limit - 32), Some(limit as u64 + 1)),
            (HEADERS, many(limit / 32), None),
            (HEADERS, many(limit / 32 + 1), Some(limit as u64 + 32)),
            (HEADERS, vec![0xff; limit + 1], Some(limit as u64 + 1)),
            (0x04, vec![0x00; limit], None),
            (0x04, vec![0x00; limit + 1], Some(limit as u64 + 1)),
            (MAX_PUSH_ID, vec![0x00; limit + 1], Some(limit as u64 + 1)),
        ] {
            let frame = Bytes::from(frame(kind, &payload, [1, 8]));
            let mut frames = FrameFilter::of_request();
            frames.push(frame.clone());
            let passed = frames.pop();
            match size {
                None => assert_eq!(passed.unwrap(), Some(frame)),
                Some(size) => assert_eq!(passed, Err(TooLarge { kind, size })),
            }
        }
        // As soon as it is announced.
        let mut frames = FrameFilter::of_request();
        frames.push(vec![0x01, 0xbf, 0xff, 0xff, 0xff].into());
        assert!(frames.pop().is_err());
    }

    #[test]
    fn a_control_stream_has_frames_and_others_have_none() {
        for (input, output) in [
            ("00 04 00 21 02 aa aa 07 01 00", "00 04 00 07 01 00"),
            ("40 | 00 04 00 21 02 aa aa 07 01 00", "40 00 04 00 07 01 00"),
            ("02 21 02 aa aa 07", "02 21 02 aa aa 07"),
            ("03 | 80 | 80", "03 80 80"),
        ] {
            let mut frames = FrameFilter::of_unidirectional();
            let mut out = Vec::new();
            for chunk in chunks(input) {
                frames.push(chunk);
                out.extend(std::iter::from_fn(|| frames.pop().unwrap()).flatten());
            }
            assert_eq!(out, chunks(output).concat(), "{input}");
        }
    }

    /// A frame, and how many bytes its varints have.
    fn any_frame() -> impl Strategy<Value = (u64, Vec<u8>, [usize; 2])> {
        let kind = prop_oneof![4 => Just(DATA), 1 => Just(HEADERS), 2 => 2..64u64];
        let payload = prop_oneof![
            2 => Just(Vec::new()),
            3 => prop::collection::vec(0..2u8, 1..20)
        ];
        let length = || prop::sample::select(vec![1, 2, 4, 8]);
        (kind, payload, [length(), length()])
    }

    proptest! {
        #[test]
        fn all_that_h3_knows_comes_out_but_empty_data_frames_however_it_was_cut(
            frames in prop::collection::vec(any_frame(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            missing in any::<prop::sample::Index>(),
            whole in any::<bool>(),
        ) {
            let bytes: Vec<_> = frames.iter().map(|(kind, payload, lengths)| frame(*kind, payload, *lengths)).collect();
            let mut stream = bytes.concat();
            if !whole {
                stream.truncate(missing.index(stream.len() + 1));
            }
            let (mut expected, mut truncated, mut begun) = (Vec::new(), None, false);
            let mut left = stream.len();
            for ((kind, payload, _), bytes) in frames.iter().zip(&bytes) {
                let there = left.min(bytes.len());
                left -= there;
                begun |= *kind == HEADERS;
                let empty = *kind == DATA && payload.is_empty() && begun;
                let unknown = *kind > LAST_OF_THE_FIRST && *kind != MAX_PUSH_ID;
                let has_header = there >= bytes.len() - payload.len();
                if unknown && has_header && there < bytes.len() {
                    expected.extend(PART_OF_A_HEADER);
                } else if !(empty || unknown) || there < bytes.len() {
                    expected.extend(&bytes[..there]);
                }
                if *kind == DATA && there < bytes.len() && there >= bytes.len() - payload.len() {
                    truncated = Some(Truncated((bytes.len() - there) as u64));
                }
                if there < bytes.len() {
                    break;
                }
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let stream = Bytes::from(stream);
            let chunks = cuts.windows(2).map(|cut| stream.slice(cut[0]..cut[1]));
            prop_assert_eq!(filtered(chunks), (expected, truncated));
        }

        #[test]
        fn bytes_that_are_no_frames_do_no_harm(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20),
        ) {
            let length: usize = chunks.iter().map(Vec::len).sum();
            let mut frames = FrameFilter::of_request();
            let mut out = 0;
            for chunk in chunks {
                frames.push(chunk.into());
                while let Ok(Some(bytes)) = frames.pop() {
                    out += bytes.len();
                }
                if frames.pop().is_err() {
                    break;
                }
            }
            prop_assert!(out <= length);
        }
    }
}
