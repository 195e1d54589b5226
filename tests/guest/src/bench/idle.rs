// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a loaded module costs processes that never arm: small benchmarks of hooked operations, without and with the module
//! in turn, so that a drift of the machine hits both alike.

use super::sample::Sample;
use super::Raw;
use crate::mem::{Span, PAGE};
use crate::module::Module;
use crate::sys::{self, cvt, Exit};
use anyhow::{ensure, Context as _};
use serde_json::json;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Memory of the benchmarks, in MiB.
const MIB: usize = 32;
const FORKS: u64 = 100;

/// Nanoseconds for one operation.
type Measure = fn() -> anyhow::Result<u64>;

const BENCHMARKS: [(&str, Measure); 5] = [
    ("page fault (anonymous, per page)", page_fault),
    ("fork, exit, wait (small process)", small_fork),
    ("mprotect there and back (per call, one page)", protect),
    ("mmap and munmap (per pair, one page touched)", map_unmap),
    ("MADV_DONTNEED (per call, one page touched)", dontneed),
];

/// Measures and prints the table.
pub fn run(module: &Module, rounds: usize, raw: &mut Raw) -> anyhow::Result<()> {
    let mut without = vec![Sample::default(); BENCHMARKS.len()];
    let mut with = without.clone();
    // A warm-up of everything.
    measure_all(
        &mut vec![Sample::default(); BENCHMARKS.len()],
        "warm-up",
        0,
        raw,
    )?;
    for round in 0..rounds {
        // Neither state is always the first of its round.
        for loaded in [round % 2 == 1, round % 2 == 0] {
            if loaded {
                module
                    .load("")
                    .context("load the module; the kernel log says why")?;
                measure_all(&mut with, "loaded", round, raw)?;
                module.unload().context("unload the module")?;
            } else {
                measure_all(&mut without, "absent", round, raw)?;
            }
        }
    }

    println!("\n## Module loaded and idle\n");
    println!("Nanoseconds, median (min-max) of {rounds} rounds; the module is loaded anew in every round.\n");
    println!("| operation | not loaded | loaded | difference of medians | spread not loaded |");
    println!("|---|---|---|---|---|");
    for (i, (name, _)) in BENCHMARKS.iter().enumerate() {
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

fn show(sample: &Sample) -> String {
    format!("{} ({}-{})", sample.median(), sample.min(), sample.max())
}

fn measure_all(
    samples: &mut [Sample],
    state: &str,
    round: usize,
    raw: &mut Raw,
) -> anyhow::Result<()> {
    for (sample, (name, measure)) in samples.iter_mut().zip(BENCHMARKS) {
        let ns = measure().context(name)?;
        raw.add(
            &json!({"kind": "idle", "operation": name, "module": state, "round": round, "ns": ns}),
        )?;
        sample.add(ns);
    }
    Ok(())
}

/// The time of `body`, divided by `n`.
fn per(n: u64, body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let start = sys::now_ns();
    body()?;
    Ok((sys::now_ns() - start) / n)
}

fn fresh(len: usize) -> anyhow::Result<Span> {
    let span = Span::reserve(len)?;
    span.map(RW, libc::MAP_PRIVATE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    Ok(span)
}

fn page_fault() -> anyhow::Result<u64> {
    let span = fresh(MIB << 20)?;
    let ns = per(span.pages() as u64, || {
        (0..span.len())
            .step_by(PAGE)
            .for_each(|off| span.store(off, 1));
        Ok(())
    })?;
    span.unmap()?;
    Ok(ns)
}

fn small_fork() -> anyhow::Result<u64> {
    per(FORKS, || {
        for _ in 0..FORKS {
            // SAFETY: the child ends at once.
            let pid = cvt(unsafe { libc::fork() })?;
            if pid == 0 {
                sys::exit_now(0);
            }
            let exit = sys::wait(pid)?;
            ensure!(exit == Exit::Code(0), "the child ended with {exit:?}");
        }
        Ok(())
    })
}

fn protect() -> anyhow::Result<u64> {
    let span = fresh(PAGE)?;
    span.store(0, 1);
    let ns = per(2000, || {
        for _ in 0..1000 {
            span.protect(libc::PROT_READ)?;
            span.protect(RW)?;
        }
        Ok(())
    })?;
    span.unmap()?;
    Ok(ns)
}

fn map_unmap() -> anyhow::Result<u64> {
    let span = Span::reserve(PAGE)?;
    per(1000, || {
        for _ in 0..1000 {
            span.map(RW, libc::MAP_PRIVATE)?;
            span.store(0, 1);
            span.unmap()?;
        }
        Ok(())
    })
}

fn dontneed() -> anyhow::Result<u64> {
    let span = fresh(PAGE)?;
    let ns = per(1000, || {
        for _ in 0..1000 {
            span.store(0, 1);
            span.advise(libc::MADV_DONTNEED)?;
        }
        Ok(())
    })?;
    span.unmap()?;
    Ok(ns)
}
