// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a loaded module costs processes that never arm: small benchmarks of hooked operations, without and with the module
//! in turn, so that a drift of the machine hits both alike. Counted instead of timed: without, with and without it.

use anyhow::Context as _;
use asyncfork_host::module::{self, ModuleFile};
use asyncfork_host::span::{Span, PAGE};
use asyncfork_host::sys::{self, cvt};
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

const BENCHMARKS: [Benchmark; 5] = [
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

/// A sample for each benchmark.
fn samples() -> Vec<Sample> {
    vec![Sample::default(); BENCHMARKS.len()]
}

/// Measures times and prints the table.
pub fn time(module: &ModuleFile, rounds: usize, raw: &mut Raw) -> anyhow::Result<()> {
    let (mut without, mut with) = (samples(), samples());
    // A warm-up of everything.
    measure_all(&mut samples(), "warm-up", 0, raw)?;
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

/// Counts instructions and prints the table.
pub fn count(module: &ModuleFile, rounds: usize, raw: &mut Raw) -> anyhow::Result<()> {
    let (mut before, mut with, mut after) = (samples(), samples(), samples());
    // The same for all: each new one leaves mappings behind, and forks take longer.
    let span = Span::reserve(COUNTED)?;
    let mut count_all =
        |samples: &mut [Sample], state, round| count_all(span, samples, state, round, raw);
    count_all(&mut samples(), "warm-up", 0)?;
    for round in 0..rounds {
        count_all(&mut before, "before", round)?;
        module
            .load("")
            .context("load the module; the kernel log says why")?;
        count_all(&mut with, "loaded", round)?;
        module::unload().context("unload the module")?;
        count_all(&mut after, "after", round)?;
    }

    println!("\n## Module loaded and idle\n");
    println!(
        "Instructions for one operation, minimum (median, maximum) of {} repeats in {rounds} rounds: not loaded, loaded, not \
         loaded. Where the minima of the first and the last differ by more than {TOLERANCE} %, nothing was measured.\n",
        rounds * REPEATS
    );
    println!("| operation | not loaded | loaded | not loaded again | loaded costs | the two not loaded differ by |");
    println!("|---|---|---|---|---|---|");
    for (i, Benchmark { name, few, .. }) in BENCHMARKS.iter().enumerate() {
        let all = [&before[i], &with[i], &after[i]];
        let min = all.map(|sample| per_operation(sample.min(), *few));
        let [before, with, after] = all.map(|sample| {
            let [min, median, max] =
                [sample.min(), sample.median(), sample.max()].map(|ns| per_operation(ns, *few));
            format!("{min:.1} ({median:.1}, {max:.1})")
        });
        println!(
            "| {name} | {before} | {with} | {after} | {} | {:.2} % |",
            cost(min),
            apart(min[0], min[2])
        );
    }
    Ok(())
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
