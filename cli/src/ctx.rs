// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a command works with: the machine, the module, and where results go. Tests
//! give others.

use std::path::{Path, PathBuf};

use anyhow::Result;
use asyncfork_uapi::Stats;

use crate::host::Host;
use crate::module::{check_abi, Module, State};
use crate::out::Out;
use crate::sample::{Samples, Sampling};

/// Opens the module's device.
pub type Connect<'a> = Box<dyn Fn(&Host, &Path) -> Result<Box<dyn Module>> + 'a>;
/// Measures fork().
pub type Sample<'a> = Box<dyn Fn(&Sampling) -> Result<Samples> + 'a>;

/// What a command works with.
pub struct Ctx<'a> {
    /// The machine.
    pub host: Host,
    /// Where results go.
    pub out: Out<'a>,
    /// The module's device.
    pub device: PathBuf,
    /// Opens it.
    pub connect: Connect<'a>,
    /// Measures fork().
    pub sample: Sample<'a>,
}

impl Ctx<'_> {
    /// The module.
    ///
    /// # Errors
    /// It is not loaded, or out of reach.
    pub fn module(&self) -> Result<Box<dyn Module>> {
        let module = (self.connect)(&self.host, &self.device)?;
        check_abi(module.as_ref())?;
        Ok(module)
    }

    /// Whether forks can be asynchronous, and the module's totals or why they are
    /// unknown.
    pub fn state(&self) -> (State, Result<Stats>) {
        let stats = self.module().and_then(|module| module.stats());
        (State::of(&self.host, stats.as_ref().ok()), stats)
    }

    /// `uname -r`.
    pub fn kernel(&self) -> String {
        self.host
            .line("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
    }
}
