// SPDX-License-Identifier: MIT OR Apache-2.0
//! /dev/asyncfork: its calls, its errors, who is armed and who is not.

use super::common::{while_plugged, Gate};
use super::Test;
use crate::board::Board;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold::{Hold, Plug};
use crate::mem::{Arena, Shape};
use crate::module::{self, device_error};
use crate::session;
use crate::sys::{self, cvt, is_errno, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{self as abi, Arm, Device, Histogram, Outcome as Fate, Reason, Report, State};
use std::fs::{self, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

const PATH: &str = "/dev/asyncfork";

/// Forks that the module remembers: AF_RECENT.
const RING: usize = 256;

pub const TESTS: &[Test] = &[
    Test::new("device_says_which_abi_it_speaks", version)
        .module()
        .quick(),
    Test::new(
        "device_is_a_character_device_for_owner_and_group_only",
        file_mode,
    )
    .module(),
    Test::new("unknown_ioctls_give_enotty", unknown_ioctls)
        .module()
        .quick(),
    Test::new("bad_arguments_give_einval_and_efault", bad_arguments).module(),
    Test::new(
        "what_a_longer_struct_has_beyond_the_modules_is_zero_or_refused",
        longer_structs,
    )
    .module()
    .quick(),
    Test::new("structs_without_their_size_are_refused", wrong_sizes).module(),
    Test::new("callers_of_abi_2_are_served", abi_2)
        .module()
        .quick(),
    Test::new("programs_of_32_bits_are_served", compat).module(),
    Test::new(
        "second_arm_of_a_descriptor_gives_ebusy_and_the_first_one_counts",
        double_arm,
    )
    .module(),
    Test::new("report_before_any_fork_says_none", early_report).module(),
    Test::new("closed_descriptor_disarms", closed)
        .module()
        .quick(),
    Test::new("arm_of_a_thread_that_ends_harms_nobody", thread_ends).module(),
    Test::new("arm_of_a_process_that_execs_harms_nobody", execs).module(),
    Test::new("arm_counts_for_its_own_thread_only", other_thread).module(),
    Test::new("threads_and_vfork_do_not_use_the_arm_up", not_used_up).module(),
    Test::new("one_arm_serves_one_fork", one_shot).module(),
    Test::new(
        "descriptor_passed_to_another_process_serves_that_process",
        passed_on,
    )
    .module(),
    Test::new(
        "child_may_ask_and_arm_through_the_inherited_descriptor",
        inherited,
    )
    .module(),
    Test::new(
        "switched_off_by_parameter_forks_are_stock_at_once",
        disabled,
    )
    .module()
    .quick(),
    Test::new("processes_below_min_rss_use_a_stock_fork", min_rss).module(),
    Test::new(
        "process_without_a_parkable_chunk_uses_a_stock_fork",
        nothing,
    )
    .module(),
    Test::new("sessions_beyond_the_limit_are_stock", limit).module(),
    Test::new("recent_lists_ended_sessions_newest_first", recent).module(),
    Test::new(
        "recent_lists_stock_forks_with_reason_and_cgroup",
        recent_stock,
    )
    .module()
    .quick(),
    Test::new("statistics_are_the_sum_of_the_reports", totals)
        .module()
        .quick(),
    Test::new("times_in_the_report_are_of_the_monotonic_clock", times).module(),
    Test::new("report_says_on_how_many_cpus_the_parent_may_run", cpus).module(),
    Test::new(
        "report_of_a_session_that_just_ends_has_a_true_copy_ns",
        just_ends,
    )
    .module(),
];

/// Opens the device.
pub fn open() -> TestResult<Device> {
    module::open()
}

/// Arms, without conditions.
pub fn arm(device: &Device) -> TestResult {
    Ok(device.arm(&Arm::default()).map_err(device_error)?)
}

/// The descriptor's report.
pub fn report(device: &Device) -> TestResult<Report> {
    Ok(device.report().map_err(device_error)?)
}

/// A stock fork() call of this thread, whatever is armed. The child verifies the arena.
pub fn plain_fork(arena: &Arena) -> TestResult {
    forked(arena).map(drop)
}

/// Like [`plain_fork`]; gives the number that the child had.
pub fn forked(arena: &Arena) -> TestResult<i32> {
    let board = Board::new()?;
    // SAFETY: the child runs board.run() only and never returns.
    let pid = cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        board.run("child", || arena.verify());
    }
    board.collect(&["child"])?;
    claim!(sys::wait(pid)? == Exit::Code(0), "the child failed");
    arena.verify()?;
    Ok(pid)
}

fn version(_: &Ctx) -> TestResult<String> {
    let v = open()?.version().map_err(device_error)?;
    claim!(
        v.abi == abi::ABI_VERSION,
        "ABI {}, want {}",
        v.abi,
        abi::ABI_VERSION
    );
    claim!(
        v.features == 0,
        "features {:#x}: none are defined",
        v.features
    );
    claim!(
        v.oldest == abi::ABI_OLDEST && v.reserved == 0 && v.is_usable(),
        "callers from ABI {} on are served, want {}",
        v.oldest,
        abi::ABI_OLDEST
    );
    Ok(format!("ABI {}, up to {} helpers", v.abi, v.max_helpers))
}

fn file_mode(ctx: &Ctx) -> TestResult<String> {
    let meta = fs::metadata(PATH).at(PATH)?;
    claim!(meta.file_type().is_char_device(), "not a character device");
    claim!(
        meta.mode() & 0o7777 == 0o660,
        "mode {:o}, want 660",
        meta.mode() & 0o7777
    );
    let board = Board::new()?;
    let stranger = ctx.helper(&board, "stranger", || {
        become_nobody()?;
        let error = Device::open().err();
        claim!(
            error == Some(abi::Error::Open(abi::Errno::ACCESS)),
            "nobody's open gives {error:?}, want EACCES"
        );
        Ok(())
    })?;
    sys::wait(stranger)?;
    board.collect(&["stranger"])?;
    Ok("660".into())
}

/// Gives all privileges up.
pub fn become_nobody() -> io::Result<()> {
    const NOBODY: u32 = 65534;
    // SAFETY: changes the calling process's identity only.
    unsafe {
        cvt(libc::setgroups(0, std::ptr::null()))?;
        cvt(libc::setgid(NOBODY))?;
        cvt(libc::setuid(NOBODY)).map(drop)
    }
}

pub fn raw_open() -> io::Result<fs::File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(PATH)
}

