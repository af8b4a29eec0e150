//! Text of another host or user, made safe for a terminal or a log.

/// A text without what could speak to a terminal or mislead its reader: the characters that are
/// [unprintable](is_unprintable) give way to U+FFFD.
pub fn printable(text: &str) -> String {
    let safe = |c| match is_unprintable(c) {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    text.chars().map(safe).collect()
}

/// Whether a character controls a terminal (C0, C1), the direction of what stands around it (UAX #9), or nothing that
/// can be seen.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_to_a_terminal_or_hides_is_replaced() {
        let text = "a\x1b[31mb\u{9b}c\u{202e}d\u{2066}e\u{200b}f\r\n";
        assert_eq!(printable(text), "a�[31mb�c�d�e�f��");
        let words = "Straße, 東京, עברית: ok\u{a0}";
        assert_eq!(printable(words), words);
    }
}
