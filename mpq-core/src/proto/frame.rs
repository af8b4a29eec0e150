//! The frames on the wire: a version, then type, length and body of each, all in QUIC's variable
//! length integers (RFC 9000 §16). Unknown types are skipped; lengths are bounded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Buf, BufMut};

use super::varint::{MAX_VARINT, put_varint, read_varint};

/// The HTTP/3 type (RFC 9114 §6.2) of the unidirectional streams that carry the frames: "MIG" in ASCII.
pub const MIGRATION_STREAM_TYPE: u64 = 0x4d4947;
/// The version of this protocol, the first thing on the stream in either direction.
pub const VERSION: u64 = 1;
/// The longest frame body that is read, bytes.
pub const MAX_BODY: usize = 4096;
/// The most addresses in one frame.
pub const MAX_ADDRESSES: usize = 8;
/// The longest DNS name, bytes (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 255;

/// A message of the migration protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: it speaks this protocol. A server announces only to those who said so.
    Hello {
        /// Bits of how it can follow: [`Frame::MULTIPATH`], [`Frame::REDIRECT`].
        capabilities: u64,
    },
    /// Server: where else it may be found, should it vanish without a word.
    Addresses {
        /// Up to [`MAX_ADDRESSES`] alternative addresses.
        pool: Vec<SocketAddr>,
        /// A DNS name that leads to it.
        name: Option<String>,
    },
    /// Server: it will move.
    Migration {
        /// Rises with each announcement.
        sequence: u64,
        /// Where it will be: one to [`MAX_ADDRESSES`] addresses.
        targets: Vec<SocketAddr>,
        /// How long it expects to be silent (milliseconds on the wire).
        outage: Duration,
        /// Time until it parks (milliseconds on the wire).
        lead: Duration,
    },
    /// Client: it looks out for the new address.
    Ready {
        /// Of the announcement.
        sequence: u64,
    },
    /// Server: silence starts now.
    Parked {
        /// Of the announcement.
        sequence: u64,
    },
    /// Server: it stays after all.
    Cancelled {
        /// Of the announcement.
        sequence: u64,
    },
    /// Server: it is there; sent on the new paths.
    Arrived {
        /// Of the announcement.
        sequence: u64,
    },
}

/// What is wrong with bytes on the migration stream. The stream is given up then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Another version than [`VERSION`].
    #[error("version {0} of the migration protocol is not spoken here")]
    Version(u64),
    /// A body longer than [`MAX_BODY`].
    #[error("a frame of {0} bytes is too long")]
    TooLong(u64),
    /// A body that is cut short, too long, or says what cannot be.
    #[error("malformed frame of type {0}")]
    Malformed(u64),
}

/// Why a frame cannot be written: no receiver would read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// An announcement of a move to nowhere.
    #[error("a move has to have an address to go to")]
    NoTarget,
    /// More addresses than [`MAX_ADDRESSES`].
    #[error("clients can be told of {MAX_ADDRESSES} addresses at most, not of {0}")]
    TooManyAddresses(usize),
    /// An announcement of an address where no client goes ([`policy`](super::policy::acceptable)).
    #[error(
        "no client goes to {0}: it has to be one host's address, with port 443 or one from 1024 on"
    )]
    Unacceptable(SocketAddr),
    /// A name that is empty, or longer than the DNS allows (RFC 1035 §2.3.4).
    #[error("a name has 1 to {MAX_NAME} bytes, not {0}")]
    Name(usize),
}

const HELLO: u64 = 1;
const MIGRATION: u64 = 2;
const READY: u64 = 3;
const PARKED: u64 = 4;
const CANCELLED: u64 = 5;
const ARRIVED: u64 = 6;
const ADDRESSES: u64 = 7;

