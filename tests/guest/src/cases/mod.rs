// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests. A test's name is the claim it makes.

mod advise;
pub mod common;
mod device;
mod dump;
mod eligible;
mod ends;
mod failfork;
mod faults;
mod foreign;
mod freeze;
mod helpers;
mod huge;
mod io;
mod layout;
mod library;
mod loading;
mod lock;
mod memcg;
mod migrate;
mod observe;
mod partial;
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
use crate::verdict::Outcome;
use asyncfork_uapi::Hook;
use common::Op;

/// Every test, by theme.
pub const TESTS: &[&[Test]] = &[
    device::TESTS,
    writes::TESTS,
    unmap::TESTS,
    advise::TESTS,
    protect::TESTS,
    remap::TESTS,
    lock::TESTS,
    refork::TESTS,
    ends::TESTS,
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
    helpers::TESTS,
    failfork::TESTS,
    faults::TESTS,
    tracing::TESTS,
    freeze::TESTS,
    library::TESTS,
    selftest::TESTS,
    service::TESTS,
    torture::TESTS,
    loading::TESTS,
];

/// Which tests to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Suite {
    /// One test for each kind of operation.
    Quick,
    /// Every test.
    Full,
}

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// The claim.
    pub name: &'static str,
    /// The smallest suite it belongs to.
    pub suite: Suite,
    /// It is about the module itself: no control run.
    pub needs_module: bool,
    /// It makes a parked chunk's slot be taken on purpose.
    pub may_merge: bool,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Plain(fn(&Ctx) -> Outcome<String>),
    Held {
        op: Op,
        hook: Hook,
        all: bool,
        shape: Shape,
    },
    Racing {
        op: Op,
    },
}

impl Test {
    const fn with(name: &'static str, body: Body) -> Self {
        Self {
            name,
            suite: Suite::Full,
            needs_module: false,
            may_merge: false,
            body,
        }
    }

    /// A test of its own making.
    const fn new(name: &'static str, run: fn(&Ctx) -> Outcome<String>) -> Self {
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

    /// Like [`Test::held_some`], with mappings that cover their chunks in part.
    const fn partial(name: &'static str, hook: Hook, op: Op) -> Self {
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

    /// The parent does `op` while the child copies on another processor, several times.
    const fn racing(name: &'static str, op: Op) -> Self {
        Self::with(name, Body::Racing { op })
    }

    const fn quick(mut self) -> Self {
        self.suite = Suite::Quick;
        self
    }

    const fn module(mut self) -> Self {
        self.needs_module = true;
        self
    }

    const fn merges(mut self) -> Self {
        self.may_merge = true;
        self
    }

    /// Runs it in this process.
    pub fn run(&self, ctx: &Ctx) -> Outcome<String> {
        match self.body {
            Body::Plain(run) => run(ctx),
            Body::Held {
                op,
                hook,
                all,
                shape,
            } => common::held(ctx, op, hook, all, shape),
            Body::Racing { op } => common::racing(ctx, op),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_file_name() {
        let mut names: Vec<&str> = TESTS
            .iter()
            .flat_map(|g| g.iter())
            .map(|t| t.name)
            .collect();
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
    fn the_quick_suite_is_part_of_the_full_one() {
        let quick = TESTS
            .iter()
            .flat_map(|g| g.iter())
            .filter(|t| t.suite == Suite::Quick)
            .count();
        assert!(quick > 20);
    }
}
