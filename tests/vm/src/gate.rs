// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole gate: what must hold before a change goes in.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use asyncfork_host::size::parse_size;

use crate::accel::{self, Accel, AccelChoice};
use crate::bench::{make_debian11, Bench, Series};
use crate::cargo_test;
use crate::dmesg;
use crate::interrupt;
use crate::verdict::{parse_results, Summary, TestResult, Verdict};
use crate::vm::{host_has_la57, last_lines, End, La57, Outcome, Streams, VmOptions};

/// Run all checks and tests: on the host, then in VMs
#[derive(Debug, Clone, clap::Args)]
#[command(override_usage = "scripts/test [OPTIONS] [FILTER]...")]
#[command(after_help = "\
Without FILTER: format, clippy, unit and host tests, then for each kernel the
module's build, sparse, checkpatch and a scan for indirect calls, and three VM
suites: \"full\" is all tests, once with 4-level page tables, memory poisoning and
two memory nodes, once with 5-level page tables and memory that can be taken
offline; \"faults\" is those that need a module built with fault injection, with
that module and call depth tracking; \"full\" skips them.
With FILTER: builds, and the named VM tests alone, with 4-level page tables; with
the module for \"faults\" if all of them need it.

Exit status: 0 if nothing failed, 1 if something did, 125 if the gate could not
run, 130 if interrupted. The last line is \"N passed, N failed, N skipped\".")]
pub struct GateOptions {
    /// VM tests to run: parts of their names
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Kernel to test (may be repeated) [default: all]
    #[arg(long = "kernel", value_enum, value_name = "SERIES")]
    pub kernels: Vec<Series>,
    /// Only the quick VM tests, only with one kind of page tables
    #[arg(long, conflicts_with = "filters")]
    pub quick: bool,
    /// Seed of the random tests [default: a new one, printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// One suite, with 5-level page tables on or off [default: "full" with both, and "faults"]
    #[arg(long)]
    pub la57: Option<La57>,
    /// What the VMs run on
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub accel: AccelChoice,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "8G")]
    pub memory: String,
    /// VMs side by side [default: 2 if memory and CPUs suffice, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub jobs: Option<u8>,
}

/// Extra words for the kernel with 4-level page tables, the usual kind: freed
/// pages and objects are poisoned, so that a stray write to a page table given
/// back too early is noticed; two memory nodes let pages migrate.
const WORDS_4: &str = "page_poison=1 slub_debug=FZP numa=fake=2";
/// And with 5-level ones: memory that can be taken offline.
const WORDS_5: &str = "movablecore=1G";
/// And for the suite with fault injection, which is short: call depth tracking
/// (6.12 and later on Intel), which redirects the kernel's calls and slows it down.
/// One node: on Intel, 7.2 warns of a cache that two share.
const WORDS_FAULTS: &str = "page_poison=1 slub_debug=FZP retbleed=stuff,force spectre_v2=retpoline";
const CPU_FAULTS: &str = "vendor=GenuineIntel";
/// Memory that the host itself needs beside the guests'.
const HOST_MEMORY: u64 = 2 << 30;
/// Instead of those, for the kernels of scripts/debug-kernel: KASAN sees more than
/// poison does, and with poison, too, nothing would ever end.
const WORDS_DEBUG: &str = "numa=fake=2 kmemleak=on";
/// No VM suite takes longer than this on a stock kernel.
const SUITE_SECONDS: u64 = 1500;
/// A stage that runs longer says so this often.
const TICK: Duration = Duration::from_secs(30);
/// Lines of a failed stage's log that are shown at once, and in the summary.
const SHOWN_LINES: usize = 60;
const SUMMARY_LINES: usize = 3;

