//! Quantities on the command line.
//!
//! They are written as a decimal number and a unit (`100M`, `1.5GiB`, `8Mbit/s`, `500ms`), and read
//! exactly: a value that is no whole number of bytes, bit/s or nanoseconds is refused. What a prefix
//! is of (`B`, `bit/s`) may be written or left out.

use std::num::NonZeroU64;
use std::time::Duration;

/// Reads a size in bytes: a number, with `k`, `M`, `G`, `T` (powers of 1000) or `Ki`, `Mi`, `Gi`,
/// `Ti` (powers of 1024), and with or without `B`.
///
/// # Errors
/// What is wrong with the text, if it is no such size or larger than 2^64 - 1 bytes.
pub fn size(text: &str) -> Result<u64, String> {
    quantity(
        text.strip_suffix('B').unwrap_or(text),
        &[
            ("", 1),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
        ],
    )
}

/// Reads a rate in bit/s: a number above zero, with `k`, `M` or `G` (powers of 1000), and with or
/// without `bit/s`.
///
/// # Errors
/// What is wrong with the text, if it is no such rate.
pub fn rate(text: &str) -> Result<NonZeroU64, String> {
    let units = [
        ("", 1),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let text = text.strip_suffix("bit/s").unwrap_or(text);
    NonZeroU64::new(quantity(text, &units)?).ok_or_else(|| "must be more than 0".into())
}

/// Reads a duration: a number in seconds, or with `ms`, `s`, `m` or `h`.
///
/// # Errors
/// What is wrong with the text, if it is no such duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    const SECOND: u64 = 1_000_000_000;
    let units = [
        ("", SECOND),
        ("ms", SECOND / 1000),
        ("s", SECOND),
        ("m", 60 * SECOND),
        ("h", 3600 * SECOND),
    ];
    quantity(text, &units).map(Duration::from_nanos)
}

/// Reads a decimal number and one of the units, which say how many of the result they are worth.
fn quantity(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let Some(&(_, worth)) = units.iter().find(|(name, _)| *name == unit) else {
        let names: Vec<_> = units.iter().map(|(name, _)| *name).collect();
        let names = names.join(" ");
        return Err(format!(
            "expected a number and one of these units, or none: {}",
            names.trim()
        ));
    };

    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, fraction].concat();
    if whole.is_empty() || (fraction.is_empty() && number.contains('.')) || fraction.contains('.') {
        return Err("expected a number, as in 2 or 1.5".into());
    }
    let too_large = || "the number is too large or too long".to_owned();
    let scale = u32::try_from(fraction.len())
        .ok()
        .and_then(|places| 10_u128.checked_pow(places))
        .ok_or_else(too_large)?;
    let scaled = digits
        .parse::<u128>()
        .ok()
        .and_then(|digits| digits.checked_mul(worth.into()))
        .ok_or_else(too_large)?;
    if scaled % scale != 0 {
        return Err("the number is finer than what can be kept".into());
    }
    u64::try_from(scaled / scale).map_err(|_| too_large())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("100M", 100_000_000),
            ("1.5k", 1500),
            ("1.5Ki", 1536),
            ("2Gi", 2 << 30),
            ("1B", 1),
            ("100MB", 100_000_000),
            ("1.5KiB", 1536),
            ("1T", 1_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            ".5M",
            "5.M",
            "1.2.3",
            "-1",
            "+1",
            "1 M",
            "1m",
            "1K",
            "1KB",
            "1MBB",
            "1Mbit/s",
            "B",
            "0.5",
            "1e3",
            "1.0001k",
            "18446744073709551616",
            "20000000Ti",
            "0.00000000000000000000000000000000000000000000001M",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("8k").unwrap().get(), 8000);
        assert_eq!(rate("2.5M").unwrap().get(), 2_500_000);
        assert_eq!(rate("8Mbit/s").unwrap().get(), 8_000_000);
        assert_eq!(rate("8bit/s").unwrap().get(), 8);
        for text in ["0", "0G", "1Ki", "1MB", "0bit/s", "bit/s", "fast"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("2s", 2000),
            ("2", 2000),
            ("1.5s", 1500),
            ("0.25", 250),
            ("3m", 180_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1d", "-1s", "1us", "0.0000000001s", "99999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
