// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole gate: what must hold before a change goes in.

mod judge;
mod side_by_side;
mod skips;
mod stage;
mod suite;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, ensure, Context, Result};

use crate::accel::{self, Accel, AccelChoice};
use crate::checkout::{make_debian11, Checkout};
use crate::kernels::{self, Kernel};
use crate::verdict::Summary;
use crate::vm::{host_has_la57, La57};

use side_by_side::{side_by_side, usual_jobs};
use suite::{is_long, kinds, levels, plan, Kind, Row, Suite, GUEST};

/// Run all checks and tests: on the host, then in VMs
#[derive(Debug, Clone, clap::Args)]
#[command(override_usage = "scripts/test [OPTIONS] [FILTER]...")]
#[command(after_help = "\
Without FILTER: format, clippy, unit and host tests, packages, then for each kernel the
module's build and VM suites. The first kernel of each Debian and the newest are tested
in full: sparse, checkpatch and a scan for indirect calls; \"full\", all tests, with
4-level page tables, memory poisoning and two memory nodes; on the first and the newest
\"faults\", those that need a module built with fault injection, with that module and call
depth tracking; and once for each Debian \"systemd\", those of services and packages, with
systemd as PID 1. Kernels between, and a flavour of the first and of the newest, go through
\"quick\", a choice of the tests, with 5-level page tables and memory that can be taken
offline. With --full, all kernels are tested in full, those without a flavour with 5-level
page tables as well.
With FILTER: builds, and the named VM tests alone, with 4-level page tables; with
the module for \"faults\" if all of them need it.

A test may be skipped only where tests/vm/src/gate/skips.rs expects it.

Exit status: 0 if nothing failed, 1 if something did, 125 if the gate could not
run, 130 if interrupted. The last line is \"N passed, N failed, N skipped\".")]
pub struct GateOptions {
    /// VM tests to run: parts of their names
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Kernel to test (may be repeated) [default: all that users have; with FILTER, one of
    /// each series]
    #[arg(long = "kernel", value_name = "KERNEL")]
    pub kernels: Vec<&'static Kernel>,
    /// Only the quick VM tests, with 4-level page tables
    #[arg(long, conflicts_with = "filters")]
    pub quick: bool,
    /// Every kernel in full: an hour and a half
    #[arg(long, conflicts_with_all = ["filters", "quick"])]
    pub full: bool,
    /// Random calls of all ioctls to the last, a million: minutes [default: with --full, and
    /// on the kernel of scripts/debug-kernel, in one suite of a kernel]
    #[arg(long)]
    pub long: bool,
    /// Seed of the random tests [default: a new one, printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// One suite, with 5-level page tables on or off
    #[arg(long)]
    pub la57: Option<La57>,
    /// What the VMs run on
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub accel: AccelChoice,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "8G")]
    pub memory: String,
    /// VMs side by side [default: 2 if memory and CPUs suffice, otherwise 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub jobs: Option<u8>,
}

/// Runs the gate in the current directory, the repository root, and sums it up.
/// Errors: it could not run, or Ctrl-C; what a stage or a test has to say is in
/// the summary.
pub fn run(options: &GateOptions) -> Result<Summary> {
    let begin = Instant::now();
    let seed = options.seed.unwrap_or_else(new_seed);
    let checkouts = open_checkouts(options)?;
    let [Checkout { root, .. }, ..] = checkouts.as_slice() else {
        bail!("no kernel to test");
    };
    let releases: Vec<&str> = checkouts.iter().map(|b| b.release.as_str()).collect();
    println!("test: kernels {}, seed {seed}", releases.join(", "));
    let mut gate = Gate {
        root,
        logs: checkouts[0].state_dir().join("logs"),
        summary: Summary::default(),
    };
    fs::create_dir_all(&gate.logs)?;

    if options.filters.is_empty() {
        gate.host_checks()?;
    }
    let built = gate.stage(
        "build",
        "cargo build --release --workspace --exclude asyncfork-vm --exclude asyncfork-so --exclude asyncfork-cli",
    )? & gate.stage("library", "scripts/library")?
        & gate.stage("command", "scripts/command")?
        & gate.stage("libcs", "scripts/libcs")?;
    let faults = match built {
        true => fault_tests(root)?,
        false => Vec::new(),
    };
    let mut suites = Vec::new();
    for checkout in &checkouts {
        let kernel = checkout.kernel;
        let kmod = |options| format!("scripts/kmod --kernel {kernel}{options}");
        let mut good = gate.stage(&format!("{kernel} kmod"), &kmod(""))?;
        let accel = accel::choose(checkout, options.accel)?.accel;
        let kinds = kinds(kernel, options, five_levels(accel)?);
        // Packages of an older release have that module, too.
        let injects = |kind: &Kind| kind.may_inject() || *kind == Kind::Systemd;
        if kinds.iter().any(|(kind, _)| injects(kind)) {
            good &= gate.stage(&format!("{kernel} kmod-faults"), &kmod(" --faults"))?;
        }
        if options.filters.is_empty() && (kernel.is_whole() || options.full) {
            gate.stage(&format!("{kernel} kmod-check"), &kmod(" --check"))?;
        }
        if kinds.is_empty() {
            // It builds; another kernel stands for it.
            continue;
        }
        if built && good {
            suites.extend(gate.suites(checkout, accel, &kinds, &faults, options, seed)?);
        } else {
            gate.summary.fail(
                format!("{kernel} VM suites"),
                "not run: the build failed",
                format!("scripts/test --kernel {kernel}"),
            );
        }
    }
    gate.packages(&suites, options)?;
    let rows = gate.vm_suites(&suites, options, seed)?;
    println!("\ntest: took {}", minutes(begin.elapsed()));
    for row in rows {
        println!("{row}");
    }
    Ok(gate.summary)
}

