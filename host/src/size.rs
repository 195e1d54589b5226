// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes as people write them.

use anyhow::{Context, Result};

/// Bytes of a size such as 512M or 2G; units are powers of 1024.
///
/// # Errors
/// No number, a unit other than K, M and G, 0, or more than 64 bits.
pub fn parse_size(text: &str) -> Result<u64> {
    asyncfork_settings::size(text.as_bytes())
        // A slip, for a VM, its disk or a server's data here.
        .filter(|&bytes| bytes > 0 && !text.ends_with(['T', 't']))
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
