// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the checkout, its target directory, the kernel to boot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};

/// A checkout that `scripts/setup` has prepared.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Absolute path of the repository root.
    pub root: PathBuf,
    /// Release of the kernel the module is built for and the VMs boot.
    pub release: String,
}

impl Bench {
    /// The bench of the current directory, which must be the repository root.
    ///
    /// Errors: another directory, no kernel or no virtme-ng installed, or a
    /// path that virtme-ng cannot hand to the guest.
    pub fn open() -> Result<Self> {
        let root = std::env::current_dir()?.canonicalize()?;
        let kmod = root.join("scripts/kmod");
        ensure!(kmod.exists(), "run this from the repository root");
        check_path(&root)?;
        let out = Command::new(&kmod)
            .arg("--release")
            .output()
            .with_context(|| format!("cannot run {}", kmod.display()))?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        let bench = Bench {
            root,
            release: String::from_utf8(out.stdout)?.trim().to_owned(),
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

    /// Run directories, logs and caches of the bench.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("target/vm")
    }

    /// Kernel image that the VMs boot.
    pub fn vmlinuz(&self) -> String {
        format!("/boot/vmlinuz-{}", self.release)
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

    #[test]
    fn paths_that_a_shell_would_split_are_refused() {
        assert!(check_path(Path::new("/home/me/async-fork_2.0+x")).is_ok());
        for bad in ["/home/my code", "/home/$HOME", "/home/a;b", "/home/ä"] {
            let error = check_path(Path::new(bad)).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
