// SPDX-License-Identifier: MIT OR Apache-2.0
//! Repeated measurements: medians of times, minima of counted instructions, and the spread.

use std::fmt;
use std::time::Duration;

/// Measurements of one thing, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<u64>);

impl Sample {
    /// With room for so many, whose pages are there: adding them makes the process no larger.
    pub fn with_room(n: usize) -> Self {
        let mut room = vec![1; n];
        room.clear();
        Self(room)
    }

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

/// What is shown of a [`Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figures {
    /// Times: the median.
    Times,
    /// Instructions, from a clock that counts them: the smallest. Nothing makes work shorter than it is, and timer
    /// interrupts make it longer.
    Counts,
}

/// What an instruction takes on such a clock (`scripts/vm --icount`).
pub const INSTRUCTION_NS: u64 = 2;

impl Figures {
    /// Before a measurement. Lets interrupts and workers finish what earlier ones have left to them, where that takes no
    /// time of ours: the counting clock leaps over idle time.
    pub fn settle(self) {
        if self == Self::Counts {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The value that stands for all, in nanoseconds.
    pub fn best(self, sample: &Sample) -> u64 {
        match self {
            Self::Times => sample.median(),
            Self::Counts => sample.min(),
        }
    }

    /// Milliseconds: median (min-max), or instructions: min (median, max).
    pub fn show(self, sample: &Sample) -> String {
        match self {
            Self::Times => sample.to_string(),
            Self::Counts => {
                let [min, median, max] = [sample.min(), sample.median(), sample.max()]
                    .map(|ns| grouped(ns / INSTRUCTION_NS));
                format!("{min} ({median}, {max})")
            }
        }
    }
}

/// A number with a comma before every three digits.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
        assert_eq!(Figures::Times.show(&sample), sample.to_string());
        assert_eq!(Figures::Times.best(&sample), 1_500_000);
    }

    #[test]
    fn shown_in_instructions() {
        let sample: Sample = [3_001, 2_000, 2_469_134].into_iter().collect();
        assert_eq!(Figures::Counts.show(&sample), "1,000 (1,500, 1,234,567)");
        assert_eq!(Figures::Counts.best(&sample), 2_000);
        assert_eq!(
            [0, 12, 123, 1234, 123_456].map(grouped),
            ["0", "12", "123", "1,234", "123,456"]
        );
    }
}
