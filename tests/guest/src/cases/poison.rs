// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that the machine reports bad. Who has one is found by rmap, once: parked memory has to be there by then.

use super::common::{Gate, Linger, LINGER_MS};
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Plug;
use crate::mem::{probe, Arena, PAGE};
use crate::procfs;
use crate::sys;
use crate::verdict::{Context, TestResult};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::{Hook, Reason};
use std::fs;
use std::path::Path;

const HARD: &str = "/sys/devices/system/memory/hard_offline_page";
const SOFT: &str = "/sys/devices/system/memory/soft_offline_page";
/// The page that goes bad.
const BAD: usize = 1234;

pub const TESTS: &[Test] = &[
    Test::new(
        "page_reported_bad_while_parked_is_gone_from_both_sides",
        while_parked,
    )
    .quick(),
    Test::new("page_taken_out_of_use_while_parked_is_moved", soft_offline),
    Test::new(
        "fork_between_a_memory_failures_first_look_and_its_unmapping_is_stock",
        between,
    )
    .faults(),
];

/// Physical address of a page of this process, in hexadecimal.
fn physical(arena: &Arena, page: usize) -> TestResult<String> {
    let frame = procfs::frame(arena.part(page..page + 1))?;
    Ok(format!("{:#x}", frame * PAGE as u64))
}

fn expect_failures() -> TestResult {
    skip_unless!(
        Path::new(HARD).exists(),
        "this kernel knows no memory failures (CONFIG_MEMORY_FAILURE)"
    );
    Ok(())
}

/// All but the bad page is right, and the bad one gives SIGBUS.
fn expect_gone(arena: &Arena) -> TestResult {
    probe::install()?;
    claim!(
        !probe::readable(arena.part(BAD..BAD + 1)),
        "the page that was reported bad can still be read"
    );
    let mut rest = arena.clone();
    rest.unmapped(BAD..BAD + 1);
    rest.verify()
}

fn while_parked(ctx: &Ctx) -> TestResult<String> {
    expect_failures()?;
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let address = physical(&arena, BAD)?;
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| expect_gone(&arena))?;
    session.expect_running()?;
    hold.step_aside()?;
    fs::write(HARD, &address).at(HARD)?;
    session.expect_child_held()?;
    expect_gone(&arena).at("parent")?;
    drop(hold);
    let ended = session.finish()?;
    // Elsewhere the memory is as good as ever.
    for page in [0, BAD - 1, BAD + 1] {
        arena.write(page, 1);
    }
    expect_gone(&arena).at("parent, written")?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Poison, arena.chunks())?;
    Ok(ended.detail())
}

/// The page is moved away first. The move does not find it at its first try, and the end of that pulls.
fn soft_offline(ctx: &Ctx) -> TestResult<String> {
    skip_unless!(
        Path::new(SOFT).exists(),
        "this kernel takes no pages out of use (CONFIG_MEMORY_FAILURE)"
    );
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let address = physical(&arena, BAD)?;
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    fs::write(SOFT, &address).at(SOFT)?;
    session.expect_child_held()?;
    claim!(
        physical(&arena, BAD)? != address,
        "the page is still where it was"
    );
    arena.verify().at("parent")?;
    drop(hold);
    let ended = session.finish()?;
    arena.fill(1);
    arena.verify().at("parent, written")?;
    ended.whole(arena.chunks())?.pulled(Hook::Migration, 1)?;
    Ok(ended.detail())
}

/// The hook has pulled, and the unmapping is still to come: a fork that parked now would hide the page from it.
fn between(ctx: &Ctx) -> TestResult<String> {
    expect_failures()?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let address = physical(&arena, BAD)?;
    let (board, gate) = (Board::new()?, Gate::new()?);
    let reporter = ctx.helper(&board, "reporter", || {
        gate.pass()?;
        fs::write(HARD, &address).at(HARD)
    })?;
    let linger = Linger::new(ctx, reporter, "af_hook_memory_failure", LINGER_MS)?;
    gate.open(0)?;
    linger.expect_inside()?;
    let over = Gate::new()?;
    let session = ctx.fork().start(|| {
        over.pass()?;
        expect_gone(&arena)
    })?;
    require!(
        linger.is_inside()?,
        "the memory failure was over before the fork"
    );
    drop(linger);
    sys::wait(reporter)?;
    over.open(0)?;
    let ended = session.finish()?;
    // Not before: the child has the board, too.
    board.collect(&["reporter"])?;
    expect_gone(&arena).at("parent")?;
    ended.stock(Reason::Poison)?;

    // With the failure dealt with, forks are asynchronous again.
    arena.unmapped(BAD..BAD + 1);
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}
