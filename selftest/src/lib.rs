// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functional self-test: do the hooks of the module fire on the running kernel?
//!
//! For each hook a helper process with a few parked chunks does the one operation that must pull a chunk, while its child is
//! kept from copying. The session's own report says who pulled; parent and child compare every byte. What other processes
//! fork at the same time does not matter. No privilege is needed beyond access to the device.

mod judge;
mod memory;
mod probe;
mod report;
mod sys;

pub use report::{Finding, Report};

use asyncfork_uapi::{Device, Hook, Reason};
use judge::Judgement;
use std::ffi::CStr;
use std::io;
use std::time::Instant;

/// How often a probe is made in which the child was faster than the parent.
const ATTEMPTS: u32 = 30;

/// Exit code when every exercised hook fired.
pub const PASSED: u8 = 0;
/// Exit code when a hook did not fire, or memory was wrong.
pub const FAILED: u8 = 1;
/// Exit code when the test could not be made.
pub const CANNOT_RUN: u8 = 2;

/// Why the self-test cannot be made here, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device, no permission, another ABI.
    #[error("{path} {source}")]
    Device {
        /// The device's path.
        path: String,
        /// What is wrong with it.
        source: asyncfork_uapi::Error,
    },
    /// The module does not fork asynchronously now.
    #[error("forks are stock forks: {}{}", .0.explain(), stock_hint(*.0))]
    Stock(Reason),
    /// A system call failed that has nothing to do with the module.
    #[error("{call}: {source}{}", system_hint(.source))]
    System {
        /// The call.
        call: String,
        /// Its error.
        source: io::Error,
    },
}

fn stock_hint(reason: Reason) -> &'static str {
    match reason {
        Reason::Disabled => "; as root: echo Y > /sys/module/asyncfork/parameters/enabled",
        Reason::SwitchedOff => "; keep that log, then unload the module",
        Reason::NoMemory => "; free memory and try again",
        _ => "",
    }
}

fn system_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN) => "; free memory, or raise the limits of this process",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files",
        Some(libc::EPERM | libc::EACCES) => "; try outside of the sandbox that forbids it",
        _ => "",
    }
}

/// Exit code for a result of [`run`]: [`PASSED`], [`FAILED`] or [`CANNOT_RUN`].
pub fn exit_code(result: &Result<Report, Error>) -> u8 {
    match result {
        Ok(report) if report.passed() => PASSED,
        Ok(_) => FAILED,
        Err(_) => CANNOT_RUN,
    }
}

/// Exercises every kind of hook once, but for page migration and core dumps, through the device at `path`.
///
/// The caller's memory is only forked the ordinary way, and its children are left alone. A caller with other threads should
/// see to it that they do not fork meanwhile: a process that inherits the self-test's pipe keeps it waiting.
///
/// # Errors
/// The test cannot be made. That a hook is missing or memory wrong is no error, see [`Report::passed`].
pub fn run(path: &CStr) -> Result<Report, Error> {
    let start = Instant::now();
    let mut hooks: Vec<(Hook, Finding)> = Vec::new();
    let max_helpers = open(path)?
        .version()
        .map_err(|e| device_error(path, e))?
        .max_helpers;
    let (mut stuck, mut begun) = (false, false);
    for &hook in Hook::ALL {
        let finding = match probe::Op::of(hook, max_helpers) {
            Err(why) => Finding::NotExercised(why.into()),
            Ok(_) if stuck => Finding::Inconclusive("not tried: an earlier probe is stuck".into()),
            Ok(op) => match exercise(path, hook, op, &mut stuck) {
                // A module that has switched itself off meanwhile must not hide why.
                Err(e) if begun => Finding::Inconclusive(format!("not tried: {e}")),
                result => result?,
            },
        };
        begun |= !matches!(finding, Finding::NotExercised(_));
        hooks.push((hook, finding));
    }
    let stats = open(path)?.stats().map_err(|e| device_error(path, e))?;
    Ok(Report {
        hooks,
        switched_off: stats.switched_off != 0,
        elapsed: start.elapsed(),
    })
}

/// Expects pulls by hooks that the operation does not reach: what [`run`] says of a missing hook.
///
/// For tests of the self-test: every finding must be [`Finding::NotFired`].
///
/// # Errors
/// As [`run`].
pub fn control(path: &CStr) -> Result<Vec<Finding>, Error> {
    [
        (Hook::Fault, probe::Op::Nothing),
        (Hook::Zap, probe::Op::Write),
        (Hook::Walk, probe::Op::Fork),
    ]
    .into_iter()
    .map(|(hook, op)| exercise(path, hook, op, &mut false))
    .collect()
}

/// Tries `op` until it meets a parked chunk, and looks for a pull by `hook`.
fn exercise(path: &CStr, hook: Hook, op: probe::Op, stuck: &mut bool) -> Result<Finding, Error> {
    for attempt in 1..=ATTEMPTS {
        let evidence = probe::attempt(&open(path)?, op)?;
        match judge::judge(hook, &evidence) {
            Judgement::Fired(chunks) => {
                return Ok(Finding::Fired {
                    chunks,
                    attempts: attempt,
                })
            }
            Judgement::Stock(reason) => return Err(Error::Stock(reason)),
            Judgement::NotFired(why) => return Ok(Finding::NotFired(why)),
            Judgement::Wrong(why) => return Ok(Finding::Wrong(why)),
            Judgement::NotExercised(why) => return Ok(Finding::NotExercised(why)),
            Judgement::Stuck => {
                *stuck = true;
                return Ok(Finding::Wrong(format!(
                    "the processes did not end within {} s; see the kernel log",
                    probe::PATIENCE.as_secs()
                )));
            }
            Judgement::TooLate => {}
        }
    }
    Ok(if hook == Hook::Helper {
        // Of use for speed alone, and nothing makes the child wait for it.
        Finding::NotExercised(format!(
            "in {ATTEMPTS} attempts the child was faster than the helper thread"
        ))
    } else {
        Finding::Inconclusive(format!(
            "in {ATTEMPTS} attempts others pulled first: the machine is very busy, or there is no hook"
        ))
    })
}

fn device_error(path: &CStr, source: asyncfork_uapi::Error) -> Error {
    Error::Device {
        path: path.to_string_lossy().into_owned(),
        source,
    }
}

/// The device, if it speaks our ABI.
fn open(path: &CStr) -> Result<Device, Error> {
    let device = Device::open_at(path).map_err(|e| device_error(path, e))?;
    device.check_abi().map_err(|e| device_error(path, e))?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_it_cannot_run_and_says_what_to_do() {
        let result = run(c"/nonexistent/asyncfork");
        assert_eq!(exit_code(&result), CANNOT_RUN);
        let text = result.unwrap_err().to_string();
        assert!(text.contains("/nonexistent/asyncfork"), "{text}");
        assert!(text.contains("load the module"), "{text}");
    }

    #[test]
    fn another_device_is_no_asyncfork() {
        let result = run(c"/dev/null");
        assert_eq!(exit_code(&result), CANNOT_RUN);
        let text = result.unwrap_err().to_string();
        assert!(text.contains("not the asyncfork device"), "{text}");
    }

    #[test]
    fn a_disabled_module_says_how_to_enable_it() {
        let text = Error::Stock(Reason::Disabled).to_string();
        assert!(
            text.contains("enabled=0") && text.contains("echo Y >"),
            "{text}"
        );
    }
}
