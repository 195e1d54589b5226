// SPDX-License-Identifier: MIT OR Apache-2.0
//! userfaultfd: its ioctls fill page tables without a fault.

use super::common::while_held;
use super::faults::expect_injection;
use super::Test;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Shape, Span, Want, CHUNK_PAGES, PAGE};
use crate::rng::Rng;
use crate::sys::{cvt, is_errno};
use crate::verdict::{Context, Outcome, Verdict};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::{Hook, Outcome as Fate, Reason};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new(
        "uffd_register_and_copy_on_parked_memory_leave_the_child_its_image",
        register_and_copy,
    )
    .quick(),
    Test::new(
        "uffd_write_protection_of_parked_memory_holds",
        write_protect,
    ),
    Test::new(
        "memory_registered_with_uffd_before_the_fork_is_copied_at_once",
        registered_before,
    ),
    Test::new(
        "uffd_fork_events_with_parked_memory_block_nobody",
        fork_event,
    ),
    Test::new("uffd_ioctls_racing_forks_disturb_nobody", racing),
    Test::new("fork_during_a_uffd_ioctl_is_stock", during_ioctl).quick(),
    Test::new(
        "uffd_unregister_on_a_parked_process_loses_nothing",
        unregister,
    ),
    Test::new(
        "uffd_move_of_parked_memory_is_refused_as_after_a_stock_fork",
        move_parked,
    )
    .quick(),
    Test::new("uffd_moves_racing_forks_lose_nothing", move_racing),
    Test::new(
        "uffd_ioctl_outlives_a_load_that_ends_in_failed_allocations",
        failing_load,
    )
    .module(),
];

const MISSING: u64 = 1;
const WP: u64 = 2;
const FEATURE_FORK: u64 = 1 << 1;
const FEATURE_MOVE: u64 = 1 << 16;
const ALLOW_SRC_HOLES: u64 = 1 << 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;

const API: u64 = 0xc018_aa3f;
const REGISTER: u64 = 0xc020_aa00;
const UNREGISTER: u64 = 0x8010_aa01;
const COPY: u64 = 0xc028_aa03;
const ZEROPAGE: u64 = 0xc020_aa04;
const MOVE: u64 = 0xc028_aa05;
const WRITEPROTECT: u64 = 0xc018_aa06;

/// A userfaultfd.
struct Uffd(File);

impl Uffd {
    fn new(features: u64) -> Outcome<Self> {
        // SAFETY: plain numbers.
        let fd = cvt(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })
            .map_err(|e| Verdict::Skip(format!("no userfaultfd here: {e}")))?;
        // SAFETY: a fresh descriptor.
        let uffd = Self(unsafe { File::from_raw_fd(fd as i32) });
        uffd.ioctl(API, &mut [0xaa, features, 0]).at("UFFDIO_API")?;
        Ok(uffd)
    }

    fn ioctl(&self, number: u64, args: &mut [u64]) -> io::Result<()> {
        assert!(args.len() * 8 >= (number >> 16 & 0x3fff) as usize);
        // SAFETY: the array has at least the size that the number names.
        cvt(unsafe { libc::ioctl(self.0.as_raw_fd(), number, args.as_mut_ptr()) }).map(drop)
    }

    fn register(&self, span: Span, mode: u64) -> Outcome {
        self.ioctl(
            REGISTER,
            &mut [span.addr() as u64, span.len() as u64, mode, 0],
        )
        .at("UFFDIO_REGISTER")
    }

    fn unregister(&self, span: Span) -> Outcome {
        self.ioctl(UNREGISTER, &mut [span.addr() as u64, span.len() as u64])
            .at("UFFDIO_UNREGISTER")
    }

    /// Fills one missing page.
    fn copy(&self, page: Span, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), PAGE);
        self.copy_from(page, bytes.as_ptr() as usize)
    }

    /// Fills one missing page with what is at `source`.
    fn copy_from(&self, page: Span, source: usize) -> io::Result<()> {
        self.ioctl(
            COPY,
            &mut [page.addr() as u64, source as u64, PAGE as u64, 0, 0],
        )
    }

    fn zero(&self, span: Span) -> io::Result<()> {
        self.ioctl(ZEROPAGE, &mut [span.addr() as u64, span.len() as u64, 0, 0])
    }

    /// One that can move pages.
    fn with_move() -> Outcome<Self> {
        skip_unless!(
            asyncfork_watch::kernel_since(6, 8)?,
            "no UFFDIO_MOVE in this kernel (Linux 6.8)"
        );
        Self::new(FEATURE_MOVE)
    }

    /// Moves pages to missing ones: how many bytes, and the error that ended it.
    fn move_pages(&self, from: Span, to: Span, mode: u64) -> (usize, io::Result<()>) {
        let mut args = [
            to.addr() as u64,
            from.addr() as u64,
            from.len() as u64,
            mode,
            0,
        ];
        let result = self.ioctl(MOVE, &mut args);
        (args[4].cast_signed().max(0) as usize, result)
    }

    /// Write-protects the range, or ends that and wakes who waits for it.
    fn protect(&self, span: Span, on: bool) -> io::Result<()> {
        self.ioctl(
            WRITEPROTECT,
            &mut [span.addr() as u64, span.len() as u64, u64::from(on)],
        )
    }

    /// The next event: its kind and its third word (the address of a fault).
    fn event(&self) -> io::Result<(u8, u64)> {
        let mut msg = [0; 32];
        (&self.0).read_exact(&mut msg)?;
        Ok((
            msg[0],
            u64::from_ne_bytes(msg[16..24].try_into().expect("eight bytes")),
        ))
    }
}

