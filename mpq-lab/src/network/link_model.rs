//! What a link does to packets, as people write it: quantities are texts with units.
//!
//! ```toml
//! rate = "100M"     # bit/s of IP packets
//! burst = "400k"    # bytes that may pass at once: the token bucket's depth
//! latency = "1ms"   # what the queue holds beyond the burst, as time at the rate
//! delay = "25ms"    # from the queue's end to the other side, one way
//! jitter = "0ms"    # the delay is this much longer or shorter, at random; order is kept
//! loss = 0.0        # probability that a packet is lost after the queue
//! reorder = 0.0     # probability that a packet has no delay, and so overtakes others
//! up = true         # whether the link carries anything
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The largest packet of any link, in bytes.
pub const MTU: usize = 1500;

/// A link; both directions are alike.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shape {
    /// Bit/s of IP packets.
    #[serde(with = "rate")]
    pub rate: u64,
    /// Depth of the token bucket, in bytes.
    #[serde(with = "size")]
    pub burst: u64,
    /// As that of tc-tbf(8): the queue holds `burst` and what passes in this time.
    #[serde(with = "duration")]
    pub latency: Duration,
    /// One way, after the queue.
    #[serde(with = "duration")]
    pub delay: Duration,
    /// The delay is up to this much longer or shorter.
    #[serde(with = "duration")]
    pub jitter: Duration,
    /// Probability that a packet is lost. It has passed the queue then and used its share of the rate.
    pub loss: f64,
    /// Probability that a packet is not delayed.
    pub reorder: f64,
    /// Whether packets pass. Those on their way when it becomes false are dropped.
    pub up: bool,
}

impl Default for Shape {
    /// Link 0 of the paper (its Table 2), where nothing is lost.
    fn default() -> Shape {
        Shape {
            rate: 100_000_000,
            burst: 400_000,
            latency: Duration::from_millis(1),
            delay: Duration::from_millis(25),
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            up: true,
        }
    }
}

impl Shape {
    /// Whether a link can be so.
    ///
    /// # Errors
    /// What is wrong, and with which field.
    pub fn check(&self) -> Result<(), String> {
        // Time at the rate is counted in nanoseconds.
        if !(1_000..=100_000_000_000).contains(&self.rate) {
            return Err("rate must be between 1k and 100G".into());
        }
        if self.burst < MTU as u64 {
            return Err(format!("burst must be {MTU} bytes or more, one packet"));
        }
        let most = Duration::from_secs(60);
        for (name, value) in [("latency", self.latency), ("delay", self.delay)] {
            if value > most {
                return Err(format!("{name} must be 60s or less"));
            }
        }
        if self.jitter > self.delay {
            return Err("jitter must not be more than delay".into());
        }
        for (name, value) in [("loss", self.loss), ("reorder", self.reorder)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("{name} must be between 0 and 1"));
            }
        }
        Ok(())
    }

    /// Bytes that can wait.
    pub fn queue(&self) -> u64 {
        let beyond = u128::from(self.rate) * self.latency.as_nanos() / 8_000_000_000;
        self.burst
            .saturating_add(u64::try_from(beyond).unwrap_or(u64::MAX))
    }

    /// Takes over what the change has; the result is to be checked.
    pub fn apply(&mut self, change: &Change) {
        let Change {
            rate,
            burst,
            latency,
            delay,
            jitter,
            loss,
            reorder,
            up,
        } = *change;
        self.rate = rate.unwrap_or(self.rate);
        self.burst = burst.unwrap_or(self.burst);
        self.latency = latency.unwrap_or(self.latency);
        self.delay = delay.unwrap_or(self.delay);
        self.jitter = jitter.unwrap_or(self.jitter);
        self.loss = loss.unwrap_or(self.loss);
        self.reorder = reorder.unwrap_or(self.reorder);
        self.up = up.unwrap_or(self.up);
    }
}

impl fmt::Display for Shape {
    /// As [`Change`] is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rate={} burst={} latency={} delay={} jitter={} loss={} reorder={} up={}",
            rate::text(self.rate),
            size::text(self.burst),
            duration::text(self.latency),
            duration::text(self.delay),
            duration::text(self.jitter),
            self.loss,
            self.reorder,
            self.up
        )
    }
}

/// New values for some of a [`Shape`]'s fields.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Change {
    /// Bit/s.
    #[serde(with = "rate::option")]
    pub rate: Option<u64>,
    /// Bytes.
    #[serde(with = "size::option")]
    pub burst: Option<u64>,
    /// See [`Shape::latency`].
    #[serde(with = "duration::option")]
    pub latency: Option<Duration>,
    /// See [`Shape::delay`].
    #[serde(with = "duration::option")]
    pub delay: Option<Duration>,
    /// See [`Shape::jitter`].
    #[serde(with = "duration::option")]
    pub jitter: Option<Duration>,
    /// A probability.
    pub loss: Option<f64>,
    /// A probability.
    pub reorder: Option<f64>,
    /// Whether packets pass.
    pub up: Option<bool>,
}

impl FromStr for Change {
    type Err = String;

    /// Reads `KEY=VALUE` pairs, with commas or spaces between them.
    fn from_str(text: &str) -> Result<Change, String> {
        let mut fields = Map::new();
        let pairs = text.split(|c: char| c == ',' || c.is_whitespace());
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair}: expected KEY=VALUE, as in delay=10ms"))?;
            let wrong = |what: &str| format!("{key}: {value} is no {what}");
            let value = match key {
                "loss" | "reorder" => Value::from(
                    value
                        .parse::<f64>()
                        .ok()
                        .filter(|number| number.is_finite())
                        .ok_or_else(|| wrong("number between 0 and 1"))?,
                ),
                "up" => Value::from(value.parse::<bool>().map_err(|_| wrong("true or false"))?),
                _ => Value::from(value),
            };
            if fields.insert(key.to_owned(), value).is_some() {
                return Err(format!("{key} is said twice"));
            }
        }
        serde_json::from_value(fields.into()).map_err(|error| error.to_string())
    }
}

