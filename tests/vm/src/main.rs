// SPDX-License-Identifier: MIT OR Apache-2.0
//! Command line of the VM bench; `scripts/vm` and `scripts/test` call it.

use std::process::ExitCode;

use anyhow::Result;
use asyncfork_vm::bench::{Bench, Series};
use asyncfork_vm::gate::{self, GateOptions};
use asyncfork_vm::interrupt;
use asyncfork_vm::vm::{Streams, VmOptions, EXIT_BROKEN};
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    Run(Run),
    Test(GateOptions),
}

/// Run a command on a stock Debian kernel in a VM
///
/// The command runs as root in the repository root. The guest sees the checkout,
/// target/ included, but else has a Debian of its own (scripts/root). What it
/// writes is lost, except in --share directories.
#[derive(Args)]
#[command(override_usage = "scripts/vm [OPTIONS] -- COMMAND...")]
#[command(after_help = "\
Exit status: the command's own, or
  123  the kernel complained (a warning, BUG, RSS or page-table message)
  124  the command ran out of time
  125  the guest did not boot, died or left no result; or the VM was not started
  130  interrupted")]
struct Run {
    /// Kernel to boot
    #[arg(long, value_enum, value_name = "SERIES", default_value_t = Series::V6_1)]
    kernel: Series,
    /// Boot the guest root of scripts/root --suites
    #[arg(long)]
    suites_root: bool,
    #[command(flatten)]
    vm: VmOptions,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (name, result) = match cli.command {
        Cmd::Run(args) => ("vm", run(args)),
        Cmd::Test(args) => ("test", test(args)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(if interrupt::requested() {
                130
            } else {
                EXIT_BROKEN
            })
        }
    }
}

fn run(args: Run) -> Result<ExitCode> {
    interrupt::catch()?;
    let outcome = args.vm.run(
        &Bench::open_root(args.kernel, args.suites_root)?,
        &args.command,
        Streams::inherit(),
    )?;
    outcome.explain("");
    Ok(ExitCode::from(outcome.exit_code()))
}

fn test(args: GateOptions) -> Result<ExitCode> {
    interrupt::catch()?;
    let summary = gate::run(&args)?;
    println!("\n{summary}");
    Ok(if summary.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_own_flags_are_left_to_it() {
        let cli = Cli::parse_from(["vm", "run", "--cpus", "1", "--", "ls", "--memory", "-x"]);
        let Cmd::Run(run) = cli.command else {
            panic!("not run");
        };
        assert_eq!(run.vm.cpus, 1);
        assert_eq!(run.command, ["ls", "--memory", "-x"]);
    }
}
