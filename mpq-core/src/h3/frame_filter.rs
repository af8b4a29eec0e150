//! The frames of a request stream, as far as h3 has to be kept from taking one for the end of the body.
//!
//! h3 0.0.8 (and its main branch of January 2026) knows the end of a body by there being nothing left of a DATA
//! frame: `RequestStream::recv_data` ends
//! - with an empty DATA frame (`poll_data` of its `frame.rs`, `remaining_data == 0`), which RFC 9114 §7.2.1
//!   allows anywhere in a body. What follows is never read.
//! - with a stream that ends within a DATA frame, if all of its bytes had been read before the end was known
//!   (there, `(None, true)`). RFC 9114 §7.1 has it that such a stream is an error.
//!
//! Nobody seems to have reported either (<https://github.com/hyperium/h3/issues>); `tests/h3_noq.rs` tells when
//! this can go.
//!
//! All else is passed on as it is, errors of the protocol included: those are h3's to find.

use bytes::{Buf, Bytes};

use super::frame_header::Header;

/// Frame types (RFC 9114 §7.2).
const DATA: u64 = 0;
const HEADERS: u64 = 1;

/// Passes on the bytes of a request stream without its empty DATA frames.
#[derive(Debug, Default)]
pub(super) struct FrameFilter {
    /// What was put in and not handed out yet.
    chunk: Bytes,
    /// Part of a header, whose rest has not come.
    part: Vec<u8>,
    /// Bytes of the frame's payload that have not come.
    left: u64,
    /// The frame is a DATA frame.
    data: bool,
    /// A HEADERS frame has come. Before that a DATA frame is an error (RFC 9114 §4.1).
    begun: bool,
}

/// The stream has ended within a DATA frame.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the stream ended within a DATA frame, {0} bytes before its end")]
pub(super) struct Truncated(u64);

impl FrameFilter {
    /// Takes the next bytes of the stream, in chunks as they come. What came before is to be [popped](Self::pop).
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty());
        self.chunk = chunk;
    }

    /// The next bytes for h3, never an empty chunk. None if there are none before more are pushed.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if let Some(header) = self.complete() {
            return Some(header);
        }
        let mut end = 0;
        while end < self.chunk.len() {
            if self.left > 0 {
                let here = self.left.min((self.chunk.len() - end) as u64);
                self.left -= here;
                end += here as usize;
                continue;
            }
            let Some(header) = Header::read(&self.chunk[end..]) else {
                self.part.extend_from_slice(&self.chunk[end..]);
                self.chunk.truncate(end);
                break;
            };
            if self.begin(&header) {
                end += header.length;
                continue;
            }
            let before = self.chunk.split_to(end);
            self.chunk.advance(header.length);
            if !before.is_empty() {
                return Some(before);
            }
            end = 0;
        }
        Some(std::mem::take(&mut self.chunk)).filter(|chunk| !chunk.is_empty())
    }

    /// What is left at the end of the stream: once, the part of a header, which h3 is to complain about.
    ///
    /// # Errors
    /// Each time, if the last frame is a DATA frame and not all there.
    pub(super) fn finish(&mut self) -> Result<Option<Bytes>, Truncated> {
        if self.data && self.left > 0 {
            return Err(Truncated(self.left));
        }
        let part = std::mem::take(&mut self.part);
        Ok(Some(part.into()).filter(|part: &Bytes| !part.is_empty()))
    }

    /// The header of which a part had come before, if it is complete now and to be passed on.
    fn complete(&mut self) -> Option<Bytes> {
        let before = self.part.len();
        if before == 0 {
            return None;
        }
        let more = self.chunk.len().min(Header::LONGEST - before);
        self.part.extend_from_slice(&self.chunk[..more]);
        let Some(header) = Header::read(&self.part) else {
            // Nothing is longer than the longest.
            self.chunk.clear();
            return None;
        };
        self.chunk.advance(header.length - before);
        let mut bytes = std::mem::take(&mut self.part);
        bytes.truncate(header.length);
        self.begin(&header).then(|| bytes.into())
    }

    /// A frame begins. Whether it is passed on.
    fn begin(&mut self, header: &Header) -> bool {
        self.left = header.payload;
        self.data = header.kind == DATA;
        self.begun |= header.kind == HEADERS;
        !(self.data && self.left == 0 && self.begun)
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
        let mut frames = FrameFilter::default();
        let mut out = Vec::new();
        for chunk in chunks {
            frames.push(chunk);
            while let Some(bytes) = frames.pop() {
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
            ("01 01 | 00 00 00 21 00", "01 01 00 21 00"),
            // An error that h3 is to find.
            ("00 00 01 00", "00 00 01 00"),
            // In a payload they are none.
            (
                "01 02 00 00 00 03 00 00 00 21 02 00 00",
                "01 02 00 00 00 03 00 00 00 21 02 00 00",
            ),
            // A part of a header is passed on at the end.
            ("01 00 00 00 00", "01 00 00"),
            ("01 00 00 | 00 80 | 00 00", "01 00 80 00 00"),
            ("01 | 40", "01 40"),
            // And what lacks of a frame that is not DATA, h3 sees.
            ("01 05 aa", "01 05 aa"),
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
        let mut frames = FrameFilter::default();
        let stream =
            Bytes::from([frame(HEADERS, b"", [1, 1]), frame(DATA, &[7; 100], [1, 2])].concat());
        let (first, second) = (stream.slice(..50), stream.slice(50..));
        for chunk in [first, second] {
            frames.push(chunk.clone());
            let passed = frames.pop().unwrap();
            assert_eq!(
                (passed.as_ptr(), passed.len()),
                (chunk.as_ptr(), chunk.len())
            );
            assert_eq!(frames.pop(), None);
        }
    }

    /// A frame, and how many bytes its varints have.
    fn any_frame() -> impl Strategy<Value = (u64, Vec<u8>, [usize; 2])> {
        let kind = prop_oneof![4 => Just(DATA), 1 => Just(HEADERS), 1 => 2..64u64];
        let payload = prop_oneof![
            2 => Just(Vec::new()),
            3 => prop::collection::vec(0..2u8, 1..20)
        ];
        let length = || prop::sample::select(vec![1, 2, 4, 8]);
        (kind, payload, [length(), length()])
    }

    proptest! {
        #[test]
        fn all_but_empty_data_frames_comes_out_however_it_was_cut(
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
                let dropped = *kind == DATA && payload.is_empty() && begun;
                if there < bytes.len() || !dropped {
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
            let (out, _) = filtered(chunks.into_iter().map(Bytes::from));
            prop_assert!(out.len() <= length);
        }
    }
}
