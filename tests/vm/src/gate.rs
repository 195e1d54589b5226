// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole gate: what must hold before a change goes in.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use crate::accel::{self, Accel, AccelChoice};
use crate::bench::Bench;
use crate::cargo_test;
use crate::dmesg;
use crate::interrupt;
use crate::verdict::{parse_results, Summary, TestResult, Verdict};
use crate::vm::{host_has_la57, last_lines, End, La57, Outcome, Streams, VmOptions};

/// Run all checks and tests: on the host, then in VMs
#[derive(Debug, Clone, clap::Args)]
#[command(override_usage = "scripts/test [OPTIONS] [FILTER]...")]
#[command(after_help = "\
Without FILTER: format, clippy, unit and host tests, module build, sparse and
checkpatch, then the VM suite: all of it with 4-level page tables, memory
poisoning and two memory nodes, its quick part with 5-level ones, and the tests
of failing allocations with a module built for that. With FILTER: builds, and
the named VM tests alone.

Exit status: 0 if nothing failed, 1 if something did, 125 if the gate could not
run, 130 if interrupted. The last line is \"N passed, N failed, N skipped\".")]
pub struct GateOptions {
    /// VM tests to run: parts of their names
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Only the quick VM tests, only with one kind of page tables
    #[arg(long)]
    pub quick: bool,
    /// Seed of the random tests [default: a new one, printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// VM suite with 5-level page tables on or off only [default: both]
    #[arg(long)]
    pub la57: Option<La57>,
    /// What the VMs run on
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub accel: AccelChoice,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "8G")]
    pub memory: String,
}

/// Extra words for the kernel with 4-level page tables, the usual kind: freed
/// pages and objects are poisoned, so that a stray write to a page table given
/// back too early is noticed; two memory nodes let pages migrate.
const DEBUG_WORDS: &str = "page_poison=1 slub_debug=FZP numa=fake=2";
/// No VM suite takes longer than this.
const SUITE_SECONDS: u64 = 1500;
/// A stage that runs longer says so this often.
const TICK: Duration = Duration::from_secs(30);
/// Lines of a failed stage's log that are shown at once, and in the summary.
const SHOWN_LINES: usize = 60;
const SUMMARY_LINES: usize = 3;

/// Runs the gate and sums it up. Errors: it could not run, or Ctrl-C; what a
/// stage or a test has to say is in the summary.
pub fn run(bench: &Bench, options: &GateOptions) -> Result<Summary> {
    let begin = Instant::now();
    let seed = options.seed.unwrap_or_else(new_seed);
    println!("test: kernel {}, seed {seed}", bench.release);
    let mut gate = Gate {
        bench,
        logs: bench.state_dir().join("logs"),
        summary: Summary::default(),
    };
    fs::create_dir_all(&gate.logs)?;

    if options.filters.is_empty() {
        gate.host_checks()?;
    }
    let built = gate.stage(
        "build",
        "cargo build --release --workspace --exclude asyncfork-vm",
    )? & gate.stage("kmod", "scripts/kmod")?
        & gate.stage("kmod-faults", "scripts/kmod --faults")?;
    if options.filters.is_empty() {
        gate.stage("kmod-check", "scripts/kmod --check")?;
    }
    if built {
        gate.vm_suites(options, seed)?;
    } else {
        gate.summary
            .fail("vm", "not run: the build failed", "scripts/test");
    }
    println!("test: took {}", minutes(begin.elapsed()));
    Ok(gate.summary)
}

