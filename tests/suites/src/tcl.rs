// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Tcl suites of Redis and Valkey, from Debian's source packages, against Debian's servers. `scripts/suites` unpacks them in the guest's
//! root and builds their test modules. A program here is a unit: one file of tests, run by itself. The servers' forks are armed, those of
//! the Tcl interpreter are not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};

use crate::env::{Env, Spread};
use crate::suite::{Case, Fork, Program, Suite, Verdict};

/// Of one unit, once. The longest takes 15 minutes in emulation on a busy host.
const LIMIT: u64 = 3600;
/// Without a case that ends, the suite gives up by itself.
const STALLED: u64 = 900;

/// Directories that the suites take units from, below `tests`.
const DIRECTORIES: &[&str] = &[
    "integration",
    "unit",
    "unit/cluster",
    "unit/moduleapi",
    "unit/type",
];

/// Units whose servers fork: snapshots, log rewrites, replication, modules that fork. A `*` at the end stands for anything.
const FORKING: &[&str] = &[
    "integration/aof*",
    "integration/block-repl",
    "integration/dismiss-mem",
    "integration/dual-channel*",
    "integration/failover",
    "integration/psync2*",
    "integration/rdb",
    "integration/redis-cli",
    "integration/replication*",
    "integration/shutdown",
    "integration/skip-rdb-checksum",
    "integration/valkey-cli",
    "unit/aofrw",
    "unit/moduleapi/fork",
    "unit/moduleapi/hooks",
    "unit/moduleapi/rdbloadsave",
    "unit/moduleapi/testrdb",
    "unit/oom-score-adj",
    "unit/other",
    "unit/shutdown",
];

/// Those of them that only some versions of one of the servers have.
const NOT_EVERYWHERE: &[&str] = &[
    "integration/dual-channel*",
    "integration/redis-cli",
    "integration/skip-rdb-checksum",
    "integration/valkey-cli",
    "unit/moduleapi/rdbloadsave",
];

/// The suite of one server.
pub struct Tcl {
    name: &'static str,
    /// Of the binaries: `NAME-server` and so on.
    server: &'static str,
    /// All units, not only [`FORKING`].
    whole: bool,
}

/// The units of Redis' suite that fork.
pub fn redis() -> Tcl {
    Tcl {
        name: "redis",
        server: "redis",
        whole: false,
    }
}

/// Redis' suite.
pub fn redis_whole() -> Tcl {
    Tcl {
        name: "redis-whole",
        whole: true,
        ..redis()
    }
}

/// The units of Valkey's suite that fork.
pub fn valkey() -> Tcl {
    Tcl {
        name: "valkey",
        server: "valkey",
        whole: false,
    }
}

/// Valkey's suite.
pub fn valkey_whole() -> Tcl {
    Tcl {
        name: "valkey-whole",
        whole: true,
        ..valkey()
    }
}

impl Suite for Tcl {
    fn name(&self) -> &'static str {
        self.name
    }

    fn programs(&self, env: &Env) -> Result<Vec<Program>> {
        self.set_up(env)?;
        let mut units = units(&self.place(env).join("tests"))?;
        if !self.whole {
            for pattern in FORKING {
                ensure!(
                    NOT_EVERYWHERE.contains(pattern)
                        || units.iter().any(|unit| matches(pattern, unit)),
                    "the suite of {} has no {pattern}",
                    self.server
                );
            }
            units.retain(|unit| FORKING.iter().any(|pattern| matches(pattern, unit)));
        }
        Ok(units
            .into_iter()
            .map(|unit| Program::new(unit, LIMIT))
            .collect())
    }

    fn run_one(&self, env: &Env, program: &Program, fork: Fork) -> Result<Vec<Case>> {
        let place = self.place(env);
        let servers = place.join("tests/tmp");
        remake(&servers)?;
        let mut command = env.command("./runtest", fork, Spread::No);
        command
            .current_dir(&place)
            .args(["--single", &program.name])
            // An exception in one test does not end the unit.
            .args(["--durable", "--clients", "1"])
            .args(["--timeout", &STALLED.to_string()])
            // The servers' logs are read here afterwards, and shown if a test fails.
            .args(["--dont-clean", "--dump-logs"])
            .env("ASYNCFORK_MATCH", format!("{}-server", self.server))
            // No colours.
            .env("TERM", "dumb");
        let finished = env.run(&mut command, program.limit)?;
        let cases = cases(&finished.output, crash_reports(&servers)?);
        Ok(finished.cases_or_exit(cases))
    }
}

