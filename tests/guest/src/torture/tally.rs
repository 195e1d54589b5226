// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the processes of a run tell each other: memory that all of them share.

use super::chaos::DEEDS;
use super::ops::OPS;
use crate::crew::NO_THREAD;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use asyncfork_uapi::{By, Hook, Stats, HOOK_MAX};
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8};

/// Longest reason of a failure, in bytes.
const TEXT: usize = 4000;

/// Exit status of a process that found everything right.
pub const GOOD: i32 = 0;
/// Of one that found something wrong and has noted it.
pub const BAD: i32 = 1;
/// Of one that could not go on for lack of memory: it proves nothing, and is no failure.
pub const SCARCE: i32 = 3;

/// Counters, the first failure, and the word to stop. All zero at the start.
pub struct Tally {
    stop: AtomicBool,
    unarmed_only: AtomicBool,
    /// 0: nothing has failed; 1: somebody is writing the text; 2: it is complete.
    failed: AtomicU32,
    text: [AtomicU8; TEXT],
    /// Parents started.
    pub lives: AtomicU64,
    /// Parents that came to the end they had planned.
    pub full_lives: AtomicU64,
    /// Calls of fork() that gave a child.
    pub forks: AtomicU64,
    /// Those that were not armed: there was no module, it was to go, or an entry could take them.
    pub unarmed: AtomicU64,
    /// Calls of fork() that failed.
    pub failed_forks: AtomicU64,
    /// Children that found their image right.
    pub whole: AtomicU64,
    /// Processes that were killed, on purpose or for memory.
    pub killed: AtomicU64,
    /// Processes that gave up for lack of memory.
    pub scarce: AtomicU64,
    /// Processes that ended in a core dump, as planned.
    pub dumps: AtomicU64,
    /// Pages compared with the model.
    pub pages: AtomicU64,
    /// Operations on memory, in the order of [`OPS`].
    pub ops: [AtomicU64; OPS.len()],
    /// Disturbances, in the order of [`DEEDS`].
    pub deeds: [AtomicU64; DEEDS.len()],
    /// Statistics of modules that have been unloaded.
    unloaded: [AtomicU64; Totals::LEN],
}

