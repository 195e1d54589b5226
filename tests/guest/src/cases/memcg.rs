// SPDX-License-Identifier: MIT OR Apache-2.0
//! No memory for the page tables of a pull: the parent loses nothing, the child is complete or dead.

use super::common::{pause, rounds, Gate};
use super::Test;
use crate::cgroup::Cgroup;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Span};
use crate::require;
use crate::sys::cvt;
use crate::verdict::{Context, TestResult, Verdict};
use std::arch::asm;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const MIB: usize = 32;
const CHUNKS: u64 = 16;

pub const TESTS: &[Test] = &[
    Test::new(
        "child_without_memory_for_its_tables_is_killed_and_the_parent_whole",
        child_starved,
    )
    .module()
    .quick(),
    Test::new(
        "parent_without_memory_for_a_pull_gets_its_memory_back",
        parent_starved,
    )
    .module()
    .quick(),
    Test::new(
        "child_killed_for_memory_during_its_copy_costs_the_parent_nothing",
        child_oom,
    )
    .module(),
    Test::new(
        "parent_and_child_at_a_memory_limit_are_whole_or_killed",
        both_at_limit,
    ),
];

/// Nobody in the calling process's family is a victim of the OOM killer: an allocation beyond the limit fails.
fn unkillable() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")
}

fn child_starved(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
    let full = ctx.cgroup.child("full")?;
    full.set("memory.max", 0)?;
    unkillable()?;
    let killed = ctx.stats()?.killed;
    let session = ctx
        .fork()
        .into_cgroup(&full)?
        .start(|| Err(Verdict::Failed("ran in spite of no memory".into())))?;
    let ended = session.finish_killed()?;
    claim!(ended.was_killed(), "the child survived");
    arena.verify()?;
    arena.fill(1);
    arena.verify()?;
    ended
        .parked(CHUNKS)?
        .aborted()?
        .holds("chunks were given back uncopied", |r| {
            r.chunks.reattached > 0
        })?;
    let now = ctx.stats()?.killed;
    claim!(
        now > killed,
        "the statistics count {now} killed children, {killed} before"
    );
    Ok(ended.detail())
}

/// The kernel's own OOM killer takes the child while it copies.
fn child_oom(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, MIB)?;
    let (rounds, aborted) = rounds(ctx, 6, |round| {
        let tight = ctx.cgroup.child(&format!("tight{round}"))?;
        tight.set("memory.max", rng.below(20) * 4096)?;
        let session = ctx.fork().into_cgroup(&tight)?.start(|| arena.verify())?;
        let range = rng.range(arena.pages(), 2000);
        arena.write_range(range, round + 1);
        let ended = session.finish_killed()?;
        arena
            .verify()
            .map_err(|v| v.at(format!("parent, round {round}")))?;
        let report = ended.parked(CHUNKS)?.report();
        let during = report.is_some_and(|r| r.chunks.reattached > 0);
        claim!(
            ended.was_killed() || !during,
            "a child lives whose copy was given up"
        );
        Ok(during.into())
    })?;
    Ok(format!(
        "{rounds} rounds, {aborted} children killed during their copies"
    ))
}

/// Makes this thread's rseq area a private page again after a fork: the kernel writes to it whenever the thread was
/// scheduled, and kills it if it cannot.
fn unshare_rseq() {
    // SAFETY: a literal C string.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    if offset.is_null() {
        return;
    }
    // SAFETY: the C library documents the symbol as a ptrdiff_t, relative to the thread pointer, which is what
    // pthread_self() is on this machine; writing back what was read changes nothing that anybody relies on.
    unsafe {
        let area = (libc::pthread_self() as isize + *offset.cast::<isize>()) as *mut u32;
        let padding = area.byte_add(28);
        padding.write_volatile(padding.read_volatile());
    }
}

