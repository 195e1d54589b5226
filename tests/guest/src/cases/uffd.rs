// SPDX-License-Identifier: MIT OR Apache-2.0
//! userfaultfd: its ioctls fill page tables without a fault.

use super::common::{while_held, Gate};
use super::faults::{inject, left};
use super::swap::page_out;
use super::Test;
use crate::board::Board;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::{Arena, Shape, Span, Want, CHUNK_PAGES, PAGE};
use crate::module;
use crate::procfs::{self, Setting};
use crate::rng::Rng;
use crate::session::Ended;
use crate::swap::Swap;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::{Arm, Hook, Outcome as Fate, Reason};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    Test::new(
        "fork_during_a_uffd_ioctl_is_asynchronous_and_both_are_right",
        during_ioctl,
    )
    .quick(),
    Test::new(
        "uffd_copy_from_before_the_fork_into_a_parked_slot_gets_the_chunk_first",
        copy_into_slot,
    )
    .faults(),
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
        "huge_page_moved_into_a_parked_slot_waits_for_the_slots_table",
        move_huge,
    )
    .faults(),
    Test::new("uffd_rwp_protection_of_parked_memory_holds", rw_protect).quick(),
    Test::new(
        "memory_registered_with_uffd_rwp_before_the_fork_is_copied_at_once",
        rwp_registered_before,
    ),
    Test::new(
        "uffd_rwp_fork_events_give_the_child_a_protection_of_its_own",
        rwp_fork_event,
    ),
    Test::new(
        "uffd_rwp_mode_switches_on_a_parked_process_lose_nothing",
        rwp_mode_switch,
    ),
    Test::new("uffd_rwp_ioctls_racing_forks_disturb_nobody", rwp_racing),
    Test::new(
        "uffd_rwp_ioctls_from_before_the_fork_find_what_is_parked",
        rwp_unseen,
    )
    .faults(),
    Test::new(
        "uffd_marks_that_outlive_their_registration_do_not_reach_the_child",
        stale_marks,
    ),
    Test::new("stalled_uffd_ioctl_does_not_keep_the_module", stalled).module(),
    Test::new(
        "stalled_uffd_ioctl_does_not_keep_a_load_that_fails",
        failing_load,
    )
    .faults(),
];

const MISSING: u64 = 1;
const WP: u64 = 2;
const RWP: u64 = 8;
const FEATURE_FORK: u64 = 1 << 1;
const FEATURE_MOVE: u64 = 1 << 16;
const FEATURE_RWP: u64 = 1 << 17;
const FEATURE_RWP_ASYNC: u64 = 1 << 18;
const ALLOW_SRC_HOLES: u64 = 1 << 1;
const FAULT_RWP: u64 = 1 << 3;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;

const API: u64 = 0xc018_aa3f;
const REGISTER: u64 = 0xc020_aa00;
const UNREGISTER: u64 = 0x8010_aa01;
const WAKE: u64 = 0x8010_aa02;
const COPY: u64 = 0xc028_aa03;
const ZEROPAGE: u64 = 0xc020_aa04;
const MOVE: u64 = 0xc028_aa05;
const WRITEPROTECT: u64 = 0xc018_aa06;
const POISON: u64 = 0xc020_aa08;
const RWPROTECT: u64 = 0xc018_aa09;
const SET_MODE: u64 = 0x4010_aa0a;

const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// Of PAGEMAP_SCAN: not protected, in memory that is registered with RWP.
const PAGE_IS_ACCESSED: u64 = 1 << 9;
/// Of a pagemap entry: protected by a userfaultfd, in either way.
const MARK: u64 = 1 << 57;

/// A userfaultfd.
struct Uffd(File);

/// What a userfaultfd tells.
#[derive(Clone, Copy, Debug)]
struct Event {
    kind: u8,
    /// Flags of a fault, or the descriptor for the child of a fork.
    what: u64,
    /// Of a fault.
    addr: u64,
}

impl Uffd {
    fn new(features: u64) -> TestResult<Self> {
        Ok(Self::open(0, features)?.0)
    }

