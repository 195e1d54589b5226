// SPDX-License-Identifier: MIT OR Apache-2.0
//! madvise on parked memory.

use super::common::{while_held, Gate};
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Plug;
use crate::mem::{Arena, Want, CHUNK_PAGES};
use crate::procfs;
use crate::rng::Rng;
use crate::sys;
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, skip_unless};
use asyncfork_uapi::Hook;
use std::ops::Range;

pub const TESTS: &[Test] = &[
    Test::held(
        "madv_dontneed_of_all_parked_memory_stays_zero_and_leaves_the_child_its_image",
        Hook::Zap,
        dontneed,
    )
    .quick(),
    Test::held_some(
        "madv_dontneed_of_parts_of_parked_memory_leaves_the_child_its_image",
        Hook::Zap,
        dontneed_parts,
    ),
    Test::held_some(
        "madv_dontneed_locked_of_parked_memory_leaves_the_child_its_image",
        Hook::Zap,
        dontneed_locked,
    ),
    Test::held(
        "madv_free_of_parked_memory_leaves_the_child_its_image",
        Hook::Walk,
        free,
    )
    .quick(),
    Test::held("madv_cold_of_parked_memory_loses_nothing", Hook::Walk, cold),
    Test::held(
        "madv_pageout_of_parked_memory_loses_nothing",
        Hook::Walk,
        pageout,
    ),
    Test::held(
        "madv_willneed_of_parked_memory_loses_nothing",
        Hook::Walk,
        willneed,
    ),
    Test::held(
        "madv_populate_write_of_parked_memory_loses_nothing",
        Hook::Fault,
        populate_write,
    ),
    Test::held(
        "madv_populate_read_of_parked_memory_loses_nothing",
        Hook::Fault,
        populate_read,
    ),
    Test::racing(
        "madv_dontneed_beside_a_copying_child_disturbs_nobody",
        Hook::Zap,
        dontneed,
    ),
    Test::racing(
        "madv_dontneed_of_parts_beside_a_copying_child_disturbs_nobody",
        Hook::Zap,
        dontneed_parts,
    ),
    Test::racing(
        "madv_free_beside_a_copying_child_disturbs_nobody",
        Hook::Walk,
        free,
    ),
    Test::racing(
        "madv_cold_and_pageout_beside_a_copying_child_disturb_nobody",
        Hook::Walk,
        cold_and_pageout,
    ),
    Test::partial(
        "madv_dontneed_of_all_parked_memory_park_partial",
        Hook::Zap,
        dontneed,
    ),
    Test::partial("madv_free_of_parked_memory_park_partial", Hook::Walk, free),
    Test::new(
        "process_madvise_from_outside_on_parked_memory_loses_nothing",
        process_madvise,
    ),
    Test::held_some(
        "guard_pages_on_parked_memory_fault_and_leave_the_child_its_image",
        Hook::Walk,
        guard,
    )
    .quick(),
    Test::racing(
        "guard_pages_beside_a_copying_child_disturb_nobody",
        Hook::Walk,
        guard_and_back,
    ),
    Test::new(
        "guard_pages_removed_from_parked_memory_are_zero_and_stay_in_the_child",
        guard_removed,
    ),
    Test::new(
        "page_tables_emptied_by_madv_dontneed_while_parked_are_freed",
        tables_freed,
    ),
];

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

fn dontneed(arena: &mut Arena, _: &mut Rng) -> TestResult {
    for piece in arena.pieces() {
        arena.part(piece.clone()).advise(libc::MADV_DONTNEED)?;
        arena.expect(piece, Want::Zero);
    }
    // A chunk's old contents must not come back with its page table: held() verifies again after the session.
    arena.verify()
}

fn dontneed_parts(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for gen in 1..12 {
        let range = arena.some_range(rng, CHUNK_PAGES);
        arena.part(range.clone()).advise(libc::MADV_DONTNEED)?;
        arena.expect(range.clone(), Want::Zero);
        arena.write(range.start, gen);
    }
    Ok(())
}

fn dontneed_locked(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    const MADV_DONTNEED_LOCKED: i32 = 24;
    let range = arena.some_range(rng, 3 * CHUNK_PAGES);
    arena.part(range.clone()).advise(MADV_DONTNEED_LOCKED)?;
    arena.expect(range, Want::Zero);
    Ok(())
}

fn free(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for piece in arena.pieces() {
        arena.part(piece.clone()).advise(libc::MADV_FREE)?;
        for page in piece {
            let key = arena.key(page, 0);
            arena.expect(page..page + 1, Want::KeyOrZero(key));
        }
    }
    // A store takes the advice back.
    for _ in 0..300 {
        let page = arena.some_range(rng, 1).start;
        arena.write(page, 1);
    }
    Ok(())
}

fn advise_all(arena: &Arena, advice: i32) -> TestResult {
    for span in arena.piece_spans() {
        span.advise(advice)?;
    }
    Ok(())
}

fn cold(arena: &mut Arena, _: &mut Rng) -> TestResult {
    advise_all(arena, libc::MADV_COLD)
}

fn pageout(arena: &mut Arena, _: &mut Rng) -> TestResult {
    advise_all(arena, libc::MADV_PAGEOUT)
}

