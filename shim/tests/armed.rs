// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the library asks of the module and makes of the answers. The module's
//! part is played by `tests/c/fake_module.c`; that chunks are really parked is
//! for the VM tests to show.

mod support;

use std::fs;

use asyncfork_uapi::{Outcome, Reason};
use support::{Finished, Fixture, Run, NOBODY};

const ARM: &str = "arm flags=0 helpers=0 min_rss=0";
/// One armed fork.
const SEQUENCE: [&str; 4] = ["version", ARM, "fork armed", "report"];
const ASYNC: &str = "info: async fork of ";

fn stock(reason: Reason) -> [String; 2] {
    [
        format!("outcome={}", Outcome::Stock.raw()),
        format!("reason={}", reason.raw()),
    ]
}

fn fake_stock(run: Run<'_>, reason: Reason) -> Finished {
    let settings = stock(reason);
    run.fake_module(&[&settings[0], &settings[1]])
        .succeed_loaded()
}

#[test]
fn each_entry_point_arms_forks_and_asks_for_the_report() {
    for call in ["fork", "_Fork", "__fork"] {
        let fixture = Fixture::new();
        let finished = fixture
            .program("forks")
            .args(&["times=2", &format!("fork={call}")])
            .fake_module(&[])
            .succeed_loaded();
        finished.expect_stdout(&format!("{call} gave a child\n").repeat(2));
        finished.expect_log(2, ASYNC).expect_log(
            2,
            "session 7, 512 chunks parked in 170 us, 3 copied at once",
        );
        assert_eq!(
            finished.sequence(),
            [SEQUENCE, SEQUENCE].concat(),
            "{finished:#?}"
        );
    }
}

#[test]
fn settings_reach_the_module() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["mib=8", "fork=fork"])
        .with("ASYNCFORK_MIN_RSS", "8M")
        .with("ASYNCFORK_THREADS", "2")
        .fake_module(&[])
        .succeed_loaded();
    finished.expect_log(1, ASYNC);
    assert_eq!(
        finished.sequence()[1],
        "arm flags=0 helpers=2 min_rss=8388608"
    );
}

#[test]
fn too_many_helpers_are_cut_with_one_warning() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["times=3", "fork=fork"])
        .with("ASYNCFORK_THREADS", "9")
        .fake_module(&["max_helpers=4"])
        .succeed_loaded();
    finished
        .expect_log(3, ASYNC)
        .expect_log(1, "warn: ASYNCFORK_THREADS=9 is more");
    assert_eq!(finished.sequence()[1], "arm flags=0 helpers=4 min_rss=0");
}

#[test]
fn a_failing_fork_fails_with_its_own_errno_though_armed() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["deny=77", "fork=fork"])
        .fake_module(&[])
        .succeed_loaded();
    finished.expect_stdout("fork failed: errno 77\n");
    // The filter that denies comes before the fake module's.
    assert_eq!(finished.sequence(), ["version", ARM], "{finished:#?}");
}

/// Version 2 did not say which is the oldest that it serves.
const USABLE: [[&str; 2]; 5] = [
    ["abi=2", "oldest=0"],
    ["abi=3", "oldest=2"],
    ["abi=3", "oldest=3"],
    ["abi=4", "oldest=2"],
    ["abi=4", "oldest=3"],
];
const UNUSABLE: [[&str; 2]; 4] = [
    ["abi=1", "oldest=0"],
    ["abi=4", "oldest=4"],
    ["abi=5", "oldest=4"],
    ["abi=4", "oldest=0"],
];

#[test]
fn another_abi_is_one_warning_that_names_both() {
    let fixture = Fixture::new();
    let program = fixture.compile("forks", &[]);
    for settings in UNUSABLE {
        let abi = settings[0].strip_prefix("abi=").unwrap();
        let finished = fixture
            .run(&program)
            .args(&["times=2", "fork=fork"])
            .fake_module(&settings)
            .succeed_loaded();
        let text = format!(
            ": stock fork: /dev/null speaks ABI {abi}, this library ABI 2 and 3; \
             install module and library of the same release"
        );
        finished
            .expect_stdout(&"fork gave a child\n".repeat(2))
            .expect_log(1, &format!(" warn{text}"))
            .expect_log(1, &format!(" debug{text}"))
            .expect_log(1, "warn: ");
        assert_eq!(finished.sequence(), ["version", "fork", "version", "fork"]);
        fs::remove_file(fixture.path("log")).unwrap();
    }
}

