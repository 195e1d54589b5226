// SPDX-License-Identifier: MIT OR Apache-2.0
//! mlock and friends.

use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Span};
use crate::procfs;
use crate::rng::Rng;
use crate::sys;
use crate::verdict::{Context, TestResult};
use asyncfork_uapi::Hook;

pub const TESTS: &[Test] = &[
    Test::held("mlock_of_parked_memory_locks_all_of_it", Hook::Walk, lock).quick(),
    Test::held(
        "mlock_and_munlock_of_parked_memory_lose_nothing",
        Hook::Walk,
        lock_and_unlock,
    ),
    Test::held(
        "mlock_onfault_of_parked_memory_loses_nothing",
        Hook::Walk,
        lock_on_fault,
    ),
    Test::held(
        "mlockall_with_parked_memory_locks_all_of_it",
        Hook::Walk,
        lock_all,
    ),
    Test::racing(
        "mlock_and_munlock_beside_a_copying_child_disturb_nobody",
        Hook::Walk,
        lock_and_unlock,
    ),
    Test::new(
        "locked_memory_is_parked_and_munlocked_while_parked",
        parked_locked,
    ),
];

/// Demands that every page counts as locked.
fn expect_locked(span: Span) -> TestResult {
    let locked = procfs::smaps(0, span, "Locked")?;
    // The pages are shared with the child, so that each process counts half of each or all of it, by kernel version.
    claim!(
        locked >= span.len() >> 11,
        "only {locked} KiB of {} KiB count as locked",
        span.len() >> 10
    );
    let flagged = procfs::pagemap(0, span)?
        .iter()
        .filter(|e| *e & procfs::PRESENT != 0)
        .count();
    claim!(
        flagged == span.pages(),
        "only {flagged} of {} locked pages are present",
        span.pages()
    );
    Ok(())
}

fn lock(arena: &mut Arena, _: &mut Rng) -> TestResult {
    arena.span().lock(0)?;
    expect_locked(arena.span())?;
    arena.fill(1);
    Ok(())
}

fn lock_and_unlock(arena: &mut Arena, _: &mut Rng) -> TestResult {
    arena.span().lock(0)?;
    arena.span().unlock()?;
    arena.fill(1);
    Ok(())
}

fn lock_on_fault(arena: &mut Arena, _: &mut Rng) -> TestResult {
    arena.span().lock(libc::MLOCK_ONFAULT)?;
    arena.fill(1);
    expect_locked(arena.span())
}

fn lock_all(arena: &mut Arena, _: &mut Rng) -> TestResult {
    // SAFETY: locking changes no contents.
    sys::cvt(unsafe { libc::mlockall(libc::MCL_CURRENT) }).at("mlockall")?;
    expect_locked(arena.span())?;
    // SAFETY: as above.
    sys::cvt(unsafe { libc::munlockall() }).at("munlockall")?;
    Ok(())
}

fn parked_locked(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let span = arena.span();
    span.lock(0)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        let locked = procfs::smaps(0, span, "Locked")?;
        claim!(
            locked == 0,
            "{locked} KiB are locked in the child, which inherits no locks"
        );
        arena.verify()
    })?;
    session.expect_running()?;
    span.unlock()?;
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.fill(1);
    arena.verify()?;
    let still = procfs::smaps(0, span, "Locked")?;
    claim!(still == 0, "{still} KiB still count as locked");
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, arena.chunks())?;
    Ok(ended.detail())
}
