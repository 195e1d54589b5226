// SPDX-License-Identifier: MIT OR Apache-2.0
//! The benchmark: stock against asynchronous forks, and the price of a module that is loaded and idle. All in one run of one
//! machine, medians of several forks after a warm-up. With `--icount` the clock counts instructions, and the smallest counts
//! are shown.

mod forks;
mod idle;
mod machine;
mod pull;
mod sample;

use crate::module::Module;
use crate::sys;
use anyhow::{ensure, Context as _};
use sample::{Figures, INSTRUCTION_NS};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

/// What to measure.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// asyncfork.ko
    #[arg(long, value_name = "KO")]
    module: PathBuf,
    /// GiB of touched memory
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    #[arg(default_value_if("icount", "true", "1,4"))]
    sizes: Vec<usize>,
    /// GiB mapped to the zero page: as many page tables, no memory; 0 leaves it out
    #[arg(long, default_value_t = 64)]
    mapped: usize,
    /// Forks of each kind and size, after one warm-up
    #[arg(long, default_value_t = 5)]
    forks: usize,
    /// Rounds of the idle benchmarks, each without and with the module; 0 leaves them out
    #[arg(long, default_value_t = 7)]
    #[arg(default_value_if("icount", "true", "3"))]
    rounds: usize,
    /// Count instructions instead of time, and those of pulls by the parent as well; defaults are sizes 1,4 and 3 rounds
    /// then. Needs the clock of a VM of scripts/vm --icount
    #[arg(long)]
    icount: bool,
    /// Version of the emulator, to be named in the report
    #[arg(long, value_name = "TEXT", hide = true)]
    emulator: Option<String>,
    /// Gets every single measurement, as JSON lines
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Run although this does not look like a virtme-ng guest: loads a module
    #[arg(long)]
    pub not_a_guest: bool,
}

/// Raw data: one JSON object a line.
struct Raw(Option<File>);

impl Raw {
    fn create(path: Option<&PathBuf>) -> anyhow::Result<Self> {
        let file =
            path.map(|p| File::create(p).with_context(|| format!("cannot write {}", p.display())));
        Ok(Self(file.transpose()?))
    }

    fn add(&mut self, value: &Value) -> anyhow::Result<()> {
        if let Some(file) = &mut self.0 {
            writeln!(file, "{value}")?;
        }
        Ok(())
    }
}

/// Measures and prints a report in Markdown.
///
/// # Errors
/// The module cannot be loaded, or a measurement fails.
pub fn run(args: &BenchArgs) -> anyhow::Result<bool> {
    let module = Module::new(args.module.clone());
    let mut raw = Raw::create(args.out.as_ref())?;
    let figures = if args.icount {
        expect_counting_clock()?;
        Figures::Counts
    } else {
        Figures::Times
    };
    let mut machine = machine::describe()?;
    if let Some(emulator) = &args.emulator {
        machine.push(("emulator", emulator.clone()));
    }
    raw.add(&machine::to_json(&machine))?;
    println!("## Machine\n");
    for (name, value) in &machine {
        println!("- {name}: {value}");
    }

    if module.is_loaded() {
        module.unload().context("unload an older module")?;
    }
    if figures == Figures::Counts {
        // Long forks of a held CPU are not to be interrupted.
        fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1").context("real-time limit")?;
        let source = first_load(&module)?;
        raw.add(&json!({"kind": "module", "source": source}))?;
        println!("- module: source {source}");
        println!(
            "\nAll figures are counts of executed instructions. The emulator's clock goes on by {INSTRUCTION_NS} ns for each of them \
             and\nknows nothing of caches, memory or other CPUs: they are exact, and no times."
        );
    }
    if args.rounds > 0 {
        match figures {
            Figures::Times => idle::time(&module, args.rounds, &mut raw)?,
            Figures::Counts => idle::count(&module, args.rounds, &mut raw)?,
        }
    }
    module.load("").with_context(|| {
        format!(
            "cannot load {}; the kernel log says why",
            args.module.display()
        )
    })?;
    let result = forks::run(&args.sizes, args.mapped, args.forks, figures, &mut raw);
    let result = result.and_then(|()| match figures {
        Figures::Times => Ok(()),
        Figures::Counts => pull::run(args.forks, &mut raw),
    });
    module.unload().context("unload the module")?;
    result?;
    Ok(true)
}

/// Loads the module once and says which it is, since counts belong to just that one: the hash of its source. What a first
/// load leaves behind in this process is there before anything is counted.
fn first_load(module: &Module) -> anyhow::Result<String> {
    module
        .load("")
        .context("load the module; the kernel log says why")?;
    let hash = fs::read_to_string("/sys/module/asyncfork/srcversion");
    module.unload().context("unload the module")?;
    Ok(hash.context("its srcversion")?.trim().to_owned())
}

/// Refuses a clock that does not count instructions: what it says would be taken for exact.
fn expect_counting_clock() -> anyhow::Result<()> {
    const LOOPS: u64 = 100_000;
    let expected = 2 * LOOPS * INSTRUCTION_NS;
    let fastest = (0..10).map(|_| {
        let start = sys::now_ns();
        // SAFETY: counts a register of its own down to zero.
        unsafe {
            std::arch::asm!(
                "2: dec {n}",
                "jnz 2b",
                n = inout(reg) LOOPS => _,
                options(nomem, nostack),
            );
        }
        sys::now_ns() - start
    });
    let fastest = fastest.min().unwrap_or(0);
    ensure!(
        fastest.abs_diff(expected) < expected / 100,
        "{} instructions took {fastest} ns and not {expected}: this clock does not count instructions; use \
         scripts/bench --icount",
        2 * LOOPS
    );
    Ok(())
}