/// Runs the gate in the current directory, the repository root, and sums it up.
/// Errors: it could not run, or Ctrl-C; what a stage or a test has to say is in
/// the summary.
pub fn run(options: &GateOptions) -> Result<Summary> {
    let begin = Instant::now();
    let seed = options.seed.unwrap_or_else(new_seed);
    let benches = open_benches(&options.kernels)?;
    let [Bench { root, .. }, ..] = benches.as_slice() else {
        bail!("no kernel to test");
    };
    let releases: Vec<&str> = benches.iter().map(|b| b.release.as_str()).collect();
    println!("test: kernels {}, seed {seed}", releases.join(", "));
    let mut gate = Gate {
        root,
        logs: benches[0].state_dir().join("logs"),
        summary: Summary::default(),
    };
    fs::create_dir_all(&gate.logs)?;

    if options.filters.is_empty() {
        gate.host_checks()?;
    }
    let built = gate.stage(
        "build",
        "cargo build --release --workspace --exclude asyncfork-vm --exclude asyncfork-so",
    )? & gate.stage("library", "scripts/library")?
        & gate.stage("libcs", "scripts/libcs")?;
    let mut suites = Vec::new();
    for bench in &benches {
        let series = bench.series;
        let kmod = |options| format!("scripts/kmod --kernel {series}{options}");
        let both = gate.stage(&format!("{series} kmod"), &kmod(""))?
            & gate.stage(&format!("{series} kmod-faults"), &kmod(" --faults"))?;
        if options.filters.is_empty() {
            gate.stage(&format!("{series} kmod-check"), &kmod(" --check"))?;
        }
        if built && both {
            suites.extend(gate.suites(bench, options, seed)?);
        } else {
            gate.summary.fail(
                format!("{series} VM suites"),
                "not run: the build failed",
                format!("scripts/test --kernel {series}"),
            );
        }
    }
    let rows = gate.vm_suites(&suites, options, seed)?;
    println!("\ntest: took {}", minutes(begin.elapsed()));
    for row in rows {
        println!("{row}");
    }
    Ok(gate.summary)
}

/// The kernels asked for, or all that users have. Their guest roots, and that of the
/// older C libraries, are made side by side where they are missing.
fn open_benches(kernels: &[Series]) -> Result<Vec<Bench>> {
    let mut wanted = match kernels {
        [] => Series::ALL.to_vec(),
        _ => kernels.to_vec(),
    };
    wanted.sort();
    wanted.dedup();
    thread::scope(|scope| {
        let debian11 = scope.spawn(make_debian11);
        let threads: Vec<_> = wanted
            .into_iter()
            .map(|series| scope.spawn(move || Bench::open(series)))
            .collect();
        debian11.join().expect("making a root does not panic")?;
        threads
            .into_iter()
            .map(|t| t.join().expect("opening a bench does not panic"))
            .collect()
    })
}

struct Gate<'a> {
    root: &'a Path,
    logs: PathBuf,
    summary: Summary,
}

