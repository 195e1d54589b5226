// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parent or child ends, in every way, at every moment.

use super::common::{pause, rounds};
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::Arena;
use crate::sys::{self, Exit};
use crate::verdict::{TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::Hook;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const MIB: usize = 16;
const CHUNKS: u64 = 8;

pub const TESTS: &[Test] = &[
    Test::new(
        "child_killed_before_it_runs_costs_the_parent_nothing",
        kill_held,
    )
    .quick(),
    Test::new(
        "child_killed_at_random_moments_costs_the_parent_nothing",
        kill_racing,
    )
    .quick(),
    Test::new(
        "child_killed_before_it_runs_after_the_parent_pulled_some_costs_nothing",
        kill_after_writes,
    ),
    Test::new(
        "orphan_of_a_parent_that_exits_at_once_has_its_whole_image",
        |c| ends_held(c, End::Exit),
    )
    .quick(),
    Test::new(
        "orphan_of_a_parent_that_exits_while_it_copies_has_its_whole_image",
        |c| ends_racing(c, End::Exit),
    ),
    Test::new(
        "child_of_a_parent_that_execs_at_once_has_its_whole_image",
        |c| ends_held(c, End::Exec),
    )
    .quick(),
    Test::new(
        "child_of_a_parent_that_execs_while_it_copies_has_its_whole_image",
        |c| ends_racing(c, End::Exec),
    ),
    Test::new(
        "orphan_of_a_parent_killed_at_once_has_its_whole_image",
        |c| ends_held(c, End::Killed),
    ),
    Test::new("daemon_that_forked_twice_has_the_whole_image", daemonize),
    Test::new(
        "child_that_execs_at_once_costs_the_parent_nothing",
        child_execs,
    ),
];

fn kill_held(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    sys::kill(session.pid, libc::SIGKILL)?;
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish_killed()?;
    claim!(ended.was_killed(), "the child survived SIGKILL");
    arena.verify()?;
    arena.fill(1);
    arena.verify()?;
    ended
        .parked(CHUNKS)?
        .aborted()?
        .holds("every chunk came back uncopied", |r| {
            r.chunks.reattached == r.chunks.parked
        })?;
    Ok(ended.detail())
}

fn kill_after_writes(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    for chunk in [1, 3, 6] {
        let pages = arena.chunk(chunk);
        arena.write_range(pages, 1);
    }
    sys::kill(session.pid, libc::SIGKILL)?;
    arena.part(arena.chunk(4)).advise(libc::MADV_DONTNEED)?;
    let pages = arena.chunk(4);
    arena.expect(pages, crate::mem::Want::Zero);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish_killed()?;
    claim!(ended.was_killed(), "the child survived SIGKILL");
    arena.verify()?;
    ended
        .parked(CHUNKS)?
        .aborted()?
        .pulled(Hook::Fault, 3)?
        .pulled(Hook::Zap, 1)?;
    Ok(ended.detail())
}

fn kill_racing(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, MIB)?;
    let mut killed = 0;
    let (rounds, aborted) = rounds(ctx, 24, |round| {
        let session = ctx.fork().start(|| arena.verify())?;
        for _ in 0..rng.below(8) {
            pause(&mut rng);
        }
        let early = rng.one_in(2);
        let range = rng.range(arena.pages(), 1500);
        if early {
            sys::kill(session.pid, libc::SIGKILL)?;
        }
        arena.write_range(range, round + 1);
        if !early {
            sys::kill(session.pid, libc::SIGKILL)?;
        }
        let ended = session.finish_killed()?;
        ended.parked(CHUNKS)?;
        killed += u32::from(ended.was_killed());
        arena.verify().map_err(|v| v.at("parent"))?;
        Ok(u64::from(
            ended.report().is_some_and(|r| r.chunks.reattached > 0),
        ))
    })?;
    claim!(killed > 0, "no child was killed in {rounds} rounds");
    Ok(format!(
        "{rounds} rounds, {killed} killed, {aborted} of them while chunks were parked"
    ))
}

/// How the forking process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Exit,
    Exec,
    Killed,
}

/// A process of its own forks a child, which reports to the worker, and then ends. Returns its process id.
fn parent_ends(ctx: &Ctx, held: bool, end: End) -> TestResult<i32> {
    let program = exiting_program()?;
    let board = Board::new()?;
    let parent = ctx.helper(&board, "parent", || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        let hold = if held { Some(Hold::new()?) } else { None };
        let session = ctx.fork().start_on(&board, "child", || arena.verify())?;
        session.expect_async()?;
        // Still real-time: the child does not run before this process is gone.
        std::mem::forget(hold);
        session.leave();
        match end {
            End::Exit => Ok(()),
            End::Exec => exec(&program),
            End::Killed => kill_self(),
        }
    })?;
    let exit = sys::wait(parent)?;
    let expected = match end {
        End::Exit | End::Exec => Exit::Code(0),
        End::Killed => Exit::Signal {
            signal: libc::SIGKILL,
            core: false,
        },
    };
    let posts: &[&str] = if end == End::Exit {
        &["parent", "child"]
    } else {
        &["child"]
    };
    board.collect(posts)?;
    claim!(
        exit == expected,
        "the parent ended with {exit:?}, want {expected:?}"
    );
    Ok(parent)
}