    /// And the features that this kernel has.
    fn open(flags: i32, features: u64) -> TestResult<(Self, u64)> {
        // SAFETY: plain numbers.
        let fd = cvt(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) })
            .map_err(|e| Verdict::Skip(format!("no userfaultfd here: {e}")))?;
        // SAFETY: a fresh descriptor.
        let uffd = Self(unsafe { File::from_raw_fd(fd as i32) });
        let mut api = [0xaa, features, 0];
        uffd.ioctl(API, &mut api).at("UFFDIO_API")?;
        Ok((uffd, api[1]))
    }

    /// One that can protect from loads, too. Its events are read with [`Uffd::next`].
    fn with_rwp(more: u64) -> TestResult<Self> {
        let (_, features) = Self::open(0, 0)?;
        skip_unless!(
            features & FEATURE_RWP != 0,
            "no UFFD_FEATURE_RWP in this kernel (Linux 7.3)"
        );
        Ok(Self::open(libc::O_NONBLOCK, FEATURE_RWP | more)?.0)
    }

    fn ioctl(&self, number: u64, args: &mut [u64]) -> io::Result<()> {
        assert!(args.len() * 8 >= (number >> 16 & 0x3fff) as usize);
        // SAFETY: the array has at least the size that the number names.
        cvt(unsafe { libc::ioctl(self.0.as_raw_fd(), number, args.as_mut_ptr()) }).map(drop)
    }

    fn register(&self, span: Span, mode: u64) -> TestResult {
        self.ioctl(
            REGISTER,
            &mut [span.addr() as u64, span.len() as u64, mode, 0],
        )
        .at("UFFDIO_REGISTER")
    }

    fn unregister(&self, span: Span) -> TestResult {
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
    fn with_move() -> TestResult<Self> {
        skip_unless!(moves()?, "no UFFDIO_MOVE in this kernel (Linux 6.8)");
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

    /// Protects the range from loads and stores, or ends that and wakes who waits for it.
    fn rw_protect(&self, span: Span, on: bool) -> TestResult {
        self.ioctl(
            RWPROTECT,
            &mut [span.addr() as u64, span.len() as u64, u64::from(on)],
        )
        .at("UFFDIO_RWPROTECT")
    }

    /// Unregisters memory that is protected. Whoever waits for that to end would go on waiting: he is woken up.
    fn rw_unregister(&self, span: Span) -> TestResult {
        self.unregister(span)?;
        self.ioctl(WAKE, &mut [span.addr() as u64, span.len() as u64])
            .at("UFFDIO_WAKE")
    }

    /// From now on the kernel itself ends the protection of a page that is accessed, or reports the access and waits.
    fn set_async(&self, on: bool) -> TestResult {
        let mut args = [FEATURE_RWP_ASYNC, 0];
        if !on {
            args.reverse();
        }
        self.ioctl(SET_MODE, &mut args).at("UFFDIO_SET_MODE")
    }

    /// The next event: its kind and its third word (the address of a fault).
    fn event(&self) -> io::Result<(u8, u64)> {
        self.read().map(|e| (e.kind, e.addr))
    }

    fn read(&self) -> io::Result<Event> {
        let mut msg = [0; 32];
        (&self.0).read_exact(&mut msg)?;
        let word = |at: usize| u64::from_ne_bytes(msg[at..at + 8].try_into().expect("eight bytes"));
        Ok(Event {
            kind: msg[0],
            what: word(8),
            addr: word(16),
        })
    }

    /// The next event, or none if it is `over` without one. Does not allocate.
    fn next(&self, over: impl Fn() -> bool) -> TestResult<Option<Event>> {
        loop {
            // In this order: what was told before the end is found.
            let over = over();
            match self.read() {
                Ok(event) => return Ok(Some(event)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).at("event"),
            }
            if over {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Demands that an access to `page` is announced, before whoever makes it is at its end.
    fn expect_access(&self, page: Span, over: impl Fn() -> bool) -> TestResult {
        let event = self.next(over)?;
        let announced = event.is_some_and(|e| {
            e.kind == EVENT_PAGEFAULT
                && e.what & FAULT_RWP != 0
                && e.addr as usize & !(PAGE - 1) == page.addr()
        });
        claim!(
            announced,
            "event {event:x?}, want an access to {:#x}",
            page.addr()
        );
        let marks = marked(page)?;
        claim!(marks == [true], "the page is not protected any more");
        Ok(())
    }
}

/// For each page whether it is protected, which nobody has to access it for.
fn marked(span: Span) -> TestResult<Vec<bool>> {
    let map = procfs::pagemap(0, span)?;
    Ok(map.iter().map(|entry| entry & MARK != 0).collect())
}

/// Demands that all pages are protected, or none.
fn expect_marked(span: Span, want: bool) -> TestResult {
    let marks = marked(span)?;
    let wrong = marks.iter().filter(|m| **m != want).count();
    claim!(
        wrong == 0,
        "{wrong} of {} pages are {}protected",
        marks.len(),
        if want { "not " } else { "" }
    );
    Ok(())
}

/// Demands that this process has nothing of its parent's userfaultfd.
fn expect_unregistered(span: Span) -> TestResult {
    expect_marked(span, false)?;
    let mut inside = false;
    for line in std::fs::read_to_string("/proc/self/smaps")?.lines() {
        if let Some((start, end)) = procfs::mapping(line) {
            inside = start < span.end() && end > span.addr();
        } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
            claim!(
                !flags
                    .split(' ')
                    .any(|f| ["um", "uw", "ui", "ur"].contains(&f)),
                "registered in the child: {flags}"
            );
        }
    }
    Ok(())
}

/// For each page what PAGEMAP_SCAN says: is it accessed?
fn scan_accessed(span: Span) -> TestResult<Vec<bool>> {
    let mut accessed = vec![false; span.pages()];
    // PAGEMAP_SCAN merges neighbours.
    let mut regions = vec![[0u64; 3]; span.pages()];
    let (start, end) = (span.addr() as u64, span.end() as u64);
    let mut args: [u64; 12] = [0; 12];
    args[0] = std::mem::size_of_val(&args) as u64;
    args[2] = start;
    args[3] = end;
    args[5] = regions.as_mut_ptr() as u64;
    args[6] = regions.len() as u64;
    args[9] = PAGE_IS_ACCESSED;
    args[11] = PAGE_IS_ACCESSED;
    let pagemap = File::open("/proc/self/pagemap")?;
    // SAFETY: the arguments and the room for regions live across the call.
    let n = cvt(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, args.as_mut_ptr()) })
        .at("PAGEMAP_SCAN")?;
    claim!(args[4] == end, "the scan ended at {:#x}", args[4]);
    for [from, to, categories] in &regions[..n as usize] {
        claim!(
            *categories == PAGE_IS_ACCESSED && start <= *from && from < to && *to <= end,
            "PAGEMAP_SCAN gives {from:#x}-{to:#x}, {categories:#x}"
        );
        let pages = (from - start) as usize / PAGE..(to - start) as usize / PAGE;
        accessed[pages].fill(true);
    }
    Ok(accessed)
}

/// Makes a missing page one that every access faults on, as if it were broken. It stays so without a userfaultfd.
pub(super) fn poison(page: Span) -> TestResult {
    let uffd = Uffd::new(0)?;
    uffd.register(page, MISSING)?;
    uffd.ioctl(POISON, &mut [page.addr() as u64, page.len() as u64, 0, 0])
        .at("UFFDIO_POISON")?;
    uffd.unregister(page)
}

fn register_and_copy(ctx: &Ctx) -> TestResult<String> {
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

fn write_protect(ctx: &Ctx) -> TestResult<String> {
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

/// Since Linux 6.8 whatever is registered may be moved, which does not fault and takes what is parked for a hole.
fn moves() -> TestResult<bool> {
    Ok(asyncfork_host::kernel::kernel_since(6, 8)?)
}

fn registered_before(ctx: &Ctx) -> TestResult<String> {
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
    if !moves()? {
        session.expect_running()?;
        let parked = session.report()?.map_or(2, |r| r.chunks.parked);
        claim!(
            (2..2 + arena.chunks()).contains(&parked),
            "{parked} chunks parked: those of the registered arena, too"
        );
    }
    arena.fill(1);
    beside.fill(1);
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    beside.verify()?;
    if moves()? {
        ended.stock(Reason::Uffd)?;
        uffd.unregister(arena.span())?;
        let ended = ctx.fork().start(|| arena.verify())?.finish()?;
        ended.whole(arena.chunks() + beside.chunks())?;
        return Ok(ended.detail());
    }
    ended.whole(beside.chunks())?;
    Ok(ended.detail())
}

/// With fork events the parent's fork() waits for whoever reads them.
fn fork_event(ctx: &Ctx) -> TestResult<String> {
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
        match moves()? {
            true => ended.stock(Reason::Uffd)?,
            false => ended.whole(arena.chunks())?,
        };
        Ok(ended.detail())
    })
}

/// An ioctl that lasts. Another process issues it, on a userfaultfd of this one's: it copies from a page that is missing there,
/// and waits for it.
struct SlowCopy {
    target: Arena,
    /// Of the target.
    writer: Uffd,
    /// To begin; the ioctl waits; to end.
    gates: [Gate; 3],
    board: Board,
    pid: i32,
}

impl SlowCopy {
    /// A process that is ready to issue the ioctl once; it may end with one of the errors in `may_fail`.
    fn new(ctx: &Ctx, rng: &mut Rng, may_fail: &[i32]) -> TestResult<Self> {
        let mut two = || Arena::planned(rng, Shape::Whole(2));
        let (mut source, mut target) = (two()?, two()?);
        target.map()?;
        let writer = Uffd::new(0)?;
        writer.register(target.span(), MISSING)?;
        let gates = [Gate::new()?, Gate::new()?, Gate::new()?];
        let board = Board::new()?;
        let (from, to) = (source.part(0..1), target.part(0..1));
        let pid = ctx.helper(&board, "copier", || {
            source.map()?;
            let reader = Uffd::new(0)?;
            reader.register(source.span(), MISSING)?;
            gates[0].pass()?;
            std::thread::scope(|scope| -> TestResult {
                let copier = scope.spawn(|| writer.copy_from(to, from.addr()));
                let (kind, addr) = reader.event().at("event")?;
                claim!(
                    kind == EVENT_PAGEFAULT && addr as usize & !(PAGE - 1) == from.addr(),
                    "event {kind:#x} at {addr:#x}, want a fault at {:#x}",
                    from.addr()
                );
                gates[1].open(0)?;
                gates[2].pass()?;
                claim!(!copier.is_finished(), "the ioctl has ended by itself");
                reader
                    .copy(from, &source.bytes(0, 1))
                    .at("UFFDIO_COPY of the missing source")?;
                let result = copier.join();
                let result = result.map_err(|_| Verdict::Failed("panic".into()))?;
                match result.as_ref().map_err(io::Error::raw_os_error) {
                    Err(Some(errno)) if may_fail.contains(&errno) => Ok(()),
                    _ => result.at("UFFDIO_COPY"),
                }
            })
        })?;
        target.expect(0..1, Want::Key(source.key(0, 1)));
        Ok(Self {
            target,
            writer,
            gates,
            board,
            pid,
        })
    }

    /// On return the ioctl waits for its source.
    fn begin(&self) -> TestResult {
        self.gates[0].open(0)?;
        self.gates[1].pass()?;
        Ok(())
    }

    /// Gives it its source and waits for its end.
    fn end(&self) -> TestResult {
        self.gates[2].open(0)?;
        sys::wait(self.pid)?;
        Ok(())
    }

    /// Demands that it was right. Children from after [`SlowCopy::new`] must have ended.
    fn verdict(self) -> TestResult {
        self.board.collect(&["copier"])
    }
}

/// The ioctl has nothing to do with what is parked, and ends while it is. Where registered memory may be moved, its target is
/// registered no more when the fork comes.
fn during_ioctl(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let gone = moves()?;
    let may_fail: &[i32] = if gone { &[libc::ENOENT] } else { &[] };
    let slow = SlowCopy::new(ctx, &mut rng, may_fail)?;
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut target = slow.target.clone();
    slow.begin()?;
    if gone {
        slow.writer.unregister(target.span())?;
        target.expect(0..1, Want::Zero);
    }
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    arena.write_range(arena.chunk(1), 1);
    slow.end()?;
    session.expect_running()?;
    arena.write_range(arena.chunk(2), 1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    slow.verdict()?;
    arena.verify().at("parent")?;
    let page = target.part(0..1);
    target.moved(0..1, page).verify().at("the ioctl's target")?;
    ended.whole(arena.chunks())?.pulled(Hook::Fault, 2)?;
    Ok(ended.detail())
}

/// The ioctl has begun before the fork; its target, registered no more, is parked, and then registered once again, without
/// the module's knowing (fault injection).
fn copy_into_slot(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let slow = SlowCopy::new(ctx, &mut rng, &[])?;
    slow.begin()?;
    let span = slow.target.span();
    slow.writer.unregister(span)?;
    let mut target = slow.target.clone();
    let copied = target.want(0);
    target.expect(0..1, Want::Zero);
    target.write_range(1..200, 1);
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| target.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    unseen(ctx, || slow.writer.register(span, MISSING))?;
    session.expect_running()?;
    slow.end()?;
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    // What is missing can be read once more.
    slow.writer.unregister(span)?;
    slow.verdict()?;
    target.expect(0..1, copied);
    target.verify().at("parent")?;
    ended.whole(1)?.pulled(Hook::PteAlloc, 1)?;
    Ok(ended.detail())
}

/// An ioctl that lasts, has passed the module's hook, and is the last thing that has to do with the module.
fn stall(ctx: &Ctx, rng: &mut Rng) -> TestResult<SlowCopy> {
    let slow = SlowCopy::new(ctx, rng, &[])?;
    ctx.module.expect_unused()?;
    let device = module::open()?;
    // Hooks are asleep while nobody is armed.
    device.arm(&Arm::default()).map_err(module::device_error)?;
    slow.begin()?;
    drop(device);
    Ok(slow)
}

/// Ends a stalled ioctl; then nothing of this process is registered.
fn end_stall(slow: SlowCopy) -> TestResult {
    slow.end()?;
    slow.writer.unregister(slow.target.span())?;
    slow.target.verify().at("the ioctl's target")?;
    slow.verdict()
}

fn stalled(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let slow = stall(ctx, &mut rng)?;
    let result = ctx.module.try_unload().at("unload");
    let loaded = ctx.module.is_loaded();
    end_stall(slow).and(result)?;
    claim!(!loaded, "the module is still there");
    // And one from before the load.
    let slow = SlowCopy::new(ctx, &mut rng, &[])?;
    slow.begin()?;
    let result = ctx.module.load("").at("load again");
    end_stall(slow).and(result)?;
    Ok(fork_once(ctx, &mut rng)?.detail())
}

/// A module whose load fails is freed, whoever is in its text. Here everything that a load needs is refused once.
fn failing_load(ctx: &Ctx) -> TestResult<String> {
    const MOST: u32 = 20;
    let mut rng = ctx.rng();
    let slow = stall(ctx, &mut rng)?;
    let mut failed = 0;
    let result = ctx.module.try_unload().at("unload").and_then(|()| {
        while let Err(e) = ctx
            .module
            .load(&format!("fault_skip={failed} fault_count=1"))
        {
            failed += 1;
            claim!(
                failed < MOST,
                "{failed} loads have failed, the last one: {e}"
            );
        }
        Ok(())
    });
    end_stall(slow).and(result)?;
    claim!(failed > 1, "{failed} loads failed");
    ctx.module.set("fault_count", 0)?;
    let ended = fork_once(ctx, &mut rng)?;
    Ok(format!("{failed} loads failed; {}", ended.detail()))
}

fn fork_once(ctx: &Ctx, rng: &mut Rng) -> TestResult<Ended> {
    let mut arena = Arena::new(rng, 8)?;
    let session = ctx.fork().start(|| arena.verify())?;
    arena.fill(1);
    let ended = session.finish()?;
    arena.verify()?;
    ended.whole(arena.chunks())?;
    Ok(ended)
}

/// What has become of forks while another thread issues ioctls.
#[derive(Default)]
struct Beside {
    /// Forks that parked the arena.
    parked: u32,
    /// Those that were stock because memory might be moved.
    refused: u32,
    /// Chunks that the ioctls found parked.
    met: u64,
}

/// Forks while another thread issues ioctls, 40 times at least, until `few` of what may happen is not true any more, but not
/// for ever.
fn forks_beside(
    ctx: &Ctx,
    arena: &mut Arena,
    rng: &mut Rng,
    few: impl Fn(&Beside) -> bool,
) -> TestResult<Beside> {
    const LEAST: u32 = 40;
    const MOST: u32 = 400;
    let mut seen = Beside::default();
    for round in 0..MOST {
        if round >= LEAST && !few(&seen) {
            break;
        }
        let session = ctx.fork().start(|| arena.verify())?;
        let range = rng.range(arena.pages(), 600);
        arena.write_range(range, round + 1);
        let ended = session.finish()?;
        arena.verify()?;
        match ended.report() {
            Some(r) if r.outcome() == Fate::Stock => {
                seen.refused += 1;
                ended.stock(Reason::Uffd)?;
            }
            _ => {
                seen.parked += 1;
                let report = ended.whole(arena.chunks())?.report();
                seen.met += report.map_or(0, |r| r.pulls_by(Hook::Uffd));
            }
        }
    }
    Ok(seen)
}

/// A thread keeps registering, filling and unregistering one area while the main thread forks.
fn racing(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut busy = Arena::planned(&mut rng, Shape::Whole(2))?;
    busy.map()?;
    let span = busy.span();
    let uffd = Uffd::new(0)?;
    let stop = AtomicBool::new(false);
    let may_refuse = moves()? && !ctx.control;
    let seen = std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> TestResult {
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
        let few = |b: &Beside| {
            b.parked == 0 || b.met == 0 && !ctx.control || b.refused == 0 && may_refuse
        };
        let forks = forks_beside(ctx, &mut arena, &mut rng, few);
        stop.store(true, Ordering::Relaxed);
        crew::verdict(worker.join())?;
        forks
    })?;
    let Beside {
        parked,
        refused,
        met,
    } = seen;
    claim!(
        refused == 0 || may_refuse,
        "{refused} forks were stock because of ioctls"
    );
    require!(
        parked > 0 && (met > 0 || ctx.control),
        "{parked} forks parked, but no ioctl met a parked chunk"
    );
    require!(
        refused > 0 || !may_refuse,
        "no fork came while memory was registered"
    );
    Ok(format!(
        "{parked} forks parked, {refused} stock, {met} chunks pulled by ioctls"
    ))
}

fn unregister(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let watched = Arena::new(&mut rng, 2)?;
    let uffd = Uffd::new(0)?;
    // Where that may be moved, too, nothing would be parked.
    if !moves()? {
        uffd.register(watched.span(), MISSING | WP)?;
    }
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
fn move_parked(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let mut target = Arena::planned(&mut rng, Shape::Whole(2))?;
    target.map()?;
    let uffd = Uffd::with_move()?;
    let (source, there) = (arena.part(arena.chunk(3)), target.part(target.chunk(0)));
    let ended = while_held(ctx, &mut arena, |_| {
        uffd.register(target.span(), MISSING)?;
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

/// An ioctl whose hook pulls nothing.
fn unseen<T>(ctx: &Ctx, ioctl: impl FnOnce() -> TestResult<T>) -> TestResult<T> {
    inject(ctx, 0, 1)?;
    let result = ioctl()?;
    require!(left(ctx)? == 0, "the ioctl has pulled what was parked");
    Ok(result)
}

/// The ioctls have begun before the fork, without the module's knowing (fault injection). A huge page needs no table: the
/// slot must not be taken for an empty one.
fn move_huge(ctx: &Ctx) -> TestResult<String> {
    /// Far more than a move takes.
    const WHILE: Duration = Duration::from_millis(500);
    let plug = Plug::new()?;
    let mut rng = ctx.rng();
    let uffd = Uffd::with_move()?;
    let mut arena = Arena::new(&mut rng, 16)?;
    let from = Span::reserve(2 << 20)?;
    let merged = ctx.stats()?.merged;
    let hold = plug.hold()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    let _setting = Setting::new("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;
    from.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    from.advise(libc::MADV_HUGEPAGE)?;
    let faults = || procfs::vmstat("thp_fault_alloc");
    let before = faults()?;
    from.store(0, 1);
    require!(faults()? > before, "no huge page to move");
    let to = arena.part(arena.chunk(3));
    unseen(ctx, || uffd.register(to, MISSING))?;
    let injected = AtomicBool::new(false);
    std::thread::scope(|scope| -> TestResult {
        let mover = scope.spawn(|| {
            unseen(ctx, || {
                injected.store(true, Ordering::SeqCst);
                Ok(uffd.move_pages(from, to, 0))
            })
        });
        let past_its_hook = sys::poll_until(|| -> TestResult<Option<()>> {
            let past = injected.load(Ordering::SeqCst) && left(ctx)? == 0;
            Ok(past.then_some(()))
        });
        std::thread::sleep(WHILE);
        let waits = !mover.is_finished();
        arena.write_range(arena.chunk(3), 1);
        let (moved, result) = mover
            .join()
            .map_err(|_| Verdict::Failed("the mover panicked".into()))??;
        require!(past_its_hook?.is_some(), "the move does not begin");
        claim!(
            moved == 0 && sys::is_errno(&result, libc::EEXIST),
            "moving onto parked pages gives {result:?} after {moved} bytes, want EEXIST"
        );
        claim!(waits, "the move did not wait for the table");
        Ok(())
    })?;
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify().at("parent")?;
    let now = ctx.stats()?.merged;
    claim!(now == merged, "{} tables were merged", now - merged);
    ended.whole(arena.chunks())?.pulled(Hook::Fault, 1)?;
    Ok(ended.detail())
}

/// A thread keeps moving pages out of a mapping that forks park, registered for as long as it moves.
fn move_racing(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut source = Arena::new(&mut rng, 4)?;
    let mut target = Arena::planned(&mut rng, Shape::Whole(4))?;
    target.map()?;
    let uffd = Uffd::with_move()?;
    let target = target.span();
    let stop = AtomicBool::new(false);
    let (parked, stock, moves) = std::thread::scope(|scope| -> TestResult<_> {
        let worker = scope.spawn(|| -> TestResult<u64> {
            let mut moves = 0;
            for gen in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                source.fill(gen);
                uffd.register(target, MISSING)?;
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
                uffd.unregister(target)?;
                source
                    .moved(0..source.pages(), target)
                    .verify()
                    .map_err(|v| v.at("moved pages"))?;
                target.advise(libc::MADV_DONTNEED)?;
            }
            Ok(moves)
        });
        let few = |b: &Beside| b.parked < 3 || b.refused < 3 && !ctx.control;
        let forks = forks_beside(ctx, &mut arena, &mut rng, few);
        stop.store(true, Ordering::Relaxed);
        let moves = crew::verdict(worker.join())?;
        let seen = forks?;
        Ok((seen.parked, seen.refused, moves))
    })?;
    require!(moves > 0, "nothing was ever moved");
    require!(
        parked > 0 && (stock > 0 || ctx.control),
        "{parked} forks parked, {stock} stock: never one or the other"
    );
    Ok(format!(
        "{parked} forks parked, {stock} stock, {moves} moves"
    ))
}

/// Loads and stores of protected pages are announced before they happen, the child's are not.
fn rw_protect(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    let span = arena.span();
    let uffd = Uffd::with_rwp(0)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        expect_unregistered(span)?;
        arena.verify()
    })?;
    session.expect_running()?;
    uffd.register(span, RWP)?;
    uffd.rw_protect(span, true)?;
    expect_marked(span, true)?;
    session.expect_child_held()?;
    drop(hold);

    let pages: Vec<usize> = rng.shuffled(arena.pages()).into_iter().take(400).collect();
    let value = rng.next();
    std::thread::scope(|scope| -> TestResult {
        // Every other access is a load.
        let user = scope.spawn(|| -> Vec<u64> {
            let access = |(n, &page): (usize, &usize)| match n % 2 {
                0 => span.page(page).load(0),
                _ => {
                    span.page(page).store(64, value);
                    0
                }
            };
            pages.iter().enumerate().map(access).collect()
        });
        let watched = pages.iter().try_for_each(|&page| {
            uffd.expect_access(span.page(page), || user.is_finished())?;
            uffd.rw_protect(span.page(page), false)?;
            expect_marked(span.page(page), false)
        });
        // Whatever came of it: nobody waits any more.
        uffd.rw_unregister(span)?;
        let loads = user
            .join()
            .map_err(|_| Verdict::Failed("the user panicked".into()))?;
        watched?;
        for (page, got) in pages.iter().zip(loads).step_by(2) {
            let want = arena.key(*page, 0);
            claim!(got == want, "page {page}: {got:#x}, want {want:#x}");
        }
        Ok(())
    })?;
    for page in pages.into_iter().skip(1).step_by(2) {
        arena.expect_word(page, 64, value);
    }
    let ended = session.finish()?;
    expect_marked(span, false)?;
    arena.verify().map_err(|v| v.at("parent"))?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Uffd, arena.chunks())?;
    Ok(ended.detail())
}

fn rwp_registered_before(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let mut beside = Arena::new(&mut rng, 4)?;
    let span = arena.span();
    let uffd = Uffd::with_rwp(0)?;
    uffd.register(span, RWP)?;
    uffd.rw_protect(span, true)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| {
        expect_unregistered(span)?;
        arena.verify()?;
        beside.verify()
    })?;
    expect_marked(span, true)?;
    // One half is written to while the child has seen nothing of it; the other stays as it is.
    let (half, other) = (0..arena.pages() / 2, arena.pages() / 2);
    uffd.rw_protect(arena.part(half.clone()), false)?;
    arena.write_range(half, 1);
    beside.fill(1);
    drop(hold);
    let ended = session.finish()?;
    let page = span.page(other + rng.below(other));
    expect_marked(span.part(span.len() / 2, span.len() / 2), true)?;
    std::thread::scope(|scope| -> TestResult {
        let reader = scope.spawn(|| page.load(0));
        let watched = uffd.expect_access(page, || reader.is_finished());
        uffd.rw_unregister(span)?;
        crew::verdict(reader.join().map(|_| watched))
    })?;
    arena.verify().at("parent")?;
    beside.verify().at("parent")?;
    ended.stock(Reason::Uffd)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(arena.chunks() + beside.chunks())?;
    Ok(ended.detail())
}

/// With fork events, the child's memory stays registered, and protected as the parent's was.
fn rwp_fork_event(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let arena = Arena::new(&mut rng, 4)?;
    let beside = Arena::new(&mut rng, 4)?;
    let span = arena.span();
    let uffd = Uffd::with_rwp(FEATURE_FORK)?;
    uffd.register(span, RWP)?;
    uffd.rw_protect(span, true)?;
    let (reading, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (seen, ended) = std::thread::scope(|scope| -> TestResult<_> {
        // As long as it runs, neither fork nor child waits for ever.
        let manager = scope.spawn(|| -> TestResult<Vec<u32>> {
            reading.store(true, Ordering::SeqCst);
            let over = || over.load(Ordering::SeqCst);
            let event = uffd.next(over)?;
            let Some(Event {
                kind: EVENT_FORK,
                what,
                ..
            }) = event
            else {
                return Err(Verdict::Failed(format!("event {event:x?}, want a fork")));
            };
            // SAFETY: a fresh descriptor.
            let childs = Uffd(unsafe { File::from_raw_fd(what as u32 as i32) });
            let mut seen = vec![0; span.pages()];
            while let Some(event) = childs.next(over)? {
                let at = event.addr as usize & !(PAGE - 1);
                claim!(
                    event.kind == EVENT_PAGEFAULT
                        && event.what & FAULT_RWP != 0
                        && (span.addr()..span.end()).contains(&at),
                    "event {event:x?}, want an access of the child"
                );
                let page = (at - span.addr()) / PAGE;
                seen[page] += 1;
                childs.rw_protect(span.page(page), false)?;
            }
            Ok(seen)
        });
        // fork() holds the allocator's lock: the manager must not need it any more.
        while !reading.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let forked = ctx.fork().start(|| {
            expect_marked(span, true)?;
            arena.verify()?;
            expect_marked(span, false)?;
            beside.verify()
        });
        let ended = forked.and_then(|session| session.finish());
        over.store(true, Ordering::SeqCst);
        let seen = manager
            .join()
            .map_err(|_| Verdict::Failed("the manager panicked".into()))?;
        Ok((seen?, ended?))
    })?;
    let unseen = seen.iter().filter(|n| **n == 0).count();
    claim!(
        unseen == 0,
        "{unseen} pages of the child were not protected"
    );
    expect_marked(span, true).at("parent")?;
    uffd.rw_unregister(span)?;
    arena.verify().at("parent")?;
    ended.stock(Reason::Uffd)?;
    Ok(ended.detail())
}

/// The switch is the first ioctl that a parked process sees.
fn rwp_mode_switch(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let uffd = Uffd::with_rwp(0)?;
    let mut details = Vec::new();
    for on in [true, false] {
        let mut arena = Arena::new(&mut rng, 8)?;
        let span = arena.span();
        let hold = Hold::new()?;
        let session = ctx.fork().start(|| {
            expect_unregistered(span)?;
            arena.verify()
        })?;
        session.expect_running()?;
        uffd.set_async(on)?;
        if let Some(report) = session.report()? {
            let pulled = report.pulls_by(Hook::Uffd);
            claim!(
                pulled >= arena.chunks(),
                "the switch has pulled {pulled} chunks, want all"
            );
        }
        uffd.register(span, RWP)?;
        uffd.rw_protect(span, true)?;
        session.expect_child_held()?;
        drop(hold);
        let touched = rng.range(arena.pages(), 700);
        if on {
            arena.write_range(touched.clone(), 1);
        } else {
            // An access waits, and goes on by itself after a switch.
            let first = span.page(touched.start);
            std::thread::scope(|scope| -> TestResult {
                let writer = scope.spawn(|| arena.write_range(touched.clone(), 1));
                let watched = uffd.expect_access(first, || writer.is_finished());
                uffd.set_async(true)?;
                crew::verdict(writer.join().map(|()| watched))
            })?;
        }
        let event = uffd.next(|| true)?;
        claim!(event.is_none(), "event {event:x?} in the other mode");
        let want: Vec<bool> = (0..arena.pages()).map(|p| touched.contains(&p)).collect();
        let accessed = scan_accessed(span)?;
        claim!(
            accessed == want,
            "{} pages are accessed, want {}, from {}",
            accessed.iter().filter(|a| **a).count(),
            touched.len(),
            touched.start
        );
        let wrong = marked(span)?
            .iter()
            .zip(&want)
            .filter(|(m, w)| m == w)
            .count();
        claim!(
            wrong == 0,
            "{wrong} pages are protected and accessed, or neither"
        );
        arena.verify().at("parent")?;
        uffd.rw_unregister(span)?;
        let ended = session.finish()?;
        arena.verify().at("parent, unregistered")?;
        ended
            .whole(arena.chunks())?
            .pulled(Hook::Uffd, arena.chunks())?;
        details.push(ended.detail());
    }
    Ok(details.join("; "))
}

/// A thread keeps registering, protecting and unregistering the very memory that forks park and the main thread writes to.
fn rwp_racing(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 8)?;
    let uffd = Uffd::with_rwp(0)?;
    let part = arena.part(300..1500);
    let stop = AtomicBool::new(false);
    let (seen, rounds) = std::thread::scope(|scope| -> TestResult<_> {
        let mut pauses = Rng::new(rng.next(), "worker");
        // It has the descriptor: with its end, nobody waits any more.
        let worker = scope.spawn({
            let stop = &stop;
            move || -> TestResult<u32> {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    let on = rounds % 2 == 1;
                    uffd.set_async(on)?;
                    uffd.register(part, RWP)?;
                    uffd.rw_protect(part, true)?;
                    if !on {
                        // Nobody but this thread ends it.
                        expect_marked(part, true)?;
                        let some = 0..pauses.below(part.pages()) + 1;
                        uffd.rw_protect(part.page_range(some), false)?;
                    }
                    uffd.rw_unregister(part)?;
                    expect_marked(part, false)?;
                    // Forks have to find nothing registered, too.
                    std::thread::sleep(Duration::from_micros(pauses.below(40_000) as u64));
                    rounds += 1;
                }
                Ok(rounds)
            }
        });
        let may_refuse = !ctx.control;
        let few = |b: &Beside| {
            b.parked == 0 || b.met == 0 && !ctx.control || b.refused == 0 && may_refuse
        };
        let forks = forks_beside(ctx, &mut arena, &mut rng, few);
        stop.store(true, Ordering::Relaxed);
        let rounds = crew::verdict(worker.join())?;
        Ok((forks?, rounds))
    })?;
    require!(
        ctx.control || seen.parked > 0 && seen.met > 0 && seen.refused > 0,
        "{} forks parked, {} stock, {} chunks pulled by ioctls: not all that may happen",
        seen.parked,
        seen.refused,
        seen.met
    );
    Ok(format!(
        "{} forks parked, {} stock, {} chunks pulled by ioctls in {rounds} rounds",
        seen.parked, seen.refused, seen.met
    ))
}

