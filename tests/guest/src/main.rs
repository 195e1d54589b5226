// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests and benchmark of asyncfork, run as root inside a throw-away virtual machine.
//!
//! Each test really forks, compares every page on both sides with a model, and demands from the module's report that
//! the path it is about was really taken: the fallback, a stock fork, has the right contents by design.

mod board;
mod cases;
mod cgroup;
mod crew;
mod ctx;
mod hold;
mod leak;
mod mem;
mod module;
mod procfs;
mod rng;
mod runner;
mod session;
mod swap;
mod sys;
mod torture;
mod verdict;

use anyhow::{bail, Context as _};
use asyncfork_bench::BenchArgs;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "asyncfork-guest",
    about = "Tests and benchmark of asyncfork, for use inside a virtual machine"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the VM tests
    Test(TestArgs),
    /// Measure stock against asynchronous forks, and what an idle module costs
    Bench(BenchCommand),
    /// Random work, forks and disturbances for minutes or hours
    Torture(torture::TortureArgs),
    /// The forking program that the test of the library runs
    #[command(hide = true)]
    Forker(cases::ForkerArgs),
}

#[derive(Args)]
struct BenchCommand {
    #[command(flatten)]
    args: BenchArgs,
    /// Run although this does not look like a virtme-ng guest: loads a module
    #[arg(long)]
    not_a_guest: bool,
}

#[derive(Args)]
struct TestArgs {
    /// asyncfork.ko
    #[arg(long, value_name = "KO", required_unless_present_any = ["list", "control"])]
    module: Option<PathBuf>,
    /// libasyncfork.so; without it the tests of the library are skipped
    #[arg(long, value_name = "SO")]
    shim: Option<PathBuf>,
    /// Directory that gets results.txt (appended to)
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    results: Option<PathBuf>,
    /// Replay a run [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// full; quick: one test for each kind of operation; faults: those that need a module with fault injection
    #[arg(long, value_enum, default_value = "full")]
    suite: cases::Suite,
    /// Random calls to the last of them, however long they take
    #[arg(long)]
    long: bool,
    /// Print the names of the selected tests and end
    #[arg(long)]
    list: bool,
    /// Stock forks without the module: shows what the kernel's own fork does in these tests
    #[arg(long)]
    control: bool,
    /// Run although this does not look like a virtme-ng guest: loads a module, changes settings, risks the machine
    #[arg(long)]
    not_a_guest: bool,
    /// Only tests whose name contains one of these
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test(args),
        Command::Bench(bench) => measure(&bench).map(|()| true),
        Command::Torture(args) => expect_guest(args.not_a_guest).and_then(|()| torture::run(&args)),
        Command::Forker(args) => cases::forker(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("asyncfork-guest: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Refuses to play with a machine that somebody needs.
fn expect_guest(not_a_guest: bool) -> anyhow::Result<()> {
    if !not_a_guest && !asyncfork_watch::is_guest().context("/proc/cmdline")? {
        bail!("this is no virtme-ng guest; --not-a-guest runs it all the same");
    }
    Ok(())
}

fn measure(bench: &BenchCommand) -> anyhow::Result<()> {
    expect_guest(bench.not_a_guest)?;
    asyncfork_bench::run(&bench.args)
}

fn test(args: TestArgs) -> anyhow::Result<bool> {
    let options = runner::Options {
        module: args.module.unwrap_or_default(),
        shim: args.shim.unwrap_or_default(),
        results: args.results.unwrap_or_default(),
        seed: args.seed.unwrap_or_else(rng::new_seed),
        suite: args.suite,
        long: args.long,
        filters: args.filter,
        control: args.control,
    };
    if args.list {
        for test in options.selected() {
            println!("{}", test.name);
        }
        return Ok(true);
    }
    expect_guest(args.not_a_guest)?;
    runner::run(&options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