impl Gate<'_> {
    fn host_checks(&mut self) -> Result<()> {
        self.stage("fmt", "cargo fmt --all --check")?;
        self.stage(
            "clippy",
            "cargo clippy --workspace --all-targets -- -D warnings",
        )?;
        self.cargo_test()
    }

    /// Runs a stage that counts as one test. Whether it passed.
    fn stage(&mut self, name: &str, command: &str) -> Result<bool> {
        let (status, log) = self.execute(name, command)?;
        if status.success() {
            self.summary.passed += 1;
        } else {
            self.stage_failed(name, command, status, &log);
        }
        Ok(status.success())
    }

    /// Runs the workspace's tests; each of them counts.
    fn cargo_test(&mut self) -> Result<()> {
        let command = "cargo test --workspace --no-fail-fast";
        let (status, log) = self.execute("cargo-test", command)?;
        let totals = cargo_test::totals(&log);
        println!(
            "    {} passed, {} failed, {} ignored",
            totals.passed,
            totals.failed.len(),
            totals.ignored
        );
        self.summary.passed += totals.passed;
        self.summary.skipped += totals.ignored;
        for name in &totals.failed {
            self.summary.fail(
                format!("cargo-test/{name}"),
                self.log_hint("cargo-test"),
                format!("cargo test --workspace {name}"),
            );
        }
        if !status.success() && totals.failed.is_empty() {
            // It did not even compile, or a test binary crashed.
            self.stage_failed("cargo-test", command, status, &log);
        } else if !status.success() {
            show_end(&log, SHOWN_LINES);
        }
        Ok(())
    }

    fn stage_failed(&mut self, name: &str, command: &str, status: ExitStatus, log: &str) {
        show_end(log, SHOWN_LINES);
        let end = last_lines(log, SUMMARY_LINES).join("\n");
        self.summary.fail(
            name,
            format!("{status}; {}\n{end}", self.log_hint(name)),
            command,
        );
    }

    fn log_hint(&self, name: &str) -> String {
        format!("log: {}", self.log_path(name).display())
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.log", name.replace(' ', "-")))
    }

    /// Runs a command with its output in a log file, showing the time it
    /// takes. Its status and output.
    fn execute(&self, name: &str, command: &str) -> Result<(ExitStatus, String)> {
        println!("==> {name}: {command}");
        let path = self.log_path(name);
        let log =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut words = command.split(' ');
        let program = words.next().context("a stage has no command")?;
        let mut child = Command::new(program)
            .args(words)
            .current_dir(self.root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let begin = Instant::now();
        let mut tick = TICK;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if interrupt::requested() {
                // Not reaped, so the group's number is still the child's.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
                child.wait()?;
                return Err(interrupt::error());
            }
            if begin.elapsed() > tick {
                println!("    ... {} s", tick.as_secs());
                tick += TICK;
            }
            thread::sleep(Duration::from_millis(50));
        };
        println!(
            "    {} ({} s)",
            if status.success() { "ok" } else { "FAILED" },
            begin.elapsed().as_secs()
        );
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        Ok((status, text))
    }

    /// The VM suites of a kernel.
    fn suites<'b>(
        &mut self,
        bench: &'b Bench,
        options: &GateOptions,
        seed: u64,
    ) -> Result<Vec<Suite<'b>>> {
        let how = accel::choose(bench, options.accel)?;
        let faults = plan(self.root, &Kind::Faults.selection(&[]))?;
        let mut suites = Vec::new();
        for (kind, la57) in kinds(options) {
            let name = format!("{} {} {}-level", bench.series, kind.name(), levels(la57));
            if la57 == La57::On && how.accel == Accel::Kvm && !host_has_la57()? {
                println!("skip {name}: KVM on a CPU without la57; --accel tcg has it");
                self.summary.skipped += 1;
                continue;
            }
            let selection = kind.selection(&options.filters);
            let plan = plan(self.root, &selection)?;
            ensure!(
                !plan.is_empty(),
                "no VM test's name contains {}; {GUEST} test --list prints the names",
                options.filters.join(" or ")
            );
            suites.push(Suite {
                name,
                bench,
                kind,
                la57,
                rerun: format!(
                    "scripts/test --kernel {} --la57 {la57} --seed {seed}",
                    bench.series
                ),
                module: module_for(bench, &plan, &faults),
                selection,
                plan,
            });
        }
        Ok(suites)
    }

    /// Runs the suites, the long ones first, and adds them to the summary. A row
    /// for each, in their own order.
    fn vm_suites(
        &mut self,
        suites: &[Suite],
        options: &GateOptions,
        seed: u64,
    ) -> Result<Vec<Row>> {
        let jobs = match options.jobs {
            Some(jobs) => usize::from(jobs),
            None => usual_jobs(&options.memory)?,
        };
        let mut order: Vec<&Suite> = suites.iter().collect();
        order.sort_by_key(|suite| suite.kind);
        let width = suites.iter().map(|s| s.name.len()).max().unwrap_or(0);
        let done = side_by_side(jobs, order, |suite| {
            let prefix = format!("{:width$} | ", suite.name);
            suite.run(options, seed, &prefix)
        })?;
        let mut rows = Vec::new();
        for suite in suites {
            let (row, summary) = done
                .iter()
                .find(|(row, _)| row.name == suite.name)
                .context("a suite was left out")?;
            rows.push(row.clone());
            self.summary.passed += summary.passed;
            self.summary.skipped += summary.skipped;
            self.summary.failures.extend(summary.failures.clone());
        }
        Ok(rows)
    }
}

/// Two VMs if the host has memory for them and a CPU for each; a guest whose
/// memory is poisoned uses all of it.
fn usual_jobs(memory: &str) -> Result<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let available = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix(" kB")
        })
        .and_then(|kib| kib.parse::<u64>().ok())
        .context("/proc/meminfo has no MemAvailable")?
        << 10;
    let cpus = thread::available_parallelism()?.get();
    let wanted = 2 * parse_size(memory)? + HOST_MEMORY;
    Ok(if available >= wanted && cpus >= 2 {
        2
    } else {
        1
    })
}

