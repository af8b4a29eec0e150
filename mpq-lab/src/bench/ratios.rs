//! Ratios of things measured side by side: what a machine's speed cancels out of.

use std::fmt;

use serde::Serialize;

use crate::experiment::statistics::{median, range};

/// One thing against another, round by round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// What is compared, as `one / other`.
    pub name: String,
    /// Median of the rounds' ratios.
    pub median: f64,
    /// The smallest of them.
    pub min: f64,
    /// The largest of them.
    pub max: f64,
    /// Median of what is above the line.
    pub one: f64,
    /// Median of what is below it.
    pub other: f64,
    /// What both are counted in.
    pub unit: &'static str,
    /// The ratio of each round.
    pub rounds: Vec<f64>,
}

impl Ratio {
    /// Of pairs of figures in `unit`, a pair a round; `None` without any.
    pub fn new(name: &str, unit: &'static str, pairs: &[(f64, f64)]) -> Option<Ratio> {
        let ratios = || pairs.iter().map(|(one, other)| one / other);
        let range = range(ratios())?;
        Some(Ratio {
            name: name.to_owned(),
            median: median(ratios())?,
            min: range.min,
            max: range.max,
            one: median(pairs.iter().map(|pair| pair.0))?,
            other: median(pairs.iter().map(|pair| pair.1))?,
            unit,
            rounds: ratios().collect(),
        })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = format!("({:.3} to {:.3})", self.min, self.max);
        write!(
            f,
            "{:<46}{:>7.3}  {range:<18}{:>9.3} / {:.3} {}",
            self.name, self.median, self.one, self.other, self.unit
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_its_own_ratio() {
        let pairs = [(2.0, 1.0), (30.0, 10.0), (4.0, 4.0)];
        let ratio = Ratio::new("a / b", "s", &pairs).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 1.0, 3.0));
        assert_eq!((ratio.one, ratio.other), (4.0, 4.0));
        assert_eq!(Ratio::new("a / b", "s", &[]), None);
    }
}
