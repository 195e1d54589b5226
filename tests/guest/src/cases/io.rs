// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel reads and writes parked memory on the parent's behalf: read, write, O_DIRECT, pipes, futexes, pinned buffers.

use super::common::{expect_stock, prepared_racing, while_plugged, Linger, LINGER_MS};
use super::swap::swapped;
use super::Test;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::{self, Plug};
use crate::mem::{Arena, Span, PAGE};
use crate::module::{self, modprobe};
use crate::procfs::frame;
use crate::rng::Rng;
use crate::session::Session;
use crate::swap::Swap;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require, skip_unless};
use asyncfork_host::kernel::kernel_since;
use asyncfork_uapi::{Hook, Reason};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

pub const TESTS: &[Test] = &[
    Test::held(
        "read_into_parked_memory_leaves_the_child_its_image",
        Hook::Fault,
        read_file,
    )
    .quick(),
    Test::held(
        "write_from_parked_memory_writes_what_is_there",
        Hook::Fault,
        write_file,
    ),
    Test::held(
        "readv_into_scattered_parked_pages_leaves_the_child_its_image",
        Hook::Fault,
        readv,
    ),
    Test::held(
        "socket_io_with_parked_memory_loses_nothing",
        Hook::Fault,
        socket,
    ),
    Test::held(
        "vmsplice_from_parked_memory_passes_what_is_there",
        Hook::Fault,
        vmsplice_plain,
    ),
    Test::held(
        "vmsplice_gift_from_parked_memory_passes_what_is_there",
        Hook::Fault,
        vmsplice_gift,
    ),
    Test::new(
        "read_into_memory_beside_a_copying_child_disturbs_nobody",
        |ctx| {
            prepared_racing(
                ctx,
                Hook::Fault,
                |arena| file_of(arena, 1),
                |arena, _, file| read_from(arena, &file),
            )
        },
    ),
    Test::new(
        "o_direct_read_into_parked_memory_leaves_the_child_its_image",
        direct_read,
    )
    .quick(),
    Test::new(
        "o_direct_write_from_parked_memory_writes_what_is_there",
        direct_write,
    ),
    Test::new("futexes_in_parked_memory_work", futex),
    Test::new(
        "io_uring_pinned_buffers_make_the_fork_stock_with_the_right_image",
        pinned,
    )
    .quick(),
    Test::new(
        "page_pinned_while_the_fork_copies_the_rest_is_found_in_the_child",
        pinned_late,
    )
    .faults(),
];

/// A file in memory that holds generation `gen` of the whole arena.
fn file_of(arena: &Arena, gen: u32) -> TestResult<File> {
    let file = File::from(sys::memfd(arena.span().len())?);
    for page in 0..arena.pages() {
        file.write_all_at(&arena.bytes(page, gen), (page * PAGE) as u64)?;
    }
    Ok(file)
}

fn whole(n: isize, len: usize) -> TestResult {
    let n = cvt(n)?;
    claim!(n as usize == len, "{n} bytes of {len}");
    Ok(())
}

fn read_file(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let file = file_of(arena, 1)?;
    read_from(arena, &file)
}

fn read_from(arena: &mut Arena, file: &File) -> TestResult {
    let span = arena.span();
    whole(
        // SAFETY: the buffer is a span, where no Rust object lives.
        unsafe { libc::pread(file.as_raw_fd(), span.ptr(), span.len(), 0) },
        span.len(),
    )?;
    arena.expect_gen(0..arena.pages(), 1);
    arena.verify()
}

fn verify_file(arena: &Arena, file: &File) -> TestResult {
    let base = arena.span().addr();
    arena
        .verify_through(|addr, buf| file.read_exact_at(buf, (addr - base) as u64))
        .at("file")
}

fn write_file(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let span = arena.span();
    let file = File::from(sys::memfd(span.len())?);
    whole(
        // SAFETY: the kernel only reads the span.
        unsafe { libc::pwrite(file.as_raw_fd(), span.ptr(), span.len(), 0) },
        span.len(),
    )?;
    verify_file(arena, &file)
}

