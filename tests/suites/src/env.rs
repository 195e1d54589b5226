// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a suite runs: paths, the environment of armed and stock programs, time limits.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use asyncfork_watch::describe;

use crate::suite::{Case, Fork, Verdict};

/// After this long without an end, a killed process is reported and left.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// The guest as the suites see it.
#[derive(Debug)]
pub struct Env {
    /// As `scripts/suites --kernel` was given it: 6.1, 6.12, 7.2, debug.
    pub series: String,
    /// uname -r
    pub release: String,
    /// A tmpfs. Programs run from here: 9p without a cache, which most of the guest's root is, pins the memory that a file is read into, and
    /// a process that had memory pinned uses stock forks.
    pub scratch: PathBuf,
    /// Directory on the host; what is written there survives the guest.
    pub results: PathBuf,
    /// libasyncfork.so, in `scratch`
    pub shim: PathBuf,
    /// libasyncfork_spread.so, in `scratch`
    pub spread: PathBuf,
}

/// What the spread library does in a program; the same in the stock and the armed run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Not preloaded.
    No,
    /// Each anonymous private mapping gets 2 MiB slots of its own.
    Slots,
    /// That, and a thread that forks every so many milliseconds: for programs that do not fork themselves.
    SlotsAndForks(u32),
}

impl Env {
    /// The environment variables that make the forks of a program, and of all it starts, what `fork` says.
    pub fn variables(&self, fork: Fork, spread: Spread) -> Vec<(OsString, OsString)> {
        let mut preload: Vec<&OsStr> = Vec::new();
        if spread != Spread::No {
            preload.push(self.spread.as_os_str());
        }
        let mut variables: Vec<(OsString, OsString)> = Vec::new();
        if fork == Fork::Armed {
            preload.push(self.shim.as_os_str());
            variables.push(("ASYNCFORK_MIN_RSS".into(), "0".into()));
            // A line on standard error could be taken for the program's own.
            variables.push(("ASYNCFORK_LOG".into(), "off".into()));
        }
        if let Spread::SlotsAndForks(ms) = spread {
            variables.push(("ASYNCFORK_SPREAD_FORK_MS".into(), ms.to_string().into()));
        }
        if !preload.is_empty() {
            variables.push(("LD_PRELOAD".into(), preload.join(OsStr::new(":"))));
        }
        variables
    }

