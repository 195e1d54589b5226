// SPDX-License-Identifier: MIT OR Apache-2.0
//! Log lines that may be written around `fork()`: from a stack buffer, in one
//! write(2), never blocking, never into a descriptor of the program's own.
//!
//! The log file is opened for each line and closed again. Standard error is
//! written to only while descriptor 2 is what it was when the program started,
//! and only while it takes a line without waiting.

use std::ffi::{CStr, CString};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use asyncfork_uapi::{Errno, Error, FileId, IoctlName, Reason};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{open, Mode, OFlags};
use rustix::stdio::stderr;

/// How much is logged: messages up to and including this level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Off,
    /// Forks that `ASYNCFORK=require` refused or could not have.
    Error,
    /// What an operator should look at, once per reason.
    Warn,
    /// Each asynchronous fork, and each that had nothing to park.
    Info,
    /// Each fork.
    Debug,
}

impl Level {
    /// All levels, the quietest first.
    pub const ALL: [Self; 5] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// As written in the environment and in log lines.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Messages that are worth their level only once per process.
#[derive(Debug, Clone, Copy)]
pub enum Once {
    /// The device could not be used.
    Device(Error),
    /// The module had a reason for a stock fork.
    Stock(Reason),
    /// The module did not see the fork.
    Unseen,
    /// More helper threads asked for than the module allows.
    Helpers,
    /// The program is bound to one CPU.
    OneCpu,
}

impl Once {
    /// One bit for each kind of message; distinct, see the test.
    fn bit(self) -> u64 {
        let index = match self {
            Self::Stock(reason) => reason.raw().saturating_add(32).min(63),
            Self::Unseen => 0,
            Self::Helpers => 1,
            Self::OneCpu => 14,
            Self::Device(error) => match error {
                Error::Open(Errno::NOENT | Errno::NXIO | Errno::NODEV) => 2,
                Error::Open(Errno::ACCESS | Errno::PERM) => 3,
                Error::Open(Errno::MFILE | Errno::NFILE) => 4,
                Error::Open(_) => 5,
                Error::NotADevice => 6,
                Error::Lost => 7,
                Error::Abi { .. } => 8,
                Error::Ioctl(IoctlName::Version, _) => 9,
                Error::Ioctl(IoctlName::Arm, Errno::BUSY) => 10,
                Error::Ioctl(IoctlName::Arm, _) => 11,
                Error::Ioctl(IoctlName::Report, _) => 12,
                Error::Ioctl(IoctlName::Stats | IoctlName::Recent, _) => 13,
            },
        };
        1u64.wrapping_shl(index)
    }
}

/// Where lines go, and what was said already.
#[derive(Debug)]
pub struct Logger {
    level: Level,
    file: Option<CString>,
    /// Standard error at the start; `None` if it was closed.
    stderr: Option<FileId>,
    said: AtomicU64,
}

impl Logger {
    /// A logger that takes descriptor 2, as it is now, for standard error.
    pub fn new(level: Level, file: Option<CString>) -> Self {
        Self {
            level,
            file,
            stderr: FileId::of(stderr()),
            said: AtomicU64::new(0),
        }
    }

    /// Writes one line if `level` is enabled.
    pub fn log(&self, level: Level, message: fmt::Arguments<'_>) {
        if level > self.level {
            return;
        }
        let pid = rustix::process::getpid();
        let mut line = Line::new();
        // Never an error: Line truncates.
        let _ = write!(line, "asyncfork[{pid}] {}: {message}", level.label());
        self.write(line.finish());
    }

    /// Like [`Logger::log`], at `debug` when `key` was logged before by this
    /// process or, before the fork, by its parent.
    pub fn once(&self, key: Once, level: Level, message: fmt::Arguments<'_>) {
        let bit = key.bit();
        let first = self.said.fetch_or(bit, Ordering::Relaxed) & bit == 0;
        self.log(if first { level } else { Level::Debug }, message);
    }

    fn write(&self, line: &[u8]) {
        // A file that cannot be opened (chroot, other user) is no reason for silence.
        if let Some(file) = self.file.as_deref().and_then(open_log) {
            write_line(file.as_fd(), line);
            // Not OwnedFd's drop: libc's close() is a cancellation point.
            // SAFETY: the descriptor was opened above and is given up here.
            unsafe { rustix::io::close(file.into_raw_fd()) };
        } else if self.stderr.is_some() && FileId::of(stderr()) == self.stderr {
            write_line(stderr(), line);
        }
    }
}

fn open_log(path: &CStr) -> Option<OwnedFd> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    open(path, flags, Mode::RUSR | Mode::WUSR).ok()
}

