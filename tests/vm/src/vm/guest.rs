// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running guest, and how long it is waited for.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::command::Boot;
use super::end::End;
use super::group::{Group, Member};
use super::run_dir::{CONSOLE, HOST_LOG};
use super::virtiofs::Daemon;
use crate::dmesg;

/// Power-off after the command, and the guest's own time limit, may lag.
const GRACE: Duration = Duration::from_secs(60);
/// Its daemons end just before vng, when QEMU does.
const DAEMON_GRACE: Duration = Duration::from_secs(10);
/// After this silence a sign of life is printed.
const SILENCE: Duration = Duration::from_secs(60);

/// Time limits of a boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Until the console says anything.
    pub first_line: Duration,
    /// Until the command starts.
    pub boot: Duration,
}

impl Limits {
    /// Ample for emulation on a busy host: with systemd, two side by side, 75 s are usual. Now
    /// and then a guest stalls for want of a timer's interrupt; then another boot is the remedy.
    pub(super) const USUAL: Limits = Limits {
        first_line: Duration::from_secs(120),
        boot: Duration::from_secs(210),
    };

    pub(super) fn times(self, n: u32) -> Limits {
        Limits {
            first_line: self.first_line * n,
            boot: self.boot * n,
        }
    }
}

/// How far a guest has come, by the files that its script leaves.
pub(super) struct Progress {
    timeout: Duration,
    begin: Instant,
    /// The command runs.
    pub(super) started: Option<Instant>,
    /// The command has ended and its result is in.
    finished: Option<Instant>,
    /// Last output, of the command or ours.
    pub(super) heard: Instant,
}

impl Progress {
    pub(super) fn new(timeout: Duration) -> Self {
        Progress {
            timeout,
            begin: Instant::now(),
            started: None,
            finished: None,
            heard: Instant::now(),
        }
    }

    /// Looks for the guest's files, and says what there is to say.
    pub(super) fn look(&mut self, dir: &Path, say: impl Fn(&str)) {
        let seconds = self.begin.elapsed().as_secs();
        if self.started.is_none() && dir.join("started").exists() {
            self.started = Some(Instant::now());
            say(&format!("up after {seconds} s"));
        }
        if self.finished.is_none() && dir.join("status").exists() {
            self.finished = Some(Instant::now());
        }
        if self.heard.elapsed() > SILENCE {
            self.heard = Instant::now();
            let what = self.started.map_or("booting", |_| "running");
            say(&format!("still {what} after {seconds} s"));
        }
    }

    /// The result is in; only the power-off hangs.
    pub(super) fn is_complete(&self) -> bool {
        self.finished.is_some_and(|since| since.elapsed() > GRACE)
    }

    /// Why the guest need not be waited for any longer, if so.
    pub(super) fn overdue(&self, limits: &Limits, spoke: bool) -> Option<End> {
        let elapsed = self.begin.elapsed();
        match (self.started, self.finished) {
            (_, Some(_)) => None,
            (Some(since), None) => {
                (since.elapsed() > self.timeout + GRACE).then_some(End::TimedOut)
            }
            (None, None) if elapsed > limits.boot => Some(End::Broken(format!(
                "not up after {} s",
                limits.boot.as_secs()
            ))),
            (None, None) if !spoke && elapsed > limits.first_line => Some(End::Broken(format!(
                "not a word on the console in {} s",
                limits.first_line.as_secs()
            ))),
            (None, None) => None,
        }
    }
}

/// A running vng with QEMU below it, and the daemons that serve its directories; killed
/// when dropped.
pub(super) struct Guest {
    group: Group,
    vng: Member,
    daemons: Vec<(String, Member)>,
    /// When a daemon was first seen to have ended.
    lost: Option<Instant>,
    /// Where the guest's console is recorded.
    console: PathBuf,
    spoke: bool,
    recorder: Option<JoinHandle<io::Result<u64>>>,
}

impl Guest {
    /// What all these print goes to [`HOST_LOG`] in `dir`. By a pipe: QEMU opens its output
    /// again, and would begin a file anew.
    pub(super) fn start(boot: Boot, dir: &Path) -> Result<Self> {
        let mut log = File::create(dir.join(HOST_LOG))?;
        let (mut output, theirs) = io::pipe()?;
        let mut group = Group::new()?;
        let mut daemons = Vec::new();
        for Daemon { name, mut command } in boot.daemons {
            command
                .stdout(theirs.try_clone()?)
                .stderr(theirs.try_clone()?);
            let daemon = group
                .spawn(&mut command)
                .with_context(|| format!("cannot start the virtiofs daemon of {name}"))?;
            daemons.push((name, daemon));
        }
        let mut vng = boot.vng;
        vng.stdin(Stdio::null())
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        let member = group
            .spawn(&mut vng)
            .context("cannot start vng: run scripts/setup")?;
        // It holds a writing end, with which the pipe would never come to its end.
        drop(vng);
        Ok(Guest {
            group,
            vng: member,
            daemons,
            lost: None,
            console: dir.join(CONSOLE),
            spoke: false,
            recorder: Some(thread::spawn(move || io::copy(&mut output, &mut log))),
        })
    }

