// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures fork(): stock against asynchronous forks, and the price of a module that is loaded and idle. All in one run of one
//! machine, medians of several forks after a warm-up. With `--icount` the clock counts instructions, and the smallest counts
//! are shown.
//!
//! A library for programs that have a command for it. It loads the module and unloads it, also one that was loaded before, and
//! takes root.

mod forks;
mod idle;
mod machine;
mod process;
mod pull;
mod sample;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{ensure, Context as _};
use asyncfork_host::module::{self, ModuleFile};
use asyncfork_host::sys;
use sample::{Figures, INSTRUCTION_NS};
use serde_json::{json, Value};

/// What to measure: options of a command line.
#[derive(Debug, clap::Args)]
pub struct Measure {
    /// GiB of touched memory
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    #[arg(default_value_if("icount", "true", "1,4"))]
    pub sizes: Vec<usize>,
    /// GiB mapped to the zero page: as many page tables, no memory; 0 leaves it out
    #[arg(long, default_value_t = 64)]
    pub mapped: usize,
    /// Forks of each kind and size, after one warm-up
    #[arg(long, default_value_t = 5)]
    pub forks: usize,
    /// Rounds of the idle benchmarks, each without and with the module; 0 leaves them out
    #[arg(long, default_value_t = 7)]
    #[arg(default_value_if("icount", "true", "3"))]
    pub rounds: usize,
    /// Count instructions instead of time, and those of pulls by the parent as well; defaults are sizes 1,4 and 3 rounds
    /// then. Needs the clock of a VM of scripts/vm --icount
    #[arg(long)]
    pub icount: bool,
}

/// What to measure, with which module and where the results go: options of a command line.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// asyncfork.ko
    #[arg(long, value_name = "KO")]
    pub module: PathBuf,
    /// What to measure
    #[command(flatten)]
    pub measure: Measure,
    /// Version of the emulator, to be named in the report
    #[arg(long, value_name = "TEXT", hide = true)]
    pub emulator: Option<String>,
    /// Gets every single measurement, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
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
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let module = ModuleFile::new(args.module.clone());
    let mut raw = Raw::create(args.out.as_ref())?;
    let measure = &args.measure;
    let figures = if measure.icount {
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

    if module::is_loaded() {
        module::unload().context("unload an older module")?;
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
    if measure.rounds > 0 {
        match figures {
            Figures::Times => idle::time(&module, measure.rounds, &mut raw)?,
            Figures::Counts => idle::count(&module, measure.rounds, &mut raw)?,
        }
    }
    module.load("").with_context(|| {
        format!(
            "cannot load {}; the kernel log says why",
            args.module.display()
        )
    })?;
    let result = forks::run(
        &measure.sizes,
        measure.mapped,
        measure.forks,
        figures,
        &mut raw,
    );
    let result = result.and_then(|()| match figures {
        Figures::Times => Ok(()),
        Figures::Counts => pull::run(measure.forks, &mut raw),
    });
    module::unload().context("unload the module")?;
    result
}

/// Loads the module once and says which it is, since counts belong to just that one: the hash of its source. What a first
/// load leaves behind in this process is there before anything is counted.
fn first_load(module: &ModuleFile) -> anyhow::Result<String> {
    module
        .load("")
        .context("load the module; the kernel log says why")?;
    let hash = module::srcversion();
    module::unload().context("unload the module")?;
    hash.context("its srcversion")
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    #[test]
    fn counting_measures_less_unless_told_otherwise() {
        let measure = |options: &[&str]| {
            let words = ["bench", "--module=a.ko"].iter().chain(options);
            let Measure { sizes, rounds, .. } = Line::parse_from(words).args.measure;
            (sizes, rounds)
        };
        assert_eq!(measure(&[]), (vec![1, 2, 4, 8], 7));
        assert_eq!(measure(&["--icount"]), (vec![1, 4], 3));
        assert_eq!(measure(&["--icount", "--sizes=2"]), (vec![2], 3));
    }
}
