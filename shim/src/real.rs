// SPDX-License-Identifier: MIT OR Apache-2.0
//! The functions that this library stands before.

use std::ffi::{c_void, CStr};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::pid_t;

/// `fork` and `_Fork`. May unwind: an atfork handler may end the thread.
pub type ForkFn = unsafe extern "C-unwind" fn() -> pid_t;

/// One of the next library's functions.
pub struct Real {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

/// `fork`, and `__fork`, another name of glibc's for the same function.
pub static FORK: Real = Real::new(c"fork");
/// `_Fork`, which runs no atfork handlers.
pub static UNDERSCORE_FORK: Real = Real::new(c"_Fork");

impl Real {
    const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            address: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The function; `None` if no library behind this one has it.
    ///
    /// Looks it up if [`Real::resolve`] has not run yet, that is when another
    /// library's constructor forks before ours ran.
    pub fn get(&self) -> Option<ForkFn> {
        let mut address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            address = self.resolve();
        }
        // SAFETY: a null pointer is None; any other is the address of a
        // function of this type by the C library's headers.
        unsafe { std::mem::transmute::<*mut c_void, Option<ForkFn>>(address) }
    }

    /// Looks the function up; null if there is none. Not async-signal-safe.
    pub fn resolve(&self) -> *mut c_void {
        // SAFETY: the name is NUL-terminated.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.address.store(address, Ordering::Release);
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_function_is_none() {
        let missing = Real::new(c"asyncfork_no_such_function");
        assert!(missing.get().is_none());
        assert!(missing.get().is_none());
    }
}
