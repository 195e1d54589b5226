// SPDX-License-Identifier: MIT OR Apache-2.0
//! `explain`: the last fork in words.

use anyhow::Result;
use asyncfork_uapi::{By, Outcome, Reason, Report, State};
use nix::time::{clock_gettime, ClockId};
use serde_json::{json, Value};

use crate::cli::ExplainArgs;
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::module::Fork;
use crate::out::{bytes, duration};
use crate::process::Process;

/// Prints what became of the last fork, and what to do if it was stock.
///
/// # Errors
/// No module; it has recorded no such fork.
pub fn run(ctx: &mut Ctx<'_>, args: &ExplainArgs) -> Result<Exit> {
    let forks = ctx.module()?.recent()?;
    let last = forks
        .iter()
        .rev()
        .find(|fork| args.pid.is_none_or(|pid| fork.0.parent_pid == pid));
    let Some(fork) = last else {
        let Some(pid) = args.pid else {
            return Err(exit::cannot_tell(
                "the module has recorded no fork yet: nobody has asked it for one (asyncfork enable, asyncfork run)",
            ));
        };
        let process = Process::read(&ctx.host, pid)?;
        return Err(exit::cannot_tell(format!(
            "the module has recorded no fork of process {pid} ({}): it has not forked lately, or is not asynchronous; \
             asyncfork doctor --pid {pid} tells",
            process.status.name
        )));
    };
    let sentences = words(fork, now_ns());
    if ctx.out.is_json() {
        let mut object = fork_json(fork);
        object["words"] = json!(sentences);
        ctx.out.object(&object)?;
    } else {
        for sentence in sentences {
            ctx.out.line(sentence)?;
        }
    }
    Ok(Exit::Done)
}

/// Nanoseconds of CLOCK_MONOTONIC, the module's clock.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// The parent's name, fit for a terminal.
pub fn comm(report: &Report) -> String {
    report.comm().escape_ascii().to_string()
}

fn words(fork: &Fork, now: u64) -> Vec<String> {
    let report = &fork.0;
    let age = now
        .checked_sub(report.start_ns)
        .filter(|_| report.start_ns > 0);
    let when = age.map_or(String::new(), |ns| format!(", {} ago", duration(ns)));
    let who = format!("{} (pid {}){when}", comm(report), report.parent_pid);
    let mut said = match report.outcome() {
        Outcome::Async => asynchronous(&who, report),
        Outcome::Stock => vec![
            format!("{who}: a stock fork. The kernel copied all page tables before it returned."),
            format!("Why: {}.", report.reason().explain()),
            format!("What to do: {}", advice(report.reason())),
        ],
        Outcome::Failed => vec![
            format!("{who}: fork() itself failed, most likely for lack of memory or processes."),
            "What to do: look at the server's log for the error, at memory and at pids.max of its cgroup.".into(),
        ],
        Outcome::None => vec![format!("{who}: the fork is still under way.")],
        Outcome::Unknown(n) => vec![format!(
            "{who}: outcome {n}, which this command does not know; install the command of the module's release."
        )],
    };
    match fork.by() {
        Some(By::Arm) => said.push("The process itself asked for it, as the library does.".into()),
        Some(By::Enrolled) => said.push(format!(
            "It was to be asynchronous as cgroup number {} is enrolled.",
            report.entry_id
        )),
        Some(By::Policy) => said.push("It was to be asynchronous by the module's policy.".into()),
        Some(By::None | By::Unknown(_)) | None => {}
    }
    said
}

fn asynchronous(who: &str, report: &Report) -> Vec<String> {
    let chunks = &report.chunks;
    let mut said = vec![format!(
        "{who}: an asynchronous fork of child {}. It parked {} page tables ({} of memory) in {}{}.",
        report.child_pid,
        chunks.parked,
        bytes(chunks.parked << 21),
        duration(report.park_ns),
        match chunks.eager {
            0 => String::new(),
            n => format!(" and copied {n} at once"),
        }
    )];
    match report.state() {
        State::Done => said.push(format!(
            "All was copied {} after the fork: {} by the child, {} by the parent, {} by helper threads, {} by others.",
            duration(report.copy_ns),
            chunks.by_child,
            chunks.by_parent,
            chunks.by_helper,
            chunks.by_other
        )),
        State::Running => said.push("The child is still copying.".into()),
        State::Aborted => said.push(
            "It was aborted: the child was killed before it had copied everything, for want of memory for page \
             tables (which `asyncfork status` counts) or by somebody else. The parent is whole, the snapshot failed; \
             look at memory.max of its cgroup and at the kernel log."
                .into(),
        ),
        State::None | State::Unknown(_) => {}
    }
    if report.parent_pull_ns > 0 {
        said.push(format!(
            "Meanwhile the parent waited {} in all, {} at most at a time.",
            duration(report.parent_pull_ns),
            duration(report.parent_pull_max_ns)
        ));
    }
    if report.cpus == 1 {
        said.push(
            "The server may run on one CPU only, which it shares with its child until all is copied: bind it to two, or \
             set ASYNCFORK_THREADS."
                .into(),
        );
    }
    said
}

