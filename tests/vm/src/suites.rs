// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/suites`: test suites that nobody here wrote, each program with stock forks, then with
//! every fork armed.

mod build;

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{ensure, Context, Result};
use clap::ValueEnum;

use crate::checkout::{repository_root, Checkout};
use crate::interrupt;
use crate::kernels::{self, Kernel};
use crate::prepare;
use crate::root::has_valkey;
use crate::vm::{Streams, VmOptions};

/// Run test suites that nobody here wrote in VMs
///
/// Each program runs with stock forks, then with every fork armed. A case that passes stock and
/// does not pass armed is a defect, and so are leaked kernel memory, a module that cannot be
/// unloaded and a complaint in the kernel's log. Without options all suites on all kernels, which
/// takes hours.
///
/// Results are in target/suites: KERNEL-SUITE.jsonl, lines of each program and of each boot's
/// end, appended to, and KERNEL-SUITE.log, what the programs of the last run said. The table takes
/// each program from the last boot that ran it, if that boot came to its end and the kernel's log
/// was clean. A defect stays until the module is another one: where the suites' own code was to
/// blame, move the .jsonl away.
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/suites [OPTIONS] [PROGRAM]...")]
#[command(after_help = "\
They run in a larger guest root (scripts/root --suites); what has to be built is built in there.

Exit status: 0, all passed; 1, a defect, or it could not be run; 2, usage; 130, interrupted.
The last line is \"N passed, N failed, N skipped\", of programs.")]
pub struct SuitesOptions {
    /// Kernel to run them on (may be repeated) [default: all that the module loads on]
    #[arg(long = "kernel", value_name = "KERNEL")]
    kernels: Vec<&'static Kernel>,
    /// Suite to run (may be repeated) [default: kselftests, stress-ng, redis and valkey]
    #[arg(long = "suite", value_enum, value_name = "NAME")]
    suites: Vec<Suite>,
    /// Run nothing, write docs/suites.md from the results
    #[arg(long)]
    table: bool,
    /// Only these programs, of the one suite that is named
    #[arg(value_name = "PROGRAM")]
    programs: Vec<String>,
}

/// A suite, or the part of it that is run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// The kernel's own tests of mm/
    Kselftests,
    /// Stressors of memory and of fork
    StressNg,
    /// The server's Tcl suite, the units that fork
    Redis,
    /// The same of Valkey, which not every kernel's Debian has
    Valkey,
    /// All units
    RedisWhole,
    /// All units
    ValkeyWhole,
}

impl Suite {
    /// Those that run when none is named.
    const USUAL: [Suite; 4] = [
        Suite::Kselftests,
        Suite::StressNg,
        Suite::Redis,
        Suite::Valkey,
    ];

