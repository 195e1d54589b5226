// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads and stores of both sides.

use super::common::{pause, rounds};
use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Shape, Span, PAGE};
use crate::procfs;
use crate::rng::{mix, Rng};
use crate::sys;
use crate::verdict::{Context, TestResult};
use asyncfork_uapi::Hook;
use std::sync::atomic::{AtomicBool, Ordering};

pub const TESTS: &[Test] = &[
    Test::held(
        "parent_overwriting_everything_leaves_the_child_its_image",
        Hook::Fault,
        overwrite,
    )
    .quick(),
    Test::held(
        "parent_writing_random_pages_leaves_the_child_its_image",
        Hook::Fault,
        overwrite_random,
    ),
    Test::held("parent_reading_parked_memory_sees_it", Hook::Fault, read),
    Test::racing(
        "parent_overwriting_beside_a_copying_child_disturbs_nobody",
        Hook::Fault,
        overwrite,
    ),
    Test::racing(
        "parent_writing_random_pages_beside_a_copying_child_disturbs_nobody",
        Hook::Fault,
        overwrite_random,
    )
    .quick(),
    Test::partial(
        "parent_overwriting_everything_park_partial",
        Hook::Fault,
        overwrite,
    ),
    Test::new("undisturbed_child_copies_every_chunk_itself", undisturbed).quick(),
    Test::new("child_writes_do_not_reach_the_parent", child_writes),
    Test::new("both_sides_write_and_keep_their_own", both_write),
    Test::new("image_is_one_instant_of_a_running_writer", one_instant),
    Test::new(
        "memory_counters_of_the_child_are_those_of_a_stock_fork",
        counters,
    ),
];

pub fn overwrite(arena: &mut Arena, _: &mut Rng) -> TestResult {
    arena.fill(1);
    Ok(())
}

pub fn overwrite_random(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    arena.write_every(1, rng);
    Ok(())
}

fn read(arena: &mut Arena, _: &mut Rng) -> TestResult {
    arena.verify()
}

fn undisturbed(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 32)?;
    let session = ctx.fork().start(|| arena.verify())?;
    let ended = session.finish()?;
    arena.verify()?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Child, arena.chunks())?;
    Ok(ended.detail())
}

fn child_writes(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let mut rng = ctx.rng();
    let session = ctx.fork().start(|| {
        let mut mine = arena.clone();
        overwrite_random(&mut mine, &mut rng)?;
        mine.verify()
    })?;
    let ended = session.finish()?;
    arena.verify()?;
    ended.whole(arena.chunks())?;
    // The parent can still write, and sees only its own.
    arena.fill(2);
    arena.verify()?;
    Ok(ended.detail())
}

fn both_write(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let (rounds, by_parent) = rounds(ctx, 4, |round| {
        let half = arena.shuffled(&mut rng);
        let (early, late) = half.split_at(half.len() / 2);
        let session = ctx.fork().start(|| {
            let mut mine = arena.clone();
            for &page in late {
                mine.write(page, 5);
            }
            mine.verify()
        })?;
        for &page in early {
            arena.write(page, 1 + round);
        }
        let ended = session.finish()?;
        arena.verify()?;
        let report = ended.whole(arena.chunks())?.report();
        Ok(report.map_or(0, |r| r.chunks.by_parent))
    })?;
    Ok(format!(
        "{rounds} rounds, {by_parent} chunks pulled by the parent"
    ))
}

/// A thread that writes the numbers 1, 2, 3, ... to the first word of pages in an order that can be replayed.
struct Writer {
    span: Span,
    salt: u64,
}

impl Writer {
    const STEPS: u64 = 2_000_000;

    fn page(&self, step: u64) -> usize {
        (mix(step ^ self.salt) % self.span.pages() as u64) as usize
    }

    fn run(&self, stop: &AtomicBool) {
        for step in 1..=Self::STEPS {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            self.span.store(self.page(step) * PAGE, step);
        }
    }

