// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is this process large enough? Cheap for the small ones, which are most.

use core::mem::MaybeUninit;

use syscalls::{syscall, Sysno};

use crate::read_start;

/// Bytes; on x86-64, the only architecture that the module is for.
const PAGE_SIZE: u64 = 4096;

/// Bytes resident if less than `min`, otherwise `None`.
///
/// The peak says for sure that a process is small, in one system call, but
/// execve() passes a large parent's on: then /proc has the last word, if it is
/// there. The module applies the same limit itself.
pub fn below(min: u64) -> Option<u64> {
    if min == 0 {
        return None;
    }
    let peak = peak();
    let size = if peak < min { peak } else { current()? };
    (size < min).then_some(size)
}

/// Largest resident size of this process, or of the one that execve() replaced.
fn peak() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage() writes a rusage; zeroes are a valid one, too.
    let usage = unsafe {
        if syscall!(Sysno::getrusage, libc::RUSAGE_SELF, usage.as_mut_ptr()).is_err() {
            // Refused by a seccomp filter: leave it to /proc and the module.
            return u64::MAX;
        }
        usage.assume_init()
    };
    u64::try_from(usage.ru_maxrss)
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// Resident size from /proc; `None` without /proc.
fn current() -> Option<u64> {
    let mut text = [0; 128];
    resident_pages(read_start(c"/proc/self/statm", &mut text)?)?.checked_mul(PAGE_SIZE)
}

/// The second number of /proc/PID/statm.
fn resident_pages(statm: &[u8]) -> Option<u64> {
    let field = statm.split(|&b| b == b' ').nth(1)?;
    core::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statm_is_read() {
        assert_eq!(resident_pages(b"5000 1234 300 1 0 900 0\n"), Some(1234));
        for bad in [&b""[..], b"5000", b"5000 x 3", b"5000 -1 3"] {
            assert_eq!(resident_pages(bad), None);
        }
        let now = current().unwrap();
        assert!(now > 0 && now <= peak() + (1 << 20), "{now} {}", peak());
    }

    #[test]
    fn the_limit_decides() {
        assert_eq!(below(0), None);
        assert_eq!(below(1), None);
        assert!(below(u64::MAX - 1).is_some_and(|size| size > 0));
    }

    #[test]
    fn memory_given_back_does_not_count() {
        let limit = current().unwrap() + (100 << 20);
        let block = vec![1u8; 200 << 20];
        assert_eq!(below(limit), None, "{}", std::hint::black_box(&block).len());
        drop(block);
        assert!(peak() > limit);
        assert!(below(limit).is_some());
    }
}
