// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors for use around `fork()`.

use core::ffi::CStr;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use syscalls::{syscall, Sysno};

/// An open file, closed when dropped.
///
/// By plain system calls. std's `OwnedFd` closes by libc's `close()`, which is a
/// pthread cancellation point; without std it has assertions that can panic, by
/// what the compiler knows, and libasyncfork.so is not to have any.
#[derive(Debug)]
pub struct Fd(RawFd);

impl Fd {
    /// Opens a file; a new one gets `mode`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &CStr, flags: OFlags, mode: Mode) -> Result<Self, Errno> {
        let (path, flags, mode) = (path.as_ptr(), flags.bits(), mode.bits());
        // SAFETY: the path is NUL-terminated.
        Self::new(unsafe { syscall!(Sysno::openat, CWD.as_raw_fd(), path, flags, mode) })
    }

    /// Makes a file without a path, of this name, empty, close-on-exec.
    ///
    /// # Errors
    /// Those of memfd_create(2).
    pub fn memfd(name: &CStr) -> Result<Self, Errno> {
        let create = |flags: MemfdFlags| {
            let (name, flags) = (name.as_ptr(), flags.bits());
            // SAFETY: the name is NUL-terminated.
            Self::new(unsafe { syscall!(Sysno::memfd_create, name, flags) })
        };
        // Linux 6.3 wants to know whether it is to be executed, and may refuse those that do
        // not say it; older ones do not know the flag.
        match create(MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(MemfdFlags::CLOEXEC),
            other => other,
        }
    }

    fn new(result: Result<usize, syscalls::Errno>) -> Result<Self, Errno> {
        let fd = result.map_err(|errno| Errno::from_raw_os_error(errno.into_raw()))?;
        match RawFd::try_from(fd) {
            Ok(fd) => Ok(Self(fd)),
            Err(_) => Err(Errno::BADF),
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open() has made it of a number that fits, so it is none below 0.
        unsafe { core::hint::assert_unchecked(self.0 >= 0) };
        // SAFETY: it is open as long as this value lives.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is given up here.
        unsafe { rustix::io::close(self.0) };
    }
}
