// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forks that nobody has armed: of processes in enrolled cgroups, and by the module's policy.

use super::device::{
    arm, become_nobody, forked, no_session, open, plain_fork, raw_ioctl, raw_open,
};
use super::device::{forking_shell, report};
use super::faults::{inject, left};
use super::pidns::{in_new_namespace, outer_pid};
use super::Test;
use crate::board::Board;
use crate::cgroup::Cgroup;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, PAGE};
use crate::module::{self, device_error};
use crate::session::Ended;
use crate::sys::{self, cvt, is_errno, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{
    self as abi, BorrowedFd, By, Device, Entry, Errno, Outcome as Fate, Reason, Report,
};
use asyncfork_watch::TEST_MARKER;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

pub const TESTS: &[Test] = &[
    Test::new(
        "fork_in_an_enrolled_cgroup_is_asynchronous_without_an_arm",
        member,
    )
    .module()
    .quick(),
    Test::new(
        "fork_below_an_enrolled_cgroup_is_asynchronous_and_the_nearest_entry_counts",
        below,
    )
    .module(),
    Test::new("fork_outside_of_enrolled_cgroups_is_not_counted", outside)
        .module()
        .quick(),
    Test::new(
        "process_that_leaves_an_enrolled_cgroup_is_not_served",
        left_it,
    )
    .module(),
    Test::new(
        "cgroup_made_anew_under_an_enrolled_name_is_another_one",
        made_anew,
    )
    .module(),
    Test::new(
        "entry_has_a_least_size_and_helpers_and_can_be_changed",
        values,
    )
    .module(),
    Test::new(
        "enrolling_takes_cap_sys_admin_outside_of_containers",
        privilege,
    )
    .module()
    .quick(),
    Test::new(
        "what_is_no_cgroup_of_the_default_hierarchy_is_refused",
        no_cgroup,
    )
    .module(),
    Test::new("bad_arguments_of_enrolment_are_refused", bad_arguments).module(),
    Test::new(
        "as_many_cgroups_as_promised_can_be_enrolled_and_those_that_are_gone_make_room",
        full,
    )
    .module(),
    Test::new("enrolled_cgroups_do_not_keep_the_module", unload).module(),
    Test::new("raw_clone_in_an_enrolled_cgroup_is_served", raw_clone).module(),
    Test::new("arm_comes_before_enrolment", armed).module(),
    Test::new(
        "process_with_the_librarys_mark_is_served_by_its_arm_only",
        marked,
    )
    .module()
    .quick(),
    Test::new("what_only_looks_like_the_librarys_mark_is_none", unmarked).module(),
    Test::new(
        "policy_all_serves_large_processes_and_counts_no_others",
        policy_all,
    )
    .module(),
    Test::new("policy_armed_leaves_enrolled_cgroups_alone", policy_armed).module(),
    Test::new("bad_policies_are_refused_and_change_nothing", bad_policies).module(),
    Test::new("recent_numbers_forks_and_tells_those_after_one", numbers)
        .module()
        .quick(),
    Test::new(
        "recent_tells_an_ordinary_user_of_his_pid_namespace_in_its_numbers",
        views,
    )
    .module(),
    Test::new("state_says_on_and_off", state).module(),
    Test::new("enrolling_and_forking_at_a_time_lose_nothing", storm).module(),
    Test::new("enrolment_without_memory_gives_enomem", no_memory).faults(),
    Test::new(
        "module_that_switches_itself_off_says_why_and_takes_nothing_down",
        switched_off,
    )
    .faults(),
];

const MIB: usize = 8;
/// Chunks of such an arena that are parked, at least.
const CHUNKS: u64 = 4;

/// The id of a cgroup.
fn id(group: &Cgroup) -> TestResult<u64> {
    Ok(fs::metadata(group.path())?.ino())
}

/// The descriptor as the ABI's crate wants it, whatever that was built with.
fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Enrols a cgroup without conditions.
fn enroll(device: &Device, group: &Cgroup) -> TestResult {
    enroll_with(device, group, 0, 0)
}

fn enroll_with(device: &Device, group: &Cgroup, min_rss: u64, helpers: u32) -> TestResult {
    let enrolled = device.enroll(borrow(&group.open()?), min_rss, helpers);
    Ok(enrolled.map_err(device_error)?)
}

/// Demands that a call fails with this errno.
fn refused(result: Result<(), abi::Error>, errno: Errno, what: &str) -> TestResult {
    claim!(
        matches!(result, Err(abi::Error::Ioctl(_, e)) if e == errno),
        "{what} gives {result:?}, want {errno:?}"
    );
    Ok(())
}

/// The entry of a cgroup.
fn entry(device: &Device, id: u64) -> TestResult<Option<Entry>> {
    let entries = module::enrolled(device)?;
    let mut of_it = entries.into_iter().filter(|e| e.cgroup_id == id);
    let found = of_it.next();
    claim!(of_it.next().is_none(), "cgroup {id} has two entries");
    Ok(found)
}

/// Runs `body` in a process that joins `group` first; the process's number.
fn in_group(ctx: &Ctx, group: &Cgroup, body: impl FnOnce() -> TestResult) -> TestResult<i32> {
    let board = Board::new()?;
    let pid = ctx.helper(&board, "member", || {
        group.enter()?;
        body()
    })?;
    sys::wait(pid)?;
    board.collect(&["member"])?;
    Ok(pid)
}

/// A process in `group` forks once, not armed, and both sides have the right memory; the process's number.
fn fork_in(ctx: &Ctx, group: &Cgroup, mib: usize) -> TestResult<i32> {
    in_group(ctx, group, || plain_fork(&Arena::new(&mut ctx.rng(), mib)?))
}

/// What the ring has of the last fork by process `parent`, session or not.
fn last_of(device: &Device, parent: i32) -> TestResult<Report> {
    let found = sys::poll_until(|| -> TestResult<Option<Report>> {
        let recent = module::recent(device)?.into_iter();
        Ok(recent.into_iter().find(|r| r.parent_pid == parent))
    })?;
    match found {
        Some(report) => Ok(report),
        None => Err(Verdict::Failed(format!(
            "no fork of process {parent} among the recent ones"
        ))),
    }
}

/// The last session of process `parent`; demands that it was asynchronous, by the entry of cgroup `by`, and is whole.
fn served(ctx: &Ctx, parent: i32, by: u64) -> TestResult<Ended> {
    let ended = ctx.ended_session_of(parent)?;
    ended.whole(CHUNKS)?.holds("the entry asked for it", |r| {
        r.by() == By::Enrolled && r.entry_id == by
    })?;
    Ok(ended)
}

/// Like [`served`], for no more than that.
fn expect_served(ctx: &Ctx, parent: i32, by: u64) -> TestResult {
    served(ctx, parent, by).map(drop)
}

/// A process in `group` forks: demands that it is too small for its entry, which is counted and does not take room in the ring.
fn expect_small(ctx: &Ctx, group: &Cgroup, mib: usize) -> TestResult {
    let device = open()?;
    let count = || -> TestResult<_> {
        let stats = ctx.stats()?;
        Ok([
            stats.stock_by(Reason::MinRss),
            stats.stock_how(By::Enrolled),
        ])
    };
    let before = count()?;
    let pid = fork_in(ctx, group, mib)?;
    let after = count()?;
    claim!(
        after == before.map(|n| n + 1),
        "small stock forks, and those by entries: {before:?}, then {after:?}"
    );
    let recent = module::recent(&device)?;
    claim!(
        recent.iter().all(|r| r.parent_pid != pid),
        "the ring has the fork of a small process"
    );
    Ok(())
}

/// Demands that the last fork by process `parent` was stock, by the entry of cgroup `by`, for `reason`.
fn expect_stock(device: &Device, parent: i32, by: u64, reason: Reason) -> TestResult {
    let r = last_of(device, parent)?;
    claim!(
        (r.outcome(), r.reason(), r.by(), r.entry_id) == (Fate::Stock, reason, By::Enrolled, by),
        "outcome {}, reason {}, by {} of cgroup {}; want stock, {reason}, enrolled of {by}",
        r.outcome(),
        r.reason(),
        r.by(),
        r.entry_id
    );
    Ok(())
}

fn member(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let id = id(&group)?;
    let before = ctx.stats()?;
    enroll(&device, &group)?;
    claim!(
        ctx.stats()?.enrolled == before.enrolled + 1,
        "the statistics do not show the entry"
    );
    let pid = fork_in(ctx, &group, MIB)?;
    let ended = served(ctx, pid, id)?;
    ended.holds("the parent was in that cgroup", |r| r.cgroup_id == id)?;

    let counted = entry(&device, id)?.map(|e| (e.r#async, e.stock));
    claim!(
        counted == Some((1, 0)),
        "the entry counts {counted:?}, want one asynchronous fork"
    );
    let after = ctx.stats()?;
    claim!(
        after.async_how(By::Enrolled) == before.async_how(By::Enrolled) + 1
            && after.r#async == before.r#async + 1
            && after.stock == before.stock
            && after.armed == before.armed,
        "the totals count {} by enrolment, {} async, {} stock, {} ARMs",
        after.async_how(By::Enrolled) - before.async_how(By::Enrolled),
        after.r#async - before.r#async,
        after.stock - before.stock,
        after.armed - before.armed
    );

    device
        .unenroll(borrow(&group.open()?))
        .map_err(device_error)?;
    claim!(entry(&device, id)?.is_none(), "the entry is still there");
    no_session(ctx, || fork_in(ctx, &group, MIB).map(drop))?;
    refused(
        device.unenroll(borrow(&group.open()?)),
        Errno::NOENT,
        "taking it away twice",
    )?;
    Ok(ended.detail())
}

fn below(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let sub = group.child("sub")?;
    let deep = sub.child("deep")?;
    enroll(&device, &group)?;
    let pid = fork_in(ctx, &deep, MIB)?;
    let deep_id = id(&deep)?;
    let ended = served(ctx, pid, id(&group)?)?;
    ended.holds("the parent was further down", |r| r.cgroup_id == deep_id)?;

    enroll_with(&device, &sub, 1 << 40, 0)?;
    expect_small(ctx, &deep, MIB)?;
    let pid = fork_in(ctx, &group, MIB)?;
    expect_served(ctx, pid, id(&group)?)?;
    let counts = |id| -> TestResult<_> { Ok(entry(&device, id)?.map(|e| (e.r#async, e.stock))) };
    let (outer, inner) = (counts(id(&group)?)?, counts(id(&sub)?)?);
    claim!(
        outer == Some((2, 0)) && inner == Some((0, 1)),
        "the outer entry counts {outer:?}, the inner one {inner:?}"
    );
    Ok(ended.detail())
}

fn outside(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let sub = group.child("sub")?;
    let other = ctx.cgroup.child("other")?;
    enroll(&device, &sub)?;
    // Beside it, and above it.
    for group in [&other, &group] {
        no_session(ctx, || fork_in(ctx, group, MIB).map(drop))?;
    }
    // The entry works all the same.
    let pid = fork_in(ctx, &sub, MIB)?;
    let ended = served(ctx, pid, id(&sub)?)?;
    Ok(ended.detail())
}

fn left_it(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let other = ctx.cgroup.child("other")?;
    enroll(&device, &group)?;
    let id = id(&group)?;
    in_group(ctx, &group, || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        plain_fork(&arena)?;
        expect_served(ctx, sys::pid(), id)?;
        other.enter()?;
        no_session(ctx, || plain_fork(&arena))?;
        group.enter()?;
        plain_fork(&arena)?;
        expect_served(ctx, sys::pid(), id)
    })?;
    let counted = entry(&device, id)?.map(|e| e.r#async);
    claim!(counted == Some(2), "the entry counts {counted:?} forks");
    Ok("out and in again".into())
}

fn made_anew(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let old = id(&group)?;
    enroll(&device, &group)?;
    let removed = group.open()?;
    group.remove()?;
    refused(
        device.enroll(borrow(&removed), 0, 0),
        Errno::NOENT,
        "enrolling a cgroup that is gone",
    )?;

    let group = ctx.cgroup.child("enrolled")?;
    let new = id(&group)?;
    claim!(old != new, "both have the id {old}");
    no_session(ctx, || fork_in(ctx, &group, MIB).map(drop))?;
    claim!(
        entry(&device, old)?.is_some() && entry(&device, new)?.is_none(),
        "the entry of the old one has become the new one's"
    );
    device.unenroll_id(old).map_err(device_error)?;
    claim!(entry(&device, old)?.is_none(), "the entry is still there");
    refused(
        device.unenroll_id(old),
        Errno::NOENT,
        "taking it away twice",
    )?;
    Ok(format!("{old}, then {new}"))
}

fn values(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let id = id(&group)?;
    let expect = |min_rss: u64, helpers: u32| -> TestResult {
        let e = entry(&device, id)?.unwrap_or_default();
        claim!(
            (e.min_rss, e.helpers, e.flags) == (min_rss, helpers, 0),
            "{e:?}, want {min_rss} bytes and {helpers} helpers"
        );
        Ok(())
    };
    enroll_with(&device, &group, 1 << 40, 0)?;
    expect(1 << 40, 0)?;
    expect_small(ctx, &group, MIB)?;

    let enrolled = ctx.stats()?.enrolled;
    enroll_with(&device, &group, 4 << 20, 1)?;
    expect(4 << 20, 1)?;
    claim!(
        ctx.stats()?.enrolled == enrolled,
        "enrolling again makes another entry"
    );
    let pid = fork_in(ctx, &group, MIB)?;
    let ended = served(ctx, pid, id)?;
    ended.holds("a helper was asked for", |r| r.helpers == 1)?;

    // The module's limit is that of the time of the fork.
    let max = ctx.module.get("max_helpers")?;
    ctx.module.set("max_helpers", 0)?;
    let pid = fork_in(ctx, &group, MIB);
    ctx.module.set("max_helpers", max)?;
    served(ctx, pid?, id)?.holds("no helper was there", |r| r.helpers == 0)?;

    ctx.module.set("enabled", "N")?;
    let pid = fork_in(ctx, &group, MIB)?;
    expect_stock(&device, pid, id, Reason::Disabled)?;
    let counted = entry(&device, id)?.map(|e| (e.r#async, e.stock));
    claim!(
        counted == Some((2, 2)),
        "the entry counts {counted:?}, want two of each"
    );
    Ok(ended.detail())
}

fn privilege(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let other = ctx.cgroup.child("other")?;
    let gid = id(&group)?;
    enroll(&device, &group)?;
    enroll(&device, &other)?;
    let refused_all = |who: &str| -> TestResult {
        let dir = group.open()?;
        let perm = |result, what: &str| refused(result, Errno::PERM, &format!("{who}: {what}"));
        perm(device.enroll(borrow(&dir), 0, 0), "ENROLL")?;
        perm(device.unenroll(borrow(&dir)), "UNENROLL")?;
        perm(device.unenroll_id(gid), "UNENROLL by id")?;
        // Of the entries, only those that it is in.
        let seen: Vec<u64> = module::enrolled(&device)?
            .iter()
            .map(|e| e.cgroup_id)
            .collect();
        claim!(seen == [gid], "{who} sees the entries {seen:?}");
        Ok(())
    };
    in_group(ctx, &group, || {
        become_nobody()?;
        refused_all("nobody")
    })?;
    in_group(ctx, &group, || {
        // SAFETY: no memory is involved.
        cvt(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).at("unshare")?;
        refused_all("root of a user namespace")
    })?;
    claim!(
        module::enrolled(&device)?.len() == 2,
        "the privileged see other than two entries"
    );
    Ok("EPERM".into())
}

fn no_cgroup(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let try_fd = |fd: OwnedFd, errno, what: &str| -> TestResult {
        refused(device.enroll(borrow(&fd), 0, 0), errno, what)?;
        refused(device.unenroll(borrow(&fd)), errno, what)
    };
    let file = |path: &std::path::Path| -> io::Result<OwnedFd> { Ok(File::open(path)?.into()) };
    let root = std::path::Path::new("/sys/fs/cgroup");
    try_fd(file(root)?, Errno::INVAL, "the root cgroup")?;
    let procs = group.path().join("cgroup.procs");
    try_fd(file(&procs)?, Errno::BADF, "a file of a cgroup")?;
    try_fd(file(&ctx.scratch)?, Errno::BADF, "another directory")?;
    try_fd(sys::memfd(PAGE)?, Errno::BADF, "a memfd")?;

    // Version 1.
    let v1 = ctx.scratch.join("v1");
    fs::create_dir(&v1)?;
    sys::mount("none", &v1, "cgroup", "none,name=asyncfork-test").at("a version 1 hierarchy")?;
    let sub = v1.join("sub");
    let result = fs::create_dir(&sub).map_err(Verdict::from).and_then(|()| {
        try_fd(file(&sub)?, Errno::BADF, "a cgroup of version 1")?;
        try_fd(file(&v1)?, Errno::BADF, "a root of version 1")
    });
    let _ = fs::remove_dir(&sub);
    // SAFETY: a C string.
    cvt(unsafe { libc::umount(sys::cstr(&v1).as_ptr()) })?;
    result?;
    claim!(
        module::enrolled(&device)?.is_empty(),
        "one of them is enrolled"
    );
    Ok("EINVAL, EBADF".into())
}

fn bad_arguments(ctx: &Ctx) -> TestResult<String> {
    let file = raw_open()?;
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let dir = group.open()?;
    let good = abi::Enroll {
        cgroup_fd: dir.as_raw_fd(),
        ..abi::Enroll::default()
    };
    let max = device.version().map_err(device_error)?.max_helpers;
    for (enroll, errno) in [
        (abi::Enroll { flags: 1, ..good }, libc::EINVAL),
        (
            abi::Enroll {
                reserved: 1,
                ..good
            },
            libc::EINVAL,
        ),
        (
            abi::Enroll {
                helpers: max + 1,
                ..good
            },
            libc::EINVAL,
        ),
        (
            abi::Enroll {
                cgroup_fd: -1,
                ..good
            },
            libc::EBADF,
        ),
        (
            abi::Enroll {
                cgroup_fd: i32::MAX,
                ..good
            },
            libc::EBADF,
        ),
    ] {
        let result = raw_ioctl(&file, abi::IOC_ENROLL, &raw const enroll as usize);
        claim!(
            is_errno(&result, errno),
            "{enroll:?} gives {result:?}, want errno {errno}"
        );
    }
    enroll(&device, &group)?;
    let by_fd = abi::Unenroll {
        cgroup_fd: dir.as_raw_fd(),
        ..abi::Unenroll::default()
    };
    let cgroup_id = id(&group)?;
    for unenroll in [
        abi::Unenroll { flags: 1, ..by_fd },
        // Both, and none.
        abi::Unenroll { cgroup_id, ..by_fd },
        abi::Unenroll {
            cgroup_fd: -1,
            ..by_fd
        },
    ] {
        let result = raw_ioctl(&file, abi::IOC_UNENROLL, &raw const unenroll as usize);
        claim!(
            is_errno(&result, libc::EINVAL),
            "{unenroll:?} gives {result:?}, want EINVAL"
        );
    }
    // No room is no error.
    let none = device.enrolled(&mut []).map_err(device_error)?;
    claim!(none == 0, "{none} entries without room");
    let entries = module::enrolled(&device)?;
    claim!(
        entries.len() == 1 && entries[0].cgroup_id == cgroup_id,
        "the entries are {entries:?}"
    );
    Ok("8 calls".into())
}

fn full(ctx: &Ctx) -> TestResult<String> {
    const MORE: usize = 64;
    let device = open()?;
    let many = ctx.cgroup.child("many")?;
    // Gone, each of them, before the next is there.
    for _ in 0..abi::MAX_ENTRIES + MORE {
        let group = many.child("short")?;
        enroll(&device, &group)?;
        group.remove()?;
    }
    let entries = ctx.stats()?.enrolled;
    claim!(
        entries > 0 && entries <= MORE as u64,
        "{entries} entries after the others made room"
    );
    let mut groups = Vec::new();
    for n in 0..abi::MAX_ENTRIES {
        let group = many.child(&format!("g{n}"))?;
        enroll(&device, &group)?;
        groups.push(group);
    }
    let one_more = many.child("more")?;
    refused(
        device.enroll(borrow(&one_more.open()?), 0, 0),
        Errno::NOSPC,
        "one more than all",
    )?;
    claim!(
        module::enrolled(&device)?.len() == abi::MAX_ENTRIES,
        "not all are listed"
    );
    // Of one that is there, values may change; and all are served.
    enroll_with(&device, &groups[0], 0, 1)?;
    let last = &groups[abi::MAX_ENTRIES - 1];
    let pid = fork_in(ctx, last, MIB)?;
    let ended = served(ctx, pid, id(last)?)?;
    no_session(ctx, || fork_in(ctx, &one_more, MIB).map(drop))?;
    device
        .unenroll(borrow(&groups[1].open()?))
        .map_err(device_error)?;
    enroll(&device, &one_more)?;
    for group in groups {
        // The last one's process may be on its way out.
        sys::poll_until(|| Ok::<_, ()>(group.remove().ok())).ok();
    }
    Ok(ended.detail())
}

fn unload(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("enrolled")?;
    let device = open()?;
    enroll(&device, &group)?;
    let pid = fork_in(ctx, &group, MIB)?;
    let ended = served(ctx, pid, id(&group)?)?;
    drop(device);
    ctx.module.expect_unused()?;
    ctx.module
        .try_unload()
        .at("unload with a cgroup enrolled")?;
    fork_in(ctx, &group, MIB)?;
    ctx.module.load("").at("load again")?;
    claim!(
        module::enrolled(&open()?)?.is_empty(),
        "the entry has outlived the module"
    );
    no_session(ctx, || fork_in(ctx, &group, MIB).map(drop))?;
    Ok(ended.detail())
}

/// What a static program does that has no libc to speak of: no handlers, no library between.
fn raw_clone(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    enroll(&device, &group)?;
    let pid = in_group(ctx, &group, || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        let board = Board::new()?;
        let flags = libc::c_long::from(libc::SIGCHLD);
        // SAFETY: without CLONE_VM this is fork(); the process is single-threaded, so that the child may use the C library.
        let pid =
            cvt(unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) })?;
        if pid == 0 {
            board.run("child", || arena.verify());
        }
        board.collect(&["child"])?;
        claim!(sys::wait(pid as i32)? == Exit::Code(0), "the child failed");
        arena.verify()
    })?;
    let ended = served(ctx, pid, id(&group)?)?;
    Ok(ended.detail())
}

fn armed(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    // Were the entry to count, the fork would be stock.
    enroll_with(&device, &group, 1 << 40, 0)?;
    let before = ctx.stats()?;
    in_group(ctx, &group, || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        let own = open()?;
        arm(&own)?;
        plain_fork(&arena)?;
        let r = report(&own)?;
        claim!(
            (r.outcome(), r.by(), r.entry_id) == (Fate::Async, By::Arm, 0),
            "outcome {}, by {} of cgroup {}",
            r.outcome(),
            r.by(),
            r.entry_id
        );
        Ok(())
    })?;
    enroll(&device, &group)?;
    in_group(ctx, &group, || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        let own = open()?;
        let never = abi::Arm {
            min_rss: u64::MAX,
            ..abi::Arm::default()
        };
        own.arm(&never).map_err(device_error)?;
        plain_fork(&arena)?;
        let r = report(&own)?;
        claim!(
            (r.outcome(), r.reason(), r.by()) == (Fate::Stock, Reason::MinRss, By::Arm)
                && r.seq > 0,
            "outcome {}, reason {}, by {}, number {}",
            r.outcome(),
            r.reason(),
            r.by(),
            r.seq
        );
        Ok(())
    })?;
    let after = ctx.stats()?;
    let how = |s: &abi::Stats, by| (s.async_how(by), s.stock_how(by));
    claim!(
        how(&after, By::Arm) == (before.async_how(By::Arm) + 1, before.stock_how(By::Arm) + 1)
            && how(&after, By::Enrolled) == how(&before, By::Enrolled),
        "by ARM {:?}, by enrolment {:?}",
        how(&after, By::Arm),
        how(&after, By::Enrolled)
    );
    Ok("async, then stock".into())
}

/// Maps `pages` of a memfd with this name.
fn map_memfd(name: &std::ffi::CStr, pages: usize, flags: i32) -> io::Result<()> {
    // SAFETY: a C string.
    let fd = cvt(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: a fresh descriptor.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len((pages * PAGE) as u64)?;
    // SAFETY: new memory.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * PAGE,
            libc::PROT_READ,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    match addr {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn marked(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let id = id(&group)?;
    enroll(&device, &group)?;
    let library = || -> TestResult<u64> { Ok(ctx.stats()?.stock_by(Reason::Library)) };
    let before = library()?;
    in_group(ctx, &group, || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        map_memfd(abi::MARK, 1, libc::MAP_PRIVATE)?;
        plain_fork(&arena)?;
        expect_stock(&device, sys::pid(), id, Reason::Library)?;

        // The child has it, too.
        let board = Board::new()?;
        // SAFETY: the child runs board.run() only and never returns.
        let pid = cvt(unsafe { libc::fork() })?;
        if pid == 0 {
            board.run("child", || {
                plain_fork(&arena)?;
                expect_stock(&device, sys::pid(), id, Reason::Library)
            });
        }
        board.collect(&["child"])?;
        sys::wait(pid)?;

        // An ARM comes first.
        let own = open()?;
        arm(&own)?;
        plain_fork(&arena)?;
        let r = report(&own)?;
        claim!(
            (r.outcome(), r.by()) == (Fate::Async, By::Arm),
            "armed: outcome {}, reason {}, by {}",
            r.outcome(),
            r.reason(),
            r.by()
        );

        // exec() takes it away: what the program forks is stock for another reason.
        let (library, stock) = (library()?, ctx.stats()?.stock);
        claim!(forking_shell().status()?.success(), "the program failed");
        let after = ctx.stats()?;
        claim!(
            after.stock > stock && after.stock_by(Reason::Library) == library,
            "of {} stock forks of a new program {} have the mark",
            after.stock - stock,
            after.stock_by(Reason::Library) - library
        );
        Ok(())
    })?;
    let counted = library()? - before;
    claim!(counted == 3, "{counted} forks counted, want 3");
    Ok("3 stock, 1 armed".into())
}

fn unmarked(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    let id = id(&group)?;
    enroll(&device, &group)?;
    in_group(ctx, &group, || {
        let arena = Arena::new(&mut ctx.rng(), MIB)?;
        // Another name, another size, shared, and a file of a mounted tmpfs.
        map_memfd(c"asyncfork:stocks", 1, libc::MAP_PRIVATE)?;
        map_memfd(c"asyncfork:stoc", 1, libc::MAP_PRIVATE)?;
        map_memfd(abi::MARK, 2, libc::MAP_PRIVATE)?;
        map_memfd(abi::MARK, 1, libc::MAP_SHARED)?;
        let path = ctx.scratch.join("memfd:asyncfork:stock");
        let file = File::create_new(&path)?;
        file.set_len(PAGE as u64)?;
        let file = File::open(&path)?;
        // SAFETY: new memory.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        require!(addr != libc::MAP_FAILED, "the file cannot be mapped");
        plain_fork(&arena)?;
        expect_served(ctx, sys::pid(), id)
    })?;
    Ok("5 mappings".into())
}

fn policy_all(ctx: &Ctx) -> TestResult<String> {
    const LARGE: usize = 96;
    let device = open()?;
    let plain = ctx.cgroup.child("plain")?;
    let group = ctx.cgroup.child("enrolled")?;
    // Larger than what helps here, smaller than what is to be served.
    ctx.module.set("policy_min_rss", (LARGE / 2) << 20)?;
    ctx.module.set("policy", "all")?;
    claim!(
        ctx.module.get("policy")? == "all",
        "the policy is not shown"
    );
    let before = ctx.stats()?;
    let pid = fork_in(ctx, &plain, LARGE)?;
    let ended = ctx.ended_session_of(pid)?;
    ended
        .whole(LARGE as u64 / 4)?
        .holds("by policy", |r| r.by() == By::Policy && r.entry_id == 0)?;
    let after = ctx.stats()?;
    claim!(
        after.async_how(By::Policy) == before.async_how(By::Policy) + 1,
        "the totals do not count it"
    );
    no_session(ctx, || fork_in(ctx, &plain, MIB).map(drop))?;

    // An entry is about fewer processes and comes first.
    enroll_with(&device, &group, 1 << 40, 0)?;
    expect_small(ctx, &group, LARGE)?;
    enroll(&device, &group)?;
    let pid = fork_in(ctx, &group, MIB)?;
    expect_served(ctx, pid, id(&group)?)?;

    // The mark counts here as well.
    let pid = in_group(ctx, &plain, || {
        let arena = Arena::new(&mut ctx.rng(), LARGE)?;
        map_memfd(abi::MARK, 1, libc::MAP_PRIVATE)?;
        plain_fork(&arena)
    })?;
    let r = last_of(&device, pid)?;
    claim!(
        (r.reason(), r.by()) == (Reason::Library, By::Policy),
        "reason {}, by {}",
        r.reason(),
        r.by()
    );
    ctx.module.set("policy", "enrolled")?;
    no_session(ctx, || fork_in(ctx, &plain, LARGE).map(drop))?;

    // From the module's first moment, too; it goes as it came.
    drop(device);
    ctx.module.unload()?;
    ctx.module
        .load(&format!("policy=all policy_min_rss={}", (LARGE / 2) << 20))?;
    let pid = fork_in(ctx, &plain, LARGE)?;
    ctx.ended_session_of(pid)?.whole(LARGE as u64 / 4)?;
    ctx.module.unload()?;
    ctx.module.load("").at("load again")?;
    Ok(ended.detail())
}

fn policy_armed(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    enroll(&device, &group)?;
    ctx.module.set("policy", "armed")?;
    no_session(ctx, || fork_in(ctx, &group, MIB).map(drop))?;
    let arena = Arena::new(&mut ctx.rng(), MIB)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended
        .whole(CHUNKS)?
        .holds("by ARM", |r| r.by() == By::Arm)?;
    // The entry has stayed.
    ctx.module.set("policy", "enrolled")?;
    let pid = fork_in(ctx, &group, MIB)?;
    expect_served(ctx, pid, id(&group)?)?;
    Ok(ended.detail())
}

fn bad_policies(ctx: &Ctx) -> TestResult<String> {
    claim!(
        ctx.module.get("policy")? == "enrolled"
            && ctx.module.get("policy_min_rss")? == "1073741824",
        "other defaults: {}, {}",
        ctx.module.get("policy")?,
        ctx.module.get("policy_min_rss")?
    );
    for (name, value) in [
        ("policy", "none"),
        ("policy", "ALL"),
        ("policy", "al"),
        ("policy", "allx"),
        ("policy", " "),
        ("policy_min_rss", "1G"),
        ("policy_min_rss", "-1"),
        ("policy_min_rss", "large"),
    ] {
        let before = ctx.module.get(name)?;
        let result = ctx.module.set(name, value);
        claim!(
            is_errno(&result, libc::EINVAL) && ctx.module.get(name)? == before,
            "{name}={value} gives {result:?}, want EINVAL; it is {}",
            ctx.module.get(name)?
        );
    }
    Ok("8 values".into())
}

/// The forks with a number greater than `seq`.
fn after(device: &Device, seq: u64) -> TestResult<Vec<Report>> {
    let mut entries = vec![Report::default(); 256];
    let n = device
        .recent_after(seq, &mut entries)
        .map_err(device_error)?;
    entries.truncate(n);
    Ok(entries)
}

fn numbers(ctx: &Ctx) -> TestResult<String> {
    const FORKS: usize = 3;
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    enroll(&device, &group)?;
    let start = after(&device, 0)?.first().map_or(0, |r| r.seq);
    let mut pids = Vec::new();
    let mut seqs = Vec::new();
    for n in 0..FORKS {
        let pid = fork_in(ctx, &group, MIB)?;
        pids.push(pid);
        seqs.push(ctx.ended_session_of(pid)?.report().map_or(0, |r| r.seq));
        claim!(
            after(&device, start)?.len() == n + 1,
            "not {} forks after number {start}",
            n + 1
        );
    }
    let want: Vec<u64> = (1..=FORKS as u64).map(|n| start + n).collect();
    claim!(seqs == want, "the numbers are {seqs:?}, want {want:?}");
    for n in 0..FORKS {
        let got: Vec<i32> = after(&device, seqs[n])?
            .iter()
            .map(|r| r.parent_pid)
            .collect();
        let want: Vec<i32> = pids[n + 1..].iter().rev().copied().collect();
        claim!(
            got == want,
            "after number {} there are forks of {got:?}, want {want:?}",
            seqs[n]
        );
    }
    claim!(
        after(&device, u64::MAX)?.is_empty(),
        "forks after the last number"
    );
    // With little room the newest.
    let mut one = [Report::default()];
    let n = device.recent_after(start, &mut one).map_err(device_error)?;
    claim!(
        n == 1 && one[0].seq == seqs[FORKS - 1],
        "{n} forks, number {}",
        one[0].seq
    );
    // A descriptor's report has the number as well; a stock fork has one.
    ctx.module.set("enabled", "N")?;
    let arena = Arena::new(&mut ctx.rng(), MIB)?;
    arm(&device)?;
    plain_fork(&arena)?;
    let r = report(&device)?;
    claim!(
        r.seq == start + FORKS as u64 + 1 && r.by() == By::Arm,
        "the stock fork has number {}",
        r.seq
    );
    Ok(format!("{seqs:?}"))
}

fn views(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let arena = Arena::new(&mut ctx.rng(), MIB)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(CHUNKS)?;
    let before = after(&device, 0)?;
    require!(!before.is_empty(), "the fork outside is not in the ring");
    let newest = before[0].seq;

    let board = Board::new()?;
    let gate = super::common::Gate::new()?;
    let starter = ctx.helper(&board, "starter", || {
        in_new_namespace(ctx, || {
            gate.open(outer_pid()?)?;
            let arena = Arena::new(&mut ctx.rng(), MIB)?;
            arm(&device)?;
            let child = forked(&arena)?;
            // With all privileges: everything, by the outer numbers.
            let all = sys::poll_until(|| -> TestResult<_> {
                Ok(Some(after(&device, 0)?).filter(|all| all[0].seq > newest))
            })?;
            let Some(all) = all else {
                return Err(Verdict::Failed("the session is not in the ring".into()));
            };
            claim!(
                all.len() > 1 && all[0].parent_pid == outer_pid()?,
                "root in a namespace sees {} forks, the last of {}",
                all.len(),
                all[0].parent_pid
            );
            become_nobody()?;
            let own = after(&device, 0)?;
            claim!(
                own.len() == 1
                    && (own[0].parent_pid, own[0].child_pid) == (1, child)
                    && own[0].seq == all[0].seq,
                "the namespace sees {} forks, the last {} of {}; want {child} of 1",
                own.len(),
                own.first().map_or(0, |r| r.child_pid),
                own.first().map_or(0, |r| r.parent_pid)
            );
            claim!(
                after(&device, own[0].seq)?.is_empty(),
                "there are forks after the last one"
            );
            Ok(())
        })
    })?;
    let outer = gate.pass()?;
    sys::wait(starter)?;
    board.collect(&["starter"])?;

    // An ordinary user of the first namespace sees what is below it, by its numbers.
    let board = Board::new()?;
    let user = ctx.helper(&board, "user", || {
        become_nobody()?;
        let all = after(&device, newest)?;
        claim!(
            all.len() == 1 && all[0].parent_pid == outer,
            "an ordinary user sees {} forks, the last of {}; want that of {outer}",
            all.len(),
            all.first().map_or(0, |r| r.parent_pid)
        );
        claim!(
            after(&device, 0)?.len() > 1,
            "an ordinary user of the first namespace sees part of it"
        );
        Ok(())
    })?;
    sys::wait(user)?;
    board.collect(&["user"])?;

    // Another namespace sees nothing, not even if it has got a number that was another's.
    let board = Board::new()?;
    let stranger = ctx.helper(&board, "stranger", || {
        in_new_namespace(ctx, || {
            become_nobody()?;
            let seen = after(&device, 0)?;
            claim!(seen.is_empty(), "a stranger sees {} forks", seen.len());
            Ok(())
        })
    })?;
    sys::wait(stranger)?;
    board.collect(&["stranger"])?;
    Ok(format!("outside {outer}, inside 1"))
}

fn state(ctx: &Ctx) -> TestResult<String> {
    let expect = |want: &str| -> TestResult {
        let is = ctx.module.get("state")?;
        claim!(is == want, "the state is {is:?}, want {want:?}");
        Ok(())
    };
    expect("on")?;
    ctx.module.set("enabled", "N")?;
    expect("off")?;
    ctx.module.set("enabled", "Y")?;
    expect("on")?;
    let written = ctx.module.set("state", "off");
    claim!(written.is_err(), "the state can be written");
    ctx.module.unload()?;
    let loaded = ctx.module.load("state=off");
    claim!(
        is_errno(&loaded, libc::EPERM) && !ctx.module.is_loaded(),
        "loading with a state gives {loaded:?}, want EPERM"
    );
    ctx.module.load("enabled=0").at("load again")?;
    expect("off")?;
    Ok("on and off".into())
}

/// Entries come, change and go, and the policy with them, while members fork.
fn storm(ctx: &Ctx) -> TestResult<String> {
    const FORKS: u32 = 40;
    let group = ctx.cgroup.child("enrolled")?;
    let stop = ctx.scratch.join("stop");
    let board = Board::new()?;
    let changer = ctx.helper(&board, "changer", || {
        let device = open()?;
        let dir = group.open()?;
        let mut n = 0u32;
        while !stop.exists() {
            n += 1;
            device
                .enroll(borrow(&dir), u64::from(n / 3 % 2) << 40, n % 2)
                .map_err(device_error)?;
            ctx.module
                .set("policy", ["armed", "enrolled", "all"][n as usize % 3])?;
            if n.is_multiple_of(5) {
                device.unenroll(borrow(&dir)).map_err(device_error)?;
            }
        }
        Ok(())
    })?;
    let before = ctx.stats()?;
    let result = in_group(ctx, &group, || {
        let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
        for gen in 0..FORKS {
            plain_fork(&arena)?;
            arena.fill(gen + 1);
        }
        Ok(())
    });
    fs::write(&stop, "")?;
    sys::wait(changer)?;
    board.collect(&["changer"])?;
    result?;
    let after = ctx.stats()?;
    let served = after.r#async - before.r#async;
    require!(served > 0, "no fork met an entry");
    drop(group);
    // The module goes with whatever entries there are.
    ctx.module.unload()?;
    ctx.module.load("").at("load again")?;
    Ok(format!("{served} of {FORKS} asynchronous"))
}

fn no_memory(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let group = ctx.cgroup.child("enrolled")?;
    inject(ctx, 0, 1)?;
    refused(
        device.enroll(borrow(&group.open()?), 0, 0),
        Errno::NOMEM,
        "enrolling without memory",
    )?;
    claim!(left(ctx)? == 0, "no allocation was made to fail");
    claim!(
        module::enrolled(&device)?.is_empty() && ctx.stats()?.enrolled == 0,
        "there is an entry all the same"
    );
    enroll(&device, &group)?;
    inject(ctx, 0, 1)?;
    refused(
        device.enrolled(&mut [Entry::default()]).map(drop),
        Errno::NOMEM,
        "asking without memory",
    )?;
    // The values of an entry change without any.
    inject(ctx, 0, 1)?;
    enroll_with(&device, &group, 4096, 0)?;
    claim!(left(ctx)? == 1, "changing an entry takes memory");
    ctx.module.set("fault_count", 0)?;
    let pid = fork_in(ctx, &group, MIB)?;
    let ended = served(ctx, pid, id(&group)?)?;
    Ok(ended.detail())
}

/// With a machine that a WARN would take down.
fn switched_off(ctx: &Ctx) -> TestResult<String> {
    const PANIC: &str = "/proc/sys/kernel/panic_on_warn";
    const WHY: &str = "a test asked for it";
    const SAYS: &str = "asyncfork: a test asked for it (at 0); switched off";
    let mut arena = Arena::new(&mut ctx.rng(), MIB)?;
    fs::write(PANIC, "1")?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    for _ in 0..2 {
        ctx.module.set("fault_switch_off", 1)?;
    }
    let state = ctx.module.get("state")?;
    let stats = ctx.stats()?;
    // What runs is finished.
    arena.fill(1);
    drop(hold);
    let ended = session.finish()?;
    arena.verify()?;
    let next = ctx.fork().start(|| arena.verify())?.finish()?;
    fs::write(PANIC, "0")?;
    let log = kernel_log()?;
    let said: Vec<_> = log
        .iter()
        .filter(|(_, text)| text.contains("switched off"))
        .collect();
    let trace = log.iter().any(|(_, text)| text.contains("Call Trace:"));
    // The next test wants a module that is on; a failure here is not to keep it.
    ctx.module.unload()?;
    ctx.module.load("").at("load again")?;
    let reset = ctx.module.get("state")?;

    claim!(
        state == format!("switched off: {WHY}") && stats.switched_off == 1 && stats.enabled == 1,
        "the state is {state:?}, switched_off {}, enabled {}",
        stats.switched_off,
        stats.enabled
    );
    ended.whole(CHUNKS)?;
    next.stock(Reason::SwitchedOff)?;
    // KERN_CRIT
    claim!(
        matches!(said[..], [(2, text)] if text == SAYS) && trace,
        "the kernel log has {said:?}, with a stack: {trace}"
    );
    claim!(reset == "on", "loaded again, the state is {reset:?}");
    Ok(ended.detail())
}

/// The kernel's log since this test began: priorities and texts.
fn kernel_log() -> TestResult<Vec<(u8, String)>> {
    let output = Command::new("dmesg").args(["--raw"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    let begin = lines
        .iter()
        .rposition(|line| line.contains(TEST_MARKER))
        .unwrap_or(0);
    let parsed = lines[begin..].iter().filter_map(|line| {
        let (priority, rest) = line.strip_prefix('<')?.split_once('>')?;
        let (_, text) = rest.split_once("] ")?;
        Some((priority.parse().ok()?, text.to_owned()))
    });
    Ok(parsed.collect())
}
