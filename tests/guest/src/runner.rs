// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs tests one after another, each in a process of its own.

use crate::board;
use crate::cases::{Suite, Test, TESTS};
use crate::cgroup::Cgroup;
use crate::ctx::Ctx;
use crate::hold;
use crate::leak;
use crate::mem::probe;
use crate::module::{self, Module};
use crate::procfs;
use crate::sys::{self, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use anyhow::{bail, Context as _};
use asyncfork_watch::{describe, mark_kernel_log, Census};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// How often a test is tried whose conditions are not met.
const ATTEMPTS: u32 = 3;
/// A test that takes longer is stuck. Far above what the slowest takes on an emulated processor.
const WATCHDOG_SECONDS: i32 = 240;
/// That many times as long on a kernel that checks itself.
const CHECKED: i32 = 4;
/// And where random calls are made to the last of them.
const LONG: i32 = 8;
/// [`Options::long`], for the tests.
static TO_THE_LAST: AtomicBool = AtomicBool::new(false);
const SCRATCH: &str = "/run/asyncfork-guest";

/// What to run and where.
pub struct Options {
    /// asyncfork.ko
    pub module: PathBuf,
    /// libasyncfork.so
    pub shim: PathBuf,
    /// Gets results.txt.
    pub results: PathBuf,
    /// Replays a run.
    pub seed: u64,
    /// Which tests.
    pub suite: Suite,
    /// Random calls to the last of them, however long they take.
    pub long: bool,
    /// Only tests whose name contains one of these; empty: all.
    pub filters: Vec<String>,
    /// Stock forks, no module.
    pub control: bool,
}

impl Options {
    /// The tests that the suite and the filters select. A filter selects from all suites of
    /// this kind of boot.
    pub fn selected(&self) -> Vec<&'static Test> {
        let wanted = |t: &Test| {
            if self.filters.is_empty() {
                self.suite.has(t)
            } else {
                let systemd = self.suite == Suite::Systemd;
                t.needs_systemd == systemd
                    && self.filters.iter().any(|f| t.name.contains(f.as_str()))
            }
        };
        TESTS
            .iter()
            .flat_map(|group| group.iter())
            .filter(|t| wanted(t))
            .collect()
    }
}

/// Runs the selected tests.
///
/// # Errors
/// The guest cannot be set up, or results cannot be written. Bad verdicts are no error.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let tests = options.selected();
    if tests.is_empty() {
        bail!("no test matches; --list shows the names");
    }
    set_up_guest()?;
    TO_THE_LAST.store(options.long, Relaxed);
    let mut runner = Runner {
        options,
        module: Module::new(options.module.clone()),
        cgroups: Cgroup::top().context("cgroup version 2 is needed at /sys/fs/cgroup")?,
        log: Log::create(&options.results, options.control)?,
        shim: local_copy(&options.shim)?,
        stopped: None,
        seed: options.seed,
    };
    println!(
        "asyncfork-guest: seed {}, {} tests{}",
        options.seed,
        tests.len(),
        runner.mode()
    );

    let ready = runner.prepare_module();
    let baseline = Census::take();
    let (last, tests): (Vec<&Test>, Vec<&Test>) =
        tests.into_iter().partition(|t| t.forbids_modules);
    runner.tests(&tests, &ready)?;
    if ready.is_ok() && !options.control {
        let result = runner
            .module
            .unload()
            .map(|()| "reference count 0".to_string());
        runner
            .log
            .verdict("module_unloads_after_all_tests", &result, options.seed)?;
    }
    runner.tests(&last, &ready)?;
    // systemd and its services come and go: the other suites tell of leaks.
    if ready.is_ok() && options.suite != Suite::Systemd {
        let result = baseline
            .at("baseline")
            .and_then(|b| leak::expect_unchanged(&b));
        runner.log.verdict(
            "kernel_memory_is_back_to_the_baseline",
            &result,
            options.seed,
        )?;
    }
    Ok(runner.log.summary())
}

/// Settings that the tests need, and a tmpfs.
pub fn set_up_guest() -> anyhow::Result<()> {
    // A real-time parent must be able to keep a CPU for as long as its test needs.
    // EBUSY while the processors' deadline servers are on the move.
    let path = "/proc/sys/kernel/sched_rt_runtime_us";
    sys::poll_until(|| match fs::write(path, "-1") {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        result => result.map(Some),
    })?
    .context("cannot switch off real-time throttling: busy")?;
    switch_off_fair_servers()?;
    if sys::cpus() < 2 {
        bail!("the guest needs at least two processors");
    }
    fs::create_dir_all(SCRATCH)?;
    let mounted = fs::read_to_string("/proc/mounts")?
        .lines()
        .any(|l| l.split(' ').nth(1) == Some(SCRATCH));
    if !mounted {
        sys::mount("tmpfs", Path::new(SCRATCH), "tmpfs", "mode=1777")
            .context("cannot mount a tmpfs")?;
    }
    Ok(())
}

