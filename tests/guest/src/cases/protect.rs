// SPDX-License-Identifier: MIT OR Apache-2.0
//! mprotect of parked memory. A page table that kept its old protection would be a security hole, so that what counts
//! is what the processor allows.

use super::common::while_held;
use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{probe, Arena, Want, CHUNK_PAGES};
use crate::rng::Rng;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use asyncfork_uapi::Hook;
use std::ops::Range;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub const TESTS: &[Test] = &[
    Test::held(
        "stores_fault_after_mprotect_read_of_parked_memory",
        Hook::Protect,
        read_only,
    )
    .quick(),
    Test::held(
        "loads_fault_after_mprotect_none_of_parked_memory",
        Hook::Protect,
        none,
    ),
    Test::held_some(
        "stores_fault_in_exactly_the_protected_parts_of_parked_chunks",
        Hook::Protect,
        parts,
    ),
    Test::held(
        "memory_parked_read_only_is_writable_after_mprotect",
        Hook::Protect,
        down_and_up,
    ),
    Test::racing(
        "stores_fault_after_mprotect_read_beside_a_copying_child",
        Hook::Protect,
        read_only,
    ),
    Test::racing(
        "stores_fault_in_protected_parts_beside_a_copying_child",
        Hook::Protect,
        parts,
    ),
    Test::partial(
        "stores_fault_after_mprotect_read_park_partial",
        Hook::Protect,
        read_only,
    ),
    Test::new(
        "write_permission_given_while_parked_makes_private_copies",
        parked_read_only,
    ),
    Test::new("protection_keys_set_while_parked_hold", protection_key),
];

/// Demands that no store to `pages` is allowed.
fn expect_read_only(arena: &Arena, pages: Range<usize>) -> TestResult {
    for page in pages {
        if probe::store(arena.part(page..page + 1), 0xdead) {
            return Err(Verdict::Failed(format!(
                "page {page}: a store to read-only memory went through"
            )));
        }
    }
    Ok(())
}

fn protect(arena: &Arena, prot: i32) -> TestResult {
    for span in arena.piece_spans() {
        span.protect(prot)?;
    }
    Ok(())
}

fn read_only(arena: &mut Arena, _: &mut Rng) -> TestResult {
    protect(arena, libc::PROT_READ)?;
    for piece in arena.pieces() {
        expect_read_only(arena, piece)?;
    }
    arena.verify()
}

fn none(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let model = arena.clone();
    protect(arena, libc::PROT_NONE)?;
    for piece in arena.pieces() {
        arena.expect(piece, Want::Fault);
    }
    arena.verify()?;
    protect(arena, RW)?;
    *arena = model;
    arena.verify()
}

fn parts(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let mut writable = vec![true; arena.pages()];
    for _ in 0..10 {
        let range = arena.some_range(rng, CHUNK_PAGES);
        let prot = if rng.one_in(2) { libc::PROT_READ } else { RW };
        arena.part(range.clone()).protect(prot)?;
        writable[range].fill(prot == RW);
    }
    for (page, &allowed) in writable.iter().enumerate() {
        let value = rng.next();
        let done = probe::store(arena.part(page..page + 1), value);
        claim!(
            done == allowed,
            "page {page}: store allowed is {done}, want {allowed}"
        );
        if done {
            arena.expect_word(page, 0, value);
        }
    }
    Ok(())
}

fn down_and_up(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    protect(arena, libc::PROT_READ)?;
    protect(arena, RW)?;
    for page in arena.shuffled(rng) {
        arena.write(page, 1);
    }
    Ok(())
}

/// The other way round: read-only when parked. A page table that became writable would let stores reach the child.
fn parked_read_only(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    arena.span().protect(libc::PROT_READ)?;

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        expect_read_only(&arena, 0..arena.pages())?;
        arena.verify()
    })?;
    session.expect_running()?;
    arena.span().protect(RW)?;
    arena.fill(1);
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Protect, arena.chunks())?;
    Ok(ended.detail())
}

fn protection_key(ctx: &Ctx) -> TestResult<String> {
    const PKEY_DISABLE_WRITE: libc::c_long = 2;
    // SAFETY: plain numbers.
    let key = sys::cvt(unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, PKEY_DISABLE_WRITE) })
        .map_err(|e| Verdict::Skip(format!("no protection keys here: {e}")))?;
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let span = arena.span();
    let set_key = |key: libc::c_long| {
        // SAFETY: no Rust object lives in a span.
        sys::cvt(unsafe {
            libc::syscall(libc::SYS_pkey_mprotect, span.addr(), span.len(), RW, key)
        })
    };
    let ended = while_held(ctx, &mut arena, |arena| {
        set_key(key)?;
        expect_read_only(arena, 0..arena.pages())?;
        // It allows everything.
        set_key(0)?;
        arena.fill(1);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Protect, arena.chunks())?;
    Ok(ended.detail())
}
