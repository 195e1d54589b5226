// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests. A test's name is the claim it makes.

mod adopt;
mod advise;
mod command;
pub mod common;
mod container;
mod device;
mod dump;
mod eligible;
mod ends;
mod enroll;
mod failfork;
mod faults;
mod foreign;
mod freeze;
mod fuzz;
mod helpers;
mod huge;
mod inside;
mod io;
mod layout;
mod libcs;
mod library;
mod loading;
mod lock;
mod memcg;
mod migrate;
mod nested;
mod observe;
mod packages;
mod partial;
mod pidns;
mod poison;
mod protect;
mod refork;
mod remap;
mod selftest;
mod service;
mod swap;
mod torture;
mod tracing;
mod uffd;
mod unmap;
mod writes;
mod zero;

pub use library::{forker, ForkerArgs};

use crate::ctx::Ctx;
use crate::mem::Shape;
use crate::verdict::TestResult;
use asyncfork_uapi::Hook;
use common::Op;

/// Every test, by theme.
pub const TESTS: &[&[Test]] = &[
    device::TESTS,
    nested::TESTS,
    pidns::TESTS,
    writes::TESTS,
    unmap::TESTS,
    advise::TESTS,
    protect::TESTS,
    remap::TESTS,
    lock::TESTS,
    refork::TESTS,
    ends::TESTS,
    enroll::TESTS,
    command::TESTS,
    fuzz::TESTS,
    dump::TESTS,
    foreign::TESTS,
    io::TESTS,
    uffd::TESTS,
    swap::TESTS,
    huge::TESTS,
    zero::TESTS,
    observe::TESTS,
    migrate::TESTS,
    memcg::TESTS,
    eligible::TESTS,
    layout::TESTS,
    partial::TESTS,
    poison::TESTS,
    helpers::TESTS,
    failfork::TESTS,
    faults::TESTS,
    tracing::TESTS,
    freeze::TESTS,
    inside::TESTS,
    library::TESTS,
    libcs::TESTS,
    selftest::TESTS,
    service::TESTS,
    adopt::TESTS,
    container::TESTS,
    torture::TESTS,
    loading::TESTS,
    packages::TESTS,
];

/// Which tests to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// One test for each kind of operation.
    Quick,
    /// Every test but those of systemd.
    Full,
    /// Those that need a module with fault injection.
    Faults,
    /// Those that need systemd as PID 1.
    Systemd,
}

impl Suite {
    /// Whether it has this test.
    pub fn has(self, test: &Test) -> bool {
        match self {
            Self::Quick => test.quick,
            Self::Full => !test.needs_systemd,
            Self::Faults => test.needs_faults,
            Self::Systemd => test.needs_systemd,
        }
    }
}

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// The claim.
    pub name: &'static str,
    /// It stands for its kind of operation in the quick suite.
    quick: bool,
    /// It is about the module itself: no control run.
    pub needs_module: bool,
    /// It makes the module fail: skipped with one that cannot be made to.
    pub needs_faults: bool,
    /// It is about services: another boot.
    pub needs_systemd: bool,
    /// No module can be loaded after it until the next boot: it is run when all others have been.
    pub forbids_modules: bool,
    /// It makes a parked chunk's slot be taken on purpose.
    pub may_merge: bool,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Plain(fn(&Ctx) -> TestResult<String>),
    Held {
        op: Op,
        hook: Hook,
        all: bool,
        shape: Shape,
    },
    Racing {
        op: Op,
        hook: Hook,
    },
}

impl Test {
    const fn with(name: &'static str, body: Body) -> Self {
        Self {
            name,
            quick: false,
            needs_module: false,
            needs_faults: false,
            needs_systemd: false,
            forbids_modules: false,
            may_merge: false,
            body,
        }
    }

    /// A test of its own making.
    const fn new(name: &'static str, run: fn(&Ctx) -> TestResult<String>) -> Self {
        Self::with(name, Body::Plain(run))
    }

    /// The parent does `op` while the child cannot run; `hook` must pull every chunk.
    const fn held(name: &'static str, hook: Hook, op: Op) -> Self {
        Self::with(
            name,
            Body::Held {
                op,
                hook,
                all: true,
                shape: Shape::Whole(16),
            },
        )
    }

