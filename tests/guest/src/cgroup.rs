// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control groups (version 2): one subtree a test, to limit what it may use and to find and kill what it leaves behind.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS: &str = "+cpu +memory +pids";

/// A control group's directory.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The group that holds the groups of all tests.
    pub fn top() -> io::Result<Self> {
        let root = Self(ROOT.into());
        root.delegate()?;
        // An empty group with a limit: with it the scheduler's branch for such limits (cfs_bandwidth_usage_inc()) is patched
        // once, and not with every test that sets one. An emulated CPU may run into the int3 of a patch that is over.
        root.child("asyncfork-limit")?
            .set("cpu.max", "1000000 1000000")?;
        let top = root.child("asyncfork-test")?;
        top.delegate()?;
        Ok(top)
    }

    /// Creates a group below this one.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        let path = self.0.join(name);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(io::Error::new(
                e.kind(),
                format!("mkdir {}: {e}", path.display()),
            )),
            _ => Ok(Self(path)),
        }
    }

    /// Gives the controllers to the groups below; this one may hold no process then.
    pub fn delegate(&self) -> io::Result<()> {
        self.set("cgroup.subtree_control", CONTROLLERS)
    }

    /// Writes a control file.
    pub fn set(&self, file: &str, value: impl ToString) -> io::Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value.to_string())
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Reads a control file.
    pub fn get(&self, file: &str) -> io::Result<String> {
        let path = self.0.join(file);
        let text = fs::read_to_string(&path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(text.trim().to_string())
    }

    /// The value of `key` in a control file of `key value` lines.
    pub fn get_key(&self, file: &str, key: &str) -> io::Result<i64> {
        self.get(file)?
            .lines()
            .find_map(|l| l.strip_prefix(key)?.trim().parse().ok())
            .ok_or_else(|| io::Error::other(format!("no {key} in {file}")))
    }

    /// Moves the calling process here.
    pub fn enter(&self) -> io::Result<()> {
        self.set("cgroup.procs", 0)
    }

    /// The directory, for clone3(CLONE_INTO_CGROUP).
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(&self.0)?.into())
    }

    /// Processes in this group and below.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = fs::read_to_string(self.0.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect();
        for sub in self.below() {
            pids.extend(sub.processes());
        }
        pids
    }

    fn below(&self) -> Vec<Self> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter(|e| e.path().is_dir())
            .map(|e| Self(e.path()))
            .collect()
    }

    /// Kills everything in this group and below.
    pub fn kill(&self) -> io::Result<()> {
        self.set("cgroup.kill", 1)
    }

    /// Removes this group and those below; all must be empty.
    pub fn remove(&self) -> io::Result<()> {
        for sub in self.below() {
            sub.remove()?;
        }
        fs::remove_dir(&self.0)
            .map_err(|e| io::Error::new(e.kind(), format!("rmdir {}: {e}", self.0.display())))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// fork(2) whose child starts in the cgroup behind `dir`: 0 in the child.
pub fn fork_into(dir: &OwnedFd) -> io::Result<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all-zero is a valid clone_args: no stack, no TLS, no pointers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = dir.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is fork(); the caller is single-threaded, so that the child may use the C library.
    let pid =
        crate::sys::cvt(unsafe { libc::syscall(libc::SYS_clone3, &args, size_of_val(&args)) })?;
    Ok(pid as i32)
}
