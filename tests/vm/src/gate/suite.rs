// SPDX-License-Identifier: MIT OR Apache-2.0
//! A boot of one kernel for some tests.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::judge::judge;
use super::skips::Guest;
use super::{minutes, GateOptions};
use crate::checkout::Checkout;
use crate::dmesg;
use crate::kernels::{self, Build, Kernel};
use crate::verdict::{parse_results, Summary};
use crate::vm::{La57, Streams, VmOptions};

/// Extra words for the kernel with 4-level page tables, the usual kind: freed
/// pages and objects are poisoned, so that a stray write to a page table given
/// back too early is noticed. Two memory nodes let pages migrate.
const WORDS_4: &str = "page_poison=1 slub_debug=FZP";
const NODES_4: u32 = 2;
/// And with 5-level ones: memory that can be taken offline.
const WORDS_5: &str = "movablecore=1G";
/// And for the suite with fault injection, which is short: call depth tracking
/// (6.12 and later on Intel), which redirects the kernel's calls and slows it down.
/// One node: on Intel, 7.2 warns of a cache that two share.
const WORDS_FAULTS: &str = "page_poison=1 slub_debug=FZP retbleed=stuff,force spectre_v2=retpoline";
const CPU_FAULTS: &str = "vendor=GenuineIntel";
/// Instead of those, for the kernels of scripts/debug-kernel: KASAN sees more than
/// poison does, and with poison, too, nothing would ever end.
const WORDS_DEBUG: &str = "kmemleak=on";
/// No VM suite takes longer than this on a stock kernel, nor do random calls to the last of them.
const SUITE_SECONDS: u64 = 1500;

/// The test program, which runs in the guest.
pub(super) const GUEST: &str = "target/release/asyncfork-guest";

/// The names of the VM tests that are to give a verdict.
pub(super) fn plan(root: &Path, selection: &[String]) -> Result<Vec<String>> {
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

/// What a suite consists of; the longest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Full,
    Quick,
    /// Those that need the module with fault injection; with the shipped one they
    /// are skipped.
    Faults,
    /// Those of services, in a guest whose PID 1 is systemd.
    Systemd,
    /// The others that FILTER names.
    Named,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Full => "full",
            Kind::Quick => "quick",
            Kind::Faults => "faults",
            Kind::Systemd => "systemd",
            Kind::Named => "named",
        }
    }

    /// Whether its tests may get the module with fault injection: if all of them need it.
    pub(super) fn may_inject(self) -> bool {
        matches!(self, Kind::Faults | Kind::Named)
    }

    /// The test program's arguments that choose the tests.
    pub(super) fn selection(self, filters: &[String]) -> Vec<String> {
        let suite = match self {
            Kind::Quick => "quick",
            Kind::Faults => "faults",
            Kind::Systemd => "systemd",
            Kind::Full | Kind::Named => "full",
        };
        let mut words = vec!["--suite".to_owned(), suite.to_owned()];
        words.extend(filters.iter().cloned());
        words
    }
}

/// The suites that a kernel goes through. `five`: page tables may have 5 levels here.
pub(super) fn kinds(kernel: &Kernel, options: &GateOptions, five: bool) -> Vec<(Kind, La57)> {
    use {Kind::*, La57::*};
    let asked = options.kernels.contains(&kernel) || options.full;
    let main = || kernels::main().any(|other| other == kernel);
    let whole = !kernel.is_stock() || if asked { kernel.is_whole() } else { main() };
    let one = match options.filters.is_empty() {
        false => Named,
        true if options.quick || !(whole || options.full) => Quick,
        true => Full,
    };
    // Another kernel stands for it.
    if one == Quick && !asked && !whole && kernels::samples().all(|other| other != kernel) {
        return Vec::new();
    }
    // Of the kernels of a Debian one is enough; and those of scripts/debug-kernel are slow.
    let systemd = kernels::whole().find(|other| other.root == kernel.root) == Some(kernel);
    let systemd = (systemd || options.full && whole) && kernel.is_stock();
    let systemd = systemd.then_some((Systemd, Off));
    match options.la57 {
        Some(la57) if one == Named => vec![(one, la57), (Systemd, la57)],
        Some(la57) => vec![(one, la57)],
        None if one == Named => vec![(one, Off), (Systemd, Off)],
        None if one == Full && options.full && whole => {
            let kinds = [(Full, Off), (Full, On), (Faults, Off)];
            kinds.into_iter().chain(systemd).collect()
        }
        None if one == Full => {
            // The module's errors hardly differ by kernel: the two ends will do.
            let faults = asked || !kernel.is_stock() || kernels::is_end(kernel);
            let faults = faults.then_some((Faults, Off));
            [(Full, Off)]
                .into_iter()
                .chain(faults)
                .chain(systemd)
                .collect()
        }
        // What the tests in full leave out, if there are any of this series.
        None if one == Quick && !whole && !options.quick && five => vec![(Quick, On)],
        None => vec![(one, Off)],
    }
}