fn register_and_copy(ctx: &Ctx) -> Outcome<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let uffd = Uffd::new(0)?;
    let ended = while_held(ctx, &mut arena, |arena| {
        uffd.register(arena.span(), MISSING)?;
        // Holes in two chunks: one is filled by copies, one by zero pages.
        let (copied, zeroed) = (300..700, 5 * CHUNK_PAGES..5 * CHUNK_PAGES + 100);
        for hole in [&copied, &zeroed] {
            arena.part(hole.clone()).advise(libc::MADV_DONTNEED)?;
        }
        for page in copied.clone() {
            uffd.copy(arena.part(page..page + 1), &arena.bytes(page, 1))
                .at("UFFDIO_COPY")?;
        }
        let taken = uffd.copy(arena.part(0..1), &arena.bytes(0, 1));
        claim!(
            crate::sys::is_errno(&taken, libc::EEXIST),
            "a copy over a page that was parked gives {taken:?}, want EEXIST"
        );
        uffd.zero(arena.part(zeroed.clone()))
            .at("UFFDIO_ZEROPAGE")?;
        arena.expect_gen(copied, 1);
        arena.expect(zeroed, Want::Zero);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Uffd, arena.chunks())?;
    Ok(ended.detail())
}

fn write_protect(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let uffd = Uffd::new(0)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    uffd.register(arena.span(), WP)?;
    uffd.protect(arena.span(), true).at("UFFDIO_WRITEPROTECT")?;
    session.expect_child_held()?;
    drop(hold);

    // Every store to a protected page must be announced before it happens.
    let pages: Vec<usize> = rng.shuffled(arena.pages()).into_iter().take(400).collect();
    let span = arena.span();
    let targets = pages.clone();
    let value = rng.next();
    let writer = std::thread::spawn(move || {
        for page in targets {
            span.page(page).store(64, value);
        }
    });
    for &page in &pages {
        let (kind, addr) = uffd.event().at("event")?;
        claim!(
            kind == EVENT_PAGEFAULT,
            "event {kind:#x}, want a page fault"
        );
        let at = span.page(page);
        claim!(
            addr as usize & !(PAGE - 1) == at.addr(),
            "fault at {addr:#x}, want page {page} at {:#x}",
            at.addr()
        );
        claim!(
            at.load(64) != value,
            "the store to page {page} went through before it was announced"
        );
        uffd.protect(at, false).at("UFFDIO_WRITEPROTECT")?;
    }
    claim!(writer.join().is_ok(), "the writer panicked");
    for page in pages {
        arena.expect_word(page, 64, value);
    }
    let ended = session.finish()?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Uffd, arena.chunks())?;
    Ok(ended.detail())
}