pub fn raw_ioctl(file: &fs::File, number: u32, arg: usize) -> io::Result<i32> {
    // SAFETY: callers pass addresses of large enough buffers, or none that can be written.
    cvt(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(number), arg) })
}

/// All that there are.
const KNOWN: [u32; 8] = [
    abi::IOC_VERSION,
    abi::IOC_ARM,
    abi::IOC_REPORT,
    abi::IOC_STATS,
    abi::IOC_RECENT,
    abi::IOC_ENROLL,
    abi::IOC_UNENROLL,
    abi::IOC_ENROLLED,
];

fn unknown_ioctls(_: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    let mut buffer = vec![0u64; 2048];
    let known = KNOWN;
    // An unused number, the known numbers with another size, another direction and another type.
    let mut numbers = vec![0x0000_af7f, 0x8008_afff, 0, u32::MAX, 0x5401];
    for n in known {
        numbers.extend([n ^ 0x0008_0000, n ^ 0xc000_0000, n ^ 0x0000_0100, n + 5]);
    }
    numbers.retain(|n| !known.contains(n));
    for n in &numbers {
        let result = raw_ioctl(&file, *n, buffer.as_mut_ptr() as usize);
        claim!(
            is_errno(&result, libc::ENOTTY),
            "ioctl {n:#x} gives {result:?}, want ENOTTY"
        );
    }
    claim!(
        buffer.iter().all(|&w| w == 0),
        "an unknown ioctl wrote to its argument"
    );
    Ok(format!("{} numbers", numbers.len()))
}

fn bad_arguments(_: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    let max = open()?.version().map_err(device_error)?.max_helpers;
    let try_arm = |arm: Arm| raw_ioctl(&file, abi::IOC_ARM, &raw const arm as usize);
    for flags in [1, 0x8000_0000, u32::MAX] {
        let result = try_arm(Arm {
            flags,
            ..Arm::default()
        });
        claim!(
            is_errno(&result, libc::EINVAL),
            "flags {flags:#x} give {result:?}, want EINVAL"
        );
    }
    for helpers in [max + 1, 1000, u32::MAX] {
        let result = try_arm(Arm {
            helpers,
            ..Arm::default()
        });
        claim!(
            is_errno(&result, libc::EINVAL),
            "{helpers} helpers give {result:?}, want EINVAL"
        );
    }
    for n in KNOWN {
        for addr in [0, 0x1000, usize::MAX - 4095] {
            let result = raw_ioctl(&file, n, addr);
            claim!(
                is_errno(&result, libc::EFAULT),
                "ioctl {n:#x} at {addr:#x} gives {result:?}, want EFAULT"
            );
        }
    }
    // None of these armed.
    let device = open()?;
    arm(&device)?;
    Ok(format!("up to {max} helpers"))
}

/// The arming failed because the descriptor is armed.
pub fn is_busy(result: Result<(), abi::Error>) -> bool {
    matches!(result, Err(abi::Error::Ioctl(_, abi::Errno::BUSY)))
}

fn double_arm(ctx: &Ctx) -> TestResult<String> {
    // Were this one to count, the fork would be stock.
    let never = Arm {
        min_rss: 1 << 40,
        ..Arm::default()
    };
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = open()?;
    for round in 0..2 {
        arm(&device)?;
        claim!(
            is_busy(device.arm(&never)),
            "round {round}: the descriptor could be armed twice"
        );
        let elsewhere = std::thread::scope(|s| {
            s.spawn(|| is_busy(device.arm(&never)))
                .join()
                .unwrap_or(false)
        });
        claim!(
            elsewhere,
            "round {round}: another thread could arm the armed descriptor"
        );
        let pid = forked(&arena)?;
        let r = report(&device)?;
        claim!(
            r.outcome() == Fate::Async && r.child_pid == pid,
            "round {round}: outcome {}, child {} instead of {pid}",
            r.outcome(),
            r.child_pid
        );
    }
    Ok("EBUSY four times".into())
}