impl Tcl {
    /// Where the suite runs; writable.
    fn place(&self, env: &Env) -> PathBuf {
        env.scratch.join(self.name)
    }

    /// Copies the suite, links the servers to where it looks for them, and lets it find itself by name.
    fn set_up(&self, env: &Env) -> Result<()> {
        let source = Path::new("/build").join(format!("{}-tests", self.server));
        ensure!(
            source.join("tests/modules/fork.so").exists(),
            "no {} with its test modules built: use scripts/suites, which prepares it",
            source.display()
        );
        let place = self.place(env);
        fs::create_dir_all(place.join("src"))?;
        // What tests read: scripts and data, the example configuration, the runner.
        let config = format!("{}.conf", self.server);
        let parts = ["tests", "utils", "runtest", &config, "sentinel.conf"].map(|p| source.join(p));
        succeed(Command::new("cp").arg("-r").args(&parts).arg(&place))?;
        for tool in ["server", "cli", "benchmark", "check-aof", "check-rdb"] {
            let tool = format!("{}-{tool}", self.server);
            let binary = Path::new("/usr/bin").join(&tool);
            ensure!(binary.exists(), "{} is not installed", binary.display());
            symlink(binary, place.join("src").join(tool))?;
        }
        succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        ensure!(
            hosts.contains("localhost"),
            "/etc/hosts has no localhost: the tests' client would not find their server"
        );
        Ok(())
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn remake(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir(dir).with_context(|| format!("{}", dir.display()))
}

/// The names of all units below `tests`.
fn units(tests: &Path) -> Result<Vec<String>> {
    let mut units = Vec::new();
    for directory in DIRECTORIES {
        let path = tests.join(directory);
        let entries = fs::read_dir(&path).with_context(|| format!("{}", path.display()))?;
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(stem) = name.strip_suffix(".tcl") {
                units.push(format!("{directory}/{stem}"));
            }
        }
    }
    units.sort();
    Ok(units)
}

fn matches(pattern: &str, unit: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => unit.starts_with(prefix),
        None => unit == pattern,
    }
}

/// Reads what the suite's runner prints. One more case is the end of the unit: some have no tests but a script that must not stop, and
/// not every crash of a server fails a test. Crashes that a test wants are as many in each run.
fn cases(output: &str, crashes: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut repeated: BTreeMap<String, Verdict> = BTreeMap::new();
    let (mut log, mut done) = (false, false);
    for line in output.lines() {
        // A server's log, which may say anything.
        if line.starts_with("===== Start of server ") {
            log = true;
        } else if line.starts_with("===== End of server ") {
            log = false;
        }
        if log {
            continue;
        }
        let Some((name, verdict)) = case(line) else {
            done |= is_done(line);
            continue;
        };
        if is_drawn(&name) && verdict == Verdict::Pass {
            continue;
        }
        match name_in_cycle(&name) {
            None => cases.push(Case { name, verdict }),
            Some(name) => {
                let worst = repeated.entry(name).or_insert(verdict);
                *worst = verdict.max(*worst);
            }
        }
    }
    cases.extend(repeated.into_iter().map(|(name, v)| Case::new(name, v)));
    let end = format!("runs to its end, crash reports in the servers' logs: {crashes}");
    let verdict = if done { Verdict::Pass } else { Verdict::Fail };
    cases.push(Case::new(end, verdict));
    cases
}

