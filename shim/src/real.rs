// SPDX-License-Identifier: MIT OR Apache-2.0
//! The functions that this library puts its own before.

use core::ffi::CStr;
use core::mem::transmute;
use core::num::NonZeroUsize;

use libc::pid_t;
use once_cell::race::OnceNonZeroUsize;

use crate::imports::{self, ForkFn};

/// One of the next library's functions.
pub struct Real {
    /// The first that there is.
    names: &'static [&'static CStr],
    /// What this library puts before it.
    ours: &'static [OurFn],
    address: OnceNonZeroUsize,
}

/// A function of this library.
pub type OurFn = extern "C" fn() -> pid_t;

impl Real {
    /// A function by its names; the functions with these names in this library.
    pub const fn new(names: &'static [&'static CStr], ours: &'static [OurFn]) -> Self {
        Self {
            names,
            ours,
            address: OnceNonZeroUsize::new(),
        }
    }

    /// The function; `None` if no library behind this one has it.
    ///
    /// The first call looks it up, which is not async-signal-safe: it is to be
    /// made when the library is loaded. Another library's constructor may fork
    /// before that.
    pub fn get(&self) -> Option<ForkFn> {
        let address = self
            .address
            .get_or_try_init(|| self.look_up().ok_or(()))
            .ok()?;
        // SAFETY: look_up() made it of such a function.
        Some(unsafe { transmute::<usize, ForkFn>(address.get()) })
    }

    fn look_up(&self) -> Option<NonZeroUsize> {
        let address = |function: ForkFn| function as usize;
        // "Next" to another library's dlsym() that comes before this one is this one.
        let is_ours = |function| self.ours.iter().any(|&o| o as usize == address(function));
        let mut next = self.names.iter().filter_map(|name| imports::next(name));
        // glibc before 2.34 has dlsym() in a library of its own. In a program without
        // that one nobody else can have looked up a fork to put his own before it.
        let found = next
            .find(|&function| !is_ours(function))
            .or_else(imports::libc_fork)?;
        NonZeroUsize::new(address(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn ours() -> pid_t {
        -1
    }

    #[test]
    fn the_first_name_that_there_is_counts() {
        let address = |names| Real::new(names, &[ours]).get().map(|f| f as usize);
        let fork = address(&[c"fork"]);
        assert!(fork.is_some());
        assert_eq!(address(&[c"asyncfork_no_such_function", c"fork"]), fork);
        let last = imports::libc_fork().map(|f| f as usize);
        assert_eq!(address(&[c"asyncfork_no_such_function"]), last);
    }
}
