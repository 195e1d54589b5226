// SPDX-License-Identifier: MIT OR Apache-2.0
//! fork() itself fails: before, while and after chunks are parked.

use super::common::Gate;
use super::device::become_nobody;
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::mem::{Arena, Span, Want};
use crate::module;
use crate::procfs::{self, Setting};
use crate::session;
use crate::sys::{self, cvt, is_errno};
use crate::verdict::{Context, TestResult};
use crate::{claim, require};
use asyncfork_uapi::{Arm, Outcome as Fate, Report, State};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

pub const TESTS: &[Test] = &[
    Test::new("fork_that_fails_after_parking_loses_nothing", pids_limit)
        .module()
        .quick(),
    Test::new(
        "fork_that_fails_between_two_mappings_loses_nothing",
        commit_limit,
    )
    .module()
    .quick(),
    Test::new(
        "fork_that_fails_before_parking_leaves_the_thread_armed",
        process_limit,
    )
    .module(),
    Test::new("forks_interrupted_by_signals_lose_nothing", signals),
];

/// An armed fork whose outcome is open. A child, if there is one, verifies and ends.
fn try_fork(verify: impl Fn() -> TestResult) -> TestResult<(io::Result<i32>, Report)> {
    let device = module::open()?;
    device.arm(&Arm::default()).map_err(module::device_error)?;
    let board = Board::new()?;
    // SAFETY: the child runs board.run() only and never returns.
    let result = cvt(unsafe { libc::fork() });
    if matches!(result, Ok(0)) {
        board.run("child", verify);
    }
    if let Ok(pid) = &result {
        board.collect(&["child"])?;
        sys::wait(*pid)?;
    }
    let report = device.report().map_err(module::device_error)?;
    Ok((result, report))
}

/// The report of a fork that failed with chunks parked: all of them are back.
fn expect_undone(r: &Report) -> TestResult {
    let line = session::summary(r);
    claim!(
        r.outcome() == Fate::Failed,
        "outcome {}, want failed: {line}",
        r.outcome()
    );
    claim!(
        r.state() == State::Aborted,
        "state {}, want aborted: {line}",
        r.state()
    );
    claim!(
        r.chunks.reattached == r.chunks.parked,
        "not every chunk was given back uncopied: {line}"
    );
    claim!(r.child_pid == 0, "a child {} is named: {line}", r.child_pid);
    Ok(())
}

/// The limit of processes is looked at after the memory is copied.
fn pids_limit(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("limited")?;
    group.enter()?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let failed_before = ctx.stats()?.failed;
    group.set("pids.max", 1)?;
    let mut last = Report::default();
    for round in 1..4 {
        let (result, r) = try_fork(|| arena.verify())?;
        require!(
            is_errno(&result, libc::EAGAIN),
            "fork gives {result:?}, want EAGAIN"
        );
        expect_undone(&r)?;
        claim!(
            r.chunks.parked >= 8,
            "only {} chunks were parked: the fork failed early",
            r.chunks.parked
        );
        arena.verify()?;
        arena.fill(round);
        arena.verify()?;
        last = r;
    }
    group.set("pids.max", "max")?;
    let failed = ctx.stats()?.failed - failed_before;
    claim!(failed == 3, "{failed} failed forks counted, want 3");
    ctx.fork().start(|| arena.verify())?.finish()?.whole(8)?;
    Ok(session::summary(&last))
}

