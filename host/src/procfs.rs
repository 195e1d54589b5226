// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files of `/proc`.

use std::fs;
use std::io;

/// Reads a file, naming it in the error.
///
/// # Errors
/// Those of reading.
pub fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("reading {path}: {e}")))
}

/// A line of `/proc/meminfo`, in bytes.
///
/// # Errors
/// It is not there.
pub fn meminfo(name: &str) -> io::Result<u64> {
    kib_line(&read("/proc/meminfo")?, name)
}

/// `name:   N kB` in the text of a `/proc` file, in bytes.
///
/// # Errors
/// It is not there.
pub fn kib_line(text: &str, name: &str) -> io::Result<u64> {
    let kib = text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    let kib = kib.ok_or_else(|| io::Error::other(format!("no line {name}")))?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_proc_files_are_bytes() {
        let text = "Rss:   12 kB\nAnonHugePages:    2048 kB\nRssFoo: 3 kB\nThreads:\t1\n";
        assert_eq!(kib_line(text, "AnonHugePages").unwrap(), 2 << 20);
        assert_eq!(kib_line(text, "Rss").unwrap(), 12 << 10);
        assert!(kib_line(text, "Threads").is_err());
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "VmRSSx: 1 kB\nVmRSS:\t  42 kB\n";
        assert_eq!(kib_line(text, "VmRSS").unwrap(), 42 << 10);
        assert!(kib_line(text, "Vm").is_err());
    }
}