fn registered_before(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let mut beside = Arena::new(&mut rng, 4)?;
    let uffd = Uffd::new(0)?;
    uffd.register(arena.span(), MISSING)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        arena.verify()?;
        beside.verify()
    })?;
    session.expect_running()?;
    let parked = session.report()?.map_or(2, |r| r.parked);
    claim!(
        (2..2 + arena.chunks()).contains(&parked),
        "{parked} chunks parked: those of the registered arena, too"
    );
    arena.fill(1);
    beside.fill(1);
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    beside.verify()?;
    ended.whole(beside.chunks())?;
    Ok(ended.detail())
}

/// With fork events the parent's fork() waits for whoever reads them.
fn fork_event(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let watched = Arena::new(&mut rng, 2)?;
    let uffd = Uffd::new(FEATURE_FORK)?;
    uffd.register(watched.span(), MISSING)?;
    let reading = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let manager = scope.spawn(|| {
            reading.store(true, Ordering::SeqCst);
            uffd.event()
        });
        // fork() holds the allocator's lock: the manager must not need it any more.
        while !reading.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let session = ctx.fork().start(|| {
            arena.verify()?;
            watched.verify()
        })?;
        arena.fill(1);
        let event = manager
            .join()
            .map_err(|_| Verdict::Failed("the manager panicked".into()))?
            .at("event")?;
        claim!(event.0 == EVENT_FORK, "event {:#x}, want a fork", event.0);
        let ended = session.finish()?;
        arena.verify()?;
        watched.verify()?;
        ended.whole(arena.chunks())?;
        Ok(ended.detail())
    })
}

/// An ioctl that lasts: it copies from a page that is missing itself, and waits for it.
struct SlowCopy {
    source: Arena,
    target: Arena,
    /// Of the source.
    reader: Uffd,
    /// Of the target.
    writer: Uffd,
}

impl SlowCopy {
    fn new(rng: &mut Rng) -> Outcome<Self> {
        let mut two = || Arena::planned(rng, Shape::Whole(2));
        let (mut source, mut target) = (two()?, two()?);
        source.map()?;
        target.map()?;
        let (reader, writer) = (Uffd::new(0)?, Uffd::new(0)?);
        reader.register(source.span(), MISSING)?;
        writer.register(target.span(), MISSING)?;
        Ok(Self {
            source,
            target,
            reader,
            writer,
        })
    }

    /// The page that is copied, and where to.
    fn pages(&self) -> (Span, Span) {
        (self.source.part(0..1), self.target.part(0..1))
    }

    /// The ioctl. It does not end before [`SlowCopy::serve`].
    fn copy(&self) -> Outcome {
        let (from, to) = self.pages();
        self.writer.copy_from(to, from.addr()).at("UFFDIO_COPY")
    }

    /// Waits until the ioctl waits for its source.
    fn expect_fault(&self) -> Outcome {
        let from = self.pages().0.addr();
        let (kind, addr) = self.reader.event().at("event")?;
        claim!(
            kind == EVENT_PAGEFAULT && addr as usize & !(PAGE - 1) == from,
            "event {kind:#x} at {addr:#x}, want a fault at {from:#x}"
        );
        Ok(())
    }

    /// Fills the source.
    fn serve(&self) -> Outcome {
        self.reader
            .copy(self.pages().0, &self.source.bytes(0, 1))
            .at("UFFDIO_COPY of the missing source")
    }

    /// Both pages are missing again.
    fn again(&self) -> Outcome {
        let (from, to) = self.pages();
        from.advise(libc::MADV_DONTNEED)?;
        Ok(to.advise(libc::MADV_DONTNEED)?)
    }
}

fn during_ioctl(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let slow = SlowCopy::new(&mut rng)?;
    let (from, to) = slow.pages();
    std::thread::scope(|scope| -> Outcome<String> {
        let copier = scope.spawn(|| slow.copy());
        slow.expect_fault()?;
        let session = ctx.fork().start(|| arena.verify())?;
        arena.fill(1);
        let ended = session.finish()?;
        slow.serve()?;
        crew::verdict(copier.join())?;
        arena.verify()?;
        claim!(
            (0..PAGE).step_by(8).all(|at| to.load(at) == from.load(at)),
            "the copied page differs from its source"
        );
        ended.stock(Reason::Uffd)?;

        let ended = ctx.fork().start(|| arena.verify())?.finish()?;
        ended.whole(arena.chunks())?;
        Ok(ended.detail())
    })
}

