// SPDX-License-Identifier: MIT OR Apache-2.0
//! Without the module every fork is the C library's own, whatever the program
//! does to itself.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::{Fixture, NOBODY};

const NO_DEVICE: &str = "cannot be opened: ENOENT; load the module";

#[test]
fn each_entry_point_gives_a_child_and_keeps_errno() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["fork=fork", "fork=_Fork", "fork=__fork"])
        .succeed_loaded()
        .expect_stdout("fork gave a child\n_Fork gave a child\n__fork gave a child\n")
        .expect_log(
            1,
            &format!(
                "warn: stock fork: {}/no-device {NO_DEVICE}",
                bench_dir(&fixture)
            ),
        )
        .expect_log(2, "debug: stock fork: ");
}

fn bench_dir(fixture: &Fixture) -> String {
    fixture
        .path("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned()
}

#[test]
fn a_failing_fork_fails_with_its_own_errno() {
    let fixture = Fixture::new();
    for errno in [libc::EAGAIN, 77] {
        fixture
            .program("forks")
            .args(&[
                &format!("deny={errno}"),
                "fork=fork",
                "fork=_Fork",
                "fork=__fork",
            ])
            .succeed_loaded()
            .expect_stdout(&format!(
                "fork failed: errno {errno}\n_Fork failed: errno {errno}\n\
                 __fork failed: errno {errno}\n"
            ));
    }
}

#[test]
fn a_missing_device_is_one_warning_per_process() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["times=5", "fork=fork"])
        .with("ASYNCFORK_LOG", "warn")
        .succeed()
        .expect_stdout(&"fork gave a child\n".repeat(5))
        .expect_log(1, "asyncfork[")
        .expect_log(1, NO_DEVICE);
}

#[test]
fn small_processes_do_not_look_for_the_device() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["fork=fork"])
        .without("ASYNCFORK_MIN_RSS")
        .succeed_loaded()
        .expect_log(1, "debug: stock fork: ")
        .expect_log(1, "bytes resident, armed from 67108864 (ASYNCFORK_MIN_RSS)")
        .expect_log(0, "no-device cannot");
    fixture
        .program("forks")
        .args(&["mib=80", "fork=fork"])
        .without("ASYNCFORK_MIN_RSS")
        .succeed_loaded()
        .expect_log(1, NO_DEVICE);
}

/// execve() passes the peak resident size on.
#[test]
fn a_small_program_started_by_a_large_one_is_small() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["mib=80", "exec", "fork=fork"])
        .without("ASYNCFORK_MIN_RSS")
        .succeed()
        .expect_stdout("fork gave a child\n")
        .expect_log(2, "loaded: mode auto")
        .expect_log(1, "bytes resident, armed from")
        .expect_log(0, "no-device cannot");
}

#[test]
fn an_unreadable_device_is_one_warning() {
    let fixture = Fixture::new();
    fs::write(fixture.path("device"), "").unwrap();
    fs::set_permissions(fixture.path("device"), fs::Permissions::from_mode(0o600)).unwrap();
    let device = fixture.path("device");
    let run = fixture
        .program("forks")
        .args(&[&format!("setuid={NOBODY}"), "times=3", "fork=fork"])
        .with("ASYNCFORK_DEVICE", device);
    // The log file is root's by then: standard error has to do.
    let finished = run.succeed_loaded();
    assert_eq!(finished.all_lines("warn: stock fork: "), 1, "{finished:#?}");
    assert_eq!(
        finished.all_lines("EACCES; add the service's user to group"),
        3,
        "{finished:#?}"
    );
    finished.expect_stdout(&"fork gave a child\n".repeat(3));
}

#[test]
fn another_kind_of_file_is_refused() {
    let fixture = Fixture::new();
    fs::write(fixture.path("device"), "").unwrap();
    let device = fixture.path("device");
    fixture
        .program("forks")
        .args(&["fork=fork"])
        .with("ASYNCFORK_DEVICE", device)
        .succeed_loaded()
        .expect_log(1, "warn: stock fork: ")
        .expect_log(1, "is not a character device");
}

#[test]
fn another_device_is_recognised() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["times=2", "fork=fork"])
        .with("ASYNCFORK_DEVICE", "/dev/null")
        .succeed_loaded()
        .expect_stdout(&"fork gave a child\n".repeat(2))
        .expect_log(
            1,
            "warn: stock fork: /dev/null VERSION: ENOTTY; this is not the asyncfork",
        );
}

