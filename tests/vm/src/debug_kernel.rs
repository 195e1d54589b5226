// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/debug-kernel`: Debian's kernel built with the kernel's own checkers switched on.
//!
//! The configuration is in `scripts/debug-kernel.config` and, for what the two kernels do
//! not have in common, in `scripts/debug-kernel-NAME.config`. Sources and compiler are those
//! of the root that `scripts/root --suites` makes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{bail, ensure, Context, Result};

use crate::checkout::repository_root;
use crate::kernels::{self, Kernel};
use crate::root::Root;
use crate::tools;
use crate::vm::last_lines;

/// Build Debian's kernel with the kernel's own checkers, and run the module's tests on it
///
/// Not part of scripts/test: everything is several times slower than on the stock kernel,
/// which itself is emulated. A build takes about half an hour on two CPUs and 3 GiB.
/// scripts/vm, scripts/kmod and scripts/test take --kernel debug and --kernel kcsan.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "\
scripts/debug-kernel [OPTIONS] [OPTIONS OF scripts/test] [NAME]...
       scripts/debug-kernel [OPTIONS] --build|--release",
    args_override_self = true
)]
pub struct DebugKernelOptions {
    /// KASAN, lockdep (PROVE_LOCKING), DEBUG_VM, page table check, sleeping in atomic
    /// context, debug objects, kmemleak, fault injection; the default
    #[arg(long, overrides_with = "kcsan")]
    debug: bool,
    /// Data races (KCSAN), DEBUG_VM
    #[arg(long, overrides_with = "debug")]
    kcsan: bool,
    /// Only build
    #[arg(long)]
    build: bool,
    /// Print the release; builds if need be
    #[arg(long)]
    release: bool,
    /// Options and names for scripts/test --kernel debug, or kcsan
    #[arg(
        value_name = "WORD",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

/// Lines of a failed build's log that are shown.
const SHOWN_LINES: usize = 20;

/// Builds the kernel if need be, and becomes `scripts/test`; or prints the release.
///
/// # Errors
/// It cannot be built, or another current directory than the repository root.
pub fn run(options: DebugKernelOptions) -> Result<()> {
    let options = options.sorted();
    let name = options.kernel();
    let kernel = kernels::find(name).with_context(|| format!("no kernel is named {name}"))?;
    let checkout = repository_root()?;
    let root = Root::of(&checkout, kernel, true)?;
    root.ensure(false)?;
    let release = root.release(kernel)?;
    if options.build || options.release {
        println!("{release}");
        return Ok(());
    }
    let mut test = Command::new(checkout.join("scripts/test"));
    test.args(["--kernel", name]).args(options.words);
    Err(test.exec()).context("cannot run scripts/test")
}

impl DebugKernelOptions {
    fn kernel(&self) -> &'static str {
        match (self.debug, self.kcsan) {
            (false, true) => "kcsan",
            _ => "debug",
        }
    }

    /// With our options that came after the first word for `scripts/test`. Of the kernels
    /// the last counts.
    fn sorted(mut self) -> Self {
        self.words.retain(|word| {
            match word.as_str() {
                "--debug" => (self.debug, self.kcsan) = (true, false),
                "--kcsan" => (self.debug, self.kcsan) = (false, true),
                "--build" => self.build = true,
                "--release" => self.release = true,
                _ => return true,
            }
            false
        });
        self
    }
}

/// Builds `kernel` in the guest root, if it has not been built from what there is now. Its
/// release.
///
/// # Errors
/// It cannot be built, or files cannot be read.
pub fn ensure(checkout: &Path, root: &Path, kernel: &Kernel) -> Result<String> {
    let build = Build::new(checkout, root, kernel)?;
    let lock = checkout.join(format!("target/.debug-kernel-{kernel}.lock"));
    let _lock = tools::lock(&lock)?;
    if let Some(release) = build.done() {
        return Ok(release);
    }
    let log = format!("target/debug-kernel-{kernel}.log");
    eprintln!("debug-kernel: building {kernel}, log: {log}");
    let path = checkout.join(&log);
    let mut file = File::create(&path).with_context(|| format!("cannot write {log}"))?;
    build.run(&file).or_else(|error| {
        writeln!(file, "debug-kernel: {error:#}")?;
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        for line in last_lines(&text, SHOWN_LINES) {
            eprintln!("{line}");
        }
        bail!("the build failed, see {log}")
    })
}