fn early_report(_: &Ctx) -> TestResult<String> {
    let device = open()?;
    claim!(
        report(&device)? == Report::default(),
        "a fresh descriptor reports something"
    );
    arm(&device)?;
    let r = report(&device)?;
    claim!(
        r.outcome() == Fate::None && r.state() == State::None,
        "armed: outcome {}",
        r.outcome()
    );
    Ok("none".into())
}

/// Runs `body` and demands that it changed neither the number of async nor that of stock forks.
pub fn no_session(ctx: &Ctx, body: impl FnOnce() -> TestResult) -> TestResult {
    let before = ctx.stats()?;
    body()?;
    let after = ctx.stats()?;
    let forks = |s: &abi::Stats| (s.r#async, s.stock, s.failed);
    claim!(
        forks(&before) == forks(&after),
        "an unarmed fork was taken for an armed one: {:?}",
        forks(&after)
    );
    Ok(())
}

fn closed(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    for _ in 0..3 {
        let device = open()?;
        arm(&device)?;
        drop(device);
        no_session(ctx, || plain_fork(&arena))?;
    }
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(4)?;
    Ok(ended.detail())
}

fn thread_ends(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let mut left = Vec::new();
    for _ in 0..5 {
        let thread = std::thread::spawn(|| -> TestResult<Device> {
            let device = open()?;
            arm(&device)?;
            Ok(device)
        });
        left.push(crew::verdict(thread.join())?);
        no_session(ctx, || plain_fork(&arena))?;
    }
    drop(left);
    ctx.fork().start(|| arena.verify())?.finish()?.whole(4)?;
    Ok("5 threads".into())
}

/// Starts a process that is armed `times` times, and then becomes another program, in which the descriptors stay open or not.
pub fn armed_then(ctx: &Ctx, times: usize, keep: bool, program: &mut Command) -> TestResult {
    let board = Board::new()?;
    let pid = ctx.helper(&board, "execs", || {
        let all = Arm::default();
        for _ in 0..times {
            let file = raw_open()?;
            raw_ioctl(&file, abi::IOC_ARM, &raw const all as usize)?;
            if keep {
                // SAFETY: plain numbers; without FD_CLOEXEC from now on.
                cvt(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) })?;
            }
            std::mem::forget(file);
        }
        Err(program.exec()).at("exec")
    })?;
    claim!(sys::wait(pid)? == Exit::Code(0), "the new program failed");
    board.collect(&[])
}

/// A program that forks several times; what is armed takes them for armed ones.
pub fn forking_shell() -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "(/bin/true); (/bin/true); (/bin/true); /bin/true"]);
    shell
}

fn execs(ctx: &Ctx) -> TestResult<String> {
    // With close-on-exec, and with a descriptor that stays open in the new program.
    for keep in [false, true] {
        no_session(ctx, || armed_then(ctx, 1, keep, &mut forking_shell()))?;
    }
    Ok("twice".into())
}

fn other_thread(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = open()?;
    arm(&device)?;
    std::thread::scope(|s| {
        let thread = s.spawn(|| no_session(ctx, || plain_fork(&arena)));
        crew::verdict(thread.join())
    })?;
    claim!(
        report(&device)?.outcome() == Fate::None,
        "another thread's fork used the arm up"
    );
    plain_fork(&arena)?;
    claim!(
        report(&device)?.outcome() == Fate::Async,
        "the armed thread's fork was stock"
    );
    Ok("async".into())
}

fn not_used_up(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = open()?;
    arm(&device)?;
    let thread = std::thread::spawn(|| 1);
    claim!(thread.join().is_ok_and(|n| n == 1), "the thread failed");
    let status = Command::new("/bin/true").status()?;
    claim!(status.success(), "a spawned program failed");
    claim!(
        report(&device)?.outcome() == Fate::None,
        "a thread or a vfork used the arm up"
    );
    plain_fork(&arena)?;
    claim!(
        report(&device)?.outcome() == Fate::Async,
        "the fork was stock"
    );
    Ok("async".into())
}

fn one_shot(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = open()?;
    for round in 0..3 {
        arm(&device)?;
        plain_fork(&arena)?;
        let first = report(&device)?;
        claim!(
            first.outcome() == Fate::Async,
            "round {round}: outcome {}",
            first.outcome()
        );
        no_session(ctx, || plain_fork(&arena))?;
        claim!(
            report(&device)?.id == first.id,
            "round {round}: an unarmed fork changed the report"
        );
    }
    Ok("3 rounds".into())
}

fn passed_on(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let board = Board::new()?;
    let user = ctx.helper(&board, "user", || {
        become_nobody()?;
        let arena = Arena::new(&mut ctx.rng(), 8)?;
        arm(&device)?;
        plain_fork(&arena)
    })?;
    sys::wait(user)?;
    board.collect(&["user"])?;
    let r = report(&device)?;
    claim!(
        r.outcome() == Fate::Async && r.parent_pid == user,
        "outcome {} of process {}",
        r.outcome(),
        r.parent_pid
    );
    Ok(crate::session::summary(&r))
}

