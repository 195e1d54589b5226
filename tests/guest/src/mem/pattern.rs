// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contents of a page: 512 words of a linear congruential sequence that starts at the page's key.

use super::{Span, PAGE_WORDS};
use crate::rng::mix;

/// The key of generation `gen` of page `page`; never 0, so that no page looks like a zero page.
pub fn key(seed: u64, page: usize, gen: u32) -> u64 {
    mix(mix(seed ^ page as u64) ^ (u64::from(gen) << 32)) | 1
}

/// The word after `x`.
fn next(x: u64) -> u64 {
    x.wrapping_mul(0x5851_f42d_4c95_7f2d)
        .wrapping_add(0x1405_7b7e_f767_814f)
}

/// Writes the pattern of `key` over the whole page.
pub fn fill(page: Span, key: u64) {
    let mut x = key;
    for i in 0..PAGE_WORDS {
        page.store(i * 8, x);
        x = next(x);
    }
}

/// The first word that differs from the pattern of `key`: index, got, want.
pub fn mismatch(page: Span, key: u64) -> Option<(usize, u64, u64)> {
    let mut x = key;
    for i in 0..PAGE_WORDS {
        let got = page.load(i * 8);
        if got != x {
            return Some((i, got, x));
        }
        x = next(x);
    }
    None
}

/// The pattern as words.
pub fn words(key: u64) -> [u64; PAGE_WORDS] {
    let mut out = [0; PAGE_WORDS];
    let mut x = key;
    for w in &mut out {
        *w = x;
        x = next(x);
    }
    out
}
