// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes as people write them.

use anyhow::{Context, Result};

/// Bytes of a size such as 512M or 2G; units are powers of 1024.
///
/// # Errors
/// No unit, another unit, 0, or more than 64 bits.
pub fn parse_size(text: &str) -> Result<u64> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|&n| n > 0)
        .with_context(|| format!("{text:?} is no size; write 512M or 2G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("2G").unwrap(), 2 << 30);
        assert_eq!(parse_size("512M").unwrap(), 512 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for bad in ["", "G", "-1G", "0", "2T", "99999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