/// Whether the module's hook of the ioctl is in place.
fn is_hooked() -> Outcome<bool> {
    const ENABLED: &str = "/sys/kernel/tracing/enabled_functions";
    let functions = std::fs::read_to_string(ENABLED).at(ENABLED)?;
    Ok(functions
        .lines()
        .any(|l| l.starts_with("userfaultfd_ioctl ")))
}

/// The hook stays on the stack of an ioctl for as long as that lasts, and a module whose load fails is freed whoever holds
/// it. The ioctls here fault on their source and last until that is served; one of them begins while the hooks are there.
fn failing_load(ctx: &Ctx) -> Outcome<String> {
    const TRIES: u32 = 20;
    /// How long an ioctl is kept: unhooking takes less.
    const KEPT: Duration = Duration::from_secs(10);
    expect_injection()?;
    ctx.module.unload()?;
    let slow = SlowCopy::new(&mut ctx.rng())?;
    let (failed, waited) = (AtomicU32::new(0), AtomicBool::new(false));
    let (enough, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| -> Outcome {
        let copier = scope.spawn(|| -> Outcome {
            while !stop.load(Ordering::Acquire) {
                slow.again()?;
                slow.copy()?;
            }
            Ok(())
        });
        let server = scope.spawn(|| -> Outcome {
            let mut hooked = false;
            while !stop.load(Ordering::Acquire) {
                slow.expect_fault()?;
                let (start, before) = (Instant::now(), failed.load(Ordering::Acquire));
                let over = || failed.load(Ordering::Acquire) != before;
                while hooked && !over() && start.elapsed() < KEPT {
                    std::thread::sleep(Duration::from_millis(1));
                }
                waited.fetch_or(hooked && !over(), Ordering::AcqRel);
                hooked = !waited.load(Ordering::Acquire) && is_hooked()?;
                stop.store(enough.load(Ordering::Acquire), Ordering::Release);
                slow.serve()?;
            }
            Ok(())
        });
        let result = (0..TRIES)
            .take_while(|_| !waited.load(Ordering::Acquire))
            .try_for_each(|_| -> Outcome {
                let load = ctx.module.load("fault_count=1");
                failed.fetch_add(1, Ordering::AcqRel);
                claim!(
                    is_errno(&load, libc::ENOMEM),
                    "loading gives {load:?}, want ENOMEM"
                );
                Ok(())
            });
        enough.store(true, Ordering::Release);
        crew::join(vec![copier, server]).and(result)
    })?;
    require!(
        waited.load(Ordering::Acquire),
        "no ioctl was under way when a load failed"
    );
    ctx.module.load("").at("load again")?;
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(arena.chunks())?;
    Ok(format!("{} loads failed", failed.load(Ordering::Acquire)))
}

/// Forks while another thread issues ioctls: how many forks parked the arena, and how many were stock because of an ioctl.
fn forks_beside(ctx: &Ctx, arena: &mut Arena, rng: &mut Rng) -> Outcome<(u32, u32)> {
    let (mut parked, mut refused) = (0, 0);
    for round in 0..40 {
        let session = ctx.fork().start(|| arena.verify())?;
        let range = rng.range(arena.pages(), 600);
        arena.write_range(range, round + 1);
        let ended = session.finish()?;
        arena.verify()?;
        match ended.report() {
            Some(r) if r.outcome() == Fate::Stock => {
                refused += 1;
                ended.stock(Reason::Uffd)?;
            }
            _ => {
                parked += 1;
                ended.whole(arena.chunks())?;
            }
        }
    }
    Ok((parked, refused))
}

