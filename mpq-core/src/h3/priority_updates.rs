//! PRIORITY_UPDATE frames (RFC 9218 §7.1) on a client's control stream. h3 0.0.8 skips them, so they are read
//! as the stream passes by.
//!
//! What is wrong with such a frame is left out. RFC 9218 §7.1 wants the connection closed for some of it.

use h3::quic::StreamId;

use super::frame_header::Header;
use super::priority::Priority;
use super::turns::Turns;
use crate::proto::varint::read_varint;

/// For a request (RFC 9218 §7.2).
const PRIORITY_UPDATE: u64 = 0xf0700;
/// The longest frame that is read, bytes: an id, and more than all parameters that there are.
const LONGEST: usize = 256;

/// Reads a control stream as it comes.
#[derive(Debug)]
pub(super) struct PriorityUpdates {
    turns: Turns,
    state: State,
    /// What has come of the present part.
    part: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The type of the stream, a varint, is yet to come.
    Type,
    Header,
    /// The payload of an update, of so many bytes.
    Update(usize),
    /// So many bytes of another frame.
    Skip(u64),
}

impl PriorityUpdates {
    pub(super) fn new(turns: Turns) -> Self {
        Self {
            turns,
            state: State::Type,
            part: Vec::new(),
        }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let State::Skip(left) = self.state {
                let here = left.min(bytes.len() as u64);
                bytes = &bytes[here as usize..];
                self.state = match left - here {
                    0 => State::Header,
                    left => State::Skip(left),
                };
                continue;
            }
            self.part.push(bytes[0]);
            bytes = &bytes[1..];
            self.take_part();
        }
    }

    /// Goes on, if the present part is complete.
    fn take_part(&mut self) {
        let next = match self.state {
            State::Type => read_varint(&mut &self.part[..]).map(|_| State::Header),
            State::Header => {
                Header::read(&self.part).map(|header| match usize::try_from(header.payload) {
                    Ok(0) => State::Header,
                    Ok(payload) if header.kind == PRIORITY_UPDATE && payload <= LONGEST => {
                        State::Update(payload)
                    }
                    _ => State::Skip(header.payload),
                })
            }
            State::Update(length) => (self.part.len() == length).then(|| {
                self.update();
                State::Header
            }),
            State::Skip(_) => None,
        };
        if let Some(next) = next {
            self.state = next;
            self.part.clear();
        }
    }

    fn update(&self) {
        let mut rest = &self.part[..];
        let stream = read_varint(&mut rest).and_then(|id| StreamId::try_from(id).ok());
        let field = str::from_utf8(rest).ok();
        let priority = field.and_then(|field| field.parse::<Priority>().ok());
        if let (Some(stream), Some(priority)) = (stream, priority) {
            self.turns.updated(stream, priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::varint::put_varint;

    fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_varint(&mut frame, kind);
        put_varint(&mut frame, payload.len() as u64);
        frame.extend(payload);
        frame
    }

    #[test]
    fn updates_are_found_among_other_frames_however_they_are_cut() {
        let stream = [
            vec![0x00],
            frame(0x04, &[1, 2, 3]),
            frame(PRIORITY_UPDATE, b"\x04u=1"),
            frame(0x21, &[PRIORITY_UPDATE as u8; 300]),
            frame(0x21, b""),
            frame(PRIORITY_UPDATE, &[b' '; 1000]),
            frame(PRIORITY_UPDATE, b"\x00nonsense="),
            frame(PRIORITY_UPDATE, b""),
            frame(PRIORITY_UPDATE, b"\x08u=0, i"),
        ]
        .concat();
        for size in [1, 2, 7, stream.len()] {
            let turns = Turns::default();
            let answers = [0, 4, 8].map(|id| turns.begin(id.try_into().unwrap()));
            let mut updates = PriorityUpdates::new(turns);
            stream.chunks(size).for_each(|chunk| updates.read(chunk));
            let values = answers.each_ref().map(|answer| answer.leave(1 << 20).value);
            assert!(values.is_sorted(), "{size}: {values:?}");
            assert!(values[0] < values[1] && values[1] < values[2], "{values:?}");
        }
    }
}