impl Frame {
    /// Capability: it follows by opening paths, since multipath was negotiated.
    pub const MULTIPATH: u64 = 1;
    /// Capability: it follows by redirecting its datagrams; its paths stay what they are.
    pub const REDIRECT: u64 = 2;

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// No receiver would read it; nothing is appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Hello { capabilities } => {
                put_varint(&mut body, *capabilities);
                HELLO
            }
            Self::Addresses { pool, name } => {
                put_addresses(&mut body, pool)?;
                if let Some(name) = name {
                    if !(1..=MAX_NAME).contains(&name.len()) {
                        return Err(EncodeError::Name(name.len()));
                    }
                    body.put_slice(name.as_bytes());
                }
                ADDRESSES
            }
            Self::Migration {
                sequence,
                targets,
                outage,
                lead,
            } => {
                if targets.is_empty() {
                    return Err(EncodeError::NoTarget);
                }
                put_varint(&mut body, *sequence);
                put_addresses(&mut body, targets)?;
                put_varint(&mut body, millis(*outage));
                put_varint(&mut body, millis(*lead));
                MIGRATION
            }
            Self::Ready { sequence } => numbered(&mut body, *sequence, READY),
            Self::Parked { sequence } => numbered(&mut body, *sequence, PARKED),
            Self::Cancelled { sequence } => numbered(&mut body, *sequence, CANCELLED),
            Self::Arrived { sequence } => numbered(&mut body, *sequence, ARRIVED),
        };
        put_varint(out, kind);
        put_varint(out, body.len() as u64);
        out.extend_from_slice(&body);
        Ok(())
    }

    /// `Ok(None)` for an unknown type.
    fn decode(kind: u64, mut body: &[u8]) -> Result<Option<Self>, FrameError> {
        let frame = Self::read_body(kind, &mut body).ok_or(FrameError::Malformed(kind))?;
        match frame {
            Some(_) if !body.is_empty() => Err(FrameError::Malformed(kind)),
            frame => Ok(frame),
        }
    }

    /// The outer `None` says that the body is malformed, the inner one that the type is unknown.
    fn read_body(kind: u64, body: &mut &[u8]) -> Option<Option<Self>> {
        Some(Some(match kind {
            HELLO => Self::Hello {
                capabilities: read_varint(body)?,
            },
            MIGRATION => {
                let sequence = read_varint(body)?;
                let targets = addresses(body).filter(|targets| !targets.is_empty())?;
                let outage = Duration::from_millis(read_varint(body)?);
                let lead = Duration::from_millis(read_varint(body)?);
                Self::Migration {
                    sequence,
                    targets,
                    outage,
                    lead,
                }
            }
            ADDRESSES => {
                let pool = addresses(body)?;
                let name = std::str::from_utf8(std::mem::take(body)).ok()?;
                if name.len() > MAX_NAME {
                    return None;
                }
                let name = (!name.is_empty()).then(|| name.to_owned());
                Self::Addresses { pool, name }
            }
            READY => Self::Ready {
                sequence: read_varint(body)?,
            },
            PARKED => Self::Parked {
                sequence: read_varint(body)?,
            },
            CANCELLED => Self::Cancelled {
                sequence: read_varint(body)?,
            },
            ARRIVED => Self::Arrived {
                sequence: read_varint(body)?,
            },
            _ => return Some(None),
        }))
    }
}

/// What a sender puts before its first frame.
pub fn preamble() -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, VERSION);
    out
}

/// Reads frames from the chunks of a stream, however they are cut.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    version_seen: bool,
}

impl Decoder {
    /// Takes the next bytes of the stream. Call [`Decoder::frame`] until it has no more before
    /// the next ones, so that no more than a frame is kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame of a known type.
    ///
    /// # Errors
    /// The stream cannot be read on.
    pub fn frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let mut rest = self.buffer.as_slice();
            if !self.version_seen {
                let Some(version) = read_varint(&mut rest) else {
                    return Ok(None);
                };
                if version != VERSION {
                    return Err(FrameError::Version(version));
                }
                self.version_seen = true;
                self.consume_to(rest.len());
                continue;
            }
            let (Some(kind), Some(length)) = (read_varint(&mut rest), read_varint(&mut rest))
            else {
                return Ok(None);
            };
            let length = match usize::try_from(length) {
                Ok(length) if length <= MAX_BODY => length,
                _ => return Err(FrameError::TooLong(length)),
            };
            let Some((body, rest)) = rest.split_at_checked(length) else {
                return Ok(None);
            };
            let frame = Frame::decode(kind, body)?;
            let left = rest.len();
            self.consume_to(left);
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// Drops all but the last `left` bytes.
    fn consume_to(&mut self, left: usize) {
        self.buffer.drain(..self.buffer.len() - left);
    }
}