fn inherited(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = open()?;
    arm(&device)?;
    let board = Board::new()?;
    // SAFETY: the child runs board.run() only and never returns.
    let pid = cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        board.run("child", || {
            let r = report(&device)?;
            claim!(
                r.outcome() == Fate::Async && r.child_pid == sys::pid(),
                "the child reads {r:?}"
            );
            arena.verify()?;
            arm(&device)?;
            plain_fork(&arena)?;
            let r = report(&device)?;
            claim!(
                r.outcome() == Fate::Async && r.parent_pid == sys::pid(),
                "the child's own fork reads {r:?}"
            );
            Ok(())
        });
    }
    board.collect(&["child"])?;
    sys::wait(pid)?;
    let r = report(&device)?;
    claim!(
        r.parent_pid == pid,
        "the shared descriptor reports process {}, want the last user {pid}",
        r.parent_pid
    );
    arena.verify()?;
    Ok("shared".into())
}

fn disabled(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let before = ctx.stats()?.stock_by(Reason::Disabled);
    for on in [false, true, false, true] {
        ctx.module.set("enabled", u8::from(on))?;
        claim!(
            ctx.stats()?.enabled == u64::from(on),
            "the statistics do not show enabled={on}"
        );
        let ended = ctx.fork().start(|| arena.verify())?.finish()?;
        if on {
            ended.whole(4)?;
        } else {
            ended.stock(Reason::Disabled)?;
        }
    }
    let counted = ctx.stats()?.stock_by(Reason::Disabled) - before;
    claim!(counted == 2, "{counted} forks counted as disabled, want 2");

    // A session that runs already is finished, not broken.
    let mut arena = arena;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    ctx.module.set("enabled", 0)?;
    arena.fill(1);
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    ended.whole(4)?;
    Ok(ended.detail())
}

fn min_rss(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 16)?;
    ctx.fork()
        .min_rss(1 << 40)
        .start(|| arena.verify())?
        .finish()?
        .stock(Reason::MinRss)?;
    ctx.fork()
        .min_rss(8 << 20)
        .start(|| arena.verify())?
        .finish()?
        .whole(8)?;
    Ok("16 MiB lie between".into())
}

fn nothing(ctx: &Ctx) -> TestResult<String> {
    ctx.fork()
        .start(|| Ok(()))?
        .finish()?
        .stock(Reason::Nothing)?;
    Ok("stock".into())
}

fn limit(ctx: &Ctx) -> TestResult<String> {
    let board = Board::new()?;
    let (parked, go) = (Gate::new()?, Gate::new()?);
    let max = ctx.module.get("max_sessions")?;
    let other = ctx.helper(&board, "other", || {
        let plug = Plug::new()?;
        let arena = Arena::new(&mut ctx.rng(), 8)?;
        let hold = plug.hold()?;
        let session = ctx.fork().start(|| arena.verify())?;
        session.expect_running()?;
        hold.step_aside()?;
        parked.open(0)?;
        go.pass()?;
        session.expect_child_held()?;
        drop(hold);
        session.finish()?.whole(4).map(drop)
    })?;
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    parked.pass()?;
    ctx.module.set("max_sessions", 1)?;
    let result = ctx
        .fork()
        .start(|| arena.verify())?
        .finish()
        .and_then(|e| e.stock(Reason::Limit).map(drop));
    ctx.module.set("max_sessions", max)?;
    go.open(0)?;
    sys::wait(other)?;
    board.collect(&["other"])?;
    result?;
    ctx.fork().start(|| arena.verify())?.finish()?.whole(4)?;
    Ok("limit 1".into())
}

fn recent(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let mut children = Vec::new();
    let device = open()?;
    for _ in 0..RING + 3 {
        let session = ctx.fork().start(|| Ok(()))?;
        children.push(session.pid);
        session.finish()?.whole(4)?;
    }
    arena.verify()?;
    let entries = module::recent(&device)?;
    let name = fs::read_to_string("/proc/self/comm")?;
    claim!(
        entries.len() == RING,
        "{} entries, want {RING}",
        entries.len()
    );
    for (entry, pid) in entries.iter().zip(children.iter().rev()) {
        claim!(
            entry.child_pid == *pid && entry.parent_pid == sys::pid(),
            "{entry:?} where child {pid} should be"
        );
        claim!(
            entry.state() == State::Done && entry.outcome() == Fate::Async,
            "{entry:?} is not ended"
        );
        claim!(
            entry.comm() == name.trim_end().as_bytes(),
            "the parent's name is {:?}",
            entry.comm()
        );
    }
    claim!(
        entries.is_sorted_by(|a, b| a.id > b.id),
        "session numbers do not fall"
    );
    Ok(format!("{} entries", entries.len()))
}

