//! How large a field section is (RFC 9114 §4.2.2), found out without decoding it.
//!
//! One byte of QPACK can stand for a whole field (RFC 9204 §4.5.2), and what the fields are put into panics at
//! 24,576 of them. h3 counts, too, but only where it was given a limit: axum-h3 gives it none.

/// What a field counts beside its name and value, bytes.
const PER_FIELD: u64 = 32;

/// The size of the field section that this block encodes, bytes. Names and values from QPACK's static table count
/// nothing, and Huffman codes as they are; so most are a little larger. What comes behind an error does not count
/// either: who decodes it finds that.
pub(super) fn size(block: &[u8]) -> u64 {
    let mut lines = Lines(block);
    if lines.prefix().is_none() {
        return 0;
    }
    let fields = std::iter::from_fn(|| lines.field());
    fields.fold(0, |size, field| size + PER_FIELD + field)
}

/// The rest of a block.
struct Lines<'a>(&'a [u8]);

impl Lines<'_> {
    /// RFC 9204 §4.5.1.
    fn prefix(&mut self) -> Option<()> {
        self.integer(8)?;
        self.integer(7)?;
        Some(())
    }

    /// Bytes of the next field that are not from a table (RFC 9204 §4.5.2 to §4.5.6).
    fn field(&mut self) -> Option<u64> {
        match self.0.first()?.leading_zeros() {
            // An index, in the static or the dynamic table.
            0 => self.integer(6).map(|_| 0),
            // A name from there.
            1 => {
                self.integer(4)?;
                self.string(7)
            }
            2 => Some(self.string(3)? + self.string(7)?),
            3 => self.integer(4).map(|_| 0),
            _ => {
                self.integer(3)?;
                self.string(7)
            }
        }
    }

    /// An integer with a prefix of so many bits (RFC 7541 §5.1).
    fn integer(&mut self, bits: u32) -> Option<u64> {
        const LARGEST_SHIFT: u32 = 56;
        let largest = (1 << bits) - 1;
        let first = u64::from(self.byte()?) & largest;
        if first < largest {
            return Some(first);
        }
        let mut value = largest;
        for shift in (0..=LARGEST_SHIFT).step_by(7) {
            let byte = u64::from(self.byte()?);
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Bytes of a string whose length has a prefix of so many bits.
    fn string(&mut self, bits: u32) -> Option<u64> {
        let length = self.integer(bits)?;
        (_, self.0) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        Some(length)
    }

    fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_kinds_of_fields_are_counted() {
        for (block, fields, bytes) in [
            (&b""[..], 0, 0),
            (b"\x00\x00", 0, 0),
            // GET, https.
            (b"\x00\x00\xd1\xd7", 2, 0),
            // An index of two bytes.
            (b"\x00\x00\xff\x10\xd1", 2, 0),
            // :path by its name, with a value as it is and with one of Huffman's code.
            (b"\x00\x00\x51\x02/a\xd1", 2, 2),
            (b"\x00\x00\x51\x82\x60\xff\xd1", 2, 2),
            // A name of three bytes, and one of nine.
            (b"\x00\x00\x23abc\x01d", 1, 4),
            (b"\x00\x00\x27\x02abcdefghi\x01d\xd1", 2, 10),
            // In the dynamic table.
            (b"\x00\x00\x11\x03\x02ab\xd1", 3, 2),
            // Behind an error.
            (b"\x00\x00\xd1\x51\x05ab", 1, 0),
            (
                b"\x00\x00\xd1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\xd1",
                1,
                0,
            ),
        ] {
            assert_eq!(size(block), 32 * fields + bytes, "{block:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_block_does_harm(block in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(size(&block) <= 33 * block.len() as u64);
        }
    }
}
