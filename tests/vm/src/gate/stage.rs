// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands on the host, each with its output in a log file.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use super::Gate;
use crate::cargo_test;
use crate::interrupt;
use crate::vm::last_lines;

/// A stage that runs longer says so this often.
const TICK: Duration = Duration::from_secs(30);
/// Lines of a failed stage's log that are shown at once, and in the summary.
const SHOWN_LINES: usize = 60;
const SUMMARY_LINES: usize = 3;

impl Gate<'_> {
    /// Runs a stage that counts as one test. Whether it passed.
    pub(super) fn stage(&mut self, name: &str, command: &str) -> Result<bool> {
        let (status, log) = self.execute(name, command)?;
        if status.success() {
            self.summary.passed += 1;
        } else {
            self.stage_failed(name, command, status, &log);
        }
        Ok(status.success())
    }

    /// Runs the workspace's tests; each of them counts.
    pub(super) fn cargo_test(&mut self) -> Result<()> {
        let command = "cargo test --workspace --no-fail-fast";
        let (status, log) = self.execute("cargo-test", command)?;
        let totals = cargo_test::totals(&log);
        println!(
            "    {} passed, {} failed, {} ignored",
            totals.passed,
            totals.failed.len(),
            totals.ignored
        );
        self.summary.passed += totals.passed;
        self.summary.skipped += totals.ignored;
        for name in &totals.failed {
            self.summary.fail(
                format!("cargo-test/{name}"),
                self.log_hint("cargo-test"),
                format!("cargo test --workspace {name}"),
            );
        }
        if !status.success() && totals.failed.is_empty() {
            // It did not even compile, or a test binary crashed.
            self.stage_failed("cargo-test", command, status, &log);
        } else if !status.success() {
            show_end(&log, SHOWN_LINES);
        }
        Ok(())
    }

    fn stage_failed(&mut self, name: &str, command: &str, status: ExitStatus, log: &str) {
        show_end(log, SHOWN_LINES);
        let end = last_lines(log, SUMMARY_LINES).join("\n");
        self.summary.fail(
            name,
            format!("{status}; {}\n{end}", self.log_hint(name)),
            command,
        );
    }

    fn log_hint(&self, name: &str) -> String {
        format!("log: {}", self.log_path(name).display())
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.log", name.replace(' ', "-")))
    }

    /// Runs a command with its output in a log file, showing the time it
    /// takes. Its status and output.
    fn execute(&self, name: &str, command: &str) -> Result<(ExitStatus, String)> {
        println!("==> {name}: {command}");
        let path = self.log_path(name);
        let log =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut words = command.split(' ');
        let program = words.next().context("a stage has no command")?;
        let mut child = Command::new(program)
            .args(words)
            .current_dir(self.root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let begin = Instant::now();
        let mut tick = TICK;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if interrupt::requested() {
                // Not reaped, so the group's number is still the child's.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
                child.wait()?;
                return Err(interrupt::error());
            }
            if begin.elapsed() > tick {
                println!("    ... {} s", tick.as_secs());
                tick += TICK;
            }
            thread::sleep(Duration::from_millis(50));
        };
        println!(
            "    {} ({} s)",
            if status.success() { "ok" } else { "FAILED" },
            begin.elapsed().as_secs()
        );
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        Ok((status, text))
    }
}

fn show_end(log: &str, count: usize) {
    for line in last_lines(log, count) {
        println!("    | {line}");
    }
}