    /// Whether vng has ended.
    pub(super) fn exited(&mut self) -> Result<bool> {
        let status = self.group.ended(self.vng).context("cannot wait for vng")?;
        Ok(status.is_some())
    }

    /// Why the guest hangs, if a daemon has ended before it.
    pub(super) fn lost(&mut self) -> Result<Option<End>> {
        for (name, daemon) in &self.daemons {
            let Some(status) = self.group.ended(*daemon)? else {
                continue;
            };
            if self.lost.get_or_insert_with(Instant::now).elapsed() > DAEMON_GRACE {
                return Ok(Some(End::Broken(format!(
                    "the virtiofs daemon of {name} ended: {status}"
                ))));
            }
        }
        Ok(None)
    }

    /// Whether the guest's kernel has said anything.
    pub(super) fn spoke(&mut self) -> bool {
        self.spoke = self.spoke
            || fs::read(&self.console).is_ok_and(|c| kernel_speaks(&String::from_utf8_lossy(&c)));
        self.spoke
    }

    /// Ends whatever is left and completes the record of what it printed.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.group.kill()?;
        if let Some(recorder) = self.recorder.take() {
            recorder
                .join()
                .expect("the recorder does not panic")
                .context("cannot record what vng prints")?;
        }
        Ok(())
    }
}

/// Time stamps begin the kernel's lines; the BIOS has none.
fn kernel_speaks(console: &str) -> bool {
    console.lines().any(dmesg::is_stamped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::run_dir::{guest_log, read};
    use crate::vm::tests::scratch;
    use std::process::Command;

    #[test]
    fn only_the_kernel_counts_as_speaking() {
        for bios in [
            "\x1bc\x1b[?7l\x1b[2JSeaBIOS (version 1.16)\r\n",
            "[    a table of the BIOS's\r\n",
            "",
        ] {
            assert!(!kernel_speaks(bios), "{bios}");
        }
        assert!(kernel_speaks("ok\r\n[    0.000000] Linux version 6.1"));
        assert!(kernel_speaks("[  123.000000] late\r\n"));
    }

    /// Runs a shell script in the place of vng, to its end.
    fn guest(dir: &Path, script: &str) -> Guest {
        let mut vng = Command::new("sh");
        vng.args(["-c", script]).current_dir(dir);
        let daemons = Vec::new();
        let mut guest = Guest::start(Boot { vng, daemons }, dir).unwrap();
        while !guest.exited().unwrap() {
            thread::sleep(Duration::from_millis(1));
        }
        guest
    }

    #[test]
    fn what_the_host_prints_is_not_the_guests() {
        const COMPLAINT: &str = "[    1.000000] WARNING: no mount point";
        let dir = scratch("host");
        let mut guest = guest(
            &dir,
            &format!("echo SeaBIOS >{CONSOLE}; echo '{COMPLAINT}' >&2; echo vng"),
        );
        assert!(!guest.spoke());
        guest.stop().unwrap();
        assert_eq!(dmesg::scan(&guest_log(&dir)), []);
        assert_eq!(read(&dir, HOST_LOG), format!("{COMPLAINT}\nvng\n"));

        // The same line of the guest is one, and the host's does not hide it.
        fs::write(dir.join(CONSOLE), format!("{COMPLAINT}\r\n")).unwrap();
        assert!(guest.spoke());
        assert_eq!(dmesg::scan(&guest_log(&dir)).len(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_guest_whose_daemon_has_ended_is_not_waited_for() {
        let dir = scratch("lost");
        let sh = |script| {
            let mut sh = Command::new("sh");
            sh.args(["-c", script]);
            sh
        };
        let daemon = |name: &str, script| Daemon {
            name: name.into(),
            command: sh(script),
        };
        let daemons = vec![
            daemon("root", "exec sleep 1000"),
            daemon("run", "echo no room >&2; exit 3"),
        ];
        let vng = sh("exec sleep 1000");
        let mut guest = Guest::start(Boot { vng, daemons }, &dir).unwrap();
        while guest.lost.is_none() {
            assert_eq!(guest.lost().unwrap(), None, "vng may be about to end");
            thread::sleep(Duration::from_millis(1));
        }
        guest.lost = guest.lost.and_then(|at| at.checked_sub(DAEMON_GRACE));
        let Some(End::Broken(why)) = guest.lost().unwrap() else {
            panic!("it is waited for");
        };
        assert_eq!(why, "the virtiofs daemon of run ended: exit status: 3");
        assert!(!guest.exited().unwrap());
        guest.stop().unwrap();
        assert_eq!(read(&dir, HOST_LOG), "no room\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