    /// As the command line has it, here and in the guest.
    fn name(self) -> &'static str {
        match self {
            Suite::Kselftests => "kselftests",
            Suite::StressNg => "stress-ng",
            Suite::Redis => "redis",
            Suite::Valkey => "valkey",
            Suite::RedisWhole => "redis-whole",
            Suite::ValkeyWhole => "valkey-whole",
        }
    }

    /// Whether the Debian of that kernel has what it is about.
    fn is_for(self, kernel: &Kernel) -> bool {
        match self {
            Suite::Valkey | Suite::ValkeyWhole => has_valkey(kernel),
            Suite::Kselftests | Suite::StressNg | Suite::Redis | Suite::RedisWhole => true,
        }
    }

    /// The selftests want swap, which is made on /dev/vda, and two memory nodes; the test of
    /// migration keeps a CPU busy by itself and wants two more.
    fn vm(self) -> VmOptions {
        let vm = VmOptions {
            memory: "4G".into(),
            timeout: 36000,
            ..VmOptions::default()
        };
        match self {
            Suite::Kselftests => VmOptions {
                cpus: 3,
                disk: Some(1 << 30),
                append: vec!["numa=fake=2".into()],
                ..vm
            },
            _ => vm,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// In the place of an exit status, if a suite could not be run.
const EXIT_BROKEN: u8 = 1;
/// Where results go, relative to the repository root.
const RESULTS: &str = "target/suites";
/// Runs the programs in the guest; on the host it files how a boot ended, and makes the table.
const PROGRAM: &str = "asyncfork-suites";
/// Preloaded into programs that use little memory, or do not fork.
const SPREAD: &str = "libasyncfork_spread.so";

/// Runs the suites, or writes the table, in the current directory, the repository root. The exit
/// status says whether all passed.
///
/// # Errors
/// Nothing could be run at all, or Ctrl-C. A suite that cannot be run has failed.
pub fn run(options: &SuitesOptions) -> Result<ExitCode> {
    interrupt::catch()?;
    let root = repository_root()?;
    if options.table {
        prepare::programs(&root, &[PROGRAM])?;
        return table(&root).map(|()| ExitCode::SUCCESS);
    }
    prepare::programs(&root, &[PROGRAM, "asyncfork-spread"])?;
    prepare::library(&root)?;
    fs::create_dir_all(root.join(RESULTS))?;
    let mut sum = Counts::default();
    for (kernel, suite) in options.runs() {
        println!("== {suite} on {kernel}");
        sum.add(match run_one(suite, kernel, &options.programs) {
            Ok((counts, status)) => {
                if status != 0 && counts.failed == 0 {
                    println!("FAILED {suite} on {kernel}: exit status {status}");
                }
                counts.judged(status)
            }
            Err(error) if interrupt::requested() => return Err(error),
            Err(error) => {
                println!("FAILED {suite} on {kernel}: {error:#}");
                Counts::default().judged(EXIT_BROKEN)
            }
        });
    }
    println!("{sum}");
    Ok(match sum.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

impl SuitesOptions {
    /// What is wrong with them together.
    pub fn mistake(&self) -> Option<&'static str> {
        (!self.programs.is_empty() && self.suites.len() != 1)
            .then_some("programs are of one suite: name it with --suite")
    }

    /// What to run, kernel by kernel.
    fn runs(&self) -> Vec<(&'static Kernel, Suite)> {
        let kernels = match self.kernels.as_slice() {
            [] => kernels::whole().collect(),
            kernels => kernels.to_vec(),
        };
        let suites = match self.suites.as_slice() {
            [] => &Suite::USUAL,
            suites => suites,
        };
        let on = |kernel| suites.iter().map(move |&suite| (kernel, suite));
        let runs = kernels.into_iter().flat_map(on);
        runs.filter(|&(kernel, suite)| suite.is_for(kernel))
            .collect()
    }
}

/// Writes docs/suites.md, at once.
fn table(root: &Path) -> Result<()> {
    let (new, path) = (root.join("docs/suites.md.new"), root.join("docs/suites.md"));
    let mut command = program(&root.join(prepare::PROGRAMS), root);
    command.args(["table", RESULTS]).stdout(File::create(&new)?);
    prepare::step(&mut command)?;
    fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
}

/// [`PROGRAM`] of a directory.
fn program(dir: &Path, root: &Path) -> Command {
    let mut command = Command::new(dir.join(PROGRAM));
    command.current_dir(root);
    command
}

/// Runs programs of a suite, all if none are named, on a kernel. What was counted, and the exit
/// status of the VM.
fn run_one(suite: Suite, kernel: &'static Kernel, programs: &[String]) -> Result<(Counts, u8)> {
    let checkout = Checkout::open_root(kernel, true)?;
    let module = prepare::module(&checkout, false)?;
    ensure!(
        checkout.root.join(&module).exists(),
        "the suites' root has kernel {}, and no module is built for that: delete the older of the \
         roots",
        checkout.release
    );
    build::suite(suite, &checkout)?;
    let results = checkout.root.join(RESULTS);
    // Copies, as a build may go on while the guest reads them.
    let bin = results.join(format!("bin/{kernel}-{suite}"));
    copy_all(&checkout.root, &module, &bin)?;
    let boot = Boot {
        suite,
        kernel,
        id: boot_id()?,
    };
    let out = results.join(format!("{kernel}-{suite}.out"));
    let streams = Streams::inherit().copied_to(File::create(&out)?);
    let vm = VmOptions {
        share: vec![results],
        ..suite.vm()
    };
    let status = prepare::boot(
        &checkout,
        &vm,
        &boot.command(&bin, &vm.share[0], programs),
        streams,
    )?;
    let mut ended = program(&bin, &checkout.root);
    prepare::step(ended.args(boot.ended(status)))?;
    Ok((Counts::read(&fs::read_to_string(&out)?), status))
}

/// Copies all that runs in the guest, and the module.
fn copy_all(root: &Path, module: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let programs = root.join(prepare::PROGRAMS);
    for from in [
        programs.join(PROGRAM),
        root.join(prepare::LIBRARY),
        programs.join(SPREAD),
        root.join(module),
    ] {
        let name = from.file_name().context("no file name")?;
        fs::copy(&from, to.join(name))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// A name that no boot had before.
fn boot_id() -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(format!("{}-{}", now.as_secs(), std::process::id()))
}

/// What results are filed under.
struct Boot {
    suite: Suite,
    kernel: &'static Kernel,
    id: String,
}

impl Boot {
    /// The command line in the guest; `bin` is what [`copy_all`] has filled.
    fn command(&self, bin: &Path, results: &Path, programs: &[String]) -> Vec<String> {
        let file = |name: &str| bin.join(name).display().to_string();
        let mut command = vec![file(PROGRAM), "run".into()];
        command.extend(self.place(results));
        command.push(format!("--module={}", file("asyncfork.ko")));
        // The module does not load on it by itself.
        if self.kernel.releases.is_empty() {
            command.push("--module-parameter=allow_untested=1".into());
        }
        command.push(format!("--shim={}", file("libasyncfork.so")));
        command.push(format!("--spread={}", file(SPREAD)));
        command.push("--".into());
        command.extend(programs.iter().cloned());
        command
    }

    /// Files, on the host, how it ended.
    fn ended(&self, status: u8) -> Vec<String> {
        let mut words = vec!["ended".to_owned(), format!("--status={status}")];
        words.extend(self.place(Path::new(RESULTS)));
        words
    }

    fn place(&self, results: &Path) -> [String; 4] {
        [
            format!("--suite={}", self.suite),
            format!("--series={}", self.kernel),
            format!("--boot={}", self.id),
            format!("--results={}", results.display()),
        ]
    }
}

/// Numbers of programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    /// The last that a run printed; a run that printed none has counted nothing.
    fn read(out: &str) -> Counts {
        out.lines().rev().find_map(Self::parse).unwrap_or_default()
    }

    fn parse(line: &str) -> Option<Counts> {
        let mut numbers = line.split(", ");
        let mut number = |what| numbers.next()?.strip_suffix(what)?.parse().ok();
        let counts = Counts {
            passed: number(" passed")?,
            failed: number(" failed")?,
            skipped: number(" skipped")?,
        };
        (counts.to_string() == line).then_some(counts)
    }

    /// Anything but a clean end is a failure, whatever was counted, the kernel's complaints above
    /// all.
    fn judged(mut self, status: u8) -> Counts {
        if status != 0 {
            self.failed = self.failed.max(1);
        }
        self
    }

    fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: SuitesOptions,
    }

    fn parse(words: &str) -> SuitesOptions {
        let words = std::iter::once("suites").chain(words.split_whitespace());
        Line::parse_from(words).options
    }

    fn runs(words: &str) -> Vec<String> {
        let runs = parse(words).runs();
        runs.iter()
            .map(|(kernel, suite)| format!("{kernel} {suite}"))
            .collect()
    }

    #[test]
    fn a_suite_is_called_as_on_the_command_line() {
        for &suite in Suite::value_variants() {
            assert_eq!(Suite::from_str(suite.name(), false), Ok(suite));
        }
    }

    #[test]
    fn all_suites_run_on_a_kernel_of_each_series_that_has_them() {
        let all = runs("");
        let kernels: Vec<_> = kernels::whole().collect();
        let without_valkey = kernels.iter().filter(|kernel| !has_valkey(kernel));
        assert_eq!(all.len(), 4 * kernels.len() - without_valkey.count());
        assert!(!all.contains(&"6.1 valkey".to_owned()), "{all:?}");
        assert_eq!(all[..2], ["6.1 kselftests", "6.1 stress-ng"]);
        assert!(all.contains(&"7.2 valkey".to_owned()), "{all:?}");
    }

    #[test]
    fn kernels_and_suites_are_named_one_by_one() {
        let words = "--kernel 7.2 --suite redis-whole --kernel=debug --suite=valkey";
        let want = [
            "7.2 redis-whole",
            "7.2 valkey",
            "debug redis-whole",
            "debug valkey",
        ];
        assert_eq!(runs(words), want);
        assert_eq!(runs("--kernel 6.1 --suite valkey-whole"), [""; 0]);
    }

    #[test]
    fn programs_are_of_one_suite() {
        let programs = parse("--suite stress-ng brk fork");
        assert_eq!(
            (programs.mistake(), &programs.programs[..]),
            (None, &["brk".to_owned(), "fork".to_owned()][..])
        );
        for words in ["brk", "--suite redis --suite valkey brk"] {
            assert!(parse(words).mistake().is_some(), "{words}");
        }
        assert_eq!(parse("--suite redis --suite valkey").mistake(), None);
    }

    #[test]
    fn the_guest_is_told_where_things_are_and_what_the_boot_is_called() {
        let boot = |name| Boot {
            suite: Suite::StressNg,
            kernel: kernels::find(name).unwrap(),
            id: "17-4".into(),
        };
        let command = |name| {
            let (bin, results) = (Path::new("/r/t/bin/x"), Path::new("/r/t"));
            boot(name).command(bin, results, &["ksm_tests -M".to_owned()])
        };
        assert_eq!(
            command("6.12"),
            [
                "/r/t/bin/x/asyncfork-suites",
                "run",
                "--suite=stress-ng",
                "--series=6.12",
                "--boot=17-4",
                "--results=/r/t",
                "--module=/r/t/bin/x/asyncfork.ko",
                "--shim=/r/t/bin/x/libasyncfork.so",
                "--spread=/r/t/bin/x/libasyncfork_spread.so",
                "--",
                "ksm_tests -M",
            ]
        );
        let untested = "--module-parameter=allow_untested=1".to_owned();
        for (name, want) in [("6.1", false), ("debug", true), ("kcsan", true)] {
            assert_eq!(command(name).contains(&untested), want, "{name}");
        }
        assert_eq!(
            boot("6.1").ended(123).join(" "),
            "ended --status=123 --suite=stress-ng --series=6.1 --boot=17-4 --results=target/suites"
        );
    }

    #[test]
    fn only_the_selftests_get_swap_and_two_nodes() {
        let vm = Suite::Kselftests.vm();
        assert_eq!(
            (vm.cpus, vm.disk, vm.append.join(" ")),
            (3, Some(1 << 30), "numa=fake=2".into())
        );
        let vm = Suite::Redis.vm();
        assert_eq!(
            (vm.cpus, vm.disk, vm.append.len()),
            (VmOptions::default().cpus, None, 0)
        );
    }

    #[test]
    fn the_last_counts_are_the_suites() {
        let out = "1 passed, 0 failed, 0 skipped\nok brk: 3 passed, 9 failed, 9 skipped\n\
                   12 passed, 3 failed, 4 skipped\nvm: gone\n";
        let counts = Counts::read(out);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (12, 3, 4));
        for other in [
            "",
            "x 1 passed, 2 failed, 3 skipped",
            "1 passed, 2 failed, 3 skipped, 4 more",
        ] {
            assert_eq!(Counts::read(other), Counts::default(), "{other}");
        }
    }

    #[test]
    fn anything_but_a_clean_end_is_a_failure() {
        let counts = Counts::read("5 passed, 0 failed, 1 skipped");
        assert_eq!(counts.judged(0).failed, 0);
        assert_eq!(counts.judged(123).failed, 1);
        assert_eq!(
            Counts {
                failed: 2,
                ..counts
            }
            .judged(1)
            .failed,
            2
        );
    }
}