    /// Like [`Test::held`], but `op` is about some chunks only.
    const fn held_some(name: &'static str, hook: Hook, op: Op) -> Self {
        Self::with(
            name,
            Body::Held {
                op,
                hook,
                all: false,
                shape: Shape::Whole(16),
            },
        )
    }

    /// Like [`Test::held`], with mappings that cover their chunks in part. Of the process's other memory chunks are parked,
    /// too, so that one pull would say nothing.
    const fn partial(name: &'static str, hook: Hook, op: Op) -> Self {
        Self::with(
            name,
            Body::Held {
                op,
                hook,
                all: true,
                shape: Shape::Partial(8),
            },
        )
    }

    /// Like [`Test::partial`], but `op` is about some chunks only. Not for hooks that other memory meets.
    const fn partial_some(name: &'static str, hook: Hook, op: Op) -> Self {
        Self::with(
            name,
            Body::Held {
                op,
                hook,
                all: false,
                shape: Shape::Partial(8),
            },
        )
    }

    /// The parent does `op` while the child copies on another processor, several times; `hook` must pull something.
    const fn racing(name: &'static str, hook: Hook, op: Op) -> Self {
        Self::with(name, Body::Racing { op, hook })
    }

    const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    const fn module(mut self) -> Self {
        self.needs_module = true;
        self
    }

    const fn faults(mut self) -> Self {
        self.needs_faults = true;
        self.module()
    }

    const fn systemd(mut self) -> Self {
        self.needs_systemd = true;
        self.module()
    }

    const fn forbids_modules(mut self) -> Self {
        self.forbids_modules = true;
        self
    }

    const fn merges(mut self) -> Self {
        self.may_merge = true;
        self
    }

    /// Runs it in this process.
    pub fn run(&self, ctx: &Ctx) -> TestResult<String> {
        match self.body {
            Body::Plain(run) => run(ctx),
            Body::Held {
                op,
                hook,
                all,
                shape,
            } => common::held(ctx, op, hook, all, shape),
            Body::Racing { op, hook } => common::racing(ctx, hook, op),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(wanted: impl Fn(&Test) -> bool) -> Vec<&'static str> {
        let tests = TESTS.iter().flat_map(|group| group.iter());
        tests.filter(|t| wanted(t)).map(|t| t.name).collect()
    }

    #[test]
    fn names_are_unique_and_fit_a_file_name() {
        let mut names = names(|_| true);
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n);
        for name in names {
            assert!(
                name.bytes()
                    .all(|b| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit()),
                "{name}"
            );
        }
    }

    #[test]
    fn the_quick_suite_has_a_test_of_each_theme() {
        for group in TESTS {
            let quick = group.iter().any(|t| Suite::Quick.has(t));
            // What needs another module, or another boot, is not for every day.
            let rare = |t: &Test| t.needs_faults || t.needs_systemd;
            assert!(quick != group.iter().all(rare), "{}", group[0].name);
        }
        let (quick, full) = (
            names(|t| Suite::Quick.has(t)),
            names(|t| Suite::Full.has(t)),
        );
        assert!(quick.len() < full.len() / 3, "{} are quick", quick.len());
        assert!(quick.iter().all(|name| full.contains(name)));
    }

    #[test]
    fn the_suite_of_faults_is_the_tests_that_need_them() {
        let faults = names(|t| Suite::Faults.has(t));
        assert_eq!(faults, names(|t| t.needs_faults && t.needs_module));
        assert!(faults.contains(&"failed_allocations_while_parking_lose_nothing"));
        assert!(!faults.contains(&"module_in_use_cannot_be_unloaded"));
        let full = names(|t| Suite::Full.has(t));
        assert!(faults.iter().all(|name| full.contains(name)));
    }

    #[test]
    fn a_boot_with_systemd_is_for_tests_of_it_alone() {
        let (systemd, full) = (
            names(|t| Suite::Systemd.has(t)),
            names(|t| Suite::Full.has(t)),
        );
        assert_eq!(systemd.len() + full.len(), names(|_| true).len());
        assert!(full.iter().all(|name| !systemd.contains(name)));
    }
}
