// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages in swap before and during a session.

use super::common::{while_plugged, Gate};
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::{Arena, Shape, Span, Want, CHUNK_PAGES};
use crate::procfs;
use crate::rng::Rng;
use crate::swap::Swap;
use crate::sys;
use crate::verdict::{Context, TestResult};
use crate::{claim, require};
use asyncfork_uapi::Hook;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Of a swapoff that goes round: far more than one round takes.
const MANY_ROUNDS_NS: usize = 200_000_000;

pub const TESTS: &[Test] = &[
    Test::new("pages_in_swap_at_the_fork_reach_both_sides", swapped_before).quick(),
    Test::new(
        "parked_pages_swapped_by_the_parent_before_the_child_runs_reach_both_sides",
        swapped_while_parked,
    ),
    Test::new(
        "pages_in_swap_zapped_by_the_parent_reach_the_child",
        zapped_by_parent,
    ),
    Test::new("swapoff_while_parked_loses_nothing", swapoff_while_parked).quick(),
    Test::new(
        "swapoff_finds_entries_that_only_the_child_has",
        swapoff_child_only,
    ),
    Test::new("reclaim_to_swap_beside_forks_loses_nothing", reclaim_racing),
];

/// Sends pages to swap and demands that nearly all are there.
pub(super) fn page_out(arena: &Arena, pages: std::ops::Range<usize>) -> TestResult {
    let span = arena.part(pages);
    for _ in 0..5 {
        span.advise(libc::MADV_PAGEOUT)?;
        if swapped(span)? >= span.pages() * 3 / 4 {
            return Ok(());
        }
    }
    require!(
        false,
        "only {} of {} pages could be swapped out",
        swapped(span)?,
        span.pages()
    );
    Ok(())
}

/// Pages of `span` in swap.
pub(super) fn swapped(span: Span) -> TestResult<usize> {
    Ok(procfs::pagemap(0, span)?
        .iter()
        .filter(|e| *e & procfs::SWAPPED != 0)
        .count())
}

/// An arena with a chunk all in swap, chunks half in swap, and chunks in memory.
fn half_swapped(rng: &mut Rng) -> TestResult<Arena> {
    let arena = Arena::new(rng, 16)?;
    page_out(&arena, 0..CHUNK_PAGES)?;
    for chunk in [2, 3, 6] {
        let first = chunk * CHUNK_PAGES + rng.below(200);
        page_out(&arena, first..first + 250)?;
    }
    Ok(arena)
}

fn swapped_before(ctx: &Ctx) -> TestResult<String> {
    let _swap = Swap::new()?;
    let mut rng = ctx.rng();
    let mut arena = half_swapped(&mut rng)?;
    // The child reads its pages in before and after the parent has changed them.
    let session = ctx.fork().start(|| arena.verify())?;
    for page in arena.shuffled(&mut rng) {
        if page % 2 == 0 {
            arena.write(page, 1);
        }
    }
    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .holds("chunks with swap entries were copied as mixed ones", |r| {
            r.chunks.mixed >= 4
        })?;
    Ok(ended.detail())
}

fn zapped_by_parent(ctx: &Ctx) -> TestResult<String> {
    let _swap = Swap::new()?;
    let mut arena = half_swapped(&mut ctx.rng())?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    arena.span().advise(libc::MADV_DONTNEED)?;
    arena.expect(0..arena.pages(), Want::Zero);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Zap, arena.chunks())?
        .holds("mixed chunks", |r| r.chunks.mixed >= 4)?;
    Ok(ended.detail())
}

/// MADV_PAGEOUT pulls, and leaves pages alone that the child has by then, too; their cgroup's reclaim does not.
fn swapped_while_parked(ctx: &Ctx) -> TestResult<String> {
    let _swap = Swap::new()?;
    let mut rng = ctx.rng();
    let group = ctx.cgroup.child("swapping")?;
    group.enter()?;
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut rng, 16)?;
    let mut out = 0;
    let ended = while_plugged(ctx, &plug, &mut arena, |arena| {
        arena.span().advise(libc::MADV_PAGEOUT)?;
        for _ in 0..20 {
            // EAGAIN: less than asked for could be reclaimed.
            let _ = group.set("memory.reclaim", "4M");
            out = swapped(arena.span())?;
            if out >= arena.pages() / 2 {
                break;
            }
        }
        require!(out > 0, "not one page could be swapped out");
        Ok(())
    })?;
    arena.fill(1);
    arena.verify().map_err(|v| v.at("parent, written"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, arena.chunks())?;
    Ok(format!("{out} pages in swap; {}", ended.detail()))
}

