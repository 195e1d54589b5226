// SPDX-License-Identifier: MIT OR Apache-2.0
//! Snapshots of a real server, Redis or Valkey, with stock fork and with async fork side
//! by side. `scripts/demo` boots a VM and runs `asyncfork-demo guest` in it.

mod guest;
mod load;
mod machine;
mod module;
mod progress;
mod report;
mod resp;
mod server;
mod snapshots;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Something that the demo claims did not hold; other errors mean that it
/// could not be tried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Claim(String);

/// Returns a [`Claim`] with the formatted message unless the condition holds.
macro_rules! claim {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::Claim(format!($($message)+)).into());
        }
    };
}
use claim;

#[derive(Parser)]
#[command(version, about, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  every snapshot was made the way its column says, and every RDB verified holds
     exactly the dataset of the moment of the fork
  1  one of these did not hold
  2  broken: the demo could not be carried out (setup, options, memory)";

#[derive(Subcommand)]
enum Command {
    /// The demo itself, inside a VM and as root: loads the module, starts
    /// the server, prints the table
    #[command(after_help = EXIT_STATUS, args_override_self = true)]
    Guest(guest::Options),
    /// Boots a VM with memory enough and runs `guest` in it
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(status) => status,
        Err(e) if e.is::<Claim>() => {
            eprintln!("asyncfork-demo: FAILED: {e:#}");
            ExitCode::from(1)
        }
        Err(e) => {
            eprintln!("asyncfork-demo: broken: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Guest(options) => guest::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Vm(options) => {
            // A mistake in the options shows before the boot.
            let words = ["asyncfork-demo", "guest"].into_iter();
            let guest = Cli::parse_from(words.chain(options.guest.iter().map(String::as_str)));
            match guest.command {
                Command::Guest(guest) => vm::run(&options, &guest),
                Command::Vm(_) => unreachable!("the command is guest"),
            }
        }
    }
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
    fn the_script_names_every_option() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/demo");
        let script = std::fs::read_to_string(script).unwrap();
        let cli = Cli::command();
        let guest = cli.find_subcommand("guest").unwrap();
        for option in guest.get_arguments().filter(|a| !a.is_hide_set()) {
            let name = format!("--{}", option.get_long().unwrap());
            assert!(script.contains(&name), "scripts/demo --help lacks {name}");
        }
    }

    #[test]
    fn a_claim_is_told_from_other_errors_through_context() {
        let fail = || -> anyhow::Result<()> {
            claim!(1 > 2, "{} is not greater", 1);
            Ok(())
        };
        use anyhow::Context;
        let error = fail().context("comparing").unwrap_err();
        assert!(error.is::<Claim>());
        assert_eq!(format!("{error:#}"), "comparing: 1 is not greater");
        assert!(!anyhow::anyhow!("setup").is::<Claim>());
    }
}
