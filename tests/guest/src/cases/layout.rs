// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shapes of address spaces: edges, many small mappings, huge sparse ones.

use super::common::while_held;
use super::writes::overwrite_random;
use super::Test;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Span, Want, CHUNK, CHUNK_PAGES, PAGE};
use crate::rng::Rng;
use crate::verdict::TestResult;
use crate::{claim, require, skip_unless};
use asyncfork_host::kernel::kernel_since;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub const TESTS: &[Test] = &[
    Test::new(
        "chunks_that_a_mapping_covers_in_part_are_copied_at_once",
        unaligned,
    )
    .quick(),
    Test::new(
        "chunks_that_two_mappings_share_are_copied_at_once",
        shared_chunks,
    ),
    Test::new(
        "a_thousand_small_mappings_around_parked_memory_reach_both_sides",
        many_mappings,
    ),
    Test::new(
        "one_tib_of_mostly_untouched_memory_reaches_both_sides",
        sparse_tib,
    )
    .quick(),
    Test::new(
        "memory_at_the_ends_of_the_address_space_reaches_both_sides",
        far_apart,
    ),
    Test::new(
        "hundreds_of_parkable_mappings_reach_both_sides",
        many_parkable,
    ),
    Test::new(
        "gib_first_touched_while_fork_is_on_its_way_to_it_is_pulled_too",
        touched_on_the_way,
    )
    .module(),
];

/// Maps and fills a range that may start and end anywhere.
fn arena_at(rng: &mut Rng, span: Span) -> TestResult<Arena> {
    span.map(RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    let mut arena = Arena::adopt(rng, span, Want::Zero);
    arena.fill(0);
    Ok(arena)
}

/// How many chunks a fork parks now: the process has other memory than the test's.
fn parked_without(ctx: &Ctx) -> TestResult<u64> {
    let ended = ctx.fork().start(|| Ok(()))?.finish()?;
    Ok(ended.report().map_or(0, |r| r.chunks.parked))
}

fn unaligned(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let none = parked_without(ctx)?;
    let room = Span::reserve(8 * CHUNK)?;
    let span = room.part(7 * PAGE, 8 * CHUNK - 12 * PAGE);
    let mut arena = arena_at(&mut rng, span)?;
    let ended = while_held(ctx, &mut arena, |arena| overwrite_random(arena, &mut rng))?;
    ended
        .whole(6)?
        .holds("exactly the whole chunks were parked", |r| {
            r.chunks.parked == none + 6
        })?;
    Ok(ended.detail())
}

/// Mappings that differ in a flag meet inside chunks.
fn shared_chunks(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let none = parked_without(ctx)?;
    let mut arena = Arena::new(&mut rng, 16)?;
    for chunk in [1, 4, 5] {
        let first = chunk * CHUNK_PAGES + 100;
        arena.part(first..first + 50).advise(libc::MADV_DONTDUMP)?;
    }
    let readonly = 6 * CHUNK_PAGES + 500..7 * CHUNK_PAGES + 20;
    arena.part(readonly.clone()).protect(libc::PROT_READ)?;
    let ended = while_held(ctx, &mut arena, |arena| {
        for page in arena.shuffled(&mut rng) {
            if !readonly.contains(&page) {
                arena.write(page, 1);
            }
        }
        Ok(())
    })?;
    // Of the eight chunks 1, 4, 5, 6 and 7 are cut.
    ended
        .whole(3)?
        .holds("the cut chunks were not parked", |r| {
            r.chunks.parked == none + 3
        })?;
    Ok(ended.detail())
}

fn many_mappings(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let room = Span::reserve(24 * CHUNK)?;
    let (below, above) = (room.part(0, 8 * CHUNK), room.part(16 * CHUNK, 8 * CHUNK));
    let mut arena = arena_at(&mut rng, room.part(8 * CHUNK, 8 * CHUNK))?;
    let mut small = Vec::new();
    for side in [below, above] {
        for n in 0..500 {
            small.push(arena_at(&mut rng, side.page_range(8 * n..8 * n + 3))?);
        }
    }
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        small.iter().try_for_each(Arena::verify)?;
        arena.verify()
    })?;
    session.expect_running()?;
    arena.fill(1);
    for one in small.iter_mut().step_by(3) {
        one.fill(1);
    }
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    small.iter().try_for_each(Arena::verify)?;
    arena.verify()?;
    ended.whole(8)?;
    Ok(ended.detail())
}

/// A few touched chunks in a terabyte: the side array must not be as large as the range.
fn sparse_tib(ctx: &Ctx) -> TestResult<String> {
    const TIB: usize = 1 << 40;
    const TOUCHED: usize = 24;
    let mut rng = ctx.rng();
    let room = Span::reserve(TIB)?;
    room.map(RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    room.advise(libc::MADV_NOHUGEPAGE)?;
    // The range in equal parts: somewhere in each a touched chunk, the one after it stays untouched.
    let places: Vec<usize> = (0..TOUCHED)
        .map(|n| n * (TIB / CHUNK / TOUCHED) + rng.below(2000))
        .collect();
    let chunk = |index: usize| room.part(index * CHUNK, CHUNK);
    let mut touched = Vec::new();
    for &index in &places {
        let mut arena = Arena::adopt(&mut rng, chunk(index), Want::Zero);
        for page in 0..CHUNK_PAGES {
            if rng.one_in(2) {
                arena.write(page, 0);
            }
        }
        touched.push(arena);
    }
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        touched.iter().try_for_each(Arena::verify)?;
        places.iter().try_for_each(|&index| {
            claim!(
                chunk(index + 1).load(0) == 0,
                "untouched memory is not zero in the child"
            );
            Ok(())
        })
    })?;
    session.expect_running()?;
    for arena in touched.iter_mut().step_by(2) {
        arena.fill(1);
    }
    for &index in &places {
        claim!(
            chunk(index + 1).load(0) == 0,
            "untouched memory beside a parked chunk is not zero"
        );
    }
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    touched.iter().try_for_each(Arena::verify)?;
    ended
        .whole(TOUCHED as u64)?
        .holds("the side array is small", |r| r.meta_bytes < 1 << 20)?;
    Ok(ended.detail())
}

