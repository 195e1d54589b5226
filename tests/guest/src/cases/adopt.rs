// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes that no library could serve, enrolled by the command from outside; those in containers: container.rs.

use super::command;
use super::device::no_session;
use super::Test;
use crate::cgroup::Cgroup;
use crate::claim;
use crate::ctx::Ctx;
use crate::module;
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::By;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

pub const TESTS: &[Test] = &[Test::new(
    "running_static_musl_program_is_enrolled_and_forks_async",
    musl,
)
.module()
.quick()];

/// Chunks of the program that are parked, at least.
const CHUNKS: u64 = 12;
/// How [`program`] is linked statically with musl.
pub(super) const STATIC: &[&str] = &["musl-gcc", "-static"];

/// The program of adopt.c, made by this compiler.
pub(super) fn program(dir: &Path, compiler: &[&str]) -> TestResult<PathBuf> {
    let (source, program) = (dir.join("program.c"), dir.join("program"));
    fs::write(&source, include_str!("adopt.c"))?;
    let output = Command::new(compiler[0])
        .args(&compiler[1..])
        .args(["-O1", "-o"])
        .args([&program, &source])
        .output()
        .at(compiler[0])?;
    let said = String::from_utf8_lossy(&output.stderr);
    claim!(output.status.success(), "{compiler:?}: {said}");
    Ok(program)
}

/// The program, running.
pub(super) struct Server {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Server {
    pub(super) fn start(command: &mut Command) -> TestResult<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let Some(said) = process.stdout.take().map(BufReader::new) else {
            return Err(Verdict::Broken("no pipe".into()));
        };
        let mut server = Self { process, said };
        server.expect("ready")?;
        Ok(server)
    }

    fn expect(&mut self, want: &str) -> TestResult {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        claim!(line.trim_end() == want, "it says {line:?}, want {want:?}");
        Ok(())
    }

    pub(super) fn ask(&mut self, line: &str, answer: &str) -> TestResult {
        let Some(input) = &mut self.process.stdin else {
            return Err(Verdict::Broken("no pipe".into()));
        };
        writeln!(input, "{line}")?;
        self.expect(answer)
    }

    /// It forks, and both sides have the right memory.
    pub(super) fn fork(&mut self) -> TestResult {
        self.ask("fork", "child right, parent right")
    }

    pub(super) fn stop(mut self) -> TestResult {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        claim!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// Runs the command; what it printed.
pub(super) fn asyncfork(ctx: &Ctx, args: &[&str]) -> TestResult<String> {
    Ok(command::asyncfork(ctx, args)?.exits(0)?.out)
}

/// Stock, asynchronous from the enrolment on, stock after it: by the module's account. `pid` is the process in `group`.
pub(super) fn adopted(
    ctx: &Ctx,
    server: &mut Server,
    pid: i32,
    group: &Cgroup,
) -> TestResult<String> {
    let id = fs::metadata(group.path())?.ino();
    let number = pid.to_string();
    no_session(ctx, || server.fork())?;

    let said = asyncfork(ctx, &["enroll", "--pid", &number, "--min-rss", "1M"])?;
    claim!(said.contains("changed: true"), "enroll says {said:?}");
    let before = ctx.stats()?;
    for n in 1..=2 {
        server.fork()?;
        let ended = ctx.ended_session_of(pid)?;
        ended.whole(CHUNKS)?.holds("the entry asked for it", |r| {
            r.by() == By::Enrolled && r.entry_id == id && r.cgroup_id == id
        })?;
        let counted = ctx.stats()?.r#async - before.r#async;
        claim!(counted == n, "{counted} asynchronous forks, want {n}");
    }
    let ended = ctx.ended_session_of(pid)?;
    let said = asyncfork(ctx, &["explain", &number])?;
    for words in ["an asynchronous fork", &format!("number {id} is enrolled")] {
        claim!(said.contains(words), "explain says no {words:?}: {said}");
    }

    let said = asyncfork(ctx, &["unenroll", "--pid", &number])?;
    claim!(said.contains("changed: true"), "unenroll says {said:?}");
    no_session(ctx, || server.fork())?;
    let entries = module::enrolled(&module::open()?)?;
    claim!(
        entries.iter().all(|e| e.cgroup_id != id),
        "the entry is still there"
    );
    Ok(ended.detail())
}

fn musl(ctx: &Ctx) -> TestResult<String> {
    let program = program(&ctx.scratch, STATIC)?;
    let group = ctx.cgroup.child("static")?;
    let mut server = Server::start(&mut Command::new(program))?;
    let pid = server.process.id() as i32;
    group.set("cgroup.procs", pid)?;
    let detail = adopted(ctx, &mut server, pid, &group)?;
    server.stop()?;
    Ok(detail)
}
