// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command asyncfork, as an operator runs it, against the module.

use super::device::{arm, open, plain_fork, report};
use super::Test;
use crate::board::Board;
use crate::cases::common::while_plugged;
use crate::cases::eligible::virtual_machine;
use crate::cases::io::{io_uring, register};
use crate::cgroup::Cgroup;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::{run_anywhere, Plug};
use crate::mem::{Arena, Span, CHUNK, PAGE};
use crate::module::{self, device_error};
use crate::procfs::Setting;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::{Arm, By, Hook, Outcome as Fate, Reason, Report, Stats};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

pub const TESTS: &[Test] = &[
    Test::new(
        "command_status_tells_the_modules_totals_as_text_and_json",
        status,
    )
    .module()
    .quick(),
    Test::new(
        "command_watch_prints_forks_as_they_happen_and_those_before",
        watch,
    )
    .module(),
    Test::new(
        "command_explains_forks_and_says_what_to_do_about_stock_ones",
        explain,
    )
    .module(),
    Test::new(
        "command_switches_the_module_and_the_next_fork_follows",
        switch,
    )
    .module(),
    Test::new(
        "command_enrolls_by_path_pid_and_itself_and_forks_follow",
        enrol,
    )
    .module(),
    Test::new(
        "command_prints_metrics_that_are_the_modules_totals",
        metrics,
    )
    .module(),
    Test::new("command_bench_measures_asynchronous_forks", bench).module(),
    Test::new(
        "command_runs_programs_with_the_library_and_passes_their_status_on",
        run,
    )
    .module(),
    Test::new(
        "wrong_input_of_the_command_is_told_in_one_line_and_changes_nothing",
        wrong_input,
    )
    .module()
    .quick(),
    Test::new(
        "command_without_privilege_changes_nothing_and_says_what_it_takes",
        unprivileged,
    )
    .module(),
    Test::new("doctor_leaves_parked_memory_alone", undisturbed).module(),
    Test::new(
        "doctor_predicts_the_pause_stock_and_asynchronous_within_a_factor_of_two",
        prediction,
    )
    .module(),
    Test::new(
        "doctors_findings_about_the_module_go_by_what_it_prints",
        |ctx| cases(ctx, MODULE),
    )
    .module(),
    Test::new(
        "doctors_findings_about_the_device_go_by_what_it_prints",
        |ctx| cases(ctx, DEVICE),
    )
    .module(),
    Test::new(
        "doctors_findings_about_a_process_go_by_what_it_prints",
        |ctx| cases(ctx, PROCESS),
    )
    .module(),
    Test::new(
        "doctors_findings_about_settings_go_by_what_it_prints",
        |ctx| cases(ctx, SETTINGS),
    )
    .module(),
    Test::new(
        "doctors_findings_about_the_system_go_by_what_it_prints",
        |ctx| cases(ctx, SYSTEM),
    )
    .module(),
    Test::new(
        "doctors_findings_about_the_next_boot_go_by_what_it_prints",
        |ctx| cases(ctx, NEXT),
    )
    .module(),
    Test::new(
        "doctors_findings_about_a_module_that_fails_go_by_what_it_prints",
        |ctx| cases(ctx, FAULTS),
    )
    .faults(),
    Test::new(
        "library_and_command_work_with_a_module_of_the_abi_before",
        abi_before,
    )
    .faults(),
    Test::new(
        "library_and_command_leave_a_module_alone_that_serves_later_abis_only",
        abi_after,
    )
    .faults(),
];

/// What the program printed, and its exit code.
#[derive(Debug)]
pub(super) struct Said {
    code: i32,
    pub(super) out: String,
    err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Demands an exit code.
    pub(super) fn exits(self, code: i32) -> TestResult<Self> {
        claim!(self.code == code, "want exit code {code}: {self:?}");
        Ok(self)
    }

    /// Demands words on standard output.
    fn says(self, words: &[&str]) -> TestResult<Self> {
        for word in words {
            claim!(self.out.contains(word), "no {word:?}: {self:?}");
        }
        Ok(self)
    }

    /// Demands an error in one line, with these words.
    fn complains(self, words: &[&str]) -> TestResult<Self> {
        claim!(
            self.err.lines().count() == 1 && self.err.starts_with("asyncfork: "),
            "want one line on standard error: {self:?}"
        );
        for word in words {
            claim!(self.err.contains(word), "no {word:?}: {self:?}");
        }
        Ok(self)
    }

    fn json(&self) -> TestResult<Json> {
        Json::parse(&self.out).ok_or_else(|| Verdict::Failed(format!("no JSON: {self:?}")))
    }
}

/// The command, to be given arguments.
fn program(ctx: &Ctx) -> TestResult<Command> {
    let mut command = Command::new(ctx.command()?);
    command
        .env_remove("ASYNCFORK_DEVICE")
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null());
    Ok(command)
}

pub(super) fn asyncfork(ctx: &Ctx, args: &[&str]) -> TestResult<Said> {
    Ok(Said::of(&program(ctx)?.args(args).output()?))
}

/// Runs a line as somebody who has pasted it into a shell.
fn shell(ctx: &Ctx, line: &str) -> TestResult<Said> {
    let command = ctx.command()?;
    let directory = command.parent().unwrap_or(Path::new("/")).display();
    let output = Command::new("sh")
        .args(["-c", line])
        .env(
            "PATH",
            format!("{directory}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"),
        )
        .stdin(Stdio::null())
        .output()?;
    Ok(Said::of(&output))
}

/// A JSON text, read by paths such as `totals.forks.async`; texts come without quotes.
struct Json(Value);