/// Since Linux 6.12 each processor has a server that gives ordinary tasks a share beside real-time ones.
fn switch_off_fair_servers() -> anyhow::Result<()> {
    for cpu in 0..sys::cpus() {
        let runtime = format!("/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime");
        if Path::new(&runtime).exists() {
            fs::write(&runtime, "0").with_context(|| format!("cannot write {runtime}"))?;
        }
    }
    Ok(())
}

/// A copy of the library in memory: 9p, which it may come through, pins the memory it reads into (Linux 6.12), and a process
/// that had memory pinned uses stock forks. What does not exist is left to the tests to complain of.
fn local_copy(shim: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = shim.file_name().filter(|_| shim.exists()) else {
        return Ok(shim.to_path_buf());
    };
    let copy = Path::new(SCRATCH).join(name);
    fs::copy(shim, &copy).with_context(|| format!("cannot copy {}", shim.display()))?;
    Ok(copy)
}

struct Runner<'a> {
    options: &'a Options,
    module: Module,
    cgroups: Cgroup,
    log: Log,
    shim: PathBuf,
    /// Why nothing more can be run.
    stopped: Option<String>,
    /// Replays the last attempt.
    seed: u64,
}

impl Runner<'_> {
    fn mode(&self) -> &'static str {
        if self.options.control {
            " (control: stock forks, no module)"
        } else {
            ""
        }
    }

    /// One after another, with a verdict for each.
    fn tests(&mut self, tests: &[&Test], ready: &TestResult) -> anyhow::Result<()> {
        for test in tests {
            let result = match &self.stopped {
                Some(why) => Err(Verdict::Broken(format!("not run: {why}"))),
                None => ready.clone().and_then(|()| self.test_or_again(test)),
            };
            self.log.verdict(test.name, &result, self.seed)?;
        }
        Ok(())
    }

    /// Loads the module, or reloads it to get a fresh state.
    fn prepare_module(&self) -> TestResult {
        if self.options.control {
            return Ok(());
        }
        if self.module.is_loaded() {
            self.module.unload().at("unload an older module")?;
        }
        let place = format!("load {}", self.options.module.display());
        self.module
            .load("")
            .map_err(|e| Verdict::Broken(format!("{place}: {e}; the kernel log says why")))
    }

    /// Default parameters; loads the module if the test before left it unloaded.
    fn reset_module(&self) -> TestResult {
        if self.options.control {
            return Ok(());
        }
        if !self.module.is_loaded() {
            self.prepare_module()?;
        }
        self.module.set("enabled", 1)?;
        self.module.set("park_partial", 0)?;
        self.module.set("policy", "enrolled")?;
        self.module.set("policy_min_rss", 1 << 30)?;
        let device = module::open()?;
        for entry in module::enrolled(&device)? {
            let gone = device.unenroll_id(entry.cgroup_id);
            gone.map_err(module::device_error)?;
        }
        if self.module.injects_faults()? {
            self.module.set("fault_count", 0)?;
            self.module.set("fault_linger_pid", 0)?;
        }
        Ok(())
    }

    /// What a test needs may not come about, such as a child that is not scheduled: then it is tried again. Everything else
    /// stands.
    fn test_or_again(&mut self, test: &Test) -> TestResult<String> {
        until_met(|attempt, why| {
            // Another attempt makes other choices.
            self.seed = self.options.seed.wrapping_add(attempt.into());
            if attempt > 0 {
                if self.stopped.is_some() {
                    return Err(Verdict::Broken(why.into()));
                }
                self.log.again(test.name, attempt + 1, why);
            }
            self.test(test)
        })
    }

    fn test(&mut self, test: &Test) -> TestResult<String> {
        if self.options.control && test.needs_module {
            return Err(Verdict::Skip("needs the module".into()));
        }
        if test.needs_faults && !self.module.injects_faults()? {
            let why = "the module was built without fault injection";
            return Err(Verdict::Skip(why.into()));
        }
        mark_kernel_log(test.name)?;
        hold::spare_kernel_threads()?;
        self.reset_module()?;
        let merged = if self.options.control {
            0
        } else {
            self.module.stats()?.merged
        };
        let cgroup = self.cgroups.child(test.name)?;
        let scratch = Path::new(SCRATCH).join(test.name);
        fs::create_dir_all(&scratch)?;
        let ctx = Ctx {
            name: test.name.into(),
            seed: self.seed,
            control: self.options.control,
            module: self.module.clone(),
            shim: self.shim.clone(),
            scratch,
            cgroup,
        };

        let start = Instant::now();
        let result = work(&ctx, test);
        self.log.seconds = start.elapsed().as_secs_f32();
        self.clean_up(&ctx);
        let quiet = if self.options.control || self.stopped.is_some() {
            Ok(())
        } else {
            self.expect_quiet(test, merged)
        };
        match (result, quiet) {
            (result, Ok(())) => result,
            (Ok(_), Err(v)) => Err(v),
            (Err(first), Err(v)) => Err(Verdict::Failed(format!("{first}; {v}"))),
        }
    }

    /// Kills what the test left behind. What cannot be killed ends the run.
    fn clean_up(&mut self, ctx: &Ctx) {
        let gone = ctx.cgroup.kill().and_then(|()| {
            sys::poll_until(|| {
                reap();
                Ok::<_, std::io::Error>(ctx.cgroup.processes().is_empty().then_some(()))
            })
        });
        if !matches!(gone, Ok(Some(()))) {
            ctx.cgroup.processes().into_iter().for_each(describe);
            self.stopped = Some(format!("processes of {} cannot be killed", ctx.name));
            return;
        }
        // A cgroup goes away a moment after its last process.
        let _ = sys::poll_until(|| Ok::<_, ()>(ctx.cgroup.remove().ok()));
        let _ = fs::remove_dir_all(&ctx.scratch);
    }

    /// No session may survive its processes, and the module must not have found anything wrong.
    fn expect_quiet(&self, test: &Test, merged: u64) -> TestResult {
        if !self.module.is_loaded() {
            return Ok(());
        }
        let over = sys::poll_until(|| -> TestResult<Option<()>> {
            Ok((self.module.stats()?.running == 0).then_some(()))
        })?;
        let stats = self.module.stats()?;
        if over.is_none() {
            return Err(Verdict::Failed(format!(
                "{} sessions still run after the test's processes ended",
                stats.running
            )));
        }
        if stats.switched_off != 0 {
            self.reload_after_switch_off();
            return Err(Verdict::Failed(
                "the module found an inconsistency and switched itself off".into(),
            ));
        }
        // The count starts anew if the test has reloaded the module.
        if stats.merged > merged && !test.may_merge {
            let n = stats.merged - merged;
            return Err(Verdict::Failed(format!(
                "{n} chunks found their slot taken"
            )));
        }
        Ok(())
    }

    fn reload_after_switch_off(&self) {
        let reloaded = self.module.unload().and_then(|()| self.prepare_module());
        if let Err(v) = reloaded {
            println!("cannot reload the module: {v}");
        }
    }
}