    /// A command with these variables, its working directory in `scratch`.
    pub fn command(&self, program: impl AsRef<OsStr>, fork: Fork, spread: Spread) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.scratch)
            .env("LC_ALL", "C.UTF-8")
            .envs(self.variables(fork, spread));
        command
    }

    /// Runs a command to its end, or kills it with all it has started when `limit` is over. Its standard output and error go to
    /// one file, in the order written.
    ///
    /// # Errors
    /// It cannot be started; [`Unkillable`].
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<Finished> {
        let path = self.scratch.join("output");
        let file = File::create(&path).with_context(|| format!("{}", path.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if start.elapsed() > limit {
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if status.is_none() {
            describe(child.id() as i32);
            // The leader first, as others may be its children by other groups.
            let _ = child.kill();
            let _ = child.wait();
        }
        kill_children()?;
        let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        Ok(Finished {
            status,
            output,
            seconds: start.elapsed().as_secs_f32(),
        })
    }

    /// Copies a file into `scratch`.
    ///
    /// # Errors
    /// It does not exist, or the scratch directory is full.
    pub fn local(&self, file: &Path) -> Result<PathBuf> {
        let name = file.file_name().context("no file name")?;
        let copy = self.scratch.join(name);
        fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        Ok(copy)
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    /// None: it ran out of time and was killed.
    pub status: Option<ExitStatus>,
    /// Standard output and error.
    pub output: String,
    pub seconds: f32,
}

impl Finished {
    /// Its exit status; none after a signal or a time-out.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }

    /// The cases read from its output, and one more, how it ended, if they do not tell all: there are none, it was killed, or it
    /// failed though no case did. What the spread library complains about are failed cases.
    pub fn cases_or_exit(&self, mut cases: Vec<Case>) -> Vec<Case> {
        let failed = cases.iter().any(|c| c.verdict == Verdict::Fail);
        let verdict = match self.code() {
            Some(0) => Verdict::Pass,
            Some(KSFT_SKIP) => Verdict::Skip,
            _ => Verdict::Fail,
        };
        let killed = self.code().is_none();
        if cases.is_empty() || killed || (verdict == Verdict::Fail && !failed) {
            // One end does not excuse another.
            let name = match self.status.map(|s| s.signal()) {
                None => "time limit".to_owned(),
                Some(Some(signal)) => format!("signal {signal}"),
                Some(None) => "exit status".to_owned(),
            };
            cases.push(Case::new(name, verdict));
        }
        let said = self.output.lines().filter_map(|l| l.split_once(SPREAD));
        let complaints: BTreeSet<&str> = said.map(|(_, complaint)| complaint).collect();
        let complaints = complaints.into_iter();
        cases.extend(complaints.map(|c| Case::new(format!("{SPREAD}{c}"), Verdict::Fail)));
        cases
    }

    /// For messages: how it ended.
    pub fn end(&self) -> String {
        match self.status {
            None => format!("killed after {:.0} s", self.seconds),
            Some(s) => match (s.code(), s.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => format!("{s}"),
            },
        }
    }
}

/// What each complaint of the spread library begins with.
const SPREAD: &str = "asyncfork-spread: ";

/// What kernel selftests exit with if they could not be run.
const KSFT_SKIP: i32 = 4;

/// Processes that are still there long after SIGKILL.
#[derive(Debug, thiserror::Error)]
#[error("processes that cannot be killed: {0:?}")]
pub struct Unkillable(pub Vec<i32>);

/// Kills and reaps all children until there are no more. Children of the killed become ours.
fn kill_children() -> Result<(), Unkillable> {
    let start = Instant::now();
    loop {
        let children = children();
        if children.is_empty() {
            return Ok(());
        }
        for &pid in &children {
            // SAFETY: a child of this process, which nobody else reaps; plain numbers.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL);
            }
        }
        if start.elapsed() > KILL_PATIENCE {
            children.iter().for_each(|&pid| describe(pid));
            return Err(Unkillable(children));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn children() -> Vec<i32> {
    // An orphan comes to any of our threads.
    let threads = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let lists = threads.map(|t| fs::read_to_string(t.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .filter_map(Result::ok)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        let scratch = std::env::temp_dir().join(format!("asyncfork-suites-{}", std::process::id()));
        fs::create_dir_all(&scratch).unwrap();
        Env {
            series: "6.12".into(),
            release: "x".into(),
            results: scratch.clone(),
            shim: "/s/libasyncfork.so".into(),
            spread: "/s/libasyncfork_spread.so".into(),
            scratch,
        }
    }

    fn finished(raw: Option<i32>) -> Finished {
        Finished {
            status: raw.map(ExitStatus::from_raw),
            output: String::new(),
            seconds: 1.0,
        }
    }

    #[test]
    fn stock_and_armed_runs_differ_in_the_library_only() {
        let env = env();
        let find = |fork, spread, name: &str| {
            env.variables(fork, spread)
                .into_iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.into_string().unwrap())
        };
        assert_eq!(find(Fork::Stock, Spread::No, "LD_PRELOAD"), None);
        assert_eq!(
            find(Fork::Stock, Spread::SlotsAndForks(7), "LD_PRELOAD").unwrap(),
            "/s/libasyncfork_spread.so"
        );
        for fork in [Fork::Stock, Fork::Armed] {
            let ms = find(fork, Spread::SlotsAndForks(7), "ASYNCFORK_SPREAD_FORK_MS");
            assert_eq!(ms.unwrap(), "7");
        }
        assert_eq!(
            find(Fork::Armed, Spread::Slots, "LD_PRELOAD").unwrap(),
            "/s/libasyncfork_spread.so:/s/libasyncfork.so"
        );
        assert_eq!(
            find(Fork::Armed, Spread::No, "ASYNCFORK_MIN_RSS").unwrap(),
            "0"
        );
    }

    #[test]
    fn an_exit_status_counts_where_no_case_tells() {
        let verdicts = |raw, cases: &[Verdict]| -> Vec<Verdict> {
            let cases = cases.iter().map(|&v| Case::new("x", v)).collect();
            let cases = finished(raw).cases_or_exit(cases);
            cases.into_iter().map(|c| c.verdict).collect()
        };
        use Verdict::{Fail, Pass, Skip};
        assert_eq!(verdicts(Some(0), &[]), [Pass]);
        assert_eq!(verdicts(Some(4 << 8), &[]), [Skip]);
        assert_eq!(verdicts(Some(1 << 8), &[]), [Fail]);
        assert_eq!(verdicts(Some(0), &[Pass]), [Pass]);
        assert_eq!(verdicts(Some(1 << 8), &[Pass, Fail]), [Pass, Fail]);
        assert_eq!(verdicts(Some(1 << 8), &[Pass]), [Pass, Fail]);
        assert_eq!(verdicts(Some(11), &[Pass, Fail]), [Pass, Fail, Fail]);
        assert_eq!(verdicts(None, &[Pass]), [Pass, Fail]);
    }

    #[test]
    fn each_way_to_end_is_a_case_of_its_own() {
        let end = |raw| finished(raw).cases_or_exit(vec![])[0].name.clone();
        assert_eq!(end(Some(1 << 8)), "exit status");
        assert_eq!(end(Some(11)), "signal 11");
        assert_eq!(end(None), "time limit");
    }

    #[test]
    fn complaints_of_the_spread_library_are_failed_cases() {
        let mut finished = finished(Some(0));
        finished.output = "ok\nhalf a lineasyncfork-spread: bad\nasyncfork-spread: bad\n".into();
        let cases = finished.cases_or_exit(vec![Case::new("x", Verdict::Pass)]);
        assert_eq!(
            cases[1..],
            [Case::new("asyncfork-spread: bad", Verdict::Fail)]
        );
    }

    #[test]
    fn a_program_and_all_it_started_end_at_the_limit() {
        let env = env();
        asyncfork_watch::adopt_orphans().unwrap();
        let mut command = env.command("sh", Fork::Stock, Spread::No);
        command.args(["-c", "echo begun; setsid sleep 1000 & sleep 1000"]);
        let finished = env.run(&mut command, Duration::from_millis(300)).unwrap();
        assert_eq!(finished.status, None);
        assert_eq!(finished.output, "begun\n");
        assert_eq!(children(), [0; 0]);
        fs::remove_dir_all(&env.scratch).unwrap();
    }
}
