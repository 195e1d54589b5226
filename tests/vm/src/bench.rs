// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the checkout, its target directory, the kernel to boot.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};

/// The kernels that there are guest roots for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Series {
    /// Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13
    #[value(name = "6.12")]
    V6_12,
    /// Debian 13 backports
    #[value(name = "7.2")]
    V7_2,
    /// 6.12 with KASAN, lockdep and more (scripts/debug-kernel)
    #[value(name = "debug")]
    Debug,
    /// 6.12 with KCSAN (scripts/debug-kernel)
    #[value(name = "kcsan")]
    Kcsan,
}

impl Series {
    /// Those that users have.
    pub const ALL: [Series; 3] = [Series::V6_1, Series::V6_12, Series::V7_2];

    /// As the scripts' `--kernel` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
            Series::V7_2 => "7.2",
            Series::Debug => "debug",
            Series::Kcsan => "kcsan",
        }
    }

    /// How many times as long as on a stock kernel everything takes.
    pub fn slowness(self) -> u32 {
        match self {
            Series::V6_1 | Series::V6_12 | Series::V7_2 => 1,
            Series::Debug | Series::Kcsan => 8,
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A checkout that `scripts/setup` has prepared, and one of its kernels.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Absolute path of the repository root.
    pub root: PathBuf,
    pub series: Series,
    /// Release of the kernel the module is built for and the VMs boot.
    pub release: String,
    /// Directory that the VMs have as their root file system.
    pub guest_root: PathBuf,
    /// Directory of the guest root that has the VMs' QEMU.
    pub qemu_root: PathBuf,
}

/// The kernel whose guest root has QEMU, whatever the VMs boot; see scripts/qemu.
const QEMU_SERIES: Series = Series::V6_12;

impl Bench {
    /// The bench of the current directory, which must be the repository root.
    /// Makes the guest roots that it needs if there are none, so that a VM has
    /// nothing left to wait for.
    ///
    /// Errors: another directory, no guest root to be had, no virtme-ng, or a
    /// path that virtme-ng cannot hand to the guest.
    pub fn open(series: Series) -> Result<Self> {
        Self::open_root(series, false)
    }

    /// [`Bench::open`], or with the larger guest root of `scripts/suites`.
    pub fn open_root(series: Series, suites: bool) -> Result<Self> {
        Self::open_in(&std::env::current_dir()?, series, suites)
    }

    fn open_in(root: &Path, series: Series, suites: bool) -> Result<Self> {
        let root = root.canonicalize()?;
        ensure!(
            root.join("scripts/root").exists(),
            "run this from the repository root"
        );
        check_path(&root)?;
        let name = series.name();
        let larger: &[&str] = if suites { &["--suites"] } else { &[] };
        let bench = Bench {
            series,
            guest_root: ask(&root, &[larger, &[name]].concat())?.into(),
            release: ask(&root, &[larger, &["--release", name]].concat())?,
            qemu_root: ask(&root, &[QEMU_SERIES.name()])?.into(),
            root,
        };
        ensure!(
            bench.venv_bin().join("vng").exists(),
            "virtme-ng is not installed: run scripts/setup"
        );
        Ok(bench)
    }

    /// Directory of `vng` and `virtme-run`.
    pub fn venv_bin(&self) -> PathBuf {
        self.root.join("target/venv/bin")
    }

    /// What the VMs run on. It needs `ASYNCFORK_QEMU_ROOT`, [`Bench::qemu_root`].
    pub fn qemu(&self) -> PathBuf {
        self.root.join("scripts/qemu")
    }

    /// Run directories, logs and caches of the bench.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("target/vm")
    }

    /// Kernel image that the VMs boot.
    pub fn vmlinuz(&self) -> PathBuf {
        self.guest_root
            .join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The built module, relative to the root.
    pub fn module(&self) -> String {
        format!("target/kmod/{}/asyncfork.ko", self.release)
    }

    /// The module built with fault injection, relative to the root.
    pub fn faults_module(&self) -> String {
        format!("target/kmod/{}-faults/asyncfork.ko", self.release)
    }
}

/// Makes Debian 11's root, where there is none: tests of the library want its C
/// libraries (`scripts/libcs`).
///
/// Errors: it cannot be made.
pub fn make_debian11() -> Result<()> {
    ask(&std::env::current_dir()?, &["debian11"]).map(drop)
}

/// What `scripts/root` prints.
fn ask(root: &Path, args: &[&str]) -> Result<String> {
    let script = root.join("scripts/root");
    let out = Command::new(&script)
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !out.status.success() {
        bail!(
            "no root to be had: scripts/root {}: {}",
            args.join(" "),
            out.status
        );
    }
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// Refuses paths that virtme-ng, which builds a shell command and a kernel
/// command line from them, would tear apart.
pub fn check_path(path: &Path) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+/.-".contains(c);
    ensure!(
        path.to_str().is_some_and(|p| p.chars().all(plain)),
        "{}: virtme-ng takes only letters, digits and _+/.- in a path; move the directory",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
    use std::fs;

    #[test]
    fn a_series_is_called_as_on_the_command_line() {
        for &series in Series::value_variants() {
            assert_eq!(Series::from_str(series.name(), false), Ok(series));
        }
    }

    /// A checkout of which `scripts/root` writes down what it is asked for. Not made by
    /// this process: a file that it has open for writing is none to execute.
    fn checkout(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("asyncfork-{name}-{}", std::process::id()));
        let script = r##"
            mkdir -p "$1/scripts" "$1/target/venv/bin"
            : >"$1/target/venv/bin/vng"
            cat >"$1/scripts/root" <<'END'
#!/bin/sh
cd "${0%/*}" && echo "$*" >>asked && echo "/roots/$*"
END
            chmod +x "$1/scripts/root"
        "##;
        let made = Command::new("sh")
            .args(["-euc", script, "sh"])
            .arg(&dir)
            .status();
        assert!(made.unwrap().success());
        dir.canonicalize().unwrap()
    }

    #[test]
    fn a_bench_has_both_guest_roots_before_a_vm_starts() {
        let dir = checkout("bench");
        let bench = Bench::open_in(&dir, Series::V6_1, true).unwrap();
        assert_eq!(bench.guest_root, Path::new("/roots/--suites 6.1"));
        assert_eq!(bench.release, "/roots/--suites --release 6.1");
        assert_eq!(bench.qemu_root, Path::new("/roots/6.12"));
        let asked = fs::read_to_string(dir.join("scripts/asked")).unwrap();
        assert_eq!(asked, "--suites 6.1\n--suites --release 6.1\n6.12\n");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn paths_that_a_shell_would_split_are_refused() {
        assert!(check_path(Path::new("/home/me/async-fork_2.0+x")).is_ok());
        for bad in ["/home/my code", "/home/$HOME", "/home/a;b", "/home/ä"] {
            let error = check_path(Path::new(bad)).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