#[test]
fn forks_after_chroot() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("root")).unwrap();
    let root = fixture.path("root");
    let finished = fixture
        .program("forks")
        .arg(format!("chroot={}", root.display()))
        .args(&["times=2", "fork=fork", "fork=_Fork"])
        .succeed_loaded();
    finished.expect_stdout("fork gave a child\nfork gave a child\n_Fork gave a child\n");
    // Neither the device nor the log file is in there.
    assert_eq!(finished.all_lines("warn: stock fork: "), 1, "{finished:#?}");
    assert!(finished.stderr.contains(NO_DEVICE), "{finished:#?}");
}

/// Without /proc the peak has to do: this process is large for sure.
#[test]
fn a_large_process_is_recognised_after_chroot() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("root")).unwrap();
    let root = fixture.path("root");
    let finished = fixture
        .program("forks")
        .arg(format!("chroot={}", root.display()))
        .args(&["fork=fork", "mib=80", "fork=fork"])
        .without("ASYNCFORK_MIN_RSS")
        .succeed_loaded();
    assert_eq!(
        finished.all_lines("bytes resident, armed from"),
        1,
        "{finished:#?}"
    );
    assert_eq!(finished.all_lines(NO_DEVICE), 1, "{finished:#?}");
}

#[test]
fn forks_after_setuid() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&[&format!("setuid={NOBODY}"), "times=2", "fork=fork"])
        .succeed_loaded();
    finished.expect_stdout(&"fork gave a child\n".repeat(2));
    assert_eq!(finished.all_lines(NO_DEVICE), 2, "{finished:#?}");
}

#[test]
fn forks_when_out_of_descriptors() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["full", "times=2", "fork=fork"])
        .with("ASYNCFORK_DEVICE", "/dev/null")
        .succeed_loaded();
    finished.expect_stdout(&"fork gave a child\n".repeat(2));
    // No descriptor for the log file either.
    assert_eq!(finished.all_lines("warn: stock fork: "), 1, "{finished:#?}");
    assert!(
        finished.stderr.contains("EMFILE; raise the limit"),
        "{finished:#?}"
    );
}

#[test]
fn descriptors_that_the_program_reused_are_left_alone() {
    for first in [0, 3] {
        for log_file in [true, false] {
            let fixture = Fixture::new();
            fs::create_dir(fixture.path("data")).unwrap();
            let mut run = fixture
                .program("descriptors")
                .arg(fixture.path("data"))
                .args(&[&first.to_string()]);
            if !log_file {
                run = run.without("ASYNCFORK_LOG_FILE");
            }
            let finished = run.succeed_loaded();
            if log_file {
                finished.expect_log(1, "warn: stock fork: ");
            }
            for fd in first..=24 {
                let path = fixture.path("data").join(format!("data{fd}"));
                assert_eq!(fs::read_to_string(path).unwrap(), format!("data {fd}"));
            }
        }
    }
}

#[test]
fn standard_error_that_became_a_file_is_left_alone() {
    for mode in ["reused", "closed"] {
        let fixture = Fixture::new();
        let finished = fixture
            .program("stderr")
            .args(&[mode])
            .arg(fixture.path("data"))
            .without("ASYNCFORK_LOG_FILE")
            .succeed_loaded();
        assert_eq!(finished.all_lines("stock fork"), 0, "{finished:#?}");
        assert_eq!(fs::read_to_string(fixture.path("data")).unwrap(), "");
    }
}

/// If it fails, "full" dies of SIGALRM and "broken" of SIGPIPE.
#[test]
fn standard_error_without_a_reader_is_harmless() {
    for mode in ["broken", "full"] {
        let fixture = Fixture::new();
        fixture
            .program("stderr")
            .args(&[mode])
            .without("ASYNCFORK_LOG_FILE")
            .succeed_loaded();
    }
}

#[test]
fn forks_in_a_signal_handler() {
    let fixture = Fixture::new();
    fixture
        .program("handler")
        .args(&["plain"])
        .succeed_loaded()
        .expect_log(20, NO_DEVICE);
    fixture
        .program("handler")
        .args(&["nested"])
        .succeed_loaded()
        .expect_log(22, NO_DEVICE);
}

