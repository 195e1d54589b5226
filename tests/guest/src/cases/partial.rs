// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chunks that a mapping covers in part, with `park_partial`: what lands in the rest of the chunk meanwhile. The operations
//! on the mapping itself are with their themes.

use super::common::allow_shape;
use super::faults::inject;
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Shape, Span, Want, CHUNK, PAGE};
use crate::rng::Rng;
use crate::session::Ended;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::Hook;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const CHUNKS: u64 = 8;
const SHAPE: Shape = Shape::Partial(CHUNKS as usize);

pub const TESTS: &[Test] = &[
    Test::partial(
        "anonymous_memory_mapped_beside_partly_parked_chunks_is_fresh",
        Hook::Fault,
        map_anonymous,
    ),
    Test::partial(
        "populated_memory_mapped_beside_partly_parked_chunks_is_fresh",
        Hook::Fault,
        map_populated,
    ),
    Test::partial(
        "shared_memory_mapped_beside_partly_parked_chunks_is_right",
        Hook::Fault,
        map_shared,
    ),
    Test::partial(
        "memory_moved_beside_partly_parked_chunks_is_right",
        Hook::Mremap,
        move_beside,
    ),
    Test::new(
        "second_fork_with_partly_parked_chunks_gets_the_whole_image",
        second_fork,
    ),
    Test::new(
        "orphan_with_partly_parked_chunks_has_its_whole_image",
        orphan,
    ),
    Test::new(
        "driver_that_fills_a_parked_slot_at_once_costs_neither_side_a_page",
        driver,
    )
    .module()
    .quick(),
    Test::new(
        "driver_that_slips_past_the_hook_costs_neither_side_a_page",
        driver_unseen,
    )
    .faults()
    .merges(),
];

/// The first page of each chunk, which no piece of a partial arena covers.
fn free_pages(arena: &Arena) -> Vec<Span> {
    (0..arena.span().len() / CHUNK)
        .map(|c| arena.span().part(c * CHUNK, PAGE))
        .collect()
}

fn map_anonymous(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for page in free_pages(arena) {
        page.map(RW, libc::MAP_PRIVATE)?;
        let mut fresh = Arena::adopt(rng, page, Want::Zero);
        fresh.verify()?;
        fresh.fill(1);
        fresh.verify()?;
        page.unmap()?;
    }
    Ok(())
}

fn map_populated(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for page in free_pages(arena) {
        page.map(RW, libc::MAP_PRIVATE | libc::MAP_POPULATE)?;
        Arena::adopt(rng, page, Want::Zero).verify()?;
        page.unmap()?;
    }
    Ok(())
}

fn map_shared(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let file = sys::memfd(PAGE)?;
    for page in free_pages(arena) {
        page.map_fd(RW, libc::MAP_SHARED | libc::MAP_POPULATE, file.as_fd(), 0)?;
        let value = rng.next();
        page.store(0, value);
        page.unmap()?;
        page.map_fd(RW, libc::MAP_SHARED, file.as_fd(), 0)?;
        claim!(page.load(0) == value, "shared memory lost a store");
        page.unmap()?;
    }
    Ok(())
}

fn move_beside(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    for page in free_pages(arena) {
        let from = Span::reserve(PAGE)?;
        from.map(RW, libc::MAP_PRIVATE)?;
        let mut other = Arena::adopt(rng, from, Want::Zero);
        other.fill(3);
        from.remap(PAGE, 0, Some(page))?;
        other.moved(0..1, page).verify().at("moved page")?;
        page.unmap()?;
    }
    Ok(())
}

fn second_fork(ctx: &Ctx) -> TestResult<String> {
    allow_shape(ctx, SHAPE)?;
    let mut arena = Arena::shaped(&mut ctx.rng(), SHAPE)?;
    let hold = Hold::new()?;
    let first = ctx.fork().start(|| arena.verify())?;
    first.expect_running()?;
    let second = ctx.fork().start(|| arena.verify())?;
    arena.fill(1);
    second.expect_child_held()?;
    drop(hold);
    let ended = first.finish().map_err(|v| v.at("first child"))?;
    second
        .finish()
        .map_err(|v| v.at("second child"))?
        .whole(CHUNKS)?
        .pulled(Hook::Fault, CHUNKS)?;
    arena.verify()?;
    ended.whole(CHUNKS)?.pulled(Hook::Fork, CHUNKS)?;
    Ok(ended.detail())
}

