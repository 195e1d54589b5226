// SPDX-License-Identifier: MIT OR Apache-2.0
//! `libasyncfork.so`: where it is, and `LD_PRELOAD` with it.

use std::path::{Path, PathBuf};

use crate::host::Host;

/// The file's name.
pub const NAME: &str = "libasyncfork.so";

/// Where it is looked for, in this order: the package's place first.
pub const DIRECTORIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
];

/// The installed library.
pub fn installed(host: &Host) -> Option<PathBuf> {
    let paths = DIRECTORIES.iter().map(|dir| Path::new(dir).join(NAME));
    paths
        .into_iter()
        .find(|path| host.metadata(path).is_ok_and(|m| m.is_file()))
}

/// The places as words for a message.
pub fn places() -> String {
    DIRECTORIES.join(", ")
}

/// Whether an entry of `LD_PRELOAD` is this library.
pub fn is_ours(entry: &str) -> bool {
    Path::new(entry)
        .file_name()
        .is_some_and(|name| name == NAME)
}

/// The entries of a value of `LD_PRELOAD`.
pub fn entries(value: &str) -> impl Iterator<Item = &str> {
    value
        .split([':', ' ', '\t'])
        .filter(|entry| !entry.is_empty())
}

/// `LD_PRELOAD` with the library first, then what was there; a second one of the same
/// name is left out.
pub fn preload(library: &str, before: &str) -> String {
    let others = entries(before).filter(|entry| !is_ours(entry));
    std::iter::once(library)
        .chain(others)
        .collect::<Vec<_>>()
        .join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn others_libraries_stay_and_ours_is_there_once() {
        assert_eq!(preload("/l/libasyncfork.so", ""), "/l/libasyncfork.so");
        let value = preload(
            "/l/libasyncfork.so",
            "libjemalloc.so.2 /old/libasyncfork.so:/x.so",
        );
        assert_eq!(value, "/l/libasyncfork.so:libjemalloc.so.2:/x.so");
        assert_eq!(preload("/l/libasyncfork.so", &value), value);
    }

    #[test]
    fn the_packages_library_comes_first() {
        let fake = Fake::new();
        assert_eq!(installed(&fake.host), None);
        fake.write("/usr/local/lib/libasyncfork.so", "");
        assert!(installed(&fake.host).unwrap().starts_with("/usr/local"));
        fake.write("/usr/lib/x86_64-linux-gnu/libasyncfork.so", "");
        assert!(installed(&fake.host)
            .unwrap()
            .starts_with("/usr/lib/x86_64-linux-gnu"));
    }
}
