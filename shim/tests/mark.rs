// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mark of a process that no enrolment of its cgroup is to serve. That the module
//! heeds it is for the VM tests to show.

mod support;

use support::{Fixture, Run};

const MARKED: &str = "1 marks\n1 marks in the child\n";
const UNMARKED: &str = "0 marks\n0 marks in the child\n";
/// An ARM that makes the fork a stock fork.
const KEPT_STOCK: [&str; 4] = [
    "version",
    "arm flags=0 helpers=0 min_rss=18446744073709551615",
    "fork armed",
    "report",
];
const NOT_KEPT: &str = "fork not kept from being asynchronous by enrolment of its cgroup \
                        (process not marked): ";

/// A program too small for the library to arm.
fn forks<'a>(fixture: &'a Fixture, mode: &str) -> Run<'a> {
    fixture
        .program("forks")
        .with("ASYNCFORK", mode)
        .without("ASYNCFORK_MIN_RSS")
}

#[test]
fn off_and_require_mark_the_process_once_and_auto_does_not() {
    for (mode, prints) in [("off", MARKED), ("require", MARKED), ("auto", UNMARKED)] {
        let fixture = Fixture::new();
        forks(&fixture, mode)
            .args(&["marks"])
            .succeed()
            .expect_stdout(prints)
            .expect_log(0, "not marked")
            .expect_log(0, "warn: ");
    }
}

#[test]
fn a_new_program_is_marked_by_its_own_library() {
    let fixture = Fixture::new();
    let run = forks(&fixture, "off").args(&["marks", "exec", "marks"]);
    run.succeed().expect_stdout(&MARKED.repeat(2));
}

#[test]
fn programs_that_are_left_alone_are_not_marked() {
    let fixture = Fixture::new();
    forks(&fixture, "off")
        .args(&["marks"])
        .with("ASYNCFORK_MATCH", "redis-server")
        .succeed()
        .expect_stdout(UNMARKED)
        .expect_log(1, "loaded, idle: not in ASYNCFORK_MATCH");
}

#[test]
fn a_kernel_that_does_not_know_the_newest_flags_has_marks() {
    let fixture = Fixture::new();
    let run = forks(&fixture, "off").args(&["old_memfd", "exec", "marks"]);
    run.succeed().expect_stdout(MARKED);
}

/// Even of length 0.
#[test]
fn a_limit_of_file_sizes_is_no_obstacle() {
    let fixture = Fixture::new();
    let run = forks(&fixture, "off").without("ASYNCFORK_LOG_FILE");
    let run = run.args(&["fsize=0", "exec", "marks"]);
    run.succeed().expect_stdout(MARKED);
}

#[test]
fn without_a_mark_stock_forks_are_kept_stock_by_an_arm() {
    for obstacle in ["no_memfd=1", "no_mmap=12"] {
        for mode in ["off", "require"] {
            let fixture = Fixture::new();
            let finished = forks(&fixture, mode)
                .args(&[obstacle, "exec", "marks", "fork=_Fork"])
                .fake_module(&["outcome=2", "reason=3"])
                .succeed();
            finished
                .expect_stdout(&format!("{UNMARKED}_Fork gave a child\n"))
                .expect_log(1, "debug: process not marked: E")
                .expect_log(2, "debug: stock fork of ")
                .expect_log(0, "warn: ")
                .expect_log(0, "error: ");
            assert_eq!(finished.sequence(), KEPT_STOCK.repeat(2), "{finished:#?}");
        }
    }
}

#[test]
fn without_a_mark_large_forks_are_armed_as_ever() {
    let fixture = Fixture::new();
    let finished = forks(&fixture, "require")
        .args(&["no_memfd=1", "exec", "mib=80", "fork=fork"])
        .fake_module(&[])
        .succeed();
    finished
        .expect_stdout("fork gave a child\n")
        .expect_log(1, "info: async fork of ");
}

/// Such a fork may be asynchronous, but not silently.
#[test]
fn without_mark_and_device_a_stock_fork_is_a_complaint() {
    for (mode, level) in [("off", "warn"), ("require", "error")] {
        let fixture = Fixture::new();
        let finished = forks(&fixture, mode)
            .args(&["no_memfd=1", "exec", "times=2", "fork=fork"])
            .succeed();
        finished
            .expect_stdout(&"fork gave a child\n".repeat(2))
            .expect_log(1, &format!("{level}: {NOT_KEPT}"))
            .expect_log(2, "(process not marked): ")
            .expect_log(2, "no-device cannot be opened: ENOENT");
    }
}

#[test]
fn without_a_mark_auto_is_not_concerned() {
    let fixture = Fixture::new();
    let finished = forks(&fixture, "auto")
        .args(&["no_memfd=1", "exec", "fork=fork"])
        .fake_module(&[])
        .succeed();
    finished.expect_log(0, "marked");
    assert_eq!(finished.sequence(), ["fork"], "{finished:#?}");
}
