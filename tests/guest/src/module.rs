// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module under test.

use crate::require;
use crate::sys;
use crate::verdict::{Outcome, Verdict};
pub use asyncfork_host::module::device_error;
use asyncfork_host::{kernel, module};
use asyncfork_uapi::{Device, Stats};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

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
        if self.injects_faults()? || kernel::on_debug_kernel()? {
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
        module::load(&self.ko, params)
    }

    /// One try to unload, as rmmod does: EAGAIN while the module is in use.
    pub fn try_unload(&self) -> io::Result<()> {
        module::try_unload()
    }

    /// Unloads; waits for the sessions' references, which a worker drops a moment after their end.
    pub fn unload(&self) -> Outcome {
        module::unload().map_err(|e| Verdict::Failed(format!("{e:#}")))
    }

    /// Waits until nothing refers to it: sessions that are over may, for a moment.
    pub fn expect_unused(&self) -> Outcome {
        let unused = sys::poll_until(|| Ok::<_, io::Error>((self.refcount()? == 0).then_some(())))?;
        require!(unused.is_some(), "the module is in use");
        Ok(())
    }

    /// Whether it is loaded and ready.
    pub fn is_loaded(&self) -> bool {
        module::is_loaded()
    }

    /// The module's reference count.
    pub fn refcount(&self) -> io::Result<i64> {
        module::refcount()
    }

    /// Sets a live parameter.
    pub fn set(&self, name: &str, value: impl ToString) -> io::Result<()> {
        module::set(name, value)
    }

    /// Reads a parameter.
    pub fn get(&self, name: &str) -> io::Result<String> {
        module::get(name)
    }

    /// The totals since load.
    pub fn stats(&self) -> Outcome<Stats> {
        Ok(module::stats()?)
    }
}

/// Opens the device.
pub fn open() -> Outcome<Device> {
    Ok(module::open()?)
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

/// Reads a file that holds one number.
pub fn read_number(path: &str) -> io::Result<i64> {
    let text =
        fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
    text.trim()
        .parse()
        .map_err(|e| io::Error::other(format!("{path}: {e}: {text:?}")))
}
