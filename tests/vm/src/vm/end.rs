// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a boot ended, and what that says.

use std::fmt;
use std::path::PathBuf;

use super::run_dir::{read, CONSOLE, HOST_LOG};
use super::{EXIT_BROKEN, EXIT_COMPLAINT, EXIT_TIMEOUT};
use crate::dmesg::{self, Finding};

/// Lines of each of them that are shown of a broken guest.
const SHOWN_LINES: usize = 20;

/// How the command, or the guest, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command ended; 128 + N after signal N, as in a shell.
    Exited(u8),
    /// The command ran out of time.
    TimedOut,
    /// The guest did not boot, died, or left no result: why.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(status) => write!(f, "exit status {status}"),
            End::TimedOut => f.write_str("timed out"),
            End::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

/// What is known after the guest is gone.
#[derive(Debug, Clone)]
pub struct BootReport {
    pub end: End,
    /// The kernel's complaints; empty is good.
    pub findings: Vec<Finding>,
    /// How often a guest was booted for it; more than once only if one never came up.
    pub boots: u32,
    /// Run directory: `stdout`, `stderr`, `kernel.log`, `console.log`, `host.log`,
    /// and what the command wrote to it.
    pub dir: PathBuf,
}

impl BootReport {
    /// The command's exit status, or one of the `EXIT_` codes.
    pub fn exit_code(&self) -> u8 {
        match &self.end {
            End::Broken(_) => EXIT_BROKEN,
            End::TimedOut => EXIT_TIMEOUT,
            End::Exited(_) if !self.findings.is_empty() => EXIT_COMPLAINT,
            End::Exited(status) => *status,
        }
    }

    /// Whether the guest came as far as to start the command.
    pub(super) fn came_up(&self) -> bool {
        self.dir.join("started").exists()
    }

    /// The kernel's log: dmesg and what only the console has.
    pub fn kernel_log(&self) -> PathBuf {
        self.dir.join("kernel.log")
    }

    /// Says on stderr what went wrong, if anything did. The lines begin with
    /// `prefix`.
    pub fn explain(&self, prefix: &str) {
        for line in self.explanation() {
            eprintln!("{prefix}{line}");
        }
    }

    fn explanation(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.end {
            End::Broken(why) => {
                lines.push(format!("vm: BROKEN: {why}"));
                for (name, whose) in [(HOST_LOG, "host"), (CONSOLE, "")] {
                    let log = read(&self.dir, name);
                    lines.extend(
                        last_lines(&log, SHOWN_LINES)
                            .iter()
                            .map(|line| format!("    {whose}| {line}")),
                    );
                }
            }
            End::TimedOut => lines.push("vm: TIMED OUT".into()),
            End::Exited(_) => {}
        }
        lines.extend(
            self.findings
                .iter()
                .map(|finding| format!("vm: kernel complaint: {finding}")),
        );
        if self.exit_code() != 0 {
            lines.push(format!("vm: logs are in {}", self.dir.display()));
        }
        lines
    }
}

/// The guest's last word, `exited STATUS` or `timeout STATUS`.
pub(super) fn parse_status(text: &str) -> Option<End> {
    match text.trim().split_once(' ')? {
        ("exited", status) => status.parse().ok().map(End::Exited),
        ("timeout", _) => Some(End::TimedOut),
        _ => None,
    }
}

/// What the guest's taint flags say against a run; missing flags prove nothing.
pub(super) fn taint(file: impl Fn(&str) -> Option<String>) -> Option<String> {
    match file("tainted").and_then(|flags| flags.trim().parse().ok()) {
        Some(flags) => asyncfork_host::kernel::bad_taint(flags),
        None => Some("the guest has left no taint flags".to_owned()),
    }
}

/// What the checkers of a debug kernel say against a run, or that they have said nothing though they should.
pub(super) fn checkers(
    file: impl Fn(&str) -> Option<String>,
    lockdep: bool,
    kmemleak: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    match file("lockdep") {
        Some(stats) => found.extend(dmesg::lockdep_off(&stats)),
        None if lockdep => found.push("the guest has left no word of lockdep".to_owned()),
        None => {}
    }
    match file("kmemleak") {
        Some(report) => found.extend(dmesg::leaks(&report)),
        None if kmemleak => found.push("the guest has left no word of kmemleak".to_owned()),
        None => {}
    }
    found
}

