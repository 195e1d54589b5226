// SPDX-License-Identifier: MIT OR Apache-2.0
//! The process ids in a report are those of the reader's pid namespace.

use super::common::Gate;
use super::device::{arm, forked, open, report};
use super::Test;
use crate::board::Board;
use crate::claim;
use crate::ctx::Ctx;
use crate::mem::Arena;
use crate::module::device_error;
use crate::procfs::Setting;
use crate::sys::{self, cvt, is_errno, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::{Arm, Device, Outcome as Fate, Reason};
use std::fs;
use std::io;

pub const TESTS: &[Test] = &[
    Test::new(
        "report_names_processes_as_the_readers_pid_namespace_does",
        readers,
    )
    .module()
    .quick(),
    Test::new(
        "report_of_a_child_in_a_new_pid_namespace_names_it_as_fork_did",
        new_namespace,
    )
    .module(),
    Test::new(
        "report_of_a_stock_fork_names_the_parent_as_the_readers_pid_namespace_does",
        stock,
    )
    .module(),
    Test::new("reports_keep_no_pid_namespace_for_ever", not_kept).module(),
];

/// The next child is the first process of a new namespace.
fn unshare() -> io::Result<()> {
    // SAFETY: no memory is involved.
    cvt(unsafe { libc::unshare(libc::CLONE_NEWPID) }).map(drop)
}

/// Runs `body` as the first process of a new namespace; to be called in a helper.
pub(super) fn in_new_namespace(ctx: &Ctx, body: impl FnOnce() -> TestResult) -> TestResult {
    unshare().at("unshare")?;
    let body = || {
        claim!(sys::pid() == 1, "in no new namespace: {}", sys::pid());
        body()
    };
    ctx.fork().unarmed().start(body)?.finish().map(drop)
}

/// The caller's number in the first namespace, which /proc is of.
pub(super) fn outer_pid() -> TestResult<i32> {
    let link = fs::read_link("/proc/self")?;
    let number = link.to_str().and_then(|l| l.parse().ok());
    number.ok_or_else(|| Verdict::Broken(format!("/proc/self leads to {}", link.display())))
}

/// Demands an asynchronous fork of `child` by `parent`.
fn expect_pids(device: &Device, parent: i32, child: i32, who: &str) -> TestResult {
    let r = report(device)?;
    claim!(
        r.outcome() == Fate::Async && (r.parent_pid, r.child_pid) == (parent, child),
        "{who} reads: outcome {}, child {} of {}; want child {child} of {parent}",
        r.outcome(),
        r.child_pid,
        r.parent_pid
    );
    Ok(())
}

fn readers(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let board = Board::new()?;
    let (parents, children, end) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let starter = ctx.helper(&board, "starter", || {
        in_new_namespace(ctx, || {
            let arena = Arena::new(&mut ctx.rng(), 8)?;
            parents.open(outer_pid()?)?;
            let board = Board::new()?;
            arm(&device)?;
            // SAFETY: the child runs board.run() only and never returns.
            let pid = cvt(unsafe { libc::fork() })?;
            if pid == 0 {
                board.run("child", || {
                    children.open(outer_pid()?)?;
                    expect_pids(&device, 1, sys::pid(), "the child")?;
                    arena.verify()?;
                    end.pass().map(drop)?;
                    Ok(())
                });
            }
            expect_pids(&device, 1, pid, "the parent")?;
            board.collect(&["child"])?;
            claim!(sys::wait(pid)? == Exit::Code(0), "the child failed");
            expect_pids(&device, 1, pid, "the parent of a child that is gone")
        })
    })?;
    let (parent, child) = (parents.pass()?, children.pass()?);
    expect_pids(&device, parent, child, "somebody outside")?;
    end.open(0)?;
    sys::wait(starter)?;
    board.collect(&["starter"])?;
    expect_pids(&device, parent, child, "somebody outside, later")?;

    let board = Board::new()?;
    let stranger = ctx.helper(&board, "stranger", || {
        in_new_namespace(ctx, || expect_pids(&device, 0, 0, "a stranger"))
    })?;
    sys::wait(stranger)?;
    board.collect(&["stranger"])?;
    Ok(format!("outside {child} of {parent}"))
}

fn new_namespace(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let board = Board::new()?;
    let parent = ctx.helper(&board, "parent", || {
        let arena = Arena::new(&mut ctx.rng(), 8)?;
        unshare().at("unshare")?;
        arm(&device)?;
        let board = Board::new()?;
        // SAFETY: the child runs board.run() only and never returns.
        let pid = cvt(unsafe { libc::fork() })?;
        if pid == 0 {
            board.run("child", || {
                claim!(sys::pid() == 1, "in no new namespace: {}", sys::pid());
                expect_pids(&device, 0, 1, "the child")?;
                arena.verify()
            });
        }
        expect_pids(&device, sys::pid(), pid, "the parent")?;
        board.collect(&["child"])?;
        claim!(sys::wait(pid)? == Exit::Code(0), "the child failed");
        expect_pids(&device, sys::pid(), pid, "the parent, later")
    })?;
    sys::wait(parent)?;
    board.collect(&["parent"])?;
    let r = report(&device)?;
    claim!(
        r.parent_pid == parent && r.child_pid > 1,
        "somebody outside reads {} of {}, want a child of {parent}",
        r.child_pid,
        r.parent_pid
    );
    Ok(format!("outside {}, inside 1", r.child_pid))
}

fn stock(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let expect = |parent: i32, who: &str| -> TestResult {
        let r = report(&device)?;
        claim!(
            r.reason() == Reason::MinRss && (r.parent_pid, r.child_pid) == (parent, 0),
            "{who} reads: outcome {}, child {} of {}; want no child of {parent}",
            r.outcome(),
            r.child_pid,
            r.parent_pid
        );
        Ok(())
    };
    let board = Board::new()?;
    let parents = Gate::new()?;
    let starter = ctx.helper(&board, "starter", || {
        in_new_namespace(ctx, || {
            parents.open(outer_pid()?)?;
            let arena = Arena::new(&mut ctx.rng(), 8)?;
            // After a session, whose processes must not be left in the report.
            arm(&device)?;
            let pid = forked(&arena)?;
            expect_pids(&device, 1, pid, "the parent")?;
            let arm = Arm {
                min_rss: 1 << 40,
                ..Arm::default()
            };
            device.arm(&arm).map_err(device_error)?;
            forked(&arena)?;
            expect(1, "the parent of a stock fork")
        })
    })?;
    let parent = parents.pass()?;
    sys::wait(starter)?;
    board.collect(&["starter"])?;
    expect(parent, "somebody outside")?;
    Ok(format!("outside {parent}, inside 1"))
}

/// With few pid namespaces allowed, more can be made only if those before go. Not one: a test before may have left some.
fn not_kept(ctx: &Ctx) -> TestResult<String> {
    const ROUNDS: usize = 12;
    const FEW: usize = 4;
    let _few = Setting::new("/proc/sys/user/max_pid_namespaces", FEW)?;
    for round in 0..ROUNDS {
        let board = Board::new()?;
        let helper = ctx.helper(&board, "helper", || {
            let arena = Arena::new(&mut ctx.rng(), 4)?;
            let freed = sys::poll_until(|| match unshare() {
                result if is_errno(&result, libc::ENOSPC) => Ok(None),
                result => result.map(Some),
            })
            .at("unshare")?;
            claim!(freed.is_some(), "round {round}: those before are kept");
            // Its first process forks, asynchronously and, every other time, last in the ordinary way.
            let body = || {
                let device = open()?;
                arm(&device)?;
                let pid = forked(&arena)?;
                expect_pids(&device, 1, pid, "the parent")?;
                if round % 2 == 1 {
                    let arm = Arm {
                        min_rss: 1 << 40,
                        ..Arm::default()
                    };
                    device.arm(&arm).map_err(device_error)?;
                    forked(&arena)?;
                }
                Ok(())
            };
            ctx.fork().unarmed().start(body)?.finish().map(drop)
        })?;
        sys::wait(helper)?;
        board.collect(&["helper"])?;
    }
    Ok(format!("{ROUNDS} namespaces, one after the other"))
}
