// SPDX-License-Identifier: MIT OR Apache-2.0
//! What tests watch of the kernel they run on: its log, its memory, its taint flags, processes that hang or are left behind.

mod census;

pub use census::{Census, StrayTables};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};

/// What a test writes to `/dev/kmsg` before it starts, followed by its name.
pub const TEST_MARKER: &str = "asyncfork-test: ";

/// Lets readers of the kernel log attribute a complaint to its test.
///
/// # Errors
/// Not root.
pub fn mark_kernel_log(name: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")?
        .write_all(format!("{TEST_MARKER}{name}\n").as_bytes())
}

/// Whether this is a virtme-ng guest, which nobody needs afterwards.
///
/// # Errors
/// `/proc` is not mounted.
pub fn is_guest() -> io::Result<bool> {
    Ok(fs::read_to_string("/proc/cmdline")?.contains("virtme"))
}

/// Makes the orphans among this process's descendants its children.
///
/// # Errors
/// prctl(2).
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Shows where a process is stuck, thread by thread.
pub fn describe(pid: i32) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten().map(|t| t.path()) {
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|l| l.starts_with("State"));
        println!(
            "  {} {}: {}\n{}",
            task.display(),
            read("comm").trim(),
            state.unwrap_or("gone"),
            read("stack").trim_end()
        );
    }
}
