// SPDX-License-Identifier: MIT OR Apache-2.0
//! Log lines that may be written around `fork()`: from a stack buffer, in one
//! write, never blocking, raising no signal, never into a descriptor of the
//! program's own.
//!
//! The log file is opened for each line and closed again. Standard error is
//! written to only while descriptor 2 is what it was when the program started.

use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicU64, Ordering};

use asyncfork_settings::{level_label, PathBuffer};
use asyncfork_uapi::{Errno, Error, Fd, FileId, IoctlName, Reason};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{fcntl_getfl, FileType, Mode, OFlags};
use rustix::io::{pwritev2, IoSlice, ReadWriteFlags};
use rustix::net::{send, SendFlags};
use rustix::termios::isatty;

use crate::quiet::Quiet;

/// Messages that are worth their level only once per process.
#[derive(Debug, Clone, Copy)]
pub enum Once {
    /// The device could not be used.
    Device(Error),
    /// The module had a reason for a stock fork.
    Stock(Reason),
    /// The module did not see the fork.
    Unseen,
    /// Another fork has used the ARM.
    Taken,
    /// More helper threads asked for than the module allows.
    Helpers,
    /// The program is bound to one CPU.
    OneCpu,
    /// A fork that is to be stock, of a process without the mark.
    Unmarked,
}

impl Once {
    /// One bit for each kind of message; distinct, see the test.
    fn bit(self) -> u64 {
        let index = match self {
            Self::Stock(reason) => reason.raw().saturating_add(32).min(63),
            Self::Unseen => 0,
            Self::Helpers => 1,
            Self::OneCpu => 14,
            Self::Taken => 15,
            Self::Unmarked => 16,
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
                Error::Ioctl(_, _) => 13,
            },
        };
        1u64.wrapping_shl(index)
    }

    /// `level`, or `debug` when this was said before by this process or, before
    /// the fork, by its parent.
    pub fn level(self, level: Level) -> Level {
        static SAID: AtomicU64 = AtomicU64::new(0);
        let bit = self.bit();
        if SAID.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            level
        } else {
            Level::Debug
        }
    }
}

/// Where lines go.
pub struct Logger {
    level: LevelFilter,
    file: Option<PathBuffer>,
    /// Standard error at the start; `None` if it was closed.
    stderr: Option<FileId>,
    /// And it was the journal's, which wants a line to begin with its priority.
    is_journal: bool,
}

impl Logger {
    /// A logger that takes descriptor 2, as it is now, for standard error; `journal` is
    /// what `JOURNAL_STREAM` says.
    pub fn new(level: LevelFilter, file: Option<PathBuffer>, journal: Option<&[u8]>) -> Self {
        let stderr = FileId::of(stderr());
        let is_journal = journal
            .and_then(journal_stream)
            .zip(stderr)
            .is_some_and(|((dev, ino), stderr)| stderr.is(dev, ino));
        Self {
            level,
            file,
            stderr,
            is_journal,
        }
    }

    fn write(&self, line: &mut Line) {
        // A file that cannot be opened (chroot, other user) is no reason for silence.
        if let Some(file) = self.file.as_ref().and_then(open_log) {
            if let Some(id) = FileId::of(&file) {
                write_line(file.as_fd(), id.kind(), line.finish());
            }
            return;
        }
        match FileId::of(stderr()) {
            Some(id) if Some(id) == self.stderr => {
                let line = if self.is_journal {
                    line.finish_with_priority()
                } else {
                    line.finish()
                };
                write_line(stderr(), id.kind(), line);
            }
            _ => {}
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let pid = rustix::process::getpid();
        let level = level_label(record.level().to_level_filter());
        let mut line = Line::new(priority(record.level()));
        // Never an error: Line truncates.
        let _ = write!(line, "asyncfork[{pid}] {level}: {}", record.args());
        self.write(&mut line);
    }

    fn flush(&self) {}
}

/// The device and inode numbers in `JOURNAL_STREAM`, decimal and with a colon between.
fn journal_stream(value: &[u8]) -> Option<(u64, u64)> {
    let (dev, ino) = core::str::from_utf8(value).ok()?.split_once(':')?;
    Some((dev.parse().ok()?, ino.parse().ok()?))
}

/// syslog's digit, as in sd-daemon(3).
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => b'3',
        Level::Warn => b'4',
        Level::Info => b'6',
        Level::Debug | Level::Trace => b'7',
    }
}

fn stderr() -> BorrowedFd<'static> {
    // SAFETY: if it is closed, what is done with it fails, and if it is another
    // file by now, FileId tells.
    unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }
}

fn open_log(path: &PathBuffer) -> Option<Fd> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    Fd::open(path.as_c_str(), flags, Mode::RUSR | Mode::WUSR).ok()
}