/// A kernel that is to be built in a guest root.
struct Build<'a> {
    checkout: &'a Path,
    root: &'a Path,
    kernel: &'a Kernel,
    /// Files with what the configuration has beside the usual.
    fragments: [PathBuf; 2],
    /// Their text, all of which has to be in effect.
    wanted: String,
    /// Checksum of that.
    recipe: String,
}

impl<'a> Build<'a> {
    fn new(checkout: &'a Path, root: &'a Path, kernel: &'a Kernel) -> Result<Self> {
        let fragments = [
            checkout.join("scripts/debug-kernel.config"),
            checkout.join(format!("scripts/debug-kernel-{kernel}.config")),
        ];
        let mut wanted = String::new();
        for path in &fragments {
            wanted += &fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(Build {
            checkout,
            root,
            kernel,
            fragments,
            recipe: tools::sha256(&wanted, 16)?,
            wanted,
        })
    }

    /// Where it is built, as the root has it.
    fn tree_in_root(&self) -> String {
        format!("/build/linux-{}", self.kernel)
    }

    /// The same, for us.
    fn tree(&self) -> PathBuf {
        self.root.join(&self.tree_in_root()[1..])
    }

    /// Says what has been built, and from what.
    fn done_file(&self) -> PathBuf {
        self.tree().with_extension("done")
    }

    /// The release, if it is built from what there is now.
    fn done(&self) -> Option<String> {
        let done = fs::read_to_string(self.done_file()).ok()?;
        let (release, recipe) = done.trim_end().split_once(' ')?;
        (recipe == self.recipe).then(|| release.to_owned())
    }

    /// Builds and installs it. Whatever is printed goes to `log`.
    fn run(&self, log: &File) -> Result<String> {
        let (root, tree, done) = (self.root, self.tree(), self.done_file());
        let source = format!("linux-source-{}", self.kernel.series);
        let source = root.join(format!("usr/src/{source}.tar.xz"));
        ensure!(
            source.exists(),
            "{} is missing: delete {} and try again",
            source.display(),
            root.display()
        );
        if done.exists() {
            fs::remove_file(&done)?;
        }
        if !tree.join("Makefile").exists() {
            let new = tree.with_extension("new");
            remove(&new)?;
            fs::create_dir_all(&new)?;
            let mut tar = Command::new("tar");
            tar.arg("-xJf").arg(&source).arg("-C").arg(&new);
            logged(tar.arg("--strip-components=1"), log)?;
            fs::rename(&new, &tree)?;
        }
        let mut targets = Vec::new();
        for fragment in &self.fragments {
            let name = fragment.file_name().context("a fragment has no name")?;
            let name = name.to_string_lossy().replace('-', "_");
            fs::copy(fragment, tree.join("kernel/configs").join(&name))?;
            targets.push(name);
        }
        let mut config = self.make(&["-s", "x86_64_defconfig", "kvm_guest.config"]);
        logged(config.args(&targets), log)?;
        self.check_config(log)?;
        logged(&mut self.make(&["bzImage", "modules"]), log)?;
        let mut release = self.make(&["-s", "kernelrelease"]);
        let release = release.stderr(log.try_clone()?).output()?;
        ensure!(
            release.status.success(),
            "make kernelrelease: {}",
            release.status
        );
        let release = String::from_utf8(release.stdout)?.trim().to_owned();
        // Modules first: a kernel without them is worse than none.
        remove(&root.join("lib/modules").join(&release))?;
        logged(
            &mut self.make(&["-s", "INSTALL_MOD_STRIP=1", "modules_install"]),
            log,
        )?;
        for (from, to) in [
            ("arch/x86/boot/bzImage", "vmlinuz"),
            ("System.map", "System.map"),
            (".config", "config"),
        ] {
            fs::copy(tree.join(from), root.join(format!("boot/{to}-{release}")))?;
        }
        fs::write(&done, format!("{release} {}\n", self.recipe))?;
        Ok(release)
    }

    fn make(&self, words: &[&str]) -> Command {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut make = tools::in_root(self.checkout, Some(self.root), "env");
        make.args([
            "KBUILD_BUILD_USER=asyncfork",
            "KBUILD_BUILD_HOST=debug",
            "nice",
            "make",
        ])
        .args(["--no-print-directory", "-C", &self.tree_in_root()])
        .arg(format!("-j{jobs}"))
        .args(words);
        make
    }

    fn check_config(&self, mut log: &File) -> Result<()> {
        let config = fs::read_to_string(self.tree().join(".config"))?;
        let missing = not_in_effect(&self.wanted, &config);
        for line in &missing {
            writeln!(log, "debug-kernel: not in effect: {line}")?;
        }
        ensure!(
            missing.is_empty(),
            "the configuration is not what was asked for"
        );
        Ok(())
    }
}

/// The lines of the fragments that are not in .config: what olddefconfig drops in silence is
/// a checker that does not check.
fn not_in_effect<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let has = |line: &str| config.lines().any(|l| l == line);
    let has_name = |name: &str| {
        let set = |l: &str| l.strip_prefix(name).is_some_and(|l| l.starts_with('='));
        config.lines().any(set)
    };
    wanted
        .lines()
        .filter(|line| {
            let off = line
                .strip_prefix("# ")
                .and_then(|line| line.strip_suffix(" is not set"));
            match off {
                Some(name) if name.starts_with("CONFIG_") => has_name(name),
                _ => line.starts_with("CONFIG_") && !has(line),
            }
        })
        .collect()
}