/// One call for 512 single pages in random order.
fn readv(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    let file = file_of(arena, 1)?;
    let order = rng.shuffled(arena.pages());
    for (batch, pages) in order.chunks(512).enumerate() {
        let iov: Vec<libc::iovec> = pages
            .iter()
            .map(|&p| arena.part(p..p + 1).iovec())
            .collect();
        let offset = (batch * 512 * PAGE) as i64;
        // SAFETY: the buffers are pages of a span.
        let n = unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), iov.len() as i32, offset) };
        whole(n, pages.len() * PAGE)?;
    }
    let model = arena.clone();
    for (from, &to) in order.iter().enumerate() {
        let key = model.key(from, 1);
        arena.expect(to..to + 1, crate::mem::Want::Key(key));
    }
    arena.verify()
}

/// The first half of every chunk goes through a socket into its second half.
fn socket(arena: &mut Arena, _: &mut Rng) -> TestResult {
    let (a, b) = UnixStream::pair()?;
    const STEP: usize = 16;
    for chunk in 0..arena.chunks() as usize {
        let pages = arena.chunk(chunk);
        let half = pages.len() / 2;
        for from in pages.clone().take(half).step_by(STEP) {
            let (src, dst) = (
                arena.part(from..from + STEP),
                arena.part(from + half..from + half + STEP),
            );
            whole(
                // SAFETY: the kernel only reads the source.
                unsafe { libc::send(a.as_raw_fd(), src.ptr(), src.len(), 0) },
                src.len(),
            )?;
            whole(
                // SAFETY: the target is a span.
                unsafe { libc::recv(b.as_raw_fd(), dst.ptr(), dst.len(), libc::MSG_WAITALL) },
                dst.len(),
            )?;
            for page in from..from + STEP {
                let want = arena.want(page);
                arena.expect(page + half..page + half + 1, want);
            }
        }
    }
    arena.verify()
}

fn vmsplice(arena: &Arena, flags: u32) -> TestResult {
    let (read, write) = sys::pipe()?;
    let (read, mut seen) = (File::from(read), vec![0; 16 * PAGE]);
    for first in (0..arena.pages()).step_by(16) {
        let iov = arena.part(first..first + 16).iovec();
        whole(
            // SAFETY: the pages belong to a span and are not written before they are read from the pipe.
            unsafe { libc::vmsplice(write.as_raw_fd(), &iov, 1, flags) },
            iov.iov_len,
        )?;
        io::Read::read_exact(&mut &read, &mut seen)?;
        for (i, bytes) in seen.chunks_exact(PAGE).enumerate() {
            claim!(
                bytes == arena.bytes(first + i, 0),
                "page {}: the pipe passed other contents",
                first + i
            );
        }
    }
    Ok(())
}

fn vmsplice_plain(arena: &mut Arena, _: &mut Rng) -> TestResult {
    vmsplice(arena, 0)
}

fn vmsplice_gift(arena: &mut Arena, _: &mut Rng) -> TestResult {
    vmsplice(arena, libc::SPLICE_F_GIFT)
}

/// A RAM disk: the simplest device that does O_DIRECT.
fn ram_disk(len: usize) -> TestResult<File> {
    modprobe("brd", &["rd_nr=1", "rd_size=65536"])?;
    require!(len <= 64 << 20, "the RAM disk is too small");
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open("/dev/ram0")
        .at("/dev/ram0")
}

fn direct_read(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let span = arena.span();
    let disk = ram_disk(span.len())?;
    // Through the page cache: only the read under test is direct.
    let plain = OpenOptions::new().write(true).open("/dev/ram0")?;
    for page in 0..arena.pages() {
        plain.write_all_at(&arena.bytes(page, 1), (page * PAGE) as u64)?;
    }
    plain.sync_all()?;

    let ended = while_plugged(ctx, &plug, &mut arena, |arena| {
        whole(
            // SAFETY: the buffer is a span.
            unsafe { libc::pread(disk.as_raw_fd(), span.ptr(), span.len(), 0) },
            span.len(),
        )?;
        arena.expect_gen(0..arena.pages(), 1);
        Ok(())
    })?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?;
    Ok(ended.detail())
}