/// A round for each way in which a chunk may go: to the child, the parent, a helper, somebody else, or back.
fn totals(ctx: &Ctx) -> TestResult<String> {
    const KILLED: u32 = 4;
    const ASIDE: u32 = 6;
    let mut rng = ctx.rng();
    let plug = Plug::new()?;
    let (board, gate) = (Board::new()?, Gate::new()?);
    let mut arena = Arena::planned(&mut rng, Shape::Whole(8))?;
    let (parent, there) = (sys::pid(), arena.span().addr() as u64);
    let outsider = ctx.helper(&board, "outsider", || {
        gate.pass()?;
        let memory = fs::File::open(format!("/proc/{parent}/mem"))?;
        Ok(memory.read_exact_at(&mut [0], there)?)
    })?;
    arena.map()?;
    arena.fill(0);
    let before = ctx.stats()?;
    let mut reports = Vec::new();
    for round in 0..ASIDE {
        let hold = if round % 2 == 0 {
            Some(Hold::new()?)
        } else {
            None
        };
        let session = ctx.fork().start(|| arena.verify())?;
        let range = rng.range(arena.pages(), 900);
        arena.write_range(range, round + 1);
        if round == KILLED {
            sys::kill(session.pid, libc::SIGKILL)?;
        }
        drop(hold);
        let ended = session.finish_killed()?;
        ended.parked(4)?;
        reports.extend(ended.report().copied());
    }
    let ended = while_plugged(ctx, &plug, &mut arena, |_| {
        gate.open(0)?;
        sys::wait(outsider)?;
        Ok(())
    })?;
    board.collect(&["outsider"])?;
    reports.extend(ended.whole(4)?.report().copied());
    let hold = plug.hold()?;
    let session = ctx.fork().helpers(1).start(|| arena.verify())?;
    session.expect_running()?;
    hold.step_aside()?;
    let helped = sys::poll_until(|| -> TestResult<Option<()>> {
        let by_helper = session.report()?.map_or(0, |r| r.chunks.by_helper);
        Ok((by_helper > 0).then_some(()))
    })?;
    require!(helped.is_some(), "no helper pulls anything");
    drop(hold);
    reports.extend(session.finish()?.whole(4)?.report().copied());
    arena.verify()?;
    let after = ctx.stats()?;
    let sum = |field: fn(&Report) -> u64| reports.iter().map(field).sum::<u64>();
    let forks = reports.len() as u64;
    let rows = [
        ("armed", after.armed - before.armed, forks),
        ("async", after.r#async - before.r#async, forks),
        ("running", after.running, 0),
        (
            "aborted",
            after.aborted - before.aborted,
            sum(|r| u64::from(r.state() == State::Aborted)),
        ),
        (
            "parked",
            after.chunks.parked - before.chunks.parked,
            sum(|r| r.chunks.parked),
        ),
        (
            "eager",
            after.chunks.eager - before.chunks.eager,
            sum(|r| r.chunks.eager),
        ),
        (
            "reattached",
            after.chunks.reattached - before.chunks.reattached,
            sum(|r| r.chunks.reattached),
        ),
        (
            "mixed",
            after.chunks.mixed - before.chunks.mixed,
            sum(|r| r.chunks.mixed),
        ),
        (
            "by_child",
            after.chunks.by_child - before.chunks.by_child,
            sum(|r| r.chunks.by_child),
        ),
        (
            "by_parent",
            after.chunks.by_parent - before.chunks.by_parent,
            sum(|r| r.chunks.by_parent),
        ),
        (
            "by_helper",
            after.chunks.by_helper - before.chunks.by_helper,
            sum(|r| r.chunks.by_helper),
        ),
        (
            "by_other",
            after.chunks.by_other - before.chunks.by_other,
            sum(|r| r.chunks.by_other),
        ),
        (
            "park_ns",
            after.park_ns - before.park_ns,
            sum(|r| r.park_ns),
        ),
        (
            "parent_pull_ns",
            after.parent_pull_ns - before.parent_pull_ns,
            sum(|r| r.parent_pull_ns),
        ),
        (
            "copy_ns",
            after.copy_ns - before.copy_ns,
            sum(|r| r.copy_ns),
        ),
    ];
    for (name, total, want) in rows {
        claim!(
            total == want,
            "{name}: the total grew by {total}, the reports say {want}"
        );
        require!(
            want > 0 || ["running", "eager", "mixed"].contains(&name),
            "{name}: nothing to add up"
        );
    }
    for (i, (was, is)) in before.pulls.iter().zip(after.pulls).enumerate() {
        let want: u64 = reports.iter().map(|r| r.pulls[i]).sum();
        claim!(
            is - was == want,
            "pulls of hook {i} grew by {}, the reports say {want}",
            is - was
        );
    }
    expect_growth(
        "park",
        &before.park,
        &after.park,
        &mut reports.iter().map(|r| r.park_ns),
    )?;
    expect_growth(
        "copy",
        &before.copy,
        &after.copy,
        &mut reports.iter().map(|r| r.copy_ns),
    )?;
    // Who waited for a chunk is counted as well.
    let pulls = after.parent_pull.count() - before.parent_pull.count();
    claim!(
        pulls >= sum(|r| r.chunks.by_parent),
        "{pulls} pulls by the parent in the histogram, more in the reports"
    );
    Ok(format!("{} chunks parked", sum(|r| r.chunks.parked)))
}

/// The histogram has grown by these durations, and by no others.
fn expect_growth(
    name: &str,
    before: &Histogram,
    after: &Histogram,
    durations: &mut dyn Iterator<Item = u64>,
) -> TestResult {
    let mut want = *before;
    for ns in durations {
        let bucket = ns.checked_ilog2().unwrap_or(0) as usize;
        want.bucket[bucket.min(abi::BUCKETS - 1)] += 1;
    }
    claim!(*after == want, "{name}: {after:?}, want {want:?}");
    Ok(())
}

fn recent_stock(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = open()?;
    ctx.module.set("enabled", "N")?;
    arm(&device)?;
    plain_fork(&arena)?;
    ctx.module.set("enabled", "Y")?;
    let entry = module::recent(&device)?[0];
    claim!(
        entry.outcome() == Fate::Stock && entry.reason() == Reason::Disabled && entry.id == 0,
        "the newest fork is {entry:?}"
    );
    claim!(
        entry.parent_pid == sys::pid() && entry.start_ns > 0 && entry.start_ns <= sys::now_ns(),
        "of process {} at {} ns",
        entry.parent_pid,
        entry.start_ns
    );
    arm(&device)?;
    plain_fork(&arena)?;
    let asynchronous = sys::poll_until(|| -> TestResult<Option<Report>> {
        let newest = module::recent(&device)?[0];
        Ok((newest.outcome() == Fate::Async).then_some(newest))
    })?;
    let Some(asynchronous) = asynchronous else {
        return Err(Verdict::Failed("the session is not in the ring".into()));
    };
    // "0::/path": the default hierarchy.
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let path = groups.lines().find_map(|l| l.strip_prefix("0::"));
    require!(path.is_some(), "no default hierarchy: {groups}");
    let path = path.unwrap_or_default();
    let inode = fs::metadata(format!("/sys/fs/cgroup{path}"))?.ino();
    for (name, entry) in [("stock", entry), ("asynchronous", asynchronous)] {
        claim!(
            entry.cgroup_id == inode,
            "the {name} fork was in cgroup {}, the process is in {inode}",
            entry.cgroup_id
        );
    }
    Ok(format!("cgroup {inode}"))
}

/// Bytes of the structs in version 2, of those that have grown since.
const VERSION_2: usize = offset_of!(abi::Version, oldest);
const REPORT_2: usize = offset_of!(Report, seq);
const STATS_2: usize = offset_of!(abi::Stats, enrolled);
const RECENT_2: usize = offset_of!(abi::Recent, after_seq);

/// The sizes are those of version 2 as it was released.
const _: () = assert!(VERSION_2 == 24 && REPORT_2 == 440 && STATS_2 == 1656 && RECENT_2 == 24);

fn abi_2(ctx: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    let ask = |number: u32, size: usize| -> TestResult<Vec<u64>> {
        let mut words = argument(size);
        raw_ioctl(&file, number, words.as_mut_ptr() as usize)?;
        claim!(
            words[0] == size as u64 && words[size / 8..].iter().all(|&w| w == u64::MAX),
            "ioctl {number:#x} fills {} bytes of {size}, and behind them {:x?}",
            words[0],
            &words[size / 8..]
        );
        Ok(words)
    };
    let version = ask(abi::IOC_VERSION, VERSION_2)?;
    claim!(
        version[1] as u32 == 2,
        "a caller of version 2 is told {}",
        version[1] as u32
    );
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let arm = Arm::default();
    raw_ioctl(&file, abi::IOC_ARM, &raw const arm as usize)?;
    let child = forked(&arena)?;
    let fate = |report: &[u64]| (report[2] as u32, (report[4] >> 32) as i32);
    let want = (Fate::Async.raw(), child);
    let report = ask(abi::IOC_REPORT, REPORT_2)?;
    claim!(fate(&report) == want, "REPORT gives {:?}", fate(&report));
    ask(abi::IOC_STATS, STATS_2)?;

    // The last two forks, as entries of that size.
    let mut entries = vec![u64::MAX; 2 * REPORT_2 / 8 + 8];
    let found = sys::poll_until(|| -> TestResult<Option<()>> {
        let mut recent = argument(RECENT_2);
        recent[1] = entries.as_mut_ptr() as u64;
        recent[2] = 2 << 32 | REPORT_2 as u64;
        raw_ioctl(&file, abi::IOC_RECENT, recent.as_mut_ptr() as usize)?;
        claim!(
            recent[RECENT_2 / 8..].iter().all(|&w| w == u64::MAX),
            "RECENT wrote beyond its argument"
        );
        Ok((recent[2] >> 32 > 0 && fate(&entries) == want).then_some(()))
    })?;
    claim!(
        found.is_some() && entries[0] == REPORT_2 as u64,
        "RECENT gives {} bytes, {:?}",
        entries[0],
        fate(&entries)
    );
    claim!(
        entries[2 * REPORT_2 / 8..].iter().all(|&w| w == u64::MAX),
        "RECENT wrote beyond its entries"
    );
    Ok(format!("{} bytes a report", entries[0]))
}

/// Bytes of each struct as this program and the module know it.
const FILLED: [(u32, usize); 3] = [
    (abi::IOC_VERSION, size_of::<abi::Version>()),
    (abi::IOC_REPORT, size_of::<Report>()),
    (abi::IOC_STATS, size_of::<abi::Stats>()),
];

/// An argument of `size` bytes as it says itself, with more behind it that nobody may touch.
fn argument(size: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; size / 8 + 8];
    words[0] = size as u64;
    words
}

