// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page migration. A migration under way when the memory is parked leaves entries that only its end can put right: these
//! tests go on until the module has seen one, and are broken if it never does.

use super::common::{pause, rounds, Gate};
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Plug;
use crate::mem::{Arena, Shape, Span, Want, CHUNK_PAGES, PAGE};
use crate::procfs;
use crate::sys::{self, cvt, Exit};
use crate::verdict::{Context, TestResult};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::Hook;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Most rounds until a migration must have been caught in flight.
const MAX_ROUNDS: u32 = 60;
/// Rounds that are made in any case.
const MIN_ROUNDS: u32 = 4;

pub const TESTS: &[Test] = &[
    Test::new("compaction_while_forking_loses_nothing", compaction).quick(),
    Test::new(
        "move_pages_between_nodes_while_forking_loses_nothing",
        move_pages,
    )
    .quick(),
    Test::new(
        "migrate_pages_of_a_parked_process_loses_nothing",
        migrate_process,
    ),
    Test::new("memory_offlined_while_forking_loses_nothing", offline).quick(),
    Test::new(
        "compaction_of_parked_memory_stays_within_memory_max",
        within_limit,
    )
    .module(),
];

fn migrations(ctx: &Ctx) -> TestResult<u64> {
    Ok(ctx.stats()?.pulls_by(Hook::Migration))
}

/// Forks a few times, writing in between, while something migrates pages. Returns chunks parked.
fn fork_meanwhile(
    ctx: &Ctx,
    arena: &mut Arena,
    rng: &mut crate::rng::Rng,
    forks: u32,
) -> TestResult<u64> {
    let mut parked = 0;
    for gen in 1..=forks {
        let session = ctx.fork().start(|| arena.verify())?;
        pause(rng);
        let range = rng.range(arena.pages(), 400);
        arena.write_range(range, gen);
        let ended = session.finish()?;
        arena.verify().map_err(|v| v.at("parent"))?;
        parked += ended
            .parked(1)?
            .done()?
            .report()
            .map_or(0, |r| r.chunks.parked);
    }
    Ok(parked)
}

/// Rounds until the module has pulled for a migration in flight.
fn until_caught(ctx: &Ctx, mut round: impl FnMut() -> TestResult<u64>) -> TestResult<String> {
    let (start, moved_before) = (migrations(ctx)?, procfs::vmstat("pgmigrate_success")?);
    let mut parked = 0;
    for n in 1..=MAX_ROUNDS {
        parked += round()?;
        let caught = migrations(ctx)? - start;
        if n >= MIN_ROUNDS && (caught > 0 || ctx.control) {
            let moved = procfs::vmstat("pgmigrate_success")? - moved_before;
            require!(moved > 0, "not one page was migrated");
            return Ok(format!("{n} rounds, {parked} chunks parked, {moved} pages migrated, {caught} caught in flight"));
        }
    }
    require!(
        false,
        "no migration was caught in flight in {MAX_ROUNDS} rounds"
    );
    unreachable!()
}

/// An arena of `mib` MiB, of which every n-th page is written, whose page frames alternate with free ones, which makes
/// compaction move it. More are free if there is room for them: some stay in the lists of the processors, where it does not
/// find them.
fn scattered(rng: &mut crate::rng::Rng, mib: usize, nth: usize) -> TestResult<Arena> {
    let mut arena = Arena::planned(rng, Shape::Whole(mib))?;
    arena.map()?;
    arena.expect(0..arena.pages(), Want::Zero);
    let filler = Span::reserve(mib << 20)?;
    filler.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    filler.advise(libc::MADV_NOHUGEPAGE)?;
    for page in (0..arena.pages()).step_by(nth) {
        for beside in page..page + nth.min(4) {
            filler.store(beside * PAGE, 1);
        }
        arena.write(page, 0);
    }
    filler.unmap()?;
    Ok(arena)
}

