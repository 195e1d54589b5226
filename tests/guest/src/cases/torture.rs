// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations of several threads and processes, against the model.

use super::unmap::some_range;
use super::Test;
use crate::ctx::Ctx;
use crate::mem::{probe, Arena, Shape, Span, Want, PAGE};
use crate::rng::Rng;
use crate::sys;
use crate::verdict::{Context, Outcome, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{Outcome as Fate, Reason};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
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

/// One random operation; the arena's pieces stay mapped and writable.
fn operation(arena: &mut Arena, rng: &mut Rng, gen: u32) -> Outcome {
    let range = some_range(arena, rng, 300);
    let span = arena.part(range.clone());
    match rng.below(12) {
        0 => {
            span.advise(libc::MADV_DONTNEED)?;
            arena.expect(range, Want::Zero);
        }
        1 => {
            span.unmap()?;
            span.map(RW, libc::MAP_PRIVATE)?;
            span.advise(libc::MADV_NOHUGEPAGE)?;
            arena.expect(range, Want::Zero);
        }
        2 => {
            span.map(RW, libc::MAP_PRIVATE)?;
            span.advise(libc::MADV_NOHUGEPAGE)?;
            arena.expect(range.clone(), Want::Zero);
            arena.write_range(range, gen);
        }
        3 => {
            span.protect(libc::PROT_READ)?;
            claim!(
                !probe::store(span, 1),
                "a store to read-only memory went through"
            );
            span.protect(RW)?;
        }
        4 => {
            // One page, which is certainly in one mapping; more may be in several, and mremap refuses those.
            let page = arena.part(range.start..range.start + 1);
            let away = Span::reserve(PAGE)?;
            page.remap(PAGE, 0, Some(away))?;
            arena
                .moved(range.start..range.start + 1, away)
                .verify()
                .at("moved away")?;
            away.remap(PAGE, 0, Some(page))?;
        }
        5 => {
            span.lock(0)?;
            span.unlock()?;
        }
        6 => span.advise(libc::MADV_COLD)?,
        7 => {
            let map = crate::procfs::pagemap(0, span)?;
            require!(map.len() == span.pages(), "pagemap is short");
        }
        8 => arena.verify()?,
        _ => arena.write_range(range, gen),
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the child does: verify, and in half of the cases torture its own copy first or after.
fn child(arenas: &[Mutex<Arena>], mut held: Vec<MutexGuard<'_, Arena>>, mut rng: Rng) -> Outcome {
    let busy = rng.one_in(2);
    for arena in &held {
        arena.verify()?;
    }
    require!(held.len() == arenas.len(), "not all locks are held");
    if busy {
        for arena in &mut held {
            for n in 0..12 {
                operation(arena, &mut rng, 100 + n)?;
            }
            arena.verify().at("child's own changes")?;
        }
    }
    Ok(())
}

fn torture(ctx: &Ctx, shape: Shape) -> Outcome<String> {
    super::common::allow_shape(ctx, shape)?;
    let mut rng = ctx.rng();
    let mut arenas = Vec::new();
    for _ in 0..THREADS {
        arenas.push(Mutex::new(Arena::shaped(&mut rng, shape)?));
    }
    let (stop, wanted) = (AtomicBool::new(false), AtomicBool::new(false));
    let (mut parked, mut by_parent, mut killed, mut stock) = (0, 0, 0, 0);
    let result = std::thread::scope(|scope| -> Outcome {
        let threads: Vec<_> = arenas
            .iter()
            .enumerate()
            .map(|(n, arena)| {
                let mut rng = Rng::new(ctx.seed, &format!("{}-{n}", ctx.name));
                let (stop, wanted) = (&stop, &wanted);
                scope.spawn(move || -> Outcome {
                    let mut gen = 1;
                    while !stop.load(Ordering::Relaxed) {
                        // A mutex alone is not fair: the forking thread would hardly get all of them.
                        while wanted.load(Ordering::SeqCst) && !stop.load(Ordering::Relaxed) {
                            std::thread::yield_now();
                        }
                        operation(&mut lock(arena), &mut rng, gen)?;
                        gen += 1;
                    }
                    Ok(())
                })
            })
            .collect();
        let forks = (0..FORKS).try_for_each(|_| -> Outcome {
            for _ in 0..rng.below(10) {
                super::common::pause(&mut rng);
            }
            // The models are true at the fork: nobody is in an operation.
            wanted.store(true, Ordering::SeqCst);
            let held: Vec<_> = arenas.iter().map(lock).collect();
            let for_child = Rng::new(rng.next(), "child");
            let helpers = if rng.one_in(4) { 1 } else { 0 };
            let mut held = Some(held);
            let session = ctx
                .fork()
                .helpers(helpers)
                .start(|| child(&arenas, held.take().unwrap_or_default(), for_child))?;
            drop(held);
            wanted.store(false, Ordering::SeqCst);
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
            parked += ended.report().map_or(0, |r| r.parked);
            by_parent += ended.report().map_or(0, |r| r.by_parent);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|_| Err(Verdict::Broken("panic".into())))
                .at("thread")?;
        }
        forks
    });
    result?;
    for arena in &arenas {
        lock(arena).verify().map_err(|v| v.at("parent"))?;
    }
    require!(parked > 0 || ctx.control, "nothing was ever parked");
    Ok(format!(
        "{FORKS} forks, {killed} killed, {stock} stock, {parked} chunks parked, {by_parent} pulled by the parent"
    ))
}
