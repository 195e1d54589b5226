// SPDX-License-Identifier: MIT OR Apache-2.0
//! `run`: a program with the library preloaded.

use std::env::VarError;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cli::{LogLevel, RunArgs};
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::Host;
use crate::{elf, library};

/// Becomes the program; returns only if that fails.
///
/// # Errors
/// The program cannot be executed.
pub fn run(ctx: &mut Ctx<'_>, args: &RunArgs) -> Result<Exit> {
    let Some((name, arguments)) = args.command.split_first() else {
        return Err(exit::with(Exit::RunFailed, "give a program to run"));
    };
    let mut command = Command::new(name);
    command.args(arguments).envs(variables(args));
    match usable(&ctx.host, args, name, std::env::var_os("PATH").as_deref()) {
        Ok(library) => match std::env::var("LD_PRELOAD") {
            Err(VarError::NotUnicode(_)) => log::warn!(
                "running {} without asyncfork: LD_PRELOAD is no text, and is left as it is",
                name.to_string_lossy()
            ),
            before => {
                let before = before.unwrap_or_default();
                let value = library::preload(&library.to_string_lossy(), &before);
                command.env("LD_PRELOAD", value);
            }
        },
        Err(why) => log::warn!(
            "running {} without asyncfork: {why}",
            name.to_string_lossy()
        ),
    }
    ctx.out.flush()?;
    let error = command.exec();
    let exit = match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::CannotExecute,
    };
    Err(exit::with(
        exit,
        format!("{}: {error}", name.to_string_lossy()),
    ))
}

/// The library, if it can be used in the program.
fn usable(
    host: &Host,
    args: &RunArgs,
    name: &OsStr,
    path: Option<&OsStr>,
) -> Result<PathBuf, String> {
    let library = match &args.library {
        Some(path) => std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?,
        None => library::installed(host).ok_or_else(|| {
            format!(
                "there is no {} in {}; name it by --library",
                library::NAME,
                library::places()
            )
        })?,
    };
    if library.to_string_lossy().contains([':', ' ', '\t']) {
        return Err(format!(
            "{}: the loader takes no path with a colon or a space",
            library.display()
        ));
    }
    let program = find(host, name, path).unwrap_or_else(|| name.into());
    match elf::obstacle(host, &library, &program) {
        Some(why) => Err(why),
        None => Ok(library),
    }
}

/// The file that a name stands for, as execvp(3) looks it up.
fn find(host: &Host, name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if name.to_string_lossy().contains('/') {
        return std::path::absolute(name).ok();
    }
    let path = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    std::env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(|candidate| host.is_executable(candidate))
}

/// The settings that options stand for.
fn variables(args: &RunArgs) -> Vec<(&'static str, OsString)> {
    let level = |level| match level {
        LogLevel::Off => "off",
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    [
        ("ASYNCFORK", args.require.then(|| "require".into())),
        (
            "ASYNCFORK_MIN_RSS",
            args.min_rss.map(|n| n.to_string().into()),
        ),
        (
            "ASYNCFORK_THREADS",
            args.threads.map(|n| n.to_string().into()),
        ),
        ("ASYNCFORK_LOG", args.log.map(|l| level(l).into())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::testing::{elf, Fake};
    use clap::Parser as _;
    use std::path::Path;

    fn args(words: &[&str]) -> RunArgs {
        let Command::Run(args) = Cli::parse_from([&["asyncfork", "run"], words].concat()).command
        else {
            panic!("no run");
        };
        args
    }

    #[test]
    fn options_become_settings() {
        let args = args(&[
            "--min-rss",
            "1G",
            "--threads",
            "2",
            "--log",
            "info",
            "--require",
            "x",
        ]);
        let set = variables(&args);
        let set: Vec<_> = set
            .iter()
            .map(|(k, v)| format!("{k}={}", v.to_string_lossy()))
            .collect();
        assert_eq!(
            set,
            [
                "ASYNCFORK=require",
                "ASYNCFORK_MIN_RSS=1073741824",
                "ASYNCFORK_THREADS=2",
                "ASYNCFORK_LOG=info"
            ]
        );
    }

    #[test]
    fn a_program_is_found_and_looked_at() {
        let fake = Fake::new();
        let why = |program: &str, more: &[&str]| {
            let args = args(&[more, &[program]].concat());
            usable(
                &fake.host,
                &args,
                OsStr::new(program),
                Some(OsStr::new("/none:/usr/bin")),
            )
        };
        assert!(why("redis-server", &[])
            .unwrap_err()
            .contains("there is no libasyncfork.so"));
        fake.write_bytes("/usr/lib/libasyncfork.so", &elf::library(Some("libc.so.6")))
            .program(
                "/usr/bin/redis-server",
                &elf::program(Some("/lib64/ld-linux-x86-64.so.2")),
            )
            .program(
                "/usr/bin/alpine",
                &elf::program(Some("/lib/ld-musl-x86_64.so.1")),
            );
        assert_eq!(
            why("redis-server", &[]).unwrap(),
            Path::new("/usr/lib/libasyncfork.so")
        );
        assert!(why("alpine", &[]).unwrap_err().contains("musl"));
        // That is for exec() to say.
        assert!(why("no-such-program", &[]).is_ok());
        assert!(why("redis-server", &["--library", "/a b.so"])
            .unwrap_err()
            .contains("space"));
        assert!(why("redis-server", &["--library", "/none.so"])
            .unwrap_err()
            .contains("/none.so"));
    }
}
