// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a test gets.

use crate::board::Board;
use crate::cgroup::Cgroup;
use crate::hold;
use crate::module::{self, Module};
use crate::rng::Rng;
use crate::session::{Ended, Fork};
use crate::skip_unless;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use asyncfork_uapi::{Report, Stats};
use std::io;
use std::path::{Path, PathBuf};

/// Of the checkout, in which tests run.
const COMMAND: &str = "target/release/asyncfork";

/// A test's surroundings.
pub struct Ctx {
    /// The test's name.
    pub name: String,
    /// Replays a run.
    pub seed: u64,
    /// Stock forks only: checks the tests against the kernel's own fork.
    pub control: bool,
    /// The module under test.
    pub module: Module,
    /// libasyncfork.so
    pub shim: PathBuf,
    /// An empty directory in a tmpfs.
    pub scratch: PathBuf,
    /// The test's cgroup; the test runs in its sub-group "main" and may add others.
    pub cgroup: Cgroup,
}

impl Ctx {
    /// Random numbers of this test.
    pub fn rng(&self) -> Rng {
        Rng::new(self.seed, &self.name)
    }

    /// An armed fork, to be refined.
    pub fn fork(&self) -> Fork<'_> {
        Fork::new(self)
    }

    /// libasyncfork.so; skips the test where there is none.
    pub fn library(&self) -> TestResult<&Path> {
        skip_unless!(!self.shim.as_os_str().is_empty(), "no --shim given");
        skip_unless!(self.shim.exists(), "{} does not exist", self.shim.display());
        Ok(&self.shim)
    }

    /// The command `asyncfork`; skips the test where there is none.
    pub fn command(&self) -> TestResult<PathBuf> {
        let command = std::env::current_dir()?.join(COMMAND);
        skip_unless!(command.exists(), "no {COMMAND}: scripts/command builds it");
        Ok(command)
    }

    /// The module's totals; zeros when there is no module.
    pub fn stats(&self) -> TestResult<Stats> {
        if self.control {
            Ok(Stats::default())
        } else {
            self.module.stats()
        }
    }

    /// Starts an ordinary process that helps the test. It posts to `board` as `who`. It runs where no plug starves it.
    pub fn helper(
        &self,
        board: &Board,
        who: &str,
        body: impl FnOnce() -> TestResult,
    ) -> io::Result<i32> {
        // SAFETY: the child runs board.run() only and never returns.
        let pid = sys::cvt(unsafe { libc::fork() })?;
        if pid == 0 {
            board.run(who, || {
                hold::run_elsewhere()?;
                body()
            });
        }
        Ok(pid)
    }

    /// The session of the process `parent`, once it is over: for forks whose descriptor is gone.
    pub fn ended_session_of(&self, parent: i32) -> TestResult<Ended> {
        if self.control {
            return Ok(Ended::from_report(self, None));
        }
        let device = module::open()?;
        let found = sys::poll_until(|| -> TestResult<Option<Report>> {
            let recent = module::recent(&device)?.into_iter();
            Ok(recent
                .filter(|r| r.id != 0)
                .find(|r| r.parent_pid == parent))
        })?;
        match found {
            Some(report) => Ok(Ended::from_report(self, Some(report))),
            None => Err(Verdict::Failed(format!(
                "no session of process {parent} among the recent ones"
            ))),
        }
    }
}
