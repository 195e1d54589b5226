// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replayable random numbers: splitmix64, seeded per test.

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that depends on `seed` and `label` only.
    pub fn new(seed: u64, label: &str) -> Self {
        let start = label
            .bytes()
            .fold(mix(seed), |h, b| mix(h ^ u64::from(b)).wrapping_add(1));
        Self(start)
    }

    /// The next 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which must not be 0. The bias is below 2^-32 for any bound in use.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0);
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// True once in `n` calls, on average.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A non-empty sub-range of `0..len`, at most `max` long.
    pub fn range(&mut self, len: usize, max: usize) -> std::ops::Range<usize> {
        let n = 1 + self.below(max.min(len));
        let start = self.below(len - n + 1);
        start..start + n
    }

    /// An index into `shares`, as often as its share is of their sum, which must not be 0.
    pub fn weighted(&mut self, shares: &[usize]) -> usize {
        let mut left = self.below(shares.iter().sum());
        shares
            .iter()
            .position(|&share| {
                let hit = left < share;
                left = left.saturating_sub(share);
                hit
            })
            .expect("it is below the sum")
    }

    /// The numbers `0..n` in random order.
    pub fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut v: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            v.swap(i, self.below(i + 1));
        }
        v
    }
}

/// A seed that no other run has had.
pub fn new_seed() -> u64 {
    mix(crate::sys::now_ns() ^ crate::sys::pid() as u64) >> 32
}

/// The finalizer of splitmix64: a bijection in which every input bit changes half the output.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_and_label_give_the_same_numbers() {
        let draw = |seed, label| {
            let mut r = Rng::new(seed, label);
            [r.next(), r.next(), r.next()]
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "ab"), draw(1, "ba"));
    }

    #[test]
    fn ranges_and_shuffles_stay_in_bounds() {
        let mut r = Rng::new(7, "bounds");
        for len in 1..50 {
            let range = r.range(len, 9);
            assert!(!range.is_empty() && range.end <= len && range.len() <= 9);
            let shares = [0, len, 0, 1];
            assert!([1, 3].contains(&r.weighted(&shares)));
            let mut s = r.shuffled(len);
            s.sort_unstable();
            assert_eq!(s, (0..len).collect::<Vec<_>>());
        }
    }
}
