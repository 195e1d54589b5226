// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module: load, switch, what it reports, unload.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use asyncfork_host::module;
use asyncfork_uapi::{Outcome, Reason, Report, State, Stats};

use crate::claim;

/// The loaded module; unloaded on drop.
pub struct Module {
    loaded: bool,
}

impl Module {
    /// Loads the module file.
    ///
    /// # Errors
    /// It is loaded already, or the kernel refuses it.
    pub fn load(file: &Path) -> Result<Self> {
        ensure!(
            !module::is_loaded(),
            "a module asyncfork is loaded already: rmmod it first"
        );
        ensure!(
            file.exists(),
            "there is no {}: run scripts/kmod",
            file.display()
        );
        module::load(file, "").with_context(|| {
            format!(
                "cannot load {}; the kernel log (dmesg) says why",
                file.display()
            )
        })?;
        let loaded = Self { loaded: true };
        module::open()?.check_abi()?;
        Ok(loaded)
    }

    /// Switches asynchronous forks on or off, for everybody and at once.
    ///
    /// # Errors
    /// An unwritable parameter.
    pub fn set_enabled(&self, on: bool) -> Result<()> {
        module::set("enabled", u8::from(on)).context("the module's parameter enabled")
    }

    /// Checks that since `before` there was one armed fork and that it was
    /// stock for no other reason than the switch.
    ///
    /// # Errors
    /// It was something else.
    pub fn expect_stock(&self, before: &Stats) -> Result<()> {
        let now = module::stats()?;
        claim!(
            now.armed == before.armed + 1,
            "the library armed {} forks instead of one",
            now.armed - before.armed
        );
        claim!(
            now.stock == before.stock + 1
                && now.stock_by(Reason::Disabled) == before.stock_by(Reason::Disabled) + 1
                && now.r#async == before.r#async,
            "the fork was not a stock fork for reason \"disabled\": {now:?}"
        );
        check_health(&now)
    }

    /// Checks that since `before` there was one armed fork, that it was
    /// asynchronous, and that the child got every chunk; returns its report.
    ///
    /// # Errors
    /// It was something else.
    pub fn expect_async(&self, before: &Stats, parent: u32) -> Result<Report> {
        let now = module::stats()?;
        claim!(
            now.armed == before.armed + 1,
            "the library armed {} forks instead of one",
            now.armed - before.armed
        );
        if now.r#async != before.r#async + 1 {
            let why = Reason::ALL
                .iter()
                .find(|&&r| now.stock_by(r) > before.stock_by(r));
            let why = why.map_or("the fork failed, or the session still runs", |r| {
                r.explain()
            });
            claim!(false, "the fork was not asynchronous: {why}");
        }
        let recent = module::recent(&module::open()?)?;
        let Some(report) = recent.first().copied() else {
            bail!("the module counts an asynchronous fork but lists no session");
        };
        claim!(
            report.parent_pid == parent as i32 && report.outcome() == Outcome::Async,
            "the newest session is not the server's: {report:?}"
        );
        claim!(
            report.state() == State::Done && report.chunks.reattached == 0,
            "the session was aborted: {report:?}"
        );
        let pulled = report.chunks.pulled();
        claim!(
            report.chunks.parked > 0 && pulled == report.chunks.parked,
            "{} chunks were parked but {pulled} pulled: {report:?}",
            report.chunks.parked
        );
        check_health(&now)?;
        Ok(report)
    }

    /// Unloads the module.
    ///
    /// # Errors
    /// It is in use.
    pub fn unload(mut self) -> Result<()> {
        self.loaded = false;
        module::unload()?;
        claim!(
            !module::is_loaded(),
            "the module is still there after it was unloaded"
        );
        Ok(())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.loaded {
            if let Err(e) = module::unload() {
                eprintln!("asyncfork-demo: {e:#}");
            }
        }
    }
}

fn check_health(stats: &Stats) -> Result<()> {
    claim!(
        stats.merged == 0 && stats.switched_off == 0 && stats.killed == 0,
        "the module reports an inconsistency, see dmesg: {stats:?}"
    );
    Ok(())
}