/// Calls `attempt`, with its number from 0 on and what the one before has lacked, until its conditions are met. If they never
/// are, nothing is shown: broken.
fn until_met(mut attempt: impl FnMut(u32, &str) -> TestResult<String>) -> TestResult<String> {
    let mut why = String::new();
    for n in 0..ATTEMPTS {
        match attempt(n, &why) {
            Err(Verdict::Unmet(lacking)) => why = lacking,
            result => return result,
        }
    }
    Err(Verdict::Broken(why))
}

/// Whether random calls are to be made to the last of them.
pub fn to_the_last() -> bool {
    TO_THE_LAST.load(Relaxed)
}

/// How long a test may take here.
pub fn watchdog_seconds() -> std::io::Result<i32> {
    let times = |yes, n| if yes { n } else { 1 };
    let checked = asyncfork_host::kernel::on_debug_kernel()?;
    Ok(WATCHDOG_SECONDS * times(checked, CHECKED) * times(to_the_last(), LONG))
}

/// Runs the test in a worker process, with a watchdog.
fn work(ctx: &Ctx, test: &Test) -> TestResult<String> {
    let (read, write) = sys::pipe()?;
    // SAFETY: the runner is single-threaded; the child ends in worker().
    let pid = sys::cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        drop(read);
        worker(ctx, test, write);
    }
    drop(write);

    let seconds = watchdog_seconds()?;
    if !wait_with_watchdog(pid, seconds)? {
        ctx.cgroup.processes().into_iter().for_each(describe);
        ctx.cgroup.kill()?;
        return Err(Verdict::Failed(format!("stuck for {seconds} s")));
    }
    match sys::wait(pid)? {
        Exit::Code(0) => {}
        other => {
            return Err(Verdict::Failed(format!(
                "the test's process ended with {other:?}"
            )))
        }
    }
    parse_result(read)
}

