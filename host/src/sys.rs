// SPDX-License-Identifier: MIT OR Apache-2.0
//! Thin wrappers of system calls, for programs that fork and measure: children,
//! processors, scheduling, the clock.

use std::io;

/// Turns the C convention "negative is an error, see errno" into a `Result`.
///
/// # Errors
/// The one that errno names.
pub fn cvt<T: Default + PartialOrd>(ret: T) -> io::Result<T> {
    if ret < T::default() {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// exit status
    Code(i32),
    /// killed by this signal
    Signal {
        /// its number
        signal: i32,
        /// whether memory was dumped
        core: bool,
    },
}

impl Exit {
    /// From the status that wait(2) gives.
    pub fn of(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal {
                signal: libc::WTERMSIG(status),
                core: libc::WCOREDUMP(status),
            }
        } else {
            Self::Code(libc::WEXITSTATUS(status))
        }
    }
}

/// Waits for the child process `pid` and reaps it.
///
/// # Errors
/// It is no child of the caller.
pub fn wait(pid: i32) -> io::Result<Exit> {
    let mut status = 0;
    loop {
        // SAFETY: the status lives across the call.
        match cvt(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Exit::of(status))
}

/// Ends the process without running exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit() may be called anywhere.
    unsafe { libc::_exit(code) }
}

/// Number of online processors.
pub fn cpus() -> usize {
    // SAFETY: no arguments that could be wrong.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as usize }
}

/// Restricts the calling thread to `cpus`.
///
/// # Errors
/// None of them is online.
pub fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    set_affinity_of(0, cpus)
}

/// Restricts a thread to `cpus`; 0 is the calling one.
///
/// # Errors
/// None of them is online, the thread is bound to another one, is gone, or is
/// not the caller's to move.
pub fn set_affinity_of(pid: i32, cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all-zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        // SAFETY: CPU_SET checks the bound of its array.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set lives across the call.
    cvt(unsafe { libc::sched_setaffinity(pid, size_of_val(&set), &set) }).map(drop)
}

/// Makes the calling thread SCHED_FIFO; its children start as normal ones
/// (SCHED_RESET_ON_FORK).
///
/// # Errors
/// The caller may not.
pub fn set_fifo(priority: i32) -> io::Result<()> {
    set_fifo_of(0, priority)
}

/// Makes a thread SCHED_FIFO; its children start as normal ones. 0 is the calling
/// one.
///
/// # Errors
/// The caller may not, or the thread is gone.
pub fn set_fifo_of(pid: i32, priority: i32) -> io::Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameter lives across the call.
    cvt(unsafe {
        libc::sched_setscheduler(pid, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param)
    })
    .map(drop)
}

/// Makes the calling thread SCHED_OTHER.
///
/// # Errors
/// None in practice.
pub fn set_normal() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives across the call.
    cvt(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &param) }).map(drop)
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline]
pub fn now_ns() -> u64 {
    // SAFETY: all-zero is a valid timespec, and the call fills it in.
    unsafe {
        let mut t: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }
}