/// With strict overcommit each mapping is charged when the fork comes to it: a rising limit lets it fail at one after the
/// other.
fn commit_limit(ctx: &Ctx) -> TestResult<String> {
    const AREAS: usize = 8;
    const STEP_KIB: usize = 1024;
    let mut rng = ctx.rng();
    let mut arenas = Vec::new();
    for _ in 0..AREAS {
        let span = Span::reserve(4 << 20)?;
        // Accountable: no MAP_NORESERVE.
        span.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        span.advise(libc::MADV_NOHUGEPAGE)?;
        let mut arena = Arena::adopt(&mut rng, span, Want::Zero);
        arena.fill(0);
        arenas.push(arena);
    }
    let verify = || arenas.iter().try_for_each(Arena::verify);
    let in_use = procfs::meminfo("Committed_AS")?;
    // The kernel's sum is kept in per-CPU parts and may be off by some MiB either way.
    let (mut limit, end) = (in_use.saturating_sub(32 << 10), in_use + (256 << 10));
    let (mut early, mut undone, mut parked) = (0, 0, 0);
    let done = loop {
        require!(limit < end, "fork still fails with {limit} KiB");
        let settings = (
            Setting::new("/proc/sys/vm/overcommit_kbytes", limit)?,
            Setting::new("/proc/sys/vm/overcommit_memory", 2)?,
        );
        let tried = try_fork(verify);
        drop(settings.1);
        drop(settings.0);
        let (result, r) = tried?;
        verify()?;
        match result {
            Ok(_) => break r,
            Err(e) => require!(
                e.raw_os_error() == Some(libc::ENOMEM),
                "fork gives {e}, want ENOMEM"
            ),
        }
        if r.chunks.parked > 0 {
            expect_undone(&r)?;
            undone += 1;
            parked += r.chunks.parked;
        } else {
            early += 1;
        }
        limit += STEP_KIB;
    };
    claim!(
        done.outcome() == Fate::Async && done.chunks.parked >= 2 * AREAS as u64,
        "the last fork: {}",
        session::summary(&done)
    );
    require!(undone > 0, "no fork failed with chunks parked");
    Ok(format!(
        "{early} failed before parking, {undone} after ({parked} chunks given back)"
    ))
}

/// The limit of processes of a user is looked at first of all.
fn process_limit(ctx: &Ctx) -> TestResult<String> {
    let device = module::open()?;
    let board = Board::new()?;
    let user = ctx.helper(&board, "user", || {
        become_nobody()?;
        let arena = Arena::new(&mut ctx.rng(), 8)?;
        let set_limit = |n| {
            let limit = libc::rlimit {
                rlim_cur: n,
                rlim_max: 1000,
            };
            // SAFETY: the limit lives across the call.
            cvt(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &limit) })
        };
        device.arm(&Arm::default()).map_err(module::device_error)?;
        set_limit(0)?;
        // SAFETY: no child comes of it.
        let result = cvt(unsafe { libc::fork() });
        if matches!(result, Ok(0)) {
            sys::exit_now(1);
        }
        require!(
            is_errno(&result, libc::EAGAIN),
            "fork gives {result:?}, want EAGAIN"
        );
        let r = device.report().map_err(module::device_error)?;
        claim!(
            r.outcome() == Fate::None,
            "outcome {} of a fork that failed at once",
            r.outcome()
        );
        arena.verify()?;
        set_limit(1000)?;
        let child = Board::new()?;
        // SAFETY: the child runs board.run() only and never returns.
        let pid = cvt(unsafe { libc::fork() })?;
        if pid == 0 {
            child.run("child", || arena.verify());
        }
        child.collect(&["child"])?;
        sys::wait(pid)?;
        let r = device.report().map_err(module::device_error)?;
        claim!(
            r.outcome() == Fate::Async && r.chunks.parked >= 4,
            "the fork after it: {}",
            session::summary(&r)
        );
        arena.verify()
    })?;
    sys::wait(user)?;
    board.collect(&["user"])?;
    Ok("armed until a fork parks".into())
}

/// Forks that a signal has stopped, which the kernel makes once more.
static STOPPED: AtomicU32 = AtomicU32::new(0);

