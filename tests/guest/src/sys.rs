// SPDX-License-Identifier: MIT OR Apache-2.0
//! Thin wrappers of the system calls that several modules need.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

pub use asyncfork_host::wait::poll_until;

/// Turns the C convention "negative is an error, see errno" into a `Result`.
pub fn cvt<T: Default + PartialOrd>(ret: T) -> io::Result<T> {
    if ret < T::default() {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// True if `result` failed with `errno`.
pub fn is_errno<T>(result: &io::Result<T>, errno: i32) -> bool {
    matches!(result, Err(e) if e.raw_os_error() == Some(errno))
}

/// The caller's process id.
pub fn pid() -> i32 {
    std::process::id() as i32
}

/// Restricts the calling thread to `cpus`.
pub fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    set_affinity_of(0, cpus)
}

/// Restricts a thread to `cpus`.
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

/// Number of online processors.
pub fn cpus() -> usize {
    // SAFETY: no arguments that could be wrong.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as usize }
}

/// Makes the calling thread SCHED_FIFO; its children start as normal ones (SCHED_RESET_ON_FORK).
pub fn set_fifo(priority: i32) -> io::Result<()> {
    set_fifo_of(0, priority)
}

/// Makes a thread SCHED_FIFO; its children start as normal ones.
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
pub fn set_normal() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives across the call.
    cvt(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &param) }).map(drop)
}

/// pipe2(2) with O_CLOEXEC: read end, write end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    cvt(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: fresh descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// A file in memory.
pub fn memfd(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: a literal C string.
    let fd = cvt(unsafe { libc::memfd_create(c"asyncfork-guest".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: a fresh descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    std::fs::File::from(fd.try_clone()?).set_len(len as u64)?;
    Ok(fd)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// exit status
    Code(i32),
    /// killed by this signal
    Signal { signal: i32, core: bool },
}

impl Exit {
    /// From the status that wait(2) gives.
    fn of(status: i32) -> Self {
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

/// Reaps any child that has ended.
pub fn wait_any() -> io::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // SAFETY: the status lives across the call.
    match cvt(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) }) {
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some((pid, Exit::of(status)))),
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(e) => Err(e),
    }
}

/// kill(2).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    cvt(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Ends the process without running exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit() may be called anywhere.
    unsafe { libc::_exit(code) }
}

/// A path as a C string; tests use no path with a NUL byte.
pub fn cstr(path: &Path) -> CString {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in the path")
}

/// mount(2) without flags.
pub fn mount(source: &str, target: &Path, kind: &str, options: &str) -> io::Result<()> {
    let source = CString::new(source)?;
    let kind = CString::new(kind)?;
    let options = CString::new(options)?;
    // SAFETY: all strings live across the call.
    cvt(unsafe {
        libc::mount(
            source.as_ptr(),
            cstr(target).as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Whether this process and its children to come may be given transparent huge pages.
pub fn allow_huge_pages(on: bool) -> io::Result<()> {
    // SAFETY: plain numbers.
    cvt(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, i32::from(!on), 0, 0, 0) }).map(drop)
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    // SAFETY: all-zero is a valid timespec, and the call fills it in.
    unsafe {
        let mut t: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }
}
