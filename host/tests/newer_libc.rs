// SPDX-License-Identifier: MIT OR Apache-2.0
//! This is a program that uses the crate, as those in the guests are, and starts others.

use std::process::Command;

use asyncfork_host as _;

/// That of the oldest guest.
const OLDEST: (u32, u32) = (2, 36);

#[test]
fn a_program_starts_with_the_c_library_of_the_oldest_guest() {
    let out = Command::new("readelf")
        .args(["-W", "--version-info"])
        .arg(std::env::current_exe().unwrap())
        .output()
        .expect("run readelf: install binutils (scripts/setup)");
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    let asked: Vec<(u32, u32)> = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("GLIBC_")?.split_once('.'))
        .map(|(major, rest)| {
            let minor = rest.split('.').next().unwrap();
            (major.parse().unwrap(), minor.parse().unwrap())
        })
        .collect();
    assert!(!asked.is_empty(), "{text}");
    assert!(asked.iter().all(|version| *version <= OLDEST), "{text}");
}
