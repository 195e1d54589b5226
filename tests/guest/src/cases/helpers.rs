// SPDX-License-Identifier: MIT OR Apache-2.0
//! Helper threads that copy beside the child.

use super::common::{rounds, Linger, LINGER_MS};
use super::writes::overwrite_random;
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::{Arena, Shape};
use crate::module;
use crate::sys;
use crate::verdict::TestResult;
use crate::{claim, require};
use asyncfork_uapi::{Hook, State};

pub const TESTS: &[Test] = &[
    Test::new("one_helper_copies_while_the_child_cannot_run", |c| {
        alone(c, 1)
    })
    .module()
    .quick(),
    Test::new("two_helpers_copy_while_the_child_cannot_run", |c| {
        alone(c, 2)
    })
    .module(),
    Test::new(
        "image_of_a_child_that_never_runs_is_completed_after_a_while",
        timeout,
    )
    .module(),
    Test::new(
        "memory_parked_by_a_fork_that_lasts_is_pulled_meanwhile",
        lasting,
    )
    .faults(),
    Test::new("helpers_child_and_writing_parent_disturb_nobody", together).quick(),
    Test::new(
        "child_killed_beside_helpers_costs_the_parent_nothing",
        killed,
    ),
    Test::new("as_many_helpers_as_the_module_allows_disturb_nobody", most),
];

/// The helpers get to work although the child cannot run; what they leave, the parent pulls.
fn alone(ctx: &Ctx, helpers: u32) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 32)?;
    let hold = plug.hold()?;
    let session = ctx.fork().helpers(helpers).start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    let started = sys::poll_until(|| -> TestResult<Option<()>> {
        Ok(session
            .report()?
            .is_none_or(|r| r.chunks.by_helper > 0)
            .then_some(()))
    })?;
    claim!(started.is_some(), "no helper pulls anything");
    arena.fill(1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    ended
        .whole(16)?
        .pulled(Hook::Helper, 1)?
        .holds("the helpers copied all that the parent did not", |r| {
            r.chunks.by_helper + r.chunks.by_parent == r.chunks.parked
        })?
        .holds("as many helpers as asked for", |r| r.helpers == helpers)?;
    Ok(ended.detail())
}

/// The module does not keep memory parked for ever.
fn timeout(ctx: &Ctx) -> TestResult<String> {
    let after = ctx.module.get("pull_after")?;
    ctx.module.set("pull_after", 1)?;
    let plug = Plug::new()?;
    let arena = Arena::new(&mut ctx.rng(), 16)?;
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify());
    ctx.module.set("pull_after", after)?;
    let session = session?;
    session.expect_async()?;
    hold.step_aside()?;
    let done = sys::poll_until(|| -> TestResult<Option<()>> {
        Ok(session
            .report()?
            .is_none_or(|r| r.state() != State::Running)
            .then_some(()))
    })?;
    claim!(
        done.is_some(),
        "the session goes on while the child stands still"
    );
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    ended
        .whole(8)?
        .pulled(Hook::Helper, 8)?
        .holds("nobody else has pulled", |r| {
            r.chunks.by_helper == r.chunks.parked
        })?;
    Ok(ended.detail())
}

/// What comes after dup_mmap() in a fork can be made to last (the write of a pidfd, say): nothing stays parked for it. This one
/// lasts until somebody sees that nothing is.
fn lasting(ctx: &Ctx) -> TestResult<String> {
    let after = ctx.module.get("pull_after")?;
    let board = Board::new()?;
    let before = ctx.stats()?;
    let watcher = ctx.helper(&board, "watcher", || {
        let pulled = sys::poll_until(|| -> TestResult<Option<()>> {
            let now = ctx.stats()?;
            let parked = now.chunks.parked - before.chunks.parked;
            Ok(
                (parked >= 8 && now.chunks.by_helper - before.chunks.by_helper == parked)
                    .then_some(()),
            )
        });
        ctx.module.set("fault_linger_pid", 0)?;
        require!(pulled?.is_some(), "not all is pulled");
        Ok(())
    })?;
    let arena = Arena::new(&mut ctx.rng(), 16)?;
    ctx.module.set("pull_after", 1)?;
    let linger = Linger::new(ctx, sys::pid(), "af_probe_fork", LINGER_MS)?;
    // The watcher has another processor.
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify());
    drop(hold);
    drop(linger);
    ctx.module.set("pull_after", after)?;
    let ended = session?.finish()?;
    arena.verify()?;
    ended
        .whole(8)?
        .holds("a worker has pulled all before the fork was over", |r| {
            r.chunks.by_helper == r.chunks.parked
        })?;
    sys::wait(watcher)?;
    board.collect(&["watcher"])?;
    Ok(ended.detail())
}

/// Each of the three must have pulled something, if not in the same session.
fn together(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let (mut by_helper, mut by_child, mut by_parent) = (0, 0, 0);
    let (rounds, _) = rounds(ctx, 8, |_| {
        let helpers = 1 + rng.below(2) as u32;
        let session = ctx.fork().helpers(helpers).start(|| arena.verify())?;
        overwrite_random(&mut arena, &mut rng)?;
        let ended = session.finish()?;
        arena.verify()?;
        arena.fill(0);
        let report = ended.whole(8)?.report();
        by_helper += report.map_or(0, |r| r.chunks.by_helper);
        by_child += report.map_or(0, |r| r.chunks.by_child);
        by_parent += report.map_or(0, |r| r.chunks.by_parent);
        Ok(by_helper.min(by_child).min(by_parent))
    })?;
    Ok(format!(
        "{rounds} forks, helpers pulled {by_helper} chunks, children {by_child}, the parent {by_parent}"
    ))
}

fn killed(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let mut aborted = 0;
    // Children killed while chunks were parked, beside helpers that had pulled some.
    let (rounds, beside) = rounds(ctx, 12, |round| {
        let session = ctx.fork().helpers(2).start(|| arena.verify())?;
        super::common::pause(&mut rng);
        sys::kill(session.pid, libc::SIGKILL)?;
        let range = rng.range(arena.pages(), 900);
        arena.write_range(range, round + 1);
        let ended = session.finish_killed()?;
        arena.verify()?;
        let Some(report) = ended.parked(8)?.report() else {
            return Ok(0);
        };
        aborted += u32::from(report.chunks.reattached > 0);
        Ok(u64::from(
            report.chunks.reattached > 0 && report.chunks.by_helper > 0,
        ))
    })?;
    Ok(format!(
        "{rounds} rounds, {aborted} aborted, {beside} of them beside helpers that had pulled"
    ))
}

fn most(ctx: &Ctx) -> TestResult<String> {
    let max = if ctx.control {
        0
    } else {
        module::open()?
            .version()
            .map_err(module::device_error)?
            .max_helpers
    };
    let mut rng = ctx.rng();
    let mut arena = Arena::shaped(&mut rng, Shape::Whole(32))?;
    let mut last = String::new();
    let (_, by_helper) = rounds(ctx, 1, |_| {
        let session = ctx.fork().helpers(max).start(|| arena.verify())?;
        overwrite_random(&mut arena, &mut rng)?;
        let ended = session.finish()?;
        arena.verify()?;
        arena.fill(0);
        let report = ended
            .whole(16)?
            .holds("as many helpers as asked for", |r| r.helpers == max)?
            .report();
        last = ended.detail();
        Ok(report.map_or(0, |r| r.chunks.by_helper))
    })?;
    Ok(format!("{max} helpers, {by_helper} chunks; {last}"))
}
