// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that is not parked keeps its fork semantics, right beside memory that is.

use super::common::expect_stock;
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{probe, Arena, Span, Want, CHUNK, PAGE};
use crate::module::modprobe;
use crate::procfs::Setting;
use crate::rng::Rng;
use crate::sys;
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::Reason;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// The special area lies between two parkable ones of this many chunks each.
const SIDE: usize = 2;
const MIDDLE: usize = 2;

pub const TESTS: &[Test] = &[
    Test::new(
        "shared_anonymous_memory_stays_shared_beside_parked_memory",
        |c| beside(c, &SHARED),
    )
    .quick(),
    Test::new(
        "shared_file_mapping_stays_shared_beside_parked_memory",
        |c| beside(c, &SHARED_FILE),
    ),
    Test::new("private_file_mapping_is_copied_beside_parked_memory", |c| {
        beside(c, &PRIVATE_FILE)
    })
    .quick(),
    Test::new("hugetlb_memory_is_copied_beside_parked_memory", |c| {
        beside(c, &HUGETLB)
    }),
    Test::new(
        "wipeonfork_memory_is_zero_in_the_child_beside_parked_memory",
        |c| beside(c, &WIPE),
    )
    .quick(),
    Test::new(
        "dontfork_memory_is_missing_in_the_child_beside_parked_memory",
        |c| beside(c, &DONTFORK),
    ),
    Test::new("growsdown_memory_is_copied_beside_parked_memory", |c| {
        beside(c, &GROWSDOWN)
    }),
    Test::new("mergeable_memory_is_copied_beside_parked_memory", |c| {
        beside(c, &MERGEABLE)
    }),
    Test::new(
        "advice_given_while_parked_counts_for_the_next_fork",
        advice_while_parked,
    ),
    Test::new(
        "process_that_shares_its_memory_uses_a_stock_fork",
        shared_mm,
    )
    .module(),
    Test::new(
        "process_without_a_leader_that_shares_its_memory_uses_a_stock_fork",
        shared_without_leader,
    )
    .module(),
    Test::new(
        "process_that_shares_its_memory_uses_a_stock_fork_while_its_threads_end",
        shared_with_ending_threads,
    )
    .module(),
    Test::new("process_with_a_virtual_machine_uses_a_stock_fork", notifier).module(),
];

