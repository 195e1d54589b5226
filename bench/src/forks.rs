// SPDX-License-Identifier: MIT OR Apache-2.0
//! fork() of large processes, stock and asynchronous in turn.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use anyhow::{bail, ensure, Context as _};
use asyncfork_host::hold::Hold;
use asyncfork_host::module;
use asyncfork_host::procfs;
use asyncfork_host::span::{Span, PAGE};
use asyncfork_host::sys::{self, cvt};
use asyncfork_host::wait::poll_until;
use asyncfork_uapi::{Arm, Outcome, Report, State};
use serde_json::json;

use crate::process::{expect_success, in_child};
use crate::sample::{Figures, Sample};
use crate::Raw;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Memory that a guest needs beside the one under test, in MiB: page tables of parent and child, the rest of the system.
const SPARE_MIB: u64 = 400;

/// Kind of memory that the forking process has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Every page written once.
    Touched,
    /// Every page mapped to the zero page.
    Mapped,
}

impl Memory {
    fn name(self) -> &'static str {
        match self {
            Self::Touched => "touched",
            Self::Mapped => "mapped",
        }
    }
}

/// One fork. Times in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Times {
    /// In fork(), in the parent.
    fork: u64,
    /// From the call of fork() to the child's first instruction: the child has its whole image by then.
    child: u64,
    report: Report,
}

/// All forks of one process.
#[derive(Default)]
struct Row {
    stock: Vec<Times>,
    parked: Vec<Times>,
}

fn sample(times: &[Times], field: impl Fn(&Times) -> u64) -> Sample {
    times.iter().map(field).collect()
}

/// Measures and prints the table.
pub fn run(
    sizes: &[usize],
    mapped: usize,
    forks: usize,
    figures: Figures,
    raw: &mut Raw,
) -> anyhow::Result<()> {
    println!("\n## fork()\n");
    let what = match figures {
        Figures::Times => "Milliseconds, median (min-max)",
        Figures::Counts => "Instructions, minimum (median, maximum)",
    };
    println!("{what} of {forks} forks after one warm-up, stock and asynchronous in turn.");
    println!(
        "\"whole image\": from the call of fork() until the child runs, with all its memory.\n"
    );
    println!("| memory | stock fork() | async fork() | of which parking | stock / async | async: whole image | whole image / stock fork() | side arrays |");
    println!("|---|---|---|---|---|---|---|---|");

    let wanted = sizes.iter().map(|&gib| (Memory::Touched, gib));
    let wanted = wanted.chain((mapped > 0).then_some((Memory::Mapped, mapped)));
    let mut largest = None;
    let mut growth = None;
    for (memory, gib) in wanted {
        let name = format!("{gib} GiB {}", memory.name());
        if let Some(why) = does_not_fit(memory, gib)? {
            println!("| {name} | left out: {why} |||||||");
            continue;
        }
        let row = in_process(memory, gib, forks, figures, raw).with_context(|| name.clone())?;
        print_row(&name, &row, figures);
        let best = figures.best(&sample(&row.parked, |t| t.fork));
        match memory {
            Memory::Touched => largest = Some((name, best)),
            Memory::Mapped => growth = largest.clone().map(|from| (from, (name, best))),
        }
    }
    if let (Figures::Times, Some(((from, small), (to, large)))) = (figures, growth) {
        let ms = (large as f64 - small as f64) / 1e6;
        println!("\nGrowth of async fork() from {from} to {to}: {ms:+.2} ms.");
    }
    Ok(())
}

fn does_not_fit(memory: Memory, gib: usize) -> anyhow::Result<Option<String>> {
    let mib = gib as u64 * 1024;
    let tables = mib / 512 * 2;
    let pages = match memory {
        Memory::Touched => mib,
        Memory::Mapped => 0,
    };
    let need = SPARE_MIB + 2 * tables + pages;
    let have = procfs::meminfo("MemAvailable")? >> 20;
    Ok((have < need).then(|| format!("needs {need} MiB, {have} MiB are free")))
}

fn print_row(name: &str, row: &Row, figures: Figures) {
    let (stock, parked) = (
        sample(&row.stock, |t| t.fork),
        sample(&row.parked, |t| t.fork),
    );
    let whole = sample(&row.parked, |t| t.child);
    let ratio = |a: &Sample, b: &Sample| figures.best(a) as f64 / figures.best(b).max(1) as f64;
    println!(
        "| {name} | {} | {} | {} | {:.0} | {} | {:.2} | {} bytes |",
        figures.show(&stock),
        figures.show(&parked),
        figures.show(&sample(&row.parked, |t| t.report.park_ns)),
        ratio(&stock, &parked),
        figures.show(&whole),
        ratio(&whole, &stock),
        row.parked.first().map_or(0, |t| t.report.meta_bytes),
    );
}

