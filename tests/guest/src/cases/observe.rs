// SPDX-License-Identifier: MIT OR Apache-2.0
//! What tools see of parked memory.

use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::Arena;
use crate::procfs::{self, PFN, PRESENT, SOFT_DIRTY};
use crate::rng::Rng;
use crate::sys;
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::Hook;
use std::fs;

pub const TESTS: &[Test] = &[
    Test::held("pagemap_shows_parked_pages_as_present", Hook::Walk, pagemap).quick(),
    Test::held("smaps_counts_parked_pages", Hook::Walk, smaps),
    Test::held("numa_maps_counts_parked_pages", Hook::Walk, numa_maps),
    Test::held("mincore_calls_parked_pages_resident", Hook::Walk, mincore),
    Test::held(
        "move_pages_tells_the_node_of_parked_pages",
        Hook::Walk,
        nodes,
    ),
    Test::racing(
        "pagemap_and_smaps_read_beside_a_copying_child_are_complete",
        Hook::Walk,
        both,
    ),
    Test::new(
        "soft_dirty_bits_name_exactly_the_pages_written_since_the_fork",
        soft_dirty,
    ),
    Test::new(
        "soft_dirty_bits_set_before_the_fork_survive_it",
        soft_dirty_before,
    ),
    Test::new(
        "page_frames_of_the_parent_do_not_change_by_a_fork",
        same_frames,
    ),
];

fn pagemap(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let map = procfs::pagemap(0, arena.span())?;
    match map.iter().position(|e| e & PRESENT == 0) {
        Some(page) => Err(Verdict::Failed(format!(
            "page {page} is not present: {:#x}",
            map[page]
        ))),
        None => Ok(()),
    }
}

fn smaps(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let rss = procfs::smaps(0, arena.span(), "Rss")?;
    let want = arena.span().len() >> 10;
    claim!(rss == want, "Rss {rss} KiB, want {want} KiB");
    Ok(())
}

fn numa_maps(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let text = fs::read_to_string("/proc/self/numa_maps")
        .map_err(|e| Verdict::Skip(format!("numa_maps: {e}")))?;
    let start = format!("{:x} ", arena.span().addr());
    let line = text.lines().find(|l| l.starts_with(&start)).unwrap_or("");
    let pages: usize = line
        .split(' ')
        .filter_map(|f| {
            f.strip_prefix('N')?
                .split_once('=')?
                .1
                .parse::<usize>()
                .ok()
        })
        .sum();
    claim!(
        pages == arena.pages(),
        "{pages} pages on all nodes, want {}: {line:?}",
        arena.pages()
    );
    Ok(())
}

/// move_pages(2) without target nodes only asks where the pages are.
fn nodes(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let pages: Vec<*mut libc::c_void> = (0..arena.pages())
        .map(|page| arena.part(page..page + 1).ptr())
        .collect();
    let mut status = vec![-1_i32; pages.len()];
    // SAFETY: both arrays have as many elements as the call is told.
    sys::cvt(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            std::ptr::null::<i32>(),
            status.as_mut_ptr(),
            0,
        )
    })
    .at("move_pages")?;
    match status.iter().position(|&node| node < 0) {
        Some(page) => Err(Verdict::Failed(format!(
            "page {page} is on no node: {}",
            std::io::Error::from_raw_os_error(-status[page])
        ))),
        None => Ok(()),
    }
}

fn mincore(arena: &mut Arena, _: &mut Rng) -> TestResult {
    match arena.span().resident()?.iter().position(|r| !r) {
        Some(page) => Err(Verdict::Failed(format!("page {page} is not resident"))),
        None => Ok(()),
    }
}

fn both(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    if rng.one_in(2) {
        pagemap(arena, rng)?;
        smaps(arena, rng)
    } else {
        smaps(arena, rng)?;
        pagemap(arena, rng)
    }
}

fn clear_soft_dirty() -> TestResult {
    fs::write("/proc/self/clear_refs", "4").at("clear_refs")
}

/// Pages whose soft-dirty bit is set.
fn dirty(arena: &Arena) -> TestResult<Vec<usize>> {
    let map = procfs::pagemap(0, arena.span())?;
    Ok((0..map.len())
        .filter(|&p| map[p] & SOFT_DIRTY != 0)
        .collect())
}

fn soft_dirty(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    clear_soft_dirty()?;
    let mut written: Vec<usize> = arena.shuffled(&mut rng).into_iter().take(500).collect();
    for &page in &written {
        arena.write(page, 1);
    }
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    written.sort_unstable();
    let got = dirty(&arena)?;
    claim!(
        got == written,
        "{} pages are soft-dirty, {} were written",
        got.len(),
        written.len()
    );
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, arena.chunks())?;
    Ok(ended.detail())
}

fn soft_dirty_before(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    clear_soft_dirty()?;
    let mut written: Vec<usize> = arena.shuffled(&mut rng).into_iter().take(500).collect();
    for &page in &written {
        arena.write(page, 1);
    }
    written.sort_unstable();
    let session = ctx.fork().start(|| {
        let got = dirty(&arena)?;
        // A child's mappings are new, so that all of it may count as dirty.
        claim!(
            written.iter().all(|p| got.binary_search(p).is_ok()),
            "the child lost soft-dirty bits: {} of {}",
            got.len(),
            written.len()
        );
        arena.verify()
    })?;
    let ended = session.finish()?;
    let got = dirty(&arena)?;
    claim!(
        got == written,
        "{} pages are soft-dirty, {} were written",
        got.len(),
        written.len()
    );
    arena.verify()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}

fn same_frames(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 16)?;
    let frames = || -> TestResult<Vec<u64>> {
        Ok(procfs::pagemap(0, arena.span())?
            .iter()
            .map(|e| e & (PFN | PRESENT))
            .collect())
    };
    let before = frames()?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        claim!(
            frames()? == before,
            "the child maps other frames than the parent did"
        );
        arena.verify()
    })?;
    session.expect_running()?;
    claim!(frames()? == before, "frames changed while parked");
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    claim!(frames()? == before, "frames changed after the session");
    arena.verify()?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Walk, arena.chunks())?;
    Ok(ended.detail())
}
