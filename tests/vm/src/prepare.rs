// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has to be there before a VM runs programs of ours, and the boot itself.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::checkout::Checkout;
use crate::interrupt;
use crate::vm::{Streams, VmOptions};

/// Directory of the programs that run in the guest, relative to the repository root.
pub const PROGRAMS: &str = "target/release";
/// libasyncfork.so, relative to the repository root; [`library`] makes it.
pub const LIBRARY: &str = "target/release/libasyncfork.so";

/// Where cargo builds, if not in target/: the guest sees the checkout only.
const TARGET: &str = "CARGO_TARGET_DIR";
/// How often a step that is under way is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Builds packages for the guest, into [`PROGRAMS`].
///
/// # Errors
/// See [`step`].
pub fn programs(root: &Path, packages: &[&str]) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release"])
        .current_dir(root)
        .env_remove(TARGET);
    for package in packages {
        cargo.args(["-p", package]);
    }
    step(&mut cargo)
}

/// Builds and checks [`LIBRARY`].
///
/// # Errors
/// See [`step`].
pub fn library(root: &Path) -> Result<()> {
    // It prints the path.
    step(
        script(root, "library")
            .env_remove(TARGET)
            .stdout(Stdio::null()),
    )
}

/// Builds the module for the kernel of a checkout, or the one with fault injection. Its path,
/// relative to the repository root.
///
/// # Errors
/// See [`step`].
pub fn module(checkout: &Checkout, faults: bool) -> Result<String> {
    let mut kmod = script(&checkout.root, "kmod");
    kmod.args(["--kernel", &checkout.kernel.name]);
    if faults {
        kmod.arg("--faults");
    }
    step(&mut kmod)?;
    Ok(match faults {
        true => checkout.faults_module(),
        false => checkout.module(),
    })
}

/// Runs a command in a VM, shows what it prints and says what went wrong, if anything did. The
/// exit status: the command's, or one of the `EXIT_` codes of [`crate::vm`].
///
/// # Errors
/// Those of [`VmOptions::run`].
pub fn boot(
    checkout: &Checkout,
    vm: &VmOptions,
    command: &[String],
    streams: Streams,
) -> Result<u8> {
    let report = vm.run(checkout, command, streams)?;
    report.explain("");
    Ok(report.exit_code())
}

/// A script of the repository, to be run in its root.
fn script(root: &Path, name: &str) -> Command {
    let mut command = Command::new(root.join("scripts").join(name));
    command.current_dir(root);
    command
}

/// Runs a command to its end.
///
/// # Errors
/// Those of [`wait`], or it fails.
pub fn step(command: &mut Command) -> Result<()> {
    let status = wait(command)?;
    ensure!(status.success(), "{}: {status}", line(command));
    Ok(())
}

/// Waits for a command to end.
///
/// # Errors
/// It cannot be run, or somebody wants us to stop: then it is ended, too.
pub fn wait(command: &mut Command) -> Result<ExitStatus> {
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return match interrupt::requested() {
                true => Err(interrupt::error()),
                false => Ok(status),
            };
        }
        if interrupt::requested() && !asked {
            asked = true;
            // Ctrl-C has reached it, too, SIGTERM has not. Not reaped, so the number is its own.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        }
        thread::sleep(POLL);
    }
}

/// A command as it is typed.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_is_named_with_its_status() {
        assert!(step(&mut Command::new("true")).is_ok());
        let error = step(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh -c exit 3: exit status: 3");
        let error = step(&mut Command::new("/no/such program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run /no/such program");
    }
}
