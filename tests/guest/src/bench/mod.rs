// SPDX-License-Identifier: MIT OR Apache-2.0
//! The benchmark: stock against asynchronous forks, and the price of a module that is loaded and idle. All in one run of one
//! machine, medians of several forks after a warm-up.

mod forks;
mod idle;
mod machine;
mod sample;

use crate::module::Module;
use anyhow::Context as _;
use serde_json::Value;
use std::fs::File;
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
    sizes: Vec<usize>,
    /// GiB mapped to the zero page: as many page tables, no memory; 0 leaves it out
    #[arg(long, default_value_t = 64)]
    mapped: usize,
    /// Forks of each kind and size, after one warm-up
    #[arg(long, default_value_t = 5)]
    forks: usize,
    /// Rounds of the idle benchmarks, each without and with the module; 0 leaves them out
    #[arg(long, default_value_t = 7)]
    rounds: usize,
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
    let machine = machine::describe()?;
    raw.add(&machine::to_json(&machine))?;
    println!("## Machine\n");
    for (name, value) in &machine {
        println!("- {name}: {value}");
    }

    if module.is_loaded() {
        module.unload().context("unload an older module")?;
    }
    if args.rounds > 0 {
        idle::run(&module, args.rounds, &mut raw)?;
    }
    module.load("").with_context(|| {
        format!(
            "cannot load {}; the kernel log says why",
            args.module.display()
        )
    })?;
    let result = forks::run(&args.sizes, args.mapped, args.forks, &mut raw);
    module.unload().context("unload the module")?;
    result?;
    Ok(true)
}
