// SPDX-License-Identifier: MIT OR Apache-2.0
//! A child that does not run holds up nobody. Before it stops or freezes it has its image, for it does so on its way to user
//! mode; throttled it may be with all of its memory parked.

use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::{self, Plug};
use crate::mem::{Arena, Want};
use crate::rng::Rng;
use crate::session::Session;
use crate::sys;
use crate::verdict::{Context, TestResult};
use crate::{claim, require};
use asyncfork_uapi::State;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    Test::new(
        "child_told_to_freeze_gets_its_image_first_and_holds_up_nobody",
        frozen,
    )
    .quick(),
    Test::new(
        "child_told_to_stop_gets_its_image_first_and_holds_up_nobody",
        stopped,
    ),
    Test::new("parent_goes_on_while_its_child_is_throttled", throttled),
];

/// One of each operation that takes the parent's locks.
fn operations(arena: &mut Arena, rng: &mut Rng) -> TestResult {
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

/// The parent was ahead of its child: it has pulled all of `arena` itself, and the child the `rest`.
fn finish(session: Session, arena: &Arena, rest: &Arena) -> TestResult<String> {
    let ended = session.finish()?;
    arena.verify().and(rest.verify()).at("parent")?;
    ended
        .whole(arena.chunks() + rest.chunks())?
        .holds("the parent met parked memory", |r| {
            r.chunks.by_parent >= arena.chunks()
        })?
        .holds("the child met the rest", |r| {
            r.chunks.by_child >= rest.chunks()
        })?;
    Ok(ended.detail())
}

/// Demands that nothing is left to be copied of a child that stands still.
fn expect_image(session: &Session) -> TestResult {
    session.expect_state(State::Done, "the child stands still without its image")
}

fn frozen(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let (mut arena, rest) = (Arena::new(&mut rng, 16)?, Arena::new(&mut rng, 8)?);
    let ice = ctx.cgroup.child("ice")?;
    let hold = plug.hold()?;
    let session = ctx
        .fork()
        .into_cgroup(&ice)?
        .start(|| arena.verify().and(rest.verify()))?;
    session.expect_running()?;
    hold.step_aside()?;
    ice.set("cgroup.freeze", 1)?;
    operations(&mut arena, &mut rng)?;
    let is_frozen = || ice.get_key("cgroup.events", "frozen ");
    require!(is_frozen()? == 0, "the child is frozen already");
    session.expect_child_held()?;
    drop(hold);
    let stands =
        sys::poll_until(|| -> TestResult<Option<()>> { Ok((is_frozen()? == 1).then_some(())) })?;
    claim!(stands.is_some(), "the child does not freeze");
    expect_image(&session)?;
    arena.fill(2);
    arena.verify()?;
    claim!(is_frozen()? == 1, "the child has thawed");
    ice.set("cgroup.freeze", 0)?;
    finish(session, &arena, &rest)
}

fn stopped(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let (mut arena, rest) = (Arena::new(&mut rng, 16)?, Arena::new(&mut rng, 8)?);
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify().and(rest.verify()))?;
    session.expect_running()?;
    sys::kill(session.pid, libc::SIGSTOP)?;
    hold.step_aside()?;
    operations(&mut arena, &mut rng)?;
    session.expect_child_held()?;
    drop(hold);
    let mut status = 0;
    // SAFETY: the status lives across the call.
    sys::cvt(unsafe { libc::waitpid(session.pid, &mut status, libc::WUNTRACED) })?;
    claim!(
        libc::WIFSTOPPED(status),
        "the child did not stop: status {status:#x}"
    );
    expect_image(&session)?;
    arena.fill(2);
    arena.verify()?;
    sys::kill(session.pid, libc::SIGCONT)?;
    finish(session, &arena, &rest)
}

/// Somebody else has used up what the child's cgroup may run, for longer than the parent needs. Both are confined to one
/// processor: on another one the cgroup may still run for a tick.
fn throttled(ctx: &Ctx) -> TestResult<String> {
    const CPU: usize = 0;
    let mut rng = ctx.rng();
    let (mut arena, rest) = (Arena::new(&mut rng, 12)?, Arena::new(&mut rng, 4)?);
    let slow = ctx.cgroup.child("slow")?;
    // One millisecond a second.
    slow.set("cpu.max", "1000 1000000")?;
    let board = Board::new()?;
    let spender = ctx.helper(&board, "spender", || {
        sys::set_affinity(&[CPU])?;
        slow.enter()?;
        loop {
            std::hint::spin_loop();
        }
    })?;
    let spent = sys::poll_until(|| -> TestResult<Option<()>> {
        let n = slow.get_key("cpu.stat", "nr_throttled ")?;
        Ok((n > 0).then_some(()))
    })?;
    require!(spent.is_some(), "nobody is throttled");
    // A new second has begun: what it gives is soon gone, too.
    std::thread::sleep(Duration::from_millis(50));
    sys::set_affinity(&[CPU])?;
    let session = ctx
        .fork()
        .into_cgroup(&slow)?
        .start(|| arena.verify().and(rest.verify()))?;
    hold::run_anywhere()?;
    session.expect_running()?;
    operations(&mut arena, &mut rng)?;
    session.expect_child_held()?;
    slow.set("cpu.max", "max")?;
    sys::kill(spender, libc::SIGKILL)?;
    sys::wait(spender)?;
    board.collect(&[])?;
    finish(session, &arena, &rest)
}