#[test]
fn modules_of_the_abi_before_and_of_newer_ones_that_serve_this_are_used() {
    let fixture = Fixture::new();
    let program = fixture.compile("forks", &[]);
    for settings in USABLE {
        for (mode, stats) in [("auto", None), ("require", Some("stats"))] {
            let finished = fixture
                .run(&program)
                .args(&["times=2", "fork=fork"])
                .with("ASYNCFORK", mode)
                .with("ASYNCFORK_THREADS", "9")
                .fake_module(&settings)
                .succeed_loaded();
            finished
                .expect_stdout(&"fork gave a child\n".repeat(2))
                .expect_log(
                    2,
                    "session 7, 512 chunks parked in 170 us, 3 copied at once",
                )
                // Its max_helpers were read as well.
                .expect_log(1, "warn: ")
                .expect_log(1, "warn: ASYNCFORK_THREADS=9 is more");
            let fork = ["version"].into_iter().chain(stats);
            let fork = fork.chain(["arm flags=0 helpers=4 min_rss=0", "fork armed", "report"]);
            let forks: Vec<_> = fork.clone().chain(fork).collect();
            assert_eq!(
                finished.sequence(),
                forks,
                "{settings:?} {mode}: {finished:#?}"
            );
            fs::remove_file(fixture.path("log")).unwrap();
        }
    }
}

/// What a module of the ABI before says in its own structs is understood.
#[test]
fn the_abi_before_says_why_a_fork_is_stock_and_whether_it_is_disabled() {
    let before = ["abi=2", "oldest=0"];
    let fixture = Fixture::new();
    let program = fixture.compile("forks", &[]);
    let run = || fixture.run(&program).args(&["fork=fork"]);
    let [outcome, reason] = stock(Reason::Pinned);
    run()
        .fake_module(&[before[0], before[1], &outcome, &reason])
        .succeed_loaded()
        .expect_log(1, Reason::Pinned.explain());
    for (setting, text) in [
        ("enabled=0", "(ASYNCFORK=require): disabled: "),
        ("switched_off=1", "(ASYNCFORK=require): switched_off: "),
    ] {
        run()
            .with("ASYNCFORK", "require")
            .fake_module(&[before[0], before[1], setting])
            .succeed_loaded()
            .expect_log(1, text);
    }
}

#[test]
fn a_failing_arm_is_a_stock_fork() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["times=2", "fork=fork"])
        .fake_module(&[&format!("arm_errno={}", libc::ENOMEM)])
        .succeed_loaded();
    finished
        .expect_stdout(&"fork gave a child\n".repeat(2))
        .expect_log(1, "warn: stock fork: /dev/null ARM: ENOMEM");
    assert_eq!(
        finished.sequence(),
        ["version", ARM, "fork", "version", ARM, "fork"]
    );
}

#[test]
fn a_failing_report_is_a_warning() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["times=2", "fork=fork"])
        .fake_module(&[&format!("report_errno={}", libc::EIO)])
        .succeed_loaded()
        .expect_stdout(&"fork gave a child\n".repeat(2))
        .expect_log(1, "warn: fork of ")
        .expect_log(2, "outcome unknown: /dev/null REPORT: EIO");
}

#[test]
fn reasons_that_matter_are_one_warning_each() {
    let program = |fixture: &Fixture| fixture.compile("forks", &[]);
    for &reason in Reason::ALL {
        let fixture = Fixture::new();
        let run = fixture
            .run(program(&fixture))
            .args(&["times=2", "fork=fork"]);
        let finished = fake_stock(run, reason);
        let quiet = matches!(reason, Reason::MinRss | Reason::Nothing);
        finished.expect_log(2, reason.explain());
        finished.expect_log(usize::from(!quiet), "warn: stock fork of ");
        finished.expect_log(0, ASYNC);
    }
    let fixture = Fixture::new();
    let run = fixture.run(program(&fixture)).args(&["fork=fork"]);
    fake_stock(run, Reason::Unknown(4711)).expect_log(1, "unknown(4711): the module has a reason");
}

