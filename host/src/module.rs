// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module: load it, ask it, set it up, unload it.
//!
//! The errno of a load or an unload is the kernel's own, for callers that expect
//! one; the kernel log says why.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{anyhow, bail, Context, Result};
use asyncfork_uapi::{Device, Entry, Report, Stats, MAX_ENTRIES};

use crate::kernel::on_debug_kernel;
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

/// A module file that is loaded again and again.
#[derive(Debug, Clone)]
pub struct ModuleFile {
    path: PathBuf,
    /// Read from the file once: it is large.
    faults: OnceLock<bool>,
}

impl ModuleFile {
    /// Nothing is loaded yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            faults: OnceLock::new(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads it as [`load`] does, and as an untested one where it counts as such:
    /// built with fault injection, or on a debug kernel.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self, parameters: &str) -> io::Result<()> {
        if self.injects_faults()? || on_debug_kernel()? {
            return load(&self.path, &format!("allow_untested=1 {parameters}"));
        }
        load(&self.path, parameters)
    }

    /// Whether it was built with fault injection.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn injects_faults(&self) -> io::Result<bool> {
        const PARM: &[u8] = b"parm=fault_skip:";
        if let Some(&faults) = self.faults.get() {
            return Ok(faults);
        }
        let file = fs::read(&self.path)?;
        let faults = file.windows(PARM.len()).any(|w| w == PARM);
        Ok(*self.faults.get_or_init(|| faults))
    }
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

/// The file of a parameter.
pub fn parameter(name: &str) -> PathBuf {
    Path::new(SYSFS).join("parameters").join(name)
}

/// Sets a live parameter.
///
/// # Errors
/// There is none of this name, or the module refuses the value.
pub fn set(name: &str, value: impl ToString) -> io::Result<()> {
    fs::write(parameter(name), value.to_string())
}

/// Reads a parameter.
///
/// # Errors
/// There is none of this name.
pub fn get(name: &str) -> io::Result<String> {
    trimmed(&parameter(name))
}

fn read(file: &str) -> io::Result<String> {
    trimmed(&Path::new(SYSFS).join(file))
}

fn trimmed(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim().to_owned())
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

/// The last forks that were to be asynchronous, newest first; see [`Device::recent`].
///
/// # Errors
/// Those of [`Device::recent`].
pub fn recent(device: &Device) -> Result<Vec<Report>> {
    let mut entries = vec![Report::default(); 256];
    let count = device.recent(&mut entries).map_err(device_error)?;
    entries.truncate(count);
    Ok(entries)
}

/// The enrolled cgroups; see [`Device::enrolled`].
///
/// # Errors
/// Those of [`Device::enrolled`].
pub fn enrolled(device: &Device) -> Result<Vec<Entry>> {
    let mut entries = vec![Entry::default(); MAX_ENTRIES];
    let count = device.enrolled(&mut entries).map_err(device_error)?;
    entries.truncate(count);
    Ok(entries)
}