/// A kind of memory that is never parked.
struct Kind {
    map: fn(Span) -> TestResult,
    /// What the child must see.
    child: Child,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Child {
    /// The parent's memory, later stores included, both ways.
    Shared,
    /// A private copy.
    Copied,
    Zero,
    Missing,
}

const SHARED: Kind = Kind {
    map: |s| Ok(s.map(RW, libc::MAP_SHARED)?),
    child: Child::Shared,
};
const SHARED_FILE: Kind = Kind {
    map: |s| map_file(s, libc::MAP_SHARED),
    child: Child::Shared,
};
const PRIVATE_FILE: Kind = Kind {
    map: |s| map_file(s, libc::MAP_PRIVATE),
    child: Child::Copied,
};
const HUGETLB: Kind = Kind {
    map: map_hugetlb,
    child: Child::Copied,
};
const WIPE: Kind = Kind {
    map: |s| map_advised(s, libc::MADV_WIPEONFORK),
    child: Child::Zero,
};
const DONTFORK: Kind = Kind {
    map: |s| map_advised(s, libc::MADV_DONTFORK),
    child: Child::Missing,
};
const GROWSDOWN: Kind = Kind {
    map: |s| Ok(s.map(RW, libc::MAP_PRIVATE | libc::MAP_GROWSDOWN)?),
    child: Child::Copied,
};
const MERGEABLE: Kind = Kind {
    map: |s| map_advised(s, libc::MADV_MERGEABLE),
    child: Child::Copied,
};

fn map_file(span: Span, flags: i32) -> TestResult {
    let file = sys::memfd(span.len())?;
    Ok(span.map_fd(RW, flags, file.as_fd(), 0)?)
}

fn map_hugetlb(span: Span) -> TestResult {
    std::mem::forget(Setting::new("/proc/sys/vm/nr_hugepages", 3 * MIDDLE)?);
    let mapped = span.map(RW, libc::MAP_PRIVATE | libc::MAP_HUGETLB);
    skip_unless!(mapped.is_ok(), "no huge pages to be had");
    Ok(())
}

fn map_advised(span: Span, advice: i32) -> TestResult {
    span.map(RW, libc::MAP_PRIVATE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    span.advise(advice).at("madvise")
}

/// The area's first words, which parent and child change.
const PARENT_MARK: usize = 8;
const CHILD_MARK: usize = 16;

fn beside(ctx: &Ctx, kind: &Kind) -> TestResult<String> {
    let mut rng = ctx.rng();
    let room = Span::reserve((2 * SIDE + MIDDLE) * CHUNK)?;
    let middle = room.part(SIDE * CHUNK, MIDDLE * CHUNK);
    let mut sides = Vec::new();
    for off in [0, (SIDE + MIDDLE) * CHUNK] {
        let span = room.part(off, SIDE * CHUNK);
        span.map(RW, libc::MAP_PRIVATE)?;
        span.advise(libc::MADV_NOHUGEPAGE)?;
        let mut side = Arena::adopt(&mut rng, span, Want::Zero);
        side.fill(0);
        sides.push(side);
    }
    // How much is parked without the area: the process has other memory than the sides.
    let before = ctx.fork().start(|| Ok(()))?.finish()?;
    let parked_before = before.report().map_or(2 * SIDE as u64, |r| r.chunks.parked);

    (kind.map)(middle)?;
    let mut area = Arena::adopt(&mut rng, middle, Want::Zero);
    area.fill(0);

    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        sides.iter().try_for_each(Arena::verify)?;
        let mut mine = area.clone();
        match kind.child {
            Child::Copied => {}
            Child::Shared => mine.expect_word(0, PARENT_MARK, 1),
            Child::Zero => mine.expect(0..mine.pages(), Want::Zero),
            Child::Missing => mine.expect(0..mine.pages(), Want::Fault),
        }
        mine.verify().at("special area")?;
        if kind.child != Child::Missing {
            middle.store(CHILD_MARK, 2);
        }
        Ok(())
    })?;
    session.expect_running()?;
    middle.store(PARENT_MARK, 1);
    area.expect_word(0, PARENT_MARK, 1);
    for side in &mut sides {
        side.fill(1);
    }
    session.expect_child_held()?;
    drop(hold);

    let ended = session.finish()?;
    if kind.child == Child::Shared {
        area.expect_word(0, CHILD_MARK, 2);
    }
    sides.iter().try_for_each(Arena::verify)?;
    area.verify().at("special area, parent")?;
    middle.unmap()?;
    ended.whole(2 * SIDE as u64)?.holds(
        &format!("as much is parked as without the area ({parked_before})"),
        |r| r.chunks.parked == parked_before,
    )?;
    Ok(ended.detail())
}

fn advice_while_parked(ctx: &Ctx) -> TestResult<String> {
    let mut rng: Rng = ctx.rng();
    let arena = Arena::new(&mut rng, 16)?;
    let (wiped, dropped) = (arena.chunk(2), arena.chunk(5));
    let hold = Hold::new()?;
    let first = ctx.fork().start(|| arena.verify())?;
    first.expect_running()?;
    arena.part(wiped.clone()).advise(libc::MADV_WIPEONFORK)?;
    arena.part(dropped.clone()).advise(libc::MADV_DONTFORK)?;
    let second = ctx.fork().start(|| {
        let mut mine = arena.clone();
        mine.expect(wiped.clone(), Want::Zero);
        mine.expect(dropped.clone(), Want::Fault);
        claim!(
            !probe::readable(arena.part(dropped.clone())),
            "MADV_DONTFORK memory is there"
        );
        mine.verify()
    })?;
    first.expect_child_held()?;
    second.expect_running()?;
    drop(hold);
    let ended = first.finish().map_err(|v| v.at("first child"))?;
    second
        .finish()
        .map_err(|v| v.at("second child"))?
        .whole(6)?;
    arena.verify()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}