#[test]
fn a_program_bound_to_one_cpu_is_warned_once() {
    for (cpus, warnings) in [(1, 1), (2, 0)] {
        let fixture = Fixture::new();
        fixture
            .program("forks")
            .args(&["times=2", "fork=fork"])
            .fake_module(&[&format!("cpus={cpus}")])
            .succeed_loaded()
            .expect_log(2, ASYNC)
            .expect_log(warnings, "warn: bound to one CPU: ");
    }
}

#[test]
fn a_fork_that_the_module_did_not_see_is_a_warning() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["fork=fork"])
        .fake_module(&["outcome=0"])
        .succeed_loaded()
        .expect_log(1, "warn: stock fork of ")
        .expect_log(1, "the module did not see it (outcome none)");
}

#[test]
fn descriptors_are_as_before_and_reused_ones_are_left_alone() {
    for first in [0, 3] {
        let fixture = Fixture::new();
        fs::create_dir(fixture.path("data")).unwrap();
        fixture
            .program("descriptors")
            .arg(fixture.path("data"))
            .args(&[&first.to_string()])
            .fake_module(&[])
            .succeed_loaded()
            .expect_log(3, ASYNC);
        for fd in first..=24 {
            let path = fixture.path("data").join(format!("data{fd}"));
            assert_eq!(fs::read_to_string(path).unwrap(), format!("data {fd}"));
        }
    }
}

/// The program takes the device's descriptor away in the middle of the fork.
#[test]
fn a_stolen_descriptor_is_not_touched() {
    for (when, file, report) in [
        (
            "prepare",
            ["child\n", "parent\n"].as_slice(),
            "was closed by the program while in use",
        ),
        (
            "parent",
            &["parent\n"],
            "was closed by the program while in use",
        ),
        ("child", &["child\n"], ASYNC),
    ] {
        let fixture = Fixture::new();
        fixture
            .program("steal")
            .arg(fixture.path("file"))
            .args(&[when])
            .fake_module(&[])
            .succeed_loaded()
            .expect_log(1, report);
        let got = fs::read_to_string(fixture.path("file")).unwrap();
        let mut lines: Vec<&str> = got.split_inclusive('\n').collect();
        lines.sort_unstable();
        assert_eq!(lines, file, "{when}");
    }
}

#[test]
fn a_fork_in_a_handler_within_fork_is_armed_for_itself() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("handler")
        .args(&["nested"])
        .with("ASYNCFORK_DEVICE", "/dev/null")
        .fake_module(&[])
        .succeed_loaded();
    finished.expect_log(2, ASYNC).expect_log(0, "warn: ");
    assert_eq!(
        finished.sequence(),
        [
            "version",
            ARM,
            "version",
            ARM,
            "fork armed",
            "report",
            "fork armed",
            "report"
        ],
        "{finished:#?}"
    );
}

/// The handler has used clone() itself; the pid tells, where it can be seen.
#[test]
fn an_asynchronous_fork_of_another_child_is_no_asynchronous_fork() {
    let other = "child_pid=1";
    let run = |settings: &[&str], mode| {
        let fixture = Fixture::new();
        let run = fixture.program("forks").args(&["times=2", "fork=fork"]);
        run.with("ASYNCFORK", mode)
            .fake_module(settings)
            .succeed_loaded()
    };
    run(&[other], "auto")
        .expect_log(0, ASYNC)
        .expect_log(2, "that fork, of 1, was asynchronous instead")
        .expect_log(1, "warn: stock fork of ");
    run(&[other], "require").expect_log(1, "error: stock fork of ");
    run(&["child_pid=0"], "require").expect_log(2, ASYNC);
}

/// It ends in the midst of the library's function.
#[test]
fn an_atfork_handler_may_end_its_thread() {
    for fake in [false, true] {
        let fixture = Fixture::new();
        let run = fixture.program("end_thread");
        let run = if fake { run.fake_module(&[]) } else { run };
        run.succeed_loaded();
    }
}

