// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module: load it, ask it, set it up, unload it.
//!
//! The errno of a load or an unload is the kernel's own, for callers that expect
//! one; the kernel log says why.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use asyncfork_uapi::{Device, Stats};

use crate::wait::poll_until;

const SYSFS: &str = "/sys/module/asyncfork";

/// Loads a module file; `parameters` as on insmod's command line.
///
/// # Errors
/// Those of finit_module(2), and of opening the file.
pub fn load(file: &Path, parameters: &str) -> io::Result<()> {
    let file = File::open(file)?;
    let parameters = CString::new(parameters)?;
    // SAFETY: descriptor and string live across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    })
}

/// One try to unload it, as rmmod does.
///
/// # Errors
/// Those of delete_module(2): `EAGAIN` while it is in use.
pub fn try_unload() -> io::Result<()> {
    // SAFETY: a literal C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_delete_module,
            c"asyncfork".as_ptr(),
            libc::O_NONBLOCK,
        )
    })
}

/// Unloads it. Waits for the references of sessions, which a worker drops a moment
/// after their end.
///
/// # Errors
/// It is in use for a minute, or not loaded.
pub fn unload() -> Result<()> {
    let unloaded = poll_until(|| match try_unload() {
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
        other => other.map(Some),
    });
    unloaded
        .context("cannot unload the module")?
        .with_context(|| {
            let count = refcount().map_or_else(|e| e.to_string(), |n| n.to_string());
            format!("the module cannot be unloaded though nothing uses it: reference count {count}")
        })
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether it is loaded and ready.
pub fn is_loaded() -> bool {
    Path::new(SYSFS).join("initstate").exists()
}

/// Who uses it.
///
/// # Errors
/// It is not loaded.
pub fn refcount() -> io::Result<i64> {
    let count = read("refcnt")?;
    count.parse().map_err(io::Error::other)
}

/// A checksum of its sources.
///
/// # Errors
/// It is not loaded.
pub fn srcversion() -> io::Result<String> {
    read("srcversion")
}

/// Sets a live parameter.
///
/// # Errors
/// There is none of this name, or the module refuses the value.
pub fn set(name: &str, value: impl ToString) -> io::Result<()> {
    fs::write(format!("{SYSFS}/parameters/{name}"), value.to_string())
}

/// Reads a parameter.
///
/// # Errors
/// There is none of this name.
pub fn get(name: &str) -> io::Result<String> {
    read(&format!("parameters/{name}"))
}

fn read(file: &str) -> io::Result<String> {
    let text = fs::read_to_string(format!("{SYSFS}/{file}"))?;
    Ok(text.trim().to_owned())
}

/// Opens its device.
///
/// # Errors
/// With what to do about it.
pub fn open() -> Result<Device> {
    Device::open().map_err(device_error)
}

/// A device's error with the device's name.
pub fn device_error(e: asyncfork_uapi::Error) -> anyhow::Error {
    anyhow!("{} {e}", asyncfork_uapi::DEVICE.to_string_lossy())
}

/// Totals since it was loaded.
///
/// # Errors
/// Those of the device.
pub fn stats() -> Result<Stats> {
    open()?.stats().map_err(device_error)
}

/// Totals when no session runs any more.
///
/// # Errors
/// Those of the device; sessions that do not end within a minute.
pub fn quiet_stats() -> Result<Stats> {
    let quiet = poll_until(|| -> Result<_> { Ok(Some(stats()?).filter(|s| s.running == 0)) })?;
    match quiet {
        Some(stats) => Ok(stats),
        None => bail!("{} sessions still run", stats()?.running),
    }
}
