// SPDX-License-Identifier: MIT OR Apache-2.0
//! The run directory of a boot, and what is found in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::dmesg;

/// Run directories that are kept; younger than [`KEEP_AGE`] they all are.
const KEEP_RUNS: usize = 20;
const KEEP_AGE: Duration = Duration::from_secs(4 * 3600);

/// The guest's serial console, as QEMU writes it, in the run directory.
pub(super) const CONSOLE: &str = "console.log";
/// And what the programs on the host print.
pub(super) const HOST_LOG: &str = "host.log";

/// A new directory below `state`; the oldest ones go.
pub(super) fn new_run_dir(state: &Path) -> Result<PathBuf> {
    fs::create_dir_all(state).with_context(|| format!("cannot create {}", state.display()))?;
    let mut old: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("run-") {
            old.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    old.sort();
    for (when, path) in old.iter().rev().skip(KEEP_RUNS) {
        if when.elapsed().is_ok_and(|age| age > KEEP_AGE) {
            // Another run may be at it, too.
            let _ = fs::remove_dir_all(path);
        }
    }

    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs();
    for n in 0.. {
        let dir = state.join(format!("run-{seconds}-{n}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => {
                result.with_context(|| format!("cannot create {}", dir.display()))?;
                return Ok(dir);
            }
        }
    }
    unreachable!("the loop ends with a name nobody has taken")
}

/// A file of the run directory, or nothing.
pub(super) fn read(dir: &Path, name: &str) -> String {
    String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap_or_default()).into_owned()
}

/// All that the guest's kernel has said, and nobody else.
pub(super) fn guest_log(dir: &Path) -> String {
    dmesg::merge(&read(dir, "dmesg"), &read(dir, CONSOLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_directories_are_never_shared() {
        let state = std::env::temp_dir().join(format!("asyncfork-runs-{}", std::process::id()));
        let first = new_run_dir(&state).unwrap();
        let second = new_run_dir(&state).unwrap();
        assert_ne!(first, second);
        assert!(first.is_dir() && second.is_dir());
        fs::remove_dir_all(&state).unwrap();
    }
}