/// Each failed move of a parked page pulls its chunk, which takes a page table: from the child's memory, not from the system's
/// reserves and not beyond the limit. Without memory the session is aborted, and the parent loses nothing.
fn within_limit(ctx: &Ctx) -> TestResult<String> {
    /// More chunks than pages that a processor may have charged in advance (MEMCG_CHARGE_BATCH, 64).
    const MIB: usize = 320;
    /// Pages of a chunk.
    const EACH: usize = 16;
    let mut rng = ctx.rng();
    let mut last = String::new();
    // Whether compaction moves anything is up to it.
    let (rounds, _) = rounds(ctx, 1, |round| {
        let plug = Plug::new()?;
        let (board, gate) = (Board::new()?, Gate::new()?);
        let compactor = ctx.helper(&board, "compactor", || {
            gate.pass()?;
            Ok(fs::write("/proc/sys/vm/compact_memory", "1")?)
        })?;
        let mut arena = scattered(&mut rng, MIB, CHUNK_PAGES / EACH)?;
        let group = ctx.cgroup.child(&format!("limited{round}"))?;
        let used = |file: &str| -> TestResult<u64> {
            Ok(group.get(file)?.parse().map_err(std::io::Error::other)?)
        };
        let hold = plug.hold()?;
        let session = ctx.fork().into_cgroup(&group)?.start(|| arena.verify())?;
        session.expect_running()?;
        hold.step_aside()?;
        let limit = used("memory.current")?;
        group.set("memory.max", limit)?;
        gate.open(0)?;
        sys::wait(compactor)?;
        let peak = used("memory.peak")?;
        group.set("memory.max", "max")?;
        claim!(
            peak <= limit,
            "{peak} bytes were in use, {} beyond memory.max",
            peak - limit
        );
        session.expect_child_held()?;
        drop(hold);
        let ended = session.finish_killed()?;
        // Not before: the child has the board, too.
        board.collect(&["compactor"])?;
        arena.verify().at("parent")?;
        for page in (0..arena.pages()).step_by(CHUNK_PAGES) {
            arena.write(page, 1);
        }
        arena.verify().at("parent, written")?;
        ended.parked(MIB as u64 / 2)?;
        if ended.was_killed() {
            ended.aborted()?;
        } else {
            ended.done()?;
        }
        arena.span().unmap()?;
        last = ended.detail();
        let pulled = ended.report().map_or(0, |r| r.pulls_by(Hook::Migration));
        Ok(u64::from(ended.was_killed() || pulled > 64))
    })?;
    Ok(format!("round {rounds}: {last}"))
}

fn compaction(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    until_caught(ctx, || {
        let board = Board::new()?;
        let mut arena = scattered(&mut rng, 16, 1)?;
        let compactor = ctx.helper(&board, "compactor", || {
            for _ in 0..3 {
                fs::write("/proc/sys/vm/compact_memory", "1")?;
            }
            Ok(())
        })?;
        let parked = fork_meanwhile(ctx, &mut arena, &mut rng, 4)?;
        sys::wait(compactor)?;
        board.collect(&["compactor"])?;
        arena.span().unmap()?;
        Ok(parked)
    })
}

fn expect_two_nodes() -> TestResult {
    skip_unless!(
        Path::new("/sys/devices/system/node/node1").exists(),
        "one memory node only; boot with two (scripts/vm --nodes 2)"
    );
    Ok(())
}

/// Moves all pages of `span` of process `pid` to `node`; pages that are busy stay.
fn move_to_node(pid: i32, span: Span, node: i32) -> TestResult {
    const MPOL_MF_MOVE_ALL: i32 = 4;
    let pages: Vec<usize> = (0..span.pages()).map(|p| span.page(p).addr()).collect();
    let nodes = vec![node; pages.len()];
    let mut status = vec![0i32; pages.len()];
    // SAFETY: three arrays of the same length.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pages.len(),
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE_ALL,
        )
    })
    .at("move_pages")?;
    Ok(())
}

fn move_pages(ctx: &Ctx) -> TestResult<String> {
    expect_two_nodes()?;
    let mut rng = ctx.rng();
    let parent = sys::pid();
    until_caught(ctx, || {
        let mut arena = Arena::new(&mut rng, 8)?;
        let (board, span) = (Board::new()?, arena.span());
        let mover = ctx.helper(&board, "mover", || {
            for n in 0..4 {
                move_to_node(parent, span, n % 2)?;
            }
            Ok(())
        })?;
        let parked = fork_meanwhile(ctx, &mut arena, &mut rng, 4)?;
        sys::wait(mover)?;
        board.collect(&["mover"])?;
        span.unmap()?;
        Ok(parked)
    })
}

/// migrate_pages(2) moves a whole process: its page walk must find parked pages.
fn migrate_process(ctx: &Ctx) -> TestResult<String> {
    expect_two_nodes()?;
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let (mut walks, before) = (0, procfs::vmstat("pgmigrate_success")?);
    for round in 1..=6 {
        // Every other child copies meanwhile; the others are held back, so that the walk meets all of it parked.
        let hold = (round % 2 == 0).then(|| plug.hold()).transpose()?;
        let session = ctx.fork().start(|| arena.verify())?;
        if let Some(hold) = &hold {
            session.expect_running()?;
            hold.step_aside()?;
        }
        let (from, to) = if round % 2 == 0 { (1u64, 2u64) } else { (2, 1) };
        // SAFETY: two masks of 64 bits.
        cvt(unsafe { libc::syscall(libc::SYS_migrate_pages, 0, 64, &from, &to) })
            .at("migrate_pages")?;
        let met = if hold.is_some() {
            session.expect_child_held()?;
            arena.chunks()
        } else {
            0
        };
        drop(hold);
        let range = rng.range(arena.pages(), 900);
        arena.write_range(range, round);
        let ended = session.finish()?;
        arena.verify()?;
        walks += ended
            .whole(arena.chunks())?
            .pulled(Hook::Walk, met)?
            .report()
            .map_or(0, |r| r.pulls_by(Hook::Walk));
    }
    let moved = procfs::vmstat("pgmigrate_success")? - before;
    claim!(moved > 0, "not one page was migrated");
    Ok(format!(
        "6 forks, {walks} chunks pulled by walks, {moved} pages migrated"
    ))
}

