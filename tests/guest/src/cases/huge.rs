// SPDX-License-Identifier: MIT OR Apache-2.0
//! Transparent huge pages: whole, split, made and broken up during a session.

use super::common::{pause, rounds, while_held, Gate};
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::{self, Hold, Plug};
use crate::mem::{Arena, Span, Want, CHUNK, CHUNK_PAGES};
use crate::module;
use crate::procfs::{self, Setting};
use crate::rng::Rng;
use crate::sys;
use crate::verdict::TestResult;
use crate::{claim, require, skip_unless};
use asyncfork_uapi::{Hook, Outcome as Fate, Reason};
use std::fs;
use std::io;
use std::path::Path;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const MADV_COLLAPSE: i32 = 25;

pub const TESTS: &[Test] = &[
    Test::new(
        "huge_pages_are_copied_at_the_fork_beside_parked_chunks",
        whole,
    )
    .quick(),
    Test::new(
        "huge_and_small_chunks_of_one_mapping_reach_both_sides",
        mixed,
    ),
    Test::new(
        "huge_pages_mapped_by_small_entries_reach_both_sides",
        pte_mapped,
    )
    .quick(),
    Test::new(
        "splitting_huge_pages_during_sessions_loses_nothing",
        split_racing,
    ),
    Test::new(
        "madv_collapse_of_parked_memory_loses_nothing",
        collapse_parent,
    ),
    Test::new("madv_collapse_by_the_child_loses_nothing", collapse_child),
    Test::new("khugepaged_during_sessions_loses_nothing", khugepaged),
    Test::new(
        "folios_of_64_kib_reach_both_sides_and_count_their_mappings",
        large_folios,
    )
    .quick(),
    Test::new("huge_zero_pages_stay_zero_on_both_sides", huge_zero),
];

/// A mapping of `mib` MiB with huge pages in those chunks that `huge` names, filled with generation 0. It gets no further
/// huge pages unless it is advised to.
fn arena(rng: &mut Rng, mib: usize, huge: impl Fn(usize) -> bool) -> TestResult<Arena> {
    let _setting = Setting::new(ENABLED, "always")?;
    let span = Span::reserve(mib << 20)?;
    span.map(RW, libc::MAP_PRIVATE)?;
    let mut arena = Arena::adopt(rng, span, Want::Zero);
    for (advice, want) in [(libc::MADV_HUGEPAGE, true), (libc::MADV_NOHUGEPAGE, false)] {
        span.advise(advice)?;
        for chunk in (0..span.len() / CHUNK).filter(|&c| huge(c) == want) {
            let pages = arena.chunk(chunk);
            arena.write_range(pages, 0);
        }
    }
    let want = (0..span.len() / CHUNK).filter(|&c| huge(c)).count();
    let got = huge_chunks(span)?;
    require!(got == want, "{got} huge pages, want {want}");
    Ok(arena)
}

/// Number of huge pages mapped as such.
fn huge_chunks(span: Span) -> TestResult<usize> {
    Ok(procfs::smaps(0, span, "AnonHugePages")? / (CHUNK >> 10))
}

fn whole(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut huge = arena(&mut rng, 16, |_| true)?;
    let mut small = Arena::new(&mut rng, 8)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        huge.verify()?;
        small.verify()
    })?;
    session.expect_running()?;
    huge.write_range(100..3000, 1);
    huge.part(3500..3700).advise(libc::MADV_DONTNEED)?;
    huge.expect(3500..3700, Want::Zero);
    small.fill(1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    huge.verify()?;
    small.verify()?;
    ended
        .whole(4)?
        .holds("huge chunks were copied during the fork", |r| {
            r.chunks.eager >= 8
        })?;
    Ok(ended.detail())
}

fn mixed(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = arena(&mut rng, 16, |chunk| chunk % 2 == 0)?;
    let ended = while_held(ctx, &mut arena, |arena| {
        arena.write_every(3, &mut rng);
        Ok(())
    })?;
    ended
        .whole(4)?
        .holds("huge chunks were copied during the fork", |r| {
            r.chunks.eager >= 4
        })?;
    Ok(ended.detail())
}

