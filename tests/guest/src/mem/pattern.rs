// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contents of a page: 512 words of an arithmetic sequence that starts at the page's key. Tests write and compare
//! gigabytes of it on emulated processors, so it is no more than an addition a word.

use super::{Span, PAGE_WORDS};
use crate::rng::mix;

/// The key of generation `gen` of page `page`; never 0, so that no page looks like a zero page.
pub fn key(seed: u64, page: usize, gen: u32) -> u64 {
    mix(mix(seed ^ page as u64) ^ (u64::from(gen) << 32)) | 1
}

/// The word after `x`.
fn next(x: u64) -> u64 {
    x.wrapping_add(0x9e37_79b9_7f4a_7c15)
}

/// Writes the pattern of `key` over the whole page.
pub fn fill(page: Span, key: u64) {
    let mut x = key;
    for word in page.words() {
        // SAFETY: the page is mapped, or the fault is a signal; no Rust object lives in it.
        unsafe { word.write_volatile(x) };
        x = next(x);
    }
}

/// The first word that differs from the pattern of `key`: index, got, want.
pub fn mismatch(page: Span, key: u64) -> Option<(usize, u64, u64)> {
    let mut x = key;
    for (i, word) in page.words().enumerate() {
        // SAFETY: as in fill().
        let got = unsafe { word.read_volatile() };
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