impl Json {
    fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    /// What is there, if it is neither an object nor an array.
    fn find(&self, path: &str) -> Option<String> {
        match self.0.pointer(&format!("/{}", path.replace('.', "/")))? {
            Value::Object(_) | Value::Array(_) => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    fn get(&self, path: &str) -> TestResult<String> {
        let found = self.find(path);
        found.ok_or_else(|| Verdict::Failed(format!("no {path} in {}", self.0)))
    }

    fn number(&self, path: &str) -> TestResult<u64> {
        let text = self.get(path)?;
        text.parse()
            .map_err(|_| Verdict::Failed(format!("{path} is {text}")))
    }
}

/// A process that forks when it is told to.
struct Server {
    pid: i32,
    ask: fs::File,
    answer: fs::File,
    board: Cell<Option<Board>>,
}

/// What a [`Server`] may be told.
const FORK: i32 = 1;

impl Server {
    /// In `group`, with `mib` of memory without huge pages.
    fn new(ctx: &Ctx, group: &Cgroup, mib: usize) -> TestResult<Self> {
        Self::with(ctx, group, || {
            let arena = Arena::new(&mut ctx.rng(), mib)?;
            Ok(move |_| plain_fork(&arena).map(|()| 0))
        })
    }

    /// What `prepare` makes answers each question.
    fn with<F: FnMut(i32) -> TestResult<i32>>(
        ctx: &Ctx,
        group: &Cgroup,
        prepare: impl FnOnce() -> TestResult<F>,
    ) -> TestResult<Self> {
        let ((question, ask), (answer, said)) = (sys::pipe()?, sys::pipe()?);
        let board = Board::new()?;
        // The pipes' other ends are the server's alone: they close when it ends.
        let pid = ctx.helper(&board, "server", move || {
            let (mut question, mut said) = (fs::File::from(question), fs::File::from(said));
            run_anywhere()?;
            group.enter()?;
            sys::allow_huge_pages(false)?;
            let mut work = prepare()?;
            said.write_all(&0i32.to_ne_bytes())?;
            loop {
                let mut what = [0; 4];
                question.read_exact(&mut what)?;
                let number = work(i32::from_ne_bytes(what))?;
                said.write_all(&number.to_ne_bytes())?;
            }
        })?;
        let server = Self {
            pid,
            ask: ask.into(),
            answer: answer.into(),
            board: Cell::new(Some(board)),
        };
        server.expect_answer()?;
        Ok(server)
    }

    fn expect_answer(&self) -> TestResult<i32> {
        let mut said = [0; 4];
        if (&self.answer).read_exact(&mut said).is_ok() {
            return Ok(i32::from_ne_bytes(said));
        }
        // It has ended, and has said why.
        if let Some(board) = self.board.take() {
            board.collect(&["server"])?;
        }
        Err(Verdict::Failed("the server has ended".into()))
    }

    fn tell(&self, what: i32) -> TestResult<i32> {
        (&self.ask).write_all(&what.to_ne_bytes())?;
        self.expect_answer()
    }

    fn fork(&self) -> TestResult {
        self.tell(FORK).map(drop)
    }

    /// The last fork of it that the module remembers.
    fn last(&self) -> TestResult<Report> {
        last_of(self.pid)
    }

    /// Forks; demands that the fork was asynchronous.
    fn expect_async(&self) -> TestResult<Report> {
        self.fork()?;
        let r = self.last()?;
        claim!(
            r.outcome() == Fate::Async && r.chunks.parked > 0,
            "the fork was {}, reason {}",
            r.outcome(),
            r.reason()
        );
        Ok(r)
    }

    /// Forks; demands that the fork was stock, for `reason`.
    fn expect_stock(&self, reason: Reason) -> TestResult {
        self.fork()?;
        let r = self.last()?;
        claim!(
            (r.outcome(), r.reason()) == (Fate::Stock, reason),
            "the fork was {}, reason {}; want stock, {reason}",
            r.outcome(),
            r.reason()
        );
        Ok(())
    }

    /// Forks; demands that the module had nothing to do with it.
    fn expect_uncounted(&self, ctx: &Ctx) -> TestResult {
        let before = ctx.stats()?;
        self.fork()?;
        let after = ctx.stats()?;
        claim!(
            (before.r#async, before.stock) == (after.r#async, after.stock),
            "the fork was counted"
        );
        Ok(())
    }

    /// Forks; demands that it was counted as that of a small process.
    fn expect_small(&self, ctx: &Ctx) -> TestResult {
        let small = || -> TestResult<u64> { Ok(ctx.stats()?.stock_by(Reason::MinRss)) };
        let before = small()?;
        self.fork()?;
        let more = small()? - before;
        claim!(more == 1, "{more} forks of small processes, want 1");
        Ok(())
    }

    fn pid(&self) -> String {
        self.pid.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = sys::kill(self.pid, libc::SIGKILL);
        let _ = sys::wait(self.pid);
    }
}

/// The last fork of a process, when its session, if any, is over.
fn last_of(parent: i32) -> TestResult<Report> {
    let device = open()?;
    let over = sys::poll_until(|| -> TestResult<Option<()>> {
        let stats = device.stats().map_err(device_error)?;
        Ok((stats.running == 0).then_some(()))
    })?;
    claim!(over.is_some(), "a session does not end");
    let recent = module::recent(&device)?.into_iter();
    let found = recent.into_iter().find(|r| r.parent_pid == parent);
    found.ok_or_else(|| Verdict::Failed(format!("no fork of process {parent} is remembered")))
}

/// Ends with the value.
struct Running(Child);

impl Running {
    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program in `group`; it is there, with its libraries, when this returns.
fn started(group: &Cgroup, env: &[(&str, &str)], words: &[&str]) -> TestResult<Running> {
    let script = r#"echo $$ >"$0/cgroup.procs" && exec env "$@""#;
    let settings: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let child = Command::new("sh")
        .args(["-c", script])
        .arg(group.path())
        .args(&settings)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let running = Running(child);
    let name = words
        .iter()
        .rev()
        .find(|w| w.contains("sleep ") || **w == "sleep");
    let name = name.map_or(words[0], |_| "sleep");
    let name = name.rsplit('/').next().unwrap_or(name);
    let pid = running.pid();
    let there = sys::poll_until(|| -> io::Result<Option<()>> {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // It sleeps: its start is over.
        Ok((comm.trim() == name && state.contains(") S ")).then_some(()))
    })?;
    claim!(there.is_some(), "{words:?} does not start");
    Ok(running)
}

/// A sleeping program with the library, and these settings.
fn preloaded(ctx: &Ctx, group: &Cgroup, env: &[(&str, &str)]) -> TestResult<Running> {
    let library = ctx.library()?.display().to_string();
    let env = [&[("LD_PRELOAD", library.as_str())], env].concat();
    started(group, &env, &["sleep", "1000"])
}

/// The calling process gets mounts of its own.
fn own_mounts() -> TestResult {
    // SAFETY: plain numbers, and a path that lives across the call.
    unsafe {
        cvt(libc::unshare(libc::CLONE_NEWNS)).at("unshare")?;
        cvt(libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ))
        .at("make the mounts private")?;
    }
    Ok(())
}

/// Demands that a line of the test's own works.
fn must(ctx: &Ctx, line: &str) -> TestResult {
    let said = shell(ctx, line)?;
    if said.code == 0 {
        Ok(())
    } else {
        Err(Verdict::Broken(format!("{line}: {said:?}")))
    }
}

/// Makes a directory writable, for processes with the caller's mounts. See [`own_mounts`].
fn writable(ctx: &Ctx, directory: &str) -> TestResult {
    let at = ctx.scratch.join("writable");
    let at = format!("{}{directory}", at.display());
    must(
        ctx,
        &format!(
            "mkdir -p {at}/upper {at}/work && \
             mount -t overlay -o lowerdir={directory},upperdir={at}/upper,workdir={at}/work overlay {directory}"
        ),
    )
}

/// This kernel's release.
fn release() -> TestResult<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}

/// The file of the module under test.
fn module_file() -> TestResult<PathBuf> {
    let mut words = std::env::args()
        .skip_while(|word| word != "--module")
        .skip(1);
    let word = words.next();
    word.map(PathBuf::from)
        .ok_or_else(|| Verdict::Skip("--module has no word of its own".into()))
}

/// An empty /lib/modules but for the directory of a release, with headers. See [`own_mounts`].
fn empty_modules(ctx: &Ctx, release: &str) -> TestResult {
    must(
        ctx,
        &format!(
            "mount -t tmpfs tmpfs /lib/modules && mkdir -p /lib/modules/{release}/build && \
             touch /lib/modules/{release}/build/Makefile"
        ),
    )
}

/// Where DKMS puts the module.
fn installed(release: &str) -> String {
    format!("/lib/modules/{release}/updates/dkms/asyncfork.ko")
}

/// A file where DKMS puts the module, for doctor to see.
fn pretend(ctx: &Ctx, release: &str) -> TestResult {
    let file = installed(release);
    must(
        ctx,
        &format!("mkdir -p $(dirname {file}) && echo ELF >{file}"),
    )
}

/// What DKMS does: here is none, and no compiler.
fn install(ctx: &Ctx, release: &str) -> TestResult {
    let (from, to) = (module_file()?, installed(release));
    must(
        ctx,
        &format!(
            "mkdir -p $(dirname {to}) && cp {} {to} && depmod {release} 2>/dev/null",
            from.display()
        ),
    )
}

fn status(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("served")?;
    let server = Server::new(ctx, &group, 8)?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    let before = asyncfork(ctx, &["status", "--json"])?.exits(0)?.json()?;
    claim!(
        before.get("schema")? == "1" && before.get("command")? == "status",
        "want schema 1 of status: {:?}",
        before.0
    );
    claim!(
        before.get("state")? == "on"
            && before.get("kernel")? == release()?
            && before.get("module.policy")? == "enrolled"
            && before.number("module.abi")? == u64::from(asyncfork_uapi::ABI_VERSION),
        "{:?}",
        before.0
    );
    for _ in 0..3 {
        server.expect_async()?;
    }
    let after = asyncfork(ctx, &["status", "--json"])?.exits(0)?.json()?;
    let stats = ctx.stats()?;
    for (path, more, now) in [
        ("totals.forks.async", 3, stats.r#async),
        ("totals.forks.stock", 0, stats.stock),
        (
            "totals.forks_by.enrolled.async",
            3,
            stats.async_how(By::Enrolled),
        ),
        ("totals.enrolled_cgroups", 0, stats.enrolled),
        ("totals.armed", 0, stats.armed),
        ("totals.sessions_aborted", 0, stats.aborted),
        ("totals.children_killed", 0, stats.killed),
        ("totals.unexpected_slots", 0, stats.merged),
        ("totals.park_ns.total", u64::MAX, stats.park_ns),
        ("totals.chunks.parked", u64::MAX, stats.chunks.parked),
    ] {
        let (was, is) = (before.number(path)?, after.number(path)?);
        claim!(is == now, "{path} is {is}, the module's is {now}");
        claim!(
            if more == u64::MAX {
                is > was
            } else {
                is == was + more
            },
            "{path} was {was} and is {is}"
        );
    }
    let text = format!(
        "forks     {} asynchronous, {} stock, {} failed",
        stats.r#async, stats.stock, stats.failed
    );
    asyncfork(ctx, &["status"])?.exits(0)?.says(&[
        "state     on",
        &release()?,
        &text,
        "parking",
    ])?;
    ctx.module.set("enabled", 0)?;
    server.expect_stock(Reason::Disabled)?;
    asyncfork(ctx, &["status"])?
        .exits(1)?
        .says(&["state     off: asyncfork on", "disabled"])?;
    Ok(text)
}

fn watch(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("served")?;
    let server = Server::new(ctx, &group, 8)?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    let mut watching = program(ctx)?
        .args(["watch", "--interval", "0.05", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(watching.stdout.take().expect("a pipe")).lines();
    let mut watching = Running(watching);
    let head = lines.next().transpose()?.unwrap_or_default();
    claim!(head.starts_with("name"), "the first line is {head:?}");
    server.expect_async()?;
    ctx.module.set("enabled", 0)?;
    server.expect_stock(Reason::Disabled)?;
    // It ends by itself; if not, it is ended, and what it has said is judged.
    let over = sys::poll_until(|| watching.0.try_wait())?;
    drop(watching);
    let said: Vec<String> = lines.collect::<Result<_, _>>()?;
    claim!(over.is_some(), "it does not end after two forks: {said:?}");
    claim!(said.len() == 2, "want two forks: {said:?}");
    let pid = server.pid();
    claim!(
        said.iter()
            .all(|l| l.contains(&pid) && l.contains("enrolled"))
            && said[0].contains("async")
            && said[1].ends_with("disabled"),
        "want an asynchronous and a stock fork of {pid}: {said:?}"
    );
    let past = asyncfork(ctx, &["watch", "--past", "--count", "2", "--json"])?.exits(0)?;
    for line in past.out.lines() {
        let fork = Json::parse(line);
        claim!(fork.is_some(), "no JSON: {line}");
    }
    claim!(past.out.lines().count() == 2, "want two lines: {past:?}");
    shell(ctx, "asyncfork watch --past --interval 0.05 | head -1")?.exits(0)?;
    Ok(said.join("; "))
}

fn explain(ctx: &Ctx) -> TestResult<String> {
    // From here on nothing is remembered.
    ctx.module.unload()?;
    ctx.module.load("").at("load again")?;
    asyncfork(ctx, &["explain"])?
        .exits(3)?
        .complains(&["recorded no fork yet"])?;
    let group = ctx.cgroup.child("served")?;
    let server = Server::new(ctx, &group, 8)?;
    let (pid, path) = (server.pid(), group.path().display().to_string());
    asyncfork(ctx, &["explain", &pid])?
        .exits(3)?
        .complains(&[&pid, "asyncfork doctor --pid"])?;
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    let r = server.expect_async()?;
    asyncfork(ctx, &["explain", &pid])?.exits(0)?.says(&[
        &format!("(pid {pid})"),
        "an asynchronous fork",
        &format!("parked {} page tables", r.chunks.parked),
        &format!("cgroup number {} is enrolled", r.entry_id),
    ])?;
    let json = asyncfork(ctx, &["explain", &pid, "--json"])?
        .exits(0)?
        .json()?;
    json.get("words.0")?;

    let stock = |reason: Reason, advice: &str| {
        server.expect_stock(reason)?;
        asyncfork(ctx, &["explain", &pid])?
            .exits(0)?
            .says(&["a stock fork", reason.explain(), advice])
            .map(drop)
    };
    ctx.module.set("enabled", 0)?;
    stock(Reason::Disabled, "What to do: asyncfork on")?;
    ctx.module.set("enabled", 1)?;
    let most = ctx.module.get("max_sessions")?;
    ctx.module.set("max_sessions", 0)?;
    let limited = stock(Reason::Limit, "max_sessions");
    ctx.module.set("max_sessions", most)?;
    limited?;
    // Of small processes only those that ask are remembered.
    let small = ctx.fork().min_rss(u64::MAX).start(|| Ok(()))?.finish()?;
    small.stock(Reason::MinRss)?;
    asyncfork(ctx, &["explain", &sys::pid().to_string()])?
        .exits(0)?
        .says(&[Reason::MinRss.explain(), "The process itself asked"])?;

    // Pinned memory is for the rest of a process's life.
    let pinned = Server::with(ctx, &group, || {
        let span = Span::reserve(4 * CHUNK)?;
        span.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        (0..span.pages()).for_each(|page| span.page(page).store(0, 1));
        let ring = pin(span)?;
        Ok(move |_| {
            let _held = &ring;
            timed_fork(false).map(|_| 0)
        })
    })?;
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    pinned.expect_stock(Reason::Pinned)?;
    asyncfork(ctx, &["explain", &pinned.pid()])?
        .exits(0)?
        .says(&[Reason::Pinned.explain(), "io_uring"])?;
    Ok("an asynchronous one, disabled, limit, min_rss, pinned".into())
}

fn switch(ctx: &Ctx) -> TestResult<String> {
    own_mounts()?;
    writable(ctx, "/etc")?;
    let group = ctx.cgroup.child("served")?;
    let server = Server::new(ctx, &group, 8)?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    let file = Path::new("/etc/modprobe.d/asyncfork.conf");
    for (args, changed) in [
        (&["off"][..], "true"),
        (&["off"], "false"),
        (&["off", "--persist"], "true"),
        (&["off", "--persist"], "false"),
    ] {
        let said = asyncfork(ctx, args)?.exits(0)?;
        said.says(&[&format!("changed: {changed}"), "state: off"])?;
        claim!(ctx.module.get("state")? == "off", "the module is not off");
        server.expect_stock(Reason::Disabled)?;
    }
    let written = fs::read_to_string(file)?;
    claim!(
        written == "options asyncfork enabled=0\n",
        "{} has {written:?}",
        file.display()
    );
    for (args, changed) in [
        (&["on"][..], "true"),
        (&["on"], "false"),
        (&["on", "--persist"], "true"),
        (&["on", "--persist"], "false"),
    ] {
        let said = asyncfork(ctx, args)?.exits(0)?;
        said.says(&[&format!("changed: {changed}"), "state: on"])?;
        claim!(ctx.module.get("state")? == "on", "the module is not on");
        server.expect_async()?;
    }
    claim!(!file.exists(), "{} is still there", file.display());

    ctx.module.unload()?;
    let without = asyncfork(ctx, &["on"]).and_then(|said| {
        said.exits(3)?.complains(&["modprobe asyncfork"])?;
        asyncfork(ctx, &["off"])?
            .exits(0)?
            .says(&["changed: false"])
    });
    ctx.module.load("").at("load again")?;
    without?;
    Ok("live and for the next load".into())
}

fn enrol(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("served")?;
    let server = Server::new(ctx, &group, 8)?;
    let (pid, path) = (server.pid(), group.path().display().to_string());
    let inside = path.trim_start_matches("/sys/fs/cgroup");
    server.expect_uncounted(ctx)?;
    let id = fs::metadata(group.path())?.ino().to_string();
    // As systemd runs it: a process in the group itself.
    let own = |verb: &str| {
        let line = format!("echo $$ >{path}/cgroup.procs && exec asyncfork {verb} --self");
        shell(
            ctx,
            &format!(
                "{line} {}",
                if verb == "enroll" { "--min-rss 1M" } else { "" }
            ),
        )
    };
    let out = |which: &[&str]| asyncfork(ctx, &[&["unenroll"], which].concat());
    let ways: [(&[&str], &[&str]); 4] = [
        (&["--cgroup", &path], &["--id", &id]),
        (&["--cgroup", inside], &["--cgroup", &path]),
        (&["--pid", &pid], &["--pid", &pid]),
        (&["--self"], &["--self"]),
    ];
    for (way, back) in ways {
        let enroll = || match way {
            ["--self"] => own("enroll"),
            way => asyncfork(ctx, &[&["enroll"], way, &["--min-rss", "1M"]].concat()),
        };
        enroll()?.exits(0)?.says(&["changed: true", &path])?;
        enroll()?.exits(0)?.says(&["changed: false"])?;
        server.expect_async()?;
        let list = asyncfork(ctx, &["enrolled", "--json"])?.exits(0)?.json()?;
        claim!(
            list.get("enrolled.0.id")? == id
                && list.get("enrolled.0.cgroup")? == path
                && list.number("enrolled.0.terms.min_rss")? == 1 << 20
                && list.number("enrolled.0.async_forks")? == 1,
            "{:?}",
            list.0
        );
        asyncfork(ctx, &["enrolled"])?
            .exits(0)?
            .says(&[&id, "1 MiB", &path])?;
        let unenroll = || match back {
            ["--self"] => own("unenroll"),
            back => out(back),
        };
        unenroll()?.exits(0)?.says(&["changed: true"])?;
        unenroll()?.exits(0)?.says(&["changed: false"])?;
        server.expect_uncounted(ctx)?;
    }
    asyncfork(ctx, &["enrolled"])?
        .exits(0)?
        .says(&["no cgroup is enrolled"])?;

    // One that is gone.
    let gone = ctx.cgroup.child("gone")?;
    let path = gone.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--helpers", "2"])?.exits(0)?;
    let id = fs::metadata(gone.path())?.ino().to_string();
    gone.remove()?;
    asyncfork(ctx, &["enrolled"])?
        .exits(0)?
        .says(&[&id, "(gone)"])?;
    out(&["--id", &id])?.exits(0)?.says(&["changed: true"])?;
    Ok("by path, pid, number and itself".into())
}

/// The metrics that are promised.
const METRICS: &[&str] = &[
    "asyncfork_build_info",
    "asyncfork_state",
    "asyncfork_forks_total",
    "asyncfork_stock_forks_total",
    "asyncfork_sessions",
    "asyncfork_sessions_limit",
    "asyncfork_sessions_aborted_total",
    "asyncfork_children_killed_total",
    "asyncfork_chunks_total",
    "asyncfork_pulled_chunks_total",
    "asyncfork_unexpected_slots_total",
    "asyncfork_park_seconds_count",
    "asyncfork_parent_stall_seconds_count",
    "asyncfork_copy_seconds_count",
    "asyncfork_next_boot_ready",
];

/// Lines of Prometheus' text format: what stands before the value, and that.
fn samples(text: &str) -> TestResult<BTreeMap<String, f64>> {
    let mut all = BTreeMap::new();
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_default();
            claim!(
                types.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{name} has two types"
            );
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, number) = line.rsplit_once(' ').unwrap_or_default();
        let bare = name.split('{').next().unwrap_or_default();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            bare.strip_suffix(end)
                .filter(|base| types.contains_key(*base))
        });
        claim!(types.contains_key(base.unwrap_or(bare)), "no type: {line}");
        claim!(
            !name.contains('{') || (name.ends_with("\"}") && name.contains("=\"")),
            "bad labels: {line}"
        );
        let Ok(number) = number.parse::<f64>() else {
            return Err(Verdict::Failed(format!("no number: {line}")));
        };
        claim!(
            all.insert(name.to_owned(), number).is_none(),
            "twice: {line}"
        );
    }
    Ok(all)
}

fn metrics(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("served")?;
    let server = Server::new(ctx, &group, 8)?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    server.expect_async()?;
    ctx.module.set("enabled", 0)?;
    server.expect_stock(Reason::Disabled)?;
    ctx.module.set("enabled", 1)?;

    let said = asyncfork(ctx, &["metrics"])?.exits(0)?;
    let found = samples(&said.out)?;
    let stats = ctx.stats()?;
    for name in METRICS {
        claim!(
            found.keys().any(|k| k.split('{').next() == Some(name)),
            "no {name}: {}",
            said.out
        );
    }
    claim!(!said.out.contains("pid="), "a label with a pid");
    let mut wanted: Vec<(String, u64)> = vec![
        (
            "asyncfork_forks_total{outcome=\"async\"}".into(),
            stats.r#async,
        ),
        (
            "asyncfork_forks_total{outcome=\"stock\"}".into(),
            stats.stock,
        ),
        (
            "asyncfork_forks_total{outcome=\"failed\"}".into(),
            stats.failed,
        ),
        ("asyncfork_sessions".into(), stats.running),
        ("asyncfork_sessions_limit".into(), 1024),
        ("asyncfork_sessions_aborted_total".into(), stats.aborted),
        ("asyncfork_children_killed_total".into(), stats.killed),
        ("asyncfork_unexpected_slots_total".into(), stats.merged),
        (
            "asyncfork_chunks_total{how=\"parked\"}".into(),
            stats.chunks.parked,
        ),
        (
            "asyncfork_chunks_total{how=\"eager\"}".into(),
            stats.chunks.eager,
        ),
        (
            "asyncfork_pulled_chunks_total{side=\"child\"}".into(),
            stats.chunks.by_child,
        ),
        (
            "asyncfork_pulled_chunks_total{side=\"parent\"}".into(),
            stats.chunks.by_parent,
        ),
        ("asyncfork_state{state=\"on\"}".into(), 1),
        ("asyncfork_state{state=\"off\"}".into(), 0),
    ];
    for reason in Reason::ALL {
        let name = format!(
            "asyncfork_stock_forks_total{{reason=\"{}\"}}",
            reason.label()
        );
        wanted.push((name, stats.stock_by(*reason)));
    }
    for (name, histogram, sum) in [
        ("park", &stats.park, stats.park_ns),
        ("parent_stall", &stats.parent_pull, stats.parent_pull_ns),
        ("copy", &stats.copy, stats.copy_ns),
    ] {
        let count: u64 = histogram.bucket.iter().sum();
        wanted.push((format!("asyncfork_{name}_seconds_count"), count));
        wanted.push((
            format!("asyncfork_{name}_seconds_bucket{{le=\"+Inf\"}}"),
            count,
        ));
        let seconds = found.get(&format!("asyncfork_{name}_seconds_sum"));
        claim!(
            seconds.is_some_and(|s| (s * 1e9 - sum as f64).abs() <= 1.0 + sum as f64 / 1e9),
            "the sum of {name} is {seconds:?}, the module's {sum} ns"
        );
    }
    for (name, number) in &wanted {
        let got = found.get(name);
        claim!(
            got == Some(&(*number as f64)),
            "{name} is {got:?}, the module's is {number}"
        );
    }
    let disabled = stats.stock_by(Reason::Disabled);
    claim!(disabled > 0, "the fork while disabled is not counted");

    let file = ctx.scratch.join("asyncfork.prom");
    let name = file.display().to_string();
    fs::write(&file, "old")?;
    asyncfork(ctx, &["metrics", "--textfile", &name])?.exits(0)?;
    claim!(
        fs::metadata(&file)?.mode() & 0o777 == 0o644 && fs::read_dir(&ctx.scratch)?.count() == 1,
        "want one file, mode 644"
    );
    let again = samples(&fs::read_to_string(&file)?)?;
    claim!(again == found, "the file has other numbers: {again:?}");
    Ok(format!("{} numbers", found.len()))
}

fn bench(ctx: &Ctx) -> TestResult<String> {
    let before = ctx.stats()?.r#async;
    let said = asyncfork(ctx, &["bench", "--sizes", "64M", "--forks", "2"])?
        .exits(0)?
        .says(&["memory", "asynchronous", "ratio", "64 MiB"])?;
    let line = said.out.lines().last().unwrap_or_default().to_owned();
    let ratio = line.split_whitespace().last().map(str::parse::<u64>);
    claim!(matches!(ratio, Some(Ok(_))), "no ratio: {line}");
    // A warm-up, and two.
    let forks = ctx.stats()?.r#async - before;
    claim!(forks == 3, "{forks} asynchronous forks, want 3");
    let last = last_of_name(b"asyncfork")?;
    claim!(
        last.chunks.parked >= 32,
        "{} chunks of 32 were parked",
        last.chunks.parked
    );
    ctx.module.set("enabled", 0)?;
    asyncfork(ctx, &["bench", "--sizes", "32M", "--forks", "1"])?
        .exits(1)?
        .says(&["not asynchronous: ", Reason::Disabled.explain()])?;
    Ok(line)
}

/// The last fork of a program of that name.
fn last_of_name(name: &[u8]) -> TestResult<Report> {
    let recent = module::recent(&open()?)?.into_iter();
    let found = recent.into_iter().find(|r| r.comm() == name);
    found.ok_or_else(|| Verdict::Failed("its forks have another name".into()))
}

fn run(ctx: &Ctx) -> TestResult<String> {
    let library = ctx.library()?.display().to_string();
    let with = |args: &[&str]| asyncfork(ctx, &[&["run", "--library", &library], args].concat());
    let said = with(&[
        "--min-rss",
        "8M",
        "--threads",
        "2",
        "--log",
        "info",
        "--",
        "sh",
        "-c",
        "echo $LD_PRELOAD $ASYNCFORK_MIN_RSS $ASYNCFORK_THREADS $ASYNCFORK_LOG",
    ])?
    .exits(0)?;
    claim!(
        said.out == format!("{library} 8388608 2 info\n"),
        "the environment: {said:?}"
    );
    for (words, code) in [
        (&["--", "sh", "-c", "exit 7"][..], 7),
        (&["--", "/no/such/program"], 127),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["/"], 126),
        (&["--wrong", "true"], 125),
        (&[], 125),
    ] {
        let said = with(words)?.exits(code)?;
        if code > 7 {
            said.complains(&[])?;
        }
    }
    for (library, why) in [
        ("/none/libasyncfork.so", "No such file"),
        ("/etc/passwd", "is no library"),
    ] {
        let said = asyncfork(
            ctx,
            &[
                "run",
                "--library",
                library,
                "--",
                "sh",
                "-c",
                "echo [$LD_PRELOAD]",
            ],
        )?;
        let said = said.exits(0)?.complains(&["without asyncfork", why])?;
        claim!(said.out == "[]\n", "{said:?}");
    }

