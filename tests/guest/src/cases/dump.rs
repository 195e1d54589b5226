// SPDX-License-Identifier: MIT OR Apache-2.0
//! Core dumps: the kernel takes an empty page table slot for a hole in the core.

use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Shape};
use crate::procfs::Setting;
use crate::session::Ended;
use crate::sys::{self, Exit};
use crate::verdict::{Context, TestResult};
use crate::{claim, require};
use asyncfork_uapi::Hook;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CHUNKS: u64 = 8;

pub const TESTS: &[Test] = &[
    Test::new(
        "core_of_a_parent_that_crashes_while_parked_is_complete",
        parent_core,
    )
    .quick(),
    Test::new(
        "core_of_a_child_that_crashes_at_once_is_complete",
        child_core,
    ),
];

/// A core file's loaded segments: address, file offset, bytes in the file.
struct Core {
    file: File,
    segments: Vec<(u64, u64, u64)>,
}

impl Core {
    fn open(path: &Path) -> TestResult<Self> {
        const PT_LOAD: u64 = 1;
        let file = File::open(path).at(path.display())?;
        let read = |off: u64, width: usize| -> io::Result<u64> {
            let mut buf = [0; 8];
            file.read_exact_at(&mut buf[..width], off)?;
            Ok(u64::from_le_bytes(buf))
        };
        claim!(
            read(0, 4)? == 0x464c_457f,
            "{}: no ELF file",
            path.display()
        );
        let (start, size, count) = (read(32, 8)?, read(54, 2)?, read(56, 2)?);
        let mut segments = Vec::new();
        for header in (0..count).map(|i| start + i * size) {
            if read(header, 4)? == PT_LOAD {
                segments.push((
                    read(header + 16, 8)?,
                    read(header + 8, 8)?,
                    read(header + 32, 8)?,
                ));
            }
        }
        Ok(Self { file, segments })
    }

    fn read(&self, addr: usize, buf: &mut [u8]) -> io::Result<()> {
        let (addr, len) = (addr as u64, buf.len() as u64);
        let segment = self
            .segments
            .iter()
            .find(|s| s.0 <= addr && addr + len <= s.0 + s.2);
        let &(start, offset, _) =
            segment.ok_or_else(|| io::Error::other("in no segment of the core"))?;
        self.file.read_exact_at(buf, offset + addr - start)
    }
}

/// Cores go to `core.PID` in the test's directory while this lives.
fn cores_to_scratch(ctx: &Ctx) -> TestResult<Setting> {
    let pattern = ctx.scratch.join("core.%p");
    let pattern = pattern.to_str().expect("ASCII path");
    require!(pattern.len() < 127, "core_pattern would be cut: {pattern}");
    Ok(Setting::new("/proc/sys/kernel/core_pattern", pattern)?)
}

fn crash() -> TestResult {
    let all = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: plain settings of this process, then its end.
    unsafe {
        sys::cvt(libc::setrlimit(libc::RLIMIT_CORE, &all))?;
        libc::abort();
    }
}

fn expect_core(exit: Exit) -> TestResult {
    claim!(
        exit == Exit::Signal {
            signal: libc::SIGABRT,
            core: true
        },
        "ended with {exit:?}, want a core dump"
    );
    Ok(())
}

fn verify_core(ctx: &Ctx, arena: &Arena, pid: i32) -> TestResult {
    let core = Core::open(&ctx.scratch.join(format!("core.{pid}")))?;
    arena
        .verify_through(|addr, buf| core.read(addr, buf))
        .at("core file")
}

fn parent_core(ctx: &Ctx) -> TestResult<String> {
    let _setting = cores_to_scratch(ctx)?;
    let mut arena = Arena::planned(&mut ctx.rng(), Shape::Whole(2 * CHUNKS as usize))?;
    let board = Board::new()?;
    let written = 900..1900;
    let parent = ctx.helper(&board, "parent", || {
        let mut arena = arena.clone();
        arena.map()?;
        arena.fill(0);
        let hold = Hold::new()?;
        let session = ctx.fork().start_on(&board, "child", || arena.verify())?;
        session.expect_running()?;
        arena.write_range(written.clone(), 1);
        // Still real-time: the dump is written before the child runs.
        std::mem::forget(hold);
        crash()
    })?;
    expect_core(sys::wait(parent)?)?;
    board.collect(&["child"])?;
    arena.expect_gen(0..arena.pages(), 0);
    arena.expect_gen(written, 1);
    verify_core(ctx, &arena, parent)?;
    let ended = ctx.ended_session_of(parent)?;
    ended.whole(CHUNKS)?.pulled(Hook::Dump, CHUNKS - 3)?;
    Ok(ended.detail())
}

fn child_core(ctx: &Ctx) -> TestResult<String> {
    let _setting = cores_to_scratch(ctx)?;
    let mut arena = Arena::new(&mut ctx.rng(), 2 * CHUNKS as usize)?;
    let frozen = arena.clone();
    let board = Board::new()?;
    let session = ctx.fork().start_on(&board, "child", crash)?;
    arena.fill(1);
    expect_core(sys::wait(session.pid)?)?;
    board.collect(&[])?;
    arena.verify()?;
    verify_core(ctx, &frozen, session.pid)?;
    let ended = Ended::from_report(ctx, session.report()?);
    ended.whole(CHUNKS)?;
    Ok(ended.detail())
}
