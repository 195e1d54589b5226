// SPDX-License-Identifier: MIT OR Apache-2.0
//! libasyncfork.so end to end: a program that knows nothing of the module forks under LD_PRELOAD.

use super::writes::overwrite_random;
use super::Test;
use crate::board::Board;
use crate::claim;
use crate::ctx::Ctx;
use crate::mem::{probe, Arena};
use crate::module::device_error;
use crate::rng::Rng;
use crate::sys::{self, Exit};
use crate::verdict::{TestResult, Verdict};
use asyncfork_uapi::{BorrowedFd, By, Reason};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};

pub const TESTS: &[Test] = &[
    Test::new("library_makes_forks_of_a_large_process_asynchronous", large)
        .module()
        .quick(),
    Test::new("library_leaves_forks_of_a_small_process_alone", small).module(),
    Test::new("library_switched_off_leaves_all_forks_alone", off).module(),
    Test::new(
        "library_set_to_off_or_require_keeps_enrolment_of_its_cgroup_away",
        enrolled,
    )
    .module()
    .quick(),
    Test::new("library_asks_for_the_helpers_it_is_told_to", helpers).module(),
    Test::new("library_falls_back_when_the_module_is_disabled", disabled).module(),
    Test::new(
        "library_in_require_mode_fails_the_fork_when_the_module_is_disabled",
        require_mode,
    )
    .module(),
    Test::new("library_falls_back_without_the_module", no_module).module(),
];

/// A program that forks: see [`forker`].
#[derive(clap::Args)]
pub struct ForkerArgs {
    /// Size of the memory to verify, in MiB
    #[arg(long)]
    mib: usize,
    /// How many times to fork
    #[arg(long)]
    forks: u32,
    /// Seed of the contents
    #[arg(long)]
    seed: u64,
}

/// Forks with plain fork(), writes to its memory meanwhile, and verifies both sides. `false`: a fork failed, and errno was
/// ENOSYS.
pub fn forker(args: &ForkerArgs) -> anyhow::Result<bool> {
    probe::install()?;
    let mut rng = Rng::new(args.seed, "forker");
    let mut arena = Arena::new(&mut rng, args.mib)?;
    for round in 0..args.forks {
        let board = Board::new()?;
        // SAFETY: the child runs board.run() only and never returns.
        let pid = unsafe { libc::fork() };
        if pid < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
            return Ok(false);
        }
        let pid = sys::cvt(pid)?;
        if pid == 0 {
            board.run("child", || arena.verify());
        }
        overwrite_random(&mut arena, &mut rng)?;
        board.collect(&["child"])?;
        anyhow::ensure!(sys::wait(pid)? == Exit::Code(0), "child {round} failed");
        arena.verify()?;
        arena.fill(0);
    }
    Ok(true)
}

const FORKS: u32 = 3;

/// Runs the forker under the library.
fn run(ctx: &Ctx, mib: usize, env: &[(&str, &str)]) -> TestResult<Output> {
    let library = ctx.library()?;
    let output = Command::new(std::env::current_exe()?)
        .args([
            "forker",
            "--mib",
            &mib.to_string(),
            "--forks",
            &FORKS.to_string(),
            "--seed",
            &ctx.seed.to_string(),
        ])
        .env("LD_PRELOAD", library)
        .envs(env.iter().copied())
        .output()?;
    Ok(output)
}