/// The ioctls have begun before the fork, without the module's knowing (fault injection): what is parked is registered. Then
/// whoever works on it pulls.
fn rwp_unseen(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let span = arena.span();
    let uffd = Uffd::with_rwp(FEATURE_RWP_ASYNC)?;
    let ended = while_held(ctx, &mut arena, |arena| {
        unseen(ctx, || uffd.register(span, RWP))?;
        let protected = arena.part(arena.chunk(2).start..arena.chunk(3).end);
        unseen(ctx, || uffd.rw_protect(protected, true))?;
        let scanned = arena.part(arena.chunk(4).start..arena.chunk(5).end);
        let missing = scan_accessed(scanned)?.iter().filter(|a| !**a).count();
        claim!(
            missing == 0,
            "{missing} parked pages are not accessed, but not protected either"
        );
        arena.write_range(arena.chunk(7), 1);
        expect_marked(protected, true)?;
        // The kernel ends the protection of these.
        let some = arena.chunk(3).start..arena.chunk(3).start + 50;
        arena.write_range(some.clone(), 1);
        expect_marked(arena.part(some), false)?;
        expect_marked(arena.part(arena.chunk(2)), true)
    })?;
    uffd.unregister(span)?;
    arena.verify().at("parent, unregistered")?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Protect, 2)?
        .pulled(Hook::Walk, 2)?
        .pulled(Hook::Fault, 1)?;
    Ok(ended.detail())
}