    let before = ctx.stats()?;
    run_forker(ctx, &[])?.exits(0)?;
    let after = ctx.stats()?;
    claim!(
        after.r#async == before.r#async + 2
            && after.async_how(By::Arm) == before.async_how(By::Arm) + 2,
        "{} asynchronous forks, want 2",
        after.r#async - before.r#async
    );
    Ok("2 async forks".into())
}

/// A program that forks twice, by the command `run`.
fn run_forker(ctx: &Ctx, args: &[&str]) -> TestResult<Said> {
    let library = ctx.library()?.display().to_string();
    let forker = std::env::current_exe()?.display().to_string();
    let seed = ctx.seed.to_string();
    let run = ["run", "--library", &library, "--min-rss", "8M"];
    let forker = [
        "--", &forker, "forker", "--mib", "16", "--forks", "2", "--seed", &seed,
    ];
    asyncfork(ctx, &[&run, args, &forker].concat())
}

/// What a module of ABI 2 answers, and that it is used all the same. The program's own image is the forker's to check.
fn abi_before(ctx: &Ctx) -> TestResult<String> {
    ctx.module.unload()?;
    ctx.module.load("fault_abi=2").at("load as ABI 2")?;
    let with = with_abi_before(ctx);
    ctx.module.unload()?;
    ctx.module.load("").at("load again")?;
    with
}

