// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the kernel is left as it was found.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use asyncfork_host::kernel::kernel_since;

/// How long late frees are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long those of a program's stock forks are.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

/// Kernel memory that sessions could leak.
#[derive(Debug, Clone)]
pub struct Census {
    /// mm_structs that belong to no process: kernel threads hold the last user's one lazily, one a CPU at most.
    stray_mms: i64,
    /// Fields of /proc/meminfo, and what follows from them, in KiB.
    kib: BTreeMap<String, i64>,
    /// KiB by which [`Census::forgive`] has raised the page tables.
    forgiven: i64,
}

/// KiB that page tables and anonymous memory may grow: processes change while they are looked at, one by one, and the per-CPU
/// parts of a counter may be behind. A table that each abort lost would soon be more.
const NOISE: i64 = 64;
/// What page tables may grow where the kernel counts its own, too: swap files, modules and mounts have some.
const KERNEL_TABLES: i64 = 512;

/// Folds the per-CPU parts into the totals.
const STAT_REFRESH: &str = "/proc/sys/vm/stat_refresh";
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
        fs::write(STAT_REFRESH, "1")?;
        // SLUB counts objects of per-CPU slabs as used; this empties those slabs.
        fs::write("/sys/kernel/slab/mm_struct/shrink", "1")?;
        let mms = first_number(&fs::read_to_string("/sys/kernel/slab/mm_struct/objects")?)?;
        let mut kib = fields(&fs::read_to_string("/proc/meminfo")?);
        kib.insert(SWAP_USED.into(), kib["SwapTotal"] - kib["SwapFree"]);
        let processes = processes()?;
        kib.insert(STRAY_TABLES.into(), StrayTables::among(&kib, &processes).0);
        let had = of_all(&processes, "smaps_rollup", "Pss_Anon");
        kib.insert(STRAY_ANON.into(), mapped_anonymous()? - had);
        Ok(Self {
            stray_mms: mms - processes.iter().filter(|p| has_memory(p)).count() as i64,
            kib,
            forgiven: 0,
        })
    }

    /// What this count found, for a report: what belongs to no process.
    pub fn summary(&self) -> String {
        let kib = |name| self.kib.get(name).copied().unwrap_or_default();
        format!(
            "of no process: page tables {} KiB, anonymous memory {} KiB, mm_structs {}",
            kib(STRAY_TABLES),
            kib(STRAY_ANON),
            self.stray_mms
        )
    }

    /// KiB of page tables that [`Census::forgive`] has added.
    pub fn forgiven(&self) -> i64 {
        self.forgiven
    }

    /// What grew beyond its tolerance since `self`, one sentence each.
    ///
    /// # Errors
    /// No `/proc`.
    pub fn growth(&self, now: &Self) -> io::Result<Vec<String>> {
        let tables = match kernel_tables_count()? {
            true => KERNEL_TABLES,
            false => NOISE,
        };
        let may_grow = [
            (STRAY_TABLES, tables),
            (STRAY_ANON, NOISE),
            ("Mlocked", 0),
            (SWAP_USED, 0),
        ];
        let mut found: Vec<String> = may_grow
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
        Ok(found)
    }

    /// Waits for late frees. Returns the last count, and what is still above `self` in it.
    ///
    /// # Errors
    /// As [`Census::take`].
    pub fn settle(&self) -> io::Result<(Self, Vec<String>)> {
        let start = Instant::now();
        loop {
            let now = Self::take()?;
            let growth = self.growth(&now)?;
            if growth.is_empty() || start.elapsed() > PATIENCE {
                return Ok((now, growth));
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Raises `self`, the baseline, by the page tables that something else than the module has left since there were `before`:
    /// from 6.16 on the kernel counts its own, and keeps those of the stacks that many threads at a time had.
    ///
    /// # Errors
    /// Not root, or no `/proc`.
    pub fn forgive(&mut self, before: StrayTables) -> io::Result<()> {
        if !kernel_tables_count()? {
            return Ok(());
        }
        let start = Instant::now();
        let mut grown = StrayTables::count()?.0 - before.0;
        while grown > 0 && start.elapsed() < SHORT_PATIENCE {
            sleep(Duration::from_millis(10));
            grown = StrayTables::count()?.0 - before.0;
        }
        *self.kib.entry(STRAY_TABLES.into()).or_default() += grown.max(0);
        self.forgiven += grown.max(0);
        Ok(())
    }
}

/// KiB of page tables that no process has.
#[derive(Debug, Clone, Copy)]
pub struct StrayTables(i64);

impl StrayTables {
    /// Counts now.
    ///
    /// # Errors
    /// Not root, or no `/proc`.
    pub fn count() -> io::Result<Self> {
        fs::write(STAT_REFRESH, "1")?;
        let meminfo = fields(&fs::read_to_string("/proc/meminfo")?);
        Ok(Self::among(&meminfo, &processes()?))
    }

    fn among(meminfo: &BTreeMap<String, i64>, processes: &[PathBuf]) -> Self {
        Self(meminfo["PageTables"] - of_all(processes, "status", "VmPTE"))
    }
}

/// Whether PageTables has the kernel's own tables in it: `pagetable_pte_ctor(&init_mm)`, from 6.16 on.
fn kernel_tables_count() -> io::Result<bool> {
    kernel_since(6, 16)
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

/// What processes have of something, in KiB. Those without memory, or that have ended, have nothing.
fn of_all(processes: &[PathBuf], file: &str, field: &str) -> i64 {
    let share = |process: &PathBuf| {
        let text = fs::read_to_string(process.join(file)).ok()?;
        fields(&text).get(field).copied()
    };
    processes.iter().filter_map(share).sum()
}

/// Anonymous memory that is mapped anywhere, in KiB, counted page by page: AnonPages of 6.1 stays up to 2 MiB too high after
/// a huge page that one process maps whole and another in part has been migrated (docs/correctness.md).
fn mapped_anonymous() -> io::Result<i64> {
    // KPF_MMAP, KPF_ANON
    const MAPPED_ANON: u64 = 1 << 11 | 1 << 12;
    let mut flags = File::open("/proc/kpageflags")?;
    let mut buffer = vec![0; 1 << 20];
    let mut pages = 0;
    loop {
        let n = flags.read(&mut buffer)?;
        if n == 0 {
            return Ok(pages * 4);
        }
        let words = buffer[..n].as_chunks::<8>().0.iter();
        let flags = words.map(|&word| u64::from_ne_bytes(word));
        pages += flags.filter(|f| f & MAPPED_ANON == MAPPED_ANON).count() as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(stray_mms: i64, page_tables: i64, mlocked: i64) -> Census {
        let fields = [
            (STRAY_TABLES, page_tables),
            (STRAY_ANON, 500),
            ("Mlocked", mlocked),
            (SWAP_USED, 0),
        ];
        Census {
            stray_mms,
            kib: fields.map(|(n, v)| (n.to_string(), v)).into(),
            forgiven: 0,
        }
    }

    #[test]
    fn growth_is_what_exceeds_the_tolerance() {
        let before = census(2, 1000, 0);
        let tables = match kernel_tables_count().unwrap() {
            true => KERNEL_TABLES,
            false => NOISE,
        };
        let most = census(2 + cpus(), 1000 + tables, 0);
        assert_eq!(before.growth(&most).unwrap(), [""; 0]);
        assert_eq!(before.growth(&census(1, 10, 0)).unwrap(), [""; 0]);
        let mut more = census(2 + cpus() + 1, 1000 + tables + 1, 4);
        more.kib.insert(STRAY_ANON.into(), 500 + NOISE + 1);
        more.kib.insert(SWAP_USED.into(), 4);
        let found = before.growth(&more).unwrap();
        let starts = [
            "StrayTables grew from 1000 to",
            "StrayAnon grew from 500 to",
            "Mlocked grew from 0 to 4",
            "SwapUsed grew from 0 to 4",
            "mm_structs without a process",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}");
        }
    }
}