/// Calls `work` for every item, at most `jobs` at a time. The results come in
/// any order. After an error no further item is begun, and it is returned.
fn side_by_side<T: Send, R: Send>(
    jobs: usize,
    items: Vec<T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let queue = Mutex::new(VecDeque::from(items));
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let Some(item) = lock().pop_front() else {
                return Ok(done);
            };
            match work(item) {
                Ok(result) => done.push(result),
                Err(error) => {
                    lock().clear();
                    return Err(error);
                }
            }
        }
    };
    let results: Result<Vec<Vec<R>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("a worker does not panic"))
            .collect()
    });
    Ok(results?.into_iter().flatten().collect())
}

/// The names of the VM tests that are to give a verdict.
fn plan(root: &Path, selection: &[String]) -> Result<Vec<String>> {
    let out = Command::new(root.join(GUEST))
        .args(["test", "--list"])
        .args(selection)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {GUEST}"))?;
    ensure!(out.status.success(), "{GUEST} test --list: {}", out.status);
    let names = String::from_utf8(out.stdout)?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// The module that the tests of a plan get. With the one for fault injection, tests
/// that do not need it would not test what users have.
fn module_for(bench: &Bench, plan: &[String], faults: &[String]) -> String {
    match plan.iter().all(|name| faults.contains(name)) {
        true => bench.faults_module(),
        false => bench.module(),
    }
}

/// What a suite consists of; the longest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Full,
    Quick,
    /// Those that need the module with fault injection; with the shipped one they
    /// are skipped.
    Faults,
    /// The tests that FILTER names.
    Named,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Full => "full",
            Kind::Quick => "quick",
            Kind::Faults => "faults",
            Kind::Named => "named",
        }
    }

    /// The test program's arguments that choose the tests.
    fn selection(self, filters: &[String]) -> Vec<String> {
        let suite = match self {
            Kind::Quick => "quick",
            Kind::Faults => "faults",
            Kind::Full | Kind::Named => "full",
        };
        let mut words = vec!["--suite".to_owned(), suite.to_owned()];
        words.extend(filters.iter().cloned());
        words
    }
}

/// The suites that each kernel goes through.
fn kinds(options: &GateOptions) -> Vec<(Kind, La57)> {
    let one = match (options.filters.is_empty(), options.quick) {
        (true, false) => Kind::Full,
        (true, true) => Kind::Quick,
        (false, _) => Kind::Named,
    };
    match options.la57 {
        Some(la57) => vec![(one, la57)],
        None if one == Kind::Full => vec![
            (Kind::Full, La57::Off),
            (Kind::Full, La57::On),
            (Kind::Faults, La57::Off),
        ],
        None => vec![(one, La57::Off)],
    }
}

/// A boot of one kernel for some tests.
struct Suite<'a> {
    /// Kernel and kind.
    name: String,
    bench: &'a Bench,
    kind: Kind,
    la57: La57,
    /// The command that repeats it; a test's name can follow.
    rerun: String,
    /// The module, relative to the repository root.
    module: String,
    selection: Vec<String>,
    /// The tests that are to give a verdict.
    plan: Vec<String>,
}

impl Suite<'_> {
    /// Runs it; its lines begin with `prefix`.
    fn run(&self, options: &GateOptions, seed: u64, prefix: &str) -> Result<(Row, Summary)> {
        let state = self.bench.state_dir();
        let results = tempdir(&state.join(self.name.replace(' ', "-")))?;
        let command = self.command(seed, &results);
        println!("{prefix}==> {}", command.join(" "));
        let vm = VmOptions {
            memory: options.memory.clone(),
            la57: Some(self.la57),
            append: match (self.kind, self.la57) {
                (_, La57::Off) if self.bench.series.slowness() > 1 => vec![WORDS_DEBUG.to_owned()],
                (Kind::Faults, _) => vec![WORDS_FAULTS.to_owned()],
                (_, La57::Off) => vec![WORDS_4.to_owned()],
                (_, La57::On) => vec![WORDS_5.to_owned()],
            },
            cpu: (self.kind == Kind::Faults).then(|| CPU_FAULTS.to_owned()),
            accel: options.accel,
            timeout: SUITE_SECONDS * u64::from(self.bench.series.slowness()),
            share: vec![results.clone()],
            ..VmOptions::default()
        };
        let begin = Instant::now();
        let outcome = vm.run(self.bench, &command, Streams::prefixed(prefix))?;
        outcome.explain(prefix);
        let took = begin.elapsed();
        println!("{prefix}{} ({})", outcome.end, minutes(took));

        let text = fs::read_to_string(results.join("results.txt")).unwrap_or_default();
        let log = fs::read_to_string(outcome.kernel_log())?;
        let mut summary = Summary::default();
        judge(
            &mut summary,
            &self.name,
            &self.rerun,
            &outcome,
            &self.plan,
            &parse_results(&text),
            dmesg::last_test(&log),
        );
        let row = Row {
            name: self.name.clone(),
            release: self.bench.release.clone(),
            kind: self.kind,
            la57: self.la57,
            passed: summary.passed,
            failed: summary.failures.len(),
            skipped: summary.skipped,
            boots: outcome.boots,
            took,
        };
        Ok((row, summary))
    }

    /// The guest's command line.
    fn command(&self, seed: u64, results: &Path) -> Vec<String> {
        let mut command: Vec<String> = [
            GUEST,
            "test",
            "--module",
            &self.module,
            "--shim",
            "target/release/libasyncfork.so",
            "--results",
            &results.display().to_string(),
            "--seed",
            &seed.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        command.extend(self.selection.iter().cloned());
        command
    }
}