fn with_abi_before(ctx: &Ctx) -> TestResult<String> {
    let device = open()?;
    let version = device.version().map_err(device_error)?;
    claim!(
        (version.abi, version.oldest) == (2, 0),
        "it says {version:?}"
    );
    let numbered = device.recent_after(1, &mut [Report::default()]);
    claim!(numbered.is_err(), "it numbers its forks: {numbered:?}");

    run_forker(ctx, &[])?.exits(0)?;
    let stats = ctx.stats()?;
    claim!(
        (stats.r#async, stats.stock, stats.armed) == (2, 0, 2),
        "{} asynchronous forks, {} stock ones, {} armed",
        stats.r#async,
        stats.stock,
        stats.armed
    );
    claim!(
        stats.async_how(By::Arm) == 0,
        "it fills what ABI 2 does not have: {stats:?}"
    );
    let forks = module::recent(&device)?;
    claim!(
        forks.len() == 2
            && forks
                .iter()
                .all(|r| r.outcome() == Fate::Async && r.seq == 0 && r.by() == By::None),
        "the ring: {forks:?}"
    );
    drop(device);

    let found = asyncfork(ctx, &["status", "--json"])?.exits(0)?.json()?;
    claim!(
        found.number("module.abi")? == 2 && found.number("totals.forks.async")? == 2,
        "{:?}",
        found.0
    );
    asyncfork(ctx, &["status"])?
        .exits(0)?
        .says(&["ABI 2", "forks     2 asynchronous, 0 stock"])?;
    let explained = asyncfork(ctx, &["explain"])?.exits(0)?;
    claim!(
        explained.out.contains("an asynchronous fork") && !explained.out.contains("asked for it"),
        "{explained:?}"
    );
    let past = asyncfork(ctx, &["watch", "--past", "--count", "2"])?.exits(0)?;
    claim!(past.out.matches("async").count() >= 2, "{past:?}");
    asyncfork(ctx, &["metrics"])?
        .exits(0)?
        .says(&["abi=\"2\"", "asyncfork_forks_total{outcome=\"async\"} 2"])?;
    asyncfork(ctx, &["off"])?.exits(0)?.says(&["state: off"])?;
    run_forker(ctx, &[])?.exits(0)?;
    let stock = ctx.stats()?.stock_by(Reason::Disabled);
    claim!(stock == 2, "{stock} stock forks while it is off, want 2");
    asyncfork(ctx, &["on"])?.exits(0)?.says(&["state: on"])?;

    // What it lacks is said in one line, with what to do.
    let group = ctx.cgroup.child("entry")?;
    let path = group.path().display().to_string();
    for args in [
        &["enroll", "--cgroup", &path][..],
        &["unenroll", "--cgroup", &path],
        &["enrolled"],
    ] {
        asyncfork(ctx, args)?
            .exits(4)?
            .complains(&["no enrolment of cgroups", "ABI 3", "asyncfork run"])
            .map_err(|v| v.at(args[0]))?;
    }
    asyncfork(ctx, &["doctor"])?.exits(0)?;
    let server = Server::new(ctx, &group, 80)?;
    server.expect_uncounted(ctx)?;
    let said = asyncfork(ctx, &["doctor", "--no-measure", "--pid", &server.pid()])?.exits(1)?;
    said.says(&["process.not-served", "start it by asyncfork run --"])?;
    Ok("2 async forks".into())
}

/// A later ABI whose module serves this one's callers is as good as this one. Another is left alone: forks are stock.
fn abi_after(ctx: &Ctx) -> TestResult<String> {
    let with = |params: &str, look: &dyn Fn() -> TestResult| {
        ctx.module.unload()?;
        ctx.module.load(params).map_err(Verdict::from)?;
        look().map_err(|v| v.at(params))
    };
    let looked = with("fault_abi=4", &|| {
        run_forker(ctx, &["--log", "info"])?.exits(0)?;
        let stats = ctx.stats()?;
        claim!(
            (stats.r#async, stats.armed) == (2, 2),
            "{} asynchronous forks, {} armed, want 2",
            stats.r#async,
            stats.armed
        );
        asyncfork(ctx, &["status"])?
            .exits(0)?
            .says(&["ABI 4", "forks     2 asynchronous"])?;
        asyncfork(ctx, &["explain"])?
            .exits(0)?
            .says(&["an asynchronous fork"])?;
        asyncfork(ctx, &["doctor"])?.exits(0).map(drop)
    })
    .and_then(|()| {
        with(LATER, &|| {
            let said = run_forker(ctx, &[])?.exits(0)?;
            claim!(
                said.err
                    .matches("speaks ABI 99, this library ABI 2 and 3")
                    .count()
                    == 1,
                "the library's words, once: {said:?}"
            );
            // ENOSYS, with which the forker ends.
            let required = run_forker(ctx, &["--require"])?.exits(1)?;
            claim!(
                required.err.contains("fork refused (ASYNCFORK=require)"),
                "{required:?}"
            );
            let stats = ctx.stats()?;
            claim!(
                (stats.armed, stats.r#async, stats.stock) == (0, 0, 0),
                "it was armed {} times",
                stats.armed
            );
            asyncfork(ctx, &["status"])?
                .exits(3)?
                .says(&["unknown: the module speaks ABI 99, this command 2 to 3"])?;
            for args in [&["explain"][..], &["enrolled"], &["watch", "--count", "1"]] {
                asyncfork(ctx, args)?
                    .exits(3)?
                    .complains(&["ABI 99", "install the command of the module's release"])
                    .map_err(|v| v.at(args[0]))?;
            }
            // Switching it takes no ABI.
            for verb in ["off", "on"] {
                asyncfork(ctx, &[verb])?
                    .exits(0)?
                    .says(&["changed: true"])?;
                claim!(ctx.module.get("state")? == verb, "it is not {verb}");
            }
            Ok(())
        })
    });
    if ctx.module.is_loaded() {
        ctx.module.unload()?;
    }
    ctx.module.load("").at("load again")?;
    looked.map(|()| "ABI 4 used, ABI 99 left alone".into())
}

/// Of a module that speaks an ABI and serves none before the one before that.
const LATER: &str = "fault_abi=99 fault_abi_oldest=98";

/// What an operator's mistake must not change.
fn snapshot(ctx: &Ctx) -> TestResult<String> {
    let mut said = String::new();
    for name in [
        "enabled",
        "state",
        "policy",
        "policy_min_rss",
        "max_sessions",
    ] {
        said += &format!("{name} {}, ", ctx.module.get(name)?);
    }
    let Stats { enrolled, .. } = ctx.stats()?;
    let entries = module::enrolled(&open()?)?;
    let node = fs::metadata("/dev/asyncfork")?;
    said += &format!(
        "{enrolled} entries {entries:?}, {:o} {:x}",
        node.mode(),
        node.rdev()
    );
    Ok(said)
}

fn wrong_input(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("entry")?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path])?.exits(0)?;
    let before = snapshot(ctx)?;
    let scratch = ctx.scratch.display().to_string();
    let (txt, dir) = (format!("{scratch}/x.txt"), format!("{scratch}/none/x.prom"));
    let (line, null) = ("see asyncfork ", "this is not the asyncfork device");
    let wrong: &[(&[&str], i32, &str)] = &[
        (&["nothing"], 2, "see asyncfork --help"),
        (&["--wrong", "status"], 2, line),
        (&["status", "more"], 2, line),
        (&["doctor", "--pid", "0"], 2, "$(pidof redis-server)"),
        (&["doctor", "--pid", "-5"], 2, line),
        (&["doctor", "--pid", "redis"], 2, "$(pidof redis-server)"),
        (&["doctor", "--pid", "2"], 2, "kernel thread"),
        (&["doctor", "--pid", "4194304"], 2, "there is no process"),
        (
            &["doctor", "--pid", "99999999999"],
            2,
            "$(pidof redis-server)",
        ),
        (&["doctor", "--unit", "../x"], 2, "redis-server"),
        (&["doctor", "--unit", "a b"], 2, "redis-server"),
        (&["doctor", "--unit", ""], 2, "redis-server"),
        (&["doctor", "--pid", "1", "--unit", "x"], 2, line),
        (&["enable", "redis server"], 2, "redis-server"),
        (&["enable", "redis-server"], 3, "without systemd, use"),
        (
            &["enable", "redis-server", "--via", "magic"],
            2,
            "cgroup, preload",
        ),
        (
            &["enable", "redis-server", "--min-rss", "64X"],
            2,
            "such as 64M",
        ),
        (&["disable", "redis-server"], 3, "without systemd, use"),
        (&["explain", "0"], 2, "$(pidof redis-server)"),
        (&["explain", "4194304"], 2, "$(pidof redis-server)"),
        (&["enroll"], 2, line),
        (&["enroll", "--self", "--pid", "1"], 2, line),
        (&["enroll", "--pid", "4194304"], 2, "$(pidof redis-server)"),
        (&["enroll", "--pid", "2"], 2, "kernel thread"),
        (
            &["enroll", "--unit", "redis-server"],
            3,
            "without systemd, use",
        ),
        (&["enroll", "--cgroup", ""], 2, line),
        (&["enroll", "--cgroup", "/"], 2, "the root cgroup"),
        (
            &["enroll", "--cgroup", "/sys/fs/cgroup"],
            2,
            "the root cgroup",
        ),
        (&["enroll", "--cgroup", "/etc"], 2, "give a directory below"),
        (
            &["enroll", "--cgroup", "none.slice"],
            2,
            "give a directory below",
        ),
        (
            &["enroll", "--cgroup", "../../../etc"],
            2,
            "give a directory below",
        ),
        (
            &["enroll", "--cgroup", "/sys/fs/cgroup/cgroup.procs"],
            2,
            "give a directory below",
        ),
        (
            &["enroll", "--cgroup", &path, "--min-rss", "64X"],
            2,
            "such as 64M",
        ),
        (&["enroll", "--cgroup", &path, "--min-rss", "-1"], 2, line),
        (
            &["enroll", "--cgroup", &path, "--min-rss", "99999999999T"],
            2,
            "such as 64M",
        ),
        (
            &["enroll", "--cgroup", &path, "--helpers", "9"],
            2,
            "the module allows 8",
        ),
        (&["enroll", "--cgroup", &path, "--helpers", "x"], 2, line),
        (&["unenroll"], 2, line),
        (&["unenroll", "--id", "0"], 2, "asyncfork enrolled"),
        (&["unenroll", "--id", "x"], 2, "asyncfork enrolled"),
        (
            &["unenroll", "--cgroup", "/etc"],
            2,
            "give a directory below",
        ),
        (&["watch", "--interval", "0"], 2, "0.01 to 3600"),
        (&["watch", "--interval", "nan"], 2, "0.01 to 3600"),
        (&["watch", "--count", "x"], 2, line),
        (&["bench", "--sizes", "64"], 2, "at least 32M"),
        (&["bench", "--sizes", "big"], 2, "such as 64M"),
        (&["bench", "--sizes", "1T"], 2, "at most"),
        (&["bench", "--forks", "0"], 2, line),
        (&["metrics", "--textfile", &txt], 2, "end in .prom"),
        (&["metrics", "--textfile", &dir], 2, "no such directory"),
        (&["completions", "tcl"], 2, "bash"),
        (&["man", "nothing"], 2, ""),
        // A device that is none: it cannot be told what the module would say.
        (&["--device", "/dev/null", "enrolled"], 3, null),
        (
            &[
                "--device",
                "/dev/null",
                "enroll",
                "--cgroup",
                &path,
                "--helpers",
                "1",
            ],
            3,
            null,
        ),
        (&["--device", "/dev/null", "explain"], 3, null),
        (
            &["--device", "/dev/none", "unenroll", "--cgroup", &path],
            3,
            "asyncfork doctor",
        ),
        (&["--device", "/dev/none", "watch"], 3, "asyncfork doctor"),
        (
            &["--device", &scratch, "unenroll", "--cgroup", &path],
            3,
            "the module's device is",
        ),
        (&["--device", "", "enrolled"], 2, "see asyncfork --help"),
    ];
    let mut bad = Vec::new();
    for (args, code, words) in wrong {
        let check = || -> TestResult {
            let said = asyncfork(ctx, args)?.exits(*code)?.complains(&[words])?;
            claim!(said.out.is_empty(), "it prints something: {said:?}");
            let json = asyncfork(ctx, &[args, &["--json"][..]].concat())?.exits(*code)?;
            claim!(
                json.json()?.number("error.exit")? == *code as u64,
                "the JSON has another code: {json:?}"
            );
            let after = snapshot(ctx)?;
            claim!(after == before, "before: {before}; after: {after}");
            Ok(())
        };
        if let Err(v) = check() {
            bad.push(format!("{}: {v}", args.join(" ")));
        }
    }
    claim!(bad.is_empty(), "{}", bad.join("; "));
    // The two that answer what they can all the same.
    asyncfork(ctx, &["--device", "/dev/null", "status"])?
        .exits(3)?
        .says(&["unknown: /dev/null"])?;
    asyncfork(ctx, &["--device", "/dev/null", "metrics"])?
        .exits(3)?
        .complains(&["totals", null])?;
    // And no advice that would make it worse.
    let passwd = ctx.scratch.join("passwd");
    fs::write(&passwd, "root")?;
    for device in ["/dev/null", "/dev/none", &passwd.display().to_string()] {
        let said = asyncfork(ctx, &["--device", device, "doctor"])?.exits(1)?;
        claim!(
            !said.out.contains("rm ") && said.out.contains("--device"),
            "bad advice: {said:?}"
        );
    }
    claim!(snapshot(ctx)? == before, "something has changed");
    Ok(format!("{} mistakes", wrong.len()))
}

fn unprivileged(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("entry")?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path])?.exits(0)?;
    let before = snapshot(ctx)?;
    let nobody = |groups: &str, words: &str| {
        shell(
            ctx,
            &format!("setpriv --reuid=65534 --regid=65534 {groups} asyncfork {words}"),
        )
    };
    let id = fs::metadata(group.path())?.ino().to_string();
    let changing = [
        ("off".to_owned(), 4),
        ("off --persist".to_owned(), 4),
        (format!("enroll --cgroup {path} --helpers 1"), 3),
        (format!("unenroll --cgroup {path}"), 3),
        (format!("unenroll --id {id}"), 3),
        ("enrolled".to_owned(), 3),
        ("explain".to_owned(), 3),
        ("watch --count 1 --past".to_owned(), 3),
    ];
    for (words, code) in &changing {
        nobody("--clear-groups", words)?.exits(*code)?.complains(&[
            if words.contains("persist") {
                ""
            } else {
                "run it as root"
            },
        ])?;
    }
    nobody("--clear-groups", "status")?
        .exits(3)?
        .says(&["state     on", "run it as root"])?;
    nobody("--clear-groups", "doctor")?
        .exits(3)?
        .says(&["run it as root"])?;
    nobody("--clear-groups", "metrics")?
        .exits(3)?
        .complains(&["run it as root"])?;
    // One who may open the device, which is root's group's here.
    nobody("--groups=0", "status")?.exits(0)?;
    for words in [
        format!("enroll --cgroup {path} --helpers 1"),
        format!("unenroll --id {id}"),
    ] {
        nobody("--groups=0", &words)?
            .exits(4)?
            .complains(&["EPERM", "CAP_SYS_ADMIN"])?;
    }
    let after = snapshot(ctx)?;
    claim!(after == before, "before: {before}; after: {after}");
    Ok(format!("{} commands", changing.len() + 6))
}