/// Memory that is registered no more, some of its pages in swap, but still marked as write-protected.
fn with_stale_marks(rng: &mut Rng) -> TestResult<Arena> {
    let arena = Arena::new(rng, 4)?;
    let span = arena.span();
    let uffd = Uffd::new(0)?;
    uffd.register(span, WP)?;
    uffd.protect(span, true).at("UFFDIO_WRITEPROTECT")?;
    // Before Linux 7.3 another mode takes the protection away and leaves the marks.
    let mut args = [span.addr() as u64, span.len() as u64, MISSING, 0];
    if uffd.ioctl(REGISTER, &mut args).is_ok() {
        uffd.unregister(span)?;
        page_out(&arena, 100..500)?;
        return Ok(arena);
    }
    // Pages in swap keep them when they are moved, and when they come back.
    page_out(&arena, 0..arena.pages())?;
    let mut target = Arena::planned(rng, Shape::Whole(4))?;
    target.map()?;
    let there = target.span();
    uffd.register(there, MISSING)?;
    let mut page = 0;
    let moved = sys::poll_until(|| -> TestResult<Option<()>> {
        let rest = page..arena.pages();
        let (moved, result) = uffd.move_pages(arena.part(rest.clone()), there.page_range(rest), 0);
        page += moved / PAGE;
        match result {
            Err(e) if e.raw_os_error() != Some(libc::EAGAIN) => Err(e).at("UFFDIO_MOVE"),
            _ => Ok((page == arena.pages()).then_some(())),
        }
    })?;
    require!(moved.is_some(), "only {page} pages could be moved");
    uffd.unregister(span)?;
    uffd.unregister(there)?;
    let arena = arena.moved(0..arena.pages(), there);
    for page in 500..arena.pages() {
        there.page(page).load(0);
    }
    Ok(arena)
}

fn stale_marks(ctx: &Ctx) -> TestResult<String> {
    let _swap = Swap::new()?;
    let mut arena = with_stale_marks(&mut ctx.rng())?;
    let span = arena.span();
    let stale = |bit: u64| -> TestResult<usize> {
        let map = procfs::pagemap(0, span)?;
        Ok(map
            .iter()
            .filter(|e| *e & MARK != 0 && *e & bit != 0)
            .count())
    };
    let (present, swapped) = (stale(procfs::PRESENT)?, stale(procfs::SWAPPED)?);
    require!(
        present > 0 && swapped > 0,
        "{present} marked pages in memory and {swapped} in swap"
    );
    let session = ctx.fork().start(|| {
        expect_unregistered(span)?;
        arena.verify()
    })?;
    arena.write_range(0..arena.pages() / 2, 1);
    let ended = session.finish()?;
    arena.verify().at("parent")?;
    ended
        .whole(arena.chunks())?
        .holds("chunks with swap entries were copied as mixed ones", |r| {
            r.chunks.mixed > 0
        })?;
    Ok(format!(
        "{present} marked pages in memory, {swapped} in swap; {}",
        ended.detail()
    ))
}
