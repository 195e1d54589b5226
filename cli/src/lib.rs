// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `asyncfork`. `docs/reference.md` has all of it in tables.

pub mod cgroup;
pub mod cli;
pub mod commands;
pub mod ctx;
pub mod doctor;
pub mod elf;
pub mod exit;
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

use clap::Parser as _;
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
fn usage(error: &clap::Error, mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Done.code().into();
    }
    let command = words
        .by_ref()
        .skip(1)
        .find(|word| !word.to_string_lossy().starts_with('-'));
    let exit = match command {
        Some(command) if command == "run" => Exit::RunFailed,
        _ => Exit::Input,
    };
    exit.code().into()
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