/// Giving up one page of a huge page makes the kernel map the rest of it by small entries.
fn pte_mapped_arena(rng: &mut Rng, mib: usize) -> TestResult<Arena> {
    let mut arena = arena(rng, mib, |_| true)?;
    for chunk in 0..arena.chunks() as usize {
        let page = chunk * CHUNK_PAGES + rng.below(CHUNK_PAGES);
        arena.part(page..page + 1).advise(libc::MADV_DONTNEED)?;
        arena.expect(page..page + 1, Want::Zero);
    }
    let left = huge_chunks(arena.span())?;
    require!(left == 0, "{left} huge pages are still mapped as such");
    Ok(arena)
}

fn pte_mapped(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = pte_mapped_arena(&mut rng, 16)?;
    let ended = while_held(ctx, &mut arena, |arena| {
        arena.write_every(3, &mut rng);
        Ok(())
    })?;
    ended
        .whole(8)?
        .holds("chunks with large folios were copied as mixed ones", |r| {
            r.chunks.mixed >= 8
        })?;
    Ok(ended.detail())
}

/// debugfs splits huge pages of the parent while it forks.
fn split_racing(ctx: &Ctx) -> TestResult<String> {
    const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
    let mut rng = ctx.rng();
    let (mut parked, before) = (0, procfs::vmstat("thp_split_page")?);
    let parent = sys::pid();
    let (rounds, met) = rounds(ctx, 6, |_| {
        let mut met = 0;
        let mut arena = pte_mapped_arena(&mut rng, 8)?;
        let (board, span) = (Board::new()?, arena.span());
        let splitter = ctx.helper(&board, "splitter", || {
            for _ in 0..4 {
                fs::write(
                    SPLIT,
                    format!("{parent},{:#x},{:#x}", span.addr(), span.end()),
                )?;
            }
            Ok(())
        })?;
        for n in 0..3 {
            let session = ctx.fork().start(|| arena.verify())?;
            pause(&mut rng);
            let range = rng.range(arena.pages(), 800);
            arena.write_range(range, 1 + n);
            let ended = session.finish()?;
            parked += ended.whole(4)?.report().map_or(0, |r| r.chunks.parked);
            met += ended.report().map_or(0, |r| r.chunks.by_other);
            arena.verify().map_err(|v| v.at("parent"))?;
        }
        sys::wait(splitter)?;
        board.collect(&["splitter"])?;
        span.unmap()?;
        Ok(met)
    })?;
    let split = procfs::vmstat("thp_split_page")? - before;
    require!(split > 0, "not one huge page was split");
    Ok(format!(
        "{rounds} times 3 forks, {parked} chunks parked, {met} pulled by the splitter, {split} huge pages split"
    ))
}

/// Whether MADV_COLLAPSE makes huge pages of all of `span`; contents must not change either way.
fn try_collapse(span: Span) -> TestResult<bool> {
    span.advise(libc::MADV_HUGEPAGE)?;
    match span.advise(MADV_COLLAPSE) {
        Ok(()) => Ok(true),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM | libc::EINVAL) => Ok(false),
            _ => Err(e.into()),
        },
    }
}

/// Collapses a chunk after a write to it: Linux 6.1 and 6.12 refuse if all of its pages are write-protected, as a fork leaves
/// them.
fn write_and_collapse(arena: &mut Arena, chunk: usize, gen: u32) -> TestResult<bool> {
    let pages = arena.chunk(chunk);
    arena.write(pages.start, gen);
    try_collapse(arena.part(pages))
}

/// Whether a chunk collapses that a fork has just write-protected, while the child stands still.
fn collapses_after_stock_fork(ctx: &Ctx, rng: &mut Rng) -> TestResult<bool> {
    let (arena, gate) = (arena(rng, 4, |_| false)?, Gate::new()?);
    let session = ctx.fork().unarmed().start(|| {
        gate.pass()?;
        arena.verify()
    })?;
    let done = try_collapse(arena.part(arena.chunk(0)))?;
    gate.open(0)?;
    let _ended = session.finish()?;
    arena.span().unmap()?;
    Ok(done)
}

