// SPDX-License-Identifier: MIT OR Apache-2.0
//! What disturbs the parents and their children from outside.

use super::slot::Slot;
use super::tally::{add, Tally};
use super::Without;
use crate::claim;
use crate::mem::PAGE;
use crate::module::{self, Module};
use crate::procfs;
use crate::rng::Rng;
use crate::swap::Swap;
use crate::sys::{self, cvt, is_errno};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::{BorrowedFd, Device, Errno, Error, Stats};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
const CPU1: &str = "/sys/devices/system/cpu/cpu1/online";
const HARD_OFFLINE: &str = "/sys/devices/system/memory/hard_offline_page";
const NODE1: &str = "/sys/devices/system/node/node1";

/// At what a deed is aimed. Each kind goes on in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// One parent or child, or one group of them.
    Processes,
    /// The module or the machine.
    Machine,
}

/// False: there was nobody to do it to, or this guest has not what it takes.
type Deed = fn(&mut Chaos<'_>) -> TestResult<bool>;

/// Aim, name, share among those of the same aim, and what is done. Unloading is rare: for the seconds that it takes, all forks
/// are stock forks.
pub const DEEDS: &[(Aim, &str, usize, Deed)] = &[
    (Aim::Processes, "SIGKILL", 10, kill),
    (Aim::Processes, "SIGSTOP, SIGCONT", 6, stop),
    (Aim::Processes, "children frozen", 6, freeze),
    (Aim::Processes, "children throttled", 3, throttle),
    (Aim::Processes, "fork() forbidden", 4, no_forks),
    (Aim::Processes, "/proc/PID read", 6, look),
    (Aim::Processes, "soft-dirty cleared", 3, clear_refs),
    (Aim::Processes, "migrate_pages(2)", 6, migrate),
    (Aim::Processes, "memory.reclaim", 5, reclaim),
    (Aim::Machine, "compaction", 16, compact),
    (Aim::Machine, "caches dropped", 4, drop_caches),
    (Aim::Machine, "swapoff, swapon", 4, swap_cycle),
    (Aim::Machine, "huge pages on or off", 8, huge_pages),
    (Aim::Machine, "huge pages split", 4, split),
    (Aim::Machine, "processor offline", 4, hotplug),
    (Aim::Machine, "memory failure", 3, memory_failure),
    (Aim::Machine, "enabled off and on", 20, switch),
    (Aim::Machine, "parameters changed", 16, parameters),
    (Aim::Machine, "cgroup enrolled", 24, enroll),
    (Aim::Machine, "cgroups unenrolled", 6, unenroll),
    (Aim::Machine, "module unloaded", 1, unload),
    (Aim::Machine, "unload refused", 8, unload_in_use),
    (Aim::Machine, "allocation failed", 48, fault),
];

/// Who disturbs.
pub struct Chaos<'a> {
    /// The module under test, if there is one.
    pub module: Option<&'a Module>,
    /// Whether it was built with fault injection.
    pub faults: bool,
    /// The parents' places.
    pub slots: &'a [Slot],
    /// Their swap device.
    pub swap: &'a Swap,
    /// Deeds that are not done.
    pub without: &'a Without,
    /// Shared by all.
    pub tally: &'static Tally,
    /// Decides what happens.
    pub rng: Rng,
}

impl Chaos<'_> {
    /// Disturbs until the run is over.
    pub fn go_on(&mut self, aim: Aim) -> TestResult {
        let shares: Vec<usize> = DEEDS
            .iter()
            .map(|d| {
                if d.0 == aim && !self.without.has(d.1) {
                    d.2
                } else {
                    0
                }
            })
            .collect();
        while !self.tally.stopped() && shares.iter().any(|&s| s > 0) {
            let (_, name, _, deed) = DEEDS[self.rng.weighted(&shares)];
            if deed(self).at(name)? {
                self.book(name);
            }
            self.nap(150);
        }
        Ok(())
    }

    fn book(&self, name: &str) {
        let number = DEEDS.iter().position(|d| d.1 == name);
        add(&self.tally.deeds[number.expect("a deed from the list")], 1);
    }

    fn nap(&mut self, ms: usize) {
        std::thread::sleep(Duration::from_millis(self.rng.below(ms) as u64));
    }

    fn slot(&mut self) -> Slot {
        self.slots[self.rng.below(self.slots.len())].clone()
    }

    /// Some parent or child.
    fn victim(&mut self) -> Option<i32> {
        let pids = self.slot().group.processes();
        (!pids.is_empty()).then(|| pids[self.rng.below(pids.len())])
    }
}

/// Whether something that was done to a process succeeded; it may have ended before.
fn unless_gone(result: io::Result<()>) -> TestResult<bool> {
    if is_errno(&result, libc::ESRCH) || is_errno(&result, libc::ENOENT) {
        return Ok(false);
    }
    result?;
    Ok(true)
}

/// As written, if this guest has the file.
fn set_if_there(path: &str, value: &str) -> TestResult<bool> {
    if !Path::new(path).exists() {
        return Ok(false);
    }
    fs::write(path, value).at(path)?;
    Ok(true)
}

