// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the library takes from the program's C library, whichever that is.
//!
//! Weak and without a version: a name that this C library lacks, or has in
//! another library that is not loaded, is `None` and keeps no program from
//! starting.

use core::ffi::{c_char, c_int, c_ulong, c_void, CStr};
use core::mem::transmute;

use libc::pid_t;

/// `fork` and its like.
pub type ForkFn = unsafe extern "C" fn() -> pid_t;

type DlsymFn = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// A function that is there, or is not.
macro_rules! weak {
    ($name:literal as $type:ty) => {{
        let address: *const c_void;
        // SAFETY: loads what the dynamic linker has put in the global offset table.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        // SAFETY: null is None; else it is the function of this name, which has
        // this type by the C library's headers.
        unsafe { transmute::<*const c_void, Option<$type>>(address) }
    }};
}

/// The next library's function of this name. Not async-signal-safe.
pub fn next(name: &CStr) -> Option<ForkFn> {
    let dlsym = weak!("dlsym" as DlsymFn)?;
    // SAFETY: the name is NUL-terminated.
    let address = unsafe { dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    // SAFETY: null is None; else it is one of the C library's fork functions.
    unsafe { transmute::<*mut c_void, Option<ForkFn>>(address) }
}

/// glibc's `fork` by a name that nobody intercepts.
pub fn libc_fork() -> Option<ForkFn> {
    weak!("__libc_fork" as ForkFn)
}

/// A variable's value. Only while the library is loaded: later the program may
/// change its environment.
pub fn getenv(name: &CStr) -> Option<&'static [u8]> {
    let getenv = weak!("getenv" as unsafe extern "C" fn(*const c_char) -> *const c_char)?;
    // SAFETY: the name is NUL-terminated.
    let value = unsafe { getenv(name.as_ptr()) };
    // SAFETY: it is NUL-terminated and, at load, nobody's to change.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_bytes())
}

/// Does the program have more rights than its caller, or may it have?
pub fn is_secure() -> bool {
    weak!("getauxval" as unsafe extern "C" fn(c_ulong) -> c_ulong)
        // SAFETY: a plain query.
        .is_none_or(|getauxval| unsafe { getauxval(libc::AT_SECURE) } != 0)
}

/// Sets the calling thread's errno.
pub fn set_errno(errno: i32) {
    if let Some(location) = weak!("__errno_location" as unsafe extern "C" fn() -> *mut c_int) {
        // SAFETY: the calling thread's errno is always writable.
        unsafe { *location() = errno };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_none() {
        assert!(next(c"fork").is_some());
        assert!(next(c"asyncfork_no_such_function").is_none());
        assert!(weak!("asyncfork_no_such_function" as ForkFn).is_none());
        assert!(!is_secure());
        assert_eq!(getenv(c"ASYNCFORK_NO_SUCH_VARIABLE"), None);
        let path = std::env::var("PATH").unwrap();
        assert_eq!(getenv(c"PATH"), Some(path.as_bytes()));
        set_errno(4242);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(4242));
    }
}
