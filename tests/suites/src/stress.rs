// SPDX-License-Identifier: MIT OR Apache-2.0
//! stress-ng, of the guest's Debian: one program is one stressor.

use std::cell::OnceCell;
use std::fs;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::env::{Env, Spread};
use crate::suite::{Case, Fork, Program, Suite, Verdict};

#[derive(Default)]
pub struct StressNg {
    /// What `stress-ng --help` says; asked for once.
    help: OnceCell<String>,
}

/// Each stressor, in two processes.
const SECONDS: u64 = 5;
/// What a run may take beyond that: start and end in emulation, and kills that stress-ng itself does after a while.
const GRACE: u64 = 180;
/// Of the thread that the spread library adds to stressors that do not fork.
const PERIOD_MS: u32 = 50;

struct Stressor {
    name: &'static str,
    /// Its own forks do; else a thread is added.
    spread: Spread,
    /// Only the options that this stress-ng knows are given.
    options: &'static [&'static str],
}

const fn forking(name: &'static str) -> Stressor {
    Stressor {
        name,
        spread: Spread::Slots,
        options: &[],
    }
}

const fn added(name: &'static str, options: &'static [&'static str]) -> Stressor {
    Stressor {
        name,
        spread: Spread::SlotsAndForks(PERIOD_MS),
        options,
    }
}

/// Those that work on private memory or fork, kept small: the guest has 4 GiB.
const STRESSORS: &[Stressor] = &[
    forking("fork"),
    forking("forkheavy"),
    forking("mmapfork"),
    forking("mmapcow"),
    forking("vma"),
    forking("userfaultfd"),
    forking("vm-segv"),
    forking("vm-rw"),
    forking("zombie"),
    forking("daemon"),
    forking("shm"),
    forking("shm-sysv"),
    added("mremap", &["--mremap-bytes=64m"]),
    added("madvise", &[]),
    added("pagemove", &["--pagemove-bytes=32m"]),
    added("brk", &["--brk-bytes=256m"]),
    added("bigheap", &["--bigheap-bytes=256m"]),
    added("vm", &["--vm-bytes=128m", "--ksm"]),
    added("mlock", &[]),
    added("mprotect", &[]),
    added("munmap", &[]),
    added("pageswap", &[]),
    added("remap", &[]),
    added("tlb-shootdown", &[]),
    added("mmaptorture", &["--mmaptorture-bytes=32m"]),
    added("vm-addr", &["--vm-addr-bytes=64m"]),
    added("vm-splice", &[]),
    added("mlockmany", &["--mlockmany-procs=8"]),
    added("mincore", &[]),
    added("malloc", &["--malloc-bytes=64m"]),
    added("memthrash", &[]),
    added("stack", &[]),
    added("fault", &[]),
    added("mmapmany", &[]),
    added("physpage", &[]),
    forking("oom-pipe"),
    forking("sigsegv"),
    forking("vfork"),
    forking("vforkmany"),
    forking("clone"),
    forking("spawn"),
    forking("exec"),
];

impl Suite for StressNg {
    fn name(&self) -> &'static str {
        "stress-ng"
    }

    fn programs(&self, env: &Env) -> Result<Vec<Program>> {
        fs::create_dir_all(env.scratch.join("temp"))?;
        let known = output(env, &["--stressors"])?;
        let known: Vec<&str> = known.split_whitespace().collect();
        let programs: Vec<Program> = STRESSORS
            .iter()
            .map(|s| Program {
                name: s.name.to_owned(),
                note: match s.spread {
                    Spread::SlotsAndForks(ms) => format!("forks added every {ms} ms"),
                    _ => String::new(),
                },
                limit: Duration::from_secs(SECONDS + GRACE),
                missing: (!known.contains(&s.name)).then_some("not in this version"),
            })
            .collect();
        Ok(programs)
    }

    fn run_one(&self, env: &Env, program: &Program, fork: Fork) -> Result<Vec<Case>> {
        let stressor = STRESSORS
            .iter()
            .find(|s| s.name == program.name)
            .context("no such stressor")?;
        if self.help.get().is_none() {
            let _ = self.help.set(output(env, &["--help"])?);
        }
        let help = self.help.get().expect("just set");
        let known = |option: &&&str| {
            let name = option.split('=').next().unwrap_or(option);
            help.split_whitespace().any(|word| word == name)
        };
        let mut command = env.command("stress-ng", fork, stressor.spread);
        command
            .args([&format!("--{}", stressor.name), "2"])
            .args(["--verify", "--metrics", "--no-rand-seed"])
            .arg(format!("--timeout={SECONDS}"))
            .arg("--temp-path=temp")
            .args(stressor.options.iter().filter(known));
        let finished = env.run(&mut command, program.limit)?;
        println!("  {fork:?} {}: {}", program.name, finished.end());
        let mut cases = parse(&finished.output);
        if let (Some(code), [case]) = (finished.code(), cases.as_mut_slice()) {
            // "No resources" and "not implemented" are said by the status, too.
            if code != 0 && case.verdict == Verdict::Pass {
                case.verdict = Verdict::Fail;
            }
        }
        Ok(finished.cases_or_exit(cases))
    }
}

fn output(env: &Env, words: &[&str]) -> Result<String> {
    let mut command = env.command("stress-ng", Fork::Stock, Spread::No);
    let finished = env.run(command.args(words), Duration::from_secs(60))?;
    ensure!(
        finished.code() == Some(0),
        "stress-ng {words:?}: {}",
        finished.end()
    );
    Ok(finished.output)
}

/// The summary has how many instances of each stressor were `skipped`, `passed` and `failed`; what is wrong is said before, as `fail:`.
fn parse(output: &str) -> Vec<Case> {
    let mut verdict = None;
    for line in output.lines() {
        let Some(rest) = line.strip_prefix("stress-ng: ") else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let (kind, _, what, count) = (words.next(), words.next(), words.next(), words.next());
        let some = count.is_some_and(|c| c.trim_end_matches(':') != "0");
        let this = match (kind, what) {
            (Some("fail:"), _) => Verdict::Fail,
            (Some("info:"), Some("failed:")) if some => Verdict::Fail,
            (Some("info:"), Some("skipped:")) if some => Verdict::Skip,
            (Some("info:"), Some("passed:")) if some => Verdict::Pass,
            _ => continue,
        };
        verdict = verdict.max(Some(this));
    }
    verdict.map(|v| Case::new("run", v)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &str) -> Option<Verdict> {
        let cases = parse(lines);
        assert!(cases.len() < 2);
        cases.first().map(|c| c.verdict)
    }

    const HEAD: &str = "stress-ng: info:  [82] dispatching hogs: 2 fork\n";

    #[test]
    fn the_summary_is_read() {
        let end = |s: &str, p: &str, f: &str| {
            verdict(&format!(
                "{HEAD}stress-ng: info:  [82] skipped: {s}\nstress-ng: info:  [82] passed: {p}\n\
                 stress-ng: info:  [82] failed: {f}\n"
            ))
        };
        assert_eq!(end("0", "2: fork (2)", "0"), Some(Verdict::Pass));
        assert_eq!(end("2: fork (2)", "0", "0"), Some(Verdict::Skip));
        assert_eq!(end("0", "1: fork (1)", "1: fork (1)"), Some(Verdict::Fail));
        assert_eq!(verdict(HEAD), None);
    }

    #[test]
    fn a_failed_verification_fails() {
        let lines = "stress-ng: fail:  [93] vm: detected 1 bit errors\nstress-ng: info:  [82] passed: 2: vm (2)\n";
        assert_eq!(verdict(lines), Some(Verdict::Fail));
    }
}
