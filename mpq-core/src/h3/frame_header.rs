//! The header of an HTTP/3 frame (RFC 9114 §7.1).

use crate::proto::varint::read_varint;

/// What a frame begins with.
pub(super) struct Header {
    pub(super) kind: u64,
    /// Bytes of its payload.
    pub(super) payload: u64,
    /// Its own bytes.
    pub(super) length: usize,
}

impl Header {
    /// Bytes of the longest: two varints.
    pub(super) const LONGEST: usize = 16;

    /// What `bytes` begin with, if they hold all of it.
    pub(super) fn read(bytes: &[u8]) -> Option<Header> {
        let mut rest = bytes;
        let kind = read_varint(&mut rest)?;
        let payload = read_varint(&mut rest)?;
        Some(Header {
            kind,
            payload,
            length: bytes.len() - rest.len(),
        })
    }
}
