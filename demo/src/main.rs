// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo in the VM; `scripts/demo` boots one and runs `asyncfork-demo guest` in it.

use std::process::ExitCode;

use asyncfork_demo::{guest, Claim};
use clap::{Parser, Subcommand};

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
}

fn main() -> ExitCode {
    let Command::Guest(options) = Cli::parse().command;
    match guest::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
