// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `asyncfork`. `docs/reference.md` has all of it in tables.

pub mod cgroup;
pub mod cli;
pub mod commands;
pub mod ctx;
pub mod doctor;
pub mod elf;
pub mod exit;
#[cfg(test)]
mod golden;
pub mod host;
pub mod library;
pub mod modprobe;
pub mod module;
pub mod out;
pub mod pause;
pub mod process;
pub mod progress;
pub mod reference;
pub mod sample;
pub mod systemd;
#[cfg(test)]
mod testing;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use serde_json::json;

use cli::{Cli, Command};
use ctx::Ctx;
use exit::Exit;
use host::Host;
use module::{Live, Module};
use out::Out;

/// The program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e, std::env::args_os()),
    };
    log_to_stderr(cli.verbose);
    let to: Box<dyn io::Write> = if cli.json {
        Box::new(io::stdout().lock())
    } else {
        Box::new(anstream::stdout())
    };
    let device = cli.device.clone();
    let real_device = device.clone();
    let mut ctx = Ctx {
        host: Host::new(cli.sysroot),
        out: Out::new(to, cli.json, cli.command.name()),
        device,
        connect: Box::new(|host, path| Ok(Box::new(Live::open(host, path)?) as Box<dyn Module>)),
        sample: Box::new(move |what| sample::take(&real_device, what)),
    };
    let is_run = matches!(cli.command, Command::Run(_));
    let result = commands::dispatch(&mut ctx, cli.command);
    let result = result.and_then(|exit| ctx.out.flush().map(|()| exit));
    let exit = match result {
        Ok(exit) => exit,
        Err(e) if out::reader_is_gone(&e) => Exit::Done,
        Err(e) => {
            let message = out::plain(&format!("{e:#}"));
            let _ = writeln!(anstream::stderr(), "asyncfork: {message}");
            let exit = exit::of(&e);
            let exit = if is_run && exit.code() < Exit::RunFailed.code() {
                Exit::RunFailed
            } else {
                exit
            };
            if ctx.out.is_json() && !is_run {
                let error = json!({"error": {"message": message, "exit": exit.code()}});
                let _ = ctx.out.object(&error).and_then(|()| ctx.out.flush());
            }
            exit
        }
    };
    exit.code().into()
}

/// A command line that is wrong, or asks for help.
fn usage(error: &clap::Error, words: impl Iterator<Item = OsString>) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as NoCommand;
    if !error.use_stderr() || error.kind() == NoCommand {
        let _ = error.print();
        let exit = if error.use_stderr() {
            Exit::Input
        } else {
            Exit::Done
        };
        return exit.code().into();
    }
    let words: Vec<_> = words.skip(1).collect();
    let command = Cli::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .find(|name| {
            words
                .iter()
                .find(|w| !w.to_string_lossy().starts_with('-'))
                .is_some_and(|w| w == name.as_str())
        });
    let is_run = command.as_deref() == Some("run");
    let exit = if is_run { Exit::RunFailed } else { Exit::Input };
    let help = match &command {
        Some(command) => format!("asyncfork {command} --help"),
        None => "asyncfork --help".into(),
    };
    let message = format!("{}; see {help}", complaint(&error.render().to_string()));
    let _ = writeln!(anstream::stderr(), "asyncfork: {message}");
    if !is_run && words.iter().any(|word| word == "--json") {
        let error = json!({
            "schema": out::SCHEMA, "command": command,
            "error": {"message": message, "exit": exit.code()},
        });
        let _ = writeln!(io::stdout(), "{error:#}");
    }
    exit.code().into()
}

/// What clap says, in one line: without usage and the way to the help.
fn complaint(text: &str) -> String {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take_while(|line| {
            !line.starts_with("Usage:") && !line.starts_with("For more information")
        });
    let line = lines.collect::<Vec<_>>().join(" ");
    out::plain(line.strip_prefix("error: ").unwrap_or(&line))
}

/// Warnings, and with `--verbose` what is done.
fn log_to_stderr(verbose: bool) {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.target().starts_with("asyncfork")
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                let level = record.level().as_str().to_ascii_lowercase();
                let _ = writeln!(anstream::stderr(), "asyncfork: {level}: {}", record.args());
            }
        }
        fn flush(&self) {}
    }
    static STDERR: Stderr = Stderr;
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(if verbose {
            log::LevelFilter::Debug
        } else {
            log::LevelFilter::Warn
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line() {
        let say = |words: &[&str]| {
            let error = Cli::try_parse_from([&["asyncfork"], words].concat()).unwrap_err();
            complaint(&error.render().to_string())
        };
        assert_eq!(
            say(&["enroll", "--self", "--min-rss", "64X"]),
            "invalid value '64X' for '--min-rss <SIZE>': is not a size: write bytes, or a number with K, M, G or T, such as 64M"
        );
        assert_eq!(
            say(&["enable", "x", "--via", "magic"]),
            "invalid value 'magic' for '--via <WAYS>' [possible values: cgroup, preload]"
        );
        assert_eq!(
            say(&["enable"]),
            "the following required arguments were not provided: <UNIT>"
        );
    }
}