/// One write, or none if it could block or raise a signal.
fn write_line(fd: BorrowedFd<'_>, kind: FileType, line: &[u8]) {
    let Some(quiet) = Quiet::new() else {
        return;
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let ready = poll(&mut fds, Some(&Timespec::default())).is_ok();
    let [state] = &fds;
    if !ready || state.revents() != PollFlags::OUT {
        return;
    }
    let written = match kind {
        FileType::Socket => {
            // Raises none.
            let _ = send(fd, line, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            return;
        }
        // Somebody else may fill it after the poll.
        FileType::Fifo => write_to_pipe(fd, line),
        FileType::CharacterDevice if isatty(fd) => write_to_terminal(fd, line),
        FileType::CharacterDevice | FileType::RegularFile => rustix::io::write(fd, line),
        // No place for text.
        _ => return,
    };
    if let Err(errno) = written {
        // Nobody to tell.
        quiet.failed(errno);
    }
}

/// Without waiting for room: where the kernel can do that to pipes (Linux 6.5), where
/// we may open it anew, or else after the poll, when there was room.
fn write_to_pipe(pipe: BorrowedFd<'_>, line: &[u8]) -> rustix::io::Result<usize> {
    const HERE: u64 = u64::MAX;
    match pwritev2(pipe, &[IoSlice::new(line)], HERE, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => match open_again(pipe) {
            Ok(again) => rustix::io::write(&again, line),
            Err(_) => rustix::io::write(pipe, line),
        },
        written => written,
    }
}

/// A terminal says that it is ready when it has room for a byte (n_tty_write()), and
/// a descriptor from elsewhere would wait for the rest: so by one of our own.
fn write_to_terminal(terminal: BorrowedFd<'_>, line: &[u8]) -> rustix::io::Result<usize> {
    if fcntl_getfl(terminal)?.contains(OFlags::NONBLOCK) {
        return rustix::io::write(terminal, line);
    }
    rustix::io::write(open_again(terminal)?, line)
}

/// Standard error by a descriptor that does not wait. A log file's is one already.
fn open_again(stderr: BorrowedFd<'_>) -> rustix::io::Result<Fd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let again = Fd::open(c"/proc/self/fd/2", flags, Mode::empty())?;
    if FileId::of(&again) != FileId::of(stderr) {
        return Err(Errno::BADF);
    }
    Ok(again)
}

/// A line on the stack, behind its priority. Fits a pipe's PIPE_BUF, so lines do not mix.
struct Line {
    bytes: [u8; Self::CAPACITY],
    used: usize,
}

impl Line {
    /// Bytes of the priority.
    const PREFIX: usize = 3;
    const CAPACITY: usize = Self::PREFIX + 512;

    const fn new(priority: u8) -> Self {
        let mut bytes = [0; Self::CAPACITY];
        [bytes[0], bytes[1], bytes[2]] = [b'<', priority, b'>'];
        Self {
            bytes,
            used: Self::PREFIX,
        }
    }

    /// The line with its newline.
    fn finish(&mut self) -> &[u8] {
        self.finish_with_priority()
            .get(Self::PREFIX..)
            .unwrap_or(&[])
    }

    /// The same, priority first.
    fn finish_with_priority(&mut self) -> &[u8] {
        // write_str() keeps the last byte free.
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
    use std::os::unix::fs::MetadataExt;

    fn line(text: &str) -> Vec<u8> {
        let mut line = Line::new(b'4');
        write!(line, "{text}").unwrap();
        assert!(line.finish_with_priority().starts_with(b"<4>"));
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
    fn journal_stream_is_two_numbers() {
        assert_eq!(journal_stream(b"9:1234567"), Some((9, 1234567)));
        assert_eq!(
            journal_stream(b"0:18446744073709551615"),
            Some((0, u64::MAX))
        );
        for bad in [
            &b""[..],
            b":",
            b"9",
            b"9:",
            b":9",
            b"9:9:9",
            b"9: 9",
            b"9:-9",
            b"0x9:9",
            b"9:9\n",
            b"9:18446744073709551616",
            b"\xff:9",
        ] {
            assert_eq!(journal_stream(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_full_line_takes_nothing_more() {
        let mut line = Line::new(b'4');
        for _ in 0..1000 {
            line.write_str("0123456789").unwrap();
        }
        assert_eq!(line.finish().len(), 512);
    }

    #[test]
    fn keys_do_not_share_a_bit() {
        let mut keys = vec![
            Once::Unseen,
            Once::Taken,
            Once::Helpers,
            Once::OneCpu,
            Once::Unmarked,
        ];
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
        for key in [Once::Unseen, Once::Stock(Reason::Pinned)] {
            assert_eq!(key.level(Level::Warn), Level::Warn);
            assert_eq!(key.level(Level::Warn), Level::Debug);
            assert_eq!(key.level(Level::Error), Level::Debug);
        }
    }

    #[test]
    fn the_level_decides_and_lines_name_process_and_level() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = PathBuffer::new(path.to_str().unwrap().as_bytes()).unwrap();
        // Not even while standard error is the journal's.
        let id = std::fs::metadata("/proc/self/fd/2").unwrap();
        let journal = format!("{}:{}", id.dev(), id.ino());
        let logger = Logger::new(LevelFilter::Warn, Some(file), Some(journal.as_bytes()));
        assert!(logger.is_journal);
        for (level, text) in [
            (Level::Error, "one"),
            (Level::Warn, "two"),
            (Level::Info, "three"),
        ] {
            let args = format_args!("{text}");
            logger.log(&Record::builder().level(level).args(args).build());
        }
        let pid = std::process::id();
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            format!("asyncfork[{pid}] error: one\nasyncfork[{pid}] warn: two\n")
        );
    }
}