fn undisturbed(ctx: &Ctx) -> TestResult<String> {
    let command = ctx.command()?;
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 32)?;
    let chunks = arena.chunks();
    let pid = sys::pid().to_string();
    let mut parked = Ok(0);
    let ended = while_plugged(ctx, &plug, &mut arena, |_| {
        let running = |stage: &str| -> TestResult<u64> {
            let stats = ctx.stats()?;
            let c = stats.chunks;
            let pulled = c.by_child + c.by_parent + c.by_helper + c.by_other;
            claim!(stats.running == 1, "{stage}: no session");
            Ok(pulled + c.reattached)
        };
        let before = running("before")?;
        for args in [
            &["doctor", "--no-measure", "--pid", &pid][..],
            &["explain"],
            &["status"],
            &["metrics"],
        ] {
            Command::new(&command).args(args).output()?;
        }
        parked = running("after").map(|after| after - before);
        Ok(())
    })?;
    ended
        .whole(chunks)?
        .holds("nobody walked through its memory", |r| {
            r.pulls_by(Hook::Walk) == 0
        })?;
    // Its stack and its program's own data are another matter.
    let pulled = parked?;
    claim!(pulled < chunks / 2, "{pulled} chunks were pulled meanwhile");
    Ok(format!("{pulled} of {chunks} chunks pulled meanwhile"))
}

/// Bytes of the process whose pause is predicted.
const LARGE: usize = 512 << 20;

/// fork() of a child that ends at once; how many nanoseconds it took.
fn fork_and_reap() -> TestResult<u64> {
    let start = sys::now_ns();
    // SAFETY: the child only ends.
    let pid = cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        sys::exit_now(0);
    }
    let ns = sys::now_ns() - start;
    sys::wait(pid)?;
    Ok(ns)
}

/// Nanoseconds that fork() takes in this process. The child ends at once, and is gone then.
fn timed_fork(asynchronous: bool) -> TestResult<u64> {
    let device = if asynchronous { Some(open()?) } else { None };
    if let Some(device) = &device {
        arm(device)?;
    }
    let ns = fork_and_reap()?;
    if let Some(device) = &device {
        let r = report(device)?;
        claim!(
            r.outcome() == Fate::Async && r.chunks.parked as usize >= LARGE / CHUNK,
            "the fork was {}, reason {}, {} chunks parked",
            r.outcome(),
            r.reason(),
            r.chunks.parked
        );
    }
    Ok(ns)
}

/// Of nine forks the least time, in microseconds.
fn measured(asynchronous: bool) -> TestResult<i32> {
    let mut ns = u64::MAX;
    for _ in 0..9 {
        ns = ns.min(timed_fork(asynchronous)?);
    }
    Ok((ns / 1000).try_into().unwrap_or(i32::MAX))
}

fn prediction(ctx: &Ctx) -> TestResult<String> {
    let group = ctx.cgroup.child("large")?;
    let server = Server::with(ctx, &group, || {
        let span = Span::reserve(LARGE)?;
        span.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        (0..span.pages()).for_each(|page| span.page(page).store(0, 1));
        debug_assert_eq!(span.len() / PAGE, span.pages());
        Ok(|what| measured(what == 2))
    })?;
    let mut said = Vec::new();
    // Another load of the machine only adds to a measurement: the least of each, so far, are compared.
    let (mut predicted, mut measured) = ([f64::MAX; 2], [f64::MAX; 2]);
    for _ in 0..10 {
        let found = asyncfork(ctx, &["doctor", "--pid", &server.pid(), "--json"])?.json()?;
        let tables = found.number("pause.tables")? as usize;
        claim!(
            (LARGE / CHUNK..LARGE / CHUNK + 100).contains(&tables),
            "{tables} page tables"
        );
        let mut good = true;
        for (n, kind) in ["stock", "asynchronous"].into_iter().enumerate() {
            let path = format!("pause.{kind}.ns");
            if found.get(&path)? == "null" {
                good = false;
                said.push(found.get(&format!("pause.{kind}.unknown"))?);
                continue;
            }
            let here = [
                found.number(&path)? as f64 / 1000.0,
                f64::from(server.tell(n as i32 + 1)?),
            ];
            predicted[n] = predicted[n].min(here[0]);
            measured[n] = measured[n].min(here[1]);
            good &= predicted[n] <= 2.0 * measured[n] && measured[n] <= 2.0 * predicted[n];
            said.push(format!(
                "{kind}: predicted {:.0} us, measured {:.0} us",
                here[0], here[1]
            ));
        }
        if good {
            return Ok(said.join("; "));
        }
    }
    Err(Verdict::Failed(said.join("; ")))
}

/// Pins memory as a buffer of an io_uring, until that is closed.
fn pin(span: Span) -> TestResult<OwnedFd> {
    let ring = io_uring()?;
    register(&ring, span)?;
    Ok(ring)
}

/// A finding of doctor, and how it is brought about, mended by what doctor prints, and gone.
struct Case {
    id: &'static str,
    make: fn(&Ctx, &Probe<'_>) -> TestResult,
}

const fn case(id: &'static str, make: fn(&Ctx, &Probe<'_>) -> TestResult) -> Case {
    Case { id, make }
}

/// Findings about services, which cases/service.rs brings about.
#[cfg(test)]
const OF_UNITS: &[&str] = &[
    "unit.not-enabled",
    "unit.not-running",
    "unit.reload",
    "unit.restart",
    "unit.device",
];

const MODULE: &[Case] = &[
    case("kernel.without-module", kernel_without_module),
    case("module.missing", module_missing),
    case("module.old", module_old),
    case("module.not-loaded", module_not_loaded),
    case("module.unsigned", module_unsigned),
    case("module.off", module_off),
    case("module.policy", module_policy),
    case("module.limit", module_limit),
    case("module.killed", module_killed),
];

const DEVICE: &[Case] = &[
    case("device.missing", device_missing),
    case("device.stale", device_stale),
    case("device.hidden", device_hidden),
    case("device.denied", device_denied),
];

const PROCESS: &[Case] = &[
    case("library.incompatible", library_incompatible),
    case("library.not-mapped", library_not_mapped),
    case("library.deleted", library_deleted),
    case("process.not-served", process_not_served),
    case("process.small", process_small),
    case("process.pinned", process_pinned),
    case("process.notifier", process_notifier),
    case("process.userfaultfd", process_userfaultfd),
    case("process.one-cpu", process_one_cpu),
    case("process.last-stock", process_last_stock),
    case("memory.limit", memory_limit),
];

const SETTINGS: &[Case] = &[
    case("settings.invalid", settings_invalid),
    case("settings.off", settings_off),
    case("settings.require", settings_require),
];

const SYSTEM: &[Case] = &[
    case("library.everywhere", library_everywhere),
    case("cgroup.v1", cgroup_v1),
    case("memory.overcommit", memory_overcommit),
    case("memory.thp", memory_thp),
];

const NEXT: &[Case] = &[
    case("next.unsupported", next_unsupported),
    case("next.missing", next_missing),
    case("next.headers", next_headers),
    case("next.unsigned", next_unsigned),
    case("next.not-loaded", next_not_loaded),
    case("next.off", next_off),
];

const FAULTS: &[Case] = &[
    case("kernel.unsupported", kernel_unsupported),
    case("kernel.panic-on-warn", kernel_panic_on_warn),
    case("module.abi", module_abi),
    case("module.hooks", module_hooks),
    case("module.switched-off", module_switched_off),
];

/// All that are brought about.
#[cfg(test)]
const CASES: &[&[Case]] = &[MODULE, DEVICE, PROCESS, SETTINGS, SYSTEM, NEXT, FAULTS];

/// Demands that a finding comes and goes.
struct Probe<'a> {
    ctx: &'a Ctx,
    id: &'static str,
    seen: Cell<bool>,
    gone: Cell<bool>,
}