/// What to do about stock forks for this reason.
pub fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Disabled => "asyncfork on",
        Reason::SwitchedOff => "keep the kernel log and report it; then modprobe -r asyncfork && modprobe asyncfork",
        Reason::MinRss => {
            "nothing, small forks are short; or lower ASYNCFORK_MIN_RSS, or --min-rss of its enrolment"
        }
        Reason::Pinned => {
            "keep what pins memory (io_uring fixed buffers, RDMA, vfio; from Linux 6.12 on O_DIRECT, too) out of this process, \
             and restart it"
        }
        Reason::Notifier => "keep KVM, RDMA and GPU memory out of this process, and restart it",
        Reason::Uffd => "keep userfaultfd out of this process, or fork before memory is registered with it",
        Reason::NoMemory => "free memory, and look at memory.max of its cgroup",
        Reason::Limit => "raise /sys/module/asyncfork/parameters/max_sessions",
        Reason::Nothing => {
            "nothing: what it has (huge pages, files, shared memory) is copied quickly, or cannot be parked"
        }
        Reason::Shared => "nothing: a process that shares its memory (vfork, CLONE_VM) is about to end or to exec",
        Reason::Poison => "look for memory errors in the kernel log; the next fork is tried again",
        Reason::Library => "take ASYNCFORK=off or require out of its environment, and restart it",
        Reason::None | Reason::Unknown(_) => "install the command of the module's release, and look at the kernel log",
    }
}

/// A fork as JSON.
pub fn fork_json(fork: &Fork) -> Value {
    let report = &fork.0;
    let chunks = &report.chunks;
    json!({
        "seq": fork.seq(),
        "by": fork.by().map(By::label),
        "entry_id": fork.by().map(|_| report.entry_id).filter(|&id| id > 0),
        "session": report.id,
        "outcome": report.outcome().label(),
        "reason": (report.outcome() == Outcome::Stock).then(|| report.reason().label()),
        "state": report.state().label(),
        "comm": comm(report),
        "parent_pid": report.parent_pid,
        "child_pid": report.child_pid,
        "cgroup_id": report.cgroup_id,
        "cpus": report.cpus,
        "helpers": report.helpers,
        "start_ns": report.start_ns,
        "park_ns": report.park_ns,
        "parent_stall_ns": report.parent_pull_ns,
        "parent_stall_max_ns": report.parent_pull_max_ns,
        "copy_ns": report.copy_ns,
        "chunks": {
            "parked": chunks.parked, "eager": chunks.eager, "reattached": chunks.reattached, "mixed": chunks.mixed,
            "by_child": chunks.by_child, "by_parent": chunks.by_parent,
            "by_helper": chunks.by_helper, "by_other": chunks.by_other,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fork, Fake};

    fn explain(fake: &Fake, pid: Option<i32>) -> (Result<Exit>, String) {
        fake.command("explain", |ctx| run(ctx, &ExplainArgs { pid }))
    }

    #[test]
    fn an_asynchronous_fork_is_told() {
        let fake = Fake::new();
        fake.loaded()
            .module(|m| m.forks = vec![fork(42, Outcome::Async, Reason::None)]);
        let (result, text) = explain(&fake, Some(42));
        assert_eq!(result.unwrap(), Exit::Done);
        assert!(
            text.contains("parked 32768 page tables (64 GiB of memory) in 1200 us"),
            "{text}"
        );
        assert!(text.contains("waited"), "{text}");
    }

    #[test]
    fn the_newest_fork_of_the_process_counts() {
        let fake = Fake::new();
        fake.loaded().module(|m| {
            m.forks = vec![
                fork(42, Outcome::Async, Reason::None),
                fork(42, Outcome::Stock, Reason::Disabled),
                fork(7, Outcome::Async, Reason::None),
            ];
        });
        assert!(explain(&fake, Some(42))
            .1
            .contains("What to do: asyncfork on"));
        assert!(explain(&fake, None).1.contains("(pid 7)"));
    }

    #[test]
    fn every_reason_has_its_advice() {
        for &reason in Reason::ALL {
            assert!(!advice(reason).is_empty());
            let said = words(&fork(1, Outcome::Stock, reason), 0).join("\n");
            assert!(said.contains(reason.explain()), "{said}");
        }
        for outcome in [Outcome::None, Outcome::Failed, Outcome::Unknown(9)] {
            assert!(!words(&fork(1, outcome, Reason::None), 0).is_empty());
        }
    }

    #[test]
    fn what_is_not_known_says_where_to_look() {
        let fake = Fake::new();
        let error = explain(&fake, None).0.unwrap_err();
        assert_eq!(exit::of(&error), Exit::CannotTell);
        fake.loaded().server(42);
        let error = explain(&fake, Some(42)).0.unwrap_err();
        assert!(
            error.to_string().contains("asyncfork doctor --pid 42"),
            "{error}"
        );
        let error = explain(&fake, Some(43)).0.unwrap_err();
        assert_eq!(exit::of(&error), Exit::Input);
        assert!(explain(&fake, None)
            .0
            .unwrap_err()
            .to_string()
            .contains("no fork yet"));
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        let mut evil = fork(1, Outcome::Stock, Reason::Limit);
        evil.0.comm[..6].copy_from_slice(b"a\x1b[31m");
        assert!(!words(&evil, 0).join("").contains('\x1b'));
    }

    #[test]
    fn json_is_as_documented() {
        let fake = Fake::new();
        fake.loaded().module(|m| {
            let mut fork = fork(42, Outcome::Stock, Reason::Pinned);
            fork.0.start_ns = 0;
            m.forks = vec![fork];
        });
        fake.golden("explain", "explain", |ctx| {
            run(ctx, &ExplainArgs { pid: None })
        });
    }
}