/// To come back to the system call that was stopped, the kernel has put its number back in its place and the program in front
/// of the instruction.
extern "C" fn count_stopped(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let register = |r: i32| context.uc_mcontext.gregs[r as usize];
    // SAFETY: the program is there; an instruction may be one byte before its memory ends, but not in the C library.
    let next = unsafe { (register(libc::REG_RIP) as *const [u8; 2]).read() };
    if next == SYSCALL && register(libc::REG_RAX) == libc::SYS_clone3 {
        STOPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// A stop at a system call, with PTRACE_O_TRACESYSGOOD.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

fn ptrace(request: libc::c_uint, pid: i32, data: i32) -> io::Result<()> {
    // SAFETY: these requests touch no memory of this process.
    cvt(unsafe { libc::ptrace(request, pid, 0, data) }).map(drop)
}

/// Whether a process that has stopped at a system call is about to make a clone3(2).
fn before_clone3(pid: i32) -> io::Result<bool> {
    // SAFETY: all-zero is a valid user_regs_struct, which the call fills in.
    let registers = unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        cvt(libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &mut registers))?;
        registers
    };
    // The result that is there until the call has one.
    let none = -i64::from(libc::ENOSYS);
    Ok(registers.orig_rax.cast_signed() == libc::SYS_clone3 && registers.rax.cast_signed() == none)
}

/// Stops `parent` on its way into each clone3(2), as a debugger does, and sends it a signal; but lets it pass when it makes
/// the same one once more.
fn stop_forks(parent: i32, ready: &Gate) -> TestResult {
    ptrace(libc::PTRACE_SEIZE, parent, libc::PTRACE_O_TRACESYSGOOD).at("PTRACE_SEIZE")?;
    ptrace(libc::PTRACE_INTERRUPT, parent, 0).at("PTRACE_INTERRUPT")?;
    let (mut begun, mut once_more) = (false, false);
    loop {
        let mut status = 0;
        // SAFETY: the status lives across the call.
        cvt(unsafe { libc::waitpid(parent, &mut status, libc::__WALL) }).at("wait")?;
        let signal = match libc::WSTOPSIG(status) {
            SYSCALL_STOP => {
                if before_clone3(parent).at("PTRACE_GETREGS")? {
                    if !once_more {
                        sys::kill(parent, libc::SIGALRM)?;
                    }
                    once_more = !once_more;
                }
                0
            }
            // It stopped for the interrupt.
            _ if status >> 16 != 0 => 0,
            signal => signal,
        };
        ptrace(libc::PTRACE_SYSCALL, parent, signal).at("PTRACE_SYSCALL")?;
        if !begun {
            ready.open(0)?;
            begun = true;
        }
    }
}

/// A pending signal makes the kernel start the fork anew. The C library's fork() may have all signals blocked meanwhile; one
/// into a cgroup is a plain system call.
fn signals(ctx: &Ctx) -> TestResult<String> {
    const FORKS: u32 = 40;
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    // SAFETY: all-zero is a valid sigaction; the handler only reads what is there.
    unsafe {
        let mut act: libc::sigaction = std::mem::zeroed();
        act.sa_sigaction = count_stopped as *const () as usize;
        act.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        cvt(libc::sigaction(libc::SIGALRM, &act, std::ptr::null_mut()))?;
    }
    let group = ctx.cgroup.child("children")?;
    let (parent, board, ready) = (sys::pid(), Board::new()?, Gate::new()?);
    let stopper = ctx.helper(&board, "stopper", || stop_forks(parent, &ready))?;
    ready.pass()?;
    for round in 0..FORKS {
        let session = ctx.fork().into_cgroup(&group)?.start(|| arena.verify())?;
        let range = rng.range(arena.pages(), 500);
        arena.write_range(range, round + 1);
        session.finish()?.whole(4)?;
        arena.verify()?;
        let stopped = STOPPED.load(Ordering::Relaxed);
        require!(
            stopped == round + 1,
            "{} forks were stopped {stopped} times",
            round + 1
        );
    }
    sys::kill(stopper, libc::SIGKILL)?;
    sys::wait(stopper)?;
    board.collect(&[])?;
    Ok(format!("{FORKS} forks, each stopped once"))
}