/// Every other child is held back: then the parent meets parked chunks, and those it has pulled are the child's, too.
fn collapse_parent(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let stock = collapses_after_stock_fork(ctx, &mut rng)?;
    let mut collapsed = 0;
    for round in 0..8 {
        let mut arena = arena(&mut rng, 16, |_| false)?;
        let chunks = arena.chunks();
        let hold = (round % 2 == 0).then(|| plug.hold()).transpose()?;
        let session = ctx.fork().start(|| arena.verify())?;
        if let Some(hold) = &hold {
            session.expect_running()?;
            hold.step_aside()?;
            let done = try_collapse(arena.part(arena.chunk(0)))?;
            claim!(
                done == stock,
                "a parked chunk collapses: {done}, after a stock fork: {stock}"
            );
        }
        for chunk in 1..4 {
            let done = write_and_collapse(&mut arena, chunk, 1)?;
            claim!(
                done || hold.is_none(),
                "chunk {chunk} does not collapse while its child is held back"
            );
            collapsed += u32::from(done);
        }
        let held = hold.is_some();
        if held {
            session.expect_child_held()?;
        }
        drop(hold);
        let ended = session.finish()?;
        arena.verify().map_err(|v| v.at("parent"))?;
        ended.whole(chunks)?.pulled(Hook::Walk, u64::from(held))?;
        // With the session over nothing is in the way.
        for chunk in 0..chunks as usize {
            let done = write_and_collapse(&mut arena, chunk, 2)?;
            claim!(done, "chunk {chunk} does not collapse after the session");
        }
        let huge = huge_chunks(arena.span())?;
        claim!(huge as u64 == chunks, "{huge} huge pages, want {chunks}");
        arena.verify().map_err(|v| v.at("parent, collapsed"))?;
        arena.span().unmap()?;
    }
    Ok(format!(
        "8 forks, {collapsed} chunks collapsed meanwhile; write-protected ones collapse: {stock}"
    ))
}

fn collapse_child(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = arena(&mut rng, 8, |_| false)?;
    for round in 1..5 {
        let session = ctx.fork().start(|| {
            try_collapse(arena.span())?;
            arena.verify()?;
            let mut mine = arena.clone();
            mine.fill(7);
            claim!(
                try_collapse(mine.span())?,
                "the child's own memory does not collapse"
            );
            mine.verify()
        })?;
        let range = rng.range(arena.pages(), 1500);
        arena.write_range(range, round);
        session.finish()?.whole(arena.chunks())?;
        arena.verify()?;
    }
    Ok("4 forks".into())
}

fn khugepaged(ctx: &Ctx) -> TestResult<String> {
    const DIR: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    let mut rng = ctx.rng();
    let mut parked = 0;
    let pages_collapsed = || module::read_number(&format!("{DIR}/pages_collapsed"));
    let before = pages_collapsed()?;
    let plug = Plug::new()?;
    let mut arenas = Vec::new();
    for _ in 0..3 {
        arenas.push(arena(&mut rng, 8, |_| false)?);
    }
    let _settings = [
        Setting::new(ENABLED, "always")?,
        Setting::new(&format!("{DIR}/scan_sleep_millisecs"), 0)?,
        Setting::new(&format!("{DIR}/pages_to_scan"), 8192)?,
        Setting::new(&format!("{DIR}/max_ptes_shared"), 511)?,
    ];
    for arena in &arenas {
        arena.span().advise(libc::MADV_HUGEPAGE)?;
    }
    for round in 0..20 {
        // The first child is held back until something has been collapsed beside parked chunks.
        let hold = (round == 0).then(|| plug.hold()).transpose()?;
        let session = ctx
            .fork()
            .start(|| arenas.iter().try_for_each(Arena::verify))?;
        if let Some(hold) = &hold {
            session.expect_running()?;
            hold.step_aside()?;
        }
        for arena in &mut arenas {
            let range = rng.range(arena.pages(), 700);
            arena.write_range(range, round + 1);
        }
        if hold.is_some() {
            let collapsed = sys::poll_until(|| -> TestResult<Option<()>> {
                // khugepaged waits for workers on all processors.
                hold::spare_kernel_threads()?;
                Ok((pages_collapsed()? > before).then_some(()))
            })?;
            require!(collapsed.is_some(), "khugepaged collapses nothing");
            session.expect_running()?;
        }
        drop(hold);
        let ended = session.finish()?;
        // Once everything is huge nothing is left to park.
        if ended.report().is_some_and(|r| r.outcome() == Fate::Stock) {
            ended.stock(Reason::Nothing)?;
        } else {
            ended.parked(1)?.done()?;
        }
        parked += ended.report().map_or(0, |r| r.chunks.parked);
        arenas.iter().try_for_each(Arena::verify)?;
    }
    let collapsed = pages_collapsed()? - before;
    Ok(format!(
        "20 forks, {parked} chunks parked, {collapsed} collapsed meanwhile"
    ))
}

