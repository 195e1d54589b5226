// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measuring fork() of a process of our own, for `doctor` and `bench`. It is another
//! run of this program, so that it has one thread, its memory is its own, and it is
//! the first to go if memory runs out.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use asyncfork_uapi::Outcome;
use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use nix::sys::wait::waitpid;
use nix::unistd::{alarm, fork, ForkResult};
use serde::{Deserialize, Serialize};

use crate::cli::MeasureArgs;
use crate::exit;
use crate::host::Host;
use crate::module::Live;

/// Bytes that one page table maps.
pub const CHUNK: usize = 2 << 20;
const PAGE: usize = 4096;
/// Seconds after which the kernel ends a measurement, and more for larger ones.
const LIMIT: u32 = 60;
const TABLES_A_SECOND: usize = 100;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Page tables of the process.
    pub tables: usize,
    /// Mappings besides its own dozen, small ones.
    pub mappings: usize,
    /// Forks, after a warm-up.
    pub forks: u32,
    /// One zero page in each table, but for the first, instead of 512 pages of its own.
    pub zero: bool,
    /// Arm each.
    pub asynchronous: bool,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Time that each fork() took, in its parent.
    pub ns: Vec<u64>,
    /// Chunks that the last one parked.
    pub parked: u64,
}

impl Samples {
    /// The one in the middle.
    pub fn median(&self) -> u64 {
        let mut sorted = self.ns.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    /// The shortest and the longest.
    pub fn range(&self) -> (u64, u64) {
        let least = self.ns.iter().min().copied().unwrap_or(0);
        (least, self.ns.iter().max().copied().unwrap_or(0))
    }
}

/// Measures in a process of its own.
///
/// # Errors
/// It cannot be started, runs out of memory or time, or the forks are stock that were
/// to be asynchronous; the message has its words.
pub fn take(device: &std::path::Path, what: &Sampling) -> Result<Samples> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("measure-fork")
        .args([
            "--tables",
            &what.tables.to_string(),
            "--mappings",
            &what.mappings.to_string(),
            "--forks",
            &what.forks.to_string(),
        ])
        .args(what.zero.then_some("--zero"))
        .args(what.asynchronous.then_some("--asynchronous"))
        .arg("--device")
        .arg(device)
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null());
    let output = command
        .output()
        .context("cannot start the measuring process")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("asyncfork: ");
        let said = if said.is_empty() {
            format!("the measuring process ended with {}", output.status)
        } else {
            said.to_owned()
        };
        return Err(exit::cannot_tell(said));
    }
    serde_json::from_slice(&output.stdout).context("what the measuring process printed")
}

/// The measuring process.
///
/// # Errors
/// No memory; a fork was not asynchronous that was to be.
pub fn measure(host: &Host, device: &std::path::Path, args: &MeasureArgs) -> Result<Samples> {
    let more = u32::try_from(args.tables / TABLES_A_SECOND).unwrap_or(0);
    alarm::set(LIMIT.saturating_add(more));
    name_process();
    // Nothing else is to be killed for what this process needs.
    let _ = host.write_into("/proc/self/oom_score_adj", "1000");
    nix::sys::prctl::set_thp_disable(true).context("switch huge pages off for this process")?;
    // A stock one as well, since enrolment or policy may cover this process.
    let live = match Live::open(host, device) {
        Err(e) if args.asynchronous => return Err(e),
        other => other.ok(),
    };
    let mappings = mappings(args.mappings)?;
    let memory = memory(args.tables, args.zero)?;
    let mut samples = Samples {
        ns: Vec::new(),
        parked: 0,
    };
    for i in 0..=args.forks {
        if let Some(live) = &live {
            live.arm(args.asynchronous)?;
        }
        let ns = timed_fork()?;
        if let Some(live) = live.as_ref().filter(|_| args.asynchronous) {
            let report = live.report()?;
            if report.outcome() != Outcome::Async {
                return Err(exit::cannot_tell(format!(
                    "the fork of a process with {} page tables was stock: {}",
                    args.tables,
                    report.reason().explain()
                )));
            }
            samples.parked = report.chunks.parked;
        }
        // The first is a warm-up.
        if i > 0 {
            samples.ns.push(ns);
        }
    }
    drop((mappings, memory));
    Ok(samples)
}

/// Lets the module record the forks of this process under the program's name, not that
/// of the link by which it was started.
pub fn name_process() {
    let _ = nix::sys::prctl::set_name(c"asyncfork");
}

/// Memory that needs so many page tables, each in full or each with the zero page.
fn memory(tables: usize, zero: bool) -> Result<MmapMut> {
    let bytes = tables.checked_add(1).and_then(|n| n.checked_mul(CHUNK));
    let bytes = bytes.ok_or_else(|| exit::input("--tables: too many"))?;
    let mut memory = MmapOptions::new()
        .len(bytes)
        .no_reserve_swap()
        .map_anon()
        .with_context(|| format!("{bytes} bytes of memory"))?;
    memory
        .advise(Advice::NoHugePage)
        .context("switch huge pages off for the memory")?;
    // From the first chunk that is mapped as a whole.
    let start = memory.as_ptr().align_offset(CHUNK);
    let chunks = memory[start..].chunks_exact_mut(CHUNK).take(tables);
    for (i, chunk) in chunks.enumerate() {
        // One page of its own: without any, the memory is not looked at in a fork.
        if zero && i > 0 {
            black_box(chunk[0]);
        } else {
            let pages = if zero { 1 } else { CHUNK / PAGE };
            let pages = chunk.chunks_mut(PAGE).take(pages);
            pages.for_each(|page| page[0] = 1);
        }
    }
    Ok(memory)
}

/// So many mappings, of one page each: every other one has its page, as data have; the others are read-only, which
/// keeps them apart, and empty.
fn mappings(number: usize) -> Result<Vec<(MmapMut, Mmap)>> {
    let pair = |_| {
        let mut page = MmapOptions::new().len(PAGE).map_anon()?;
        page[0] = 1;
        let other = MmapOptions::new().len(PAGE).map_anon()?;
        Ok((page, other.make_read_only()?))
    };
    let pairs: std::io::Result<_> = (0..number / 2).map(pair).collect();
    pairs.with_context(|| format!("{number} mappings"))
}

/// The time that fork() takes here. Its child ends at once, and has ended then.
fn timed_fork() -> Result<u64> {
    let start = Instant::now();
    // SAFETY: this process has one thread, and the child only ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            // SAFETY: runs no destructors and no handlers.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let ns = start.elapsed().as_nanos();
            waitpid(child, None).context("wait for the child")?;
            Ok(u64::try_from(ns).unwrap_or(u64::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_sorted_times() {
        let samples = Samples {
            ns: vec![9, 1, 5],
            parked: 0,
        };
        assert_eq!(samples.median(), 5);
        assert_eq!(samples.range(), (1, 9));
    }

    #[test]
    fn a_measuring_process_has_as_many_mappings_as_asked_for() {
        let count = || {
            let maps = std::fs::read_to_string("/proc/thread-self/maps").unwrap();
            maps.lines().count()
        };
        let before = count();
        let mappings = mappings(200).unwrap();
        // Other tests map and unmap meanwhile, but few.
        assert!(count() >= before + 150);
        assert_eq!(mappings.len(), 100);
    }

    #[test]
    fn memory_takes_as_many_tables_as_asked_for() {
        assert!(memory(3, false).unwrap().len() >= 3 * CHUNK);
        assert!(memory(1000, true).unwrap().len() >= 1000 * CHUNK);
        assert!(memory(usize::MAX, true).is_err());
        assert!(memory(1 << 40, true).is_err());
    }
}