fn kill(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    match chaos.victim() {
        Some(pid) => unless_gone(sys::kill(pid, libc::SIGKILL)),
        None => Ok(false),
    }
}

fn stop(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(pid) = chaos.victim() else {
        return Ok(false);
    };
    let stopped = unless_gone(sys::kill(pid, libc::SIGSTOP))?;
    chaos.nap(200);
    Ok(stopped && unless_gone(sys::kill(pid, libc::SIGCONT))?)
}

fn freeze(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let kids = chaos.slot().kids;
    kids.set("cgroup.freeze", 1)?;
    chaos.nap(300);
    kids.set("cgroup.freeze", 0)?;
    Ok(true)
}

fn throttle(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let kids = chaos.slot().kids;
    kids.set("cpu.max", "2000 100000")?;
    chaos.nap(500);
    kids.set("cpu.max", "max")?;
    Ok(true)
}

fn no_forks(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let group = chaos.slot().group;
    group.set("pids.max", 1)?;
    chaos.nap(100);
    group.set("pids.max", "max")?;
    Ok(true)
}

fn look(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(pid) = chaos.victim() else {
        return Ok(false);
    };
    // Whatever fails, fails because the process has ended.
    let mut read = 0;
    for name in ["maps", "smaps", "smaps_rollup", "numa_maps", "status"] {
        read += fs::read_to_string(format!("/proc/{pid}/{name}")).map_or(0, |t| t.len());
    }
    Ok(read > 0 && read_memory(pid).is_ok())
}

/// Reads a page of each of the process's writable mappings, from outside.
fn read_memory(pid: i32) -> io::Result<()> {
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut page = [0; PAGE];
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        if let (Some((start, _)), Some("rw-p")) =
            (procfs::mapping(line), line.split_whitespace().nth(1))
        {
            // It may be unmapped by now.
            let _ = memory.read_at(&mut page, start as u64);
        }
    }
    Ok(())
}

/// Of memory that is not there, so that nobody loses any: whoever looks for its users pulls all the same.
fn memory_failure(_: &mut Chaos<'_>) -> TestResult<bool> {
    const NOWHERE: &str = "0xffffffff000";
    if !knows_memory_failures() {
        return Ok(false);
    }
    // ENXIO; EBUSY since it may be memory without a struct page.
    let result = fs::write(HARD_OFFLINE, NOWHERE);
    claim!(
        is_errno(&result, libc::ENXIO) || is_errno(&result, libc::EBUSY),
        "a failure of memory that is not there gives {result:?}, want ENXIO or EBUSY"
    );
    Ok(true)
}

/// Whether this kernel knows memory failures.
pub fn knows_memory_failures() -> bool {
    Path::new(HARD_OFFLINE).exists()
}

fn clear_refs(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(pid) = chaos.victim() else {
        return Ok(false);
    };
    // 1: referenced bits; 4: soft-dirty bits, which write-protects everything.
    let what = ["1", "4"][chaos.rng.below(2)];
    unless_gone(fs::write(format!("/proc/{pid}/clear_refs"), what))
}

/// Whether there is another node to move pages to.
pub fn has_two_nodes() -> bool {
    Path::new(NODE1).exists()
}

fn migrate(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let (Some(pid), true) = (chaos.victim(), has_two_nodes()) else {
        return Ok(false);
    };
    let (from, to) = [(1u64, 2u64), (2, 1)][chaos.rng.below(2)];
    // SAFETY: two masks of 64 bits.
    let left = cvt(unsafe { libc::syscall(libc::SYS_migrate_pages, pid, 64, &from, &to) });
    // A process that is about to end has no memory to move.
    if is_errno(&left, libc::EINVAL) || is_errno(&left, libc::EPERM) {
        return Ok(false);
    }
    unless_gone(left.map(drop))
}

fn reclaim(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let mib = 1 + chaos.rng.below(32);
    let group = chaos.slot().group.path().join("memory.reclaim");
    let result = fs::write(group, format!("{mib}M"));
    // So much was not to be had.
    if is_errno(&result, libc::EAGAIN) {
        return Ok(true);
    }
    result?;
    Ok(true)
}

fn compact(_: &mut Chaos<'_>) -> TestResult<bool> {
    set_if_there("/proc/sys/vm/compact_memory", "1")
}

fn drop_caches(_: &mut Chaos<'_>) -> TestResult<bool> {
    set_if_there("/proc/sys/vm/drop_caches", "3")
}

fn swap_cycle(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let off = chaos.swap.off();
    // Not enough memory for what is in there: then it stays on.
    if is_errno(&off, libc::ENOMEM) {
        return Ok(false);
    }
    off.at("swapoff")?;
    chaos.nap(200);
    chaos.swap.on().at("swapon")?;
    Ok(true)
}

fn huge_pages(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    set_if_there(THP, ["always", "madvise", "never"][chaos.rng.below(3)])
}

