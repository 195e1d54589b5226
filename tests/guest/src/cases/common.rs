// SPDX-License-Identifier: MIT OR Apache-2.0
//! What many tests share.

use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::{Arena, Shape, CHUNK};
use crate::require;
use crate::rng::Rng;
use crate::session::Ended;
use crate::sys;
use crate::verdict::TestResult;
use asyncfork_uapi::{Hook, Reason};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

/// Something the parent does to an arena; it keeps the arena's model true.
pub type Op = fn(&mut Arena, &mut Rng) -> TestResult;

/// Milliseconds that a task lingers (fault injection), if the test does not end it: less than it takes to be called stuck.
pub const LINGER_MS: u32 = 15_000;

/// While this lives a task lingers in a function of the module built for fault injection.
pub struct Linger<'a> {
    ctx: &'a Ctx,
    pid: i32,
}

impl<'a> Linger<'a> {
    /// `place`: the function; `ms`: of the task's own time, if nobody ends it.
    pub fn new(ctx: &'a Ctx, pid: i32, place: &str, ms: u32) -> TestResult<Self> {
        ctx.module.set("fault_linger_ms", ms)?;
        ctx.module.set("fault_linger_in", place)?;
        ctx.module.set("fault_linger_pid", pid)?;
        Ok(Self { ctx, pid })
    }

    /// Whether it is there now.
    pub fn is_inside(&self) -> TestResult<bool> {
        Ok(self.ctx.module.get("fault_lingering")? == self.pid.to_string())
    }

    /// Waits until it is there.
    pub fn expect_inside(&self) -> TestResult {
        let inside =
            sys::poll_until(|| -> TestResult<Option<()>> { Ok(self.is_inside()?.then_some(())) })?;
        require!(inside.is_some(), "nobody lingers there");
        Ok(())
    }
}

impl Drop for Linger<'_> {
    fn drop(&mut self) {
        let _ = self.ctx.module.set("fault_linger_pid", 0);
    }
}

/// Rounds of a racing test, if the race happens in one of them.
const ROUNDS: u32 = 6;

/// Parks an arena of `shape`, does `op` while the child cannot run, and checks both sides. `hook` must have pulled every
/// chunk of the arena (`all`) or at least one.
pub fn held(ctx: &Ctx, op: Op, hook: Hook, all: bool, shape: Shape) -> TestResult<String> {
    let mut rng = ctx.rng();
    allow_shape(ctx, shape)?;
    let mut arena = Arena::shaped(&mut rng, shape)?;
    let chunks = (arena.span().len() / CHUNK) as u64;

    let ended = while_held(ctx, &mut arena, |arena| op(arena, &mut rng))?;
    ended
        .whole(chunks)?
        .pulled(hook, if all { chunks } else { 1 })?;
    Ok(ended.detail())
}

/// Forks, does `op` while the child cannot run, and checks the arena on both sides.
pub fn while_held(
    ctx: &Ctx,
    arena: &mut Arena,
    op: impl FnOnce(&mut Arena) -> TestResult,
) -> TestResult<Ended> {
    fork_under(ctx, Hold::new()?, arena, |_, arena| op(arena))
}

/// Like [`while_held`], but `op` may sleep.
pub fn while_plugged(
    ctx: &Ctx,
    plug: &Plug,
    arena: &mut Arena,
    op: impl FnOnce(&mut Arena) -> TestResult,
) -> TestResult<Ended> {
    fork_under(ctx, plug.hold()?, arena, |hold, arena| {
        hold.step_aside()?;
        op(arena)
    })
}

fn fork_under<H>(
    ctx: &Ctx,
    hold: H,
    arena: &mut Arena,
    op: impl FnOnce(&H, &mut Arena) -> TestResult,
) -> TestResult<Ended> {
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    op(&hold, arena)?;
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    Ok(ended)
}

/// Forks armed and demands a stock fork, for `reason`, with the right image.
pub fn expect_stock(ctx: &Ctx, arena: &mut Arena, reason: Reason) -> TestResult {
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    arena.fill(1);
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    ended.stock(reason)?;
    Ok(())
}

/// Forks and does `op` while the child copies at the same time, on a fresh arena each round. In one of them `hook` must have
/// found a chunk that the child had not come to.
pub fn racing(ctx: &Ctx, hook: Hook, op: Op) -> TestResult<String> {
    prepared_racing(ctx, hook, |_| Ok(()), |arena, rng, ()| op(arena, rng))
}

/// Like [`racing`]; what takes too long for a race is done before the fork.
pub fn prepared_racing<T>(
    ctx: &Ctx,
    hook: Hook,
    prepare: impl Fn(&Arena) -> TestResult<T>,
    op: impl Fn(&mut Arena, &mut Rng, T) -> TestResult,
) -> TestResult<String> {
    let mut rng = ctx.rng();
    let (rounds, met) = rounds(ctx, ROUNDS, |round| {
        // A child that has always been faster gets more to copy.
        let mib = if round < ROUNDS { 8 } else { 32 };
        let mut arena = Arena::new(&mut rng, mib)?;
        let chunks = arena.chunks();
        let prepared = prepare(&arena)?;
        let session = ctx.fork().start(|| arena.verify())?;
        pause(&mut rng);
        op(&mut arena, &mut rng, prepared)?;
        let ended = session.finish()?;
        arena.verify().map_err(|v| v.at("parent"))?;
        ended.whole(chunks)?;
        arena.span().unmap()?;
        Ok(ended.report().map_or(0, |r| r.pulls_by(hook)))
    })?;
    Ok(format!(
        "{rounds} rounds, {met} chunks pulled by {hook} in the parent"
    ))
}

/// Runs `count` rounds of a race, and more until it has happened: each says how often it did. A test in whose rounds it never
/// happens has shown nothing.
///
/// Returns the number of rounds and the sum of what they said.
pub fn rounds(
    ctx: &Ctx,
    count: u32,
    mut round: impl FnMut(u32) -> TestResult<u64>,
) -> TestResult<(u32, u64)> {
    let (mut done, mut met) = (0, 0);
    while done < count || (met == 0 && !ctx.control && done < 5 * count) {
        met += round(done).map_err(|v| v.at(format!("round {done}")))?;
        done += 1;
    }
    require!(
        met > 0 || ctx.control,
        "in {done} rounds both sides never met"
    );
    Ok((done, met))
}

/// Lets the module park what `shape` needs.
pub fn allow_shape(ctx: &Ctx, shape: Shape) -> TestResult {
    if matches!(shape, Shape::Partial(_)) && !ctx.control {
        ctx.module.set("park_partial", 1)?;
    }
    Ok(())
}

/// Does nothing for a random moment, so that rounds differ in who comes first.
pub fn pause(rng: &mut Rng) {
    for _ in 0..rng.below(20_000) {
        std::hint::spin_loop();
    }
}

/// A pipe that passes numbers from one process to another.
pub struct Gate {
    read: OwnedFd,
    write: OwnedFd,
}

impl Gate {
    /// To be made before the processes part.
    pub fn new() -> io::Result<Self> {
        let (read, write) = crate::sys::pipe()?;
        Ok(Self { read, write })
    }

    /// Lets one waiter pass.
    pub fn open(&self, value: i32) -> io::Result<()> {
        File::from(self.write.try_clone()?).write_all(&value.to_ne_bytes())
    }

    /// Waits for [`Gate::open`].
    pub fn pass(&self) -> io::Result<i32> {
        let mut buf = [0; 4];
        File::from(self.read.try_clone()?).read_exact(&mut buf)?;
        Ok(i32::from_ne_bytes(buf))
    }
}