/// A static program in memory that only does exit(0): its exec waits for no disk and looks up no path.
fn exiting_program() -> TestResult<File> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // xor edi, edi; mov eax, 60; syscall
    const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let size = HEADERS + CODE.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |width: usize, value: u64| elf.extend_from_slice(&value.to_le_bytes()[..width]);
    // e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags
    for (width, value) in [
        (2, 2),
        (2, 62),
        (4, 1),
        (8, BASE + HEADERS),
        (8, 64),
        (8, 0),
        (4, 0),
    ] {
        put(width, value);
    }
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for value in [64, 56, 1, 0, 0, 0] {
        put(2, value);
    }
    // p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for (width, value) in [
        (4, 1),
        (4, 5),
        (8, 0),
        (8, BASE),
        (8, BASE),
        (8, size),
        (8, size),
        (8, 4096),
    ] {
        put(width, value);
    }
    elf.extend_from_slice(&CODE);
    let program = File::from(sys::memfd(elf.len())?);
    program.write_all_at(&elf, 0)?;
    Ok(program)
}

fn exec(program: &File) -> TestResult {
    let args = [c"exit0".as_ptr(), std::ptr::null()];
    // SAFETY: null-terminated arrays of C strings, the second without any.
    unsafe { libc::fexecve(program.as_raw_fd(), args.as_ptr(), args[1..].as_ptr()) };
    Err(Verdict::Broken(format!(
        "exec: {}",
        std::io::Error::last_os_error()
    )))
}

fn kill_self() -> TestResult {
    sys::kill(sys::pid(), libc::SIGKILL)?;
    Err(Verdict::Broken("survived SIGKILL".into()))
}

/// The child cannot run before the parent is gone: the end of the parent pulls everything; an exec, all that is left.
fn ends_held(ctx: &Ctx, end: End) -> TestResult<String> {
    let parent = parent_ends(ctx, true, end)?;
    let ended = ctx.ended_session_of(parent)?;
    ended.whole(CHUNKS)?;
    // An exec has more to do before it gives the memory up, and was seen to let the child run.
    let early = match end {
        End::Exec => ended.report().map_or(0, |r| r.chunks.by_child),
        End::Exit | End::Killed => 0,
    };
    require!(
        early < CHUNKS,
        "the child was to be held back, but has pulled all"
    );
    ended.pulled(Hook::Exit, CHUNKS - early)?;
    Ok(ended.detail())
}

fn ends_racing(ctx: &Ctx, end: End) -> TestResult<String> {
    let (rounds, at_exit) = rounds(ctx, 8, |_| {
        let parent = parent_ends(ctx, false, end)?;
        let ended = ctx.ended_session_of(parent)?;
        ended.whole(CHUNKS)?;
        Ok(ended.report().map_or(0, |r| r.pulls_by(Hook::Exit)))
    })?;
    Ok(format!(
        "{rounds} rounds, {at_exit} chunks pulled at the end"
    ))
}

fn daemonize(ctx: &Ctx) -> TestResult<String> {
    let board = Board::new()?;
    let starter = ctx.helper(&board, "starter", || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        let hold = Hold::new()?;
        let session = ctx.fork().start_on(&board, "leader", || {
            // SAFETY: no memory is involved.
            sys::cvt(unsafe { libc::setsid() })?;
            let hold = Hold::new()?;
            let session = ctx.fork().start_on(&board, "daemon", || arena.verify())?;
            session.expect_running()?;
            std::mem::forget(hold);
            Ok(())
        })?;
        session.expect_running()?;
        std::mem::forget(hold);
        Ok(())
    })?;
    claim!(
        sys::wait(starter)? == Exit::Code(0),
        "the first process failed"
    );
    board.collect(&["starter", "leader", "daemon"])?;
    let ended = ctx.ended_session_of(starter)?;
    ended.whole(CHUNKS)?.pulled(Hook::Exit, CHUNKS)?;
    if let Some(first) = ended.report() {
        ctx.ended_session_of(first.child_pid)?
            .whole(CHUNKS)?
            .pulled(Hook::Exit, CHUNKS)?;
    }
    Ok(ended.detail())
}

fn child_execs(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, MIB)?;
    let program = exiting_program()?;
    for round in 1..5 {
        let board = Board::new()?;
        let session = ctx.fork().start_on(&board, "child", || exec(&program))?;
        let range = rng.range(arena.pages(), 2000);
        arena.write_range(range, round);
        board.collect(&[])?;
        session.finish()?.whole(CHUNKS)?;
        arena.verify()?;
    }
    Ok("4 rounds".into())
}
