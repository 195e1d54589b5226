// SPDX-License-Identifier: MIT OR Apache-2.0
//! `libasyncfork_spread.so`: preloaded into test programs that map a few pages at a time, next to each other, of which hardly anything
//! could be parked.
//!
//! - An anonymous private mapping for which the program leaves the address to the kernel gets 2 MiB slots of its own, in a part of the
//!   address space where the kernel puts nothing by itself. With the module's `park_partial` each of them can be parked.
//! - malloc() takes up to 32 MiB from the heap, which is one mapping, not from mappings of its own.
//! - With `ASYNCFORK_SPREAD_FORK_MS` set, a thread forks every so many milliseconds, and these children end at once: for programs that
//!   change their memory in all ways but do not fork. A child that the program itself forks gets such a thread, too. The children verify
//!   a few pages of their own: what is wrong goes to standard error, and the program is aborted.
//!
//! The address of the mapping that was unmapped last is given out again first. Everything else is as without the library, errno included.
//! What calls the kernel by itself, as malloc() does for mappings, or gives an address or flags that have a say in it, is left alone.

mod canary;

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use libc::{off64_t, size_t};

/// What one page table maps.
const SLOT: usize = 2 << 20;
/// The kernel maps top-down from the stack, and programs further up: this is free.
const BEGIN: usize = 0x1000_0000_0000;
const END: usize = 0x5000_0000_0000;
/// Larger mappings have 2 MiB pieces of their own anyway, and there is not room for many.
const LARGEST: usize = 64 << 30;

/// Where the next mapping goes.
static NEXT: AtomicUsize = AtomicUsize::new(BEGIN);
/// The slots of the mapping that was unmapped last, as [`pack`] has it: a program may expect to get its address again. 0: none.
static LAST: AtomicUsize = AtomicUsize::new(0);

/// First slot and number of slots, the empty one included.
const fn pack(start: usize, size: usize) -> usize {
    // An address has 47 bits, of which 21 are 0.
    (start / SLOT) | ((size / SLOT) << 32)
}

type MmapFn =
    unsafe extern "C" fn(*mut c_void, size_t, c_int, c_int, c_int, off64_t) -> *mut c_void;

static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

fn real() -> MmapFn {
    let mut address = REAL.load(Ordering::Relaxed);
    if address.is_null() {
        // SAFETY: a literal C string.
        address = unsafe { libc::dlsym(libc::RTLD_NEXT, c"mmap64".as_ptr()) };
        assert!(!address.is_null(), "the C library has mmap64()");
        REAL.store(address, Ordering::Relaxed);
    }
    // SAFETY: the C library's function of this name and type; not null.
    unsafe { mem::transmute::<*mut c_void, MmapFn>(address) }
}

/// Where a mapping goes; None: where the kernel likes.
fn slots(addr: *mut c_void, len: size_t, flags: c_int) -> Option<usize> {
    const WANTED: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // Of another kind, or with a say in the address.
    const OTHERS: c_int = libc::MAP_SHARED
        | libc::MAP_FIXED
        | libc::MAP_FIXED_NOREPLACE
        | libc::MAP_32BIT
        | libc::MAP_GROWSDOWN
        | libc::MAP_STACK
        | libc::MAP_HUGETLB;
    if !addr.is_null() || flags & WANTED != WANTED || flags & OTHERS != 0 {
        return None;
    }
    if len == 0 || len > LARGEST {
        return None;
    }
    // One slot stays empty, or neighbours would be merged, and could not grow.
    let size = size_of_slots(len);
    let last = LAST.load(Ordering::Relaxed);
    if last >> 32 == size / SLOT {
        let taken = LAST.compare_exchange(last, 0, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            return Some((last & (u32::MAX as usize)) * SLOT);
        }
    }
    let start = NEXT.fetch_add(size, Ordering::Relaxed);
    (start + size <= END).then_some(start)
}

fn size_of_slots(len: usize) -> usize {
    len.next_multiple_of(SLOT) + SLOT
}

/// mmap(2), private anonymous memory spread.
///
/// # Safety
/// As mmap(2): with `MAP_FIXED` it replaces what is there.
#[cfg_attr(not(test), no_mangle)]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    let real = real();
    if let Some(start) = slots(addr, len, flags) {
        // SAFETY: errno is the calling thread's own.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        let saved = unsafe { *errno };
        let flags = flags | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE: nothing that exists is touched.
        let got = unsafe { real(start as *mut c_void, len, prot, flags, fd, offset) };
        if got != libc::MAP_FAILED {
            return got;
        }
        // It fails below if it fails for another reason than the address.
        // SAFETY: as above.
        unsafe { *errno = saved };
    }
    // SAFETY: as the caller promises.
    unsafe { real(addr, len, prot, flags, fd, offset) }
}