/// Whether a suite makes its random calls to the last of them: on request, and in one suite of
/// each series and of the kernel that checks itself.
pub(super) fn is_long(kernel: &Kernel, kind: Kind, la57: La57, options: &GateOptions) -> bool {
    let series = options.full && kernel.is_whole();
    let one = matches!(kind, Kind::Full | Kind::Named) && la57 == La57::Off;
    options.long || one && (series || kernel.build == Build::Debug)
}

/// A boot of one kernel for some tests.
pub(super) struct Suite<'a> {
    /// Kernel and kind.
    pub(super) name: String,
    pub(super) checkout: &'a Checkout,
    pub(super) kind: Kind,
    pub(super) la57: La57,
    /// The command that repeats it; a test's name can follow.
    pub(super) rerun: String,
    /// Random calls are made to the last of them.
    pub(super) long: bool,
    /// The module, relative to the repository root.
    pub(super) module: String,
    pub(super) selection: Vec<String>,
    /// The tests that are to give a verdict.
    pub(super) plan: Vec<String>,
    /// Tests that the module was not built for.
    pub(super) without: &'a [String],
    pub(super) emulated: bool,
}

impl Suite<'_> {
    /// Runs it; its lines begin with `prefix`.
    pub(super) fn run(
        &self,
        options: &GateOptions,
        seed: u64,
        prefix: &str,
    ) -> Result<(Row, Summary)> {
        let state = self.checkout.state_dir();
        let results = tempdir(&state.join(self.name.replace(' ', "-")))?;
        let command = self.command(seed, &results);
        println!("{prefix}==> {}", command.join(" "));
        let vm = VmOptions {
            memory: options.memory.clone(),
            la57: Some(self.la57),
            append: vec![self.words().to_owned()],
            nodes: self.nodes(),
            cpu: (self.kind == Kind::Faults).then(|| CPU_FAULTS.to_owned()),
            accel: options.accel,
            systemd: self.kind == Kind::Systemd,
            timeout: SUITE_SECONDS
                * (1 + u64::from(self.long))
                * u64::from(self.checkout.kernel.slowness()),
            share: vec![results.clone()],
            ..VmOptions::default()
        };
        let begin = Instant::now();
        let report = vm.run(self.checkout, &command, Streams::prefixed(prefix))?;
        report.explain(prefix);
        let took = begin.elapsed();
        println!("{prefix}{} ({})", report.end, minutes(took));

        let text = fs::read_to_string(results.join("results.txt")).unwrap_or_default();
        let log = fs::read_to_string(report.kernel_log())?;
        let mut results = parse_results(&text);
        Guest {
            kernel: self.checkout.kernel,
            words: self.words(),
            nodes: self.nodes(),
            emulated: self.emulated,
            without: self.without,
        }
        .judge_skips(&mut results);
        let mut summary = Summary::default();
        judge(
            &mut summary,
            &self.name,
            &self.rerun,
            &report,
            &self.plan,
            &results,
            dmesg::last_test(&log),
        );
        let row = Row {
            name: self.name.clone(),
            release: self.checkout.release.clone(),
            kind: self.kind,
            la57: self.la57,
            passed: summary.passed,
            failed: summary.failures.len(),
            skipped: summary.skipped,
            boots: report.boots,
            took,
        };
        Ok((row, summary))
    }

    /// Words for the kernel's command line.
    fn words(&self) -> &'static str {
        match (self.kind, self.la57) {
            (Kind::Systemd, _) => "",
            (_, La57::Off) if self.checkout.kernel.slowness() > 1 => WORDS_DEBUG,
            (Kind::Faults, _) => WORDS_FAULTS,
            (_, La57::Off) => WORDS_4,
            (_, La57::On) => WORDS_5,
        }
    }

    /// Memory nodes.
    fn nodes(&self) -> u32 {
        match (self.kind, self.la57) {
            (Kind::Faults | Kind::Systemd, _) | (_, La57::On) => 1,
            (_, La57::Off) => NODES_4,
        }
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
        command.extend(self.long.then(|| "--long".to_owned()));
        command.extend(self.selection.iter().cloned());
        command
    }
}

/// Levels of the page tables.
pub(super) fn levels(la57: La57) -> u8 {
    match la57 {
        La57::On => 5,
        La57::Off => 4,
    }
}

/// A kernel's suite in the table at the end.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) release: String,
    pub(super) kind: Kind,
    pub(super) la57: La57,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    pub(super) boots: u32,
    pub(super) took: Duration,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {:<7} {}-level page tables  {:>3} passed, {:>2} failed, {:>2} skipped  {}",
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

