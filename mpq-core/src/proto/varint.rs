//! Variable-length integers (RFC 9000 §16).

use bytes::BufMut;

/// The largest that can be written.
pub(crate) const MAX_VARINT: u64 = (1 << 62) - 1;

/// Appends `value`, or the largest that there is.
pub(crate) fn put_varint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(0x4000 | value as u16),
        0x4000..0x4000_0000 => out.put_u32(0x8000_0000 | value as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | value.min(MAX_VARINT)),
    }
}

/// The next integer of `bytes`, and takes it off them; `None` if they do not hold all of it.
pub(crate) fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let length = 1 << (bytes.first()? >> 6);
    let (encoded, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let value = encoded
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some(value & (u64::MAX >> (66 - 8 * length as u32).min(64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 9000 §A.1, and each cut short by a byte.
    #[test]
    fn varints() {
        for (bytes, value) in [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            let mut rest = bytes;
            assert_eq!((read_varint(&mut rest), rest.len()), (Some(value), 0));
            assert_eq!(read_varint(&mut &bytes[..bytes.len() - 1]), None);
        }
    }
}