/// Makes a module that reads a quantity from a text with a unit and writes it so, for serde's `with`.
macro_rules! quantity {
    ($name:ident: $type:ty, $read:expr, $write:expr) => {
        mod $name {
            use super::*;
            use serde::de::{Deserializer, Error};
            use serde::ser::Serializer;

            pub(super) fn text(value: $type) -> String {
                $write(value)
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<$type, D::Error> {
                let text = String::deserialize(from)?;
                let wrong = |error| format!("{}: {error}", stringify!($name));
                $read(&text).map_err(wrong).map_err(D::Error::custom)
            }

            pub(super) fn serialize<S: Serializer>(
                value: &$type,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                to.serialize_str(&text(*value))
            }

            pub(super) mod option {
                use super::*;

                pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
                    from: D,
                ) -> Result<Option<$type>, D::Error> {
                    // A missing field is for serde's `default`; what is there has a value, or is null.
                    let text = Option::<String>::deserialize(from)?;
                    let wrong = |error| format!("{}: {error}", stringify!($name));
                    text.map(|text| $read(&text).map_err(wrong).map_err(D::Error::custom))
                        .transpose()
                }

                pub(in super::super) fn serialize<S: Serializer>(
                    value: &Option<$type>,
                    to: S,
                ) -> Result<S::Ok, S::Error> {
                    value.map(text).serialize(to)
                }
            }
        }
    };
}

quantity!(rate: u64, |text: &str| mpq_serve::units::rate(text).map(u64::from), decimal);
quantity!(size: u64, mpq_serve::units::size, decimal);
quantity!(duration: Duration, mpq_serve::units::duration, milliseconds);

/// A whole number and the largest unit that leaves it one.
fn decimal(value: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let fits = |(worth, _): &(u64, &str)| value != 0 && value.is_multiple_of(*worth);
    match units.into_iter().find(fits) {
        Some((worth, unit)) => format!("{}{unit}", value / worth),
        None => value.to_string(),
    }
}

fn milliseconds(value: Duration) -> String {
    let (whole, rest) = (value.as_millis(), value.subsec_nanos() % 1_000_000);
    let text = format!("{whole}.{rest:06}");
    format!("{}ms", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_left_out_is_as_in_the_paper() {
        assert_eq!(toml::from_str::<Shape>("").unwrap(), Shape::default());
        let text = "rate = '20M'\ndelay = '1.5ms'\nloss = 0.01\nup = false";
        let shape: Shape = toml::from_str(text).unwrap();
        let expected = Shape {
            rate: 20_000_000,
            delay: Duration::from_micros(1500),
            loss: 0.01,
            up: false,
            ..Shape::default()
        };
        assert_eq!(shape, expected);
    }

    #[test]
    fn the_queue_is_that_of_tbf() {
        assert_eq!(Shape::default().queue(), 412_500);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, field) in [
            ("rate=999", "rate"),
            ("burst=1499", "burst"),
            ("delay=61s", "delay"),
            ("latency=61s", "latency"),
            ("jitter=26ms", "jitter"),
            ("loss=1.5", "loss"),
            ("loss=NaN", "loss"),
            ("reorder=-0.1", "reorder"),
        ] {
            let refused = text.parse().and_then(|change| {
                let mut shape = Shape::default();
                shape.apply(&change);
                shape.check()
            });
            assert!(refused.unwrap_err().contains(field), "{text}");
        }
        assert_eq!(Shape::default().check(), Ok(()));
    }

    #[test]
    fn a_change_is_read_from_pairs() {
        let change: Change = "delay=10ms,rate=20M up=false".parse().unwrap();
        let expected = Change {
            delay: Some(Duration::from_millis(10)),
            rate: Some(20_000_000),
            up: Some(false),
            ..Change::default()
        };
        assert_eq!(change, expected);
        for (text, says) in [
            ("delay", "KEY=VALUE"),
            ("delais=1ms", "delais"),
            ("delay=10x", "duration"),
            ("rate=0", "rate"),
            ("rate=5X", "rate"),
            ("loss=much", "loss"),
            ("up=1", "true or false"),
            ("up=true up=false", "twice"),
        ] {
            let refused = text.parse::<Change>().unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            rate in 1..u64::MAX,
            burst: u64,
            times in prop::array::uniform3(0..u64::MAX / 4),
            chances in prop::array::uniform2(0..=1000),
            up: bool,
        ) {
            let [latency, delay, jitter] = times.map(Duration::from_nanos);
            let [loss, reorder] = chances.map(|chance| f64::from(chance) / 1000.0);
            let shape = Shape { rate, burst, latency, delay, jitter, loss, reorder, up };
            let json = serde_json::to_string(&shape).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Shape>(&json).unwrap(), &shape);
            let mut other = Shape::default();
            other.apply(&shape.to_string().parse().unwrap());
            prop_assert_eq!(&other, &shape);
            let change: Change = serde_json::from_str(&json).unwrap();
            let json = serde_json::to_string(&change).unwrap();
            prop_assert_eq!(serde_json::from_str::<Change>(&json).unwrap(), change);
        }
    }
}
