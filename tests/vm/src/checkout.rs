// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the checkout, its target directory, the kernel to boot.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Result};

use crate::kernels::{self, Kernel};
use crate::root::Root;

/// A checkout that `scripts/setup` has prepared, and one of its kernels.
#[derive(Debug, Clone)]
pub struct Checkout {
    /// Absolute path of the repository root.
    pub root: PathBuf,
    pub kernel: &'static Kernel,
    /// Release of the kernel the module is built for and the VMs boot.
    pub release: String,
    /// Directory that the VMs have as their root file system.
    pub guest_root: PathBuf,
    /// Directory of the guest root that has the VMs' QEMU.
    pub qemu_root: PathBuf,
}

/// The kernel whose guest root has QEMU, whatever the VMs boot; see scripts/qemu.
const QEMU_KERNEL: &str = "6.12";

impl Checkout {
    /// The current directory, which must be the repository root. Makes the guest
    /// roots that it needs if there are none, so that a VM has nothing left to
    /// wait for.
    ///
    /// # Errors
    /// Another directory, no guest root to be had, no virtme-ng, or a path that
    /// virtme-ng cannot hand to the guest.
    pub fn open(kernel: &'static Kernel) -> Result<Self> {
        Self::open_root(kernel, false)
    }

    /// [`Checkout::open`], or with the larger guest root of `scripts/suites`.
    ///
    /// # Errors
    /// The same.
    pub fn open_root(kernel: &'static Kernel, suites: bool) -> Result<Self> {
        Self::open_in(repository_root()?, kernel, suites, |root| {
            root.ensure(false)
        })
    }

    /// `ensure` makes the guest roots that are missing.
    fn open_in(
        root: PathBuf,
        kernel: &'static Kernel,
        suites: bool,
        ensure: impl Fn(&Root) -> Result<()>,
    ) -> Result<Self> {
        check_path(&root)?;
        let guest = Root::of(&root, kernel, suites)?;
        ensure(&guest)?;
        let release = guest.release(kernel)?;
        let qemu = kernels::find(QEMU_KERNEL).expect("the list has QEMU's kernel");
        let qemu = Root::of(&root, qemu, false)?;
        ensure(&qemu)?;
        let checkout = Checkout {
            root,
            kernel,
            release,
            guest_root: guest.dir,
            qemu_root: qemu.dir,
        };
        ensure!(
            checkout.venv_bin().join("vng").exists(),
            "virtme-ng is not installed: run scripts/setup"
        );
        Ok(checkout)
    }

    /// Directory of `vng` and `virtme-run`.
    pub fn venv_bin(&self) -> PathBuf {
        self.root.join("target/venv/bin")
    }

    /// What the VMs run on. It needs `ASYNCFORK_QEMU_ROOT`, [`Checkout::qemu_root`].
    pub fn qemu(&self) -> PathBuf {
        self.root.join("scripts/qemu")
    }

    /// Run directories, logs and caches.
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

/// The current directory, an absolute path.
///
/// # Errors
/// It is not the repository root.
pub fn repository_root() -> Result<PathBuf> {
    let root = std::env::current_dir()?.canonicalize()?;
    ensure!(
        root.join("scripts/root").exists(),
        "run this from the repository root"
    );
    Ok(root)
}

/// Makes Debian 11's root, where there is none: tests of the library want its C
/// libraries (`scripts/libcs`).
///
/// # Errors
/// It cannot be made.
pub fn make_debian11() -> Result<()> {
    Root::debian11(&repository_root()?)?.ensure(false)
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
    use std::cell::RefCell;
    use std::fs;

    /// In the place of mmdebstrap: a root with a kernel, of a release that fits.
    fn make(root: &Root, release: &str) -> Result<()> {
        let modules = root.dir.join("lib/modules").join(release);
        fs::create_dir_all(&modules)?;
        fs::create_dir_all(root.dir.join("boot"))?;
        fs::write(root.dir.join(format!("boot/vmlinuz-{release}")), "")?;
        fs::write(modules.join("modules.dep"), "")?;
        std::os::unix::fs::symlink("/usr/src/headers", modules.join("build"))?;
        Ok(())
    }

    #[test]
    fn a_bench_has_both_guest_roots_before_a_vm_starts() {
        let dir = std::env::temp_dir().join(format!("asyncfork-bench-{}", std::process::id()));
        fs::create_dir_all(dir.join("target/venv/bin")).unwrap();
        fs::write(dir.join("target/venv/bin/vng"), "").unwrap();
        let dir = dir.canonicalize().unwrap();
        let kernel = kernels::first();
        let (own, qemu) = ("6.1.0-7-amd64", "6.12.8+deb13-amd64");
        let asked = RefCell::new(Vec::new());
        let checkout = Checkout::open_in(dir.clone(), kernel, true, |root| {
            let release = if asked.borrow().is_empty() { own } else { qemu };
            asked.borrow_mut().push(root.dir.clone());
            make(root, release)
        })
        .unwrap();
        let wanted = [(kernel, true), (kernels::find("6.12").unwrap(), false)]
            .map(|(kernel, suites)| Root::of(&dir, kernel, suites).unwrap().dir);
        assert_eq!(asked.into_inner(), wanted);
        assert_eq!(
            [&checkout.guest_root, &checkout.qemu_root],
            [&wanted[0], &wanted[1]]
        );
        assert_eq!(checkout.release, own);
        assert!(checkout.vmlinuz().exists());
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