/// Lowers the limit below what is in use, pulls everything through one system call, lifts the limit again. Nothing is
/// written to memory in between: a page that has to be copied for a store would be waited for without end.
fn pull_without_memory(limit: &File, span: Span) -> io::Result<()> {
    let (low, high) = (b"1048576", b"max");
    let (lowered, pulled, lifted): (isize, isize, isize);
    // SAFETY: write, madvise, write; the buffers are literals, the range is a span, and no memory of this process changes.
    unsafe {
        asm!(
            "mov r12, rdi",
            "mov eax, {write}",
            "syscall",
            "mov r13, rax",
            "mov rdi, r8",
            "mov rsi, r9",
            "mov edx, {populate}",
            "mov eax, {madvise}",
            "syscall",
            "mov r14, rax",
            "mov rdi, r12",
            "mov rsi, r10",
            "mov edx, {high_len}",
            "mov eax, {write}",
            "syscall",
            write = const libc::SYS_write,
            madvise = const libc::SYS_madvise,
            populate = const libc::MADV_POPULATE_READ,
            high_len = const 3,
            inout("rdi") limit.as_raw_fd() as usize => _,
            inout("rsi") low.as_ptr() => _,
            inout("rdx") low.len() => _,
            in("r8") span.addr(),
            in("r9") span.len(),
            in("r10") high.as_ptr(),
            out("rax") lifted,
            out("r12") _,
            out("r13") lowered,
            out("r14") pulled,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    for ret in [lowered, pulled, lifted] {
        if ret < 0 {
            return Err(io::Error::from_raw_os_error(-ret as i32));
        }
    }
    Ok(())
}

fn parent_starved(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("parent")?;
    group.enter()?;
    // The program's own text is reclaimed at the limit like any file, and could not be read in again.
    // SAFETY: a plain call.
    cvt(unsafe { libc::mlockall(libc::MCL_CURRENT) }).at("mlockall")?;
    let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
    let limit = OpenOptions::new()
        .write(true)
        .open(group.path().join("memory.max"))?;
    unkillable()?;
    let hold = Hold::new()?;
    let session = ctx
        .fork()
        .start(|| Err(Verdict::Failed("ran with a partial image".into())))?;
    session.expect_running()?;
    unshare_rseq();
    pull_without_memory(&limit, arena.span())?;
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish_killed()?;
    claim!(ended.was_killed(), "the child survived");
    arena.verify()?;
    arena.fill(1);
    arena.verify()?;
    ended
        .parked(CHUNKS)?
        .aborted()?
        .holds("chunks were given back uncopied", |r| {
            r.chunks.reattached > 0
        })?;
    Ok(ended.detail())
}

/// Room for the parent alone, but not for copies of all its pages: the child is the one to go.
fn both_at_limit(ctx: &Ctx) -> TestResult<String> {
    let group: Cgroup = ctx.cgroup.child("both")?;
    group.enter()?;
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, MIB)?;
    unkillable()?;
    let used = group
        .get("memory.current")?
        .parse::<u64>()
        .map_err(io::Error::other)?;
    let mut killed = 0;
    for round in 0..6 {
        let gate = Gate::new()?;
        // In every other round the child is there until the parent has needed all the memory; in the others it may be
        // done before.
        let waits = round % 2 == 0;
        let session = ctx.fork().start(|| {
            if waits {
                gate.pass()?;
            }
            arena.verify()
        })?;
        fs::write(format!("/proc/{}/oom_score_adj", session.pid), "1000")?;
        group.set("memory.max", used + (4 << 20))?;
        pause(&mut rng);
        for page in arena.shuffled(&mut rng) {
            arena.write(page, round + 1);
        }
        gate.open(0)?;
        group.set("memory.max", "max")?;
        let ended = session.finish_killed()?;
        arena
            .verify()
            .map_err(|v| v.at(format!("parent, round {round}")))?;
        ended.parked(CHUNKS)?;
        if !ended.was_killed() {
            ended.done()?;
        }
        killed += u32::from(ended.was_killed());
    }
    require!(killed > 0, "no child was killed for memory");
    Ok(format!("6 rounds, {killed} children killed"))
}
