// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running guest, and how long it is waited for.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::end::End;
use super::run_dir::{CONSOLE, HOST_LOG};
use crate::dmesg;

/// Power-off after the command, and the guest's own time limit, may lag.
const GRACE: Duration = Duration::from_secs(60);
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
    /// Ample for emulation on a busy host.
    pub(super) const USUAL: Limits = Limits {
        first_line: Duration::from_secs(120),
        boot: Duration::from_secs(420),
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

/// A running vng with QEMU below it, in a process group of their own; killed
/// when dropped.
pub(super) struct Guest {
    child: Child,
    /// The leader, and with it the group's number, is gone.
    reaped: bool,
    /// Where the guest's console is recorded.
    console: PathBuf,
    spoke: bool,
    recorder: Option<JoinHandle<io::Result<u64>>>,
}

impl Guest {
    /// What vng and its children print goes to [`HOST_LOG`] in `dir`. By a pipe: QEMU
    /// opens its output again, and would begin a file anew.
    pub(super) fn start(mut vng: Command, dir: &Path) -> Result<Self> {
        let mut log = File::create(dir.join(HOST_LOG))?;
        let (mut output, theirs) = io::pipe()?;
        let child = vng
            .stdin(Stdio::null())
            .stdout(theirs.try_clone()?)
            .stderr(theirs)
            .process_group(0)
            .spawn()
            .context("cannot start vng: run scripts/setup")?;
        // It holds a writing end, with which the pipe would never come to its end.
        drop(vng);
        Ok(Guest {
            child,
            reaped: false,
            console: dir.join(CONSOLE),
            spoke: false,
            recorder: Some(thread::spawn(move || io::copy(&mut output, &mut log))),
        })
    }

    /// Whether vng has ended. It stays a zombie, so that its group's number
    /// stays ours until [`Guest::kill`].
    pub(super) fn exited(&self) -> Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(self.pid()), flags).context("cannot wait for vng")?;
        Ok(status != WaitStatus::StillAlive)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Whether the guest's kernel has said anything.
    pub(super) fn spoke(&mut self) -> bool {
        self.spoke = self.spoke
            || fs::read(&self.console).is_ok_and(|c| kernel_speaks(&String::from_utf8_lossy(&c)));
        self.spoke
    }

    /// Ends whatever is left and completes the record of what it printed.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.kill()?;
        if let Some(recorder) = self.recorder.take() {
            recorder
                .join()
                .expect("the recorder does not panic")
                .context("cannot record what vng prints")?;
        }
        Ok(())
    }

    fn kill(&mut self) -> io::Result<()> {
        if !self.reaped {
            // Not softly: QEMU may outlive a vng that was asked to end.
            let _ = killpg(self.pid(), Signal::SIGKILL);
            self.child.wait()?;
            self.reaped = true;
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.kill();
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
        let guest = Guest::start(vng, dir).unwrap();
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
}
