// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the kernel is left as it was found.

use crate::sys;
use crate::verdict::{Outcome, Verdict};
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// Kernel memory that sessions could leak.
#[derive(Debug, Clone)]
pub struct Census {
    /// mm_structs that belong to no process: kernel threads hold the last user's one lazily, one a CPU at most.
    stray_mms: i64,
    /// Fields of /proc/meminfo, in KiB.
    meminfo: BTreeMap<String, i64>,
}

/// (field of /proc/meminfo, KiB it may grow). PageTables: a process that came to life since the baseline, such as a udev
/// worker, has a few dozen tables. AnonPages and the sum of swap in use: likewise.
const MAY_GROW: [(&str, i64); 4] = [
    ("PageTables", 512),
    ("AnonPages", 4096),
    ("Mlocked", 0),
    ("SwapUsed", 0),
];

impl Census {
    /// Counts now.
    pub fn take() -> io::Result<Self> {
        // Folds the per-CPU parts into the totals.
        fs::write("/proc/sys/vm/stat_refresh", "1")?;
        // SLUB counts objects of per-CPU slabs as used; this empties those slabs.
        fs::write("/sys/kernel/slab/mm_struct/shrink", "1")?;
        let mms = first_number(&fs::read_to_string("/sys/kernel/slab/mm_struct/objects")?)?;
        let mut meminfo: BTreeMap<String, i64> = fs::read_to_string("/proc/meminfo")?
            .lines()
            .filter_map(|l| {
                let (name, value) = l.split_once(':')?;
                Some((name.to_string(), first_number(value).ok()?))
            })
            .collect();
        meminfo.insert(
            "SwapUsed".into(),
            meminfo["SwapTotal"] - meminfo["SwapFree"],
        );
        Ok(Self {
            stray_mms: mms - user_processes()?,
            meminfo,
        })
    }

    /// What grew beyond its tolerance since `self`.
    fn growth(&self, now: &Self) -> Vec<String> {
        let mut found: Vec<String> = MAY_GROW
            .iter()
            .filter_map(|&(name, may)| {
                let (was, is) = (*self.meminfo.get(name)?, *now.meminfo.get(name)?);
                (is > was + may).then(|| format!("{name} grew from {was} to {is} KiB"))
            })
            .collect();
        if now.stray_mms > self.stray_mms + sys::cpus() as i64 {
            found.push(format!(
                "mm_structs without a process: {}, were {}",
                now.stray_mms, self.stray_mms
            ));
        }
        found
    }

    /// Waits for late frees, then fails if anything is still above `self`.
    pub fn expect_unchanged(&self) -> Outcome<String> {
        let mut last = Vec::new();
        let clean = sys::poll_until(|| -> Outcome<Option<Self>> {
            let now = Self::take()?;
            last = self.growth(&now);
            Ok(last.is_empty().then_some(now))
        })?;
        match clean {
            Some(now) => Ok(format!("page tables {} KiB", now.meminfo["PageTables"])),
            None => Err(Verdict::Failed(last.join("; "))),
        }
    }
}

fn first_number(text: &str) -> io::Result<i64> {
    text.split_whitespace()
        .next()
        .and_then(|w| w.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no number in {text:?}")))
}

/// Processes that have memory, that is, all but kernel threads and zombies.
fn user_processes() -> io::Result<i64> {
    let mut n = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let is_pid = entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit());
        if is_pid
            && fs::read_to_string(entry.path().join("statm")).is_ok_and(|s| !s.starts_with("0 "))
        {
            n += 1;
        }
    }
    Ok(n)
}
