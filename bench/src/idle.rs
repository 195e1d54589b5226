// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a loaded module costs processes that never arm: small benchmarks of hooked operations, without and with the module
//! in turn, so that a drift of the machine hits both alike. Counted instead of timed: without, with and without it.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use asyncfork_host::module::{self, ModuleFile};
use asyncfork_host::span::{Span, PAGE};
use asyncfork_host::sys::{self, cvt};
use asyncfork_uapi::BorrowedFd;
use serde_json::json;

use crate::process::expect_success;
use crate::sample::{Sample, INSTRUCTION_NS};
use crate::Raw;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// How often an operation is repeated in each round when instructions are counted.
const REPEATS: usize = 100;
/// Memory that a benchmark needs.
const TIMED: usize = 32 << 20;
const COUNTED: usize = 1 << 20;
/// Two counts of the same that differ by more are none.
const TOLERANCE: f64 = 0.2;

/// Nanoseconds for so many operations; the span is free to be mapped.
type Measure = fn(Span, u64) -> anyhow::Result<u64>;

struct Benchmark {
    name: &'static str,
    measure: Measure,
    /// Operations in a row: many, to be timed.
    many: u64,
    /// To be counted: few enough to fit between two timer interrupts.
    few: u64,
}

const BENCHMARKS: [Benchmark; 6] = [
    Benchmark {
        name: "page fault (anonymous, per page)",
        measure: page_fault,
        many: (TIMED / PAGE) as u64,
        few: (COUNTED / PAGE) as u64,
    },
    Benchmark {
        name: "fork, exit, wait (small process)",
        measure: small_fork,
        many: 100,
        few: 1,
    },
    Benchmark {
        name: "fork alone (small process)",
        measure: fork_alone,
        many: 100,
        few: 1,
    },
    Benchmark {
        name: "mprotect there and back (per call, one page)",
        measure: protect,
        many: 2000,
        few: 100,
    },
    Benchmark {
        name: "mmap and munmap (per pair, one page touched)",
        measure: map_unmap,
        many: 1000,
        few: 4,
    },
    Benchmark {
        name: "MADV_DONTNEED (per call, one page touched)",
        measure: dontneed,
        many: 1000,
        few: 50,
    },
];

/// A sample for each benchmark, for so many counts.
fn samples(n: usize) -> Vec<Sample> {
    (0..BENCHMARKS.len())
        .map(|_| Sample::with_room(n))
        .collect()
}

/// Measures times and prints the table.
pub fn time(module: &ModuleFile, rounds: usize, raw: &mut Raw) -> anyhow::Result<()> {
    let (mut without, mut with) = (samples(rounds), samples(rounds));
    // A warm-up of everything.
    measure_all(&mut samples(1), "warm-up", 0, raw)?;
    for round in 0..rounds {
        // Neither state is always the first of its round.
        for loaded in [round % 2 == 1, round % 2 == 0] {
            if loaded {
                module
                    .load("")
                    .context("load the module; the kernel log says why")?;
                measure_all(&mut with, "loaded", round, raw)?;
                module::unload().context("unload the module")?;
            } else {
                measure_all(&mut without, "absent", round, raw)?;
            }
        }
    }

    println!("\n## Module loaded and idle\n");
    println!("Nanoseconds, median (min-max) of {rounds} rounds; the module is loaded anew in every round.\n");
    println!("| operation | not loaded | loaded | difference of medians | spread not loaded |");
    println!("|---|---|---|---|---|");
    for (i, Benchmark { name, .. }) in BENCHMARKS.iter().enumerate() {
        let (a, b) = (&without[i], &with[i]);
        let percent = |x: f64| 100.0 * x / a.median().max(1) as f64;
        println!(
            "| {name} | {} | {} | {:+.1} % | {:.1} % |",
            show(a),
            show(b),
            percent(b.median() as f64 - a.median() as f64),
            percent((a.max() - a.min()) as f64),
        );
    }
    Ok(())
}

/// Cgroups that are enrolled while the idle module's cost is counted.
struct State {
    name: &'static str,
    /// That this process has nothing to do with.
    others: usize,
    /// And its own, for processes larger than it.
    own: bool,
}

const STATES: [State; 4] = [
    State {
        name: "none enrolled",
        others: 0,
        own: false,
    },
    State {
        name: "1 cgroup enrolled",
        others: 1,
        own: false,
    },
    State {
        name: "100 enrolled",
        others: 100,
        own: false,
    },
    State {
        name: "100 and its own, for larger processes",
        others: 100,
        own: true,
    },
];
/// No process here is as large.
const LARGER: u64 = 1 << 40;

