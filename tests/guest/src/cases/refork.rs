// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forks while the image of an earlier one is still parked.

use super::writes::overwrite_random;
use super::Test;
use crate::claim;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::Arena;
use crate::rng::Rng;
use crate::verdict::{Outcome, Verdict};
use asyncfork_uapi::Hook;
use std::process::Command;

pub const TESTS: &[Test] = &[
    Test::new(
        "second_fork_unarmed_while_parked_gets_the_whole_image",
        second_unarmed,
    )
    .quick(),
    Test::new(
        "second_fork_armed_while_parked_gets_the_whole_image",
        second_armed,
    )
    .quick(),
    Test::new("ten_forks_in_a_row_get_their_own_images", ten_in_a_row),
    Test::new(
        "child_forks_on_and_every_generation_keeps_its_image",
        generations,
    ),
    Test::new("threads_forking_at_once_get_their_own_images", threads).quick(),
    Test::new("fork_storm_loses_nothing", storm),
    Test::new("vfork_and_exec_while_parked_disturb_nobody", spawn),
    Test::new(
        "threads_started_and_ended_while_parked_disturb_nobody",
        thread_life,
    ),
];

/// Parks generation 0, writes a few pages, forks again in the way of `armed`, writes everything.
fn second(ctx: &Ctx, armed: bool) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let hold = Hold::new()?;
    let first = ctx.fork().start(|| arena.verify())?;
    first.expect_running()?;
    arena.write_range(700..900, 1);
    let fork = if armed {
        ctx.fork()
    } else {
        ctx.fork().unarmed()
    };
    let second = fork.start(|| arena.verify())?;
    first.expect_child_held()?;
    overwrite_random(&mut arena, &mut rng)?;
    second.expect_child_held()?;
    drop(hold);

    let ended = first.finish().map_err(|v| v.at("first child"))?;
    let later = second.finish().map_err(|v| v.at("second child"))?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fork, arena.chunks() - 2)?;
    if armed {
        later
            .whole(arena.chunks())?
            .pulled(Hook::Fault, arena.chunks())?;
    }
    Ok(ended.detail())
}

fn second_unarmed(ctx: &Ctx) -> Outcome<String> {
    second(ctx, false)
}

fn second_armed(ctx: &Ctx) -> Outcome<String> {
    second(ctx, true)
}

fn ten_in_a_row(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let hold = Hold::new()?;
    let mut sessions = Vec::new();
    for gen in 1..=10 {
        sessions.push(ctx.fork().start(|| arena.verify())?);
        let range = rng.range(arena.pages(), 700);
        arena.write_range(range, gen);
    }
    drop(hold);
    for (i, session) in sessions.into_iter().enumerate() {
        session
            .finish()
            .map_err(|v| v.at(format!("child {i}")))?
            .whole(arena.chunks())?;
    }
    arena.verify().map_err(|v| v.at("parent"))?;
    Ok("10 sessions".into())
}

fn generations(ctx: &Ctx) -> Outcome<String> {
    fn generation(ctx: &Ctx, arena: &mut Arena, rng: &mut Rng, depth: u32) -> Outcome {
        if depth == 0 {
            return arena.verify();
        }
        let session = ctx.fork().start(|| {
            let mut mine = arena.clone();
            let mut rng = rng.clone();
            mine.verify()?;
            let range = rng.range(mine.pages(), 900);
            mine.write_range(range, depth);
            generation(ctx, &mut mine, &mut rng, depth - 1)?;
            mine.verify()
        })?;
        let range = rng.range(arena.pages(), 900);
        arena.write_range(range, depth + 10);
        let ended = session
            .finish()
            .map_err(|v| v.at(format!("depth {depth}")))?;
        arena.verify()?;
        ended.whole(arena.chunks()).map(drop)
    }
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    generation(ctx, &mut arena, &mut rng, 4)?;
    Ok("4 generations".into())
}

fn threads(ctx: &Ctx) -> Outcome<String> {
    const THREADS: usize = 4;
    const FORKS: u32 = 5;
    let mut rng = ctx.rng();
    let mut arenas = Vec::new();
    for _ in 0..THREADS {
        arenas.push(Arena::new(&mut rng, 4)?);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = arenas
            .iter_mut()
            .enumerate()
            .map(|(n, arena)| {
                let mut rng = Rng::new(ctx.seed, &format!("{}-{n}", ctx.name));
                scope.spawn(move || -> Outcome {
                    for gen in 1..=FORKS {
                        let session = ctx.fork().start(|| arena.verify())?;
                        let range = rng.range(arena.pages(), arena.pages());
                        arena.write_range(range, gen);
                        session.finish()?.whole(arena.chunks())?;
                        arena.verify()?;
                    }
                    Ok(())
                })
            })
            .collect();
        for (n, worker) in workers.into_iter().enumerate() {
            crew::verdict(worker.join()).map_err(|v| v.at(format!("thread {n}")))?;
        }
        Ok::<_, Verdict>(())
    })?;
    for arena in &arenas {
        arena.verify()?;
    }
    Ok(format!("{THREADS} threads, {FORKS} forks each"))
}

fn storm(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut parked = 0;
    for round in 0..10 {
        let mut sessions = Vec::new();
        for n in 0..6 {
            sessions.push(ctx.fork().start(|| arena.verify())?);
            let range = rng.range(arena.pages(), 300);
            arena.write_range(range, 1 + round * 6 + n);
        }
        for session in sessions {
            let ended = session.finish()?;
            ended.whole(arena.chunks())?;
            parked += ended.report().map_or(0, |r| r.parked);
        }
        arena.verify()?;
    }
    Ok(format!("60 forks, {parked} chunks parked"))
}

fn spawn(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    for round in 1..4 {
        let session = ctx.fork().start(|| {
            let output = Command::new("/bin/echo").arg("child").output()?;
            claim!(
                output.stdout == b"child\n",
                "a program started by the child said {output:?}"
            );
            arena.verify()
        })?;
        session.expect_async()?;
        let output = Command::new("/bin/echo").arg("parent").output()?;
        claim!(
            output.stdout == b"parent\n",
            "a program started by the parent said {output:?}"
        );
        overwrite_random(&mut arena, &mut rng)?;
        session.finish()?.whole(arena.chunks())?;
        arena.verify()?;
        arena.fill(round + 1);
    }
    Ok("3 rounds".into())
}

fn thread_life(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_async()?;
    let span = arena.span();
    let sums: Vec<u64> = (0..8)
        .map(|n| {
            std::thread::spawn(move || {
                (0..span.pages())
                    .map(|p| span.page(p).load(8 * n))
                    .fold(0, u64::wrapping_add)
            })
        })
        .map(|t| t.join().unwrap_or(0))
        .collect();
    claim!(
        sums.iter().all(|&s| s != 0),
        "a thread saw nothing but zeros"
    );
    overwrite_random(&mut arena, &mut rng)?;
    let ended = session.finish()?;
    arena.verify()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}