    /// Whether memory holds the effect of exactly the steps up to some number, which is returned.
    fn verify(&self, arena: &Arena) -> TestResult<u64> {
        let mut arena = arena.clone();
        let first = |page: usize| self.span.load(page * PAGE);
        let is_step = |word: u64| (1..=Self::STEPS).contains(&word);
        let last = (0..self.span.pages())
            .map(first)
            .filter(|&w| is_step(w))
            .max()
            .unwrap_or(0);
        let mut want = vec![0; self.span.pages()];
        for step in 1..=last {
            want[self.page(step)] = step;
        }
        for (page, &step) in want.iter().enumerate() {
            if step != 0 {
                arena.expect_word(page, 0, step);
            }
        }
        arena.verify().at(format!("after step {last}"))?;
        Ok(last)
    }
}

fn one_instant(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let (rounds, by_parent) = rounds(ctx, 8, |_| {
        let arenas = [Arena::new(&mut rng, 8)?, Arena::new(&mut rng, 8)?];
        let writers = arenas.each_ref().map(|a| Writer {
            span: a.span(),
            salt: mix(a.key(0, 99)),
        });
        let stop = AtomicBool::new(false);
        let verify = || -> TestResult<u64> {
            let mut sum = 0;
            for (writer, arena) in writers.iter().zip(&arenas) {
                sum += writer.verify(arena)?;
            }
            Ok(sum)
        };
        let by_parent = std::thread::scope(|scope| -> TestResult<u64> {
            for writer in &writers {
                scope.spawn(|| writer.run(&stop));
            }
            for _ in 0..20 {
                pause(&mut rng);
            }
            let forked = ctx.fork().start(|| verify().map(drop));
            for _ in 0..20 {
                pause(&mut rng);
            }
            stop.store(true, Ordering::Relaxed);
            forked?
                .finish()?
                .whole(8)
                .map(|e| e.report().map_or(0, |r| r.chunks.by_parent))
        })?;
        verify().map_err(|v| v.at("parent"))?;
        for arena in &arenas {
            arena.span().unmap()?;
        }
        Ok(by_parent)
    })?;
    Ok(format!(
        "{rounds} rounds, {by_parent} chunks pulled by the parent"
    ))
}

fn counters(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let arena = Arena::shaped(&mut rng, Shape::Whole(32))?;
    let span = arena.span();
    let pte_kib = || -> std::io::Result<(usize, usize)> {
        Ok((procfs::status(0, "RssAnon")?, procfs::status(0, "VmPTE")?))
    };
    let (rss, pte) = pte_kib()?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        let (child_rss, child_pte) = pte_kib()?;
        // The child has touched a few pages of its own and may lack tables that the parent has emptied.
        claim!(
            child_rss.abs_diff(rss) <= 2048,
            "RssAnon {child_rss} KiB, the parent's is {rss} KiB"
        );
        claim!(
            child_pte.abs_diff(pte) <= 16,
            "VmPTE {child_pte} KiB, the parent's is {pte} KiB"
        );
        let in_arena = procfs::smaps(0, span, "Rss")?;
        claim!(
            in_arena == span.len() >> 10,
            "Rss of the arena {in_arena} KiB, want {}",
            span.len() >> 10
        );
        arena.verify()
    })?;
    session.expect_running()?;
    let parked_rss = procfs::status(sys::pid(), "RssAnon")?;
    session.expect_running()?;
    drop(hold);
    claim!(
        parked_rss.abs_diff(rss) <= 2048,
        "RssAnon {parked_rss} KiB while parked, was {rss} KiB"
    );
    let ended = session.finish()?;
    let (after, after_pte) = pte_kib()?;
    claim!(
        after.abs_diff(rss) <= 2048,
        "RssAnon {after} KiB after the session, was {rss} KiB"
    );
    claim!(
        after_pte.abs_diff(pte) <= 16,
        "VmPTE {after_pte} KiB after the session, was {pte} KiB"
    );
    arena.verify()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}
