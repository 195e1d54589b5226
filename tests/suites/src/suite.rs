// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a suite is to the framework: programs that run twice and say of each case how it ended.

use std::time::Duration;

use anyhow::Result;

use crate::env::Env;

/// A suite that nobody here wrote, or the part of it that is run here.
pub trait Suite {
    /// As on the command line of `scripts/suites`.
    fn name(&self) -> &'static str;

    /// The programs, in order, those that this guest lacks as well. What is installed by hand before the first of them runs, such as
    /// unpacked sources, is made here. Called once, before the baseline of the leak check.
    ///
    /// # Errors
    /// The suite cannot be run at all.
    fn programs(&self, env: &Env) -> Result<Vec<Program>>;

    /// Runs one program to its end, with [`Env::command`] and [`Env::run`], so that forks are what `fork` says.
    ///
    /// Case names must be the same from run to run: no addresses, process ids or times in them.
    ///
    /// # Errors
    /// The program could not be started, or said nothing that could be read: the verdict is "broken". A program that
    /// crashed or ran out of time is no error but a failed case, see [`crate::env::Finished::cases_or_exit`].
    fn run_one(&self, env: &Env, program: &Program, fork: Fork) -> Result<Vec<Case>>;

    /// After the last program, before the leak check: takes back what [`Suite::programs`] has set up in the kernel.
    ///
    /// # Errors
    /// It cannot be taken back.
    fn clean_up(&self, _env: &Env) -> Result<()> {
        Ok(())
    }
}

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Program {
    /// Unique in its suite.
    pub name: String,
    /// For the table: what is special about how it is run; may be empty.
    pub note: String,
    /// Of one run; after that it is killed and has failed.
    pub limit: Duration,
    /// Why this guest cannot run it.
    pub missing: Option<&'static str>,
}

impl Program {
    /// A program with nothing special about it.
    pub fn new(name: impl Into<String>, seconds: u64) -> Self {
        Self {
            name: name.into(),
            note: String::new(),
            limit: Duration::from_secs(seconds),
            missing: None,
        }
    }
}

/// How the program's forks are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The kernel's own.
    Stock,
    /// Every one armed, whatever the size of the process.
    Armed,
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Pass,
    Skip,
    Fail,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Fail => "fail",
        }
    }
}

/// One claim of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The same in every run.
    pub name: String,
    pub verdict: Verdict,
}

impl Case {
    pub fn new(name: impl Into<String>, verdict: Verdict) -> Self {
        Self {
            name: name.into(),
            verdict,
        }
    }
}
