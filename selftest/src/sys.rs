// SPDX-License-Identifier: MIT OR Apache-2.0
//! Thin wrappers of system calls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Turns the C convention "negative is an error, see errno" into a `Result`.
pub fn cvt<T: Default + PartialOrd>(ret: T) -> io::Result<T> {
    if ret < T::default() {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Ends a forked process without running anything that belongs to the caller of `run()`.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return, runs no destructors.
    unsafe { libc::_exit(code) }
}

/// A fork past the C library, and so past a preloaded libasyncfork, which would arm as well.
///
/// # Safety
/// The process has one thread.
pub unsafe fn raw_fork() -> io::Result<i32> {
    // SAFETY: the arguments of a plain fork; one thread, by contract.
    cvt(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }).map(|pid| pid as i32)
}

/// Waits for a child and gives its wait status.
pub fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives across the call.
        match cvt(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Ok(_) => return Ok(status),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Kills a process.
pub fn kill(pid: i32) {
    // SAFETY: no memory is involved. The process may be gone.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// A pipe: read end, write end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    cvt(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: fresh descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Waits until nobody holds the other end of a pipe; false: `patience` is over.
pub fn wait_hang_up(read: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        let mut poll = libc::pollfd {
            fd: read.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: one pollfd that lives across the call.
        match cvt(unsafe { libc::poll(&mut poll, 1, left.as_millis() as i32) }) {
            Ok(n) => return Ok(n > 0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The CPUs a task may run on.
#[derive(Clone, Copy)]
pub struct Cpus(libc::cpu_set_t);

impl Cpus {
    /// Those of the calling thread.
    pub fn allowed() -> io::Result<Self> {
        // SAFETY: all-zero is an empty set, and the call fills it in.
        unsafe {
            let mut set = std::mem::zeroed();
            cvt(libc::sched_getaffinity(0, size_of_val(&set), &mut set))?;
            Ok(Self(set))
        }
    }

    /// The one the caller runs on.
    pub fn current() -> io::Result<Self> {
        // SAFETY: no memory is involved; CPU_SET checks the bound of its array.
        unsafe {
            let cpu = cvt(libc::sched_getcpu())?;
            let mut set = std::mem::zeroed();
            libc::CPU_SET(cpu as usize, &mut set);
            Ok(Self(set))
        }
    }

    /// Confines a task; 0 is the calling thread.
    pub fn confine(&self, pid: i32) -> io::Result<()> {
        // SAFETY: the set lives across the call.
        cvt(unsafe { libc::sched_setaffinity(pid, size_of_val(&self.0), &self.0) }).map(drop)
    }
}

/// Makes the calling thread `SCHED_FIFO`, which takes privilege; its children start as ordinary ones and do not run beside
/// it on one processor.
pub fn set_fifo() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameter lives across the call.
    cvt(unsafe { libc::sched_setscheduler(0, policy, &param) }).map(drop)
}

/// Makes the calling thread `SCHED_BATCH`: it preempts nobody when it wakes up or is made.
pub fn set_batch() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives across the call.
    cvt(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &param) }).map(drop)
}

/// A userfaultfd for faults in user mode, which needs no privilege.
pub struct Uffd(OwnedFd);

impl Uffd {
    const USER_MODE_ONLY: i32 = 1;
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    const MODE_MISSING: u64 = 1;

    /// Opened, and its API chosen.
    pub fn new() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | Self::USER_MODE_ONLY;
        // SAFETY: plain numbers.
        let fd = cvt(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
        // SAFETY: a fresh descriptor that nobody else owns.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        let mut api = [0xaa_u64, 0, 0];
        // SAFETY: the array has the size that the number names, 24.
        cvt(unsafe { libc::ioctl(uffd.0.as_raw_fd(), Self::API, api.as_mut_ptr()) })?;
        Ok(uffd)
    }

    /// Asks for the missing pages of a range.
    pub fn register(&self, addr: usize, len: usize) -> io::Result<()> {
        let mut args = [addr as u64, len as u64, Self::MODE_MISSING, 0];
        // SAFETY: the array has the size that the number names, 32.
        cvt(unsafe { libc::ioctl(self.0.as_raw_fd(), Self::REGISTER, args.as_mut_ptr()) }).map(drop)
    }
}