/// A thread keeps registering, filling and unregistering one area while the main thread forks.
fn racing(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut busy = Arena::planned(&mut rng, Shape::Whole(2))?;
    busy.map()?;
    let span = busy.span();
    let uffd = Uffd::new(0)?;
    let stop = AtomicBool::new(false);
    let (parked, refused) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Outcome {
            let bytes = vec![0x5a; PAGE];
            while !stop.load(Ordering::Relaxed) {
                uffd.register(span, MISSING)?;
                for page in 0..64 {
                    uffd.copy(span.page(page), &bytes).at("UFFDIO_COPY")?;
                }
                uffd.zero(span.part(64 * PAGE, 64 * PAGE))
                    .at("UFFDIO_ZEROPAGE")?;
                uffd.unregister(span)?;
                span.advise(libc::MADV_DONTNEED)?;
            }
            Ok(())
        });
        let forks = forks_beside(ctx, &mut arena, &mut rng);
        stop.store(true, Ordering::Relaxed);
        crew::verdict(worker.join())?;
        forks
    })?;
    Ok(format!(
        "{parked} forks parked, {refused} stock because of an ioctl under way"
    ))
}

fn unregister(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let watched = Arena::new(&mut rng, 2)?;
    let uffd = Uffd::new(0)?;
    uffd.register(watched.span(), MISSING | WP)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        arena.verify()?;
        watched.verify()
    })?;
    session.expect_running()?;
    uffd.unregister(watched.span())?;
    arena.fill(1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    watched.verify()?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Uffd, arena.chunks())?;
    Ok(ended.detail())
}

/// Holes may be skipped, but parked pages are no holes: they are shared with the child now, and such pages cannot be moved.
fn move_parked(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let mut target = Arena::planned(&mut rng, Shape::Whole(2))?;
    target.map()?;
    let uffd = Uffd::with_move()?;
    uffd.register(target.span(), MISSING)?;
    let (source, there) = (arena.part(arena.chunk(3)), target.part(target.chunk(0)));
    let ended = while_held(ctx, &mut arena, |_| {
        let (moved, result) = uffd.move_pages(source, there, ALLOW_SRC_HOLES);
        claim!(
            moved == 0 && crate::sys::is_errno(&result, libc::EBUSY),
            "moving parked pages gives {result:?} after {moved} bytes, want EBUSY"
        );
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Uffd, arena.chunks())?;
    // Written to, they are the parent's own again.
    let pages = arena.chunk(3);
    arena.write_range(pages.clone(), 1);
    let (moved, result) = uffd.move_pages(source, there, 0);
    result.at("UFFDIO_MOVE")?;
    claim!(moved == source.len(), "{moved} bytes moved");
    arena
        .moved(pages, there)
        .verify()
        .map_err(|v| v.at("moved pages"))?;
    Ok(ended.detail())
}

/// A thread keeps moving pages out of a mapping that forks park.
fn move_racing(ctx: &Ctx) -> Outcome<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut source = Arena::new(&mut rng, 4)?;
    let mut target = Arena::planned(&mut rng, Shape::Whole(4))?;
    target.map()?;
    let uffd = Uffd::with_move()?;
    uffd.register(target.span(), MISSING)?;
    let target = target.span();
    let stop = AtomicBool::new(false);
    let (parked, moves) = std::thread::scope(|scope| -> Outcome<_> {
        let worker = scope.spawn(|| -> Outcome<u64> {
            let mut moves = 0;
            for gen in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                source.fill(gen);
                let mut page = 0;
                while page < source.pages() {
                    let run = page..(page + 16).min(source.pages());
                    let (from, to) = (source.part(run.clone()), target.page_range(run.clone()));
                    let (moved, result) = uffd.move_pages(from, to, 0);
                    page += moved / crate::mem::PAGE;
                    moves += u64::from(moved > 0);
                    match result {
                        Ok(()) => {}
                        // Shared with a child: write to it, and it is not.
                        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                            for page in page..run.end {
                                source.write(page, gen);
                            }
                        }
                        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                        // ENOENT: it was not there.
                        Err(e) => claim!(false, "UFFDIO_MOVE of page {page}: {e}"),
                    }
                }
                source
                    .moved(0..source.pages(), target)
                    .verify()
                    .map_err(|v| v.at("moved pages"))?;
                target.advise(libc::MADV_DONTNEED)?;
            }
            Ok(moves)
        });
        let forks = forks_beside(ctx, &mut arena, &mut rng);
        stop.store(true, Ordering::Relaxed);
        let moves = crew::verdict(worker.join())?;
        Ok((forks?.0, moves))
    })?;
    require!(moves > 0, "nothing was ever moved");
    Ok(format!("{parked} forks parked, {moves} moves"))
}