const FOLIOS: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB";

/// While these live, memory comes in folios of 64 KiB.
fn folio_settings() -> io::Result<[Setting; 2]> {
    Ok([
        Setting::new(ENABLED, "never")?,
        Setting::new(&format!("{FOLIOS}/enabled"), "always")?,
    ])
}

/// A mapping of `mib` MiB made of folios of 64 KiB, filled with generation 0. While the settings live khugepaged makes no huge
/// pages of them.
pub(super) fn folios_of_64_kib(rng: &mut Rng, mib: usize) -> TestResult<(Arena, [Setting; 2])> {
    skip_unless!(
        Path::new(FOLIOS).exists(),
        "no folios of 64 KiB in this kernel (Linux 6.8)"
    );
    let made = || module::read_number(&format!("{FOLIOS}/stats/anon_fault_alloc"));
    let before = made()?;
    let settings = folio_settings()?;
    let span = Span::reserve(mib << 20)?;
    span.map(RW, libc::MAP_PRIVATE)?;
    let mut arena = Arena::adopt(rng, span, Want::Zero);
    arena.fill(0);
    require!(made()? > before, "not one folio of 64 KiB was made");
    Ok((arena, settings))
}

/// Folios between a page and a huge page, copied whole and in part, forked, freed and written again: a mapping counted for
/// the wrong process shows when its last one goes ("Bad page state").
fn large_folios(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut mixed = 0;
    for round in 0..4 {
        let (mut arena, _settings) = folios_of_64_kib(&mut rng, 16)?;
        // Folios of which a part is gone.
        for page in (7..arena.pages()).step_by(331) {
            arena.part(page..page + 1).advise(libc::MADV_DONTNEED)?;
            arena.expect(page..page + 1, Want::Zero);
        }
        let hold = if round % 2 == 0 {
            Some(Hold::new()?)
        } else {
            None
        };
        let session = ctx.fork().start(|| {
            arena.verify()?;
            // The child maps and unmaps on its own, too.
            let mut mine = arena.clone();
            mine.write_range(0..700, 7);
            mine.part(900..1500).advise(libc::MADV_DONTNEED)?;
            mine.expect(900..1500, Want::Zero);
            mine.verify()
        })?;
        session.expect_async()?;
        arena.write_every(3, &mut rng);
        drop(hold);
        let ended = session.finish()?;
        arena.verify()?;
        // The child is gone: these pages are the parent's alone again.
        arena.fill(2);
        arena.verify()?;
        mixed += ended
            .whole(8)?
            .holds("chunks with large folios were copied as mixed ones", |r| {
                r.chunks.mixed >= 8
            })?
            .report()
            .map_or(0, |r| r.chunks.mixed);
        arena.span().unmap()?;
    }
    Ok(format!("4 forks, {mixed} mixed chunks"))
}

fn huge_zero(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let _setting = Setting::new(ENABLED, "always")?;
    let span = Span::reserve(16 << 20)?;
    span.map(RW, libc::MAP_PRIVATE)?;
    span.advise(libc::MADV_HUGEPAGE)?;
    let mut zero = Arena::adopt(&mut rng, span, Want::Zero);
    zero.verify()?;
    let small = Arena::new(&mut rng, 4)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        zero.verify()?;
        small.verify()
    })?;
    session.expect_running()?;
    zero.write_range(700..1900, 1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    zero.verify()?;
    small.verify()?;
    ended.whole(2)?;
    Ok(ended.detail())
}
