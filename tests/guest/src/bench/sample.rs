// SPDX-License-Identifier: MIT OR Apache-2.0
//! Medians and spread.

use std::fmt;

/// Measurements of one thing, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<u64>);

impl Sample {
    /// Adds one.
    pub fn add(&mut self, ns: u64) {
        self.0.push(ns);
        self.0.sort_unstable();
    }

    /// The middle one; of an even number the mean of the two in the middle. 0 if there is none.
    pub fn median(&self) -> u64 {
        match self.0.len() {
            0 => 0,
            n if n % 2 == 1 => self.0[n / 2],
            n => (self.0[n / 2 - 1] + self.0[n / 2]) / 2,
        }
    }

    /// The smallest; 0 if there is none.
    pub fn min(&self) -> u64 {
        self.0.first().copied().unwrap_or(0)
    }

    /// The largest; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }
}

impl FromIterator<u64> for Sample {
    fn from_iter<T: IntoIterator<Item = u64>>(iter: T) -> Self {
        let mut sample = Self::default();
        iter.into_iter().for_each(|ns| sample.add(ns));
        sample
    }
}

/// Milliseconds: median (min-max).
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        write!(
            f,
            "{:.2} ({:.2}-{:.2})",
            ms(self.median()),
            ms(self.min()),
            ms(self.max())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_numbers() {
        let sample = |v: &[u64]| v.iter().copied().collect::<Sample>();
        assert_eq!(sample(&[]).median(), 0);
        assert_eq!(sample(&[5]).median(), 5);
        assert_eq!(sample(&[9, 1, 5]).median(), 5);
        assert_eq!(sample(&[1, 9, 5, 7]).median(), 6);
        assert_eq!((sample(&[9, 1, 5]).min(), sample(&[9, 1, 5]).max()), (1, 9));
    }

    #[test]
    fn shown_in_milliseconds() {
        let sample: Sample = [1_500_000, 2_500_000, 1_000_000].into_iter().collect();
        assert_eq!(sample.to_string(), "1.50 (1.00-2.50)");
    }
}