fn longer_structs(ctx: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    for (number, size) in FILLED {
        let longer = size + 40;
        let mut words = argument(longer);
        raw_ioctl(&file, number, words.as_mut_ptr() as usize)?;
        claim!(
            words[0] == size as u64,
            "ioctl {number:#x} says that it filled {} bytes, not {size}",
            words[0]
        );
        claim!(
            words[size / 8..longer / 8].iter().all(|&w| w == 0),
            "ioctl {number:#x} leaves {:x?} where it knows nothing",
            &words[size / 8..longer / 8]
        );
        claim!(
            words[longer / 8..].iter().all(|&w| w == u64::MAX),
            "ioctl {number:#x} wrote beyond its argument"
        );
    }

    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let size = size_of::<Arm>() / 8;
    let mut words = vec![0u64; size + 2];
    words[0] = words.len() as u64 * 8;
    words[size + 1] = 1;
    let refused = raw_ioctl(&file, abi::IOC_ARM, words.as_ptr() as usize);
    claim!(
        is_errno(&refused, libc::E2BIG),
        "an ARM with more than the module knows gives {refused:?}, want E2BIG"
    );
    words[size + 1] = 0;
    raw_ioctl(&file, abi::IOC_ARM, words.as_ptr() as usize)?;
    plain_fork(&arena)?;

    // Entries at the caller's distance, of which the module fills its own part.
    let size = size_of::<Report>();
    let stride = size + 24;
    let mut entries = vec![u64::MAX; 2 * stride / 8 + 1];
    let mut recent = abi::Recent {
        entries: entries.as_mut_ptr() as u64,
        entry_size: stride as u32,
        count: 2,
        ..abi::Recent::default()
    };
    let found = sys::poll_until(|| -> TestResult<Option<()>> {
        recent.count = 2;
        raw_ioctl(&file, abi::IOC_RECENT, &raw mut recent as usize)?;
        Ok((recent.count > 0).then_some(()))
    })?;
    claim!(found.is_some(), "the fork is not in the ring");
    claim!(
        entries[0] == size as u64 && entries[size / 8..stride / 8].iter().all(|&w| w == 0),
        "an entry says {} bytes and ends in {:x?}",
        entries[0],
        &entries[size / 8..stride / 8]
    );
    let room = recent.count as usize * stride / 8;
    claim!(
        entries[room..].iter().all(|&w| w == u64::MAX),
        "more was written than the {} entries that there are",
        recent.count
    );
    recent.count = 0;
    raw_ioctl(&file, abi::IOC_RECENT, &raw mut recent as usize)?;
    claim!(recent.count == 0, "{} entries without room", recent.count);
    Ok(format!("{} structs", FILLED.len() + 2))
}

