// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the program runs itself for.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cli::MeasureArgs;
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::{progress, sample};

/// One measurement of fork().
///
/// # Errors
/// See [`sample::measure`].
pub fn measure_fork(ctx: &mut Ctx<'_>, args: &MeasureArgs) -> Result<Exit> {
    let samples = sample::measure(&ctx.host, &ctx.device, args)?;
    ctx.out.line(serde_json::to_string(&samples)?)?;
    Ok(Exit::Done)
}

/// What the self-test found.
#[derive(Debug, Serialize, Deserialize)]
pub struct SelfTest {
    /// Every hook that was tried has fired.
    pub passed: bool,
    /// A line for each hook, and the verdict.
    pub lines: Vec<String>,
}

/// The self-test, in a process of its own, since it forks.
///
/// # Errors
/// It cannot be made.
pub fn self_test(ctx: &mut Ctx<'_>) -> Result<Exit> {
    sample::name_process();
    let path = ctx.host.path(&ctx.device);
    let path = CString::new(path.as_os_str().as_bytes()).context("a path has no NUL byte")?;
    let report = asyncfork_selftest::run(&path).map_err(|e| exit::cannot_tell(e.to_string()))?;
    let found = SelfTest {
        passed: report.passed(),
        lines: report.to_string().lines().map(str::to_owned).collect(),
    };
    ctx.out.line(serde_json::to_string(&found)?)?;
    Ok(Exit::Done)
}

/// Runs the self-test in another process.
///
/// # Errors
/// It cannot be made.
pub fn run_self_test(ctx: &Ctx<'_>) -> Result<SelfTest> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("self-test")
        .arg("--device")
        .arg(&ctx.device)
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null());
    let output = progress::during("running the self-test", || command.output())
        .context("cannot start the self-test")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(exit::cannot_tell(
            said.trim().trim_start_matches("asyncfork: "),
        ));
    }
    serde_json::from_slice(&output.stdout).context("what the self-test printed")
}