/// The directory of the movable memory block that holds the most pages of the arena.
fn movable_block(arena: &Arena) -> TestResult<Option<PathBuf>> {
    let size = fs::read_to_string("/sys/devices/system/memory/block_size_bytes")?;
    let size = u64::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
    let mut count = BTreeMap::new();
    for entry in procfs::pagemap(0, arena.span())? {
        *count
            .entry((entry & procfs::PFN) * PAGE as u64 / size)
            .or_insert(0usize) += 1;
    }
    let movable = count.into_iter().filter_map(|(block, pages)| {
        let dir = PathBuf::from(format!("/sys/devices/system/memory/memory{block}"));
        let zones = fs::read_to_string(dir.join("valid_zones")).unwrap_or_default();
        zones.starts_with("Movable").then_some((pages, dir))
    });
    Ok(movable.max().map(|(_, dir)| dir))
}

/// An arena whose frames are taken after those of a large filler, so that they are not all in the first movable block.
fn arena_behind_filler(rng: &mut crate::rng::Rng) -> TestResult<Arena> {
    let filler = Span::reserve(256 << 20)?;
    filler.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    filler.advise(libc::MADV_NOHUGEPAGE)?;
    filler.advise(libc::MADV_POPULATE_WRITE)?;
    let arena = Arena::new(rng, 16)?;
    filler.unmap()?;
    Ok(arena)
}

/// Whether any memory can be taken offline.
fn expect_movable_zone() -> TestResult {
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let mut movable = zones
        .split("zone")
        .filter(|z| z.trim_start().starts_with("Movable"));
    let exists = movable.any(|zone| {
        let mut words = zone.split_whitespace().skip_while(|w| *w != "present");
        words.nth(1).is_some_and(|pages| pages != "0")
    });
    skip_unless!(exists, "no movable zone; boot with one (movablecore=1G)");
    Ok(())
}

fn offline(ctx: &Ctx) -> TestResult<String> {
    expect_movable_zone()?;
    let mut rng = ctx.rng();
    let (mut parked, mut done) = (0, 0);
    // Rounds in which pages were migrated while the parent forked.
    let (start, moved) = (migrations(ctx)?, || procfs::vmstat("pgmigrate_success"));
    let (rounds, met) = rounds(ctx, 6, |_| {
        let mut arena = arena_behind_filler(&mut rng)?;
        let block = movable_block(&arena)?;
        require!(
            block.is_some(),
            "no page of the arena is in the movable zone"
        );
        let Some(block) = block else { return Ok(0) };
        let board = Board::new()?;
        // Offlining retries until it succeeds, finds an unmovable page or gets a signal.
        let remover = ctx.helper(&board, "remover", || {
            // SAFETY: the default action of SIGALRM ends this process only.
            unsafe { libc::alarm(20) };
            let state = block.join("state");
            let offline = fs::write(&state, "offline").is_ok();
            // SAFETY: as above.
            unsafe { libc::alarm(0) };
            if offline {
                fs::write(&state, "online").at("back online")?;
                fs::write(ctx.scratch.join("offlined"), "")?;
            }
            Ok(())
        })?;
        let before = moved()?;
        parked += fork_meanwhile(ctx, &mut arena, &mut rng, 4)?;
        let met = moved()? > before;
        match sys::wait(remover)? {
            Exit::Signal {
                signal: libc::SIGALRM,
                ..
            } => {}
            _ => board.collect(&["remover"])?,
        }
        let offlined = fs::remove_file(ctx.scratch.join("offlined")).is_ok();
        done += u32::from(offlined);
        arena.span().unmap()?;
        Ok(u64::from(offlined && met))
    })?;
    require!(done > 0, "no memory block could be taken offline");
    Ok(format!(
        "{rounds} times 4 forks, {parked} chunks parked, {done} memory blocks taken offline and back, {met} of them meanwhile, {} migrations caught in flight", migrations(ctx)? - start
    ))
}
