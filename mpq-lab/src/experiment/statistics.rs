//! What several figures of one kind come to: their mean, their extremes, their median.

/// A mean and its extremes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// Mean and extremes, if there is anything.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<Range> {
    let values: Vec<f64> = values.into_iter().collect();
    let (first, rest) = values.split_first()?;
    Some(Range {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        min: rest.iter().fold(*first, |a, b| a.min(*b)),
        max: rest.iter().fold(*first, |a, b| a.max(*b)),
    })
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[low] + values[high]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles_and_means() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
        let range = range([1.0, 4.0, 1.0]).unwrap();
        assert_eq!((range.mean, range.min, range.max), (2.0, 1.0, 4.0));
    }
}
