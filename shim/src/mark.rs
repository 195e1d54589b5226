// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mark of a process whose forks only an ARM of its own may make asynchronous,
//! and no enrolment of its cgroup: see `MARK` in the crate `asyncfork_uapi`.

use asyncfork_uapi::{Errno, Fd, MARK};
use rustix::fd::{AsFd, AsRawFd};
use syscalls::{syscall, Sysno};

/// Bytes; on x86-64.
const PAGE_SIZE: usize = 4096;

/// Marks this process. Its children are marked as well; execve() takes the mark away.
///
/// Nothing can be done with that page, and the file is empty: a size would be subject
/// to the limit of file sizes, and thus to `SIGXFSZ`.
pub fn make() -> Result<(), Errno> {
    let file = Fd::memfd(MARK)?;
    let nowhere = core::ptr::null::<u8>();
    let (access, flags, fd) = (libc::PROT_NONE, libc::MAP_PRIVATE, file.as_fd().as_raw_fd());
    // SAFETY: new memory, which nobody uses.
    unsafe { syscall!(Sysno::mmap, nowhere, PAGE_SIZE, access, flags, fd, 0) }
        .map(|_| ())
        .map_err(|errno| Errno::from_raw_os_error(errno.into_raw()))
}