fn direct_write(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let span = arena.span();
    let disk = ram_disk(span.len())?;
    let ended = while_plugged(ctx, &plug, &mut arena, |_| {
        whole(
            // SAFETY: the kernel only reads the span.
            unsafe { libc::pwrite(disk.as_raw_fd(), span.ptr(), span.len(), 0) },
            span.len(),
        )
    })?;
    verify_file(&arena, &File::open("/dev/ram0")?)?;
    ended
        .whole(arena.chunks())?
        .pulled(Hook::Fault, arena.chunks())?;
    Ok(ended.detail())
}

fn futex_call(word: &AtomicU32, op: i32, value: u32) -> io::Result<libc::c_long> {
    // SAFETY: the word is in a span that stays mapped; no timeout.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op,
            value,
            std::ptr::null::<libc::timespec>(),
        )
    })
}

fn futex_word(span: Span) -> &'static AtomicU32 {
    // SAFETY: aligned, mapped until the test's process ends, and used as an atomic only.
    unsafe { AtomicU32::from_ptr(span.ptr().cast()) }
}

/// Waiters sleep on words in memory that is then parked; the parent wakes them through it.
fn futex(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let arena = Arena::new(&mut ctx.rng(), 16)?;
    let words: Vec<&AtomicU32> = (0..8)
        .map(|chunk| futex_word(arena.part(arena.chunk(chunk))))
        .collect();
    let model = {
        let mut m = arena.clone();
        for (chunk, word) in words.iter().enumerate() {
            // The word is the low half of the first one; the pattern's high half stays.
            let first = arena.part(arena.chunk(chunk)).load(0) & !0xffff_ffff;
            word.store(0, Ordering::SeqCst);
            m.expect_word(chunk * 512, 0, first);
        }
        m
    };
    // Private futexes are found by address, shared ones by page.
    for (wait, wake) in [
        (libc::FUTEX_WAIT, libc::FUTEX_WAKE),
        (
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
        ),
    ] {
        for word in &words {
            word.store(0, Ordering::SeqCst);
        }
        std::thread::scope(|scope| -> TestResult {
            let waiters: Vec<_> = words
                .iter()
                .map(|word| {
                    scope.spawn(move || -> io::Result<()> {
                        hold::run_elsewhere()?;
                        while word.load(Ordering::SeqCst) == 0 {
                            // EAGAIN: woken before it slept; EINTR: the loop looks again.
                            let _ = futex_call(word, wait, 0);
                        }
                        Ok(())
                    })
                })
                .collect();
            let hold = plug.hold()?;
            let forked = ctx.fork().start(|| model.verify());
            let parked = forked
                .as_ref()
                .map_err(Clone::clone)
                .and_then(Session::expect_running);
            hold.step_aside()?;
            // Always wake, so that the scope ends.
            for word in &words {
                let again = futex_call(word, wait, 77);
                let ok = sys::is_errno(&again, libc::EAGAIN);
                word.store(1, Ordering::SeqCst);
                futex_call(word, wake, i32::MAX as u32)?;
                claim!(ok, "waiting for another value gives {again:?}, want EAGAIN");
            }
            for waiter in waiters {
                let waited = waiter.join();
                claim!(matches!(waited, Ok(Ok(()))), "a waiter: {waited:?}");
            }
            parked?;
            let session = forked?;
            session.expect_child_held()?;
            drop(hold);
            session
                .finish()?
                .whole(arena.chunks())?
                .pulled(Hook::Fault, arena.chunks())
                .map(drop)
        })?;
    }
    let mut after = model.clone();
    for (chunk, word) in words.iter().enumerate() {
        claim!(
            word.load(Ordering::SeqCst) == 1,
            "futex word {chunk} is not 1"
        );
        after.expect_word(chunk * 512, 0, arena.part(arena.chunk(chunk)).load(0));
    }
    after.verify().map_err(|v| v.at("parent"))?;
    Ok("shared and private".into())
}

