// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the scripts share: locks, checksums, commands in a guest root.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, ensure, Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::interrupt;

/// How often somebody else's lock is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Waits for a lock, by flock(2) of a file that is made if it is missing. Held until
/// it is dropped.
///
/// # Errors
/// The file cannot be made or locked; or the user wants us to stop.
pub fn lock(path: &Path) -> Result<Flock<File>> {
    let in_path = || format!("cannot lock {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(in_path)?;
    }
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(path)
        .with_context(in_path)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(errno).with_context(in_path),
        }
        if interrupt::requested() {
            return Err(interrupt::error());
        }
        thread::sleep(POLL);
    }
}

/// The first `digits` hexadecimal digits of a text's SHA-256.
///
/// # Errors
/// `sha256sum` does not work.
pub fn sha256(text: &str, digits: usize) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run sha256sum")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "sha256sum: {}", out.status);
    let sum = String::from_utf8(out.stdout)?;
    sum.get(..digits)
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("sha256sum says {sum:?}"))
}

/// A command in a guest root, or on this machine if `root` is `None`. `checkout` is the
/// current directory either way, before the root changes.
pub fn in_root(checkout: &Path, root: Option<&Path>, program: &str) -> Command {
    let mut command = match root {
        Some(root) => {
            let mut command = Command::new(checkout.join("scripts/in-root"));
            command.arg(root).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir(checkout);
    command
}

/// What a command prints, without the last line's end. Its errors are shown.
///
/// # Errors
/// It cannot be run, it fails, or what it prints is no text.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", name(command)))?;
    ensure!(out.status.success(), "{}: {}", name(command), out.status);
    Ok(String::from_utf8(out.stdout)?.trim_end().to_owned())
}

/// Runs a command whose output belongs to the messages: on standard error.
///
/// # Errors
/// It cannot be run, or it fails.
pub fn run_aside(command: &mut Command) -> Result<()> {
    run(command.stdout(io::stderr().as_fd().try_clone_to_owned()?))
}

/// Runs a command.
///
/// # Errors
/// It cannot be run, or it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", name(command)))?;
    ensure!(status.success(), "{}: {status}", name(command));
    Ok(())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_that_of_sha256sum() {
        let sum = sha256("abc\n", 8).unwrap();
        assert_eq!(sum, "edeaaff3");
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let path = std::env::temp_dir().join(format!("asyncfork-lock-{}", std::process::id()));
        let held = lock(&path).unwrap();
        let other = || {
            let file = File::open(&path).unwrap();
            Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()
        };
        assert!(!other());
        drop(held);
        assert!(other());
        fs::remove_file(&path).unwrap();
    }
}