fn expect_success(output: &Output) -> TestResult {
    claim!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What a run of the forker added to the statistics: asynchronous and stock forks.
fn counted(ctx: &Ctx, mib: usize, env: &[(&str, &str)]) -> TestResult<(u64, u64)> {
    let before = ctx.stats()?;
    expect_success(&run(ctx, mib, env)?)?;
    let after = ctx.stats()?;
    Ok((after.r#async - before.r#async, after.stock - before.stock))
}

/// Demands that the library has said `words` so many times: it was there.
fn expect_said(output: &Output, words: &str, times: u32) -> TestResult {
    let said = String::from_utf8_lossy(&output.stderr);
    let got = said.matches(words).count();
    claim!(
        got == times as usize,
        "{words:?} {got} times, want {times}: {said}"
    );
    Ok(())
}

/// Demands that nobody is armed in a run of the forker, for a reason that the library gives so many times.
fn expect_unarmed(ctx: &Ctx, env: &[(&str, &str)], reason: &str, times: u32) -> TestResult {
    let env = [env, &[("ASYNCFORK_LOG", "debug")]].concat();
    let before = ctx.stats()?;
    let output = run(ctx, 16, &env)?;
    expect_success(&output)?;
    let armed = ctx.stats()?.armed - before.armed;
    claim!(armed == 0, "armed {armed} times");
    expect_said(&output, reason, times)
}

fn large(ctx: &Ctx) -> TestResult<String> {
    let got = counted(ctx, 80, &[])?;
    claim!(
        got == (u64::from(FORKS), 0),
        "{} async and {} stock forks, want {FORKS} async",
        got.0,
        got.1
    );
    let got = counted(ctx, 16, &[("ASYNCFORK_MIN_RSS", "8M")])?;
    claim!(
        got == (u64::from(FORKS), 0),
        "with a lower threshold: {} async, {} stock",
        got.0,
        got.1
    );
    Ok(format!("{FORKS} async forks, twice"))
}

fn small(ctx: &Ctx) -> TestResult<String> {
    expect_unarmed(ctx, &[], "(ASYNCFORK_MIN_RSS)", FORKS)?;
    Ok("none armed".into())
}

fn off(ctx: &Ctx) -> TestResult<String> {
    let env = [("ASYNCFORK", "off"), ("ASYNCFORK_MIN_RSS", "8M")];
    expect_unarmed(ctx, &env, "idle: ASYNCFORK=off", 1)?;
    Ok("none armed".into())
}

/// Forks that the library does not arm: the cgroup's entry counts, unless the settings say otherwise.
fn enrolled(ctx: &Ctx) -> TestResult<String> {
    let device = crate::module::open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let dir = File::open(group.path())?;
    // SAFETY: it is open as long as the result lives.
    let dir = unsafe { BorrowedFd::borrow_raw(dir.as_raw_fd()) };
    device.enroll(dir, 0, 0).map_err(device_error)?;
    for (mode, want) in [
        ("auto", (FORKS, 0)),
        ("off", (0, FORKS)),
        ("require", (0, FORKS)),
    ] {
        let before = ctx.stats()?;
        let board = Board::new()?;
        let pid = ctx.helper(&board, "member", || {
            group.enter()?;
            // Too small for the library.
            expect_success(&run(ctx, 16, &[("ASYNCFORK", mode)])?)
        })?;
        sys::wait(pid)?;
        board.collect(&["member"])?;
        let after = ctx.stats()?;
        let got = (
            after.async_how(By::Enrolled) - before.async_how(By::Enrolled),
            after.stock_by(Reason::Library) - before.stock_by(Reason::Library),
        );
        claim!(
            got == (want.0.into(), want.1.into()) && after.armed == before.armed,
            "{mode}: {} async forks and {} stock, {} armed; want {want:?}",
            got.0,
            got.1,
            after.armed - before.armed
        );
    }
    Ok("auto served, off and require not".into())
}

fn helpers(ctx: &Ctx) -> TestResult<String> {
    let before = ctx.stats()?;
    let got = counted(
        ctx,
        16,
        &[("ASYNCFORK_THREADS", "2"), ("ASYNCFORK_MIN_RSS", "8M")],
    )?;
    claim!(
        got.0 == u64::from(FORKS),
        "{} async forks, want {FORKS}",
        got.0
    );
    let device = crate::module::open()?;
    let recent = crate::module::recent(&device)?;
    let asked: Vec<u32> = recent
        .iter()
        .filter(|r| r.id != 0)
        .take(FORKS as usize)
        .map(|r| r.helpers)
        .collect();
    claim!(
        asked == vec![2; FORKS as usize],
        "helpers of the last sessions: {asked:?}"
    );
    Ok(format!(
        "{} chunks by helpers",
        ctx.stats()?.chunks.by_helper - before.chunks.by_helper
    ))
}

fn disabled(ctx: &Ctx) -> TestResult<String> {
    ctx.module.set("enabled", 0)?;
    let before = ctx.stats()?.stock_by(Reason::Disabled);
    let got = counted(ctx, 16, &[("ASYNCFORK_MIN_RSS", "8M")])?;
    let reason = ctx.stats()?.stock_by(Reason::Disabled) - before;
    claim!(
        got == (0, reason) && reason == u64::from(FORKS),
        "{} async and {} stock forks, {reason} of them disabled",
        got.0,
        got.1
    );
    Ok(format!("{reason} stock forks"))
}

fn require_mode(ctx: &Ctx) -> TestResult<String> {
    let env = [("ASYNCFORK", "require"), ("ASYNCFORK_MIN_RSS", "8M")];
    let got = counted(ctx, 16, &env)?;
    claim!(
        got.0 == u64::from(FORKS),
        "{} async forks, want {FORKS}",
        got.0
    );
    ctx.module.set("enabled", 0)?;
    let output = run(ctx, 16, &env)?;
    claim!(
        output.status.code() == Some(1),
        "{}: want a fork that fails with ENOSYS",
        output.status
    );
    Ok("ENOSYS".into())
}

fn no_module(ctx: &Ctx) -> TestResult<String> {
    ctx.module.unload()?;
    let result = run(ctx, 16, &[("ASYNCFORK_MIN_RSS", "8M")]);
    ctx.module
        .load("")
        .map_err(|e| Verdict::Broken(format!("load again: {e}")))?;
    let output = result?;
    expect_success(&output)?;
    expect_said(&output, "cannot be opened: ENOENT", 1)?;
    Ok(format!("{FORKS} stock forks"))
}