fn split(_: &mut Chaos<'_>) -> TestResult<bool> {
    set_if_there(SPLIT, "1")
}

fn hotplug(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    if !set_if_there(CPU1, "0")? {
        return Ok(false);
    }
    chaos.nap(300);
    set_if_there(CPU1, "1")
}

fn switch(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(module) = chaos.module else {
        return Ok(false);
    };
    module.set("enabled", 0)?;
    chaos.nap(50);
    module.set("enabled", 1)?;
    Ok(true)
}

fn parameters(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(module) = chaos.module else {
        return Ok(false);
    };
    let mut pick = |values: [u32; 3]| values[chaos.rng.below(3)];
    let (partial, sessions) = (pick([0, 1, 1]), pick([2, 1024, 1024]));
    let (helpers, after) = (pick([0, 1, 8]), pick([0, 1, 30]));
    for (name, value) in [
        ("park_partial", partial),
        ("max_sessions", sessions),
        ("max_helpers", helpers),
        ("pull_after", after),
    ] {
        module.set(name, value)?;
    }
    Ok(true)
}

/// Parents in there, and their children, may fork without an ARM.
fn enroll(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let (slot, rng) = (chaos.slot(), &mut chaos.rng);
    // The parent's group, or all of the slot.
    let group = [&slot.main, &slot.group][rng.below(2)].open()?;
    let min_rss = [0, 0, 1 << 20, 16 << 20][rng.below(4)];
    let helpers = u32::from(rng.one_in(4));
    let Ok(device) = Device::open() else {
        return Ok(false);
    };
    // SAFETY: the directory is open as long as that is in use.
    let group = unsafe { BorrowedFd::borrow_raw(group.as_raw_fd()) };
    // The limit of helpers is 0 at times.
    let enrolled = device
        .enroll(group, min_rss, helpers)
        .or_else(|_| device.enroll(group, min_rss, 0));
    match enrolled {
        // An allocation that was made to fail.
        Err(Error::Ioctl(_, Errno::NOMEM)) if chaos.faults => Ok(false),
        result => result
            .map(|()| true)
            .map_err(|e| module::device_error(e).into()),
    }
}

/// All of them.
fn unenroll(_: &mut Chaos<'_>) -> TestResult<bool> {
    let Ok(device) = Device::open() else {
        return Ok(false);
    };
    let entries = module::enrolled(&device)?;
    for entry in &entries {
        device
            .unenroll_id(entry.cgroup_id)
            .map_err(module::device_error)?;
    }
    Ok(!entries.is_empty())
}

/// Most waits for a moment in which nobody uses the module, each of 20 ms.
const MOMENTS: usize = 200;

/// Nobody arms a fork until the module could be taken away and is back.
fn unload(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(module) = chaos.module else {
        return Ok(false);
    };
    chaos.tally.set_unarmed(true);
    unenroll(chaos)?;
    let mut gone = false;
    for _ in 0..MOMENTS {
        gone = try_unload(chaos, module)?;
        if gone || chaos.tally.stopped() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    chaos.tally.set_unarmed(false);
    // Parents find no module for a moment.
    chaos.nap(100);
    if gone {
        module.load("park_partial=1").at("load again")?;
    }
    Ok(gone)
}

/// As an administrator would, in the midst of it.
fn unload_in_use(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(module) = chaos.module else {
        return Ok(false);
    };
    if try_unload(chaos, module)? {
        chaos.book("module unloaded");
        module.load("park_partial=1").at("load again")?;
        return Ok(false);
    }
    Ok(true)
}

fn try_unload(chaos: &Chaos<'_>, module: &Module) -> TestResult<bool> {
    let stats = module.stats()?;
    let result = module.try_unload();
    if is_errno(&result, libc::EAGAIN) {
        return Ok(false);
    }
    result.at("unload")?;
    expect_sane(Some(&stats))?;
    chaos.tally.keep(&stats);
    Ok(true)
}

fn fault(chaos: &mut Chaos<'_>) -> TestResult<bool> {
    let Some(module) = chaos.module.filter(|_| chaos.faults) else {
        return Ok(false);
    };
    module.set("fault_skip", chaos.rng.below(300))?;
    module.set("fault_count", 1 + chaos.rng.below(3))?;
    Ok(true)
}

/// The module must not have found anything that it does not expect.
pub fn expect_sane(stats: Option<&Stats>) -> TestResult {
    let Some(stats) = stats else {
        return Ok(());
    };
    claim!(
        stats.switched_off == 0,
        "the module found an inconsistency and switched itself off"
    );
    claim!(
        stats.merged == 0,
        "{} chunks found their slot taken",
        stats.merged
    );
    Ok(())
}

/// Warnings and the like, as far as the kernel's taint flags tell.
pub fn expect_untainted() -> TestResult {
    match asyncfork_host::kernel::bad_taint(asyncfork_host::kernel::tainted()?) {
        Some(why) => Err(Verdict::Failed(format!("{why}; its log says of what"))),
        None => Ok(()),
    }
}
