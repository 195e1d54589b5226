// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread armed several times: for a fork, and for forks inside it. Each ARM is for the fork it was made for.

use super::device::{
    arm, armed_then, forked, forking_shell, is_busy, no_session, open, plain_fork, raw_ioctl,
    raw_open, report,
};
use super::Test;
use crate::board::Board;
use crate::claim;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::Arena;
use crate::session::Session;
use crate::sys::{self, cvt, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::{self as abi, Arm, Device, Hook, Outcome as Fate};
use std::fs;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

pub const TESTS: &[Test] = &[
    Test::new("nested_forks_consume_the_newest_arm_each", each)
        .module()
        .quick(),
    Test::new("closing_the_newest_arm_leaves_the_older_one", close_newest).module(),
    Test::new("arms_of_a_thread_are_a_stack_whichever_is_closed", stack).module(),
    Test::new(
        "arms_stay_when_others_close_their_copies_of_the_descriptors",
        copies,
    )
    .module(),
    Test::new("arms_of_a_thread_that_ends_harm_nobody", thread_ends).module(),
    Test::new("arms_do_not_outlive_an_exec", execs).module(),
    Test::new("new_program_can_arm_above_the_arms_of_the_old_one", above).module(),
    Test::new("fork_in_an_atfork_handler_has_an_arm_of_its_own", atfork)
        .module()
        .quick(),
];

/// The descriptor's fork was asynchronous and made this child.
fn expect_child(device: &Device, pid: i32, who: &str) -> TestResult {
    let r = report(device)?;
    claim!(
        r.outcome() == Fate::Async && r.child_pid == pid && r.parent_pid == sys::pid(),
        "{who}: outcome {}, child {} of {}, want child {pid} of {}",
        r.outcome(),
        r.child_pid,
        r.parent_pid,
        sys::pid()
    );
    Ok(())
}

fn expect_none(device: &Device, who: &str) -> TestResult {
    let r = report(device)?;
    claim!(
        r.outcome() == Fate::None,
        "{who} has a report already, of child {}",
        r.child_pid
    );
    Ok(())
}

fn each(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let (outer, inner) = (open()?, open()?);
    arm(&outer)?;
    arm(&inner)?;
    for (device, who) in [(&outer, "outer"), (&inner, "inner")] {
        claim!(is_busy(device.arm(&Arm::default())), "{who}: armed twice");
    }
    let first = forked(&arena)?;
    expect_child(&inner, first, "inner")?;
    expect_none(&outer, "outer")?;
    let second = forked(&arena)?;
    expect_child(&outer, second, "outer")?;
    expect_child(&inner, first, "inner, later")?;
    no_session(ctx, || plain_fork(&arena))?;
    Ok(format!("children {first} and {second}"))
}

fn close_newest(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let outer = open()?;
    arm(&outer)?;
    for _ in 0..3 {
        let inner = open()?;
        arm(&inner)?;
    }
    let pid = forked(&arena)?;
    expect_child(&outer, pid, "outer")?;
    no_session(ctx, || plain_fork(&arena))?;
    Ok(format!("child {pid}"))
}

/// Random ARMs, closes and forks, against a vector.
fn stack(ctx: &Ctx) -> TestResult<String> {
    const STEPS: usize = 150;
    /// ARMs that are there in any case.
    const DEEP: usize = 6;
    let mut rng = ctx.rng();
    let arena = Arena::new(&mut rng, 2)?;
    // Open, and not armed: to be armed again.
    let mut idle: Vec<Device> = Vec::new();
    let mut armed: Vec<Device> = Vec::new();
    let (mut forks, mut deepest) = (0, 0);
    for step in 0..STEPS {
        match if step < DEEP { 0 } else { rng.below(6) } {
            0..=2 => {
                let device = match idle.pop() {
                    Some(device) => device,
                    None => open()?,
                };
                arm(&device)?;
                armed.push(device);
                deepest = deepest.max(armed.len());
            }
            3 if !armed.is_empty() => drop(armed.remove(rng.below(armed.len()))),
            _ => match armed.pop() {
                Some(newest) => {
                    let pid = forked(&arena)?;
                    expect_child(&newest, pid, &format!("step {step}"))?;
                    idle.push(newest);
                    forks += 1;
                }
                None => no_session(ctx, || plain_fork(&arena))?,
            },
        }
    }
    while let Some(newest) = armed.pop() {
        let pid = forked(&arena)?;
        expect_child(&newest, pid, "the rest")?;
    }
    no_session(ctx, || plain_fork(&arena))?;
    Ok(format!("{forks} forks, up to {deepest} ARMs"))
}

fn copies(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let files = [raw_open()?, raw_open()?];
    let all = Arm::default();
    for file in &files {
        raw_ioctl(file, abi::IOC_ARM, &raw const all as usize)?;
    }
    // Another thread closes copies of both, and so does a child, in exec.
    let copies = [files[0].try_clone()?, files[1].try_clone()?];
    std::thread::scope(|s| s.spawn(|| drop(copies)).join())
        .map_err(|_| Verdict::Broken("the thread failed".into()))?;
    let status = Command::new("/bin/true").status()?;
    claim!(status.success(), "a spawned program failed");
    // Neither child inherits an ARM.
    for round in 0..2 {
        let before = ctx.stats()?.r#async;
        let board = Board::new()?;
        // SAFETY: the child runs board.run() only and never returns.
        let pid = cvt(unsafe { libc::fork() })?;
        if pid == 0 {
            board.run("child", || {
                plain_fork(&arena)?;
                drop(files);
                plain_fork(&arena)
            });
        }
        board.collect(&["child"])?;
        claim!(sys::wait(pid)? == Exit::Code(0), "the child failed");
        let forks = ctx.stats()?.r#async - before;
        claim!(forks == 1, "round {round}: {forks} asynchronous forks");
    }
    no_session(ctx, || plain_fork(&arena))?;
    Ok("two ARMs, two forks".into())
}

fn thread_ends(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let mut left = Vec::new();
    for _ in 0..3 {
        let thread = std::thread::spawn(|| -> TestResult<Vec<Device>> {
            let devices = [open()?, open()?, open()?];
            devices.iter().try_for_each(arm)?;
            Ok(devices.into())
        });
        left.extend(crew::verdict(thread.join())?);
        no_session(ctx, || plain_fork(&arena))?;
    }
    // Those of the first thread from the oldest on, then of the second from the newest on, then of the third.
    for n in [0, 0, 0, 2, 1, 0, 1, 1, 0] {
        drop(left.remove(n));
    }
    ctx.fork().start(|| arena.verify())?.finish()?.whole(4)?;
    Ok("3 threads, 3 ARMs each".into())
}

fn execs(ctx: &Ctx) -> TestResult<String> {
    no_session(ctx, || armed_then(ctx, 2, true, &mut forking_shell()))?;
    Ok("two ARMs".into())
}

fn above(ctx: &Ctx) -> TestResult<String> {
    const FORKS: u64 = 3;
    let library = ctx.library()?;
    let said = ctx.scratch.join("stderr");
    let mut forker = Command::new(std::env::current_exe()?);
    forker
        .args(["forker", "--mib", "16", "--forks", &FORKS.to_string()])
        .args(["--seed", &ctx.seed.to_string()])
        .env("LD_PRELOAD", library)
        .env("ASYNCFORK_MIN_RSS", "8M")
        // Not to the guest's: a write there may pin memory.
        .stderr(fs::File::create(&said)?);
    let before = ctx.stats()?;
    armed_then(ctx, 2, true, &mut forker)?;
    let after = ctx.stats()?;
    let forks = (after.r#async - before.r#async, after.stock - before.stock);
    claim!(
        forks == (FORKS, 0),
        "{} async and {} stock forks, want {FORKS} async: {}",
        forks.0,
        forks.1,
        fs::read_to_string(&said)?
    );
    Ok(format!("{FORKS} async forks"))
}

/// What the prepare handler needs, and what became of its fork.
struct Inner<'a> {
    ctx: &'a Ctx,
    arena: &'a Arena,
    session: Option<TestResult<Session>>,
}

/// For the handler's next run; it forks once, as its own fork calls it, too.
static INNER: AtomicPtr<Inner<'_>> = AtomicPtr::new(ptr::null_mut());

unsafe extern "C" fn fork_inside_fork() {
    let inner = INNER.swap(ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: null, or on the stack of the thread that forks, which does not use it meanwhile.
    if let Some(inner) = unsafe { inner.as_mut() } {
        let arena = inner.arena;
        inner.session = Some(inner.ctx.fork().start(|| arena.verify()));
    }
}

fn atfork(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    // SAFETY: the handler does nothing until it is told to.
    let error = unsafe { libc::pthread_atfork(Some(fork_inside_fork), None, None) };
    claim!(error == 0, "pthread_atfork gives {error}");
    let mut last = String::new();
    for round in 0..3 {
        let hold = Hold::new()?;
        let mut inner = Inner {
            ctx,
            arena: &arena,
            session: None,
        };
        INNER.store((&raw mut inner).cast(), Ordering::SeqCst);
        // Arms, then calls fork().
        let outer = ctx.fork().start(|| arena.verify()).at("outer")?;
        let Some(session) = inner.session else {
            return Err(Verdict::Broken("the handler did not run".into()));
        };
        let inner = session.at("inner")?;
        for (session, who) in [(&inner, "inner"), (&outer, "outer")] {
            session.expect_async().map_err(|v| v.at(who))?;
            let pid = session.report()?.map(|r| r.child_pid);
            claim!(
                pid == Some(session.pid),
                "{who}: child {pid:?}, want {}",
                session.pid
            );
        }
        inner.expect_child_held()?;
        arena.fill(round + 1);
        drop(hold);
        // The outer fork met what the inner one had parked.
        let ended = inner.finish().map_err(|v| v.at("inner child"))?;
        ended
            .whole(arena.chunks())?
            .pulled(Hook::Fork, arena.chunks())?;
        let ended = outer.finish().map_err(|v| v.at("outer child"))?;
        ended.whole(arena.chunks())?;
        arena.verify()?;
        last = ended.detail();
    }
    Ok(last)
}
