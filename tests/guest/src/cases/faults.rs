// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every allocation of the module fails once. Needs a module built with fault injection.

use super::swap::page_out;
use super::Test;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::Arena;
use crate::swap::Swap;
use crate::sys::is_errno;
use crate::verdict::{Context, Outcome, Verdict};
use crate::{claim, skip_unless};
use asyncfork_uapi::{Outcome as Fate, Reason, State};
use std::path::Path;

const CHUNKS: u64 = 8;

pub const TESTS: &[Test] = &[
    Test::new("failed_allocations_while_parking_lose_nothing", parking).module(),
    Test::new("failed_allocations_while_pulling_lose_nothing", pulling).module(),
    Test::new("failed_allocations_in_odd_chunks_lose_nothing", odd).module(),
    Test::new(
        "untested_module_is_refused_unless_allowed_failed_allocations",
        untested,
    )
    .module(),
];

/// Skips the test if nothing can be made to fail.
pub fn expect_injection() -> Outcome {
    skip_unless!(
        Path::new("/sys/module/asyncfork/parameters/fault_count").exists(),
        "the module was built without fault injection"
    );
    Ok(())
}

/// A module with fault injection counts as untested, so it shows what happens on a kernel that nobody has tested.
fn untested(ctx: &Ctx) -> Outcome<String> {
    expect_injection()?;
    ctx.module.unload()?;
    let refused = ctx.module.load_as_it_is("");
    claim!(
        is_errno(&refused, libc::EOPNOTSUPP),
        "loading on an untested kernel gives {refused:?}, want EOPNOTSUPP"
    );
    claim!(!ctx.module.is_loaded(), "a refused module is loaded");
    ctx.module
        .load_as_it_is("allow_untested=1")
        .at("load with allow_untested=1")?;
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}

/// `count` allocations fail after `skip` others.
fn inject(ctx: &Ctx, skip: u32, count: u32) -> Outcome {
    ctx.module.set("fault_count", 0)?;
    ctx.module.set("fault_skip", skip)?;
    ctx.module.set("fault_count", count)?;
    Ok(())
}

/// Allocations that were to fail and have not been made.
fn left(ctx: &Ctx) -> Outcome<u32> {
    ctx.module
        .get("fault_count")?
        .parse()
        .map_err(|e| Verdict::Broken(format!("fault_count: {e}")))
}

/// The n-th allocation of the fork fails, for every n that there is.
fn parking(ctx: &Ctx) -> Outcome<String> {
    expect_injection()?;
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    let (mut stock, mut whole, mut aborted) = (0, 0, 0);
    for skip in 0.. {
        claim!(
            skip < 200,
            "a fork of {CHUNKS} chunks makes more than 200 allocations"
        );
        let hold = Hold::new()?;
        inject(ctx, skip, 1)?;
        let session = ctx.fork().start(|| arena.verify())?;
        let unused = left(ctx)?;
        ctx.module.set("fault_count", 0)?;
        arena.write_range(0..900, 1 + skip);
        drop(hold);
        let ended = session.finish_killed()?;
        arena.verify()?;
        match ended.report() {
            Some(r) if r.outcome() == Fate::Stock => {
                ended.stock(Reason::NoMemory)?;
                stock += 1;
            }
            Some(r) if r.state() == State::Aborted => aborted += 1,
            _ => {
                claim!(
                    !ended.was_killed(),
                    "the child was killed although its session is complete"
                );
                ended.parked(1)?.done()?;
                whole += 1;
            }
        }
        if unused > 0 {
            break;
        }
    }
    claim!(stock > 0, "no allocation of a fork was made to fail");
    Ok(format!(
        "{stock} stock, {whole} complete, {aborted} aborted"
    ))
}

/// From the n-th allocation on, all of the pulls' fail, more than the reserve has.
fn pulling(ctx: &Ctx) -> Outcome<String> {
    expect_injection()?;
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    let (mut whole, mut killed) = (0, 0);
    for skip in 0..CHUNKS as u32 {
        for parent_first in [true, false] {
            let hold = Hold::new()?;
            let session = ctx.fork().start(|| arena.verify())?;
            session.expect_running()?;
            inject(ctx, skip, 1000)?;
            if parent_first {
                arena.fill(1 + skip);
            }
            drop(hold);
            let ended = session.finish_killed()?;
            ctx.module.set("fault_count", 0)?;
            arena.verify()?;
            ended.parked(CHUNKS)?;
            if ended.was_killed() {
                ended.aborted()?;
                killed += 1;
            } else {
                ended.done()?;
                whole += 1;
            }
            ctx.fork()
                .start(|| arena.verify())?
                .finish()?
                .whole(CHUNKS)?;
        }
    }
    claim!(killed > 0, "no session was aborted");
    Ok(format!("{whole} complete, {killed} aborted"))
}

/// The parent's copy of the n-th chunk, all of it in swap, fails half way; for the last one nothing else is left to tell
/// the child that its image is not whole.
fn odd(ctx: &Ctx) -> Outcome<String> {
    expect_injection()?;
    let _swap = Swap::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    for chunk in 0..CHUNKS as u32 {
        page_out(&arena, 0..arena.pages())?;
        let hold = Hold::new()?;
        let session = ctx
            .fork()
            .start(|| Err(Verdict::Failed("ran with a partial image".into())))?;
        session.expect_running()?;
        // Two allocations each: a table, and what the copy needs.
        inject(ctx, 2 * chunk + 1, 1)?;
        arena.fill(1 + chunk);
        let unused = left(ctx)?;
        claim!(unused == 0, "chunk {chunk}: nothing was made to fail");
        drop(hold);
        let ended = session.finish_killed()?;
        claim!(ended.was_killed(), "chunk {chunk}: the child survived");
        arena.verify()?;
        ended
            .parked(CHUNKS)?
            .aborted()?
            .holds("odd chunks", |r| r.odd == u64::from(chunk) + 1)?;
    }
    Ok(format!("{CHUNKS} children killed"))
}
