// SPDX-License-Identifier: MIT OR Apache-2.0
//! `libasyncfork.so`: the functions that it puts before the C library's, and
//! what runs when it is loaded. What they do is the crate `asyncfork_shim`.
//!
//! As shipped (profile `preload`) without std: that is made for one C library.
#![cfg_attr(panic = "abort", no_std)]

#[cfg(panic = "abort")]
mod mem;

use asyncfork_shim::real::Real;
use libc::pid_t;

/// Behind [`fork`] and [`__fork`].
static FORK: Real = Real::new(&[c"fork"], &[fork, __fork]);
/// Behind [`_Fork`]. A C library that lacks it (glibc before 2.34, musl before
/// 1.2.2) has one function for both.
static UNDERSCORE_FORK: Real = Real::new(&[c"_Fork", c"fork"], &[_Fork, fork]);

/// fork(2), the page-table copy left to the child if the module agrees.
///
/// Any failure to arm is a stock fork; errno is the real call's alone. With
/// `ASYNCFORK=require` a failure to arm is -1 with errno `ENOSYS`.
#[no_mangle]
pub extern "C" fn fork() -> pid_t {
    asyncfork_shim::fork_through(&FORK)
}

/// glibc's other name for [`fork`].
#[no_mangle]
pub extern "C" fn __fork() -> pid_t {
    asyncfork_shim::fork_through(&FORK)
}

/// As [`fork`], without atfork handlers; async-signal-safe.
#[allow(non_snake_case)] // the C libraries' name
#[no_mangle]
pub extern "C" fn _Fork() -> pid_t {
    asyncfork_shim::fork_through(&UNDERSCORE_FORK)
}

#[ctor::ctor(unsafe)]
fn load() {
    // Looked up now: later it may be in a signal handler.
    let _ = (FORK.get(), UNDERSCORE_FORK.get());
    asyncfork_shim::load();
}

/// Never linked: scripts/library refuses a library in which a panic is left,
/// by the name that this one imports.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    extern "C" {
        fn asyncfork_can_panic() -> !;
    }
    // SAFETY: no library with it is ever loaded.
    unsafe { asyncfork_can_panic() }
}