/// Waits for the process to become a zombie; false: it did not.
fn wait_with_watchdog(pid: i32, seconds: i32) -> std::io::Result<bool> {
    // SAFETY: no memory is involved.
    let fd = sys::cvt(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a fresh descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd that lives across the call.
    let n = sys::cvt(unsafe { libc::poll(&mut poll, 1, seconds * 1000) })?;
    Ok(n == 1)
}

/// The worker's single line: verdict and text.
fn parse_result(read: OwnedFd) -> TestResult<String> {
    // SAFETY: the flag changes nothing but this pipe end. Processes left behind may still hold the other one.
    sys::cvt(unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    let mut buf = [0; 8192];
    let n = File::from(read).read(&mut buf).unwrap_or(0);
    let line = String::from_utf8_lossy(&buf[..n]).into_owned();
    let (word, text) = line.trim_end().split_once('\t').unwrap_or(("", ""));
    let text = text.to_string();
    if word == "ok" {
        return Ok(text);
    }
    let none = || Verdict::Failed("the test's process ended without a verdict".into());
    Err(Verdict::parse(word, text).unwrap_or_else(none))
}

fn worker(ctx: &Ctx, test: &Test, write: OwnedFd) -> ! {
    let result = board::guarded(|| {
        set_up_worker(ctx).at("set up the worker")?;
        test.run(ctx)
    });
    let (word, text) = match &result {
        Ok(detail) => ("ok", detail.as_str()),
        Err(v) => (v.word(), v.text()),
    };
    let text: String = text.replace(['\n', '\t'], " ").chars().take(2000).collect();
    let sent = File::from(write).write_all(format!("{word}\t{text}\n").as_bytes());
    sys::exit_now(i32::from(sent.is_err()));
}

fn set_up_worker(ctx: &Ctx) -> std::io::Result<()> {
    let main = ctx.cgroup.child("main")?;
    main.enter()?;
    ctx.cgroup.delegate()?;
    asyncfork_watch::adopt_orphans()?;
    // SAFETY: plain numbers; a session of its own, no core files.
    unsafe {
        libc::setsid();
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: libc::RLIM_INFINITY,
        };
        sys::cvt(libc::setrlimit(libc::RLIMIT_CORE, &none))?;
        // The allocator stays in the brk area: it must not map memory into the holes that tests make.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    hold::run_anywhere()?;
    populate_program()
        .map_err(|e| std::io::Error::new(e.kind(), format!("read in the program: {e}")))?;
    probe::install()
}

/// Reads in all of the program and its libraries: while a child is held back its parent must not wait for a disk.
fn populate_program() -> std::io::Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (Some((start, end)), Some(mode), Some(path)) =
            (procfs::mapping(line), fields.next(), fields.nth(3))
        else {
            continue;
        };
        if !path.starts_with('/') || !mode.starts_with('r') {
            continue;
        }
        // SAFETY: populating for reading changes no contents.
        let ret = unsafe {
            libc::madvise(
                start as *mut libc::c_void,
                end - start,
                libc::MADV_POPULATE_READ,
            )
        };
        match sys::cvt(ret) {
            // Mappings may reach beyond the end of their file.
            Err(e) if e.raw_os_error() != Some(libc::EFAULT) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn reap() {
    while let Ok(Some(_)) = sys::wait_any() {}
}

/// Verdicts on standard output and in results.txt.
struct Log {
    file: File,
    /// Prefix of names in results.txt, so that a control run is never taken for a test run.
    prefix: &'static str,
    /// How long the last test took; for the reader, no verdict depends on it.
    seconds: f32,
    ok: usize,
    skipped: usize,
    again: usize,
    bad: Vec<String>,
}

impl Log {
    fn create(dir: &Path, control: bool) -> anyhow::Result<Self> {
        let path = dir.join("results.txt");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            prefix: if control { "control:" } else { "" },
            seconds: 0.0,
            ok: 0,
            skipped: 0,
            again: 0,
            bad: vec![],
        })
    }

    /// Notes that a test is tried once more.
    fn again(&mut self, name: &str, attempt: u32, why: &str) {
        self.again += 1;
        println!("again {name}, attempt {attempt}: {why}");
    }

    /// Notes a verdict that `seed` replays; the time of the last test belongs to it.
    fn verdict(
        &mut self,
        name: &str,
        result: &TestResult<String>,
        seed: u64,
    ) -> anyhow::Result<()> {
        let (word, text) = match result {
            Ok(detail) => ("ok", detail.as_str()),
            Err(v) => (v.word(), v.text()),
        };
        let seconds = std::mem::take(&mut self.seconds);
        match result {
            Ok(_) => println!("ok {name} ({text}; {seconds:.1} s)"),
            Err(Verdict::Failed(_)) => println!("FAILED {name}: {text}"),
            Err(_) => println!("{word} {name}: {text}"),
        }
        match result {
            Ok(_) => self.ok += 1,
            Err(Verdict::Skip(_)) => self.skipped += 1,
            Err(_) => {
                println!("  rerun: asyncfork-guest test --seed {seed} ... {name}");
                self.bad.push(format!("{word} {name}"));
            }
        }
        std::io::stdout().flush()?;
        writeln!(self.file, "{word}\t{}{name}\t{text}", self.prefix)?;
        Ok(())
    }

    /// Prints the totals; true if all is well. A run without one "ok" has shown nothing.
    fn summary(&self) -> bool {
        println!(
            "{} ok, {} failed or broken, {} skipped, {} tried again",
            self.ok,
            self.bad.len(),
            self.skipped,
            self.again
        );
        for line in &self.bad {
            println!("  {line}");
        }
        self.bad.is_empty() && self.ok > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict::{Broken, Failed, Skip, Unmet};

    fn lacking(what: u32) -> TestResult<String> {
        Err(Unmet(format!("lacks {what}")))
    }

    #[test]
    fn what_is_never_met_is_tried_three_times_and_is_broken() {
        let mut lacked = Vec::new();
        let result = until_met(|n, why| {
            lacked.push(why.to_string());
            lacking(n)
        });
        assert_eq!(result, Err(Broken("lacks 2".into())));
        assert_eq!(lacked, ["", "lacks 0", "lacks 1"]);
    }

    #[test]
    fn what_is_met_at_last_is_what_counts() {
        for end in [
            Ok("met".into()),
            Err(Failed("wrong".into())),
            Err(Broken("no disk".into())),
            Err(Skip("no swap".into())),
        ] {
            let result = until_met(|n, _| if n < 2 { lacking(n) } else { end.clone() });
            assert_eq!(result, end);
        }
    }

    #[test]
    fn only_what_is_not_met_is_tried_again() {
        for end in [
            Ok("met".into()),
            Err(Failed("wrong".into())),
            Err(Broken("no disk".into())),
            Err(Skip("no swap".into())),
        ] {
            let mut attempts = 0;
            let result = until_met(|_, _| {
                attempts += 1;
                end.clone()
            });
            assert_eq!((result, attempts), (end, 1));
        }
    }

    /// What the runner makes of a worker that says this.
    fn said(text: &str) -> TestResult<String> {
        let (read, write) = sys::pipe().unwrap();
        File::from(write).write_all(text.as_bytes()).unwrap();
        parse_result(read)
    }

    #[test]
    fn a_worker_that_says_nothing_has_failed() {
        assert_eq!(said("ok\t8 chunks\n"), Ok("8 chunks".into()));
        assert_eq!(said("unmet\tno child\n"), Err(Unmet("no child".into())));
        for silence in ["", "\n", "ok", "fine\tall is well\n"] {
            assert!(matches!(said(silence), Err(Failed(_))), "{silence:?}");
        }
    }

    #[test]
    fn a_run_in_which_nothing_was_shown_is_no_success() {
        let all_well = |results: &[TestResult<String>]| {
            let mut log = Log {
                file: OpenOptions::new().write(true).open("/dev/null").unwrap(),
                prefix: "",
                seconds: 0.0,
                ok: 0,
                skipped: 0,
                again: 0,
                bad: vec![],
            };
            for result in results {
                log.verdict("claim", result, 0).unwrap();
            }
            log.summary()
        };
        let (ok, skip) = (Ok(String::new()), Err(Skip(String::new())));
        assert!(!all_well(&[]));
        assert!(!all_well(std::slice::from_ref(&skip)));
        assert!(all_well(&[ok.clone(), skip]));
        for bad in [Failed, Broken, Unmet] {
            assert!(!all_well(&[ok.clone(), Err(bad(String::new()))]));
        }
    }
}