fn cold_and_pageout(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    cold(arena, rng)?;
    pageout(arena, rng)
}

fn willneed(arena: &mut Arena, _: &mut Rng) -> TestResult {
    advise_all(arena, libc::MADV_WILLNEED)
}

fn populate_write(arena: &mut Arena, _: &mut Rng) -> TestResult {
    advise_all(arena, libc::MADV_POPULATE_WRITE)
}

fn populate_read(arena: &mut Arena, _: &mut Rng) -> TestResult {
    advise_all(arena, libc::MADV_POPULATE_READ)
}

fn install_guard(arena: &mut Arena, range: Range<usize>) -> TestResult {
    match arena.part(range.clone()).advise(MADV_GUARD_INSTALL) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(Verdict::Skip(
            "no guard pages in this kernel (Linux 6.13)".into(),
        )),
        result => result.at("MADV_GUARD_INSTALL"),
    }?;
    arena.expect(range, Want::Fault);
    Ok(())
}

fn remove_guard(arena: &mut Arena, range: Range<usize>) -> TestResult {
    arena
        .part(range.clone())
        .advise(MADV_GUARD_REMOVE)
        .at("MADV_GUARD_REMOVE")?;
    arena.expect(range, Want::Zero);
    Ok(())
}

/// A whole chunk, a few pages, and a range across chunks.
fn guard(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    install_guard(arena, arena.chunk(1))?;
    for len in [3, 40, CHUNK_PAGES] {
        let range = arena.some_range(rng, len);
        install_guard(arena, range)?;
    }
    arena.verify()
}

fn guard_and_back(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for _ in 0..8 {
        let range = arena.some_range(rng, CHUNK_PAGES);
        install_guard(arena, range.clone())?;
        remove_guard(arena, range)?;
    }
    Ok(())
}

/// The guards are older than the fork: the child has them, too, and keeps them.
fn guard_removed(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let ranges = [
        10..20,
        CHUNK_PAGES..2 * CHUNK_PAGES,
        3 * CHUNK_PAGES - 5..3 * CHUNK_PAGES + 5,
    ];
    for range in ranges.clone() {
        install_guard(&mut arena, range)?;
    }
    let ended = while_held(ctx, &mut arena, |arena| {
        for range in ranges {
            remove_guard(arena, range)?;
        }
        arena.verify()?;
        arena.write_range(5..30, 1);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, 4)?
        .holds("chunks with guards were copied as mixed ones", |r| {
            r.chunks.mixed >= 4
        })?;
    Ok(ended.detail())
}

/// KiB of page tables that emptying the arena frees.
fn dontneed_frees(arena: &mut Arena, rng: &mut Rng) -> TestResult<usize> {
    let before = procfs::status(0, "VmPTE")?;
    dontneed(arena, rng)?;
    // verify() has read every page: the tables it made are not new ones if the old ones stayed.
    arena.part(0..arena.pages()).advise(libc::MADV_DONTNEED)?;
    Ok(before.saturating_sub(procfs::status(0, "VmPTE")?))
}

fn tables_freed(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut other = Arena::new(&mut rng, 16)?;
    let want = dontneed_frees(&mut other, &mut rng)?;
    skip_unless!(
        want > 0,
        "this kernel keeps empty page tables (Linux 6.14 frees them)"
    );

    let mut arena = Arena::new(&mut rng, 16)?;
    let mut got = 0;
    let ended = while_held(ctx, &mut arena, |arena| {
        got = dontneed_frees(arena, &mut rng)?;
        claim!(
            got >= want,
            "{got} KiB of page tables freed, {want} KiB of memory never parked"
        );
        arena.fill(1);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Zap, arena.chunks())?;
    Ok(format!("{got} KiB freed; {}", ended.detail()))
}

fn process_madvise(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let plug = Plug::new()?;
    let mut arena = Arena::planned(&mut rng, crate::mem::Shape::Whole(16))?;
    let (board, gate) = (Board::new()?, Gate::new()?);
    let parent = sys::pid();
    let span = arena.span();
    let actor = ctx.helper(&board, "actor", || {
        gate.pass()?;
        // SAFETY: plain numbers, and an iovec that lives across the call.
        let n = unsafe {
            let pidfd =
                sys::cvt(libc::syscall(libc::SYS_pidfd_open, parent, 0)).at("pidfd_open")?;
            let iov = span.iovec();
            sys::cvt(libc::syscall(
                libc::SYS_process_madvise,
                pidfd,
                &iov,
                1,
                libc::MADV_COLD,
                0,
            ))
            .at("process_madvise")?
        };
        claim!(
            n as usize == span.len(),
            "process_madvise dealt with {n} bytes of {}",
            span.len()
        );
        Ok(())
    })?;
    arena.map()?;
    arena.fill(0);

    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    gate.open(0)?;
    sys::wait(actor)?;
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    board.collect(&["actor"])?;
    arena.verify()?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, arena.chunks())?
        .holds("somebody else pulled", |r| {
            r.chunks.by_other >= arena.chunks()
        })?;
    Ok(ended.detail())
}
