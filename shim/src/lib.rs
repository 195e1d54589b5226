// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `libasyncfork.so` does around a server's `fork()`: it arms
//! `/dev/asyncfork`. README.md beside this crate tells how to use it and which
//! functions it puts its own before; the crate in `so` makes the library of it.
//!
//! ```text
//! fork()
//!   small process, or not configured ----------------> real fork
//!   open, VERSION, ARM   (any failure: real fork)
//!   real fork
//!     parent: REPORT, one log line, close              returns the child's pid
//!     child:  close                                    returns 0
//! ```
//!
//! Around the real fork the library makes plain system calls only: it does not
//! allocate, lock, touch errno or act on a pending thread cancellation. So
//! `_Fork` stays async-signal-safe, as POSIX wants it.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(
        // A panic must not reach the server.
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used,
    )
)]

mod arm;
mod imports;
mod log;
mod mark;
mod quiet;
pub mod real;
mod rss;

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::mem::MaybeUninit;

use ::log::{debug, warn};
use asyncfork_settings::{base_name, names, Mode, Settings};
use asyncfork_uapi::{ErrnoName, Fd};
use libc::pid_t;
use once_cell::race::OnceRef;
use rustix::fs::{readlinkat_raw, Mode as FileMode, OFlags, CWD};

use arm::{Plan, Shim};
use log::Logger;
use real::Real;

/// Empty before [`load`] ran and in processes that never arm.
static SHIM: OnceRef<'static, Shim> = OnceRef::new();

static SHIM_PLACE: Place<Shim> = Place::new();
static LOGGER_PLACE: Place<Logger> = Place::new();

/// One of the fork functions, behind whose name `real` is the C library's.
pub fn fork_through(real: &Real) -> pid_t {
    let Some(real_fork) = real.get() else {
        // A bare clone() would leave the C library's locks and thread ids wrong in the child.
        return refuse();
    };
    let shim = SHIM.get();
    let device = match shim.map_or(Plan::Stock, Shim::before) {
        Plan::Stock => None,
        Plan::Armed(device) => Some(device),
        Plan::Refuse => return refuse(),
    };
    // An atfork handler may end the thread: then nothing below runs, and the
    // descriptor stays open.
    // SAFETY: the C library's function of this name and type.
    let pid = unsafe { real_fork() };
    if pid > 0 {
        if let (Some(shim), Some(device)) = (shim, &device) {
            shim.after(device, pid);
        }
    }
    // Closes; in the child that is all that happens.
    drop(device);
    pid
}

fn refuse() -> pid_t {
    imports::set_errno(libc::ENOSYS);
    -1
}

/// Reads the settings. To be called once, when the library is loaded, before `main`.
pub fn load() {
    if let Some(shim) = configure() {
        // SAFETY: the library is loaded once.
        let shim = unsafe { SHIM_PLACE.put(shim) };
        let _ = SHIM.set(shim);
    }
}

/// The state of a process that may arm, otherwise `None`.
fn configure() -> Option<Shim> {
    if imports::is_secure() {
        // A set-user-ID program must not open files that its caller names.
        return None;
    }
    let (settings, problems) = Settings::parse(imports::getenv);
    let level = settings.log;
    let logger = Logger::new(level, settings.log_file, imports::getenv(c"JOURNAL_STREAM"));
    // SAFETY: the library is loaded once.
    let logger = unsafe { LOGGER_PLACE.put(logger) };
    // Cannot be set yet: this copy of the log crate is the library's own.
    let _ = ::log::set_logger(logger);
    ::log::set_max_level(level);
    if !is_named(settings.programs) {
        debug!("loaded, idle: not in ASYNCFORK_MATCH");
        return None;
    }
    for problem in &problems {
        warn!("{problem}");
    }
    let guard = settings.mode != Mode::Auto && !is_marked();
    if settings.mode == Mode::Off {
        debug!("loaded, idle: ASYNCFORK=off");
        if !guard {
            return None;
        }
    }
    debug!(
        "loaded: mode {}, armed from {} bytes, {} helper threads, device {}, ABI {}",
        settings.mode.label(),
        settings.min_rss,
        settings.helpers,
        settings.device,
        asyncfork_uapi::ABI_VERSION,
    );
    Some(Shim {
        mode: settings.mode,
        guard,
        min_rss: settings.min_rss,
        helpers: settings.helpers,
        device: settings.device,
    })
}

/// Keeps an enrolment of the cgroup from this process; `false` if that cannot be done,
/// as with a seccomp filter or no descriptor to spare.
fn is_marked() -> bool {
    mark::make()
        .inspect_err(|&errno| {
            let why = ErrnoName(errno);
            debug!("process not marked: {why}; its stock forks take an ARM");
        })
        .is_ok()
}

/// Is this program in the list, by its executable or by the name it was started under?
fn is_named(programs: &[u8]) -> bool {
    let mut names = names(programs).peekable();
    if names.peek().is_none() {
        return true;
    }
    let (mut path, mut name) = ([0; libc::PATH_MAX as usize], [0; 64]);
    let exe = readlinkat_raw(CWD, c"/proc/self/exe", &mut path).unwrap_or(0);
    let exe = base_name(path.get(..exe).unwrap_or(&[]));
    let comm = read_start(c"/proc/self/comm", &mut name)
        .unwrap_or(&[])
        .trim_ascii_end();
    // The kernel keeps 15 bytes of the name.
    names.any(|name| exe == name || comm == name.get(..15).unwrap_or(name))
}

/// What a file begins with; `None` if it cannot be read, as without /proc.
fn read_start<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = Fd::open(path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty()).ok()?;
    let read = rustix::io::read(&file, &mut *buffer).ok()?;
    buffer.get(..read)
}

/// Where a value is put while the library is loaded, to stay.
struct Place<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: written by put() alone, whose caller sees to it that nobody else has
// a part in it; what it returns is shared.
unsafe impl<T: Sync> Sync for Place<T> {}

impl<T> Place<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// # Safety
    /// To be called once.
    unsafe fn put(&'static self, value: T) -> &'static T {
        // SAFETY: the only access, by the contract.
        unsafe { (*self.0.get()).write(value) }
    }
}
