// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module under test.

use crate::require;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use asyncfork_host::module::{self, ModuleFile};
pub use asyncfork_host::module::{device_error, parameter};
use asyncfork_uapi::{Device, Entry, Report, Stats};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

/// The module file under test.
#[derive(Debug, Clone)]
pub struct Module(ModuleFile);

impl Module {
    /// Nothing is loaded yet.
    pub fn new(ko: PathBuf) -> Self {
        Self(ModuleFile::new(ko))
    }

    /// Loads the module; `params` as on insmod's command line.
    pub fn load(&self, params: &str) -> io::Result<()> {
        self.0.load(params)
    }

    /// Whether it was built with fault injection.
    pub fn injects_faults(&self) -> io::Result<bool> {
        self.0.injects_faults()
    }

    /// Loads the module with these parameters and no others.
    pub fn load_as_it_is(&self, params: &str) -> io::Result<()> {
        module::load(self.0.path(), params)
    }

    /// One try to unload, as rmmod does: EAGAIN while the module is in use.
    pub fn try_unload(&self) -> io::Result<()> {
        module::try_unload()
    }

    /// Unloads; waits for the sessions' references, which a worker drops a moment after their end.
    pub fn unload(&self) -> TestResult {
        module::unload().map_err(|e| Verdict::Failed(format!("{e:#}")))
    }

    /// Waits until nothing refers to it: sessions that are over may, for a moment.
    pub fn expect_unused(&self) -> TestResult {
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
    pub fn stats(&self) -> TestResult<Stats> {
        Ok(module::stats()?)
    }
}

/// Opens the device.
pub fn open() -> TestResult<Device> {
    Ok(module::open()?)
}

/// The last forks that were to be asynchronous, newest first.
pub fn recent(device: &Device) -> TestResult<Vec<Report>> {
    Ok(module::recent(device)?)
}

/// The enrolled cgroups.
pub fn enrolled(device: &Device) -> TestResult<Vec<Entry>> {
    Ok(module::enrolled(device)?)
}

/// Loads a module of the distribution.
pub fn modprobe(name: &str, options: &[&str]) -> TestResult {
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
