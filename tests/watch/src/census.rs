// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the kernel is left as it was found.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long late frees are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long those of a program's stock forks are.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);

/// Kernel memory that sessions could leak.
#[derive(Debug, Clone)]
pub struct Census {
    /// mm_structs that belong to no process: kernel threads hold the last user's one lazily, one a CPU at most.
    stray_mms: i64,
    /// Fields of /proc/meminfo, and what follows from them, in KiB.
    kib: BTreeMap<String, i64>,
}

/// (field, KiB it may grow). The first two: processes change while they are looked at, one by one.
const MAY_GROW: [(&str, i64); 4] = [
    (STRAY_TABLES, 512),
    (STRAY_ANON, 512),
    ("Mlocked", 0),
    (SWAP_USED, 0),
];

/// Swap in use.
const SWAP_USED: &str = "SwapUsed";
/// Page tables that no process has: leaked, or from 6.16 on the kernel's own.
const STRAY_TABLES: &str = "StrayTables";
/// Mapped anonymous memory that no process maps: leaked, or miscounted.
const STRAY_ANON: &str = "StrayAnon";

impl Census {
    /// Counts now.
    ///
    /// # Errors
    /// Not root, or a kernel without SLUB's files in sysfs.
    pub fn take() -> io::Result<Self> {
        // Folds the per-CPU parts into the totals.
        fs::write("/proc/sys/vm/stat_refresh", "1")?;
        // SLUB counts objects of per-CPU slabs as used; this empties those slabs.
        fs::write("/sys/kernel/slab/mm_struct/shrink", "1")?;
        let mms = first_number(&fs::read_to_string("/sys/kernel/slab/mm_struct/objects")?)?;
        let mut kib = fields(&fs::read_to_string("/proc/meminfo")?);
        kib.insert(SWAP_USED.into(), kib["SwapTotal"] - kib["SwapFree"]);
        let processes = processes()?;
        for (stray, all, file, field) in [
            (STRAY_TABLES, "PageTables", "status", "VmPTE"),
            (STRAY_ANON, "AnonPages", "smaps_rollup", "Pss_Anon"),
        ] {
            let share = |p: &PathBuf| share(&p.join(file), field);
            let had: i64 = processes.iter().filter_map(share).sum();
            kib.insert(stray.into(), kib[all] - had);
        }
        Ok(Self {
            stray_mms: mms - processes.iter().filter(|p| has_memory(p)).count() as i64,
            kib,
        })
    }

    /// Page tables of all processes, in KiB.
    pub fn page_tables(&self) -> i64 {
        self.kib["PageTables"]
    }

    /// What grew beyond its tolerance since `self`, one sentence each.
    pub fn growth(&self, now: &Self) -> Vec<String> {
        let mut found: Vec<String> = MAY_GROW
            .iter()
            .filter_map(|&(name, may)| {
                let (was, is) = (*self.kib.get(name)?, *now.kib.get(name)?);
                (is > was + may).then(|| format!("{name} grew from {was} to {is} KiB"))
            })
            .collect();
        if now.stray_mms > self.stray_mms + cpus() {
            found.push(format!(
                "mm_structs without a process: {}, were {}",
                now.stray_mms, self.stray_mms
            ));
        }
        found
    }

    /// Waits for late frees. Returns the last count, and what is still above `self` in it.
    ///
    /// # Errors
    /// As [`Census::take`].
    pub fn settle(&self) -> io::Result<(Self, Vec<String>)> {
        let start = Instant::now();
        loop {
            let now = Self::take()?;
            let growth = self.growth(&now);
            if growth.is_empty() || start.elapsed() > PATIENCE {
                return Ok((now, growth));
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// What stock forks have added since `before` is no leak of the module: makes `self`, the baseline, so much larger. Only
    /// page tables: from 6.16 on the kernel counts its own, and keeps those of the stacks that many threads at a time had.
    ///
    /// # Errors
    /// As [`Census::take`].
    pub fn forgive(&mut self, before: &Self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let grown = Self::take()?.kib[STRAY_TABLES] - before.kib[STRAY_TABLES];
            if grown <= 0 {
                return Ok(());
            }
            if start.elapsed() > SHORT_PATIENCE {
                *self.kib.entry(STRAY_TABLES.into()).or_default() += grown;
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
    }
}

fn cpus() -> i64 {
    // SAFETY: no arguments that could be wrong.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }
}

fn first_number(text: &str) -> io::Result<i64> {
    text.split_whitespace()
        .next()
        .and_then(|w| w.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no number in {text:?}")))
}

/// Lines such as "PageTables:  768 kB".
fn fields(text: &str) -> BTreeMap<String, i64> {
    text.lines()
        .filter_map(|l| {
            let (name, value) = l.split_once(':')?;
            Some((name.to_string(), first_number(value).ok()?))
        })
        .collect()
}

/// Directories of all processes.
fn processes() -> io::Result<Vec<PathBuf>> {
    let is_pid = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| is_pid(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect())
}

/// Not so kernel threads and zombies.
fn has_memory(process: &Path) -> bool {
    fs::read_to_string(process.join("statm")).is_ok_and(|s| !s.starts_with("0 "))
}

/// What a process has of something, in KiB; nothing if it has no memory, or has ended.
fn share(file: &Path, field: &str) -> Option<i64> {
    fields(&fs::read_to_string(file).ok()?).get(field).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(stray_mms: i64, page_tables: i64, mlocked: i64) -> Census {
        let fields = [(STRAY_TABLES, page_tables), ("Mlocked", mlocked)];
        Census {
            stray_mms,
            kib: fields.map(|(n, v)| (n.to_string(), v)).into(),
        }
    }

    #[test]
    fn growth_is_what_exceeds_the_tolerance() {
        let before = census(2, 1000, 0);
        assert_eq!(before.growth(&census(2, 1512, 0)), [""; 0]);
        assert_eq!(before.growth(&census(1, 10, 0)), [""; 0]);
        let found = before.growth(&census(2 + cpus() + 1, 1513, 4));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[1].starts_with("Mlocked grew from 0 to 4"),
            "{found:?}"
        );
    }
}