/// Levels of the page tables.
fn levels(la57: La57) -> u8 {
    match la57 {
        La57::On => 5,
        La57::Off => 4,
    }
}

/// A kernel's suite in the table at the end.
#[derive(Debug, Clone)]
struct Row {
    name: String,
    release: String,
    kind: Kind,
    la57: La57,
    passed: usize,
    failed: usize,
    skipped: usize,
    boots: u32,
    took: Duration,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {:<6} {}-level page tables  {:>3} passed, {:>2} failed, {:>2} skipped  {}",
            self.release,
            self.kind.name(),
            levels(self.la57),
            self.passed,
            self.failed,
            self.skipped,
            minutes(self.took)
        )?;
        match self.boots {
            1 => Ok(()),
            boots => write!(f, ", {boots} boots"),
        }
    }
}

/// The test program, which runs in the guest.
const GUEST: &str = "target/release/asyncfork-guest";

/// Adds up what the tests, the guest and its kernel say. `plan` is the tests
/// that were to run, `under_way` the one whose marker came last.
fn judge(
    summary: &mut Summary,
    name: &str,
    rerun: &str,
    outcome: &Outcome,
    plan: &[String],
    results: &[TestResult],
    under_way: Option<&str>,
) {
    let mut bad = 0;
    for result in results {
        match result.verdict {
            Verdict::Ok => summary.passed += 1,
            Verdict::Skip => summary.skipped += 1,
            Verdict::Failed | Verdict::Broken => {
                bad += 1;
                let kind = if result.verdict == Verdict::Broken {
                    "broken: "
                } else {
                    ""
                };
                summary.fail(
                    format!("{name}/{}", result.name),
                    format!("{kind}{}", result.detail),
                    format!("{rerun} {}", result.name),
                );
            }
        }
    }

    let again = |test: Option<&str>| match test {
        Some(test) => format!("{rerun} {test}"),
        None => rerun.to_owned(),
    };
    let logs = format!("logs: {}", outcome.dir.display());
    let silent: Vec<&str> = plan
        .iter()
        .map(String::as_str)
        .filter(|name| !results.iter().any(|r| r.name == *name))
        .collect();
    let without_verdict = format!(
        "{} of {} tests gave no verdict: {}",
        silent.len(),
        plan.len(),
        silent.join(" ")
    );
    match &outcome.end {
        // Status 1 is how the test program says that a test failed.
        End::Exited(0) | End::Exited(1) if !silent.is_empty() => {
            summary.fail(name, format!("{without_verdict}\n{logs}"), rerun);
        }
        End::Exited(0) => {}
        End::Exited(1) if bad > 0 => {}
        end => {
            let at = under_way.map_or(String::new(), |test| format!(" during {test}"));
            summary.fail(
                name,
                format!("{end}{at}\n{without_verdict}\n{logs}"),
                again(under_way),
            );
        }
    }

    // One entry per test that the kernel complained about.
    let mut tests: Vec<Option<&str>> = Vec::new();
    for finding in &outcome.findings {
        if !tests.contains(&finding.test.as_deref()) {
            tests.push(finding.test.as_deref());
        }
    }
    for test in tests {
        let lines: Vec<String> = outcome
            .findings
            .iter()
            .filter(|f| f.test.as_deref() == test)
            .map(|f| match f.times {
                1 => f.line.clone(),
                n => format!("{} ({n} times)", f.line),
            })
            .collect();
        summary.fail(
            format!(
                "{name}/{}: kernel complaint",
                test.unwrap_or("outside any test")
            ),
            format!("{}\n{logs}", lines.join("\n")),
            again(test),
        );
    }
}