/// Runs a command whose output goes to the log.
fn logged(command: &mut Command, log: &File) -> Result<()> {
    let status = command
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .status()?;
    let program = command.get_program().to_string_lossy();
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

/// Removes a directory, if it is there.
fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_dropped_is_found() {
        let config =
            "CONFIG_KASAN=y\nCONFIG_LOCALVERSION=\"-x\"\n# CONFIG_A is not set\nCONFIG_B=m\n";
        let good =
            "# a comment\nCONFIG_KASAN=y\n# CONFIG_A is not set\n# CONFIG_NONE is not set\n\n";
        assert_eq!(not_in_effect(good, config), [""; 0]);
        let bad = "CONFIG_KASAN=n\nCONFIG_MISSING=y\nCONFIG_A=y\n# CONFIG_B is not set\n";
        assert_eq!(not_in_effect(bad, config), bad.lines().collect::<Vec<_>>());
    }

    #[test]
    fn another_configuration_is_another_kernel() {
        let dir = std::env::temp_dir().join(format!("asyncfork-debug-{}", std::process::id()));
        let kernel = kernels::find("debug").unwrap();
        fs::create_dir_all(dir.join("scripts")).unwrap();
        fs::create_dir_all(dir.join("root/build")).unwrap();
        fs::write(dir.join("scripts/debug-kernel.config"), "CONFIG_KASAN=y\n").unwrap();
        let own = dir.join("scripts/debug-kernel-debug.config");
        fs::write(&own, "CONFIG_LOCKDEP=y\n").unwrap();
        let root = dir.join("root");
        let build = || Build::new(&dir, &root, kernel).unwrap();
        assert_eq!(build().done(), None);
        let done = format!("6.12.1-asyncfork-debug {}\n", build().recipe);
        fs::write(root.join("build/linux-debug.done"), done).unwrap();
        assert_eq!(build().done().as_deref(), Some("6.12.1-asyncfork-debug"));
        fs::write(&own, "CONFIG_LOCKDEP=n\n").unwrap();
        assert_eq!(build().done(), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_for_the_tests() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: DebugKernelOptions,
        }
        let parse = |words: &[&str]| {
            let words = ["debug-kernel"].iter().chain(words);
            let line = <Line as clap::Parser>::try_parse_from(words).unwrap();
            line.options.sorted()
        };
        let options = parse(&["--kcsan", "--quick", "--seed", "7", "--kcsan", "fork"]);
        assert_eq!(options.kernel(), "kcsan");
        assert!(!options.build && !options.release);
        assert_eq!(options.words, ["--quick", "--seed", "7", "fork"]);
        let options = parse(&["fork", "--release"]);
        assert!(options.release && options.words == ["fork"]);
        assert_eq!(options.kernel(), "debug");
        assert!(parse(&["--build", "--debug"]).build);
        for words in [&["--kcsan", "--debug"][..], &["--kcsan", "fork", "--debug"]] {
            assert_eq!(parse(words).kernel(), "debug", "{words:?}");
        }
    }
}
