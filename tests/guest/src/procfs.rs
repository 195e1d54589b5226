// SPDX-License-Identifier: MIT OR Apache-2.0
//! What /proc says about a process's memory.

use crate::mem::{Span, PAGE};
use crate::require;
use crate::verdict::TestResult;
use asyncfork_host::procfs;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Bits of a pagemap entry.
pub const PRESENT: u64 = 1 << 63;
/// The page is in swap.
pub const SWAPPED: u64 = 1 << 62;
/// Written since the last clear_refs.
pub const SOFT_DIRTY: u64 = 1 << 55;
/// Page frame number of a present page.
pub const PFN: u64 = (1 << 55) - 1;

/// /proc/PID/pagemap of a range, one word a page. `pid` 0: this process.
pub fn pagemap(pid: i32, span: Span) -> io::Result<Vec<u64>> {
    let file = File::open(path(pid, "pagemap"))?;
    let mut bytes = vec![0; span.pages() * 8];
    file.read_exact_at(&mut bytes, (span.addr() / PAGE * 8) as u64)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|b| u64::from_ne_bytes(b.try_into().expect("eight bytes")))
        .collect())
}

/// Page frame of a page of this process.
pub fn frame(page: Span) -> TestResult<u64> {
    let entry = pagemap(0, page)?[0];
    require!(
        entry & PRESENT != 0,
        "the page at {:#x} is not there",
        page.addr()
    );
    Ok(entry & PFN)
}

/// Sum of a field of /proc/PID/smaps over the mappings that lie in `span`, in KiB.
pub fn smaps(pid: i32, span: Span, field: &str) -> io::Result<usize> {
    let mut inside = false;
    let mut sum = 0;
    for line in fs::read_to_string(path(pid, "smaps"))?.lines() {
        if let Some((start, end)) = mapping(line) {
            inside = start >= span.addr() && end <= span.end();
        } else if let (true, Some((name, value))) = (inside, line.split_once(':')) {
            if name == field {
                sum += number(value)?;
            }
        }
    }
    Ok(sum)
}

/// A field of /proc/PID/status that is a size, in KiB.
pub fn status(pid: i32, field: &str) -> io::Result<usize> {
    let bytes = procfs::kib_line(&procfs::read(&path(pid, "status"))?, field)?;
    Ok((bytes >> 10) as usize)
}

/// Nanoseconds that a process has run.
pub fn run_time(pid: i32) -> io::Result<usize> {
    number(&fs::read_to_string(path(pid, "schedstat"))?)
}

/// A field of /proc/meminfo, in KiB.
pub fn meminfo(field: &str) -> io::Result<usize> {
    Ok((procfs::meminfo(field)? >> 10) as usize)
}

/// A counter of /proc/vmstat; 0 if this kernel does not have it.
pub fn vmstat(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(Ok(0), |v| v.parse().map_err(io::Error::other))
}

fn path(pid: i32, file: &str) -> String {
    match pid {
        0 => format!("/proc/self/{file}"),
        pid => format!("/proc/{pid}/{file}"),
    }
}

fn number(value: &str) -> io::Result<usize> {
    value
        .split_whitespace()
        .next()
        .and_then(|w| w.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no number in {value:?}")))
}

/// The addresses at the head of a line of maps, or of a block of smaps.
pub fn mapping(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    ))
}

/// A setting below /proc or /sys that is put back on drop.
pub struct Setting {
    path: String,
    old: String,
}

impl Setting {
    /// Writes `value`. Of a choice such as "always [madvise] never" the bracketed word is what is put back.
    pub fn new(path: &str, value: impl ToString) -> io::Result<Self> {
        let context = |e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"));
        let old = fs::read_to_string(path).map_err(context)?;
        let old = match old
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'))
        {
            Some((choice, _)) => choice.to_string(),
            None => old.trim_end().to_string(),
        };
        fs::write(path, value.to_string()).map_err(context)?;
        Ok(Self {
            path: path.into(),
            old,
        })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_mappings_are_told_from_their_fields() {
        assert_eq!(
            mapping("7f00-7f10 rw-p 00000000 00:00 0"),
            Some((0x7f00, 0x7f10))
        );
        assert_eq!(mapping("Rss:                 16 kB"), None);
        assert_eq!(mapping("VmFlags: rd wr mr mw"), None);
    }

    #[test]
    fn own_memory_shows_up() {
        let span = Span::reserve(16 * PAGE).unwrap();
        span.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
            .unwrap();
        span.store(0, 1);
        assert!(pagemap(0, span).unwrap()[0] & PRESENT != 0);
        assert!(smaps(0, span, "Rss").unwrap() >= 4);
    }
}
