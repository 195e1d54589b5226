// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a C library has that is newer than that of the oldest guest: glibc 2.36, Debian 12.
//!
//! Rust's standard library asks for these functions weakly, which is for machines that lack
//! them. But linked where the C library has them (2.39, Debian 13), a program asks for that
//! version, too, and does not start in that guest. With these in their place it does. They
//! are for processes started with a pidfd, which nobody here does.

use libc::{c_int, c_void};

/// Fails.
#[no_mangle]
extern "C" fn pidfd_getpid(_pidfd: c_int) -> c_int {
    // SAFETY: the address of the thread's errno is always good.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

/// Fails.
#[no_mangle]
extern "C" fn pidfd_spawnp(
    _pidfd: *mut c_int,
    _file: *const c_void,
    _actions: *const c_void,
    _attributes: *const c_void,
    _argv: *const c_void,
    _envp: *const c_void,
) -> c_int {
    libc::ENOSYS
}
