// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own tests of mm/, from the sources of the kernel that runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use asyncfork_host::kernel::kernel_since;

use crate::env::{Env, Spread};
use crate::suite::{Case, Fork, Program, Suite, Verdict};

/// Where `scripts/suites` builds them: below the guest's root, by series.
const BUILD: &str = "/build/kselftests";
/// Their directory in the sources; the second since 6.2.
const DIRECTORIES: [&str; 2] = ["tools/testing/selftests/vm", "tools/testing/selftests/mm"];
/// Empty disk that the VM has for swap.
const SWAP: &str = "/dev/vda";

/// For a kernel that does not have the program yet; in its root only if it is meant to be used.
const NEWER: &str = "6.12";

pub struct Kselftests;

/// How a program is run, after the sources' run_vmtests.sh.
struct How {
    program: &'static str,
    /// The first is the file.
    words: &'static str,
    /// Who forks.
    spread: Spread,
    seconds: u64,
}

impl How {
    fn file(&self) -> &'static str {
        self.words.split(' ').next().unwrap_or(self.words)
    }
}

/// How much longer than the programs' own idea of time a busy emulator may take.
const SLOW: u32 = 3;

const fn how(program: &'static str, words: &'static str, spread: Spread, seconds: u64) -> How {
    How {
        program,
        words,
        spread,
        seconds,
    }
}

/// The program forks; or what its cases are about is done without a fork, and forks are added.
use Spread::{Slots as Own, SlotsAndForks as Added};

/// Not here: tests of hugetlb, shmem, hmm, gup_test, vmalloc and page_frag, which are about other memory or want modules of their own, and
/// those that fill the address space.
const PROGRAMS: &[How] = &[
    how("cow", "cow", Own, 600),
    how("map_populate", "map_populate", Own, 60),
    how("mkdirty", "mkdirty", Added(1), 120),
    how("madv_populate", "madv_populate", Added(1), 60),
    how("mremap_dontunmap", "mremap_dontunmap", Added(1), 60),
    how("mlock2-tests", "mlock2-tests", Added(1), 60),
    how("mlock-random-test", "mlock-random-test", Added(1), 60),
    how("mdwe_test", "mdwe_test", Own, 60),
    how("guard-regions", "guard-regions", Added(1), 300),
    how("process_madv", "process_madv", Added(1), 120),
    how("merge", "merge", Added(1), 120),
    how("rmap", "rmap", Own, 240),
    how("droppable", "droppable", Added(1), 60),
    how("prctl_thp_disable", "prctl_thp_disable", Own, 60),
    how("memfd_secret", "memfd_secret", Own, 60),
    how("mrelease_test", "mrelease_test", Own, 120),
    how("mseal_test", "mseal_test", Added(1), 60),
    how("ksm_tests -M", "ksm_tests -M -p 10", Added(20), 120),
    how("ksm_tests -U", "ksm_tests -U", Added(20), 120),
    how("ksm_tests -Z 0", "ksm_tests -Z -p 10 -z 0", Added(20), 120),
    how("ksm_tests -Z 1", "ksm_tests -Z -p 10 -z 1", Added(20), 120),
    how("ksm_tests -N 1", "ksm_tests -N -m 1", Added(20), 120),
    how("ksm_tests -N 0", "ksm_tests -N -m 0", Added(20), 120),
    how(
        "ksm_functional_tests",
        "ksm_functional_tests",
        Added(20),
        240,
    ),
    // That of 7.2 asks for events of forks by mistake, and nobody reads them: seldom, then.
    how("mremap_test", "mremap_test", Added(200), 100),
    how("pagemap_ioctl", "pagemap_ioctl", Added(20), 300),
    how("migration", "migration", Own, 300),
    how("uffd-stress anon", "uffd-stress anon 20 16", Added(1), 300),
    how(
        "uffd-stress shmem",
        "uffd-stress shmem 20 16",
        Added(1),
        300,
    ),
    how("userfaultfd anon", "userfaultfd anon 20 16", Own, 400),
    how("userfaultfd shmem", "userfaultfd shmem 20 16", Own, 400),
    how("khugepaged", "khugepaged", Own, 600),
    how("transhuge-stress", "transhuge-stress -d 20", Added(20), 240),
    // A fork between its stores, stock or async, takes the huge pages that it counts, and it ends there.
    how(
        "split_huge_page_test",
        "split_huge_page_test",
        Added(200),
        600,
    ),
    how("uffd-wp-mremap", "uffd-wp-mremap", Added(20), 300),
    how("uffd-unit-tests", "uffd-unit-tests", Own, 600),
    how("protection_keys", "protection_keys_64", Own, 600),
    how("soft-dirty", "soft-dirty", Added(200), 300),
];

