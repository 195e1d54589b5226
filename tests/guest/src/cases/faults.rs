// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the module does when the kernel refuses it something: every allocation fails once, and unhooking.

use super::swap::{page_out, swapped};
use super::Test;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::Arena;
use crate::swap::Swap;
use crate::sys::{self, is_errno};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{Outcome as Fate, Reason, State};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

const CHUNKS: u64 = 8;

pub const TESTS: &[Test] = &[
    Test::new("failed_allocations_while_parking_lose_nothing", parking).faults(),
    Test::new("failed_allocations_while_pulling_lose_nothing", pulling).faults(),
    Test::new("failed_allocations_in_mixed_chunks_lose_nothing", mixed).faults(),
    Test::new("untested_module_is_refused_unless_allowed", untested).faults(),
    Test::new(
        "module_that_cannot_be_unhooked_stays_and_its_hooks_work",
        unhooking,
    )
    .faults(),
];

/// A module with fault injection counts as untested, so it shows what happens on a kernel that nobody has tested.
fn untested(ctx: &Ctx) -> TestResult<String> {
    ctx.module.unload()?;
    let refused = ctx.module.load_as_it_is("");
    claim!(
        is_errno(&refused, libc::EOPNOTSUPP),
        "loading on an untested kernel gives {refused:?}, want EOPNOTSUPP"
    );
    claim!(!ctx.module.is_loaded(), "a refused module is loaded");
    ctx.module
        .load_as_it_is("allow_untested=1")
        .at("load with allow_untested=1")?;
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}

/// `count` allocations fail after `skip` others.
pub(super) fn inject(ctx: &Ctx, skip: u32, count: u32) -> TestResult {
    ctx.module.set("fault_count", 0)?;
    ctx.module.set("fault_skip", skip)?;
    ctx.module.set("fault_count", count)?;
    Ok(())
}

/// Allocations that were to fail and have not been made.
pub(super) fn left(ctx: &Ctx) -> TestResult<u32> {
    ctx.module
        .get("fault_count")?
        .parse()
        .map_err(|e| Verdict::Broken(format!("fault_count: {e}")))
}

/// The n-th allocation of the fork fails, for every n that there is.
fn parking(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    let (mut stock, mut whole, mut aborted) = (0, 0, 0);
    for skip in 0.. {
        claim!(
            skip < 200,
            "a fork of {CHUNKS} chunks makes more than 200 allocations"
        );
        let hold = Hold::new()?;
        inject(ctx, skip, 1)?;
        let session = ctx.fork().start(|| arena.verify())?;
        let unused = left(ctx)?;
        ctx.module.set("fault_count", 0)?;
        arena.write_range(0..900, 1 + skip);
        drop(hold);
        let ended = session.finish_killed()?;
        arena.verify()?;
        match ended.report() {
            Some(r) if r.outcome() == Fate::Stock => {
                ended.stock(Reason::NoMemory)?;
                stock += 1;
            }
            Some(r) if r.state() == State::Aborted => aborted += 1,
            _ => {
                claim!(
                    !ended.was_killed(),
                    "the child was killed although its session is complete"
                );
                ended.parked(1)?.done()?;
                whole += 1;
            }
        }
        if unused > 0 {
            break;
        }
    }
    claim!(stock > 0, "no allocation of a fork was made to fail");
    Ok(format!(
        "{stock} stock, {whole} complete, {aborted} aborted"
    ))
}

/// From the n-th allocation on, all of the pulls' fail, more than the reserve has.
fn pulling(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    let (mut whole, mut killed) = (0, 0);
    for skip in 0..CHUNKS as u32 {
        for parent_first in [true, false] {
            let hold = Hold::new()?;
            let session = ctx.fork().start(|| arena.verify())?;
            session.expect_running()?;
            inject(ctx, skip, 1000)?;
            if parent_first {
                arena.fill(1 + skip);
            }
            drop(hold);
            let ended = session.finish_killed()?;
            ctx.module.set("fault_count", 0)?;
            arena.verify()?;
            ended.parked(CHUNKS)?;
            if ended.was_killed() {
                ended.aborted()?;
                killed += 1;
            } else {
                ended.done()?;
                whole += 1;
            }
            ctx.fork()
                .start(|| arena.verify())?
                .finish()?
                .whole(CHUNKS)?;
        }
    }
    claim!(killed > 0, "no session was aborted");
    Ok(format!("{whole} complete, {killed} aborted"))
}

