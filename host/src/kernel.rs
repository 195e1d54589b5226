// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running kernel: its version and its taint flags.

use std::fs;
use std::io;

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// `uname -r`.
///
/// # Errors
/// `/proc` is not mounted.
pub fn release() -> io::Result<String> {
    Ok(fs::read_to_string(RELEASE)?.trim().to_owned())
}

/// Whether this is the kernel `major.minor` or a later one.
///
/// # Errors
/// `/proc` is not mounted.
pub fn kernel_since(major: u32, minor: u32) -> io::Result<bool> {
    Ok(at_least(&release()?, (major, minor)))
}

/// Whether this is a kernel of `scripts/debug-kernel`.
///
/// # Errors
/// `/proc` is not mounted.
pub fn on_debug_kernel() -> io::Result<bool> {
    Ok(release()?.contains("-asyncfork-"))
}

fn at_least(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    (next(), next()) >= version
}

/// The kernel's taint flags.
///
/// # Errors
/// `/proc` is not mounted.
pub fn tainted() -> io::Result<u64> {
    const PATH: &str = "/proc/sys/kernel/tainted";
    let flags = fs::read_to_string(PATH)?;
    let flags = flags.trim().parse();
    flags.map_err(|e| io::Error::other(format!("{PATH}: {e}")))
}

/// What the taint flags in `/proc/sys/kernel/tainted` say against the kernel.
/// Out-of-tree and unsigned modules (ours is both) taint it without harm.
pub fn bad_taint(tainted: u64) -> Option<String> {
    const BAD: &[(u32, &str)] = &[
        (4, "machine check"),
        (5, "bad page"),
        (7, "kernel died"),
        (9, "warning"),
        (14, "soft lockup"),
    ];
    let bad: Vec<&str> = BAD
        .iter()
        .filter(|(bit, _)| tainted & (1 << bit) != 0)
        .map(|&(_, name)| name)
        .collect();
    (!bad.is_empty()).then(|| format!("kernel tainted by: {}", bad.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_our_module_is_no_bad_taint() {
        const OUT_OF_TREE: u64 = 1 << 12;
        const UNSIGNED: u64 = 1 << 13;
        assert_eq!(bad_taint(OUT_OF_TREE | UNSIGNED), None);
        let taint = bad_taint(OUT_OF_TREE | 1 << 9 | 1 << 5).unwrap();
        assert_eq!(taint, "kernel tainted by: bad page, warning");
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(at_least("7.2.12+deb13-amd64", (6, 16)));
        assert!(at_least("6.16.0-rc1", (6, 16)));
        assert!(!at_least("6.12.117+deb13-amd64", (6, 16)));
        assert!(!at_least("6.1.0-56-amd64", (6, 16)));
    }
}