/// Counts instructions and prints the table.
pub fn count(module: &ModuleFile, rounds: usize, raw: &mut Raw) -> anyhow::Result<()> {
    let groups = Groups::create(STATES.iter().map(|state| state.others).max().unwrap_or(0))?;
    let room = rounds * REPEATS;
    let (mut before, mut after) = (samples(room), samples(room));
    let mut with = STATES.map(|_| samples(room));
    // The same for all: each new one leaves mappings behind, and forks take longer.
    let span = Span::reserve(COUNTED)?;
    let mut count_all =
        |samples: &mut [Sample], state, round| count_all(span, samples, state, round, raw);
    count_all(&mut samples(REPEATS), "warm-up", 0)?;
    for round in 0..rounds {
        count_all(&mut before, "before", round)?;
        module
            .load("")
            .context("load the module; the kernel log says why")?;
        for (state, with) in STATES.iter().zip(&mut with) {
            groups.enroll(state)?;
            count_all(with, state.name, round)?;
        }
        module::unload().context("unload the module")?;
        count_all(&mut after, "after", round)?;
    }
    groups.remove()?;

    println!("\n## Module loaded and idle\n");
    println!(
        "Instructions for one operation of a process two cgroups deep: not loaded, minimum (median, maximum) of {} repeats in \
         {rounds} rounds; and what the minimum is more with the module loaded. Where the minima before and after differ by more \
         than {TOLERANCE} %, nothing was measured.\n",
        rounds * REPEATS
    );
    let names = STATES.map(|state| state.name).join(" | ");
    println!("| operation | not loaded | {names} | before and after differ by |");
    println!("|---|---|{}---|", "---|".repeat(STATES.len()));
    for (i, Benchmark { name, few, .. }) in BENCHMARKS.iter().enumerate() {
        let per = |ns| per_operation(ns, *few);
        let [first, last] = [&before[i], &after[i]].map(|sample| per(sample.min()));
        let costs: Vec<String> = with
            .iter()
            .map(|with| cost([first, per(with[i].min()), last]))
            .collect();
        println!(
            "| {name} | {first:.1} ({:.1}, {:.1}) | {} | {:.2} % |",
            per(before[i].median()),
            per(before[i].max()),
            costs.join(" | "),
            apart(first, last)
        );
    }
    Ok(())
}

/// Cgroups, with this process in one of them.
struct Groups {
    top: PathBuf,
    others: Vec<PathBuf>,
}

impl Groups {
    const ROOT: &'static str = "/sys/fs/cgroup";

    fn create(others: usize) -> anyhow::Result<Self> {
        let top = Path::new(Self::ROOT).join("asyncfork-bench");
        let others = (0..others).map(|i| top.join(format!("other-{i}")));
        let groups = Self {
            others: others.collect(),
            top,
        };
        for dir in groups.others.iter().chain([&groups.own()]) {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        enter(&groups.own())?;
        Ok(groups)
    }

    fn own(&self) -> PathBuf {
        self.top.join("own")
    }

    /// What the state before has enrolled stays so.
    fn enroll(&self, state: &State) -> anyhow::Result<()> {
        let device = module::open()?;
        let own = self.own();
        let others = self.others[..state.others].iter();
        for dir in others.chain(state.own.then_some(&own)) {
            let dir = File::open(dir).with_context(|| dir.display().to_string())?;
            // SAFETY: it is open for as long.
            let fd = unsafe { BorrowedFd::borrow_raw(dir.as_raw_fd()) };
            device.enroll(fd, LARGER, 0).map_err(module::device_error)?;
        }
        Ok(())
    }

    fn remove(self) -> anyhow::Result<()> {
        enter(Path::new(Self::ROOT))?;
        for dir in self.others.iter().chain([&self.own(), &self.top]) {
            fs::remove_dir(dir).with_context(|| dir.display().to_string())?;
        }
        Ok(())
    }
}

/// Moves this process.
fn enter(cgroup: &Path) -> anyhow::Result<()> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| procs.display().to_string())
}

fn per_operation(ns: u64, operations: u64) -> f64 {
    ns as f64 / (operations * INSTRUCTION_NS) as f64
}

/// By how many percent two counts differ.
fn apart(a: f64, b: f64) -> f64 {
    100.0 * (a - b).abs() / a.min(b).max(1.0)
}

/// What the module costs, from the counts before, with and after it.
fn cost([before, with, after]: [f64; 3]) -> String {
    if apart(before, after) > TOLERANCE {
        return "not measured".into();
    }
    let without = before.min(after);
    let more = with - without;
    format!("{more:+.1} ({:+.2} %)", 100.0 * more / without.max(1.0))
}

fn show(sample: &Sample) -> String {
    format!("{} ({}-{})", sample.median(), sample.min(), sample.max())
}