/// A process, not a thread, on the same memory (as during vfork): exec or exit of one does not end the other.
fn share() -> TestResult<i32> {
    extern "C" fn sleep(_: *mut libc::c_void) -> i32 {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let stack = Span::reserve(16 * PAGE)?;
    stack.map(RW, libc::MAP_PRIVATE)?;
    // SAFETY: the function uses its own stack only and never returns.
    Ok(sys::cvt(unsafe {
        let top = stack.end() as *mut libc::c_void;
        libc::clone(
            sleep,
            top,
            libc::CLONE_VM | libc::SIGCHLD,
            std::ptr::null_mut(),
        )
    })?)
}

fn shared_mm(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 8)?;
    let other = share()?;
    let result = expect_stock(ctx, &mut arena, Reason::Shared);
    sys::kill(other, libc::SIGKILL)?;
    sys::wait(other)?;
    result?;
    ctx.fork()
        .start(|| arena.verify())?
        .finish()?
        .whole(arena.chunks())?;
    Ok("stock, shared".into())
}

/// A thread's use of the memory ends a moment after it is no longer counted as a thread that has it.
fn shared_with_ending_threads(ctx: &Ctx) -> TestResult<String> {
    const FORKS: usize = 150;
    let arena = Arena::new(&mut ctx.rng(), 4)?;
    let other = share()?;
    let stop = AtomicBool::new(false);
    let (mut forks, ended) = (0, AtomicUsize::new(0));
    let result = std::thread::scope(|scope| -> TestResult {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Joined at once; one that cannot be made is none.
                    let thread = std::thread::Builder::new().stack_size(16 << 10);
                    let joined = thread.spawn(|| {}).map(|t| t.join());
                    ended.fetch_add(usize::from(joined.is_ok()), Ordering::Relaxed);
                }
            });
        }
        let mut result = Ok(());
        // As many threads as forks.
        while result.is_ok() && forks.min(ended.load(Ordering::Relaxed)) < FORKS {
            let ended = ctx.fork().start(|| Ok(())).and_then(|s| s.finish());
            result = ended.and_then(|e| e.stock(Reason::Shared).map(drop));
            forks += 1;
        }
        stop.store(true, Ordering::Relaxed);
        result
    });
    sys::kill(other, libc::SIGKILL)?;
    sys::wait(other)?;
    result?;
    arena.verify()?;
    Ok(format!("{forks} forks, all stock, shared"))
}

/// The main thread has ended: it has no memory any more, but is still one of the process' threads.
fn shared_without_leader(ctx: &Ctx) -> TestResult<String> {
    const WHO: &str = "the thread that is left";
    let board = Board::new()?;
    let process = ctx.helper(&board, WHO, || {
        let leader = format!("/proc/self/task/{}/stat", sys::pid());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                board.run(WHO, || {
                    let ended = sys::poll_until(|| -> TestResult<Option<()>> {
                        let stat = std::fs::read_to_string(&leader)?;
                        Ok(stat.contains(") Z ").then_some(()))
                    })?;
                    require!(ended.is_some(), "the main thread does not end");
                    shared_mm(ctx).map(drop)
                })
            });
            // SAFETY: ends this thread only. What the other borrows stays: this stack is not unmapped.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            Ok(())
        })
    })?;
    sys::wait(process)?;
    board.collect(&[WHO])?;
    Ok("stock, shared".into())
}

/// A virtual machine of this process, which is one itself: QEMU's emulation has AMD's way of it.
pub(super) fn virtual_machine() -> TestResult<OwnedFd> {
    const KVM_CREATE_VM: u64 = 0xae01;
    if !Path::new("/dev/kvm").exists() {
        modprobe("kvm_amd", &[]).or_else(|_| modprobe("kvm_intel", &[]))?;
    }
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.map_err(|e| Verdict::Skip(format!("no nested virtualization here: {e}")))?;
    // SAFETY: the argument is a plain number, the machine type.
    let machine = sys::cvt(unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) })
        .map_err(|e| Verdict::Skip(format!("no nested virtualization here: {e}")))?;
    // SAFETY: a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(machine) })
}

/// KVM registers an mmu notifier: somebody else keeps copies of the page tables.
fn notifier(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 8)?;
    let machine = virtual_machine()?;
    expect_stock(ctx, &mut arena, Reason::Notifier)?;
    drop(machine);
    Ok("stock, notifier".into())
}
