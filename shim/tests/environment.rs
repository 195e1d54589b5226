// SPDX-License-Identifier: MIT OR Apache-2.0
//! The environment variables, in a real process.

mod support;

use std::fs;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};

use support::{Fixture, NOBODY};

#[test]
fn a_bad_value_is_one_warning_and_the_default_is_used() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["times=2", "fork=fork"])
        .with("ASYNCFORK_MIN_RSS", "64X")
        .succeed_loaded();
    finished
        .expect_stdout(&"fork gave a child\n".repeat(2))
        .expect_log(
            1,
            r#"warn: ASYNCFORK_MIN_RSS="64X" is not a size (try 64M); using the default"#,
        )
        .expect_log(1, "warn: ")
        .expect_log(1, "armed from 67108864 bytes");
}

#[test]
fn bad_values_do_not_void_the_good_ones() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["fork=fork"])
        .with("ASYNCFORK", "yes")
        .with("ASYNCFORK_THREADS", "-1")
        .with("ASYNCFORK_MIN_RSS", "3K")
        .succeed_loaded()
        .expect_log(
            1,
            "loaded: mode auto, armed from 3072 bytes, 0 helper threads",
        )
        .expect_log(1, r#"ASYNCFORK="yes" is none of auto, off, require"#)
        .expect_log(1, r#"ASYNCFORK_THREADS="-1" is not a number"#);
}

#[test]
fn off_never_arms() {
    let fixture = Fixture::new();
    let finished = fixture
        .program("forks")
        .args(&["fork=fork"])
        .with("ASYNCFORK", "off")
        .succeed();
    finished
        .expect_stdout("fork gave a child\n")
        .expect_log(1, "debug: loaded, idle: ASYNCFORK=off")
        .expect_log(1, "asyncfork[");
}

#[test]
fn require_refuses_large_forks_only() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&[
            "fork=fork",
            "mib=80",
            "fork=fork",
            "fork=_Fork",
            "fork=__fork",
        ])
        .with("ASYNCFORK", "require")
        .without("ASYNCFORK_MIN_RSS")
        .succeed_loaded()
        .expect_stdout(
            "fork gave a child\nfork failed: errno 38\n\
             _Fork failed: errno 38\n__fork failed: errno 38\n",
        )
        .expect_log(1, "error: fork refused (ASYNCFORK=require): ")
        .expect_log(3, "cannot be opened: ENOENT");
}

#[test]
fn other_programs_are_left_alone() {
    let fixture = Fixture::new();
    fixture
        .program("forks")
        .args(&["fork=fork"])
        .with("ASYNCFORK_MATCH", "redis-server,valkey-server")
        .with("ASYNCFORK_THREADS", "bad, but not this program's business")
        .succeed()
        .expect_stdout("fork gave a child\n")
        .expect_log(1, "debug: loaded, idle: not in ASYNCFORK_MATCH")
        .expect_log(1, "asyncfork[");
}

#[test]
fn a_program_is_named_by_its_file_or_as_it_was_started() {
    let fixture = Fixture::new();
    let program = fixture.compile("forks", &[]);
    let link = fixture.path("a-very-long-name-of-a-server");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    for (started, name) in [
        (&program, "forks"),
        (&link, "forks"),
        (&link, "redis-server,a-very-long-name-of-a-server"),
    ] {
        let fixture = Fixture::new();
        fixture
            .run(started)
            .args(&["fork=fork"])
            .with("ASYNCFORK_MATCH", name)
            .succeed_loaded()
            .expect_log(1, "stock fork: ");
    }
}

#[test]
fn log_levels_are_kept() {
    for (level, lines) in [
        ("off", 0),
        ("error", 0),
        ("warn", 1),
        ("info", 1),
        ("debug", 4),
    ] {
        let fixture = Fixture::new();
        let finished = fixture
            .program("forks")
            .args(&["times=3", "fork=fork"])
            .with("ASYNCFORK_LOG", level)
            .succeed();
        finished.expect_log(lines, "asyncfork[");
        assert_eq!(finished.stderr, "", "{finished:#?}");
    }
}

#[test]
fn the_log_file_is_private_and_appended_to() {
    let fixture = Fixture::new();
    for runs in 1..=2 {
        fixture
            .program("forks")
            .args(&["fork=fork"])
            .succeed()
            .expect_log(runs, "loaded: mode");
    }
    let log = fs::metadata(fixture.path("log")).unwrap();
    assert_eq!(log.mode() & 0o777, 0o600);
}

#[test]
fn lines_go_to_standard_error_by_default_and_when_the_file_fails() {
    let fixture = Fixture::new();
    let run = || fixture.program("forks").args(&["fork=fork"]);
    let default = run().without("ASYNCFORK_LOG_FILE").succeed();
    assert_eq!(default.stderr.lines().count(), 2, "{default:#?}");
    let failing = run()
        .with("ASYNCFORK_LOG_FILE", fixture.path("no/such/log"))
        .succeed();
    assert_eq!(failing.stderr.lines().count(), 2, "{failing:#?}");
    let relative = run().with("ASYNCFORK_LOG_FILE", "asyncfork.log").succeed();
    assert_eq!(
        relative.all_lines("is not an absolute path; using the default"),
        1
    );
    assert_eq!(relative.stderr.lines().count(), 3, "{relative:#?}");
}

/// A caller of a set-user-ID program chooses the environment, not what it opens.
#[test]
fn a_set_user_id_program_ignores_the_environment() {
    let fixture = Fixture::new();
    let library = fixture.library();
    let rpath = format!(
        "-Wl,--no-as-needed,-rpath,{}",
        library.parent().unwrap().display()
    );
    let program = fixture.compile("forks", &[library.as_os_str(), rpath.as_ref()]);
    let run = || fixture.run(&program).args(&["fork=fork"]).no_preload();
    run().succeed_loaded().expect_log(1, "stock fork: ");
    fs::remove_file(fixture.path("log")).unwrap();

    chown(&program, Some(NOBODY), None).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    // It checks that our fork is the one it calls.
    let finished = run().with("ASYNCFORK", "require").succeed();
    finished.expect_stdout("fork gave a child\n");
    assert_eq!(finished.stderr, "");
    assert!(!fixture.path("log").exists());
}