impl Probe<'_> {
    /// What doctor prints to mend it, if it has the finding.
    fn fix(&self, args: &[&str]) -> TestResult<Option<String>> {
        let args = [&["doctor", "--json", "--no-measure"], args].concat();
        let said = asyncfork(self.ctx, &args)?;
        let found = said.json()?;
        for n in 0.. {
            let Some(id) = found.find(&format!("findings.{n}.id")) else {
                break;
            };
            if id != self.id {
                continue;
            }
            let note = found.get(&format!("findings.{n}.severity"))? == "note";
            claim!(note || said.code == 1, "want exit code 1: {said:?}");
            claim!(
                !found.get(&format!("findings.{n}.evidence"))?.is_empty(),
                "no evidence: {said:?}"
            );
            return Ok(Some(found.get(&format!("findings.{n}.fix"))?));
        }
        Ok(None)
    }

    /// Demands the finding; the line that mends it.
    fn seen(&self, args: &[&str]) -> TestResult<String> {
        match self.fix(args)? {
            Some(fix) => {
                self.seen.set(true);
                Ok(fix)
            }
            None => {
                let said = asyncfork(self.ctx, &[&["doctor", "--no-measure"], args].concat())?;
                Err(Verdict::Failed(format!("not found: {said:?}")))
            }
        }
    }

    /// Demands the finding, with a line that tells, in these words, what no shell can do.
    fn told(&self, args: &[&str], words: &[&str]) -> TestResult {
        let fix = self.seen(args)?;
        for word in words {
            claim!(fix.contains(word), "the line does not say {word:?}: {fix}");
        }
        Ok(())
    }

    /// Demands that the finding is gone.
    fn gone(&self, args: &[&str]) -> TestResult {
        let fix = self.fix(args)?;
        claim!(fix.is_none(), "still there, and its line: {fix:?}");
        self.gone.set(true);
        Ok(())
    }

    /// Demands the finding, and does literally what its line says.
    fn apply(&self, args: &[&str]) -> TestResult<String> {
        let fix = self.seen(args)?;
        shell(self.ctx, &fix)?
            .exits(0)
            .map_err(|v| v.at(format!("{fix:?}")))?;
        Ok(fix)
    }

    /// Demands that the finding goes by its line.
    fn mends(&self, args: &[&str]) -> TestResult<String> {
        let fix = self.apply(args)?;
        self.gone(args)
            .map_err(|v| v.at(format!("after {fix:?}")))?;
        Ok(fix)
    }
}

fn cases(ctx: &Ctx, cases: &[Case]) -> TestResult<String> {
    ctx.command()?;
    own_mounts()?;
    writable(ctx, "/etc")?;
    let mut bad = Vec::new();
    let mut skipped = Vec::new();
    for case in cases {
        let probe = Probe {
            ctx,
            id: case.id,
            seen: Cell::new(false),
            gone: Cell::new(false),
        };
        match (case.make)(ctx, &probe) {
            Ok(()) if probe.seen.get() && probe.gone.get() => {}
            Ok(()) => bad.push(format!("{}: did not come and go", case.id)),
            Err(Verdict::Skip(why)) => skipped.push(format!("{}: {why}", case.id)),
            Err(v) => bad.push(format!("{}: {v}", case.id)),
        }
        // What a case that failed has left behind is not the next one's.
        if !ctx.module.is_loaded() {
            ctx.module.load("").at("load again")?;
        }
        ctx.module.set("enabled", 1)?;
        ctx.module.set("policy", "enrolled")?;
        restore_device(ctx)?;
    }
    claim!(bad.is_empty(), "{}", bad.join("; "));
    if skipped.len() == cases.len() {
        return Err(Verdict::Skip(skipped.join("; ")));
    }
    let names: Vec<_> = cases.iter().map(|case| case.id).collect();
    Ok(format!("{}; skipped: {skipped:?}", names.join(", ")))
}

/// The kernel's node, not one that somebody has made.
fn restore_device(ctx: &Ctx) -> TestResult {
    let node = Path::new("/dev/asyncfork");
    if open().is_ok() && !node.with_extension("made").exists() {
        return Ok(());
    }
    if ctx.module.is_loaded() {
        ctx.module.unload()?;
    }
    for path in [node.to_owned(), node.with_extension("made")] {
        let _ = fs::remove_file(path);
    }
    ctx.module.load("").at("load again")
}

/// Notes that the node is not the kernel's any more.
fn mark_device() -> TestResult {
    Ok(fs::write("/dev/asyncfork.made", "")?)
}

/// The hook of the package asyncfork-dkms,
const HOOK: &str = "/etc/kernel/postinst.d/asyncfork";
/// and what that has recorded.
const RECORDS: &str = "/var/lib/asyncfork/kernels";

/// That package, as far as doctor knows it: its hook makes a module of nothing. See [`own_mounts`].
struct Package<'a> {
    ctx: &'a Ctx,
    release: &'a str,
}

impl<'a> Package<'a> {
    /// Beside [`empty_modules`].
    fn new(ctx: &'a Ctx, release: &'a str) -> TestResult<Self> {
        const SCRIPT: &str = "/usr/lib/asyncfork/kernel";
        writable(ctx, "/usr/lib")?;
        writable(ctx, "/var/lib")?;
        let file = installed("$1");
        let hook = format!(
            "#!/bin/sh\nmkdir -p $(dirname {file}) && echo ELF >{file} && echo built: >{RECORDS}/$1\n"
        );
        let package = Self { ctx, release };
        must(ctx, &format!("mkdir -p {RECORDS}"))?;
        for path in [SCRIPT, HOOK].map(Path::new) {
            fs::create_dir_all(path.parent().expect("a directory"))?;
            fs::write(path, &hook)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        empty_modules(ctx, release)?;
        Ok(package)
    }

    fn records(&self, line: &str) -> TestResult {
        Ok(fs::write(format!("{RECORDS}/{}", self.release), line)?)
    }
}

impl Drop for Package<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(HOOK);
        // What runs has libraries there.
        let _ = shell(self.ctx, "umount -l /var/lib; umount -l /usr/lib");
    }
}

fn kernel_without_module(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    const OTHER: &str = "6.1.0-99-amd64";
    let release = release()?;
    let package = Package::new(ctx, OTHER)?;
    pretend(ctx, &release)?;
    must(
        ctx,
        &format!(
            "rm /lib/modules/{OTHER}/build/Makefile && mount -t tmpfs tmpfs /boot && \
             touch /boot/vmlinuz-{release} /boot/vmlinuz-{OTHER}"
        ),
    )?;
    package.records("excluded: not for this kernel\n")?;
    let boot = format!("boot a kernel that has the module: {release}");
    probe.told(&[], &[&boot])?;
    package.records("headers-missing: none\n")?;
    probe.told(&[], &[&format!("apt install linux-headers-{OTHER}")])?;
    must(ctx, &format!("touch /lib/modules/{OTHER}/build/Makefile"))?;
    probe.mends(&[])?;
    must(ctx, "umount /boot")
}

fn module_missing(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = release()?;
    empty_modules(ctx, &release)?;
    ctx.module.unload()?;
    probe.told(&[], &["dkms install asyncfork/", &format!("-k {release}")])?;
    pretend(ctx, &release)?;
    probe.gone(&[])?;
    let package = Package::new(ctx, &release)?;
    package.records("failed: no compiler\n")?;
    let seen = format!("{RECORDS}/{release}: failed: no compiler");
    asyncfork(ctx, &["doctor"])?.exits(1)?.says(&[&seen])?;
    probe.mends(&[]).map(drop)
}

fn module_old(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = release()?;
    let package = Package::new(ctx, &release)?;
    pretend(ctx, &release)?;
    package.records("failed: no compiler\n")?;
    probe.mends(&[]).map(drop)
}

fn module_not_loaded(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = release()?;
    empty_modules(ctx, &release)?;
    install(ctx, &release)?;
    ctx.module.unload()?;
    probe.mends(&[])?;
    claim!(ctx.module.is_loaded(), "the module is not loaded");
    Ok(())
}

/// Lets only signed modules be loaded, as far as one can look.
fn sign_only(ctx: &Ctx) -> TestResult {
    let file = ctx.scratch.join("sig_enforce");
    fs::write(&file, "Y\n")?;
    must(
        ctx,
        &format!(
            "mount --bind {} /sys/module/module/parameters/sig_enforce",
            file.display()
        ),
    )
}

/// Signs the module as dkms does, by a key that no kernel has.
fn sign(ctx: &Ctx, release: &str) -> TestResult {
    let (at, file) = (ctx.scratch.display(), installed(release));
    must(
        ctx,
        &format!(
            "openssl req -new -x509 -nodes -subj '/CN=DKMS module signing key' -newkey rsa:2048 \
             -keyout {at}/mok.key -outform DER -out {at}/mok.pub && \
             $(ls /usr/lib/linux-kbuild-*/scripts/sign-file | head -1) sha256 {at}/mok.key {at}/mok.pub {file}"
        ),
    )
}

/// An unsigned module, a signed one, and the key in the kernel, as far as one can look: here is no firmware.
fn unsigned(ctx: &Ctx, probe: &Probe<'_>, args: &[&str], release: &str) -> TestResult {
    const KEYS: &str = "/proc/keys";
    // No keys are enrolled without Secure Boot.
    const FIX: &[&str] = &["boot without module.sig_enforce=1", "or with Secure Boot"];
    install(ctx, release)?;
    sign_only(ctx)?;
    let keys = ctx.scratch.join("keys");
    let key =
        |name: &str| format!("1 I------ 1 perm 1f030000 0 0 asymmetri {name}: 1: X509.rsa 1 []\n");
    fs::write(&keys, key("Debian"))?;
    must(ctx, &format!("mount --bind {} {KEYS}", keys.display()))?;
    let says = |words: &[&str]| {
        let args = [&["doctor", "--no-measure"], args].concat();
        asyncfork(ctx, &args)?.exits(1)?.says(words).map(drop)
    };
    probe.told(args, FIX)?;
    says(&["has no signature"])?;
    sign(ctx, release)?;
    probe.told(args, FIX)?;
    says(&["is signed by DKMS module signing key, and /proc/keys has no key of that name"])?;
    fs::write(&keys, key("Debian") + &key("DKMS module signing key"))?;
    probe.gone(args)?;
    must(
        ctx,
        &format!("umount {KEYS} && umount /sys/module/module/parameters/sig_enforce"),
    )
}

fn module_unsigned(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = release()?;
    empty_modules(ctx, &release)?;
    ctx.module.unload()?;
    unsigned(ctx, probe, &[], &release)
}

fn module_off(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    asyncfork(ctx, &["off"])?.exits(0)?;
    let fix = probe.mends(&[])?;
    claim!(fix == "asyncfork on", "{fix}");
    asyncfork(ctx, &["off", "--persist"])?.exits(0)?;
    let fix = probe.mends(&[])?;
    claim!(fix == "asyncfork on --persist", "{fix}");
    claim!(ctx.module.get("state")? == "on", "the module is not on");
    Ok(())
}

fn module_policy(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("policy")?;
    let server = Server::new(ctx, &group, 8)?;
    let path = group.path().display().to_string();
    ctx.module.set("policy", "armed")?;
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?
        .exits(0)?
        .says(&["without effect"])?;
    server.expect_uncounted(ctx)?;
    probe.mends(&[])?;
    server.expect_async()?;
    asyncfork(ctx, &["unenroll", "--cgroup", &path])?.exits(0)?;
    Ok(())
}

/// As many forks as the module remembers.
fn forget() -> TestResult {
    const RING: usize = 256;
    let device = open()?;
    let arm = Arm {
        min_rss: u64::MAX,
        ..Arm::default()
    };
    for _ in 0..RING {
        device.arm(&arm).map_err(device_error)?;
        fork_and_reap()?;
    }
    let r = report(&device)?;
    claim!(
        r.reason() == Reason::MinRss,
        "the forks were stock for {}",
        r.reason()
    );
    Ok(())
}

fn module_limit(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("limit")?;
    let server = Server::new(ctx, &group, 8)?;
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    let most = ctx.module.get("max_sessions")?;
    ctx.module.set("max_sessions", 0)?;
    let mended = server
        .expect_stock(Reason::Limit)
        .and_then(|()| probe.apply(&[]))
        .and_then(|_| server.expect_async());
    ctx.module.set("max_sessions", most)?;
    mended?;
    asyncfork(ctx, &["unenroll", "--cgroup", &path])?.exits(0)?;
    forget()?;
    probe.gone(&[])
}