#[test]
fn threads_fork_at_once() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("threads")
        .args(&["8", "25"])
        .succeed_loaded();
    finished
        .expect_log(200, "stock fork: ")
        .expect_log(1, "warn: ");
    // Each line was one write: none is torn.
    for line in finished.log.lines() {
        assert!(
            line.starts_with("asyncfork[") && !line[1..].contains("asyncfork["),
            "{line}"
        );
    }
}

#[test]
fn forks_in_an_earlier_constructor_of_another_library() {
    let fixture = Fixture::new();
    let early = fixture.compile("early_lib", &["-shared".as_ref(), "-fPIC".as_ref()]);
    let program = fixture.compile("forks", &[]);
    let finished = fixture
        .run(program)
        .args(&["fork=fork"])
        .also_preload(early)
        .succeed_loaded();
    finished.expect_stdout("early: 3\nfork gave a child\n");
    // Its forks came before the settings were read.
    assert!(
        finished
            .log
            .lines()
            .next()
            .unwrap()
            .contains("loaded: mode"),
        "{finished:#?}"
    );
    finished.expect_log(1, "stock fork: ");
}

#[test]
fn fork_is_not_a_cancellation_point() {
    let fixture = Fixture::new();
    fixture
        .program("cancel")
        .succeed_loaded()
        .expect_log(1, NO_DEVICE);
}

#[test]
fn buffers_and_exit_handlers_are_as_without_the_library() {
    let fixture = Fixture::new();
    let with = fixture.program("stdio").succeed_loaded();
    with.expect_log(1, NO_DEVICE);
    let alone = fixture.program("stdio").no_preload().succeed();
    assert_eq!(with.stdout, alone.stdout);
    assert_eq!(alone.stdout, "before\nchild\nbye\nbefore\nparent\nbye\n");
}

#[test]
fn nothing_is_allocated_within_fork() {
    let fixture = Fixture::new();
    fixture
        .program("malloc")
        .args(&["3"])
        .succeed_loaded()
        .expect_log(3, NO_DEVICE);
    fixture
        .program("malloc")
        .args(&["3"])
        .without("ASYNCFORK_MIN_RSS")
        .succeed_loaded()
        .expect_log(3, "bytes resident, armed from");
}

#[test]
fn the_child_makes_no_system_call_of_the_librarys() {
    let fixture = Fixture::new();
    fixture
        .program("child_calls")
        .succeed_loaded()
        .expect_log(1, NO_DEVICE);
    fixture
        .program("child_calls")
        .args(&["control"])
        .succeed_loaded();
}

#[test]
fn other_ways_to_start_a_process_are_left_alone() {
    let fixture = Fixture::new();
    fixture
        .program("others")
        .succeed_loaded()
        .expect_log(1, "stock fork: ");
}

/// Its symbols are what the others get: whatever the library imported would come from there.
#[test]
fn programs_that_lack_or_replace_the_c_librarys_functions_start() {
    let fixture = Fixture::new();
    let no_libc = ["-nostdlib", "-nostartfiles", "-fPIE", "-pie"].map(OsStr::new);
    let no_libc = fixture.compile("no_libc", &no_libc);
    fixture.run(no_libc).succeed();
    let own = fixture.compile("own_strlen", &["-rdynamic".as_ref()]);
    fixture
        .run(own)
        .succeed_loaded()
        .expect_log(1, "stock fork: ");
}

#[test]
fn behind_a_library_that_hooks_dlsym_the_fork_is_not_our_own() {
    let fixture = Fixture::new();
    let hook = fixture.compile("hook_dlsym", &["-shared".as_ref(), "-fPIC".as_ref()]);
    fixture
        .program("forks")
        .args(&["fork=fork"])
        .preload_first(hook)
        .succeed_loaded()
        .expect_stdout("fork gave a child\n")
        .expect_log(1, "stock fork: ");
}

/// The line is long: the device has a long name.
#[test]
fn a_terminal_with_room_for_a_part_of_a_line_is_not_waited_for() {
    let fixture = Fixture::new();
    fixture
        .program("terminal_room")
        .args(&["open"])
        .with("ASYNCFORK_DEVICE", fixture.path(&"l".repeat(200)))
        .without("ASYNCFORK_LOG_FILE")
        .succeed();
}
