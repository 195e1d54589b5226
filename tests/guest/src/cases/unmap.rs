// SPDX-License-Identifier: MIT OR Apache-2.0
//! munmap, MAP_FIXED, brk and new neighbours of parked memory.

use super::Test;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Span, Want, CHUNK, CHUNK_PAGES, PAGE};
use crate::procfs;
use crate::rng::Rng;
use crate::verdict::{Context, TestResult};
use crate::{claim, require};
use asyncfork_uapi::Hook;
use std::fs;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub const TESTS: &[Test] = &[
    Test::held(
        "munmap_of_all_parked_memory_leaves_the_child_its_image",
        Hook::Unmap,
        whole,
    )
    .quick(),
    Test::held_some(
        "munmap_of_parts_of_parked_memory_leaves_the_child_its_image",
        Hook::Unmap,
        parts,
    ),
    Test::held(
        "mmap_over_parked_memory_gives_zeros_and_leaves_the_child_its_image",
        Hook::Unmap,
        map_over,
    ),
    Test::held_some(
        "mmap_over_parts_of_parked_memory_leaves_the_child_its_image",
        Hook::Unmap,
        map_over_parts,
    ),
    Test::racing(
        "munmap_beside_a_copying_child_disturbs_nobody",
        Hook::Unmap,
        whole,
    ),
    Test::racing(
        "munmap_of_parts_beside_a_copying_child_disturbs_nobody",
        Hook::Unmap,
        parts,
    ),
    Test::racing(
        "mmap_over_parts_beside_a_copying_child_disturbs_nobody",
        Hook::Unmap,
        map_over_parts,
    ),
    Test::partial(
        "munmap_of_all_parked_memory_park_partial",
        Hook::Unmap,
        whole,
    ),
    Test::partial_some(
        "mmap_over_parts_of_parked_memory_park_partial",
        Hook::Unmap,
        map_over_parts,
    ),
    Test::new(
        "brk_shrinking_over_parked_memory_and_growing_again_gives_zeros",
        brk,
    ),
    Test::new("memory_mapped_next_to_parked_memory_is_fresh", neighbours),
];

fn whole(arena: &mut Arena, _: &mut Rng) -> TestResult {
    for piece in arena.pieces() {
        arena.part(piece.clone()).unmap()?;
        arena.unmapped(piece);
    }
    arena.verify()
}

fn parts(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for _ in 0..12 {
        let range = arena.some_range(rng, CHUNK_PAGES);
        arena.part(range.clone()).unmap()?;
        arena.unmapped(range);
    }
    arena.verify()
}

fn map_over(arena: &mut Arena, _: &mut Rng) -> TestResult {
    for piece in arena.pieces() {
        arena.part(piece.clone()).map(RW, libc::MAP_PRIVATE)?;
        arena.expect(piece, Want::Zero);
    }
    arena.verify()
}

fn map_over_parts(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for gen in 1..10 {
        let range = arena.some_range(rng, 2 * CHUNK_PAGES);
        arena.part(range.clone()).map(RW, libc::MAP_PRIVATE)?;
        arena.expect(range.clone(), Want::Zero);
        arena.write_range(range.start..range.start + range.len().div_ceil(2), gen);
    }
    Ok(())
}

/// The heap's end moves down over parked chunks and up again. The allocator shares the break, so enough free heap is put
/// aside first for it not to move the break in between.
fn brk(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
    // SAFETY: sbrk(0) only asks.
    let old = unsafe { libc::sbrk(0) } as usize;
    let start = old.next_multiple_of(CHUNK);
    let span = {
        set_break(start + 16 * CHUNK)?;
        // SAFETY: the memory between the allocator's break and the new one is nobody's.
        unsafe { Span::from_raw(start, 16 * CHUNK) }
    };
    span.advise(libc::MADV_NOHUGEPAGE)?;
    let mut arena = Arena::adopt(&mut rng, span, Want::Zero);
    arena.fill(0);

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    let kept = 5 * CHUNK_PAGES + 77;
    set_break(start + kept * PAGE)?;
    arena.expect(kept..span.pages(), Want::Fault);
    arena.verify()?;
    set_break(start + 16 * CHUNK)?;
    arena.expect(kept..span.pages(), Want::Zero);
    arena.verify()?;
    arena.write_range(kept..kept + 600, 1);
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    set_break(old)?;
    ended.whole(16)?.pulled(Hook::Unmap, 10)?;
    Ok(ended.detail())
}

fn set_break(at: usize) -> TestResult {
    // SAFETY: callers move the break over memory that no allocator owns.
    let ret = unsafe { libc::brk(at as *mut libc::c_void) };
    claim!(
        ret == 0,
        "brk to {at:#x}: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: sbrk(0) only asks.
    let now = unsafe { libc::sbrk(0) } as usize;
    require!(now == at, "the break is {now:#x}, want {at:#x}");
    Ok(())
}

/// New mappings that touch parked memory on both sides, so that the VMAs merge.
fn neighbours(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let room = Span::reserve(24 << 20)?;
    let (below, rest) = (room.part(0, 4 << 20), room.part(4 << 20, 20 << 20));
    let (middle, above) = (rest.part(0, 16 << 20), rest.part(16 << 20, 4 << 20));
    middle.map(RW, libc::MAP_PRIVATE)?;
    middle.advise(libc::MADV_NOHUGEPAGE)?;
    let mut arena = Arena::adopt(&mut rng, middle, Want::Zero);
    arena.fill(0);

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    let mut sides = Vec::new();
    for side in [below, above] {
        side.map(RW, libc::MAP_PRIVATE)?;
        side.advise(libc::MADV_NOHUGEPAGE)?;
        let mut fresh = Arena::adopt(&mut rng, side, Want::Zero);
        fresh.verify().at("new neighbour")?;
        fresh.fill(0);
        sides.push(fresh);
    }
    let all = (room.addr(), room.end());
    let maps = fs::read_to_string("/proc/self/maps")?;
    require!(
        maps.lines().filter_map(procfs::mapping).any(|m| m == all),
        "they are not one mapping"
    );
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    for a in sides.iter().chain([&arena]) {
        a.verify().map_err(|v| v.at("parent"))?;
    }
    arena.fill(1);
    arena.verify()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}
