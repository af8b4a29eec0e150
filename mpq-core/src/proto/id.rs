//! What a path goes by.

use std::fmt;

/// QUIC's number of a path (draft-ietf-quic-multipath-21 §2). The first path of a connection has 0, and none has
/// that of an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct PathId(u32);

impl From<u32> for PathId {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

impl From<PathId> for u32 {
    fn from(id: PathId) -> Self {
        id.0
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quics_number() {
        assert_eq!(u32::from(PathId::from(7)), 7);
        assert_eq!(PathId::from(7).to_string(), "7");
    }
}
