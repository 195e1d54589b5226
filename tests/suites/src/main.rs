// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs test suites that nobody here wrote, inside a throw-away virtual machine: each program with stock forks, then with every
//! fork armed. A case that passes stock and does not pass armed is a defect of asyncfork.

mod compare;
mod env;
mod frame;
mod ksft;
mod module;
mod results;
mod rows;
mod stress;
mod suite;
mod table;
mod tcl;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use clap::{Args, Parser, Subcommand};

use results::Line;
use suite::Suite;

#[derive(Parser)]
#[command(
    name = "asyncfork-suites",
    about = "Foreign test suites, stock against async fork, for use inside a virtual machine"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a suite; in the guest
    Run(RunArgs),
    /// Record how the boot of a run ended; on the host
    Ended(EndedArgs),
    /// Print the Markdown table of all results; anywhere
    Table {
        /// Directory with the results
        #[arg(value_name = "DIR", default_value = "target/suites")]
        results: PathBuf,
    },
}

/// Where results are filed.
#[derive(Args)]
struct Place {
    /// kselftests, stress-ng, redis, valkey; redis-whole, valkey-whole: all units
    #[arg(long, value_name = "NAME")]
    suite: String,
    /// What the results are filed under
    #[arg(long, value_name = "SERIES")]
    series: String,
    /// What the host calls this boot
    #[arg(long, value_name = "ID")]
    boot: String,
    /// Directory that gets the results
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    place: Place,
    /// asyncfork.ko
    #[arg(long, value_name = "KO")]
    module: PathBuf,
    /// Parameter for the module, beside park_partial=1 (may be repeated)
    #[arg(long, value_name = "NAME=VALUE")]
    module_parameter: Vec<String>,
    /// libasyncfork.so
    #[arg(long, value_name = "SO")]
    shim: PathBuf,
    /// libasyncfork_spread.so
    #[arg(long, value_name = "SO")]
    spread: PathBuf,
    /// Only these programs
    programs: Vec<String>,
}

#[derive(Args)]
struct EndedArgs {
    #[command(flatten)]
    place: Place,
    /// Exit status of scripts/vm
    #[arg(long, value_name = "N")]
    status: u8,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Ended(args) => ended(args).map(|()| true),
        Command::Table { results } => results::read(&results).map(|lines| {
            print!("{}", table::table(&rows::rows(lines)));
            true
        }),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("asyncfork-suites: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn suites() -> [Box<dyn Suite>; 6] {
    [
        Box::new(ksft::Kselftests),
        Box::new(stress::StressNg::default()),
        Box::new(tcl::redis()),
        Box::new(tcl::valkey()),
        Box::new(tcl::redis_whole()),
        Box::new(tcl::valkey_whole()),
    ]
}

fn suite_by_name(name: &str) -> Result<Box<dyn Suite>> {
    let names = suites().map(|s| s.name()).join(", ");
    let found = suites().into_iter().find(|s| s.name() == name);
    found.with_context(|| format!("no suite {name}; there are {names}"))
}

fn run(args: RunArgs) -> Result<bool> {
    ensure!(
        asyncfork_watch::is_guest().context("/proc/cmdline")?,
        "this is no virtme-ng guest; the suites could harm the machine: use scripts/suites"
    );
    let suite = suite_by_name(&args.place.suite)?;
    let options = frame::Options {
        series: args.place.series,
        boot: args.place.boot,
        module: args.module,
        module_parameters: args.module_parameter,
        shim: args.shim,
        spread: args.spread,
        results: args.place.results,
        programs: args.programs,
    };
    let summary = frame::run(suite.as_ref(), &options)?;
    println!(
        "{} passed, {} failed, {} skipped",
        summary.passed, summary.failed, summary.skipped
    );
    // A run in which nothing passed has shown nothing.
    Ok(summary.failed == 0 && summary.passed > 0)
}

fn ended(args: EndedArgs) -> Result<()> {
    let EndedArgs { place, status } = args;
    let file = results::file(&place.results, &place.series, &place.suite);
    let ended = results::Ended {
        series: place.series,
        suite: place.suite,
        boot: place.boot,
        status,
    };
    results::append(&file, &Line::Ended(ended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_suite_that_is_not_there_is_named_with_those_that_are() {
        assert_eq!(suite_by_name("valkey").unwrap().name(), "valkey");
        let error = suite_by_name("ltp").err().unwrap().to_string();
        assert!(error.contains("ltp") && error.contains("kselftests, stress-ng"));
    }
}
