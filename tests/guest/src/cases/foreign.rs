// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other processes read and write memory of the parent while it is parked, and of the child before it has its image.

use super::common::Gate;
use super::Test;
use crate::board::Board;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::{Arena, Shape};
use crate::procfs;
use crate::rng::Rng;
use crate::session::Session;
use crate::sys;
use crate::verdict::{Context, TestResult};
use asyncfork_uapi::Hook;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

const MIB: usize = 16;

pub const TESTS: &[Test] = &[
    Test::new(
        "process_vm_writev_into_parked_memory_reaches_the_parent_only",
        |c| parent(c, vm_write),
    )
    .quick(),
    Test::new("process_vm_readv_of_parked_memory_sees_it", |c| {
        parent(c, vm_read)
    }),
    Test::new(
        "proc_mem_writes_into_parked_memory_reach_the_parent_only",
        |c| parent(c, mem_write),
    ),
    Test::new(
        "ptrace_pokes_into_parked_memory_reach_the_parent_only",
        |c| parent(c, poke),
    ),
    Test::new(
        "childs_memory_read_from_outside_before_it_ran_is_whole",
        |c| child(c, child_read),
    ),
    Test::new(
        "childs_memory_written_from_outside_before_it_ran_stays_its_own",
        child_write,
    ),
    Test::new(
        "childs_pagemap_read_from_outside_before_it_ran_is_complete",
        |c| child(c, child_pagemap),
    ),
    Test::new(
        "parent_reading_its_childs_memory_before_it_ran_sees_the_image",
        child_read_by_parent,
    ),
];

/// What an outsider does to process `pid`; it keeps the model of the parent's memory true.
type Act = fn(&mut Arena, i32, &mut Rng) -> TestResult;

/// `act` on the parked parent, by a process that is neither parent nor child.
fn parent(ctx: &Ctx, act: Act) -> TestResult<String> {
    let mut rng = ctx.rng();
    let plug = Plug::new()?;
    let mut arena = Arena::planned(&mut rng, Shape::Whole(MIB))?;
    let (board, gate) = (Board::new()?, Gate::new()?);
    let parent = sys::pid();
    // The outsider is forked before there is anything to park: a later fork would pull everything.
    let actor = ctx.helper(&board, "outsider", || {
        let mut model = arena.clone();
        model.expect_gen(0..arena.pages(), 0);
        gate.pass()?;
        act(&mut model, parent, &mut rng.clone())
    })?;
    arena.map()?;
    arena.fill(0);

    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    gate.open(0)?;
    sys::wait(actor)?;
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    board.collect(&["outsider"])?;
    // The outsider's acts depend on its random numbers only: they are repeated on the model.
    let mut model = arena.clone();
    act(&mut model, 0, &mut rng)?;
    model.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?
        .holds("the outsider pulled every chunk", |r| {
            r.chunks.by_other >= arena.chunks()
        })?;
    Ok(ended.detail())
}

/// process_vm_readv or process_vm_writev of one buffer at `addr`.
fn vm_copy(pid: i32, addr: usize, buf: &mut [u8], write: bool) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let remote = libc::iovec {
        iov_base: addr as *mut libc::c_void,
        iov_len: buf.len(),
    };
    // SAFETY: the local buffer lives across the call; the remote side is another process's memory.
    let n = sys::cvt(unsafe {
        if write {
            libc::process_vm_writev(pid, &local, 1, &remote, 1, 0)
        } else {
            libc::process_vm_readv(pid, &local, 1, &remote, 1, 0)
        }
    })?;
    if n as usize == buf.len() {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "{n} bytes of {} at {addr:#x}",
            buf.len()
        )))
    }
}

fn vm_read(arena: &mut Arena, pid: i32, _: &mut Rng) -> TestResult {
    if pid == 0 {
        return Ok(());
    }
    arena.verify_through(|addr, buf| vm_copy(pid, addr, buf, false))
}

/// Writes generation 1 over half the pages, in random order.
fn write_half(
    arena: &mut Arena,
    pid: i32,
    rng: &mut Rng,
    write: impl Fn(usize, &mut [u8]) -> io::Result<()>,
) -> TestResult {
    let pages = rng.shuffled(arena.pages());
    for &page in &pages[..pages.len() / 2] {
        if pid != 0 {
            let addr = arena.part(page..page + 1).addr();
            write(addr, &mut arena.bytes(page, 1)).at(format!("write page {page}"))?;
        }
        arena.expect_gen(page..page + 1, 1);
    }
    Ok(())
}

fn vm_write(arena: &mut Arena, pid: i32, rng: &mut Rng) -> TestResult {
    write_half(arena, pid, rng, |addr, buf| vm_copy(pid, addr, buf, true))
}

