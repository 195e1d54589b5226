// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real servers.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Fixture, Run};

/// Rather than wait for ever for a server that died.
const PATIENCE: Duration = Duration::from_secs(120);

const KEYS: &str = "50000";

/// What Redis wants since version 7 before it obeys DEBUG.
pub const DEBUG: [&str; 2] = ["--enable-debug-command", "local"];

/// A running redis-server and a connection to it.
pub struct Server {
    client: BufReader<UnixStream>,
    process: Child,
    /// The server itself, when `process` is not it.
    pid: libc::pid_t,
}

impl Server {
    /// `run` is a run of redis-server with no arguments, or with some of its settings.
    pub fn start(fixture: &Fixture, run: Run<'_>, daemonize: &str) -> Self {
        const SOCKET: &str = "redis.sock";
        let run = run
            .args(&["--port", "0", "--save", ""])
            .args(&["--daemonize", daemonize, "--unixsocket"])
            .arg(fixture.seen(SOCKET))
            .arg("--dir")
            .arg(fixture.seen(""))
            .arg("--logfile")
            .arg(fixture.seen("redis.log"));
        let (mut command, _) = run.command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command
            .spawn()
            .expect("start redis-server: install redis-tools (scripts/setup --test)");
        let client = wait_for("redis-server listens", || {
            if daemonize == "no" {
                assert_eq!(process.try_wait().unwrap(), None, "{}", redis_log(fixture));
            }
            UnixStream::connect(fixture.path(SOCKET)).ok()
        });
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut server = Self {
            client: BufReader::new(client),
            process,
            pid: 0,
        };
        server.pid = server.info("process_id").parse().unwrap();
        // It obeys DEBUG before that, too.
        wait_for("redis-server has read its data", || {
            (server.info("loading") == "0").then_some(())
        });
        server
    }

    /// The answer to a command.
    pub fn call(&mut self, command: &str) -> String {
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
    pub fn snapshot(&mut self) {
        assert_eq!(self.call("BGSAVE"), "Background saving started");
        wait_for("the snapshot ends", || {
            (self.info("rdb_bgsave_in_progress") == "0").then_some(())
        });
        assert_eq!(self.info("rdb_last_bgsave_status"), "ok");
    }

    /// Ends it without another snapshot.
    pub fn stop(mut self) {
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

fn redis_log(fixture: &Fixture) -> String {
    fs::read_to_string(fixture.path("redis.log")).unwrap_or_default()
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

/// Fills a server, snapshots twice; the second snapshot must hold its data, as a
/// run of the server without the library reads it. What the library logged.
pub fn snapshot_twice(fixture: &Fixture, run: Run<'_>, reader: Run<'_>, daemonize: &str) -> String {
    let mut server = Server::start(fixture, run, daemonize);
    server.call(&format!("DEBUG POPULATE {KEYS} key 100"));
    server.snapshot();
    server.call("SET after first");
    let digest = server.call("DEBUG DIGEST");
    server.snapshot();
    server.stop();

    let mut reader = Server::start(fixture, reader.no_preload(), "no");
    assert_eq!(reader.call("DEBUG DIGEST"), digest);
    assert_eq!(reader.call("GET after"), "first");
    reader.stop();
    fs::read_to_string(fixture.path("log")).unwrap()
}