/// An empty directory.
fn tempdir(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    ensure!(path.is_absolute(), "{} is relative", path.display());
    Ok(path.to_path_buf())
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Short enough to retype.
    now.map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007)
}

fn minutes(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

fn show_end(log: &str, count: usize) {
    for line in last_lines(log, count) {
        println!("    | {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(end: End, results: &str, kernel: &str) -> Summary {
        let outcome = Outcome {
            end,
            findings: dmesg::scan(kernel),
            boots: 1,
            dir: PathBuf::from("run-1"),
        };
        let mut summary = Summary::default();
        judge(
            &mut summary,
            "6.1 quick",
            "scripts/test --la57 on --seed 7",
            &outcome,
            &["a".to_owned(), "b".to_owned()],
            &parse_results(results),
            dmesg::last_test(kernel),
        );
        summary
    }

    const CLEAN: &str = "[ 1.0] asyncfork-test: a\n[ 2.0] asyncfork-test: b\n";

    #[test]
    fn good_verdicts_and_a_clean_log_pass() {
        let summary = judged(End::Exited(0), "ok\ta\t\nskip\tb\tno swap\n", CLEAN);
        assert!(summary.is_success());
        assert_eq!((summary.passed, summary.skipped), (1, 1));
    }

    #[test]
    fn a_failed_test_is_one_failure_with_its_rerun_line() {
        let summary = judged(End::Exited(1), "ok\ta\t\nFAILED\tb\tpage 3\n", CLEAN);
        assert_eq!(summary.failures.len(), 1);
        assert_eq!(summary.failures[0].name, "6.1 quick/b");
        assert_eq!(
            summary.failures[0].rerun,
            "scripts/test --la57 on --seed 7 b"
        );
    }

    #[test]
    fn a_guest_that_dies_fails_the_test_under_way() {
        let summary = judged(End::Broken("the guest died".into()), "ok\ta\t\n", CLEAN);
        assert_eq!(summary.passed, 1);
        assert_eq!(summary.failures.len(), 1);
        let why = &summary.failures[0].why;
        assert!(why.contains("during b"), "{why}");
        assert!(why.contains("1 of 2 tests gave no verdict: b"), "{why}");
        assert!(summary.failures[0].rerun.ends_with(" b"));
    }

    #[test]
    fn a_test_program_that_fails_without_a_verdict_is_a_failure() {
        let all = "ok\ta\t\nok\tb\t\n";
        assert!(judged(End::Exited(0), all, CLEAN).is_success());
        for end in [End::Exited(1), End::Exited(101), End::TimedOut] {
            assert!(!judged(end, all, CLEAN).is_success());
        }
    }

    #[test]
    fn a_test_without_a_verdict_is_a_failure() {
        let summary = judged(End::Exited(0), "ok\ta\t\n", CLEAN);
        assert_eq!(summary.failures.len(), 1);
        assert!(summary.failures[0].why.contains("no verdict: b"));
        assert_eq!(judged(End::Exited(0), "", CLEAN).failures.len(), 1);
    }

    #[test]
    fn a_kernel_complaint_fails_the_test_it_came_with() {
        let kernel = "\
[ 1.0] asyncfork-test: a
[ 1.1] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2
[ 1.2] BUG: Bad page state in process b  pfn:1
[ 1.3] BUG: Bad page state in process b  pfn:2
[ 2.0] asyncfork-test: b
";
        let summary = judged(End::Exited(0), "ok\ta\t\nok\tb\t\n", kernel);
        assert_eq!(summary.failures.len(), 1);
        let failure = &summary.failures[0];
        assert_eq!(failure.name, "6.1 quick/a: kernel complaint");
        assert!(failure.why.contains("WARNING: CPU: 0"), "{}", failure.why);
        assert!(failure.why.contains("pfn:1 (2 times)"), "{}", failure.why);
        assert!(failure.rerun.ends_with(" a"));
    }

    fn options(words: &[&str]) -> GateOptions {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: GateOptions,
        }
        let words = ["test"].iter().chain(words);
        <Cli as clap::Parser>::parse_from(words).options
    }

    #[test]
    fn a_kernel_goes_through_the_suites_that_the_options_say() {
        use {Kind::*, La57::*};
        for (words, want) in [
            (vec![], vec![(Full, Off), (Full, On), (Faults, Off)]),
            (vec!["--quick"], vec![(Quick, Off)]),
            (vec!["--la57", "on"], vec![(Full, On)]),
            (vec!["munmap"], vec![(Named, Off)]),
            (vec!["--la57", "on", "munmap"], vec![(Named, On)]),
        ] {
            assert_eq!(kinds(&options(&words)), want, "{words:?}");
        }
    }

    #[test]
    fn kernels_are_named_one_by_one() {
        let kernels = options(&["--kernel", "7.2", "--kernel=6.12"]).kernels;
        assert_eq!(kernels, [Series::V7_2, Series::V6_12]);
    }

    fn bench() -> Bench {
        Bench {
            root: "/repo".into(),
            series: Series::V6_12,
            release: "6.12.1-amd64".into(),
            guest_root: "/repo/target/roots/debian13".into(),
            qemu_root: "/repo/target/roots/debian13".into(),
        }
    }

    #[test]
    fn a_suite_is_chosen_by_name_and_filters_by_parts_of_tests() {
        for (kind, filters, want) in [
            (Kind::Full, &[][..], "--suite full"),
            (Kind::Quick, &[], "--suite quick"),
            (Kind::Faults, &[], "--suite faults"),
            (Kind::Named, &["a", "b"], "--suite full a b"),
        ] {
            let filters: Vec<String> = filters.iter().map(|&f| f.to_owned()).collect();
            assert_eq!(kind.selection(&filters).join(" "), want);
        }
    }

    #[test]
    fn only_tests_that_all_need_faults_get_the_module_for_them() {
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let faults = names(&["b_fails", "c_fails"]);
        let bench = bench();
        for (plan, injects) in [
            (names(&["b_fails"]), true),
            (names(&["c_fails", "b_fails"]), true),
            (names(&["a", "b_fails"]), false),
            (names(&["b"]), false),
        ] {
            let module = module_for(&bench, &plan, &faults);
            assert_eq!(module == bench.faults_module(), injects, "{plan:?}");
        }
    }

    #[test]
    fn the_guest_gets_what_it_needs() {
        let bench = bench();
        let suite = Suite {
            name: "6.12 named".into(),
            bench: &bench,
            kind: Kind::Named,
            la57: La57::Off,
            rerun: "scripts/test --seed 7".into(),
            module: bench.module(),
            selection: Kind::Named.selection(&["munmap".into()]),
            plan: vec!["munmap".into()],
        };
        assert_eq!(
            suite.command(7, Path::new("/repo/target/vm/r")).join(" "),
            "target/release/asyncfork-guest test \
             --module target/kmod/6.12.1-amd64/asyncfork.ko \
             --shim target/release/libasyncfork.so \
             --results /repo/target/vm/r --seed 7 --suite full munmap"
        );
    }

    #[test]
    fn work_side_by_side_leaves_nothing_out_and_stops_at_an_error() {
        let mut done = side_by_side(2, (0..20).collect(), |n| Ok(n * n)).unwrap();
        done.sort();
        assert_eq!(done, (0..20).map(|n| n * n).collect::<Vec<i32>>());

        let begun = Mutex::new(0);
        let error = side_by_side(1, (0..20).collect(), |n| {
            *begun.lock().unwrap() += 1;
            ensure!(n < 3, "{n} is too much");
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "3 is too much");
        assert_eq!(*begun.lock().unwrap(), 4);
    }

    #[test]
    fn a_row_names_kernel_suite_and_counts() {
        let row = Row {
            name: "7.2 quick".into(),
            release: "7.2.12+deb13-amd64".into(),
            kind: Kind::Quick,
            la57: La57::On,
            passed: 60,
            failed: 0,
            skipped: 1,
            boots: 1,
            took: Duration::from_secs(125),
        };
        let text = "7.2.12+deb13-amd64     quick  5-level page tables   60 passed,  0 failed,  1 skipped  2 min 05 s";
        assert_eq!(row.to_string(), text);
        let again = Row { boots: 2, ..row };
        assert_eq!(again.to_string(), format!("{text}, 2 boots"));
    }
}