fn measure_all(
    samples: &mut [Sample],
    state: &str,
    round: usize,
    raw: &mut Raw,
) -> anyhow::Result<()> {
    for (sample, b) in samples.iter_mut().zip(&BENCHMARKS) {
        let span = Span::reserve(TIMED)?;
        let ns = (b.measure)(span, b.many).context(b.name)? / b.many;
        raw.add(
            &json!({"kind": "idle", "operation": b.name, "module": state, "round": round, "ns": ns}),
        )?;
        sample.add(ns);
    }
    Ok(())
}

/// The samples get the nanoseconds of a whole row of operations.
fn count_all(
    span: Span,
    samples: &mut [Sample],
    state: &str,
    round: usize,
    raw: &mut Raw,
) -> anyhow::Result<()> {
    for (sample, b) in samples.iter_mut().zip(&BENCHMARKS) {
        // Without a pause, so that the allocators go through all their states: else it may be just the module that keeps
        // them from the cheapest one.
        let all: anyhow::Result<Vec<u64>> =
            (0..REPEATS).map(|_| (b.measure)(span, b.few)).collect();
        let all = all.context(b.name)?;
        all.iter().for_each(|&ns| sample.add(ns));
        let counts: Vec<u64> = all.iter().map(|ns| ns / INSTRUCTION_NS).collect();
        raw.add(&json!({
            "kind": "idle-count", "operation": b.name, "module": state, "round": round, "operations": b.few,
            "instructions": counts,
        }))?;
    }
    Ok(())
}

/// The time of `body`.
fn timed(body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let start = sys::now_ns();
    body()?;
    Ok(sys::now_ns() - start)
}

/// The first `len` bytes, mapped.
fn fresh(span: Span, len: usize) -> anyhow::Result<Span> {
    let span = span.part(0, len);
    span.map(RW, libc::MAP_PRIVATE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    Ok(span)
}

fn page_fault(span: Span, n: u64) -> anyhow::Result<u64> {
    let span = fresh(span, n as usize * PAGE)?;
    let ns = timed(|| {
        (0..span.len())
            .step_by(PAGE)
            .for_each(|off| span.store(off, 1));
        Ok(())
    })?;
    span.unmap()?;
    Ok(ns)
}

fn small_fork(_: Span, n: u64) -> anyhow::Result<u64> {
    timed(|| {
        for _ in 0..n {
            // SAFETY: the child ends at once.
            let pid = cvt(unsafe { libc::fork() })?;
            if pid == 0 {
                sys::exit_now(0);
            }
            expect_success(pid, "the child")?;
        }
        Ok(())
    })
}

/// Without the end of the child, whose cost varies more than the module's.
fn fork_alone(_: Span, n: u64) -> anyhow::Result<u64> {
    (0..n)
        .map(|_| {
            let mut pid = 0;
            let ns = timed(|| {
                // SAFETY: the child ends at once.
                pid = cvt(unsafe { libc::fork() })?;
                Ok(())
            });
            if pid == 0 {
                sys::exit_now(0);
            }
            expect_success(pid, "the child")?;
            ns
        })
        .sum()
}

fn protect(span: Span, n: u64) -> anyhow::Result<u64> {
    let span = fresh(span, PAGE)?;
    span.store(0, 1);
    let ns = timed(|| {
        for _ in 0..n / 2 {
            span.protect(libc::PROT_READ)?;
            span.protect(RW)?;
        }
        Ok(())
    })?;
    span.unmap()?;
    Ok(ns)
}

fn map_unmap(span: Span, n: u64) -> anyhow::Result<u64> {
    let span = span.part(0, PAGE);
    timed(|| {
        for _ in 0..n {
            span.map(RW, libc::MAP_PRIVATE)?;
            span.store(0, 1);
            span.unmap()?;
        }
        Ok(())
    })
}

fn dontneed(span: Span, n: u64) -> anyhow::Result<u64> {
    let span = fresh(span, PAGE)?;
    let ns = timed(|| {
        for _ in 0..n {
            span.store(0, 1);
            span.advise(libc::MADV_DONTNEED)?;
        }
        Ok(())
    })?;
    span.unmap()?;
    Ok(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_does_not_repeat_is_none() {
        assert_eq!(cost([1000.0, 1010.0, 1001.0]), "+10.0 (+1.00 %)");
        assert_eq!(cost([1002.0, 999.0, 1000.0]), "-1.0 (-0.10 %)");
        assert_eq!(cost([1000.0, 1010.0, 1003.0]), "not measured");
        assert_eq!(cost([1003.0, 1010.0, 1000.0]), "not measured");
    }
}