/// One write, or none if it could block or raise SIGPIPE.
fn write_line(fd: BorrowedFd<'_>, line: &[u8]) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let ready = poll(&mut fds, Some(&Timespec::default())).is_ok();
    let [fd_state] = &fds;
    if ready && fd_state.revents() == PollFlags::OUT {
        // Nobody to tell.
        let _ = rustix::io::write(fd, line);
    }
}

/// A line on the stack. Fits a pipe's PIPE_BUF, so lines do not mix.
struct Line {
    bytes: [u8; Self::CAPACITY],
    used: usize,
}

impl Line {
    const CAPACITY: usize = 512;

    const fn new() -> Self {
        Self {
            bytes: [0; Self::CAPACITY],
            used: 0,
        }
    }

    /// The line with its newline.
    fn finish(&mut self) -> &[u8] {
        // push() keeps the last byte free.
        if let Some(end) = self.bytes.get_mut(self.used) {
            *end = b'\n';
        }
        self.bytes.get(..=self.used).unwrap_or(&[])
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self
            .bytes
            .get_mut(self.used..Self::CAPACITY - 1)
            .unwrap_or(&mut []);
        let count = text.len().min(free.len());
        for (to, from) in free.iter_mut().zip(text.as_bytes()) {
            *to = *from;
        }
        self.used = self.used.saturating_add(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn line(text: &str) -> Vec<u8> {
        let mut line = Line::new();
        write!(line, "{text}").unwrap();
        line.finish().to_vec()
    }

    #[test]
    fn lines_end_with_one_newline_and_are_cut_at_the_capacity() {
        assert_eq!(line(""), b"\n");
        assert_eq!(line("abc"), b"abc\n");
        for length in [510, 511, 512, 10_000] {
            let line = line(&"x".repeat(length));
            assert_eq!(line.len(), length.min(511) + 1);
            assert!(line.ends_with(b"x\n"));
        }
    }

    #[test]
    fn a_full_line_takes_nothing_more() {
        let mut line = Line::new();
        for _ in 0..1000 {
            line.write_str("0123456789").unwrap();
        }
        assert_eq!(line.finish().len(), 512);
    }

    #[test]
    fn keys_do_not_share_a_bit() {
        let mut keys = vec![Once::Unseen, Once::Helpers, Once::OneCpu];
        keys.extend(Reason::ALL.iter().map(|&reason| Once::Stock(reason)));
        keys.extend(
            [
                Error::Open(Errno::NOENT),
                Error::Open(Errno::ACCESS),
                Error::Open(Errno::MFILE),
                Error::Open(Errno::IO),
                Error::NotADevice,
                Error::Lost,
                Error::Abi { found: 2 },
                Error::Ioctl(IoctlName::Version, Errno::NOTTY),
                Error::Ioctl(IoctlName::Arm, Errno::BUSY),
                Error::Ioctl(IoctlName::Arm, Errno::NOTTY),
                Error::Ioctl(IoctlName::Report, Errno::NOTTY),
                Error::Ioctl(IoctlName::Stats, Errno::NOTTY),
            ]
            .map(Once::Device),
        );
        let bits: HashSet<u64> = keys.iter().map(|key| key.bit()).collect();
        assert_eq!(bits.len(), keys.len());
        assert!(!bits.contains(&0));
    }

    #[test]
    fn a_key_keeps_its_level_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = CString::new(path.to_str().unwrap()).unwrap();
        let logger = Logger::new(Level::Warn, Some(file));
        for _ in 0..3 {
            logger.once(Once::Unseen, Level::Warn, format_args!("unseen"));
            logger.once(
                Once::Stock(Reason::Pinned),
                Level::Warn,
                format_args!("pinned"),
            );
        }
        logger.log(Level::Info, format_args!("quiet"));
        let pid = std::process::id();
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            format!("asyncfork[{pid}] warn: unseen\nasyncfork[{pid}] warn: pinned\n")
        );
    }
}