#[test]
fn threads_arm_and_fork_at_once() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("threads")
        .args(&["8", "10"])
        .fake_module(&[])
        .succeed_loaded();
    finished.expect_log(80, ASYNC).expect_log(0, "warn: ");
    let mut threads: Vec<&str> = finished
        .calls
        .lines()
        .map(|line| line.split_once(' ').unwrap().0)
        .collect();
    threads.sort_unstable();
    threads.dedup();
    assert_eq!(threads.len(), 8);
    for thread in threads {
        let prefix = format!("{thread} ");
        let own: Vec<&str> = finished
            .calls
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .collect();
        assert_eq!(own, SEQUENCE.repeat(10), "thread {thread}");
    }
}

#[test]
fn armed_forks_do_not_allocate() {
    let fixture = Fixture::new();
    fixture
        .program("malloc")
        .args(&["3"])
        .fake_module(&[])
        .succeed_loaded()
        .expect_log(3, ASYNC);
    let fixture = Fixture::new();
    let run = fixture.program("malloc").args(&["3"]);
    fake_stock(run, Reason::Pinned).expect_log(3, Reason::Pinned.explain());
}

#[test]
fn the_child_of_an_armed_fork_only_closes() {
    let fixture = Fixture::new();
    fixture
        .program("child_calls")
        .fake_module(&[])
        .succeed_loaded()
        .expect_log(1, ASYNC);
    fixture
        .program("child_calls")
        .args(&["control"])
        .fake_module(&[])
        .succeed_loaded();
}

#[test]
fn an_armed_fork_is_not_a_cancellation_point() {
    let fixture = Fixture::new();
    fixture
        .program("cancel")
        .fake_module(&[])
        .succeed_loaded()
        .expect_log(1, ASYNC);
}

#[test]
fn armed_after_setuid_and_when_logging_to_standard_error() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&[&format!("setuid={NOBODY}"), "times=2", "fork=fork"])
        .without("ASYNCFORK_LOG_FILE")
        .with("ASYNCFORK_LOG", "info")
        .fake_module(&[])
        .succeed();
    assert_eq!(finished.all_lines(ASYNC), 2, "{finished:#?}");
    assert_eq!(finished.stderr.lines().count(), 2, "{finished:#?}");
}

mod require {
    use super::*;

    fn require<'a>(fixture: &'a Fixture, settings: &[&str]) -> Run<'a> {
        let run = fixture.program("forks").args(&["times=2", "fork=fork"]);
        run.with("ASYNCFORK", "require").fake_module(settings)
    }

    #[test]
    fn forks_when_armed() {
        let fixture = Fixture::new();
        let finished = require(&fixture, &[]).succeed_loaded();
        finished
            .expect_stdout(&"fork gave a child\n".repeat(2))
            .expect_log(2, ASYNC);
        assert_eq!(
            finished.sequence()[..5],
            ["version", "stats", ARM, "fork armed", "report"]
        );
    }

    #[test]
    fn refuses_when_not() {
        let arm_fails = format!("arm_errno={}", libc::EBUSY);
        for (setting, text) in [
            (
                "enabled=0",
                "fork refused (ASYNCFORK=require): disabled: the module",
            ),
            (
                "switched_off=1",
                "fork refused (ASYNCFORK=require): switched_off: the module",
            ),
            (
                "abi=1",
                "fork refused (ASYNCFORK=require): /dev/null speaks ABI 1",
            ),
            (
                "oldest=4",
                "fork refused (ASYNCFORK=require): /dev/null speaks ABI 3",
            ),
            (
                &arm_fails,
                "fork refused (ASYNCFORK=require): /dev/null ARM: EBUSY",
            ),
        ] {
            let fixture = Fixture::new();
            let finished = require(&fixture, &[setting]).succeed_loaded();
            finished.expect_stdout(&format!("fork failed: errno {}\n", libc::ENOSYS).repeat(2));
            finished.expect_log(2, text).expect_log(1, "error: ");
            assert!(!finished.calls.contains("fork"), "{finished:#?}");
        }
    }

    /// The child exists by then; killing it would be worse than a line.
    #[test]
    fn can_only_complain_about_what_the_module_finds_in_the_fork() {
        let fixture = Fixture::new();
        let settings = stock(Reason::Pinned);
        require(&fixture, &[&settings[0], &settings[1]])
            .succeed_loaded()
            .expect_stdout(&"fork gave a child\n".repeat(2))
            .expect_log(1, "error: stock fork of ");
    }
}
