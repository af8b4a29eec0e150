//! How late packets were.

use std::time::Duration;

/// The width of a class.
const WIDTH: Duration = Duration::from_micros(1);
/// What is later than so many classes is in the last one.
const CLASSES: usize = 20_000;

/// Counts how many packets were how late, to the microsecond.
#[derive(Debug)]
pub(super) struct Lateness {
    classes: Vec<u64>,
    count: u64,
    worst: Duration,
}

impl Lateness {
    pub(super) fn new() -> Lateness {
        Lateness {
            classes: vec![0; CLASSES],
            count: 0,
            worst: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, late: Duration) {
        let class = late.as_nanos() / WIDTH.as_nanos();
        let class = usize::try_from(class).unwrap_or(CLASSES).min(CLASSES - 1);
        self.classes[class] += 1;
        self.count += 1;
        self.worst = self.worst.max(late);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn worst(&self) -> Duration {
        self.worst
    }

    /// At most so late was half of them: the upper end of the class that the median is in.
    pub(super) fn median(&self) -> Duration {
        let mut seen = 0;
        for (class, count) in (1..).zip(&self.classes) {
            seen += count;
            if seen * 2 >= self.count && seen > 0 {
                return self.worst.min(WIDTH * class);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_worst() {
        let mut lateness = Lateness::new();
        assert_eq!((lateness.median(), lateness.worst()), Default::default());
        for micros in [10, 1, 5_000_000, 30, 20] {
            lateness.add(Duration::from_micros(micros));
        }
        assert_eq!(lateness.count(), 5);
        assert_eq!(lateness.median(), Duration::from_micros(21));
        assert_eq!(lateness.worst(), Duration::from_secs(5));
    }
}