/// An empty directory.
fn tempdir(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    ensure!(path.is_absolute(), "{} is relative", path.display());
    Ok(path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::tests::options;

    #[test]
    fn a_kernel_goes_through_the_suites_that_the_options_say() {
        use {Kind::*, La57::*};
        for (kernel, words, want) in [
            (
                "6.1",
                &[][..],
                &[(Full, Off), (Faults, Off), (Systemd, Off)][..],
            ),
            ("6.12", &[], &[(Full, Off), (Systemd, Off)]),
            (
                "6.12",
                &["--kernel", "6.12"],
                &[(Full, Off), (Faults, Off), (Systemd, Off)],
            ),
            (
                "6.12",
                &["--full"],
                &[(Full, Off), (Full, On), (Faults, Off), (Systemd, Off)],
            ),
            ("7.3", &[], &[(Full, Off), (Faults, Off)]),
            ("7.2", &[], &[(Quick, On)]),
            ("7.2", &["--kernel", "7.2"], &[(Full, Off), (Faults, Off)]),
            (
                "7.2",
                &["--full"],
                &[(Full, Off), (Full, On), (Faults, Off), (Systemd, Off)],
            ),
            ("6.12", &["--quick"], &[(Quick, Off)]),
            ("6.12", &["--la57", "on"], &[(Full, On)]),
            ("6.12", &["munmap"], &[(Named, Off), (Systemd, Off)]),
            (
                "6.12",
                &["--la57", "on", "munmap"],
                &[(Named, On), (Systemd, On)],
            ),
            ("7.3-cloud", &[], &[(Quick, On)]),
            ("7.3-cloud", &["--quick"], &[(Quick, Off)]),
            ("6.12-cloud", &[], &[]),
            ("6.12-cloud", &["--quick"], &[]),
            ("6.12-cloud", &["--kernel", "6.12-cloud"], &[(Quick, On)]),
            ("6.12-cloud", &["--full"], &[(Full, Off), (Faults, Off)]),
            ("7.3-cloud", &["--la57", "on"], &[(Quick, On)]),
            ("6.12-cloud", &["munmap"], &[(Named, Off), (Systemd, Off)]),
            ("debug", &["--full", "--la57", "off"], &[(Full, Off)]),
        ] {
            let kernel = kernels::find(kernel).unwrap();
            let got = kinds(kernel, &options(words), true);
            assert_eq!(got, want, "{kernel} {words:?}");
        }
        let cloud = kernels::find("7.3-cloud").unwrap();
        assert_eq!(kinds(cloud, &options(&[]), false), [(Quick, Off)]);
    }

    #[test]
    fn random_calls_are_all_made_once_for_each_series_and_on_the_debug_kernel() {
        use {Kind::*, La57::*};
        for (kernel, words, kind, la57, want) in [
            ("6.12", &[][..], Full, Off, false),
            ("6.12", &["--full"], Full, Off, true),
            ("6.12", &["--full"], Full, On, false),
            ("6.12", &["--full"], Faults, Off, false),
            ("6.12-cloud", &["--full"], Full, Off, false),
            ("6.12", &["--long", "random"], Named, Off, true),
            ("debug", &[], Full, Off, true),
            ("debug", &["random"], Named, Off, true),
            ("debug", &["--quick"], Quick, Off, false),
            ("kcsan", &[], Full, Off, false),
        ] {
            let kernel = kernels::find(kernel).unwrap();
            let long = is_long(kernel, kind, la57, &options(words));
            assert_eq!(long, want, "{kernel} {words:?} {kind:?}");
        }
    }

    fn checkout() -> Checkout {
        Checkout {
            root: "/repo".into(),
            kernel: kernels::find("6.12").unwrap(),
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
            (Kind::Systemd, &["a"], "--suite systemd a"),
            (Kind::Named, &["a", "b"], "--suite full a b"),
        ] {
            let filters: Vec<String> = filters.iter().map(|&f| f.to_owned()).collect();
            assert_eq!(kind.selection(&filters).join(" "), want);
        }
    }

    #[test]
    fn the_guest_gets_what_it_needs() {
        let checkout = checkout();
        let suite = Suite {
            name: "6.12 named".into(),
            checkout: &checkout,
            kind: Kind::Named,
            la57: La57::Off,
            rerun: "scripts/test --seed 7".into(),
            long: true,
            module: checkout.module(),
            selection: Kind::Named.selection(&["munmap".into()]),
            plan: vec!["munmap".into()],
            without: &[],
            emulated: true,
        };
        assert_eq!(
            suite.command(7, Path::new("/repo/target/vm/r")).join(" "),
            "target/release/asyncfork-guest test \
             --module target/kmod/6.12.1-amd64/asyncfork.ko \
             --shim target/release/libasyncfork.so \
             --results /repo/target/vm/r --seed 7 --long --suite full munmap"
        );
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
        let text = "7.2.12+deb13-amd64     quick   5-level page tables   60 passed,  0 failed,  1 skipped  2 min 05 s";
        assert_eq!(row.to_string(), text);
        let again = Row { boots: 2, ..row };
        assert_eq!(again.to_string(), format!("{text}, 2 boots"));
    }
}