/// The kernels asked for, or those that users have. Their guest roots, and that of the
/// older C libraries, are made side by side where they are missing.
fn open_checkouts(options: &GateOptions) -> Result<Vec<Checkout>> {
    let wanted = wanted(options);
    thread::scope(|scope| {
        let debian11 = scope.spawn(make_debian11);
        let threads: Vec<_> = wanted
            .into_iter()
            .map(|kernel| scope.spawn(move || Checkout::open(kernel)))
            .collect();
        debian11.join().expect("making a root does not panic")?;
        threads
            .into_iter()
            .map(|t| t.join().expect("opening a checkout does not panic"))
            .collect()
    })
}

fn wanted(options: &GateOptions) -> Vec<&'static Kernel> {
    match &*options.kernels {
        [] if options.filters.is_empty() => kernels::accepted().collect(),
        [] => kernels::whole().collect(),
        some => kernels::all().iter().filter(|k| some.contains(k)).collect(),
    }
}

/// Whether the guests may have 5-level page tables: those that are emulated always.
fn five_levels(accel: Accel) -> Result<bool> {
    Ok(accel == Accel::Tcg || host_has_la57()?)
}

/// The tests that need the module with fault injection. Errors: the test program does not
/// run, or lacks a test that may be skipped.
fn fault_tests(root: &Path) -> Result<Vec<String>> {
    let tests = |kind: Kind| plan(root, &kind.selection(&[]));
    skips::check(&[tests(Kind::Full)?, tests(Kind::Systemd)?].concat())?;
    plan(root, &Kind::Faults.selection(&[]))
}

/// Where the guests look for the packages under test.
const PACKAGES: &str = "target/packages/tested";

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
        self.stage("rust-1.85", "scripts/rust-1.85")?;
        self.cargo_test()
    }

    /// The packages for those suites that have systemd, and where all is tested what dpkg
    /// and DKMS make of them.
    fn packages(&mut self, suites: &[Suite], options: &GateOptions) -> Result<()> {
        let systemd = suites.iter().filter(|suite| suite.kind == Kind::Systemd);
        let modules: String = systemd
            .map(|suite| format!(" --modules {}", suite.checkout.kernel))
            .collect();
        if modules.is_empty() {
            return Ok(());
        }
        let package = format!("scripts/package --version 0.1.0~test --out {PACKAGES}{modules}");
        if self.stage("packages", &package)? && options.filters.is_empty() {
            let depth = if options.full {
                ""
            } else {
                " --quick --debian 12"
            };
            let test = format!("packaging/test-packages --packages {PACKAGES}{depth}");
            self.stage("packages-installed", &test)?;
        }
        Ok(())
    }

    /// The VM suites of a kernel.
    fn suites<'b>(
        &mut self,
        checkout: &'b Checkout,
        accel: Accel,
        kinds: &[(Kind, La57)],
        faults: &'b [String],
        options: &GateOptions,
        seed: u64,
    ) -> Result<Vec<Suite<'b>>> {
        let mut suites = Vec::new();
        for &(kind, la57) in kinds {
            let name = format!("{} {} {}-level", checkout.kernel, kind.name(), levels(la57));
            if la57 == La57::On && !five_levels(accel)? {
                println!("skip {name}: KVM on a CPU without la57; --accel tcg has it");
                self.summary.skipped += 1;
                continue;
            }
            let selection = kind.selection(&options.filters);
            let plan = plan(self.root, &selection)?;
            if plan.is_empty() {
                continue;
            }
            let long = is_long(checkout.kernel, kind, la57, options);
            let injects = kind.may_inject() && plan.iter().all(|name| faults.contains(name));
            suites.push(Suite {
                name,
                checkout,
                kind,
                la57,
                rerun: format!(
                    "scripts/test --kernel {} --la57 {la57}{} --seed {seed}",
                    checkout.kernel,
                    if long { " --long" } else { "" }
                ),
                long,
                // With the one for fault injection, tests that do not need it would not test
                // what users have.
                module: match injects {
                    true => checkout.faults_module(),
                    false => checkout.module(),
                },
                selection,
                plan,
                without: if injects { &[] } else { faults },
                emulated: accel == Accel::Tcg,
            });
        }
        ensure!(
            !suites.is_empty(),
            "no VM test's name contains {}; {GUEST} test --list prints the names",
            options.filters.join(" or ")
        );
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

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Short enough to retype.
    now.map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007)
}

fn minutes(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn options(words: &[&str]) -> GateOptions {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: GateOptions,
        }
        let words = ["test"].iter().chain(words);
        <Cli as clap::Parser>::parse_from(words).options
    }

    #[test]
    fn kernels_are_named_one_by_one() {
        let names = |words: &[&str]| -> Vec<&str> {
            let kernels = wanted(&options(words)).into_iter();
            kernels.map(|kernel| &*kernel.name).collect()
        };
        let asked = names(&["--kernel", "7.2", "--kernel=6.12-cloud"]);
        assert_eq!(asked, ["6.12-cloud", "7.2"]);
        let all: Vec<&str> = kernels::accepted().map(|kernel| &*kernel.name).collect();
        assert_eq!(names(&[]), all);
        assert_eq!(names(&["--full"]), all);
        let some = names(&["munmap"]);
        assert!(
            some.contains(&"6.12") && !some.contains(&"6.12-cloud") && !some.contains(&"debug")
        );
    }
}
