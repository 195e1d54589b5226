// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeping a forked child from running, so that it has not copied anything when the parent acts.
//!
//! A [`Hold`] does so while the parent is awake, a [`Plug`] while it sleeps as well. No verdict depends on how long that lasts.

use crate::sys;
use asyncfork_host::hold::{all_cpus, CPU, PRIORITY};
pub use asyncfork_host::hold::{run_anywhere, Hold};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// More urgent than the parent.
const KERNEL_PRIORITY: i32 = PRIORITY + 10;
/// Less urgent than the parent.
const PLUG_PRIORITY: i32 = PRIORITY - 10;
/// The plug gives up after this long, so that a stuck test does not take the guest with it.
const PLUG_LIMIT_NS: u64 = 60_000_000_000;

/// Keeps kernel threads from starving on CPU 0 while a parent or a plug has it: workers, softirqs and RCU, of which some
/// are bound to their CPU, become more urgent than either; the others move away. To be called now and then: threads come
/// and go.
pub fn spare_kernel_threads() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file));
        // Kernel threads have no command line. Any thread may end meanwhile.
        if !read("cmdline").is_ok_and(|c| c.is_empty()) {
            continue;
        }
        let name = read("comm").unwrap_or_default();
        let urgent = ["kworker/", "ksoftirqd/", "rcu_"]
            .iter()
            .any(|n| name.starts_with(n));
        if urgent {
            let _ = sys::set_fifo_of(pid, KERNEL_PRIORITY);
        } else {
            // Those that belong to one CPU refuse.
            let _ = sys::set_affinity_of(pid, &other_cpus());
        }
    }
    Ok(())
}

fn other_cpus() -> Vec<usize> {
    all_cpus().into_iter().filter(|&c| c != CPU).collect()
}

/// Keeps the calling thread off CPU 0, where a plug would starve it.
pub fn run_elsewhere() -> io::Result<()> {
    // In this order: an ordinary thread beside a running plug gets no further.
    sys::set_affinity(&other_cpus())?;
    sys::set_normal()
}

/// A process that can occupy CPU 0, so that the parent may sleep while its child is kept from running.
pub struct Plug {
    flag: &'static AtomicU32,
    pid: i32,
}

impl Plug {
    /// Starts the process, idle. To be called before the test's memory exists.
    pub fn new() -> io::Result<Self> {
        // SAFETY: zero is a valid AtomicU32.
        let flag: &AtomicU32 = unsafe { sys::shared() }?;
        let (ready, started) = sys::pipe()?;
        // SAFETY: the process is single-threaded here; the child only runs plug().
        let pid = sys::cvt(unsafe { libc::fork() })?;
        if pid == 0 {
            drop(ready);
            let ok = sys::set_affinity(&[CPU])
                .and_then(|()| sys::set_fifo(PLUG_PRIORITY))
                .is_ok();
            if ok {
                let _ = io::Write::write(&mut std::fs::File::from(started), b"x");
                plug(flag);
            }
            sys::exit_now(1);
        }
        drop(started);
        let mut byte = [0];
        if io::Read::read(&mut std::fs::File::from(ready), &mut byte)? != 1 {
            return Err(io::Error::other("the plug process did not start"));
        }
        Ok(Self { flag, pid })
    }

    /// Holds like [`Hold::new`]; after the fork call [`Plugged::step_aside`].
    pub fn hold(&self) -> io::Result<Plugged<'_>> {
        let hold = Hold::new()?;
        self.flag.store(1, Ordering::SeqCst);
        wake(self.flag);
        Ok(Plugged {
            plug: self,
            _hold: hold,
        })
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        let _ = sys::kill(self.pid, libc::SIGKILL);
        let _ = sys::wait(self.pid);
    }
}

/// CPU 0 is taken until this is dropped.
pub struct Plugged<'a> {
    plug: &'a Plug,
    _hold: Hold,
}

impl Plugged<'_> {
    /// Leaves CPU 0 to the plug: from now on the calling thread may sleep.
    pub fn step_aside(&self) -> io::Result<()> {
        run_elsewhere()
    }
}

impl Drop for Plugged<'_> {
    fn drop(&mut self) {
        self.plug.flag.store(0, Ordering::SeqCst);
    }
}

/// The plug's life: sleep while the flag is 0, spin while it is 1.
fn plug(flag: &AtomicU32) -> ! {
    loop {
        // SAFETY: the futex word lives in a mapping that is never unmapped; a null timeout means no timeout.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                flag.as_ptr(),
                libc::FUTEX_WAIT,
                0,
                std::ptr::null::<libc::timespec>(),
            );
        }
        let start = sys::now_ns();
        while flag.load(Ordering::Relaxed) == 1 && sys::now_ns() - start < PLUG_LIMIT_NS {
            std::hint::spin_loop();
        }
        while flag.load(Ordering::Relaxed) == 1 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn wake(flag: &AtomicU32) {
    // SAFETY: as in plug().
    unsafe {
        libc::syscall(libc::SYS_futex, flag.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}
