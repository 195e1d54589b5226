// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forks while the image of an earlier one is still parked.

use super::common::{rounds, while_plugged};
use super::writes::overwrite_random;
use super::Test;
use crate::claim;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::Arena;
use crate::rng::Rng;
use crate::session::Session;
use crate::verdict::{TestResult, Verdict};
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
fn second(ctx: &Ctx, armed: bool) -> TestResult<String> {
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
    if armed {
        second.expect_child_held()?;
    }
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

fn second_unarmed(ctx: &Ctx) -> TestResult<String> {
    second(ctx, false)
}

fn second_armed(ctx: &Ctx) -> TestResult<String> {
    second(ctx, true)
}

fn ten_in_a_row(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let hold = Hold::new()?;
    let mut sessions: Vec<Session> = Vec::new();
    for gen in 1..=10 {
        let session = ctx.fork().start(|| arena.verify())?;
        session.expect_running()?;
        sessions.push(session);
        // At least one of the four chunks is left for the next fork to meet.
        let range = rng.range(arena.pages(), 700);
        arena.write_range(range, gen);
    }
    for session in &sessions {
        session.expect_child_held()?;
    }
    drop(hold);
    let last = sessions.len() - 1;
    for (i, session) in sessions.into_iter().enumerate() {
        session
            .finish()
            .map_err(|v| v.at(format!("child {i}")))?
            .whole(arena.chunks())?
            .pulled(Hook::Fork, u64::from(i < last))?;
    }
    arena.verify().map_err(|v| v.at("parent"))?;
    Ok("10 sessions".into())
}

fn generations(ctx: &Ctx) -> TestResult<String> {
    fn generation(ctx: &Ctx, arena: &mut Arena, rng: &mut Rng, depth: u32) -> TestResult {
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

fn threads(ctx: &Ctx) -> TestResult<String> {
    const THREADS: usize = 4;
    const FORKS: u32 = 5;
    let mut rng = ctx.rng();
    let mut arenas = Vec::new();
    for _ in 0..THREADS {
        arenas.push(Arena::new(&mut rng, 4)?);
    }
    // Forks of one thread that met what another's had parked.
    let (rounds, met) = rounds(ctx, 1, |round| {
        let met = std::thread::scope(|scope| {
            let workers: Vec<_> = arenas
                .iter_mut()
                .enumerate()
                .map(|(n, arena)| {
                    let mut rng = Rng::new(ctx.seed, &format!("{}-{round}-{n}", ctx.name));
                    scope.spawn(move || -> TestResult<u64> {
                        let mut met = 0;
                        for gen in 1..=FORKS {
                            let session = ctx.fork().start(|| arena.verify())?;
                            let range = rng.range(arena.pages(), arena.pages());
                            arena.write_range(range, gen);
                            let ended = session.finish()?;
                            arena.verify()?;
                            let report = ended.whole(arena.chunks())?.report();
                            met += report.map_or(0, |r| r.pulls_by(Hook::Fork));
                        }
                        Ok(met)
                    })
                })
                .collect();
            let mut met = 0;
            for (n, worker) in workers.into_iter().enumerate() {
                met += crew::verdict(worker.join()).map_err(|v| v.at(format!("thread {n}")))?;
            }
            Ok::<_, Verdict>(met)
        })?;
        for arena in &arenas {
            arena.verify()?;
        }
        Ok(met)
    })?;
    Ok(format!(
        "{rounds} times {THREADS} threads, {FORKS} forks each, {met} chunks pulled by another's fork"
    ))
}

fn storm(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut parked = 0;
    let (rounds, met) = rounds(ctx, 10, |round| {
        let mut met = 0;
        let mut sessions = Vec::new();
        for n in 0..6 {
            sessions.push(ctx.fork().start(|| arena.verify())?);
            let range = rng.range(arena.pages(), 300);
            arena.write_range(range, 1 + round * 6 + n);
        }
        for session in sessions {
            let ended = session.finish()?;
            ended.whole(arena.chunks())?;
            parked += ended.report().map_or(0, |r| r.chunks.parked);
            met += ended.report().map_or(0, |r| r.pulls_by(Hook::Fork));
        }
        arena.verify()?;
        Ok(met)
    })?;
    Ok(format!(
        "{rounds} times 6 forks, {parked} chunks parked, {met} pulled by the next fork"
    ))
}

fn spawn(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut rng, 16)?;
    for round in 1..4 {
        let hold = plug.hold()?;
        let session = ctx.fork().start(|| {
            let output = Command::new("/bin/echo").arg("child").output()?;
            claim!(
                output.stdout == b"child\n",
                "a program started by the child said {output:?}"
            );
            arena.verify()
        })?;
        session.expect_running()?;
        hold.step_aside()?;
        let output = Command::new("/bin/echo").arg("parent").output()?;
        claim!(
            output.stdout == b"parent\n",
            "a program started by the parent said {output:?}"
        );
        session.expect_running()?;
        overwrite_random(&mut arena, &mut rng)?;
        session.expect_child_held()?;
        drop(hold);
        let ended = session.finish()?;
        arena.verify()?;
        ended
            .whole(arena.chunks())?
            .pulled(Hook::Fault, arena.chunks())?;
        arena.fill(round + 1);
    }
    Ok("3 rounds".into())
}

fn thread_life(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut rng, 16)?;
    let ended = while_plugged(ctx, &plug, &mut arena, |arena| {
        let span = arena.span();
        let sum = |word: usize, chunk: usize| {
            arena
                .chunk(chunk)
                .map(|page| span.page(page).load(8 * word))
                .fold(0, u64::wrapping_add)
        };
        // One after the other: each of them meets a chunk that is parked, and ends with the next ones still there.
        for chunk in 0..arena.chunks() as usize {
            let sum = std::thread::scope(|s| s.spawn(|| sum(chunk, chunk)).join());
            claim!(
                sum.is_ok_and(|sum| sum != 0),
                "a thread saw nothing but zeros"
            );
        }
        overwrite_random(arena, &mut rng)
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?;
    Ok(ended.detail())
}