/// What tells best why the guest is gone: a panic's reason, or the last line; that of
/// QEMU or vng if there never was a guest.
pub(super) fn last_word<'a>(console: &'a str, host: &'a str) -> &'a str {
    let lines = |log: &'a str| log.lines().map(str::trim).filter(|l| !l.is_empty());
    lines(console)
        .find(|line| dmesg::is_stamped(line) && line.contains("Kernel panic"))
        .or_else(|| lines(console).next_back())
        .or_else(|| lines(host).next_back())
        .unwrap_or("the console is empty")
}

/// The end of a log.
pub(crate) fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::vm::tests::scratch;
    use std::fs;

    pub(crate) fn report(end: End, complaints: usize) -> BootReport {
        let findings = dmesg::scan(&"[ 1.0] WARNING: x\n".repeat(complaints));
        BootReport {
            end,
            findings,
            boots: 1,
            dir: PathBuf::new(),
        }
    }

    #[test]
    fn the_exit_code_tells_the_worst() {
        assert_eq!(report(End::Exited(0), 0).exit_code(), 0);
        assert_eq!(report(End::Exited(7), 0).exit_code(), 7);
        assert_eq!(report(End::Exited(0), 1).exit_code(), EXIT_COMPLAINT);
        assert_eq!(report(End::Exited(7), 1).exit_code(), EXIT_COMPLAINT);
        assert_eq!(report(End::TimedOut, 1).exit_code(), EXIT_TIMEOUT);
        assert_eq!(report(End::Broken("x".into()), 1).exit_code(), EXIT_BROKEN);
    }

    #[test]
    fn what_the_guest_does_not_say_is_against_it() {
        let files = |name: &str| match name {
            "tainted" => Some("12288\n".to_owned()),
            "lockdep" => Some(" debug_locks:  1\n".to_owned()),
            "kmemleak" => Some(String::new()),
            _ => None,
        };
        assert_eq!(taint(files), None);
        assert_eq!(checkers(files, true, true), [""; 0]);
        let nothing = |_: &str| None;
        assert!(taint(nothing).is_some());
        assert_eq!(checkers(nothing, false, false), [""; 0]);
        assert_eq!(checkers(nothing, true, true).len(), 2);
        assert!(taint(|_| Some("512".to_owned())).is_some());
    }

    #[test]
    fn a_status_is_read_or_refused() {
        assert_eq!(parse_status("exited 7\n"), Some(End::Exited(7)));
        assert_eq!(parse_status("timeout 124\n"), Some(End::TimedOut));
        for bad in ["", "exited", "exited x", "exited 256", "gone 0"] {
            assert_eq!(parse_status(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_panic_explains_a_death_best() {
        let panic =
            "[ 1.0] Kernel panic - not syncing: x\r\n[ 1.1]  </TASK>\r\n[ 1.2] Kernel Offset\r\n";
        let host = "qemu: one\nqemu: two, no Kernel panic\n\n";
        assert_eq!(
            last_word(panic, host),
            "[ 1.0] Kernel panic - not syncing: x"
        );
        assert_eq!(last_word("[ 1.0] a\r\n[ 1.1] b\r\n", host), "[ 1.1] b");
        let word = "no Kernel panic yet\r\n[ 1.1] b\r\n";
        assert_eq!(last_word(word, host), "[ 1.1] b");
        assert_eq!(last_word("\r\n", host), "qemu: two, no Kernel panic");
        assert_eq!(last_word("", ""), "the console is empty");
    }

    #[test]
    fn a_broken_guest_is_explained_by_both_logs() {
        let dir = scratch("explain");
        fs::write(dir.join(HOST_LOG), "qemu: no memory\n").unwrap();
        fs::write(dir.join(CONSOLE), "Booting\r\n").unwrap();
        let mut report = report(End::Broken("why".into()), 0);
        report.dir.clone_from(&dir);
        assert_eq!(
            report.explanation(),
            [
                "vm: BROKEN: why".to_owned(),
                "    host| qemu: no memory".to_owned(),
                "    | Booting".to_owned(),
                format!("vm: logs are in {}", dir.display()),
            ]
        );
        report.end = End::Exited(0);
        assert_eq!(report.explanation(), [""; 0]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
