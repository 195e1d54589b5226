// SPDX-License-Identifier: MIT OR Apache-2.0
//! A real redis-server snapshots under the library, on a machine without the
//! module and with the fake one.

mod support;

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use support::server::{snapshot_twice, Server, DEBUG};
use support::{Fixture, Run};

/// Debian's redis-server is this program of redis-tools under another name, and
/// redis-tools brings no service with it.
const PROGRAM: &str = "/usr/bin/redis-check-rdb";

/// The server, under its name.
fn redis_server(fixture: &Fixture) -> PathBuf {
    let name = fixture.path("redis-server");
    if !name.exists() {
        symlink(PROGRAM, &name).unwrap();
    }
    name
}

/// A run of the server.
fn redis(fixture: &Fixture) -> Run<'_> {
    fixture.run(redis_server(fixture)).args(&DEBUG)
}

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn redis_snapshots_without_the_module() {
    let fixture = Fixture::new();
    let run = redis(&fixture)
        .with("ASYNCFORK_MIN_RSS", "8M")
        // On Debian this is a symbolic link to another name.
        .with("ASYNCFORK_MATCH", "redis-server");
    let log = snapshot_twice(&fixture, run, redis(&fixture), "no");
    assert_eq!(count(&log, "loaded: mode auto"), 1, "{log}");
    assert_eq!(count(&log, "cannot be opened: ENOENT"), 2, "{log}");
    assert_eq!(count(&log, "warn: stock fork: "), 1, "{log}");
}

#[test]
fn redis_snapshots_as_a_daemon_without_the_module() {
    let fixture = Fixture::new();
    let run = redis(&fixture).with("ASYNCFORK_MIN_RSS", "0");
    let log = snapshot_twice(&fixture, run, redis(&fixture), "yes");
    // The fork into the background, and one each snapshot.
    assert_eq!(count(&log, "cannot be opened: ENOENT"), 3, "{log}");
    assert_eq!(count(&log, "warn: stock fork: "), 1, "{log}");
}

#[test]
fn redis_arms_its_snapshots() {
    let fixture = Fixture::new();
    let run = redis(&fixture)
        .with("ASYNCFORK_MIN_RSS", "8M")
        .fake_module(&[]);
    let log = snapshot_twice(&fixture, run, redis(&fixture), "no");
    assert_eq!(count(&log, "info: async fork of "), 2, "{log}");
    let calls = std::fs::read_to_string(fixture.path("calls")).unwrap();
    assert_eq!(count(&calls, "fork armed"), 2, "{calls}");
    assert_eq!(count(&calls, "report"), 2, "{calls}");
}

/// A log file that the system's limit of file sizes has stopped takes no line.
#[test]
fn redis_snapshots_though_the_log_is_at_the_file_size_limit() {
    const LIMIT: usize = 1 << 16;
    let fixture = Fixture::new();
    std::fs::write(fixture.path("log"), [b'.'; LIMIT]).unwrap();
    let run = fixture
        .run("/usr/bin/prlimit")
        .args(&[&format!("--fsize={LIMIT}")])
        .arg(redis_server(&fixture))
        .args(&DEBUG)
        .with("ASYNCFORK_MATCH", "redis-server")
        // Nothing of prlimit, then.
        .with("ASYNCFORK_LOG", "warn");
    let mut server = Server::start(&fixture, run, "no");
    server.call("SET key value");
    server.snapshot();
    server.snapshot();
    server.stop();
    let log = std::fs::metadata(fixture.path("log")).unwrap();
    assert_eq!(log.len(), LIMIT as u64);
}
