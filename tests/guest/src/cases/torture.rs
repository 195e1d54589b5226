// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations of several threads and processes, against the model.

use super::Test;
use crate::crew::{self, lock, Crew, Held};
use crate::ctx::Ctx;
use crate::mem::{Arena, Shape};
use crate::require;
use crate::rng::Rng;
use crate::sys;
use crate::torture::Mix;
use crate::verdict::{Context, TestResult};
use asyncfork_uapi::{Outcome as Fate, Reason};
use std::sync::Mutex;

const THREADS: usize = 3;
const FORKS: u32 = 24;

pub const TESTS: &[Test] = &[
    Test::new("random_operations_of_several_threads_on_both_sides", |c| {
        torture(c, Shape::Whole(8))
    })
    .quick(),
    Test::new(
        "random_operations_of_several_threads_on_both_sides_park_partial",
        |c| torture(c, Shape::Partial(6)),
    ),
];

/// What the child does: verify, and in half of the cases torture its own copy first or after.
fn child(mut held: Held<'_, Arena>, mut rng: Rng) -> TestResult {
    let busy = rng.one_in(2);
    for arena in held.iter() {
        arena.verify()?;
    }
    if busy {
        let mix = Mix::default();
        for arena in held.iter_mut() {
            for n in 0..12 {
                mix.operate(arena, &mut rng, 100 + n).result?;
            }
            arena.verify().at("child's own changes")?;
        }
    }
    Ok(())
}

fn torture(ctx: &Ctx, shape: Shape) -> TestResult<String> {
    super::common::allow_shape(ctx, shape)?;
    let mut rng = ctx.rng();
    let mut arenas = Vec::new();
    for _ in 0..THREADS {
        arenas.push(Mutex::new(Arena::shaped(&mut rng, shape)?));
    }
    let (crew, mix) = (Crew::new(&arenas, 0), Mix::default());
    let operate = |arena: &mut Arena, rng: &mut Rng, gen| mix.operate(arena, rng, gen).result;
    let (mut parked, mut by_parent, mut killed, mut stock) = (0, 0, 0, 0);
    let result = std::thread::scope(|scope| -> TestResult {
        let threads = crew.start(scope, &mut rng, operate)?;
        let forks = (0..FORKS).try_for_each(|_| -> TestResult {
            for _ in 0..rng.below(10) {
                super::common::pause(&mut rng);
            }
            let held = crew.hold();
            let for_child = Rng::new(rng.next(), "child");
            let helpers = if rng.one_in(4) { 1 } else { 0 };
            let session = ctx
                .fork()
                .helpers(helpers)
                .start(move || child(held, for_child))?;
            let kill = rng.one_in(5);
            if kill {
                super::common::pause(&mut rng);
                sys::kill(session.pid, libc::SIGKILL)?;
            }
            let ended = if kill {
                session.finish_killed()?
            } else {
                session.finish()?
            };
            killed += u32::from(kill);
            // The operations may have cut the mappings so that none covers a chunk.
            if ended.report().is_some_and(|r| r.outcome() == Fate::Stock) {
                ended.stock(Reason::Nothing)?;
                stock += 1;
                return Ok(());
            }
            ended.parked(1)?;
            if !kill {
                ended.done()?;
            }
            parked += ended.report().map_or(0, |r| r.chunks.parked);
            by_parent += ended.report().map_or(0, |r| r.chunks.by_parent);
            Ok(())
        });
        crew.stop();
        crew::join(threads).at("thread")?;
        forks
    });
    result?;
    for arena in &arenas {
        lock(arena).verify().map_err(|v| v.at("parent"))?;
    }
    require!(
        parked > 0 && by_parent > 0 || ctx.control,
        "{parked} chunks parked, {by_parent} pulled by the parent: both sides never met"
    );
    Ok(format!(
        "{FORKS} forks, {killed} killed, {stock} stock, {parked} chunks parked, {by_parent} pulled by the parent"
    ))
}