/// A line that says how a case ended.
fn case(line: &str) -> Option<(String, Verdict)> {
    // The one that was running when the suite gave up: "sock5 => (IN PROGRESS) NAME".
    if let Some((_, name)) = line.split_once(" => (IN PROGRESS) ") {
        return Some((name.to_owned(), Verdict::Fail));
    }
    let (status, text) = line.strip_prefix('[')?.split_once("]: ")?;
    Some(match status {
        "ok" => (without_time(text).to_owned(), Verdict::Pass),
        "skip" | "ignore" => (text.to_owned(), Verdict::Skip),
        // "[err]: NAME in tests/unit/aofrw.tcl"; other errors have no name, but a text that need not be the same every time.
        "err" => match text.rsplit_once(" in tests/") {
            Some((name, file)) if file.ends_with(".tcl") => (name.to_owned(), Verdict::Fail),
            _ => ("error outside of a test".to_owned(), Verdict::Fail),
        },
        "exception" => ("exception in the suite".to_owned(), Verdict::Fail),
        "TIMEOUT" => ("no case ended for long".to_owned(), Verdict::Fail),
        _ => return None,
    })
}

/// "NAME (12 ms)"
fn without_time(text: &str) -> &str {
    match text.rsplit_once(" (") {
        Some((name, time))
            if time
                .strip_suffix(" ms)")
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())) =>
        {
            name
        }
        _ => text,
    }
}

/// "[1/1 done]: unit/aofrw (95 seconds)"
fn is_done(line: &str) -> bool {
    line.starts_with('[') && line.contains(" done]: ")
}

/// A name of integration/psync2, without its random numbers. These tests go through random layouts for a given time, more or fewer of
/// them: all of a name are one case, which ends as the worst of them.
fn name_in_cycle(name: &str) -> Option<String> {
    let text = name.strip_prefix("PSYNC2: ")?;
    let mut fixed = String::from("PSYNC2: ");
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        if part.starts_with(|c: char| c.is_ascii_digit()) {
            fixed.push('N');
        }
        fixed.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    Some(fixed)
}

/// Tests of integration/psync2-reg that a run has many of or none, by chance: only failures tell something.
fn is_drawn(name: &str) -> bool {
    name.starts_with("PSYNC2 #3899 regression: kill ")
}