/// That of 6.1 knows no `-d` and never ends.
const ENDLESS: &str = "transhuge-stress";

impl Suite for Kselftests {
    fn name(&self) -> &'static str {
        "kselftests"
    }

    fn programs(&self, env: &Env) -> Result<Vec<Program>> {
        let dirs = directories(env)?;
        set_up()?;
        let is_6_1 = !kernel_since(6, 2)?;
        let mut programs = Vec::new();
        for how in PROGRAMS {
            let file = how.file();
            let place = dirs.iter().position(|d| d.join(file).exists());
            let mut notes = Vec::new();
            if let Some(place) = place {
                // 9p, see Env::scratch.
                env.local(&dirs[place].join(file))?;
                if place > 0 {
                    notes.push(format!("of Linux {NEWER}"));
                }
            }
            if let Added(ms) = how.spread {
                notes.push(format!("forks added, {ms} ms between them"));
            }
            programs.push(Program {
                name: how.program.to_owned(),
                note: notes.join(", "),
                limit: Duration::from_secs(how.seconds) * SLOW,
                missing: match place {
                    None => Some("not built"),
                    Some(_) if is_6_1 && how.program == ENDLESS => Some("never ends"),
                    Some(_) => None,
                },
            });
        }
        Ok(programs)
    }

    fn run_one(&self, env: &Env, program: &Program, fork: Fork) -> Result<Vec<Case>> {
        let how = PROGRAMS
            .iter()
            .find(|h| h.program == program.name)
            .context("no such program")?;
        // As before tests of huge pages.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        fs::write("/proc/sys/vm/compact_memory", "1")?;
        let mut command = env.command(env.scratch.join(how.file()), fork, how.spread);
        let arguments = how.words.split(' ').skip(1);
        let finished = env.run(command.args(arguments), program.limit)?;
        println!("  {fork:?} {}: {}", program.name, finished.end());
        let cases = parse(&finished.output);
        Ok(finished.cases_or_exit(cases))
    }

    fn clean_up(&self, _: &Env) -> Result<()> {
        fs::write("/proc/sys/vm/nr_hugepages", "0")?;
        // Brings back what is still swapped out.
        command(&["swapoff", SWAP])
    }
}

/// Where the programs of this kernel's version are, and then those of a newer one, if there are any.
fn directories(env: &Env) -> Result<Vec<PathBuf>> {
    let numbers: Vec<&str> = env.release.split('.').take(2).collect();
    let version = numbers.join(".");
    let mut versions = vec![version.as_str(), NEWER];
    versions.dedup();
    let found: Vec<PathBuf> = versions
        .iter()
        .filter_map(|version| {
            let build = PathBuf::from(format!("{BUILD}-{version}"));
            let mut places = DIRECTORIES.iter().map(|d| build.join(d));
            places.find(|d| d.is_dir())
        })
        .collect();
    ensure!(
        !found.is_empty(),
        "no selftests in {BUILD}-{version}: run scripts/suites"
    );
    Ok(found)
}

/// Huge pages, swap and permissions that the programs want.
fn set_up() -> Result<()> {
    fs::write("/proc/sys/vm/nr_hugepages", "128")?;
    if Path::new("/proc/sys/kernel/yama/ptrace_scope").exists() {
        fs::write("/proc/sys/kernel/yama/ptrace_scope", "0")?;
    }
    command(&["mkswap", SWAP])?;
    command(&["swapon", SWAP])
}

fn command(words: &[&str]) -> Result<()> {
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", words[0]))?;
    ensure!(
        status.success(),
        "{words:?}: {status}; does the VM have --disk?"
    );
    Ok(())
}

/// Cases in a program's output: TAP, or what the tests of userfaultfd and khugepaged say.
fn parse(output: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut running: Option<Case> = None;
    for line in output.lines() {
        // Some do not end a line before they say so.
        let line = line.split("Bail out!").next().unwrap_or_default();
        if let Some(case) = tap(line).or_else(|| uffd(line)) {
            cases.push(case);
        } else if let Some((_, name)) = line.split_once("Run test: ") {
            cases.extend(running.replace(Case::new(name, Verdict::Pass)));
        } else if let Some(case) = &mut running {
            case.verdict = case.verdict.max(khugepaged(line));
        }
    }
    cases.extend(running);
    // Those of 7.2 tell it twice, and "ok" without a word on what.
    cases.retain(|c| !c.name.is_empty());
    cases
}