/// The parent's copy of the n-th chunk, all of it in swap, fails half way; for the last one nothing else is left to tell
/// the child that its image is not whole.
fn mixed(ctx: &Ctx) -> TestResult<String> {
    let _swap = Swap::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    for chunk in 0..CHUNKS as usize {
        page_out(&arena, 0..arena.pages())?;
        let entries = (0..=chunk)
            .map(|c| swapped(arena.part(arena.chunk(c))))
            .collect::<TestResult<Vec<_>>>()?;
        let hold = Hold::new()?;
        let session = ctx
            .fork()
            .start(|| Err(Verdict::Failed("ran with a partial image".into())))?;
        session.expect_running()?;
        // For each chunk a table, and what an entry's count of sharers may need.
        let before: usize = entries[..chunk].iter().map(|n| 1 + n).sum();
        let skip = before + 1 + entries[chunk] / 2;
        inject(ctx, skip as u32, 1)?;
        arena.fill(1 + chunk as u32);
        let unused = left(ctx)?;
        claim!(unused == 0, "chunk {chunk}: nothing was made to fail");
        drop(hold);
        let ended = session.finish_killed()?;
        claim!(ended.was_killed(), "chunk {chunk}: the child survived");
        arena.verify()?;
        ended
            .parked(CHUNKS)?
            .aborted()?
            .holds("mixed chunks", |r| r.chunks.mixed == chunk as u64 + 1)?
            .holds("the rest was given back uncopied", |r| {
                r.chunks.reattached >= CHUNKS - 1 - chunk as u64
            })?;
    }
    Ok(format!("{CHUNKS} children killed"))
}

/// A hook that cannot be taken away keeps the module where it is. This one can after a while.
fn unhooking(ctx: &Ctx) -> TestResult<String> {
    const STUCK: &str = "cannot unhook";
    /// Tries that fail, four a second, if the test does not end them: enough for all that happens meanwhile.
    const TRIES: u32 = 200;
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    ctx.module.expect_unused()?;
    let log = KernelLog::at_its_end()?;
    inject(ctx, 0, TRIES)?;
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| -> TestResult {
        let unloader = scope.spawn(|| {
            let result = ctx.module.try_unload();
            gone.store(true, Ordering::SeqCst);
            result
        });
        let stuck = sys::poll_until(|| -> TestResult<Option<()>> {
            Ok((log.says(STUCK)? || gone.load(Ordering::SeqCst)).then_some(()))
        })?;
        claim!(
            stuck.is_some() && !gone.load(Ordering::SeqCst),
            "the unload does not wait for what cannot be unhooked"
        );
        for gen in 1..4 {
            let session = ctx.fork().unarmed().start(|| arena.verify())?;
            arena.fill(gen);
            let fresh = Arena::new(&mut rng, 2)?;
            fresh.verify()?;
            fresh.span().unmap()?;
            let _ended = session.finish()?;
            arena.verify()?;
        }
        require!(
            !gone.load(Ordering::SeqCst),
            "the hooks were gone before the forks were over"
        );
        ctx.module.set("fault_count", 0)?;
        unloader
            .join()
            .map_err(|_| Verdict::Failed("the unloader panicked".into()))?
            .at("unload")
    })?;
    claim!(!ctx.module.is_loaded(), "the module is still there");
    ctx.module.load("").at("load again")?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(arena.chunks())?;
    Ok(ended.detail())
}

/// What the kernel says from now on.
struct KernelLog(File);

impl KernelLog {
    fn at_its_end() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Whether one of the lines that have come since contains `text`.
    fn says(&self, text: &str) -> io::Result<bool> {
        // One record a read.
        let mut buf = [0; 8192];
        loop {
            match (&self.0).read(&mut buf) {
                Ok(n) if String::from_utf8_lossy(&buf[..n]).contains(text) => return Ok(true),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Overwritten before it was read.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
                Err(e) => return Err(e),
            }
        }
    }
}