/// Measures in a process of its own, which is the one that forks.
fn in_process(
    memory: Memory,
    gib: usize,
    forks: usize,
    figures: Figures,
    raw: &mut Raw,
) -> anyhow::Result<Row> {
    let mut row = Row::default();
    in_child(
        |out| measure(memory, gib, forks, figures, out),
        |line| {
            let times = parse(&line).with_context(|| format!("measurement {line:?}"))?;
            let (mode, list) = match times.report.outcome() {
                Outcome::None => ("stock", &mut row.stock),
                _ => ("async", &mut row.parked),
            };
            let warm_up = line.starts_with("warm-up");
            raw.add(&record(memory, gib, mode, warm_up, &times))?;
            if !warm_up {
                list.push(times);
            }
            Ok(())
        },
    )?;
    ensure!(
        row.stock.len() == forks && row.parked.len() == forks,
        "measurements are missing"
    );
    Ok(row)
}

fn record(memory: Memory, gib: usize, mode: &str, warm_up: bool, t: &Times) -> serde_json::Value {
    json!({
        "kind": "fork",
        "memory": memory.name(),
        "gib": gib,
        "mode": mode,
        "warm_up": warm_up,
        "fork_ns": t.fork,
        "child_ns": t.child,
        "park_ns": t.report.park_ns,
        "copy_ns": t.report.copy_ns,
        "parked": t.report.chunks.parked,
        "eager": t.report.chunks.eager,
        "mixed": t.report.chunks.mixed,
        "by_child": t.report.chunks.by_child,
        "by_parent": t.report.chunks.by_parent,
        "meta_bytes": t.report.meta_bytes,
    })
}

/// The fields of a measurement's line, in order.
fn fields(t: &mut Times) -> [&mut u64; 10] {
    let r = &mut t.report;
    [
        &mut t.fork,
        &mut t.child,
        &mut r.park_ns,
        &mut r.copy_ns,
        &mut r.chunks.parked,
        &mut r.chunks.eager,
        &mut r.chunks.mixed,
        &mut r.chunks.by_child,
        &mut r.chunks.by_parent,
        &mut r.meta_bytes,
    ]
}

fn parse(line: &str) -> anyhow::Result<Times> {
    let mut words = line.split(' ').skip(1);
    let mut times = Times::default();
    times.report.outcome = match words.next() {
        Some("async") => Outcome::Async.raw(),
        Some("stock") => Outcome::None.raw(),
        other => bail!("mode {other:?}"),
    };
    for field in fields(&mut times) {
        *field = words.next().context("too short")?.parse()?;
    }
    Ok(times)
}

/// The forking process: makes the memory, forks, writes a line for each fork.
fn measure(
    memory: Memory,
    gib: usize,
    forks: usize,
    figures: Figures,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let span = Span::reserve(gib << 30)?;
    span.map(RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    // A fork does not copy the tables of a mapping that was never written to.
    span.store(0, 1);
    match memory {
        Memory::Touched => (0..span.len())
            .step_by(PAGE)
            .for_each(|off| span.store(off, 1)),
        Memory::Mapped => span.advise(libc::MADV_POPULATE_READ)?,
    }
    for n in 0..=forks {
        for armed in [false, true] {
            figures.settle();
            let mut times = one_fork(armed, figures)?;
            let words: Vec<String> = fields(&mut times).iter().map(ToString::to_string).collect();
            let phase = if n == 0 { "warm-up" } else { "measured" };
            let mode = if armed { "async" } else { "stock" };
            writeln!(out, "{phase} {mode} {}", words.join(" "))?;
        }
    }
    Ok(())
}

fn one_fork(armed: bool, figures: Figures) -> anyhow::Result<Times> {
    let clock = shared_clock()?;
    // Whatever else runs on the CPU would be counted too, above all the child.
    let hold = match figures {
        Figures::Times => None,
        Figures::Counts => Some(Hold::new()?),
    };
    let device = if armed { Some(module::open()?) } else { None };
    if let Some(device) = &device {
        device.arm(&Arm::default()).map_err(module::device_error)?;
    }
    let start = sys::now_ns();
    // SAFETY: the child reads the clock and ends.
    let pid = unsafe { libc::fork() };
    let end = sys::now_ns();
    if pid == 0 {
        clock.store(end, Ordering::SeqCst);
        sys::exit_now(0);
    }
    drop(hold);
    let pid = cvt(pid)?;
    expect_success(pid, "the child")?;
    let report = match &device {
        None => Report::default(),
        Some(device) => {
            let report = poll_until(|| -> anyhow::Result<Option<Report>> {
                let r = device.report().map_err(module::device_error)?;
                Ok((r.state() != State::Running).then_some(r))
            })?;
            let report = report.context("the session never ends")?;
            ensure!(
                report.outcome() == Outcome::Async,
                "the fork was {}, {}",
                report.outcome(),
                report.reason()
            );
            report
        }
    };
    Ok(Times {
        fork: end - start,
        child: clock.load(Ordering::SeqCst) - start,
        report,
    })
}

/// A word that parent and child share.
fn shared_clock() -> anyhow::Result<&'static AtomicU64> {
    static CLOCK: OnceLock<Span> = OnceLock::new();
    let span = match CLOCK.get() {
        Some(span) => *span,
        None => {
            let span = Span::reserve(PAGE)?;
            span.map(RW, libc::MAP_SHARED)?;
            span.store(0, 0);
            *CLOCK.get_or_init(|| span)
        }
    };
    // SAFETY: aligned, mapped for good, and used as an atomic only.
    Ok(unsafe { AtomicU64::from_ptr(span.ptr().cast()) })
}
