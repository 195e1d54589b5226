// SPDX-License-Identifier: MIT OR Apache-2.0
//! Zero pages, untouched pages, and pages that KSM has merged.

use super::common::while_held;
use super::Test;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Span, Want, PAGE};
use crate::procfs::{self, Setting};
use crate::sys;
use crate::verdict::{Context, TestResult};
use crate::{claim, require};
use asyncfork_uapi::Hook;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub const TESTS: &[Test] = &[
    Test::new("zero_pages_stay_zero_on_both_sides", zero_pages).quick(),
    Test::new(
        "untouched_zero_and_written_pages_in_one_chunk_reach_both_sides",
        sparse,
    ),
    Test::new("eight_gib_of_zero_pages_reach_both_sides", many_zero_pages),
    Test::new("pages_merged_by_ksm_are_copied_at_once_and_right", ksm),
];

fn empty(rng: &mut crate::rng::Rng, len: usize) -> TestResult<Arena> {
    let span = Span::reserve(len)?;
    span.map(RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    Ok(Arena::adopt(rng, span, Want::Zero))
}

fn zero_pages(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = empty(&mut rng, 32 << 20)?;
    arena.verify()?;
    // A fork does not copy the tables of a mapping that was never written to.
    arena.write(77, 0);
    let ended = while_held(ctx, &mut arena, |arena| {
        arena.write_every(2, &mut rng);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?;
    Ok(ended.detail())
}

fn sparse(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = empty(&mut rng, 32 << 20)?;
    for page in 0..arena.pages() {
        match rng.below(4) {
            0 => arena.write(page, 0),
            1 => claim!(
                arena.part(page..page + 1).load(0) == 0,
                "a fresh page is not zero"
            ),
            _ => {}
        }
    }
    let ended = while_held(ctx, &mut arena, |arena| {
        arena.write_every(3, &mut rng);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?;
    Ok(ended.detail())
}

/// Page tables of a large process in a small guest. Every entry must name the zero page; contents follow from that.
fn many_zero_pages(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let arena = empty(&mut rng, (8 << 30) + (512 << 20))?;
    let span = arena.span();
    // One written page: a fork does not copy the tables of a mapping that never had any.
    span.page(span.pages() - 1).store(0, 1);
    let span = span.part(0, span.len() - (512 << 20));
    span.advise(libc::MADV_POPULATE_READ)?;
    let mut few = Arena::new(&mut rng, 2)?;
    let zero_pfn = procfs::pagemap(0, span.page(0))?[0] & procfs::PFN;
    let expect_zero_page = move || -> TestResult {
        for part in (0..span.len())
            .step_by(512 << 20)
            .map(|off| span.part(off, 512 << 20))
        {
            let wrong = procfs::pagemap(0, part)?
                .iter()
                .position(|e| e & procfs::PRESENT == 0 || e & procfs::PFN != zero_pfn);
            claim!(
                wrong.is_none(),
                "page {wrong:?} of {part:?} is not the zero page"
            );
        }
        Ok(())
    };
    require!(zero_pfn != 0, "page frame numbers are hidden");
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        expect_zero_page()?;
        few.verify()
    })?;
    session.expect_running()?;
    few.fill(1);
    for off in (0..span.len()).step_by(256 << 20) {
        span.store(off + PAGE, 0);
        claim!(span.load(off) == 0, "offset {off:#x} is not zero");
    }
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    few.verify()?;
    ended.whole(4096)?.holds(
        "the side array takes eight bytes a chunk and little more",
        |r| r.meta_bytes <= 8 * (r.chunks.parked + r.chunks.eager) + (128 << 10),
    )?;
    Ok(ended.detail())
}

fn ksm(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut beside = Arena::new(&mut rng, 4)?;
    // Pages come in groups of eight with the same contents.
    for page in 0..arena.pages() {
        let key = arena.key(page / 8 * 8, 0);
        if page % 8 != 0 {
            for off in (0..PAGE).step_by(8) {
                let word = arena.part(page / 8 * 8..page / 8 * 8 + 1).load(off);
                arena.part(page..page + 1).store(off, word);
            }
        }
        arena.expect(page..page + 1, Want::Key(key));
    }
    let ended = ctx.fork().start(|| Ok(()))?.finish()?;
    let parked_before = ended.report().map_or(0, |r| r.chunks.parked);
    let sharing = || crate::module::read_number("/sys/kernel/mm/ksm/pages_sharing");
    let settings = (
        Setting::new("/sys/kernel/mm/ksm/pages_to_scan", 20_000)?,
        Setting::new("/sys/kernel/mm/ksm/sleep_millisecs", 1)?,
        Setting::new("/sys/kernel/mm/ksm/run", 1)?,
    );
    arena
        .span()
        .advise(libc::MADV_MERGEABLE)
        .at("MADV_MERGEABLE")?;
    let merged =
        sys::poll_until(|| -> TestResult<Option<()>> { Ok((sharing()? >= 1000).then_some(())) })?;
    require!(merged.is_some(), "KSM has merged only {} pages", sharing()?);

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        arena.verify()?;
        beside.verify()
    })?;
    session.expect_running()?;
    arena.write_every(5, &mut rng);
    beside.fill(1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    beside.verify()?;
    drop(settings);
    ended
        .whole(beside.chunks())?
        .holds("those of the mergeable arena were not parked", |r| {
            r.chunks.parked + arena.chunks() == parked_before
        })?;
    Ok(ended.detail())
}
