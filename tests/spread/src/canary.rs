// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that the added children verify. Its words tell a generation: a child has the one that was current at its fork, though the parent
//! goes on to the next at once.
//!
//! It has 2 MiB to itself, so that it is parked. A program may do to it what it does to all of its memory: where it cannot be accessed any
//! more, it is not. All of this is system calls and plain loads and stores, as a child of many threads may do no more.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{real, END};

/// Beyond all slots that are given out.
const WORDS: *mut u64 = END as *mut u64;
const WORDS_PER_PAGE: usize = 512;
const COUNT: usize = 4 * WORDS_PER_PAGE;

/// It is there, or was.
static MAPPED: AtomicBool = AtomicBool::new(false);

/// Makes it, if that is possible.
pub fn map() {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: NOREPLACE: nothing that exists is touched.
    let got = unsafe { real()(WORDS.cast(), COUNT * 8, prot, flags, -1, 0) };
    MAPPED.store(got == WORDS.cast(), Ordering::Relaxed);
}

/// Writes a generation to it. Returns whether it could.
pub fn write(generation: u64) -> bool {
    let there = accessible(|page| {
        // The kernel stores the signal mask there.
        // SAFETY: it checks the address itself.
        unsafe { mask(libc::SIG_BLOCK, ptr::null(), page) };
    });
    if there {
        for i in 0..COUNT {
            // SAFETY: just found writable, all of its pages; nobody but the forking thread uses it.
            unsafe { WORDS.add(i).write_volatile(word(generation, i)) };
        }
    }
    there
}

/// Whether it can be read and has anything else than this generation.
pub fn differs(generation: u64) -> bool {
    const NO_CHANGE: c_int = -1;
    let there = accessible(|page| {
        // The kernel reads a signal mask, and then finds that there is nothing to do with it.
        // SAFETY: it checks the address itself.
        unsafe { mask(NO_CHANGE, page, ptr::null_mut()) };
    });
    // SAFETY: just found readable, all of its pages.
    there && (0..COUNT).any(|i| unsafe { WORDS.add(i).read_volatile() } != word(generation, i))
}

/// No two are the same, and none is 0.
const fn word(generation: u64, i: usize) -> u64 {
    (generation + 1).wrapping_mul(COUNT as u64) + i as u64
}

/// Whether the kernel can access all pages, when asked to by `probe`.
fn accessible(probe: impl Fn(*mut c_void)) -> bool {
    MAPPED.load(Ordering::Relaxed)
        && (0..COUNT).step_by(WORDS_PER_PAGE).all(|i| {
            // SAFETY: errno is the calling thread's own.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: as above.
            unsafe { *errno = 0 };
            probe(WORDS.wrapping_add(i).cast());
            // SAFETY: as above.
            unsafe { *errno != libc::EFAULT }
        })
}

/// rt_sigprocmask(2), with the kernel's signal mask of one word.
///
/// # Safety
/// With `how` as the kernel knows it, `set` becomes the signal mask.
unsafe fn mask(how: c_int, set: *const c_void, old: *mut c_void) {
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, set, old, 8) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_differs_if_a_word_does_and_not_once_it_is_gone() {
        assert!(!write(1), "not mapped yet");
        assert!(!differs(1));
        map();
        assert!(differs(0), "nothing written yet");
        assert!(write(1));
        assert!(!differs(1));
        assert!(differs(2));
        for i in [0, WORDS_PER_PAGE, COUNT - 1] {
            // SAFETY: mapped above; no other test uses it.
            unsafe { *WORDS.add(i) ^= 1 << 40 };
            assert!(differs(1), "{i}");
            assert!(write(1));
        }

        let page = WORDS.wrapping_add(WORDS_PER_PAGE).cast();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mprotect(page, 4096, libc::PROT_READ) }, 0);
        assert!(!differs(1));
        assert!(!write(2), "can only be read");
        // SAFETY: as above.
        assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
        assert!(!write(2));
        assert!(!differs(2));
    }
}
