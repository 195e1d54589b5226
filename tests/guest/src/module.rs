// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading, unloading and setting up the kernel module.

use crate::require;
use crate::sys;
use crate::verdict::{Context, Outcome, Verdict};
use asyncfork_uapi::{Device, Stats};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const SYSFS: &str = "/sys/module/asyncfork";

/// The module file under test.
#[derive(Debug, Clone)]
pub struct Module {
    ko: PathBuf,
    /// Read from the file once: it is large.
    faults: OnceLock<bool>,
}

impl Module {
    /// Nothing is loaded yet.
    pub fn new(ko: PathBuf) -> Self {
        Self {
            ko,
            faults: OnceLock::new(),
        }
    }

    /// Loads the module; `params` as on insmod's command line.
    pub fn load(&self, params: &str) -> io::Result<()> {
        if self.injects_faults()? || asyncfork_watch::on_debug_kernel()? {
            // They count as untested.
            return self.load_as_it_is(&format!("allow_untested=1 {params}"));
        }
        self.load_as_it_is(params)
    }

    /// Whether it was built with fault injection.
    pub fn injects_faults(&self) -> io::Result<bool> {
        const PARM: &[u8] = b"parm=fault_skip:";
        if let Some(&faults) = self.faults.get() {
            return Ok(faults);
        }
        let faults = fs::read(&self.ko)?.windows(PARM.len()).any(|w| w == PARM);
        Ok(*self.faults.get_or_init(|| faults))
    }

    /// Loads the module with these parameters and no others.
    pub fn load_as_it_is(&self, params: &str) -> io::Result<()> {
        let file = fs::File::open(&self.ko)?;
        let params = CString::new(params)?;
        // SAFETY: descriptor and string live across the call.
        sys::cvt(unsafe {
            libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), params.as_ptr(), 0)
        })
        .map(drop)
    }

    /// One try to unload, as rmmod does: EAGAIN while the module is in use.
    pub fn try_unload(&self) -> io::Result<()> {
        // SAFETY: a literal C string.
        sys::cvt(unsafe {
            libc::syscall(
                libc::SYS_delete_module,
                c"asyncfork".as_ptr(),
                libc::O_NONBLOCK,
            )
        })
        .map(drop)
    }

    /// Unloads; waits for the sessions' references, which a worker drops a moment after their end.
    pub fn unload(&self) -> Outcome {
        let done = sys::poll_until(|| match self.try_unload() {
            Ok(()) => Ok(Some(())),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(e) => Err(e),
        })
        .at("unload")?;
        match done {
            Some(()) => Ok(()),
            None => Err(Verdict::Failed(format!(
                "the module cannot be unloaded though nothing uses it: reference count {}",
                self.refcount()
                    .map_or_else(|e| e.to_string(), |n| n.to_string())
            ))),
        }
    }

    /// Waits until nothing refers to it: sessions that are over may, for a moment.
    pub fn expect_unused(&self) -> Outcome {
        let unused = sys::poll_until(|| Ok::<_, io::Error>((self.refcount()? == 0).then_some(())))?;
        require!(unused.is_some(), "the module is in use");
        Ok(())
    }

    /// Whether it is loaded and ready.
    pub fn is_loaded(&self) -> bool {
        Path::new(SYSFS).join("initstate").exists()
    }

    /// The module's reference count.
    pub fn refcount(&self) -> io::Result<i64> {
        read_number(&format!("{SYSFS}/refcnt"))
    }

    /// Sets a live parameter.
    pub fn set(&self, name: &str, value: impl ToString) -> io::Result<()> {
        fs::write(format!("{SYSFS}/parameters/{name}"), value.to_string())
    }

    /// Reads a parameter.
    pub fn get(&self, name: &str) -> io::Result<String> {
        Ok(fs::read_to_string(format!("{SYSFS}/parameters/{name}"))?
            .trim()
            .to_string())
    }

    /// The totals since load.
    pub fn stats(&self) -> Outcome<Stats> {
        Ok(open()?.stats().map_err(device_error)?)
    }
}

/// Loads a module of the distribution.
pub fn modprobe(name: &str, options: &[&str]) -> Outcome {
    let status = Command::new("modprobe").arg(name).args(options).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(Verdict::Skip(format!("modprobe {name}: {status}")))
    }
}

/// Opens the device.
pub fn open() -> Outcome<Device> {
    Device::open().map_err(|e| device_error(e).into())
}

/// A device error with its hint.
pub fn device_error(e: asyncfork_uapi::Error) -> anyhow::Error {
    anyhow::anyhow!("/dev/asyncfork {e}")
}

/// Reads a file that holds one number.
pub fn read_number(path: &str) -> io::Result<i64> {
    let text =
        fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
    text.trim()
        .parse()
        .map_err(|e| io::Error::other(format!("{path}: {e}: {text:?}")))
}