fn module_killed(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let full = ctx.cgroup.child("full")?;
    full.set("memory.max", 0)?;
    let board = Board::new()?;
    let pid = ctx.helper(&board, "starved", || {
        let arena = Arena::new(&mut ctx.rng(), 32)?;
        // An allocation beyond the limit fails: nobody can be killed for it.
        fs::write("/proc/self/oom_score_adj", "-1000")?;
        let session = ctx.fork().into_cgroup(&full)?.start(|| arena.verify())?;
        session.finish_killed()?.aborted()?;
        Ok(())
    })?;
    sys::wait(pid)?;
    board.collect(&["starved"])?;
    probe.told(&[], &["memory.max"])?;
    full.set("memory.max", "max")?;
    forget()?;
    probe.gone(&[])
}

/// Lets modprobe find the module under test.
fn loadable(ctx: &Ctx) -> TestResult<String> {
    let release = release()?;
    empty_modules(ctx, &release)?;
    install(ctx, &release)?;
    Ok(release)
}

/// A module with fault injection is none that it takes without being told.
const OPTIONS: &str = "/etc/modprobe.d/asyncfork-faults.conf";

/// As [`loadable`], and tells the module to be taken.
fn loadable_untested(ctx: &Ctx) -> TestResult {
    loadable(ctx)?;
    fs::create_dir_all("/etc/modprobe.d")?;
    Ok(fs::write(OPTIONS, "options asyncfork allow_untested=1\n")?)
}

/// The module refuses this kernel, as it does each with fault injection. Doctor knows kernels by their names, and a kernel
/// has one only: it is shown another.
fn kernel_unsupported(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    const OTHER: &str = "6.6.1-custom";
    const PATH: &str = "/proc/sys/kernel/osrelease";
    const RISK: &str = ", or at your own risk: ";
    let release = loadable(ctx)?;
    must(
        ctx,
        &format!(
            "ln -s {release} /lib/modules/{OTHER} && \
             mount -t tmpfs tmpfs /boot && touch /boot/vmlinuz-{release}"
        ),
    )?;
    ctx.module.unload()?;
    let refused = shell(ctx, "modprobe asyncfork")?;
    claim!(
        refused.code != 0 && refused.err.contains("not supported"),
        "the module is not refused: {refused:?}"
    );
    let file = ctx.scratch.join("osrelease");
    fs::write(&file, format!("{OTHER}\n"))?;
    must(ctx, &format!("mount --bind {} {PATH}", file.display()))?;
    let mended = probe.seen(&[]).and_then(|fix| {
        let Some((boot, line)) = fix.split_once(RISK) else {
            return Err(Verdict::Failed(format!("want {RISK:?}: {fix}")));
        };
        claim!(
            boot == format!("boot a kernel that has the module: {release}"),
            "{fix}"
        );
        shell(ctx, line)?.exits(0)?;
        claim!(ctx.module.is_loaded(), "the module is not loaded");
        probe.gone(&[])
    });
    must(ctx, &format!("umount {PATH}"))?;
    mended
}

fn kernel_panic_on_warn(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    const PATH: &str = "/proc/sys/kernel/panic_on_warn";
    let _setting = Setting::new(PATH, 1)?;
    let present = probe.fix(&[])?;
    claim!(
        present.is_none(),
        "of a module that does not warn: {present:?}"
    );
    ctx.module.unload()?;
    ctx.module.load("fault_abi=2").at("load as ABI 2")?;
    let mended = probe.mends(&[]).map(drop);
    ctx.module.unload()?;
    mended?;
    claim!(fs::read_to_string(PATH)?.trim() == "0", "{PATH} is not 0");
    Ok(())
}

fn module_abi(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    const FIRST: &str = "install command and module of the same release, then: ";
    loadable_untested(ctx)?;
    ctx.module.unload()?;
    ctx.module.load(LATER).at("load as ABI 99")?;
    asyncfork(ctx, &["doctor"])?
        .exits(1)?
        .says(&["the module speaks ABI 99, this command 2 to 3"])?;
    let fix = probe.seen(&[])?;
    let Some(line) = fix.strip_prefix(FIRST) else {
        return Err(Verdict::Failed(format!("want {FIRST:?}: {fix}")));
    };
    // The module of this release is there.
    shell(ctx, line)?.exits(0)?;
    probe.gone(&[])
}

/// A walk of the page tables does not pull: mincore() takes what is parked for absent.
fn module_hooks(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    const SELFTEST: &[&str] = &["--selftest"];
    ctx.module.unload()?;
    let dead = format!("fault_hook={}", Hook::Walk.raw());
    ctx.module.load(&dead).at("load with a dead hook")?;
    let seen = asyncfork(ctx, &["doctor", "--selftest"])?
        .exits(1)?
        .says(&["module.hooks"])
        .and_then(|said| {
            let seen = said
                .out
                .lines()
                .find(|l| l.contains("seen: "))
                .unwrap_or("");
            claim!(
                seen.contains("walk") && seen.contains("did not fire"),
                "the hook is not named: {said:?}"
            );
            let fix = probe.apply(SELFTEST)?;
            claim!(fix.starts_with("asyncfork off "), "{fix}");
            claim!(ctx.module.get("state")? == "off", "the module is not off");
            Ok(())
        });
    ctx.module.unload()?;
    ctx.module.load("").at("load again")?;
    seen?;
    // On a busy machine others pull first, which the finding takes for a hook that may be missing.
    let quiet = sys::poll_until(|| -> TestResult<Option<()>> {
        Ok(probe.fix(SELFTEST)?.is_none().then_some(()))
    })?;
    claim!(quiet.is_some(), "found with all hooks there");
    probe.gone.set(true);
    Ok(())
}

fn module_switched_off(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    loadable_untested(ctx)?;
    ctx.module.set("fault_switch_off", "a test says so")?;
    asyncfork(ctx, &["status"])?
        .exits(1)?
        .says(&["switched_off"])?;
    asyncfork(ctx, &["on"])?
        .exits(4)?
        .complains(&["modprobe -r asyncfork"])?;
    probe.mends(&[]).map(drop)
}

fn device_missing(_: &Ctx, probe: &Probe<'_>) -> TestResult {
    mark_device()?;
    fs::remove_file("/dev/asyncfork")?;
    probe.mends(&[])?;
    open().map(drop)
}

fn device_stale(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    mark_device()?;
    for line in [
        "rm /dev/asyncfork && mknod /dev/asyncfork c 10 250",
        "rm /dev/asyncfork && echo >/dev/asyncfork",
        "rm /dev/asyncfork && mkdir /dev/asyncfork",
    ] {
        must(ctx, line)?;
        probe.mends(&[]).map_err(|v| v.at(line))?;
        open().map(drop)?;
    }
    Ok(())
}

fn device_hidden(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("hidden")?;
    let library = ctx.library()?.display().to_string();
    let script = "mount -t tmpfs tmpfs /dev && exec sleep 1000";
    let server = started(
        &group,
        &[("LD_PRELOAD", &library)],
        &["unshare", "--mount", "sh", "-c", script],
    )?;
    let pid = server.pid();
    probe.told(&["--pid", &pid], &["/dev/asyncfork", "--device"])?;
    let rdev = fs::metadata("/dev/asyncfork")?.rdev();
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    must(
        ctx,
        &format!("mknod -m 660 /proc/{pid}/root/dev/asyncfork c {major} {minor}"),
    )?;
    probe.gone(&["--pid", &pid])
}

fn device_denied(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    const GROUP: &str = "65533";
    let group = ctx.cgroup.child("denied")?;
    let library = ctx.library()?.display().to_string();
    let start = |groups: &str| {
        let words = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            groups,
            "sleep",
            "1000",
        ];
        started(&group, &[("LD_PRELOAD", &library)], &words)
    };
    let server = start("--clear-groups")?;
    probe.told(&["--pid", &server.pid()], &["group", "restart process"])?;
    must(ctx, &format!("chgrp {GROUP} /dev/asyncfork"))?;
    let again = start(&format!("--groups={GROUP}"));
    let gone = again.and_then(|again| probe.gone(&["--pid", &again.pid()]));
    must(ctx, "chgrp 0 /dev/asyncfork")?;
    gone
}

fn library_incompatible(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("static")?;
    let library = ctx.library()?.display().to_string();
    // The command itself is a static program.
    let command = ctx.command()?.display().to_string();
    let words = [command.as_str(), "watch", "--interval", "1000"];
    let server = started(&group, &[("LD_PRELOAD", &library)], &words)?;
    let fix = probe.mends(&["--pid", &server.pid()])?;
    claim!(fix.starts_with("asyncfork enroll --pid"), "{fix}");
    unenroll(ctx, &group)
}

fn unenroll(ctx: &Ctx, group: &Cgroup) -> TestResult {
    let path = group.path().display().to_string();
    asyncfork(ctx, &["unenroll", "--cgroup", &path])?
        .exits(0)?
        .says(&["changed: true"])
        .map(drop)
}

fn library_not_mapped(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("unmapped")?;
    let none = [("LD_PRELOAD", "/none/libasyncfork.so")];
    let server = started(&group, &none, &["sleep", "1000"])?;
    probe.told(
        &["--pid", &server.pid()],
        &["ls -l", "/none/libasyncfork.so"],
    )?;
    let again = preloaded(ctx, &group, &[])?;
    probe.gone(&["--pid", &again.pid()])
}

fn library_deleted(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("deleted")?;
    let copy = ctx.scratch.join("libasyncfork.so");
    fs::copy(ctx.library()?, &copy)?;
    let library = copy.display().to_string();
    let start = || started(&group, &[("LD_PRELOAD", &library)], &["sleep", "1000"]);
    let server = start()?;
    fs::remove_file(&copy)?;
    fs::copy(ctx.library()?, &copy)?;
    let pid = server.pid();
    probe.told(&["--pid", &pid], &[&format!("restart process {pid}")])?;
    let again = start()?;
    probe.gone(&["--pid", &again.pid()])
}

fn process_not_served(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("unserved")?;
    let server = Server::new(ctx, &group, 80)?;
    server.expect_uncounted(ctx)?;
    probe.mends(&["--pid", &server.pid()])?;
    server.expect_async()?;
    unenroll(ctx, &group)
}

fn process_small(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("small")?;
    let server = Server::new(ctx, &group, 8)?;
    let pid = server.pid();
    asyncfork(ctx, &["enroll", "--pid", &pid])?.exits(0)?;
    server.expect_small(ctx)?;
    probe.told(&["--pid", &pid], &["lower the size"])?;
    asyncfork(ctx, &["enroll", "--pid", &pid, "--min-rss", "1M"])?.exits(0)?;
    server.expect_async()?;
    probe.gone(&["--pid", &pid])?;
    unenroll(ctx, &group)
}

fn process_pinned(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("pinned")?;
    let server = |pinned: bool| {
        Server::with(ctx, &group, || {
            let span = Span::reserve(CHUNK)?;
            span.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
            span.store(0, 1);
            let ring = if pinned { Some(pin(span)?) } else { None };
            Ok(move |_| Ok(i32::from(ring.is_some())))
        })
    };
    let guilty = server(true)?;
    probe.told(&["--pid", &guilty.pid()], &["io_uring", "restart it"])?;
    probe.gone(&["--pid", &server(false)?.pid()])
}

fn process_notifier(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("machine")?;
    // Skips where there are none.
    drop(virtual_machine()?);
    let server = |with: bool| {
        Server::with(ctx, &group, || {
            let arena = Arena::new(&mut ctx.rng(), 8)?;
            let machine = with.then(virtual_machine).transpose()?;
            Ok(move |_| {
                let _held = &machine;
                plain_fork(&arena).map(|()| 0)
            })
        })
    };
    let path = group.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "1M"])?.exits(0)?;
    let guilty = server(true)?;
    guilty.expect_stock(Reason::Notifier)?;
    probe.told(&["--pid", &guilty.pid()], &["keep KVM", "restart it"])?;
    let again = server(false)?;
    again.expect_async()?;
    probe.gone(&["--pid", &again.pid()])?;
    unenroll(ctx, &group)
}