/// `ok 1 name`, `not ok 2 - name # reason`, `ok 3 # SKIP name`, `ok 4 name # SKIP reason`. What fails without a name is called by its number.
fn tap(line: &str) -> Option<Case> {
    let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return None,
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    let rest = rest.trim().trim_start_matches("- ");
    let (name, directive) = match rest.split_once('#') {
        Some(("", text)) => {
            let (word, name) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            (name, word)
        }
        Some((name, text)) => (name, text.trim().split(' ').next().unwrap_or("")),
        None => (rest, ""),
    };
    let verdict = match (directive, passed) {
        ("SKIP", _) => Verdict::Skip,
        (_, true) => Verdict::Pass,
        (_, false) => Verdict::Fail,
    };
    let mut name = stable(name);
    if name.is_empty() && verdict == Verdict::Fail {
        name = format!("test {number}");
    }
    Some(Case::new(name, verdict))
}

/// `Testing minor on hugetlb... done`
fn uffd(line: &str) -> Option<Case> {
    let (name, end) = line.strip_prefix("Testing ")?.split_once("... ")?;
    let verdict = match end.split([' ', '[']).next()? {
        "done" => Verdict::Pass,
        "skipped" => Verdict::Skip,
        _ => Verdict::Fail,
    };
    Some(Case::new(name, verdict))
}

/// The steps of a test of khugepaged end in a coloured word.
fn khugepaged(line: &str) -> Verdict {
    if line.contains("\x1b[31m") {
        Verdict::Fail
    } else if line.contains("\x1b[33m") {
        Verdict::Skip
    } else {
        Verdict::Pass
    }
}

/// After these words come numbers that differ from run to run.
const BEFORE_NUMBERS: &[&str] = &["Extra pages", "Success reaping a child with"];

/// The name without what differs from run to run: addresses, measurements.
fn stable(name: &str) -> String {
    let ends = BEFORE_NUMBERS
        .iter()
        .filter_map(|words| Some(name.find(words)? + words.len()));
    let name = &name[..ends.min().unwrap_or(name.len())];
    let words = name.split_whitespace().map(|word| {
        let is_address = word
            .trim_end_matches([',', ')', ':'])
            .strip_prefix("0x")
            .is_some_and(|h| h.len() > 6 && h.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_address {
            "ADDRESS"
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Fail, Pass, Skip};

    #[track_caller]
    fn expect(output: &str, cases: &[(&str, Verdict)]) {
        let expected: Vec<Case> = cases.iter().map(|&(n, v)| Case::new(n, v)).collect();
        assert_eq!(parse(output), expected);
    }

    #[test]
    fn tap_is_read() {
        expect(
            "TAP version 13\n1..5\n# [RUN] Basic COW\nok 1 Basic COW after fork() ... with base page\n\
             ok 6 transact_test Extra pages 8 (0.0%), extra thread faults 1381.\n\
             not ok 2 - vmsplice() at 0x7f1234567000, 4 KiB\nok 3 # SKIP io_uring is missing\n\
             ok 4 guard_regions.anon.basic # SKIP no swap\nok 5 # XFAIL known\nokay then\n# Totals: pass:1\n",
            &[
                ("Basic COW after fork() ... with base page", Pass),
                ("transact_test Extra pages", Pass),
                ("vmsplice() at ADDRESS 4 KiB", Fail),
                ("io_uring is missing", Skip),
                ("guard_regions.anon.basic", Skip),
                ("known", Pass),
            ],
        );
    }

    #[test]
    fn a_failure_without_a_name_is_not_lost() {
        expect(
            "not ok 5\nok 6\nnot ok 7 # exit=1\nok 8 \nnot ok\nnot ok 9 No KSMBail out! 2 out of 8 tests failed\n",
            &[("test 5", Fail), ("test 7", Fail), ("No KSM", Fail)],
        );
    }

    #[test]
    fn userfaultfd_is_read() {
        expect(
            "Testing UFFDIO_API (with syscall)... done\nTesting wp-fork on anon... failed [reason: x]\n\
             Testing minor on hugetlb... skipped [reason: feature missing]\nUserfaults unit tests: pass=1\n",
            &[
                ("UFFDIO_API (with syscall)", Pass),
                ("wp-fork on anon", Fail),
                ("minor on hugetlb", Skip),
            ],
        );
    }

    #[test]
    fn khugepaged_is_read() {
        expect(
            "Save settings... \x1b[32mOK\x1b[0m\n\nRun test: collapse_full (khugepaged:anon)\n\
             Collapse... \x1b[32mOK\x1b[0m\n\nRun test: collapse_fork (madvise:anon)\n\
             Share... \x1b[32mOK\x1b[0m\nCheck... \x1b[31mFail\x1b[0m\n",
            &[
                ("collapse_full (khugepaged:anon)", Pass),
                ("collapse_fork (madvise:anon)", Fail),
            ],
        );
    }

    #[test]
    fn programs_have_names_of_their_own() {
        let mut names: Vec<_> = PROGRAMS.iter().map(|h| h.program).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