struct Gate<'a> {
    bench: &'a Bench,
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
        self.logs.join(format!("{name}.log"))
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
            .current_dir(&self.bench.root)
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

    fn vm_suites(&mut self, options: &GateOptions, seed: u64) -> Result<()> {
        let plan = self.plan(options)?;
        ensure!(
            !plan.is_empty(),
            "no VM test's name contains {}; {GUEST} test --list prints the names",
            options.filters.join(" or ")
        );
        let how = accel::choose(self.bench, options.accel)?;
        let all = options.filters.is_empty() && options.la57.is_none() && !options.quick;
        let mut runs = match options.la57 {
            Some(la57) => vec![(la57, options.clone())],
            None => vec![(La57::Off, options.clone())],
        };
        if all {
            let quick = GateOptions {
                quick: true,
                ..options.clone()
            };
            runs.push((La57::On, quick));
        }
        for (la57, options) in runs {
            if la57 == La57::On && how.accel == Accel::Kvm && !host_has_la57()? {
                println!("skip vm-la57-on: KVM on a CPU without la57; --accel tcg has it");
                self.summary.skipped += 1;
                continue;
            }
            let suite = Suite {
                name: format!("vm-la57-{la57}"),
                rerun: format!("scripts/test --la57 {la57} --seed {seed}"),
                module: self.bench.module(),
            };
            self.vm_suite(&options, seed, la57, &suite)?;
        }
        if all {
            let faults = GateOptions {
                filters: vec![FAULT_TESTS.to_owned()],
                ..options.clone()
            };
            let suite = Suite {
                name: "vm-faults".to_owned(),
                rerun: format!("scripts/test --seed {seed}"),
                module: self.bench.faults_module(),
            };
            self.vm_suite(&faults, seed, La57::Off, &suite)?;
        }
        Ok(())
    }

    /// The names of the VM tests that are to give a verdict.
    fn plan(&self, options: &GateOptions) -> Result<Vec<String>> {
        let out = Command::new(self.bench.root.join(GUEST))
            .args(["test", "--list"])
            .args(selection(options))
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {GUEST}"))?;
        ensure!(out.status.success(), "{GUEST} test --list: {}", out.status);
        let names = String::from_utf8(out.stdout)?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn vm_suite(
        &mut self,
        options: &GateOptions,
        seed: u64,
        la57: La57,
        suite: &Suite,
    ) -> Result<()> {
        let plan = self.plan(options)?;
        let results = tempdir(&self.bench.state_dir().join(&suite.name))?;
        let command = guest_command(suite, options, seed, &results);
        println!("==> {}: {}", suite.name, command.join(" "));
        let vm = VmOptions {
            memory: options.memory.clone(),
            la57: Some(la57),
            append: match la57 {
                La57::On => vec![],
                La57::Off => vec![DEBUG_WORDS.to_owned()],
            },
            accel: options.accel,
            timeout: SUITE_SECONDS,
            share: vec![results.clone()],
            ..VmOptions::default()
        };
        let begin = Instant::now();
        let outcome = vm.run(self.bench, &command, Streams::inherit())?;
        outcome.explain();
        println!("    {} ({})", outcome.end, minutes(begin.elapsed()));

        let text = fs::read_to_string(results.join("results.txt")).unwrap_or_default();
        let log = fs::read_to_string(outcome.kernel_log())?;
        judge(
            &mut self.summary,
            suite,
            &outcome,
            &plan,
            &parse_results(&text),
            dmesg::last_test(&log),
        );
        Ok(())
    }
}

/// The test program, which runs in the guest.
const GUEST: &str = "target/release/asyncfork-guest";

/// What the names of the tests that need the module with fault injection have
/// in common; with the shipped one they are skipped.
const FAULT_TESTS: &str = "failed_allocations";

/// The guest's command line.
fn guest_command(suite: &Suite, options: &GateOptions, seed: u64, results: &Path) -> Vec<String> {
    let mut command: Vec<String> = [
        GUEST,
        "test",
        "--module",
        &suite.module,
        "--shim",
        "target/release/libasyncfork.so",
        "--results",
        &results.display().to_string(),
        "--seed",
        &seed.to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    command.extend(selection(options));
    command
}

/// The arguments that choose tests.
fn selection(options: &GateOptions) -> Vec<String> {
    let suite = if options.quick { "quick" } else { "full" };
    let mut words = vec!["--suite".to_owned(), suite.to_owned()];
    words.extend(options.filters.iter().cloned());
    words
}

/// A VM suite: its name, the command that repeats it, the module it is for.
struct Suite {
    name: String,
    rerun: String,
    module: String,
}

/// Adds up what the tests, the guest and its kernel say. `plan` is the tests
/// that were to run, `under_way` the one whose marker came last.
fn judge(
    summary: &mut Summary,
    suite: &Suite,
    outcome: &Outcome,
    plan: &[String],
    results: &[TestResult],
    under_way: Option<&str>,
) {
    let Suite { name, rerun, .. } = suite;
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
        None => rerun.clone(),
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
        let suite = Suite {
            name: "vm-la57-on".into(),
            rerun: "scripts/test --la57 on --seed 7".into(),
            module: "asyncfork.ko".into(),
        };
        let outcome = Outcome {
            end,
            findings: dmesg::scan(kernel),
            dir: PathBuf::from("run-1"),
        };
        let mut summary = Summary::default();
        judge(
            &mut summary,
            &suite,
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
        assert_eq!(summary.failures[0].name, "vm-la57-on/b");
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
        assert_eq!(failure.name, "vm-la57-on/a: kernel complaint");
        assert!(failure.why.contains("WARNING: CPU: 0"), "{}", failure.why);
        assert!(failure.why.contains("pfn:1 (2 times)"), "{}", failure.why);
        assert!(failure.rerun.ends_with(" a"));
    }

    #[test]
    fn the_guest_gets_what_it_needs() {
        let suite = Suite {
            name: "vm-la57-off".into(),
            rerun: "scripts/test --seed 7".into(),
            module: "target/kmod/6.1.0-1-amd64/asyncfork.ko".into(),
        };
        let options = GateOptions {
            filters: vec!["munmap".into()],
            quick: true,
            seed: None,
            la57: None,
            accel: AccelChoice::Auto,
            memory: "8G".into(),
        };
        assert_eq!(
            guest_command(&suite, &options, 7, Path::new("/repo/target/vm/r")).join(" "),
            "target/release/asyncfork-guest test \
             --module target/kmod/6.1.0-1-amd64/asyncfork.ko \
             --shim target/release/libasyncfork.so \
             --results /repo/target/vm/r --seed 7 --suite quick munmap"
        );
    }
}
