// SPDX-License-Identifier: MIT OR Apache-2.0
//! Thin wrappers of the system calls that several tests need, beside those of [`asyncfork_host::sys`].

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

pub use asyncfork_host::sys::{
    cpus, cvt, exit_now, now_ns, set_affinity, set_affinity_of, set_fifo, set_fifo_of, set_normal,
    wait, Exit,
};
pub use asyncfork_host::wait::poll_until;

/// True if `result` failed with `errno`.
pub fn is_errno<T>(result: &io::Result<T>, errno: i32) -> bool {
    matches!(result, Err(e) if e.raw_os_error() == Some(errno))
}

/// The caller's process id.
pub fn pid() -> i32 {
    std::process::id() as i32
}

/// pipe2(2) with O_CLOEXEC: read end, write end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    cvt(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: fresh descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Memory that processes forked from now on share: zeros, and never unmapped.
///
/// # Safety
/// Zeros are a valid `T`, and what processes do with it at the same time is sound.
pub unsafe fn shared<T>() -> io::Result<&'static T> {
    // SAFETY: a fresh mapping of the size, page-aligned; the caller vouches for its contents.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(&*at.cast::<T>())
    }
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
