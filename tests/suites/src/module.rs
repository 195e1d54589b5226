// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use asyncfork_uapi::{Device, Reason, Stats};

const SRCVERSION: &str = "/sys/module/asyncfork/srcversion";
/// How long the last references are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Loaded until it is unloaded by name.
#[derive(Debug)]
pub struct Module {
    ko: PathBuf,
    parameters: Vec<String>,
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
            parameters: parameters.to_vec(),
            version: String::new(),
        };
        module.insert()?;
        let version = fs::read_to_string(SRCVERSION).context(SRCVERSION)?;
        version.trim().clone_into(&mut module.version);
        Ok(module)
    }

    /// A checksum of its sources.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn insert(&self) -> Result<()> {
        let status = Command::new("insmod")
            .arg(&self.ko)
            .args(&self.parameters)
            .status()
            .context("cannot run insmod")?;
        ensure!(
            status.success(),
            "insmod {}: {status}; the kernel log says why",
            self.ko.display()
        );
        Ok(())
    }

    /// Unloads it; waits for sessions to end.
    ///
    /// # Errors
    /// It is still in use after a minute.
    pub fn unload(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let out = Command::new("rmmod").arg("asyncfork").output()?;
            if out.status.success() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the module cannot be unloaded though nothing uses it: {}",
                String::from_utf8_lossy(&out.stderr).trim()
            );
            sleep(Duration::from_millis(20));
        }
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
        let start = Instant::now();
        loop {
            let device = Device::open().map_err(|e| anyhow::anyhow!("/dev/asyncfork {e}"))?;
            let stats = device
                .stats()
                .map_err(|e| anyhow::anyhow!("/dev/asyncfork {e}"))?;
            if stats.running == 0 {
                return Ok(stats);
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "{} sessions still run after the program's processes ended",
                stats.running
            );
            sleep(Duration::from_millis(5));
        }
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
            parked: after.parked - before.parked,
            by_child: after.by_child - before.by_child,
            by_parent: after.by_parent - before.by_parent,
            by_helper: after.by_helper - before.by_helper,
            by_other: after.by_other - before.by_other,
            reattached: after.reattached - before.reattached,
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