/// How many crashes the servers have logged.
fn crash_reports(servers: &Path) -> Result<usize> {
    let mut reports = 0;
    for server in fs::read_dir(servers)? {
        // Configuration files are beside them.
        let Ok(files) = fs::read_dir(server?.path()) else {
            continue;
        };
        for file in files {
            let file = file?;
            // Logs that were put aside have longer names.
            if file.file_name().to_string_lossy().starts_with("stdout") {
                let log = fs::read(file.path())?;
                reports += String::from_utf8_lossy(&log)
                    .lines()
                    .filter(|line| line.contains("BUG REPORT START"))
                    .count();
            }
        }
    }
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Fail, Pass, Skip};

    /// Reads an output; its last case must be this end.
    fn read(output: &str, end: Verdict) -> Vec<(String, Verdict)> {
        let mut cases = cases(output, 2);
        let name = "runs to its end, crash reports in the servers' logs: 2";
        assert_eq!(cases.pop(), Some(Case::new(name, end)));
        let cases = cases.into_iter();
        cases.map(|case| (case.name, case.verdict)).collect()
    }

    fn owned(cases: &[(&str, Verdict)]) -> Vec<(String, Verdict)> {
        cases.iter().map(|&(n, v)| (n.to_owned(), v)).collect()
    }

    #[test]
    fn each_kind_of_line_is_a_case() {
        let output = "\
** SLOW COMPUTER ** Using a single client to avoid false positives.
[ready]: 352
Testing unit/aofrw
[ok]: AOF rewrite (preamble) (10151 ms)
[ok]: an older suite's (issue #9)
[err]: Turning off AOF in time in tests/unit/aofrw.tcl
Expected '0' to equal or match '1'
[ignore]: Tag: large-memory denied
[skip]: not this
[1/1 done]: unit/aofrw (95 seconds)
                   The End
*** [err]: Turning off AOF in time in tests/unit/aofrw.tcl
";
        assert_eq!(
            read(output, Pass),
            owned(&[
                ("AOF rewrite (preamble)", Pass),
                ("an older suite's (issue #9)", Pass),
                ("Turning off AOF in time", Fail),
                ("Tag: large-memory denied", Skip),
                ("not this", Skip),
            ])
        );
    }

    #[test]
    fn what_ends_the_unit_early_is_a_failure() {
        assert_eq!(read("", Fail), owned(&[]));
        assert_eq!(
            read(
                "[ok]: a (1 ms)\n[exception]: Executing test client: I/O error 0x7f\n",
                Fail
            ),
            owned(&[("a", Pass), ("exception in the suite", Fail)])
        );
        assert_eq!(
            read(
                "[TIMEOUT]: clients state report follows.\nsock55 => (IN PROGRESS) b\n",
                Fail
            ),
            owned(&[("no case ended for long", Fail), ("b", Fail)])
        );
    }

    #[test]
    fn an_error_between_tests_has_a_name_of_ours() {
        let output = "\
[err]: Can't start the Redis server
CONFIGURATION:
port 21111
[1/1 done]: u (1 seconds)
";
        assert_eq!(
            read(output, Pass),
            owned(&[("error outside of a test", Fail)])
        );
    }

    #[test]
    fn a_servers_log_is_not_read_for_cases() {
        let output = "
===== Start of server log (pid 7) =====
[ok]: x (1 ms)
===== End of server log (pid 7) =====
[ok]: y (1 ms)
[1/1 done]: u (1 seconds)
";
        assert_eq!(read(output, Pass), owned(&[("y", Pass)]));
    }

    #[test]
    fn tests_that_are_repeated_at_random_are_one_case() {
        let output = "
[ok]: PSYNC2: --- CYCLE 1 --- (1 ms)
[ok]: PSYNC2: Set #0 to replicate from #12 (1 ms)
[err]: PSYNC2: Set #3 to replicate from #0 in tests/integration/psync2.tcl
[ok]: PSYNC2: Set #3 to replicate from #0 (1 ms)
[ok]: PSYNC2: --- CYCLE 2 --- (1 ms)
[ok]: PSYNC2: Partial resync (1 ms)
[1/1 done]: integration/psync2 (9 seconds)
";
        assert_eq!(
            read(output, Pass),
            owned(&[
                ("PSYNC2: --- CYCLE N ---", Pass),
                ("PSYNC2: Partial resync", Pass),
                ("PSYNC2: Set #N to replicate from #N", Fail),
            ])
        );
        assert_eq!(name_in_cycle("Protocol desync regression test #1"), None);
        assert_eq!(name_in_cycle("PSYNC2: x=4").unwrap(), "PSYNC2: x=N");
    }

    #[test]
    fn tests_that_chance_decides_on_count_if_they_fail() {
        let output = "
[ok]: PSYNC2 #3899 regression: setup (1 ms)
[ok]: PSYNC2 #3899 regression: kill first replica (1 ms)
[err]: PSYNC2 #3899 regression: kill chained replica in tests/integration/psync2-reg.tcl
[1/1 done]: integration/psync2-reg (9 seconds)
";
        assert_eq!(
            read(output, Pass),
            owned(&[
                ("PSYNC2 #3899 regression: setup", Pass),
                ("PSYNC2 #3899 regression: kill chained replica", Fail),
            ])
        );
    }

    #[test]
    fn patterns_stand_for_units() {
        assert!(matches("integration/aof*", "integration/aof"));
        assert!(matches("integration/aof*", "integration/aof-race"));
        assert!(matches("unit/other", "unit/other"));
        assert!(!matches("unit/other", "unit/other-2"));
    }

    #[test]
    fn crashes_are_counted_in_all_logs_of_all_servers() {
        let dir = std::env::temp_dir().join(format!("asyncfork-tcl-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let report = "x\n\n=== REDIS BUG REPORT START: Cut & paste\n=== BUG REPORT END\n";
        for (server, file, text) in [
            ("server.1", "stdout", report),
            ("server.1", "stdout.260101", report),
            ("server.1", "stderr", report),
            ("server.2", "stdout", "fine\n"),
        ] {
            fs::create_dir_all(dir.join(server)).unwrap();
            fs::write(dir.join(server).join(file), text).unwrap();
        }
        fs::write(dir.join("redis.conf.7"), "port 1\n").unwrap();
        assert_eq!(crash_reports(&dir).unwrap(), 2);
        fs::remove_dir_all(&dir).unwrap();
    }
}