fn process_userfaultfd(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("uffd")?;
    let server = Server::with(ctx, &group, || {
        // SAFETY: plain numbers.
        let fd = cvt(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
        // SAFETY: a fresh descriptor.
        let mut fd = Some(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        Ok(move |_| Ok(i32::from(fd.take().is_some())))
    })?;
    probe.told(&["--pid", &server.pid()], &["keep userfaultfd out"])?;
    server.tell(0)?;
    probe.gone(&["--pid", &server.pid()])
}

fn process_one_cpu(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("bound")?;
    for cpu in 0..sys::cpus() {
        let words = ["taskset", "-c", &cpu.to_string(), "sleep", "1000"];
        let server = started(&group, &[], &words)?;
        probe.mends(&["--pid", &server.pid()])?;
    }
    Ok(())
}

fn process_last_stock(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("stock")?;
    let server = Server::new(ctx, &group, 8)?;
    let pid = server.pid();
    asyncfork(ctx, &["enroll", "--pid", &pid, "--min-rss", "1M"])?.exits(0)?;
    let most = ctx.module.get("max_sessions")?;
    ctx.module.set("max_sessions", 0)?;
    let told = server.expect_stock(Reason::Limit).and_then(|()| {
        probe.told(
            &["--pid", &pid],
            &["raise /sys/module/asyncfork/parameters/max_sessions"],
        )
    });
    ctx.module.set("max_sessions", most)?;
    told?;
    server.expect_async()?;
    probe.gone(&["--pid", &pid])?;
    unenroll(ctx, &group)
}

fn memory_limit(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("tight")?;
    let server = Server::with(ctx, &group, || {
        // Many page tables, and little else.
        let span = Span::reserve(512 * CHUNK)?;
        span.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        (0..512).for_each(|chunk| span.page(chunk * CHUNK / PAGE).store(0, 1));
        Ok(|_| Ok(0))
    })?;
    let now: u64 = group
        .get("memory.current")?
        .parse()
        .map_err(io::Error::other)?;
    group.set("memory.max", now + (256 << 10))?;
    probe.mends(&["--pid", &server.pid()])?;
    let max: u64 = group.get("memory.max")?.parse().map_err(io::Error::other)?;
    claim!(max > now + (1 << 20), "the limit is {max}");
    Ok(())
}

fn settings_invalid(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("invalid")?;
    let server = preloaded(ctx, &group, &[("ASYNCFORK_MIN_RSS", "64X")])?;
    probe.told(
        &["--pid", &server.pid()],
        &["correct ASYNCFORK_MIN_RSS", "restart process"],
    )?;
    let again = preloaded(ctx, &group, &[("ASYNCFORK_MIN_RSS", "64M")])?;
    probe.gone(&["--pid", &again.pid()])
}

fn settings_off(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let group = ctx.cgroup.child("off")?;
    for setting in [("ASYNCFORK", "off"), ("ASYNCFORK_MATCH", "redis-server")] {
        let server = preloaded(ctx, &group, &[setting])?;
        probe.told(
            &["--pid", &server.pid()],
            &["take it out of its environment", "restart process"],
        )?;
    }
    let again = preloaded(ctx, &group, &[("ASYNCFORK_MATCH", "redis-server,sleep")])?;
    probe.gone(&["--pid", &again.pid()])
}

/// Redis under the library; its socket.
fn redis(ctx: &Ctx, group: &Cgroup, mode: &str) -> TestResult<(Running, String)> {
    let socket = format!("{}/redis-{mode}.sock", ctx.scratch.display());
    let library = ctx.library()?.display().to_string();
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("ASYNCFORK", mode),
        ("ASYNCFORK_MIN_RSS", "1K"),
    ];
    let directory = ctx.scratch.display().to_string();
    let words = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        &socket,
        "--dir",
        &directory,
        "--save",
        "3600 1000",
        "--daemonize",
        "no",
    ];
    let server = started(group, &env, &words)?;
    let up = sys::poll_until(|| -> TestResult<Option<()>> {
        let said = shell(ctx, &format!("redis-cli -s {socket} ping"))?;
        Ok((said.out.trim() == "PONG").then_some(()))
    })?;
    claim!(up.is_some(), "Redis does not come up");
    Ok((server, socket))
}

fn settings_require(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    if !Path::new("/usr/bin/redis-server").exists() {
        return Err(Verdict::Skip("this root has no redis-server".into()));
    }
    let group = ctx.cgroup.child("redis")?;
    // What the finding warns of: a snapshot fails, and writes with it.
    let write = |socket: &str| -> TestResult<String> {
        shell(
            ctx,
            &format!("redis-cli -s {socket} set a b; redis-cli -s {socket} bgsave"),
        )?;
        let over = sys::poll_until(|| -> TestResult<Option<String>> {
            let info = shell(ctx, &format!("redis-cli -s {socket} info persistence"))?.out;
            Ok(info.contains("rdb_bgsave_in_progress:0").then_some(info))
        })?;
        claim!(over.is_some(), "the snapshot does not end");
        Ok(shell(ctx, &format!("redis-cli -s {socket} set a c"))?.out)
    };
    asyncfork(ctx, &["off"])?.exits(0)?;
    let (server, socket) = redis(ctx, &group, "require")?;
    let said = write(&socket)?;
    claim!(said.contains("MISCONF"), "writes go on: {said}");
    let pid = server.pid();
    // Redis overwrites its environment. What is left is the mark of the library.
    let words = ["take ASYNCFORK=require out", "restart process"];
    if fs::read_to_string(format!("/proc/{pid}/maps"))?.contains("/memfd:asyncfork:stock") {
        probe.told(&["--pid", &pid], &words)?;
    } else {
        asyncfork(ctx, &["doctor", "--no-measure", "--pid", &pid])?
            .exits(1)?
            .says(&["the settings of process", "overwritten its environment"])?;
    }
    drop(server);
    let other = preloaded(ctx, &group, &[("ASYNCFORK", "require")])?;
    probe.told(&["--pid", &other.pid()], &words)?;
    drop(other);
    let (server, socket) = redis(ctx, &group, "auto")?;
    let said = write(&socket)?;
    claim!(said.trim() == "OK", "no write: {said}");
    probe.gone(&["--pid", &server.pid()])?;
    asyncfork(ctx, &["on"])?.exits(0)?;
    let before = ctx.stats()?.r#async;
    write(&socket)?;
    let forks = ctx.stats()?.r#async - before;
    claim!(forks == 1, "{forks} asynchronous snapshots, want 1");
    Ok(())
}

fn library_everywhere(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let library = ctx.library()?.display().to_string();
    let file = Path::new("/etc/ld.so.preload");
    for (text, left) in [
        (format!("{library}\n"), ""),
        (format!("/none/other.so {library}\n"), "/none/other.so"),
        (
            format!("/none/other.so:{library}:/none/third.so\n"),
            "/none/other.so::/none/third.so",
        ),
    ] {
        fs::write(file, &text)?;
        let mended = probe.mends(&[]);
        let now = fs::read_to_string(file)?;
        fs::remove_file(file)?;
        mended.map_err(|v| v.at(&text))?;
        claim!(now.trim() == left, "{text:?} became {now:?}, want {left:?}");
    }
    Ok(())
}

fn cgroup_v1(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    // For processes with these mounts there is none.
    must(ctx, "mount -t tmpfs tmpfs /sys/fs/cgroup")?;
    let told = probe.told(
        &[],
        &["systemd.unified_cgroup_hierarchy=1", "--via preload"],
    );
    must(ctx, "umount /sys/fs/cgroup")?;
    told?;
    probe.gone(&[])
}

fn memory_overcommit(_: &Ctx, probe: &Probe<'_>) -> TestResult {
    let _setting = Setting::new("/proc/sys/vm/overcommit_memory", 2)?;
    probe.mends(&[]).map(drop)
}

fn memory_thp(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let _setting = Setting::new("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;
    let group = ctx.cgroup.child("huge")?;
    let server = started(&group, &[], &["sleep", "1000"])?;
    probe.mends(&["--pid", &server.pid()]).map(drop)
}

/// A machine whose next boot is of this kernel, with all that it takes, but for what the case takes away.
fn next_boot(ctx: &Ctx) -> TestResult<String> {
    let release = release()?;
    empty_modules(ctx, &release)?;
    pretend(ctx, &release)?;
    must(
        ctx,
        &format!(
            "mount -t tmpfs tmpfs /boot && touch /boot/vmlinuz-{release} && \
             mkdir -p /etc/modules-load.d && echo asyncfork >/etc/modules-load.d/asyncfork.conf"
        ),
    )?;
    let fine = asyncfork(ctx, &["doctor", "--next-boot"])?;
    claim!(fine.code == 0, "not fine: {fine:?}");
    Ok(release)
}

const BOOT: &[&str] = &["--next-boot"];

fn next_unsupported(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    next_boot(ctx)?;
    must(ctx, "touch /boot/vmlinuz-99.1.0-1-amd64")?;
    probe.told(BOOT, &["apt remove linux-image-99.1.0-1-amd64"])?;
    must(ctx, "rm /boot/vmlinuz-99.1.0-1-amd64")?;
    probe.gone(BOOT)
}

fn next_missing(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = next_boot(ctx)?;
    must(ctx, &format!("rm {}", installed(&release)))?;
    probe.told(BOOT, &["dkms install asyncfork/", &format!("-k {release}")])?;
    let package = Package::new(ctx, &release)?;
    probe.mends(BOOT)?;
    // An old one is ready all the same.
    package.records("failed: no compiler\n")?;
    asyncfork(ctx, &["doctor", "--next-boot"])?
        .exits(1)?
        .says(&["module.old", "1 finding"])?;
    asyncfork(ctx, &["metrics"])?
        .exits(0)?
        .says(&["\nasyncfork_next_boot_ready 1\n"])
        .map(drop)
}

fn next_headers(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = next_boot(ctx)?;
    let makefile = format!("/lib/modules/{release}/build/Makefile");
    must(ctx, &format!("rm {makefile} {}", installed(&release)))?;
    probe.told(BOOT, &[&format!("apt install linux-headers-{release}")])?;
    must(ctx, &format!("touch {makefile}"))?;
    probe.gone(BOOT)
}

fn next_unsigned(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    let release = next_boot(ctx)?;
    ctx.module.unload()?;
    unsigned(ctx, probe, BOOT, &release)
}

fn next_not_loaded(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    next_boot(ctx)?;
    must(ctx, "rm /etc/modules-load.d/asyncfork.conf")?;
    probe.mends(BOOT).map(drop)
}

fn next_off(ctx: &Ctx, probe: &Probe<'_>) -> TestResult {
    next_boot(ctx)?;
    asyncfork(ctx, &["off", "--persist"])?.exits(0)?;
    probe.mends(BOOT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_brought_about_here_or_said_why_not() {
        const REFERENCE: &str = include_str!("../../../../docs/reference.md");
        let section = REFERENCE.split("\n## Findings\n").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|l| l.strip_prefix("| `"));
        let mut known: Vec<_> = rows.filter_map(|l| l.split('`').next()).collect();
        assert!(known.len() > 40, "{known:?}");
        let cases = CASES.iter().flat_map(|group| group.iter().map(|c| c.id));
        let mut here: Vec<_> = cases.chain(OF_UNITS.iter().copied()).collect();
        known.sort_unstable();
        here.sort_unstable();
        assert_eq!(here, known);
    }

    #[test]
    fn json_is_taken_apart() {
        let text = r#"{"a": {"b": 1, "c": [true, {"d": "x\"y, }"}]}, "e": null, "f": [], "g": {}}"#;
        let json = Json::parse(text).unwrap();
        assert_eq!(json.number("a.b"), Ok(1));
        assert_eq!(json.get("a.c.0"), Ok("true".into()));
        assert_eq!(json.get("a.c.1.d"), Ok("x\"y, }".into()));
        assert_eq!(json.get("e"), Ok("null".into()));
        assert!(json.get("f").is_err());
        assert!(Json::parse("{").is_none());
        assert!(Json::parse("{} x").is_none());
    }
}
