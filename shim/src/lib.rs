// SPDX-License-Identifier: MIT OR Apache-2.0
//! `libasyncfork.so`: preloaded into a server, it arms `/dev/asyncfork` around
//! the server's `fork()`. README.md beside this crate tells how to use it and
//! which functions it stands before.
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
mod config;
mod log;
mod real;
mod rss;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::OnceLock;

use libc::pid_t;

use arm::{Plan, Shim};
use config::{base_name, Config, Mode};
use log::{Level, Logger};
use real::Real;

/// Empty before [`load`] ran and in processes that never arm.
static SHIM: OnceLock<Shim> = OnceLock::new();

/// fork(2), the page-table copy left to the child if the module agrees.
///
/// Any failure to arm is a stock fork; errno is the real call's alone. With
/// `ASYNCFORK=require` a failure to arm is -1 with errno `ENOSYS`.
#[cfg_attr(not(test), no_mangle)]
pub extern "C-unwind" fn fork() -> pid_t {
    fork_through(&real::FORK)
}

/// glibc's other name for [`fork`].
#[cfg_attr(not(test), no_mangle)]
pub extern "C-unwind" fn __fork() -> pid_t {
    fork_through(&real::FORK)
}

/// As [`fork`], without atfork handlers; async-signal-safe.
#[allow(non_snake_case)] // glibc's name
#[cfg_attr(not(test), no_mangle)]
pub extern "C-unwind" fn _Fork() -> pid_t {
    fork_through(&real::UNDERSCORE_FORK)
}

fn fork_through(real: &Real) -> pid_t {
    let Some(real_fork) = real.get() else {
        // A bare clone() would leave the C library's locks and thread ids wrong in the child.
        return refuse();
    };
    let shim = SHIM.get();
    let plan = shim.map_or(Plan::Stock, |shim| {
        keep_errno(|| guarded(|| shim.before()).unwrap_or(Plan::Stock))
    });
    let device = match plan {
        Plan::Stock => None,
        Plan::Armed(device) => Some(device),
        Plan::Refuse => return refuse(),
    };
    // SAFETY: the C library's function of this name and type.
    let pid = unsafe { real_fork() };
    if pid > 0 {
        if let (Some(shim), Some(device)) = (shim, &device) {
            keep_errno(|| guarded(|| shim.after(device, pid)));
        }
    }
    // Closes; in the child that is all that happens.
    drop(device);
    pid
}

fn refuse() -> pid_t {
    set_errno(libc::ENOSYS);
    -1
}

/// `None` if `f` panicked, which it does not: a second line of defence.
fn guarded<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

fn keep_errno<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: the calling thread's errno is always readable.
    let errno = unsafe { *libc::__errno_location() };
    let result = f();
    set_errno(errno);
    result
}

fn set_errno(errno: i32) {
    // SAFETY: the calling thread's errno is always writable.
    unsafe { *libc::__errno_location() = errno };
}

/// Reads the settings. Runs when the library is loaded, before `main`; may
/// allocate.
#[ctor::ctor(unsafe)]
fn load() {
    real::FORK.resolve();
    real::UNDERSCORE_FORK.resolve();
    guarded(|| {
        // This library's own copy of std: the program's hooks are untouched.
        std::panic::set_hook(Box::new(|_| {}));
        if let Some(shim) = configure() {
            // Cannot be set yet: constructors run once.
            let _ = SHIM.set(shim);
        }
    });
}

/// The state of a process that may arm, else `None`.
fn configure() -> Option<Shim> {
    // SAFETY: a plain query.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        // A set-user-ID program must not open files that its caller names.
        return None;
    }
    let (config, problems) = Config::parse(|name| std::env::var_os(name));
    let log = Logger::new(config.log, config.log_file.clone());
    if !matches_program(&config.programs) {
        log.log(
            Level::Debug,
            format_args!("loaded, idle: not in ASYNCFORK_MATCH"),
        );
        return None;
    }
    for problem in &problems {
        log.log(Level::Warn, format_args!("{problem}"));
    }
    if config.mode == Mode::Off {
        log.log(Level::Debug, format_args!("loaded, idle: ASYNCFORK=off"));
        return None;
    }
    log.log(
        Level::Debug,
        format_args!(
            "loaded: mode {}, armed from {} bytes, {} helper threads, device {:?}, ABI {}",
            config.mode.label(),
            config.min_rss,
            config.helpers,
            config.device,
            asyncfork_uapi::ABI_VERSION,
        ),
    );
    // SAFETY: a plain query.
    let page_size = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some(Shim {
        config,
        log,
        page_size,
    })
}

/// Is this program named, by its executable or by the name it was started under?
fn matches_program(programs: &[Vec<u8>]) -> bool {
    if programs.is_empty() {
        return true;
    }
    let exe = std::fs::read_link("/proc/self/exe").map(|path| OsString::from(path).into_vec());
    let comm = std::fs::read("/proc/self/comm");
    programs.iter().any(|program| {
        // The kernel keeps 15 bytes of the name.
        let short = program.get(..15).unwrap_or(program);
        exe.as_ref().is_ok_and(|exe| base_name(exe) == program)
            || comm
                .as_ref()
                .is_ok_and(|comm| comm.trim_ascii_end() == short)
    })
}