fn proc_mem(pid: i32, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(format!("/proc/{pid}/mem"))
}

fn mem_write(arena: &mut Arena, pid: i32, rng: &mut Rng) -> TestResult {
    let file = proc_mem(if pid == 0 { sys::pid() } else { pid }, true)?;
    write_half(arena, pid, rng, |addr, buf| {
        file.write_all_at(buf, addr as u64)
    })
}

/// Stops the parent as a debugger does and changes one word of every eighth page.
fn poke(arena: &mut Arena, pid: i32, rng: &mut Rng) -> TestResult {
    if pid != 0 {
        // SAFETY: no memory of this process is involved.
        sys::cvt(unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) }).at("PTRACE_ATTACH")?;
        let mut status = 0;
        // SAFETY: the status lives across the call.
        sys::cvt(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) })
            .at("wait for the stop")?;
    }
    for page in (0..arena.pages()).step_by(8) {
        let (off, value) = (rng.below(512) * 8, rng.next());
        if pid != 0 {
            let addr = arena.part(page..page + 1).addr() + off;
            // SAFETY: the address is one of the other process.
            sys::cvt(unsafe { libc::ptrace(libc::PTRACE_POKEDATA, pid, addr, value) })
                .at("PTRACE_POKEDATA")?;
        }
        arena.expect_word(page, off, value);
    }
    if pid != 0 {
        // SAFETY: no memory of this process is involved.
        sys::cvt(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0) }).at("PTRACE_DETACH")?;
    }
    Ok(())
}

/// `act` on the child before it ran, by an outsider, while the parent changes its own memory.
fn child(ctx: &Ctx, act: fn(&Arena, i32) -> TestResult) -> TestResult<String> {
    let mut rng = ctx.rng();
    let plug = Plug::new()?;
    let mut arena = Arena::planned(&mut rng, Shape::Whole(MIB))?;
    let (board, gate) = (Board::new()?, Gate::new()?);
    let actor = ctx.helper(&board, "outsider", || {
        let mut model = arena.clone();
        model.expect_gen(0..arena.pages(), 0);
        let pid = gate.pass()?;
        act(&model, pid)
    })?;
    arena.map()?;
    arena.fill(0);

    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    gate.open(session.pid)?;
    let some = arena.chunk(2);
    arena.write_range(some, 1);
    sys::wait(actor)?;
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    board.collect(&["outsider"])?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .holds("the outsider pulled", |r| {
            r.chunks.by_other >= arena.chunks() - 1
        })?;
    Ok(ended.detail())
}

fn child_read(arena: &Arena, pid: i32) -> TestResult {
    let file = proc_mem(pid, false)?;
    arena.verify_through(|addr, buf| file.read_exact_at(buf, addr as u64))
}

fn child_pagemap(arena: &Arena, pid: i32) -> TestResult {
    let present = procfs::pagemap(pid, arena.span())?
        .iter()
        .filter(|e| *e & procfs::PRESENT != 0)
        .count();
    claim!(
        present == arena.pages(),
        "{present} of {} pages are present in the child",
        arena.pages()
    );
    let rss = procfs::smaps(pid, arena.span(), "Rss")?;
    claim!(
        rss == arena.span().len() >> 10,
        "Rss {rss} KiB of {} KiB",
        arena.span().len() >> 10
    );
    Ok(())
}

fn check_by_parent(arena: &Arena, session: Session) -> TestResult<String> {
    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?
        .holds("the parent pulled", |r| {
            r.chunks.by_parent >= arena.chunks()
        })?;
    Ok(ended.detail())
}

fn child_read_by_parent(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
    let frozen = arena.clone();
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    arena.write_range(100..2000, 1);
    frozen
        .verify_through(|addr, buf| vm_copy(session.pid, addr, buf, false))
        .at("child seen by its parent")?;
    session.expect_child_held()?;
    drop(hold);
    check_by_parent(&arena, session)
}

fn child_write(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), MIB)?;
    let mut after = arena.clone();
    after.expect_gen(300..3000, 2);
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| after.verify())?;
    session.expect_running()?;
    for page in 300..3000 {
        vm_copy(
            session.pid,
            arena.part(page..page + 1).addr(),
            &mut arena.bytes(page, 2),
            true,
        )?;
    }
    // The rest as well, so that every chunk is the parent's pull.
    after
        .verify_through(|addr, buf| vm_copy(session.pid, addr, buf, false))
        .at("child seen by its parent")?;
    session.expect_child_held()?;
    drop(hold);
    check_by_parent(&arena, session)
}