impl Tally {
    /// A tally in memory that processes forked from now on share. It is never unmapped.
    pub fn new() -> io::Result<&'static Self> {
        // SAFETY: zeros are a valid Tally, for it is atomics only.
        unsafe { sys::shared() }
    }

    /// Whether everybody is to come to an end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Tells everybody to come to an end.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether forks are not to be armed just now.
    pub fn unarmed_only(&self) -> bool {
        self.unarmed_only.load(Relaxed)
    }

    /// Asks for forks without the module, or ends that.
    pub fn set_unarmed(&self, on: bool) {
        self.unarmed_only.store(on, Relaxed);
    }

    /// Notes a failure and stops the run. The first one counts, what follows may be its consequence.
    pub fn fail(&self, who: &str, why: &str) {
        if self.failed.compare_exchange(0, 1, Acquire, Relaxed).is_ok() {
            for (to, from) in self.text.iter().zip(format!("{who}: {why}").bytes()) {
                to.store(from, Relaxed);
            }
            self.failed.store(2, Release);
        }
        self.stop();
    }

    /// The first failure.
    pub fn failure(&self) -> Option<String> {
        match self.failed.load(Acquire) {
            0 => None,
            1 => Some("a process died while it noted a failure".into()),
            _ => {
                let text: Vec<u8> = self.text.iter().map(|b| b.load(Relaxed)).collect();
                let end = text.iter().position(|&b| b == 0).unwrap_or(TEXT);
                Some(String::from_utf8_lossy(&text[..end]).into_owned())
            }
        }
    }

    /// What a process with this verdict ends with. A bad one is noted; `short`: lack of memory is none. Lack of threads never
    /// is, as their number is limited at times.
    pub fn exit_status(&self, who: &str, result: &TestResult, short: bool) -> i32 {
        match result {
            Ok(()) => GOOD,
            Err(v) if is_scarcity(v) && (short || v.text().starts_with(NO_THREAD)) => {
                add(&self.scarce, 1);
                SCARCE
            }
            Err(v) => {
                self.fail(who, &v.to_string());
                BAD
            }
        }
    }

    /// Keeps the statistics of a module that is about to be unloaded.
    pub fn keep(&self, stats: &Stats) {
        for (sum, n) in self.unloaded.iter().zip(Totals::of(stats).0) {
            add(sum, n);
        }
    }

    /// The statistics of all modules that were loaded; `now` is the present one.
    pub fn totals(&self, now: Option<&Stats>) -> Totals {
        let mut sum = now.map(Totals::of).unwrap_or_default();
        for (sum, old) in sum.0.iter_mut().zip(&self.unloaded) {
            *sum += get(old);
        }
        sum
    }

    /// A number that goes on growing while anybody gets anywhere.
    pub fn progress(&self) -> u64 {
        get(&self.forks) + get(&self.pages) + self.ops.iter().map(get).sum::<u64>()
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// Reads a counter.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

/// Whether a verdict only says that there was no memory, which is no claim about the module.
fn is_scarcity(v: &Verdict) -> bool {
    let errno = |n: i32| format!("(os error {n})");
    matches!(v, Verdict::Broken(t) if t.ends_with(&errno(libc::ENOMEM)) || t.ends_with(&errno(libc::EAGAIN)))
}

/// The name of the number of asynchronous forks that were not armed.
pub const BY_ENTRY: &str = "async forks by an entry";

/// The module's statistics, as numbers that can be summed.
#[derive(Clone, Copy)]
pub struct Totals([u64; Totals::LEN]);

impl Default for Totals {
    fn default() -> Self {
        Self([0; Self::LEN])
    }
}

impl Totals {
    const NAMED: usize = 14;
    const LEN: usize = Self::NAMED + HOOK_MAX;

    fn of(s: &Stats) -> Self {
        let named: [u64; Self::NAMED] = [
            s.r#async,
            s.stock,
            s.failed,
            s.aborted,
            s.killed,
            s.chunks.parked,
            s.chunks.reattached,
            s.chunks.mixed,
            s.chunks.by_child,
            s.chunks.by_parent,
            s.chunks.by_helper,
            s.chunks.by_other,
            s.merged,
            s.async_how(By::Enrolled),
        ];
        let mut all = [0; Self::LEN];
        all[..Self::NAMED].copy_from_slice(&named);
        all[Self::NAMED..].copy_from_slice(&s.pulls);
        Self(all)
    }

    /// The numbers that have names, in this order.
    pub fn named(&self) -> [(&'static str, u64); Self::NAMED] {
        const NAMES: [&str; Totals::NAMED] = [
            "async forks",
            "stock forks",
            "failed forks",
            "sessions aborted",
            "children killed by an abort",
            "chunks parked",
            "chunks given back uncopied",
            "chunks with more than plain pages",
            "pulled by the child",
            "pulled by the parent",
            "pulled by helpers",
            "pulled by others",
            "unexpected slots",
            BY_ENTRY,
        ];
        std::array::from_fn(|i| (NAMES[i], self.0[i]))
    }

    /// The number of that name.
    pub fn get(&self, name: &str) -> u64 {
        let found = self.named().into_iter().find(|(n, _)| *n == name);
        found.expect("a name from the list").1
    }

    /// Pulls that `hook` asked for.
    pub fn pulls_by(&self, hook: Hook) -> u64 {
        self.0[Self::NAMED + hook.raw() as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_counts_and_stops_the_run() {
        let tally = Tally::new().unwrap();
        assert_eq!(tally.failure(), None);
        tally.fail("a", "torn page");
        tally.fail("b", "another");
        assert_eq!(tally.failure().as_deref(), Some("a: torn page"));
        assert!(tally.stopped());
    }

    #[test]
    fn lack_of_memory_is_no_failure_but_a_wrong_byte_is() {
        let tally = Tally::new().unwrap();
        let enomem = Verdict::from(io::Error::from_raw_os_error(libc::ENOMEM)).at("munmap");
        let eagain = Verdict::from(io::Error::from_raw_os_error(libc::EAGAIN));
        let no_thread = Err(eagain.clone().at(NO_THREAD));
        assert_eq!(tally.exit_status("a", &no_thread, false), SCARCE);
        let enomem = Err(enomem);
        assert_eq!(tally.exit_status("a", &enomem, true), SCARCE);
        assert_eq!(tally.failure(), None);
        assert_eq!(tally.exit_status("a", &enomem, false), BAD);
        assert!(tally.failure().is_some());
        let mlock = Err(eagain.at("mlock"));
        assert_eq!(tally.exit_status("a", &mlock, false), BAD);
        let tally = Tally::new().unwrap();
        let wrong = Verdict::Failed("got (os error 12)".into());
        assert_eq!(tally.exit_status("a", &Err(wrong), true), BAD);
        assert!(tally.failure().is_some());
    }

    #[test]
    fn totals_go_on_over_a_reload() {
        let tally = Tally::new().unwrap();
        let mut stats = Stats::default();
        stats.chunks.parked = 5;
        stats.pulls[Hook::Exit.raw() as usize] = 2;
        tally.keep(&stats);
        let sum = tally.totals(Some(&stats));
        assert_eq!(sum.get("chunks parked"), 10);
        assert_eq!(sum.pulls_by(Hook::Exit), 4);
        assert_eq!(tally.totals(None).get("chunks parked"), 5);
    }
}
