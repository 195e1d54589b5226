// SPDX-License-Identifier: MIT OR Apache-2.0
//! A child that is stopped, frozen or throttled holds up nobody: the parent's operations end while the child stands still.

use super::common::pause;
use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Want};
use crate::require;
use crate::rng::Rng;
use crate::session::Session;
use crate::sys;
use crate::verdict::Outcome;

pub const TESTS: &[Test] = &[
    Test::new("parent_goes_on_while_its_child_is_frozen", frozen).quick(),
    Test::new("parent_goes_on_while_its_child_is_throttled", throttled),
    Test::new("parent_goes_on_while_its_child_is_stopped", stopped),
];

/// One of each operation that takes the parent's locks.
fn operations(arena: &mut Arena, rng: &mut Rng) -> Outcome {
    let fresh = Arena::new(rng, 2)?;
    arena.part(arena.chunk(0)).unmap()?;
    arena.unmapped(0..512);
    arena.part(arena.chunk(1)).advise(libc::MADV_DONTNEED)?;
    let pages = arena.chunk(1);
    arena.expect(pages, Want::Zero);
    arena.part(arena.chunk(2)).protect(libc::PROT_READ)?;
    arena
        .part(arena.chunk(2))
        .protect(libc::PROT_READ | libc::PROT_WRITE)?;
    arena.part(arena.chunk(3)).lock(0)?;
    arena.part(arena.chunk(3)).unlock()?;
    let pages = arena.chunk(4).start..arena.pages();
    arena.write_range(pages, 1);
    arena.verify()?;
    fresh.verify()?;
    Ok(fresh.span().unmap()?)
}

fn finish(session: Session, arena: &Arena) -> Outcome<String> {
    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}

fn frozen(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let chunks = arena.chunks();
    let ice = ctx.cgroup.child("ice")?;
    ice.set("cgroup.freeze", 1)?;
    let session = ctx.fork().into_cgroup(&ice)?.start(|| arena.verify())?;
    session.expect_running()?;
    operations(&mut arena, &mut rng)?;
    // The child stands still now and for as long as we like; whatever is left is the parent's own work.
    let is_frozen = || ice.get_key("cgroup.events", "frozen ");
    let stands =
        sys::poll_until(|| -> Outcome<Option<()>> { Ok((is_frozen()? == 1).then_some(())) })?;
    require!(stands.is_some(), "the child does not freeze");
    arena.fill(2);
    arena.verify()?;
    claim!(is_frozen()? == 1, "the child has thawed");
    ice.set("cgroup.freeze", 0)?;
    let ended = session.finish()?;
    arena.verify()?;
    ended.whole(chunks)?;
    Ok(ended.detail())
}

/// Every other child is held back until its parent has begun: since Linux 6.18 a task is throttled on its way to user mode only,
/// which a child reaches when it has copied everything.
fn throttled(ctx: &Ctx) -> Outcome<String> {
    const ROUNDS: usize = 4;
    let mut rng = ctx.rng();
    let mut ahead = 0;
    let mut detail = String::new();
    for round in 0..ROUNDS {
        let mut arena = Arena::new(&mut rng, 32)?;
        let slow = ctx.cgroup.child(&format!("slow{round}"))?;
        // One millisecond a second: enough for a few chunks.
        slow.set("cpu.max", "1000 1000000")?;
        let hold = (round % 2 == 1).then(Hold::new).transpose()?;
        let session = ctx.fork().into_cgroup(&slow)?.start(|| arena.verify())?;
        session.expect_running()?;
        if hold.is_some() {
            arena.write_range(arena.chunk(4), 1);
        }
        drop(hold);
        pause(&mut rng);
        operations(&mut arena, &mut rng)?;
        ahead += u32::from(session.report()?.is_some_and(|r| r.by_parent > 0));
        slow.set("cpu.max", "max")?;
        detail = finish(session, &arena)?;
        arena.span().unmap()?;
    }
    require!(ahead > 0 || ctx.control, "the child was never behind");
    Ok(format!(
        "parent ahead of its child in {ahead} of {ROUNDS} rounds; {detail}"
    ))
}

fn stopped(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    sys::kill(session.pid, libc::SIGSTOP)?;
    session.expect_child_held()?;
    drop(hold);
    let mut status = 0;
    // SAFETY: the status lives across the call.
    sys::cvt(unsafe { libc::waitpid(session.pid, &mut status, libc::WUNTRACED) })?;
    require!(
        libc::WIFSTOPPED(status),
        "the child did not stop: status {status:#x}"
    );
    operations(&mut arena, &mut rng)?;
    sys::kill(session.pid, libc::SIGCONT)?;
    finish(session, &arena)
}
