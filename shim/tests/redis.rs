// SPDX-License-Identifier: MIT OR Apache-2.0
//! A real redis-server snapshots under the library, on a machine without the
//! module and with the fake one.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::{Bench, Run};

/// Rather than wait for ever for a server that died.
const PATIENCE: Duration = Duration::from_secs(120);

const KEYS: &str = "50000";

/// Debian's redis-server is this program of redis-tools under another name, and
/// redis-tools brings no service with it.
const PROGRAM: &str = "/usr/bin/redis-check-rdb";

/// The server, under its name.
fn redis_server(bench: &Bench) -> PathBuf {
    let name = bench.path("redis-server");
    if !name.exists() {
        symlink(PROGRAM, &name).unwrap();
    }
    name
}

struct Server {
    client: BufReader<UnixStream>,
    process: Child,
    /// The server itself, when `process` is not it.
    pid: libc::pid_t,
}

impl Server {
    /// `run` is a run of redis-server without arguments yet.
    fn start(bench: &Bench, run: Run<'_>, daemonize: &str) -> Self {
        let socket = bench.path("redis.sock");
        let run = run
            .args(&[
                "--port",
                "0",
                "--save",
                "",
                "--enable-debug-command",
                "local",
            ])
            .args(&["--daemonize", daemonize, "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(bench.path(""))
            .arg("--logfile")
            .arg(bench.path("redis.log"));
        let (mut command, _) = run.command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command
            .spawn()
            .expect("start redis-server: install redis-tools (scripts/setup --test)");
        let client = wait_for("redis-server listens", || {
            if daemonize == "no" {
                assert_eq!(process.try_wait().unwrap(), None, "{}", redis_log(bench));
            }
            UnixStream::connect(&socket).ok()
        });
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut server = Self {
            client: BufReader::new(client),
            process,
            pid: 0,
        };
        server.pid = server.info("process_id").parse().unwrap();
        server
    }

    fn call(&mut self, command: &str) -> String {
        writeln!(self.client.get_mut(), "{command}\r").unwrap();
        let line = self.line();
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" | ":" => rest.to_owned(),
            "$" => {
                let mut bulk = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.client.read_exact(&mut bulk).unwrap();
                String::from_utf8(bulk).unwrap().trim_end().to_owned()
            }
            _ => panic!("{command}: {line}"),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.client.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// One field of INFO.
    fn info(&mut self, field: &str) -> String {
        let info = self.call("INFO");
        let found = info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        found
            .unwrap_or_else(|| panic!("no {field} in {info}"))
            .to_owned()
    }

    /// A whole snapshot, which must work.
    fn snapshot(&mut self) {
        let before: u64 = self.info("total_forks").parse().unwrap();
        self.call("BGSAVE");
        wait_for("the snapshot ends", || {
            (self.info("rdb_bgsave_in_progress") == "0").then_some(())
        });
        assert_eq!(self.info("rdb_last_bgsave_status"), "ok");
        assert_eq!(self.info("total_forks"), (before + 1).to_string());
    }

    fn stop(mut self) {
        // The answer is the end of the connection.
        writeln!(self.client.get_mut(), "SHUTDOWN NOSAVE\r").unwrap();
        assert_eq!(self.line(), "");
        self.process.wait().unwrap();
        // A daemon is nobody's child here.
        wait_for("the server ends", || {
            (!Path::new(&format!("/proc/{}", self.pid)).exists()).then_some(())
        });
        self.pid = 0;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.pid > 0 {
            // SAFETY: a plain system call; the server still runs after a failure.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = self.process.wait();
        }
    }
}

fn redis_log(bench: &Bench) -> String {
    std::fs::read_to_string(bench.path("redis.log")).unwrap_or_default()
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// Fills a server, snapshots twice; the second snapshot must hold its data.
fn snapshot_twice(bench: &Bench, run: Run<'_>, daemonize: &str) -> String {
    let mut server = Server::start(bench, run, daemonize);
    server.call(&format!("DEBUG POPULATE {KEYS} key 100"));
    server.snapshot();
    server.call("SET after first");
    let digest = server.call("DEBUG DIGEST");
    server.snapshot();
    server.stop();

    // Read back by a server of its own.
    let plain = bench.run(redis_server(bench)).no_preload();
    let mut reader = Server::start(bench, plain, "no");
    assert_eq!(reader.call("DEBUG DIGEST"), digest);
    assert_eq!(reader.call("GET after"), "first");
    reader.stop();
    std::fs::read_to_string(bench.path("log")).unwrap()
}

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn redis_snapshots_without_the_module() {
    let bench = Bench::new();
    let run = bench
        .run(redis_server(&bench))
        .with("ASYNCFORK_MIN_RSS", "8M")
        // On Debian this is a symbolic link to another name.
        .with("ASYNCFORK_MATCH", "redis-server");
    let log = snapshot_twice(&bench, run, "no");
    assert_eq!(count(&log, "loaded: mode auto"), 1, "{log}");
    assert_eq!(count(&log, "cannot be opened: ENOENT"), 2, "{log}");
    assert_eq!(count(&log, "warn: stock fork: "), 1, "{log}");
}

#[test]
fn redis_snapshots_as_a_daemon_without_the_module() {
    let bench = Bench::new();
    let run = bench
        .run(redis_server(&bench))
        .with("ASYNCFORK_MIN_RSS", "0");
    let log = snapshot_twice(&bench, run, "yes");
    // The fork into the background, and one each snapshot.
    assert_eq!(count(&log, "cannot be opened: ENOENT"), 3, "{log}");
    assert_eq!(count(&log, "warn: stock fork: "), 1, "{log}");
}

#[test]
fn redis_arms_its_snapshots() {
    let bench = Bench::new();
    let run = bench
        .run(redis_server(&bench))
        .with("ASYNCFORK_MIN_RSS", "8M")
        .fake_module(&[]);
    let log = snapshot_twice(&bench, run, "no");
    assert_eq!(count(&log, "info: async fork of "), 2, "{log}");
    let calls = std::fs::read_to_string(bench.path("calls")).unwrap();
    assert_eq!(count(&calls, "fork armed"), 2, "{calls}");
    assert_eq!(count(&calls, "report"), 2, "{calls}");
}