fn far_apart(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    // Near the lowest and the highest address that user space may map; free in every process.
    let places = [0x10_0000_0000, 0x7000_0000_0000usize];
    let mut arenas = Vec::new();
    for place in places {
        // SAFETY: MAP_FIXED_NOREPLACE below fails rather than replace anything.
        let span = unsafe { Span::from_raw(place, 4 * CHUNK) };
        span.map(
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE,
        )?;
        arenas.push(arena_at(&mut rng, span)?);
    }
    let hold = Hold::new()?;
    let session = ctx
        .fork()
        .start(|| arenas.iter().try_for_each(Arena::verify))?;
    session.expect_running()?;
    for arena in &mut arenas {
        overwrite_random(arena, &mut rng)?;
    }
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arenas.iter().try_for_each(Arena::verify)?;
    ended.whole(8)?;
    Ok(ended.detail())
}

fn many_parkable(ctx: &Ctx) -> TestResult<String> {
    const N: usize = 200;
    let mut rng = ctx.rng();
    let room = Span::reserve(2 * N * CHUNK)?;
    let mut arenas = Vec::new();
    for n in 0..N {
        let span = room.part(2 * n * CHUNK, CHUNK);
        span.map(RW, libc::MAP_PRIVATE)?;
        span.advise(libc::MADV_NOHUGEPAGE)?;
        let mut arena = Arena::adopt(&mut rng, span, Want::Zero);
        for page in (0..CHUNK_PAGES).step_by(17) {
            arena.write(page, 0);
        }
        arenas.push(arena);
    }
    let hold = Hold::new()?;
    let session = ctx
        .fork()
        .start(|| arenas.iter().try_for_each(Arena::verify))?;
    session.expect_running()?;
    for n in rng.shuffled(N).into_iter().step_by(2) {
        if rng.one_in(3) {
            arenas[n].span().unmap()?;
            arenas[n].unmapped(0..CHUNK_PAGES);
        } else {
            arenas[n].write_range(0..40, 1);
        }
    }
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arenas.iter().try_for_each(Arena::verify)?;
    ended.whole(N as u64)?;
    Ok(ended.detail())
}

/// From 6.4 on a fault needs no more than the lock of its VMA, so while fork() copies one VMA, another may get its first page,
/// and with it the page table of a GiB in which the VMAs before it have none.
fn touched_on_the_way(ctx: &Ctx) -> TestResult<String> {
    skip_unless!(
        kernel_since(6, 4)?,
        "faults wait for the end of the fork here"
    );
    const GIB: usize = 1 << 30;
    const VALUE: u64 = 42;
    let mut rng = ctx.rng();
    let mut met = 0;
    let mut fork_takes = Duration::ZERO;
    for round in 0..10 {
        let room = Span::reserve(4 * GIB)?;
        let all = room.part(room.addr().next_multiple_of(GIB) - room.addr(), 2 * GIB);
        all.map(RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
        all.advise(libc::MADV_NOHUGEPAGE)?;
        let mut arena = Arena::adopt(&mut rng, all.part(0, 4 * CHUNK), Want::Zero);
        arena.fill(0);
        // The first mapping reaches into the second GiB; then come those that keep fork() busy; then the one that is touched.
        let busy = all.part(GIB + GIB / 4, 64 << 20);
        for page in (0..busy.pages()).step_by(8) {
            busy.page(page).advise(libc::MADV_DONTDUMP)?;
        }
        let page = all.part(GIB + GIB / 2, PAGE);

        // A thread that only starts would need mmap_lock, too.
        let together = Barrier::new(2);
        // Somewhere in the middle of what the last fork took.
        let wait = fork_takes * rng.below(64) as u32 / 64;
        let (session, touched, returned) = std::thread::scope(|scope| -> TestResult<_> {
            let toucher = scope.spawn(|| {
                together.wait();
                let start = Instant::now();
                while start.elapsed() < wait {
                    std::hint::spin_loop();
                }
                page.store(0, VALUE);
                Instant::now()
            });
            together.wait();
            let start = Instant::now();
            let session = ctx.fork().start(|| arena.verify());
            let returned = Instant::now();
            fork_takes = returned - start;
            let touched = toucher.join().expect("the thread does not panic");
            Ok((session?, touched, returned))
        })?;
        let ended = session
            .finish()
            .map_err(|v| v.at(format!("round {round}")))?;
        ended.done()?;
        let parked = ended.report().map_or(0, |r| r.chunks.parked);
        if touched < returned && parked == arena.chunks() + 1 {
            met += 1;
        }
        let again = ctx.fork().start(|| {
            arena.verify()?;
            claim!(page.load(0) == VALUE, "the touched page is lost");
            Ok(())
        })?;
        again.finish()?.whole(arena.chunks() + 1)?;
        all.unmap()?;
    }
    require!(
        met > 0,
        "no touch came while fork() was between the two mappings"
    );
    Ok(format!(
        "{met} touches on the way, fork {} ms",
        fork_takes.as_millis()
    ))
}
