// SPDX-License-Identifier: MIT OR Apache-2.0
//! Command line of the VM runner; scripts call it.

use std::process::ExitCode;

use anyhow::Result;
use asyncfork_vm::checkout::Checkout;
use asyncfork_vm::debug_kernel::{self, DebugKernelOptions};
use asyncfork_vm::demo::{self, DemoOptions};
use asyncfork_vm::gate::{self, GateOptions};
use asyncfork_vm::kernels::{self, Kernel};
use asyncfork_vm::kmod::{self, KmodOptions};
use asyncfork_vm::kmod_calls::{self, KmodCallsOptions};
use asyncfork_vm::libcs::{self, LibcsOptions};
use asyncfork_vm::measure::{self, BenchOptions};
use asyncfork_vm::root::{self, RootOptions};
use asyncfork_vm::suites::{self, SuitesOptions};
use asyncfork_vm::torture::{self, TortureOptions};
use asyncfork_vm::vm::{Streams, VmOptions, EXIT_BROKEN};
use asyncfork_vm::{interrupt, prepare};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

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
    Demo(DemoOptions),
    Bench(BenchOptions),
    Torture(TortureOptions),
    Suites(SuitesOptions),
    Root(RootOptions),
    Kmod(KmodOptions),
    KmodCalls(KmodCallsOptions),
    DebugKernel(DebugKernelOptions),
    Libcs(LibcsOptions),
}

/// Run a command on a stock Debian kernel in a VM
///
/// The command runs as root in the repository root. The guest sees the checkout,
/// target/ included, but has a Debian of its own otherwise (scripts/root). What it
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
    #[arg(long, value_name = "KERNEL", default_value_t = kernels::first())]
    kernel: &'static Kernel,
    /// Boot the guest root of scripts/root --suites
    #[arg(long)]
    suites_root: bool,
    #[command(flatten)]
    vm: VmOptions,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Exit code of other scripts than that of the VM if they cannot do what they were asked for.
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (name, failed, result) = match cli.command {
        Cmd::Run(args) => ("vm", EXIT_BROKEN, run(args)),
        Cmd::Test(args) => ("test", EXIT_BROKEN, test(args)),
        Cmd::Demo(args) => ("demo", demo::EXIT_BROKEN, demo::run(&args)),
        Cmd::Bench(args) => ("bench", EXIT_BROKEN, measure::run(&args)),
        Cmd::Torture(args) => ("torture", EXIT_BROKEN, torture::run(&args)),
        Cmd::Suites(args) => match args.mistake() {
            None => ("suites", EXIT_FAILED, suites::run(&args)),
            Some(why) => refuse("suites", why),
        },
        Cmd::Root(args) => ("root", EXIT_FAILED, done(root::run(&args))),
        Cmd::Kmod(args) => ("kmod", EXIT_FAILED, kmod::run(&args)),
        Cmd::KmodCalls(args) => ("kmod-calls", 2, kmod_calls::run(&args).map(code)),
        Cmd::DebugKernel(args) => ("debug-kernel", EXIT_FAILED, done(debug_kernel::run(args))),
        Cmd::Libcs(_) => ("libcs", EXIT_FAILED, done(libcs::run())),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(if interrupt::requested() { 130 } else { failed })
        }
    }
}

/// Ends as at any other mistake in the options of a command.
fn refuse(command: &str, why: &str) -> ! {
    let mut cli = Cli::command();
    let command = cli.find_subcommand_mut(command).expect("a command of ours");
    command.error(ErrorKind::ArgumentConflict, why).exit()
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn code(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn run(args: Run) -> Result<ExitCode> {
    interrupt::catch()?;
    let checkout = Checkout::open_root(args.kernel, args.suites_root)?;
    let status = prepare::boot(&checkout, &args.vm, &args.command, Streams::inherit())?;
    Ok(ExitCode::from(status))
}

fn test(args: GateOptions) -> Result<ExitCode> {
    interrupt::catch()?;
    let summary = gate::run(&args)?;
    println!("\n{summary}");
    Ok(code(summary.is_success()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
