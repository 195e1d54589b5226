// SPDX-License-Identifier: MIT OR Apache-2.0
//! Root directories with another C library, and compilers for it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

/// Where programs in a root find the test's directory.
pub const BENCH: &str = "/mnt";

/// What makes programs.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The command's first words.
    pub command: Vec<String>,
    /// Where it is, if not on this machine.
    pub root: Option<Root>,
}

impl Compiler {
    pub fn new(command: &[&str], root: Option<Root>) -> Self {
        Self {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            root,
        }
    }
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new(&["cc"], None)
    }
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// A root directory for programs. They cannot write to it, and what is mounted
/// there is mounted for each of them alone.
#[derive(Debug, Clone)]
pub struct Root {
    dir: PathBuf,
    /// What is mounted: where it is outside, and inside.
    mounts: Vec<(PathBuf, PathBuf)>,
}

impl Root {
    /// The one that `scripts/root NAME` makes, with the checkout at its own path;
    /// `bench` is the test's directory.
    pub fn made(name: &str, bench: &Path) -> Self {
        let checkout = checkout();
        let output = Command::new(checkout.join("scripts/root"))
            .args(["--made", name])
            .output()
            .expect("run scripts/root");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let dir = String::from_utf8(output.stdout).unwrap();
        let same = |path: &Path| (path.to_owned(), path.to_owned());
        Self {
            dir: dir.trim_end().into(),
            mounts: vec![
                same(Path::new("/proc")),
                same(Path::new("/dev")),
                same(&checkout),
                (bench.into(), BENCH.into()),
            ],
        }
    }

    /// One in the test's directory that has nothing but musl's loader, which is all
    /// of that C library, and one device.
    pub fn bare(loader: &Path, device: &str, bench: &Path) -> Self {
        let dir = bench.join("bare");
        let inside = |path: &str| dir.join(path.trim_start_matches('/'));
        for path in ["/lib", "/dev", BENCH] {
            fs::create_dir_all(inside(path)).unwrap();
        }
        fs::copy(loader, inside(MUSL_LOADER)).unwrap();
        fs::write(inside(device), "").unwrap();
        Self {
            dir,
            mounts: vec![(device.into(), device.into()), (bench.into(), BENCH.into())],
        }
    }

    /// A file in it, as seen from outside.
    pub fn file(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// Runs `command`, all of whose paths are those inside, in this root.
    pub fn enter(&self, command: &mut Command) {
        self.prepare(command, true);
    }

    /// Lets `command` enter this root by itself: the mounts are there.
    pub fn mount_for(&self, command: &mut Command) -> &Path {
        self.prepare(command, false);
        &self.dir
    }

    fn prepare(&self, command: &mut Command, enter: bool) {
        let dir = c_path(&self.dir);
        let mounts: Vec<(CString, CString)> = self
            .mounts
            .iter()
            .map(|(outside, inside)| {
                let target = self.file(inside.to_str().unwrap());
                assert!(target.exists(), "{} is missing", target.display());
                (c_path(outside), c_path(&target))
            })
            .collect();
        let work = move || {
            // SAFETY: a plain system call.
            check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
            mount(c"none", c"/", libc::MS_PRIVATE | libc::MS_REC)?;
            mount(&dir, &dir, libc::MS_BIND)?;
            let read_only = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;
            mount(c"none", &dir, read_only)?;
            for (outside, inside) in &mounts {
                mount(outside, inside, libc::MS_BIND | libc::MS_REC)?;
            }
            if enter {
                // SAFETY: strings that live across the calls.
                check(unsafe { libc::chroot(dir.as_ptr()) })?;
                // SAFETY: likewise.
                check(unsafe { libc::chdir(c"/".as_ptr()) })?;
            }
            Ok(())
        };
        // SAFETY: it makes system calls only.
        unsafe { command.pre_exec(work) };
    }
}

/// Where programs for musl look for it.
const MUSL_LOADER: &str = "/lib/ld-musl-x86_64.so.1";

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn mount(source: &CStr, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: strings that live across the call; no type, no data.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            ptr::null(),
            flags,
            ptr::null(),
        )
    })
}

fn check(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
