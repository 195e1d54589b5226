// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process group that ends with us, in whatever way we end.
//!
//! Its leader, a guard, waits for the other end of a pipe to close, which we hold and never
//! write to: nobody can take it from the kernel to close it when we die. A signal that the
//! kernel sends at a parent's death would not do: QEMU is no child of ours.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

/// What the guard does: wait for the pipe's end, then kill all, itself included.
const GUARD: &str = "read -r _; kill -KILL 0";

/// Killed when dropped.
pub(super) struct Group {
    guard: Child,
    members: Vec<Child>,
    /// All of them, and with the guard the group's number, are gone.
    reaped: bool,
}

/// A process that was started in a [`Group`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Member(usize);

impl Group {
    pub(super) fn new() -> Result<Self> {
        let guard = Command::new("sh")
            .args(["-c", GUARD])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        Ok(Group {
            guard,
            members: Vec::new(),
            reaped: false,
        })
    }

    pub(super) fn spawn(&mut self, command: &mut Command) -> io::Result<Member> {
        let group = self.number().as_raw();
        self.members.push(command.process_group(group).spawn()?);
        Ok(Member(self.members.len() - 1))
    }

    /// How the process has ended, if it has.
    pub(super) fn ended(&mut self, member: Member) -> io::Result<Option<ExitStatus>> {
        self.members[member.0].try_wait()
    }

    /// Kills all, their children too.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        if !self.reaped {
            // Not softly: QEMU may outlive a vng that was asked to end.
            let _ = killpg(self.number(), Signal::SIGKILL);
            for member in &mut self.members {
                member.wait()?;
            }
            // The last: until now the number was ours.
            self.guard.wait()?;
            self.reaped = true;
        }
        Ok(())
    }

    fn number(&self) -> Pid {
        Pid::from_raw(self.guard.id().cast_signed())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::scratch;
    use std::fs;
    use std::path::Path;
    use std::thread;
    use std::time::{Duration, Instant};

    /// In the environment of the test program that is to be killed: a directory.
    const VICTIM: &str = "ASYNCFORK_TEST_GROUP";

    /// A daemon and a process that has a child, which write down their numbers.
    fn start(dir: &Path) -> Group {
        let mut group = Group::new().unwrap();
        for script in [
            "echo $$ >daemon; exec sleep 1000",
            "sleep 1000 & echo $! >child.new; mv child.new child; echo $$ >parent; wait",
        ] {
            let mut sh = Command::new("sh");
            sh.args(["-c", script]).current_dir(dir);
            group.spawn(&mut sh).unwrap();
        }
        group
    }

    fn numbers(dir: &Path) -> Vec<i32> {
        let number = |name| fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok();
        ["daemon", "child", "parent"]
            .iter()
            .filter_map(number)
            .collect()
    }

    /// Whether the process runs; a zombie does not.
    fn runs(number: i32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        stat.rsplit_once(')')
            .is_some_and(|(_, state)| !state.starts_with(" Z"))
    }

    fn eventually(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_group_that_is_killed_leaves_nobody() {
        let dir = scratch("group-kill");
        let mut group = start(&dir);
        eventually(|| numbers(&dir).len() == 3);
        let numbers = numbers(&dir);
        assert!(numbers.iter().all(|&number| runs(number)));
        group.kill().unwrap();
        eventually(|| !numbers.iter().any(|&number| runs(number)));
        fs::remove_dir_all(dir).unwrap();
    }

    /// This test is run once more, as the program that is killed.
    #[test]
    fn who_is_killed_leaves_nobody() {
        if let Some(dir) = std::env::var_os(VICTIM) {
            let _group = start(Path::new(&dir));
            thread::sleep(Duration::from_secs(1000));
            return;
        }
        let dir = scratch("group-victim");
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "vm::group::tests::who_is_killed_leaves_nobody"])
            .env(VICTIM, &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually(|| numbers(&dir).len() == 3);
        let numbers = numbers(&dir);
        assert!(numbers.iter().all(|&number| runs(number)));
        // By SIGKILL.
        victim.kill().unwrap();
        victim.wait().unwrap();
        eventually(|| !numbers.iter().any(|&number| runs(number)));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_end_is_told_and_is_not_the_groups() {
        let mut group = Group::new().unwrap();
        let mut sh = |script| {
            group
                .spawn(Command::new("sh").args(["-c", script]))
                .unwrap()
        };
        let (short, long) = (sh("exit 7"), sh("sleep 1000"));
        let status = loop {
            if let Some(status) = group.ended(short).unwrap() {
                break status;
            }
        };
        assert_eq!(status.code(), Some(7));
        assert_eq!(group.ended(long).unwrap(), None);
    }
}