/// [`mmap64`]'s other name.
///
/// # Safety
/// As mmap(2).
#[cfg_attr(not(test), no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    // SAFETY: as the caller promises.
    unsafe { mmap64(addr, len, prot, flags, fd, offset) }
}

/// munmap(2), which makes slots free.
///
/// # Safety
/// As munmap(2).
#[cfg_attr(not(test), no_mangle)]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: size_t) -> c_int {
    // As libc has it: not a cancellation point, errno set.
    // SAFETY: as the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_munmap, addr, len) };
    let start = addr as usize;
    let ours = (BEGIN..NEXT.load(Ordering::Relaxed)).contains(&start) && start.is_multiple_of(SLOT);
    if result == 0 && ours && len <= LARGEST {
        // If other mappings are there already, the next mmap() does not get it.
        LAST.store(pack(start, size_of_slots(len)), Ordering::Relaxed);
    }
    if result == 0 {
        0
    } else {
        -1
    }
}

#[ctor::ctor(unsafe)]
fn load() {
    real();
    // SAFETY: plain numbers. 32 MiB is the most that glibc takes.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20) };
    if let Some(ms) = fork_period(c"ASYNCFORK_SPREAD_FORK_MS") {
        PERIOD_MS.store(ms, Ordering::Relaxed);
        canary::map();
        // SAFETY: a function of this library, which is never unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        start_forker();
    }
}

fn fork_period(name: &CStr) -> Option<u64> {
    // SAFETY: a constructor runs before the program can change its environment.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: a string of the environment, see above.
    let value = unsafe { CStr::from_ptr(value) };
    value.to_str().ok()?.parse().ok().filter(|&ms| ms > 0)
}

static PERIOD_MS: AtomicU64 = AtomicU64::new(0);

/// Starts the thread that forks; it takes no signals, those are for the program.
fn start_forker() {
    // SAFETY: all structs are initialized by the calls before they are read.
    unsafe {
        let mut all = mem::zeroed();
        let mut old = mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let mut thread = mem::zeroed();
        libc::pthread_create(&mut thread, ptr::null(), forker, ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, ptr::null_mut());
    }
}

thread_local! {
    /// This is the thread that forks.
    static IS_FORKER: Cell<bool> = const { Cell::new(false) };
}

/// The children of the program get a forking thread of their own, not those of that thread.
extern "C" fn in_child() {
    if !IS_FORKER.get() {
        start_forker();
    }
}

extern "C" fn forker(_: *mut c_void) -> *mut c_void {
    let ms = PERIOD_MS.load(Ordering::Relaxed);
    let period = libc::timespec {
        tv_sec: (ms / 1000).cast_signed(),
        tv_nsec: (ms % 1000 * 1_000_000).cast_signed(),
    };
    IS_FORKER.set(true);
    let mut generation = 0;
    let mut written = canary::write(generation);
    loop {
        // SAFETY: a plain system call.
        unsafe { libc::nanosleep(&period, ptr::null_mut()) };
        if written && canary::differs(generation) {
            fail(b"memory differs in the parent of an added child\n");
        }
        // SAFETY: the child makes but system calls. Through the dynamic linker, so that the library under test sees the fork.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let wrong = written && canary::differs(generation);
            if wrong {
                // The program may take the exit status for that of a child of its own.
                say(b"memory differs in an added child\n");
            }
            // SAFETY: ends the process.
            unsafe { libc::_exit(wrong.into()) };
        }
        // While the child has it copied.
        generation += 1;
        written = canary::write(generation);
        let mut status = 0;
        // SAFETY: plain numbers and a local variable.
        if pid > 0 && unsafe { libc::waitpid(pid, &mut status, 0) } == pid {
            judge(status);
        }
    }
}

fn judge(status: c_int) {
    match status {
        0 => {}
        // Not necessarily wrong: there is the OOM killer. Whoever reads this knows whether it happens with stock forks, too.
        libc::SIGKILL => say(b"an added child was killed\n"),
        _ => fail(b"an added child failed\n"),
    }
}

fn fail(what: &[u8]) {
    say(what);
    // SAFETY: ends the process.
    unsafe { libc::abort() };
}

/// In one line on standard error, with the mark that `tests/suites` looks for.
fn say(what: &[u8]) {
    let parts = [b"asyncfork-spread: ", what].map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    // SAFETY: both parts outlive the call.
    unsafe { libc::writev(2, parts.as_ptr(), 2) };
}
