// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that raise no signal.
//!
//! What write(2) may raise of itself is sent to the writing thread (SIGPIPE:
//! pipe_write(); SIGXFSZ: generic_write_check_limits()) or to its process group,
//! unless the thread has it blocked (SIGTTOU: __tty_check_change()). So it is
//! blocked meanwhile, and taken back if it was raised. So is everything else, for
//! no handler is to run, and maybe not to return, while the mask is not its own.

use core::mem::size_of;

use rustix::io::Errno;
use syscalls::{syscall, Sysno};

/// The kernel's sigset_t.
type Set = u64;
const SIZE: usize = size_of::<Set>();

const RAISED: Set = bit(libc::SIGPIPE) | bit(libc::SIGXFSZ) | bit(libc::SIGTTOU);
/// Of what a system call or an instruction does: blocked, these would kill.
const FORCED: Set = bit(libc::SIGSYS)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP);

const fn bit(signal: i32) -> Set {
    1u64.wrapping_shl((signal as u32).wrapping_sub(1))
}

/// While this lives, the calling thread's writes raise no signal.
pub struct Quiet {
    /// The mask before, put back in the end.
    mask: Set,
}

impl Quiet {
    /// `None` if there must be no write: signals cannot be blocked, or not taken back
    /// (seccomp), or one is pending already, which could not be told from what a write
    /// has raised.
    pub fn new() -> Option<Self> {
        let (blocked, mut mask) = (!FORCED, 0);
        // SAFETY: reads and writes a set of this size each.
        unsafe {
            syscall!(
                Sysno::rt_sigprocmask,
                libc::SIG_BLOCK,
                &raw const blocked,
                &raw mut mask,
                SIZE
            )
        }
        .ok()?;
        let quiet = Self { mask };
        // Only what was blocked before stays pending.
        if mask & RAISED != 0 {
            let mut pending: Set = 0;
            // SAFETY: writes a set of this size.
            unsafe { syscall!(Sysno::rt_sigpending, &raw mut pending, SIZE) }.ok()?;
            if pending & mask & RAISED != 0 {
                return None;
            }
        }
        // Of no signal, to know that it may be done.
        take(0).is_ok().then_some(quiet)
    }

    /// After a write that failed, and that does raise signals: takes back what it has raised.
    pub fn failed(&self, errno: Errno) {
        let raised = match errno {
            Errno::PIPE => bit(libc::SIGPIPE),
            Errno::FBIG => bit(libc::SIGXFSZ),
            _ => return,
        };
        // Not refused: see new().
        let _ = take(raised);
    }
}

/// Takes a pending signal, if there is one. What was sent to this thread comes before
/// what somebody has sent to the process meanwhile.
fn take(set: Set) -> Result<(), syscalls::Errno> {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let no_info: *mut libc::siginfo_t = core::ptr::null_mut();
    // SAFETY: reads a set of this size and a time.
    let taken = unsafe {
        syscall!(
            Sysno::rt_sigtimedwait,
            &raw const set,
            no_info,
            &raw const now,
            SIZE
        )
    };
    match taken {
        // EAGAIN: this file raises none.
        Ok(_) | Err(syscalls::Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let no_set: *mut Set = core::ptr::null_mut();
        // SAFETY: reads a set of this size.
        let _ = unsafe {
            syscall!(
                Sysno::rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.mask,
                no_set,
                SIZE
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::OwnedFd;

    /// All but SIGKILL and SIGSTOP.
    const KERNELS: Set = !(bit(libc::SIGKILL) | bit(libc::SIGSTOP));

    fn mask() -> Set {
        let (mut mask, none): (Set, *const Set) = (0, core::ptr::null());
        // SAFETY: writes a set of this size.
        unsafe { syscall!(Sysno::rt_sigprocmask, 0, none, &raw mut mask, 8) }.unwrap();
        mask
    }

    fn pending() -> Set {
        let mut pending: Set = 0;
        // SAFETY: writes a set of this size.
        unsafe { syscall!(Sysno::rt_sigpending, &raw mut pending, 8) }.unwrap();
        pending
    }

    fn broken_pipe() -> OwnedFd {
        let (_, writer) = std::io::pipe().unwrap();
        writer.into()
    }

    fn write(quiet: &Quiet) {
        let errno = rustix::io::write(broken_pipe(), b"x").unwrap_err();
        assert_eq!(errno, Errno::PIPE);
        assert_ne!(pending() & bit(libc::SIGPIPE), 0, "a write raises it");
        quiet.failed(errno);
    }

    #[test]
    fn what_a_write_raises_is_taken_back_and_the_mask_put_back() {
        let before = mask();
        let quiet = Quiet::new().unwrap();
        assert_eq!(mask() & !FORCED, !FORCED & KERNELS);
        write(&quiet);
        assert_eq!(pending(), 0);
        drop(quiet);
        assert_eq!(mask(), before);
    }

    #[test]
    fn nothing_is_written_while_one_is_pending() {
        let outer = Quiet::new().unwrap();
        let before = mask();
        let errno = rustix::io::write(broken_pipe(), b"x").unwrap_err();
        assert!(Quiet::new().is_none());
        assert_eq!(mask(), before);
        outer.failed(errno);
        assert_eq!(pending(), 0);
        assert!(Quiet::new().is_some());
        assert_eq!(mask(), before);
    }
}
