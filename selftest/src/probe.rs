// SPDX-License-Identifier: MIT OR Apache-2.0
//! One attempt: a helper process parks memory, does an operation while its child is held back, and both look at the result.
//!
//! The helper and its child share one CPU and are `SCHED_BATCH`, so a new child does not preempt its parent, which is through
//! with its operation long before its time slice ends. That needs no privilege, and decides no verdict: that is what the
//! module's counters are for.

use crate::memory::{Arena, Shared, CHUNK, PAGES};
use crate::sys::{self, Cpus, Uffd};
use crate::Error;
use asyncfork_uapi::{Arm, Device, Hook, Report, State};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

/// How long an attempt may take, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long the parent waits for a helper thread to begin.
const HELPER_PATIENCE: Duration = Duration::from_millis(100);

/// What the parent does while its memory is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing: the child copies.
    Nothing,
    /// Nothing, until a helper thread has pulled.
    AwaitHelper,
    /// Write a word.
    Write,
    /// munmap().
    Unmap,
    /// madvise(MADV_DONTNEED).
    Zap,
    /// mprotect().
    Protect,
    /// mremap().
    Move,
    /// mincore().
    Mincore,
    /// An ioctl of userfaultfd.
    Register,
    /// fork().
    Fork,
    /// _exit().
    Exit,
}

impl Op {
    /// The operation that `hook` must notice, or why there is none for an ordinary process.
    pub fn of(hook: Hook, max_helpers: u32) -> Result<Self, &'static str> {
        Ok(match hook {
            Hook::Child => Self::Nothing,
            Hook::Helper if max_helpers == 0 => return Err("module parameter max_helpers is 0"),
            Hook::Helper => Self::AwaitHelper,
            Hook::Fault => Self::Write,
            Hook::Unmap => Self::Unmap,
            Hook::Zap => Self::Zap,
            Hook::Protect => Self::Protect,
            Hook::Mremap => Self::Move,
            Hook::Walk => Self::Mincore,
            Hook::Uffd => Self::Register,
            Hook::Fork => Self::Fork,
            Hook::Exit => Self::Exit,
            Hook::Migration => {
                return Err("needs a page in migration, which only the kernel or root can start")
            }
            Hook::Dump => return Err("would leave a core dump"),
            Hook::Poison => return Err("needs a memory failure"),
            Hook::PteAlloc => {
                return Err("needs a driver whose mmap fills page tables, with park_partial")
            }
            Hook::Unknown(_) => return Err("unknown to this self-test"),
        })
    }
}

/// What a process found in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing: it did not get that far.
    Silent,
    /// What must be there.
    Right,
    /// Something else.
    Wrong(String),
    /// Nothing: the operation is not available.
    Lacking(String),
}

/// What an attempt yields.
#[derive(Debug)]
pub struct Evidence {
    /// Just before the operation.
    pub before: Report,
    /// Just after it.
    pub after: Report,
    /// When all processes were gone.
    pub last: Report,
    /// By whom, and what.
    pub said: Vec<(&'static str, Said)>,
    /// A process did not end.
    pub stuck: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Silent,
    Right,
    Wrong,
    Lacking,
    /// A system call failed.
    Unable,
}

/// A message of fixed size.
#[derive(Clone, Copy)]
struct Note {
    kind: Kind,
    errno: i32,
    len: usize,
    text: [u8; 160],
}

impl Note {
    fn new(kind: Kind, text: &str) -> Self {
        let mut note = Self {
            kind,
            errno: 0,
            len: text.len().min(160),
            text: [0; 160],
        };
        note.text[..note.len].copy_from_slice(&text.as_bytes()[..note.len]);
        note
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text[..self.len]).into_owned()
    }

    fn said(&self) -> Result<Said, Error> {
        Ok(match self.kind {
            Kind::Silent => Said::Silent,
            Kind::Right => Said::Right,
            Kind::Wrong => Said::Wrong(self.text()),
            Kind::Lacking => Said::Lacking(self.text()),
            Kind::Unable => return Err(system(&self.text(), self.error())),
        })
    }

    fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// Where the processes leave what they saw; each has a board of its own.
type Board = Shared<Note>;

fn system(call: &str, source: io::Error) -> Error {
    Error::System {
        call: call.into(),
        source,
    }
}

/// Boards and reports of an attempt.
struct Boards {
    parent: Board,
    child: Board,
    second: Board,
    reports: Shared<[Report; 2]>,
}

impl Boards {
    fn new() -> io::Result<Self> {
        let silent = Note::new(Kind::Silent, "");
        Ok(Self {
            parent: Board::new(silent)?,
            child: Board::new(silent)?,
            second: Board::new(silent)?,
            reports: Shared::new([Report::default(); 2])?,
        })
    }
}

/// Makes one attempt at `op`.
///
/// # Errors
/// A system call failed that has nothing to do with the module.
pub fn attempt(device: &Device, op: Op) -> Result<Evidence, Error> {
    let boards = Boards::new().map_err(|e| system("mmap", e))?;
    let (read, write) = sys::pipe().map_err(|e| system("pipe", e))?;
    // SAFETY: the child ends in helper(), which takes no lock that another thread may hold; malloc's are taken care of by fork().
    let pid = sys::cvt(unsafe { libc::fork() }).map_err(|e| system("fork", e))?;
    if pid == 0 {
        drop(read);
        guarded(&boards.parent, || helper(device, op, &boards));
    }
    drop(write);

    // Every process of the attempt holds the other end until it ends.
    let gone = sys::wait_hang_up(&read, PATIENCE).map_err(|e| system("poll", e))?;
    if gone {
        sys::wait(pid).map_err(|e| system("waitpid", e))?;
    } else {
        // Nobody may wait for one that cannot be killed.
        sys::kill(pid);
    }

    let last = device
        .report()
        .map_err(|e| system("REPORT", errno_of(&e)))?;
    let [before, after] = boards.reports.get();
    let mut said = vec![
        ("parent", boards.parent.get().said()?),
        ("child", boards.child.get().said()?),
    ];
    if op == Op::Fork {
        said.push(("second child", boards.second.get().said()?));
    }
    Ok(Evidence {
        before,
        after,
        last,
        said,
        stuck: !gone,
    })
}

/// Why a process of an attempt ends early.
enum Trouble {
    Wrong(String),
    Lacking(String),
    Unable(&'static str, io::Error),
}

/// Adds the name of the call.
trait Call<T> {
    fn call(self, name: &'static str) -> Result<T, Trouble>;
}

impl<T> Call<T> for io::Result<T> {
    fn call(self, name: &'static str) -> Result<T, Trouble> {
        self.map_err(|e| Trouble::Unable(name, e))
    }
}

impl<T> Call<T> for Result<T, asyncfork_uapi::Error> {
    fn call(self, name: &'static str) -> Result<T, Trouble> {
        self.map_err(|e| Trouble::Unable(name, errno_of(&e)))
    }
}

fn errno_of(e: &asyncfork_uapi::Error) -> io::Error {
    match e {
        asyncfork_uapi::Error::Ioctl(_, errno) | asyncfork_uapi::Error::Open(errno) => {
            io::Error::from_raw_os_error(errno.raw_os_error())
        }
        other => io::Error::other(other.to_string()),
    }
}

/// Life of a forked process: `body`, a note, the end. Never unwinds into the caller's frames.
fn guarded(board: &Board, body: impl FnOnce() -> Result<(), Trouble>) -> ! {
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(Trouble::Wrong("the self-test panicked".into())));
    board.set(match result {
        Ok(()) => Note::new(Kind::Right, ""),
        Err(Trouble::Wrong(why)) => Note::new(Kind::Wrong, &why),
        Err(Trouble::Lacking(why)) => Note::new(Kind::Lacking, &why),
        Err(Trouble::Unable(call, e)) => Note {
            errno: e.raw_os_error().unwrap_or(0),
            ..Note::new(Kind::Unable, call)
        },
    });
    sys::exit_now(0)
}

/// The helper process: parent of the asynchronous fork.
fn helper(device: &Device, op: Op, boards: &Boards) -> Result<(), Trouble> {
    // SAFETY: a setting of this process: it does not outlive the test.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut arena = Arena::new().call("mmap")?;
    let uffd = match op {
        Op::Register => {
            Some(Uffd::new().map_err(|e| Trouble::Lacking(format!("userfaultfd: {e}")))?)
        }
        _ => None,
    };
    let arm = Arm {
        helpers: u32::from(op == Op::AwaitHelper),
        ..Arm::default()
    };

    // The parent is to come first. Where this is forbidden, it may yet be lucky.
    let everywhere = Cpus::allowed();
    let _ = Cpus::current().and_then(|here| here.confine(0));
    let _ = sys::set_fifo().or_else(|_| sys::set_batch());
    // Awakes to a fresh time slice.
    std::thread::sleep(Duration::from_nanos(1));

    device.arm(&arm).call("ARM")?;
    let child = fork(&boards.child, &arena)?;
    let before = device.report().call("REPORT")?;
    boards.reports.set([before; 2]);
    let mut second = None;
    match op {
        Op::Nothing => {}
        Op::AwaitHelper => await_helper(device)?,
        Op::Write => arena.overwrite(),
        Op::Unmap => arena.unmap().call("munmap")?,
        Op::Zap => arena.zap().call("madvise")?,
        Op::Protect => arena.protect().call("mprotect")?,
        Op::Move => arena.move_away().call("mremap")?,
        Op::Mincore => {
            let resident = arena.resident().call("mincore")?;
            if resident != PAGES {
                return Err(Trouble::Wrong(format!(
                    "mincore sees {resident} of {PAGES} pages"
                )));
            }
        }
        Op::Register => {
            if let Some(uffd) = &uffd {
                uffd.register(arena.target(), CHUNK)
                    .call("UFFDIO_REGISTER")?;
            }
        }
        Op::Fork => second = Some(fork(&boards.second, &arena)?),
        // The note comes first, the end is the operation.
        Op::Exit => return Ok(()),
    }
    let after = device.report().call("REPORT")?;
    boards.reports.set([before, after]);

    if let Ok(cpus) = &everywhere {
        let _ = cpus.confine(child);
        let _ = cpus.confine(0);
    }
    if op == Op::Unmap {
        arena.map_again().call("mmap")?;
    }
    if op == Op::Nothing {
        // Looking at the memory would pull it.
        expect_exit(child)?;
        return arena.verify().map_err(Trouble::Wrong);
    }
    let verdict = arena.verify().map_err(Trouble::Wrong);
    expect_exit(child)?;
    if let Some(second) = second {
        expect_exit(second)?;
    }
    verdict
}

/// Forks a child that compares its memory with `arena`.
fn fork(board: &Board, arena: &Arena) -> Result<i32, Trouble> {
    // SAFETY: the helper process has one thread.
    let pid = unsafe { sys::raw_fork() }.call("fork")?;
    if pid == 0 {
        guarded(board, || arena.verify().map_err(Trouble::Wrong));
    }
    Ok(pid)
}

fn expect_exit(pid: i32) -> Result<(), Trouble> {
    let status = sys::wait(pid).call("waitpid")?;
    if libc::WIFSIGNALED(status) {
        return Err(Trouble::Wrong(format!(
            "the child was killed by signal {}; see the kernel log",
            libc::WTERMSIG(status)
        )));
    }
    Ok(())
}

/// Until a helper thread has pulled. Does not sleep: the child is to wait, too.
fn await_helper(device: &Device) -> Result<(), Trouble> {
    let start = Instant::now();
    while start.elapsed() < HELPER_PATIENCE {
        let report = device.report().call("REPORT")?;
        if report.chunks.by_helper > 0 || report.state() != State::Running {
            break;
        }
        std::hint::spin_loop();
    }
    Ok(())
}