/// swapoff goes on until no entry is left. It finds none in parked chunks and pulls nothing: it goes round until somebody
/// else has pulled them.
fn swapoff_while_parked(ctx: &Ctx) -> TestResult<String> {
    let swap = Swap::new()?;
    let plug = Plug::new()?;
    let (board, gate) = (Board::new()?, Gate::new()?);
    let remover = ctx.helper(&board, "swapoff", || {
        gate.pass()?;
        swap.off().at("swapoff")
    })?;
    let arena = half_swapped(&mut ctx.rng())?;
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    let before = procfs::run_time(remover)?;
    gate.open(0)?;
    let busy = sys::poll_until(|| -> TestResult<Option<()>> {
        let rounds = procfs::run_time(remover)? - before >= MANY_ROUNDS_NS;
        Ok((rounds || ctx.control).then_some(()))
    })?;
    require!(busy.is_some(), "swapoff does not go round");
    session.expect_running()?;
    // Looking pulls.
    swapped(arena.span())?;
    session.expect_child_held()?;
    drop(hold);
    sys::wait(remover)?;
    board.collect(&["swapoff"])?;
    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    let left = swapped(arena.span())?;
    claim!(left == 0, "{left} pages are still in swap after swapoff");
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, arena.chunks())?
        .holds("mixed chunks", |r| r.chunks.mixed >= 4)?;
    Ok(ended.detail())
}

/// The parent gives its own entries up; the child's are found only if the child is on the kernel's list of swapping mms.
fn swapoff_child_only(ctx: &Ctx) -> TestResult<String> {
    let swap = Swap::new()?;
    let mut rng = ctx.rng();
    let gate = Gate::new()?;
    let mut arena = half_swapped(&mut rng)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        gate.pass()?;
        arena.verify()
    })?;
    session.expect_running()?;
    arena.span().unmap()?;
    arena.unmapped(0..arena.pages());
    drop(hold);
    swap.off().at("swapoff")?;
    gate.open(0)?;
    let ended = session.finish()?;
    ended
        .whole(8)?
        .pulled(Hook::Unmap, 8)?
        .holds("mixed chunks", |r| r.chunks.mixed >= 4)?;
    Ok(ended.detail())
}

/// Parent and children live in a cgroup that reclaims to swap again and again.
fn reclaim_racing(ctx: &Ctx) -> TestResult<String> {
    let _swap = Swap::new()?;
    let mut rng = ctx.rng();
    let group = ctx.cgroup.child("swapping")?;
    group.enter()?;
    let mut arena = Arena::shaped(&mut rng, Shape::Whole(16))?;
    let (board, stop) = (Board::new()?, ctx.scratch.join("stop"));
    let reclaimer = ctx.helper(&board, "reclaimer", || {
        // Not in the group it squeezes.
        ctx.cgroup.child("main")?.enter()?;
        while !stop.exists() {
            // EAGAIN: less than asked for could be reclaimed.
            let _ = group.set("memory.reclaim", "4M");
        }
        Ok(())
    })?;
    let mut mixed = 0;
    let result = (0..5).try_for_each(|round| -> TestResult {
        // Some are out at the fork, others come and go meanwhile.
        let _ = group.set("memory.reclaim", "8M");
        let session = ctx.fork().start(|| arena.verify())?;
        let range = rng.range(arena.pages(), 1500);
        arena.write_range(range, round + 1);
        let ended = session.finish()?;
        arena.verify().map_err(|v| v.at("parent"))?;
        mixed += ended
            .parked(1)?
            .done()?
            .report()
            .map_or(0, |r| r.chunks.mixed);
        Ok(())
    });
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&stop)?
        .write_all_at(b"x", 0)?;
    sys::wait(reclaimer)?;
    result?;
    board.collect(&["reclaimer"])?;
    require!(
        mixed > 0 || ctx.control,
        "no chunk held a swap entry when it was pulled"
    );
    Ok(format!("5 forks, {mixed} chunks with swap entries"))
}
