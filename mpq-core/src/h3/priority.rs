//! How soon a client wants an answer, and whether it can use a part of it (RFC 9218 §4).

use std::str::FromStr;

use sfv::{BareItem, Dictionary, ListEntry, Parser};

/// The priority of a response. The default is that of a request that says nothing (RFC 9218 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priority {
    /// From 0, the most urgent, to 7.
    pub urgency: u8,
    /// A part of the response is of use already.
    pub incremental: bool,
}

impl Priority {
    /// The least urgent.
    const LAST: u8 = 7;
}

impl Default for Priority {
    fn default() -> Self {
        Self {
            urgency: 3,
            incremental: false,
        }
    }
}

/// A `Priority` field that is no dictionary of structured fields (RFC 9651 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a dictionary such as u=3, i")]
pub struct NotAPriority;

impl FromStr for Priority {
    type Err = NotAPriority;

    /// Parameters that are unknown, of another type or out of range are left out (RFC 9218 §4).
    fn from_str(field: &str) -> Result<Self, NotAPriority> {
        let members: Dictionary = Parser::new(field).parse().map_err(|_| NotAPriority)?;
        let item = |name| match members.get(name) {
            Some(ListEntry::Item(item)) => Some(&item.bare_item),
            _ => None,
        };
        let mut priority = Self::default();
        if let Some(BareItem::Integer(urgency)) = item("u")
            && let Ok(urgency) = u8::try_from(i64::from(*urgency))
            && urgency <= Self::LAST
        {
            priority.urgency = urgency;
        }
        if let Some(BareItem::Boolean(incremental)) = item("i") {
            priority.incremental = *incremental;
        }
        Ok(priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_what_is_unknown_in_them_is_left_out() {
        for (field, urgency, incremental) in [
            ("", 3, false),
            ("u=0", 0, false),
            ("u=7, i", 7, true),
            ("i", 3, true),
            ("i=?0, u=5", 5, false),
            ("u=8", 3, false),
            ("u=-1, i", 3, true),
            ("u=1.0", 3, false),
            ("u=\"1\"", 3, false),
            ("u=(1), i=1", 3, false),
            ("u=1;x=2, x=?1", 1, false),
            ("u=1, u=2", 2, false),
        ] {
            let priority = Priority {
                urgency,
                incremental,
            };
            assert_eq!(field.parse(), Ok(priority), "{field}");
        }
        for field in ["u=", "U=1", "u=1,", "é"] {
            assert_eq!(field.parse::<Priority>(), Err(NotAPriority), "{field}");
        }
    }
}
