// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module under test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use asyncfork_host::module;
use asyncfork_uapi::{Reason, Stats};

/// Loaded until it is unloaded by name.
#[derive(Debug)]
pub struct Module {
    ko: PathBuf,
    parameters: String,
    version: String,
}

impl Module {
    /// Loads it.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(ko: &Path, parameters: &[String]) -> Result<Self> {
        let mut module = Self {
            ko: ko.to_owned(),
            parameters: parameters.join(" "),
            version: String::new(),
        };
        module.insert()?;
        module.version = module::srcversion().context("the module's srcversion")?;
        Ok(module)
    }

    /// A checksum of its sources.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn insert(&self) -> Result<()> {
        module::load(&self.ko, &self.parameters)
            .with_context(|| format!("cannot load {}; the kernel log says why", self.ko.display()))
    }

    /// Unloads it; waits for sessions to end.
    ///
    /// # Errors
    /// It is still in use after a minute.
    pub fn unload(&self) -> Result<()> {
        module::unload()
    }

    /// Gets a fresh one after it has switched itself off.
    ///
    /// # Errors
    /// As the two others.
    pub fn reload(&self) -> Result<()> {
        self.unload()?;
        self.insert()
    }

    /// Totals, when no session runs any more.
    ///
    /// # Errors
    /// Sessions that do not end.
    pub fn quiet_stats(&self) -> Result<Stats> {
        module::quiet_stats().context("after the program's processes ended")
    }
}

/// What happened to forks between two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Forks {
    pub r#async: u64,
    pub stock: u64,
    /// The fork itself failed.
    pub failed: u64,
    pub parked: u64,
    pub by_child: u64,
    pub by_parent: u64,
    pub by_helper: u64,
    pub by_other: u64,
    /// Given back uncopied, as the child was dead already or the fork itself had failed.
    pub reattached: u64,
    /// Forks of which chunks were given back.
    pub aborted: u64,
    /// Children that the module killed, as their memory could not be copied.
    pub killed: u64,
    /// Slots of parked chunks that something had filled.
    pub merged: u64,
}

impl Forks {
    pub fn between(before: &Stats, after: &Stats) -> Self {
        Self {
            r#async: after.r#async - before.r#async,
            stock: after.stock - before.stock,
            failed: after.failed - before.failed,
            parked: after.chunks.parked - before.chunks.parked,
            by_child: after.chunks.by_child - before.chunks.by_child,
            by_parent: after.chunks.by_parent - before.chunks.by_parent,
            by_helper: after.chunks.by_helper - before.chunks.by_helper,
            by_other: after.chunks.by_other - before.chunks.by_other,
            reattached: after.chunks.reattached - before.chunks.reattached,
            aborted: after.aborted - before.aborted,
            killed: after.killed - before.killed,
            merged: after.merged - before.merged,
        }
    }
}

/// Why forks were stock forks, the most frequent first.
pub fn reasons(before: &Stats, after: &Stats) -> String {
    let mut counts: Vec<(u64, String)> = Reason::ALL
        .iter()
        .map(|&r| (after.stock_by(r) - before.stock_by(r), r.to_string()))
        .filter(|(n, _)| *n > 0)
        .collect();
    counts.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let texts: Vec<String> = counts
        .into_iter()
        .map(|(n, r)| format!("{n} {r}"))
        .collect();
    texts.join(", ")
}