/// ioctl(2) of a program of 32 bits: the kernel takes its entry from any.
fn compat_ioctl(file: &fs::File, number: u32, arg: u32) -> i32 {
    const IOCTL: u64 = 54;
    let mut result = IOCTL;
    // SAFETY: the kernel keeps all registers but the result; ebx, which the compiler has for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg {fd}, rbx",
            "int 0x80",
            "xchg {fd}, rbx",
            fd = inout(reg) i64::from(file.as_raw_fd()) => _,
            inout("rax") result,
            in("rcx") u64::from(number),
            in("rdx") u64::from(arg),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

fn compat(_: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    // SAFETY: new memory below 4 GiB.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    require!(page != libc::MAP_FAILED, "no memory below 4 GiB");
    let version = page.cast::<abi::Version>();
    // SAFETY: the page is ours and large enough.
    unsafe { version.write(abi::Version::default()) };
    let result = compat_ioctl(&file, abi::IOC_VERSION, page as usize as u32);
    if result == -libc::ENOSYS {
        return Err(Verdict::Skip(
            "this kernel runs no programs of 32 bits".into(),
        ));
    }
    // SAFETY: as above.
    let got = unsafe { version.read() };
    claim!(
        result == 0 && got.abi == abi::ABI_VERSION,
        "VERSION gives {result} and {got:?}"
    );
    let unknown = compat_ioctl(&file, abi::IOC_VERSION + 64, page as usize as u32);
    claim!(
        unknown == -libc::ENOTTY,
        "an unknown number gives {unknown}, want ENOTTY"
    );
    Ok(format!("ABI {}", got.abi))
}

fn wrong_sizes(_: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    // As each began: the smallest that the module takes.
    let arguments = [
        (abi::IOC_VERSION, VERSION_2),
        (abi::IOC_ARM, size_of::<Arm>()),
        (abi::IOC_REPORT, REPORT_2),
        (abi::IOC_STATS, STATS_2),
        (abi::IOC_RECENT, RECENT_2),
        (abi::IOC_ENROLL, size_of::<abi::Enroll>()),
        (abi::IOC_UNENROLL, size_of::<abi::Unenroll>()),
        (abi::IOC_ENROLLED, size_of::<abi::Enrolled>()),
    ];
    let mut tried = 0;
    for (number, size) in arguments {
        for (given, errno) in [
            (0, libc::EINVAL),
            (8, libc::EINVAL),
            (size - 8, libc::EINVAL),
            (4096 + 8, libc::E2BIG),
            (usize::MAX, libc::E2BIG),
        ] {
            let mut words = argument(4096);
            words[0] = given as u64;
            let before = words.clone();
            let result = raw_ioctl(&file, number, words.as_mut_ptr() as usize);
            claim!(
                is_errno(&result, errno) && words == before,
                "ioctl {number:#x} of size {given} gives {result:?}, want errno {errno}"
            );
            tried += 1;
        }
    }
    for (entry_size, errno) in [
        (0, libc::EINVAL),
        (size_of::<abi::Entry>() - 8, libc::EINVAL),
        (4096 + 8, libc::E2BIG),
    ] {
        let enrolled = abi::Enrolled {
            entry_size: entry_size as u32,
            count: 1,
            ..abi::Enrolled::default()
        };
        let result = raw_ioctl(&file, abi::IOC_ENROLLED, &raw const enrolled as usize);
        claim!(
            is_errno(&result, errno),
            "entries of {entry_size} bytes give {result:?}, want errno {errno}"
        );
        tried += 1;
    }
    for (entry_size, errno) in [
        (0, libc::EINVAL),
        (REPORT_2 - 8, libc::EINVAL),
        (4096 + 8, libc::E2BIG),
    ] {
        let recent = abi::Recent {
            entry_size: entry_size as u32,
            count: 1,
            ..abi::Recent::default()
        };
        let result = raw_ioctl(&file, abi::IOC_RECENT, &raw const recent as usize);
        claim!(
            is_errno(&result, errno),
            "entries of {entry_size} bytes give {result:?}, want errno {errno}"
        );
        tried += 1;
    }
    // None of these armed.
    arm(&open()?)?;
    Ok(format!("{tried} calls"))
}

fn times(ctx: &Ctx) -> TestResult<String> {
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let hold = Hold::new()?;
    let before = sys::now_ns();
    let session = ctx.fork().start(|| arena.verify())?;
    let forked = sys::now_ns();
    // The child has the rest.
    arena.write_range(0..arena.pages() / 2, 1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    let over = sys::now_ns();
    arena.verify()?;
    ended
        .whole(8)?
        .holds("parking began during fork()", |r| {
            before <= r.start_ns && r.start_ns <= forked
        })?
        .holds("parking took a part of fork()", |r| {
            0 < r.park_ns && r.park_ns <= forked - before
        })?
        .holds("the copy took a part of the child's life", |r| {
            0 < r.copy_ns && r.copy_ns <= over - before
        })?
        .holds("the parent and the child have pulled", |r| {
            r.chunks.by_parent >= 4 && r.chunks.by_child >= 4
        })?
        .holds("the longest pull is one of all", |r| {
            0 < r.parent_pull_max_ns && r.parent_pull_max_ns < r.parent_pull_ns
        })?
        .holds("the parent pulled after its fork", |r| {
            r.parent_pull_ns <= over - forked
        })?
        .holds("the side arrays have a size", |r| {
            r.meta_bytes >= 8 * r.chunks.parked
        })?;
    Ok(ended.detail())
}

fn cpus(ctx: &Ctx) -> TestResult<String> {
    let arena = Arena::new(&mut ctx.rng(), 2)?;
    for n in [1, sys::cpus()] {
        sys::set_affinity(&(0..n).collect::<Vec<_>>())?;
        let ended = ctx.fork().start(|| arena.verify())?.finish()?;
        ended
            .parked(1)?
            .holds("as many CPUs as the parent has", |r| r.cpus == n as u64)?;
    }
    Ok(format!("1 and {}", sys::cpus()))
}

/// A report in the instant in which the session ended knew that it had, but not when, and subtracted from zero.
fn just_ends(ctx: &Ctx) -> TestResult<String> {
    const FORKS: usize = 200;
    let arena = Arena::new(&mut ctx.rng(), 2)?;
    let mut reports = 0;
    for _ in 0..FORKS {
        let before = sys::now_ns();
        let session = ctx.fork().start(|| Ok(()))?;
        while let Some(report) = session.report()? {
            let passed = sys::now_ns() - before;
            claim!(
                report.copy_ns <= passed,
                "copy_ns is {} after {passed} ns: {}",
                report.copy_ns,
                session::summary(&report)
            );
            if report.state() != State::Running {
                break;
            }
            reports += 1;
        }
        session.finish()?.whole(1)?;
    }
    arena.verify()?;
    require!(
        reports >= FORKS,
        "hardly a report of a running session: {reports}"
    );
    Ok(format!("{reports} reports of running sessions"))
}
