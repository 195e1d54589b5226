// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pull: what the parent's first touch of a parked chunk takes. To be counted in instructions, on one CPU, where the child
//! copies nothing before the parent sleeps.

use std::io::Write;

use anyhow::{ensure, Context as _};
use asyncfork_host::hold::Hold;
use asyncfork_host::module;
use asyncfork_host::span::{Span, CHUNK, PAGE};
use asyncfork_host::sys::{self, cvt};
use asyncfork_uapi::{Arm, Hook, Outcome};
use serde_json::json;

use crate::process::{expect_success, in_child};
use crate::sample::{Figures, Sample};
use crate::Raw;

/// Chunks that are read first and then written, and as many that are written first.
const CHUNKS: usize = 32;

/// What is counted, in the order of a fork's lines.
const TOUCHES: [&str; 4] = [
    "read of a parked chunk: pull, fault",
    "write to a parked chunk: pull, fault, copy of the page",
    "write to a chunk that is back: fault, copy of the page",
    "the pull alone, by the module's clock (mean of each fork)",
];

/// Measures and prints the table. The module is loaded.
pub fn run(forks: usize, raw: &mut Raw) -> anyhow::Result<()> {
    let counts = in_process(forks)?;
    println!("\n## Pull: the parent's touch of a parked chunk\n");
    println!(
        "Instructions, minimum (median, maximum) of {} touches, {CHUNKS} of each kind after each of {forks} forks.\n",
        forks * CHUNKS
    );
    println!("| touch | instructions |");
    println!("|---|---|");
    for (name, all) in TOUCHES.iter().zip(counts) {
        raw.add(&json!({"kind": "pull", "touch": name, "ns": all}))?;
        let sample: Sample = all.into_iter().collect();
        println!("| {name} | {} |", Figures::Counts.show(&sample));
    }
    Ok(())
}

/// Measures in a process of its own, which has not read or written any files: from 6.12 on that may have pinned its memory.
fn in_process(forks: usize) -> anyhow::Result<[Vec<u64>; 4]> {
    let mut counts: [Vec<u64>; 4] = Default::default();
    let mut lines = 0;
    in_child(
        |out| measure(forks, out),
        |line| {
            for word in line.split(' ') {
                counts[lines % 4].push(word.parse()?);
            }
            lines += 1;
            Ok(())
        },
    )?;
    ensure!(
        counts.each_ref().map(Vec::len) == [CHUNKS, CHUNKS, CHUNKS, 1].map(|n| n * forks),
        "measurements are missing"
    );
    Ok(counts)
}

/// The forking process: four lines for each fork, nanoseconds.
fn measure(forks: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let span = Span::reserve(2 * CHUNKS * CHUNK)?;
    span.map(
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_NORESERVE,
    )?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    for off in (0..span.len()).step_by(PAGE) {
        span.store(off, 1);
    }
    touch(span).context("warm-up")?;
    for _ in 0..forks {
        let (touches, module) = touch(span)?;
        for all in touches {
            let words = all.map(|ns| ns.to_string());
            writeln!(out, "{}", words.join(" "))?;
        }
        writeln!(out, "{module}")?;
    }
    Ok(())
}

/// Forks, and touches every chunk before the child runs.
fn touch(span: Span) -> anyhow::Result<([[u64; CHUNKS]; 3], u64)> {
    Figures::Counts.settle();
    let device = module::open()?;
    let hold = Hold::new()?;
    device.arm(&Arm::default()).map_err(module::device_error)?;
    // SAFETY: the child ends at once.
    let pid = cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        sys::exit_now(0);
    }
    let mut times = [[0; CHUNKS]; 3];
    for (i, ns) in times[0].iter_mut().enumerate() {
        *ns = timed(|| _ = span.load(i * CHUNK));
    }
    for (i, ns) in times[1].iter_mut().enumerate() {
        *ns = timed(|| span.store((CHUNKS + i) * CHUNK, 1));
    }
    for (i, ns) in times[2].iter_mut().enumerate() {
        *ns = timed(|| span.store(i * CHUNK + CHUNK / 2, 1));
    }
    let report = device.report().map_err(module::device_error)?;
    drop(hold);
    expect_success(pid, "the child")?;
    ensure!(
        report.outcome() == Outcome::Async,
        "the fork was {}, {}",
        report.outcome(),
        report.reason()
    );
    let pulls = 2 * CHUNKS as u64;
    let faults = report.pulls_by(Hook::Fault);
    ensure!(
        report.chunks.by_child == 0 && faults >= pulls,
        "{faults} pulls by page faults instead of {pulls}, {} by the child",
        report.chunks.by_child
    );
    Ok((
        times,
        report.parent_pull_ns / report.chunks.by_parent.max(1),
    ))
}

/// The time of `body`.
fn timed(body: impl FnOnce()) -> u64 {
    let start = sys::now_ns();
    body();
    sys::now_ns() - start
}