/// Registered io_uring buffers are pinned for long: the one thing whose pages a fork must copy at once.
fn pinned(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 8)?;
    let ring = io_uring()?;
    register(&ring, arena.part(100..300))?;

    expect_stock(ctx, &mut arena, Reason::Pinned)?;

    // "Has or had": the kernel keeps no count.
    drop(ring);
    let later = ctx.fork().start(|| arena.verify())?.finish()?;
    later.stock(Reason::Pinned)?;
    Ok("stock, pinned".into())
}

/// A page that somebody pins after the fork has parked its mapping and before it copies what the mapping has of other
/// chunks: the kernel gives the child a page of its own at once. Whoever looks for the users of that page has to find it.
fn pinned_late(ctx: &Ctx) -> TestResult<String> {
    skip_unless!(
        kernel_since(6, 5)?,
        "io_uring takes mmap_lock to pin, which a fork holds (until Linux 6.5)"
    );
    let _swap = Swap::new()?;
    // Four chunks and a half, of which the half is for copy_page_range().
    let mut arena = Arena::new(&mut ctx.rng(), 9)?;
    let page = arena.part(arena.pages() - 10..arena.pages() - 9);
    let shared = frame(page)?;
    let ring = io_uring()?;
    let lingering = File::open(module::parameter("fault_lingering"))?;
    let whom = OpenOptions::new()
        .write(true)
        .open(module::parameter("fault_linger_pid"))?;
    let (ready, over) = (AtomicU32::new(0), AtomicU32::new(0));
    let linger = Linger::new(ctx, sys::pid(), "copy_part", LINGER_MS)?;
    let (session, pinned) = std::thread::scope(|scope| {
        // A page fault of the pinner's would wait for the fork: it writes its stack only, which comes after the arena.
        let pinner = scope.spawn(|| -> TestResult {
            let mut inside = [b'0'; 16];
            while inside[0] == b'0' && over.load(Ordering::SeqCst) == 0 {
                lingering.read_at(&mut inside, 0)?;
                ready.store(1, Ordering::SeqCst);
            }
            let pinned = register(&ring, page);
            lingering.read_at(&mut inside, 0)?;
            whom.write_at(b"0", 0)?;
            require!(
                inside[0] != b'0',
                "the fork was over before the page was pinned"
            );
            pinned
        });
        while ready.load(Ordering::SeqCst) == 0 {
            std::hint::spin_loop();
        }
        let session = ctx.fork().start(|| {
            require!(
                frame(page)? != shared,
                "the child shares the page: it was not pinned"
            );
            // A fresh page waits in a batch of the CPU that made it, where reclaim does not look: this empties all.
            fs::write("/proc/sys/vm/drop_caches", "1").at("drop_caches")?;
            page.advise(libc::MADV_PAGEOUT)?;
            claim!(
                swapped(page)? == 1,
                "reclaim does not find the child's own page"
            );
            arena.verify()
        });
        over.store(1, Ordering::SeqCst);
        (session, pinner.join())
    });
    drop(linger);
    let session = session?;
    crew::verdict(pinned)?;
    let ended = session.finish()?;
    arena.fill(1);
    arena.verify().at("parent, written")?;
    ended.whole(4)?;
    Ok(ended.detail())
}

/// Pins memory as a buffer of an io_uring, until that is closed.
pub(super) fn register(ring: &OwnedFd, buffer: Span) -> TestResult {
    const REGISTER_BUFFERS: u32 = 0;
    let iov = buffer.iovec();
    // SAFETY: one iovec that lives across the call.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_BUFFERS,
            &iov,
            1,
        )
    })
    .at("io_uring_register")?;
    Ok(())
}

pub(super) fn io_uring() -> TestResult<OwnedFd> {
    // struct io_uring_params: 120 bytes, all zero is valid.
    let mut params = [0u64; 15];
    // SAFETY: the parameters live across the call, which fills them in.
    let fd = cvt(unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) })
        .map_err(|e| Verdict::Skip(format!("no io_uring here: {e}")))?;
    // SAFETY: a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