fn orphan(ctx: &Ctx) -> TestResult<String> {
    allow_shape(ctx, SHAPE)?;
    let board = Board::new()?;
    let parent = ctx.helper(&board, "parent", || {
        let arena = Arena::shaped(&mut ctx.rng(), SHAPE)?;
        let hold = Hold::new()?;
        let session = ctx.fork().start_on(&board, "child", || arena.verify())?;
        session.expect_running()?;
        std::mem::forget(hold);
        Ok(())
    })?;
    sys::wait(parent)?;
    board.collect(&["parent", "child"])?;
    let ended = ctx.ended_session_of(parent)?;
    ended.whole(CHUNKS)?.pulled(Hook::Exit, CHUNKS)?;
    Ok(ended.detail())
}

/// A packet socket's ring: mmap fills the page tables at once, without a fault.
fn packet_ring() -> TestResult<OwnedFd> {
    const PACKET_RX_RING: i32 = 5;
    // SAFETY: plain numbers.
    let fd = cvt(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })
        .map_err(|e| Verdict::Skip(format!("no packet sockets here: {e}")))?;
    // SAFETY: a fresh descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // struct tpacket_req: size and number of blocks, size and number of frames.
    let request = [PAGE as u32, 1, PAGE as u32 / 2, 2];
    // SAFETY: the option is as long as it says.
    cvt(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_RX_RING,
            request.as_ptr().cast(),
            size_of_val(&request) as u32,
        )
    })
    .at("PACKET_RX_RING")?;
    Ok(socket)
}

/// Drivers map pages into the slots of parked chunks; before each mapping the test does `first`.
fn map_rings(ctx: &Ctx, first: impl Fn() -> TestResult) -> TestResult<Ended> {
    allow_shape(ctx, SHAPE)?;
    let mut arena = Arena::shaped(&mut ctx.rng(), SHAPE)?;
    let ring = packet_ring()?;

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    let rings: Vec<usize> = (0..CHUNKS as usize).map(|c| arena.chunk(c).start).collect();
    for &page in &rings {
        let span = arena.part(page..page + 1);
        first()?;
        span.map_fd(RW, libc::MAP_SHARED, ring.as_fd(), 0)
            .at("map the ring")?;
        arena.expect(page..page + 1, Want::Zero);
    }
    arena.verify().at("parent, rings mapped")?;
    arena.fill(1);
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    // All mappings show the same page.
    let (at, mark) = (PAGE - 8, 0x5eed);
    arena.part(rings[0]..rings[0] + 1).store(at, mark);
    for &page in &rings {
        arena.expect_word(page, at, mark);
    }
    arena.verify().at("parent, ring marked")?;
    for &page in &rings {
        arena.part(page..page + 1).unmap()?;
        arena.unmapped(page..page + 1);
    }
    arena.verify().at("parent, rings unmapped")?;
    let stats = ctx.stats()?;
    claim!(stats.switched_off == 0, "the module switched itself off");
    ended.whole(CHUNKS)?;
    Ok(ended)
}

fn driver(ctx: &Ctx) -> TestResult<String> {
    let merged = ctx.stats()?.merged;
    let ended = map_rings(ctx, || Ok(()))?;
    ended.pulled(Hook::PteAlloc, CHUNKS)?;
    let now = ctx.stats()?.merged;
    claim!(now == merged, "{now} merges, {merged} before");
    Ok(ended.detail())
}

/// As the module has it for somebody whom no hook meets.
fn driver_unseen(ctx: &Ctx) -> TestResult<String> {
    let merged = ctx.stats()?.merged;
    let ended = map_rings(ctx, || inject(ctx, 0, 1))?;
    let merged = ctx.stats()?.merged - merged;
    require!(merged >= CHUNKS, "{merged} merges: the slots were free");
    Ok(format!("{}; {merged} merges", ended.detail()))
}