fn millis(duration: Duration) -> u64 {
    duration
        .as_millis()
        .try_into()
        .unwrap_or(MAX_VARINT)
        .min(MAX_VARINT)
}

/// The body of a frame that has no more than its announcement's number; returns the type.
fn numbered(body: &mut Vec<u8>, sequence: u64, kind: u64) -> u64 {
    put_varint(body, sequence);
    kind
}

fn put_addresses(out: &mut Vec<u8>, addresses: &[SocketAddr]) -> Result<(), EncodeError> {
    if addresses.len() > MAX_ADDRESSES {
        return Err(EncodeError::TooManyAddresses(addresses.len()));
    }
    put_varint(out, addresses.len() as u64);
    addresses
        .iter()
        .for_each(|address| put_address(out, *address));
    Ok(())
}

fn addresses(bytes: &mut &[u8]) -> Option<Vec<SocketAddr>> {
    let count = usize::try_from(read_varint(bytes)?).ok()?;
    if count > MAX_ADDRESSES {
        return None;
    }
    (0..count).map(|_| address(bytes)).collect()
}

fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(address.port());
}

/// An IPv4 address in its IPv6-mapped form is taken for what it is, here and nowhere else: all that is known
/// of an address is known by one form.
fn address(bytes: &mut &[u8]) -> Option<SocketAddr> {
    let ip: IpAddr = match bytes.try_get_u8().ok()? {
        4 => bytes.try_get_u32().ok()?.to_be_bytes().into(),
        6 => bytes.try_get_u128().ok()?.to_be_bytes().into(),
        _ => return None,
    };
    Some(SocketAddr::new(
        ip.to_canonical(),
        bytes.try_get_u16().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let number = 0..=MAX_VARINT;
        let duration = (0..=MAX_VARINT).prop_map(Duration::from_millis);
        prop_oneof![
            number
                .clone()
                .prop_map(|capabilities| Frame::Hello { capabilities }),
            (
                number.clone(),
                some_addresses(1),
                duration.clone(),
                duration
            )
                .prop_map(|(sequence, targets, outage, lead)| Frame::Migration {
                    sequence,
                    targets,
                    outage,
                    lead,
                }),
            (
                some_addresses(0),
                prop::option::of("[a-z]{1,63}(\\.[a-z]{1,63}){0,2}")
            )
                .prop_map(|(pool, name)| Frame::Addresses { pool, name }),
            number
                .clone()
                .prop_map(|sequence| Frame::Ready { sequence }),
            number
                .clone()
                .prop_map(|sequence| Frame::Parked { sequence }),
            number
                .clone()
                .prop_map(|sequence| Frame::Cancelled { sequence }),
            number.prop_map(|sequence| Frame::Arrived { sequence }),
        ]
    }

    fn some_addresses(least: usize) -> impl Strategy<Value = Vec<SocketAddr>> {
        // Neither flow label nor scope travels, nor the mapped form.
        let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        prop::collection::vec(any::<SocketAddr>().prop_map(plain), least..=MAX_ADDRESSES)
    }

    fn decode_all(chunks: impl Iterator<Item = Vec<u8>>) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(&chunk);
            while let Some(frame) = decoder.frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn round_trip_however_it_is_cut(
            sent in prop::collection::vec(frames(), 0..5), size in 1..40_usize
        ) {
            let mut bytes = preamble();
            for frame in &sent {
                prop_assert_eq!(frame.encode(&mut bytes), Ok(()));
            }
            let received = decode_all(bytes.chunks(size).map(<[u8]>::to_vec));
            prop_assert_eq!(received, Ok(sent));
        }

        #[test]
        fn any_bytes_give_the_same_result_however_they_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1..40_usize
        ) {
            let bytes = [preamble(), bytes].concat();
            let whole = decode_all(std::iter::once(bytes.clone()));
            prop_assert_eq!(decode_all(bytes.chunks(size).map(<[u8]>::to_vec)), whole);
        }
    }

    #[test]
    fn what_is_refused_and_what_is_skipped() {
        let decode = |bytes: &[u8]| decode_all(std::iter::once(bytes.to_vec()));
        assert_eq!(decode(&[2]), Err(FrameError::Version(2)));
        assert_eq!(decode(&[1, 4, 0x50, 1]), Err(FrameError::TooLong(4097)));
        assert_eq!(
            decode(&[1, 4, 0]),
            Err(FrameError::Malformed(PARKED)),
            "no sequence"
        );
        assert_eq!(
            decode(&[1, 4, 2, 7, 0]),
            Err(FrameError::Malformed(PARKED)),
            "too long"
        );
        assert_eq!(
            decode(&[1, 2, 2, 7, 0]),
            Err(FrameError::Malformed(MIGRATION)),
            "no target"
        );
        let pool = |count: u8| {
            let addresses = [4, 10, 1, 0, 2, 0x11, 0x51].repeat(count.into());
            let length = addresses.len() as u8 + 1;
            [&[1, 7, 0x40, length, count], &addresses[..]].concat()
        };
        assert_eq!(decode(&pool(8)).map(|frames| frames.len()), Ok(1));
        assert_eq!(
            decode(&pool(9)),
            Err(FrameError::Malformed(ADDRESSES)),
            "too many addresses"
        );
        assert_eq!(
            decode(&[1, 7, 2, 0, 0xff]),
            Err(FrameError::Malformed(ADDRESSES)),
            "a name that is no text"
        );
        let unknown_then_parked = [1, 0x21, 3, 1, 2, 3, 4, 1, 7];
        assert_eq!(
            decode(&unknown_then_parked),
            Ok(vec![Frame::Parked { sequence: 7 }])
        );
        assert_eq!(
            decode(&unknown_then_parked[..8]),
            Ok(vec![]),
            "not complete"
        );
    }

    /// Whatever a frame holds: either it is read as it was, or it cannot be written.
    #[test]
    fn nothing_is_written_that_would_not_be_read() {
        let address = SocketAddr::from(([192, 0, 2, 1], 443));
        let migration = |targets| Frame::Migration {
            sequence: 1,
            targets: vec![address; targets],
            outage: Duration::ZERO,
            lead: Duration::ZERO,
        };
        let addresses = |pool, name: Option<usize>| Frame::Addresses {
            pool: vec![address; pool],
            name: name.map(|length| "a".repeat(length)),
        };
        let too_many = Err(EncodeError::TooManyAddresses(9));
        for (frame, written) in [
            (migration(0), Err(EncodeError::NoTarget)),
            (migration(1), Ok(())),
            (migration(8), Ok(())),
            (migration(9), too_many),
            (addresses(8, Some(255)), Ok(())),
            (addresses(9, None), too_many),
            (addresses(0, Some(0)), Err(EncodeError::Name(0))),
            (addresses(0, Some(256)), Err(EncodeError::Name(256))),
        ] {
            let mut bytes = preamble();
            assert_eq!(frame.encode(&mut bytes), written, "{frame:?}");
            let frames = match written {
                Ok(()) => vec![frame],
                Err(_) => vec![],
            };
            assert_eq!(decode_all(std::iter::once(bytes)), Ok(frames));
        }
    }

    #[test]
    fn a_mapped_address_is_read_as_what_it_is() {
        let mapped = [&[0; 10][..], &[0xff, 0xff, 10, 1, 0, 2]].concat();
        let bytes = [&[1, 7, 20, 1, 6][..], &mapped, &[0x11, 0x51]].concat();
        let read = decode_all(std::iter::once(bytes));
        let frame = Frame::Addresses {
            pool: vec!["10.1.0.2:4433".parse().unwrap()],
            name: None,
        };
        assert_eq!(read, Ok(vec![frame.clone()]));
        let mut written = Vec::new();
        let sent = Frame::Addresses {
            pool: vec!["[::ffff:10.1.0.2]:4433".parse().unwrap()],
            name: None,
        };
        assert_eq!(sent.encode(&mut written), Ok(()));
        let read = decode_all([preamble(), written].into_iter());
        assert_eq!(read, Ok(vec![frame]));
    }

    #[test]
    fn the_longest_announcement_fits() {
        let announcement = Frame::Migration {
            sequence: MAX_VARINT,
            targets: vec!["[2001:db8::1]:443".parse().unwrap(); MAX_ADDRESSES],
            outage: Duration::MAX,
            lead: Duration::MAX,
        };
        let mut bytes = Vec::new();
        assert_eq!(announcement.encode(&mut bytes), Ok(()));
        assert!(bytes.len() < MAX_BODY);
    }
}
