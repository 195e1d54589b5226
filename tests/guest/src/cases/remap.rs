// SPDX-License-Identifier: MIT OR Apache-2.0
//! mremap from, to and over parked memory.

use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Span, Want, CHUNK, CHUNK_PAGES, PAGE};
use crate::rng::Rng;
use crate::verdict::{Context, TestResult};
use asyncfork_uapi::Hook;

pub const TESTS: &[Test] = &[
    Test::held(
        "mremap_moving_parked_chunks_leaves_the_child_its_image",
        Hook::Mremap,
        move_aligned,
    )
    .quick(),
    Test::held(
        "mremap_moving_parked_memory_by_odd_pages_leaves_the_child_its_image",
        Hook::Mremap,
        move_unaligned,
    ),
    Test::held_some(
        "mremap_moving_part_of_parked_memory_leaves_the_child_its_image",
        Hook::Mremap,
        move_part,
    ),
    Test::held(
        "mremap_growing_parked_memory_elsewhere_leaves_the_child_its_image",
        Hook::Mremap,
        grow_elsewhere,
    ),
    Test::held_some(
        "mremap_shrinking_parked_memory_leaves_the_child_its_image",
        Hook::Unmap,
        shrink,
    ),
    Test::held(
        "mremap_dontunmap_of_parked_memory_leaves_zeros_behind",
        Hook::Mremap,
        dontunmap,
    ),
    Test::held_some(
        "mremap_onto_parked_memory_leaves_the_child_its_image",
        Hook::Unmap,
        onto,
    ),
    Test::held(
        "mremap_there_and_back_of_parked_memory_loses_nothing",
        Hook::Mremap,
        there_and_back,
    ),
    Test::racing(
        "mremap_beside_a_copying_child_disturbs_nobody",
        Hook::Mremap,
        move_aligned,
    ),
    Test::racing(
        "mremap_by_odd_pages_beside_a_copying_child_disturbs_nobody",
        Hook::Mremap,
        move_unaligned,
    ),
    Test::racing(
        "mremap_there_and_back_beside_a_copying_child_disturbs_nobody",
        Hook::Mremap,
        there_and_back,
    ),
    Test::partial(
        "mremap_of_parked_memory_park_partial",
        Hook::Mremap,
        move_pieces,
    ),
    Test::new(
        "mremap_growing_parked_memory_in_place_gives_fresh_pages",
        grow_in_place,
    ),
];

/// Moves all of a whole arena to `to` and checks that nothing is left behind.
fn move_to(arena: &mut Arena, to: Span) -> TestResult {
    let from = arena.span();
    let at = from.remap(from.len(), 0, Some(to))?;
    claim!(at == to, "mremap moved to {at:?}, want {to:?}");
    let moved = arena.moved(0..arena.pages(), to);
    arena.unmapped(0..arena.pages());
    arena.verify().at("left behind")?;
    *arena = moved;
    arena.verify()
}

fn move_aligned(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let to = Span::reserve(arena.span().len())?;
    move_to(arena, to)
}

fn move_unaligned(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let len = arena.span().len();
    let shift = 1 + rng.below(CHUNK_PAGES - 1);
    let to = Span::reserve(len + CHUNK)?.part(shift * PAGE, len);
    move_to(arena, to)
}

fn there_and_back(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let home = arena.span();
    move_aligned(arena, rng)?;
    move_unaligned(arena, rng)?;
    move_to(arena, home)
}

fn move_part(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let range = rng.range(arena.pages(), 3 * CHUNK_PAGES);
    let part = arena.part(range.clone());
    let to = Span::reserve(part.len())?;
    part.remap(part.len(), 0, Some(to))?;
    let mut moved = arena.moved(range.clone(), to);
    arena.unmapped(range);
    moved.verify().at("moved part")?;
    moved.fill(1);
    moved.verify().at("moved part, written")
}

fn move_pieces(arena: &mut Arena, _: &mut Rng) -> TestResult {
    for piece in arena.pieces() {
        let part = arena.part(piece.clone());
        let to = Span::reserve(part.len())?;
        part.remap(part.len(), 0, Some(to))?;
        let mut moved = arena.moved(piece.clone(), to);
        arena.unmapped(piece);
        moved.verify().at("moved piece")?;
        moved.fill(1);
        moved.verify().at("moved piece, written")?;
    }
    Ok(())
}

fn grow_elsewhere(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let old = arena.span();
    let new = old.remap(old.len() + 2 * CHUNK, libc::MREMAP_MAYMOVE, None)?;
    claim!(
        new.addr() != old.addr(),
        "grew in place although the neighbourhood is taken"
    );
    let moved = arena.moved(0..arena.pages(), new.part(0, old.len()));
    moved.verify().at("moved")?;
    arena.unmapped(0..arena.pages());
    arena.verify().at("left behind")?;
    *arena = moved;
    Arena::adopt(rng, new.part(old.len(), 2 * CHUNK), Want::Zero)
        .verify()
        .at("new part")
}

fn shrink(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let keep = 1 + rng.below(arena.pages() - CHUNK_PAGES);
    arena.span().remap(keep * PAGE, 0, None)?;
    arena.unmapped(keep..arena.pages());
    arena.verify()
}

fn dontunmap(arena: &mut Arena, _: &mut Rng) -> TestResult {
    const MREMAP_DONTUNMAP: i32 = 4;
    let old = arena.span();
    let new = old.remap(old.len(), libc::MREMAP_MAYMOVE | MREMAP_DONTUNMAP, None)?;
    let mut moved = arena.moved(0..arena.pages(), new);
    moved.verify().at("moved")?;
    arena.expect(0..arena.pages(), Want::Zero);
    arena.verify().at("left behind")?;
    moved.fill(1);
    moved.verify().at("moved, written")
}

/// Other memory is moved over the middle of the arena.
fn onto(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let other = Arena::new(rng, 2)?;
    let at = CHUNK_PAGES + 100..CHUNK_PAGES + 100 + other.pages();
    other
        .span()
        .remap(other.span().len(), 0, Some(arena.part(at.clone())))?;
    other
        .moved(0..other.pages(), arena.part(at.clone()))
        .verify()
        .at("moved here")?;
    for page in at.clone() {
        arena.write(page, 1);
    }
    arena.verify()
}

fn grow_in_place(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let room = Span::reserve(24 << 20)?;
    let (low, high) = (room.part(0, 16 << 20), room.part(16 << 20, 8 << 20));
    high.unmap()?;
    low.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    low.advise(libc::MADV_NOHUGEPAGE)?;
    let mut arena = Arena::adopt(&mut rng, low, Want::Zero);
    arena.fill(0);

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    let grown = low.remap(room.len(), 0, None)?;
    claim!(grown == room, "grew to {grown:?}, want {room:?}");
    let mut new = Arena::adopt(&mut rng, high, Want::Zero);
    new.verify().at("new part")?;
    new.fill(1);
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    new.verify().at("new part, written")?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}
