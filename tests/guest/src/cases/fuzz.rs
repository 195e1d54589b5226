// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random ioctls of many threads and processes, between forks, execs and descriptors on the move, against a model of what
//! each call may give.
//!
//! What a thread does is replayed by the seed: no choice depends on what a call gave.

use super::device::{open, raw_open};
use super::pidns::in_new_namespace;
use super::Test;
use crate::board::{self, Board};
use crate::cgroup::Cgroup;
use crate::crew;
use crate::ctx::Ctx;
use crate::hold;
use crate::mem::{Arena, Span, PAGE};
use crate::module::{self, device_error};
use crate::rng::{mix, Rng};
use crate::runner;
use crate::sys::{self, cvt, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{self as abi, AbiArgument, By, Outcome as Fate, Reason, Report};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("random_ioctls_of_few_threads_disturb_nobody", |c| {
        fuzz(c, &SHORT)
    })
    .module()
    .quick(),
    Test::new("random_ioctls_from_many_threads_disturb_nobody", |c| {
        fuzz(c, &LONG)
    })
    .module(),
];

/// How much is done.
struct Size {
    processes: &'static [Process],
    /// Calls of all threads, without those of their children.
    calls: usize,
    /// Calls while the table of enrolled cgroups is full.
    full: usize,
}

const LONG: Size = Size {
    processes: &[
        Process {
            name: "many",
            group: None,
            world: World::Same,
            threads: &[
                (Model::Exact, Rank::Root),
                (Model::Loose, Rank::Root),
                (Model::Loose, Rank::Root),
                (Model::Exact, Rank::Root),
            ],
        },
        Process {
            name: "member",
            group: Some(0),
            world: World::Same,
            threads: &[(Model::Exact, Rank::Root), (Model::Loose, Rank::NoAdmin)],
        },
        Process {
            name: "nobody",
            group: Some(1),
            world: World::Same,
            threads: &[(Model::Exact, Rank::Nobody), (Model::Loose, Rank::Nobody)],
        },
        Process {
            name: "namespace",
            group: Some(2),
            world: World::NewPids,
            threads: &[(Model::Exact, Rank::Root), (Model::Loose, Rank::Nobody)],
        },
        Process {
            name: "container",
            group: Some(3),
            world: World::NewUsers,
            threads: &[(Model::Exact, Rank::NoAdmin)],
        },
    ],
    calls: 980_000,
    full: 20_000,
};

const SHORT: Size = Size {
    processes: &[
        Process {
            name: "few",
            group: None,
            world: World::Same,
            threads: &[(Model::Exact, Rank::Root), (Model::Loose, Rank::Root)],
        },
        Process {
            name: "nobody",
            group: Some(0),
            world: World::Same,
            threads: &[(Model::Exact, Rank::Nobody)],
        },
    ],
    calls: 24_000,
    full: 0,
};

/// Calls that are not made by then are left out, unless all are asked for: on a busy machine, or on a kernel that checks itself.
const LIMIT: Duration = Duration::from_secs(30);
const FULL_LIMIT: Duration = Duration::from_secs(8);

/// When the calls of a run end that are not made by then: where all are asked for, when the watchdog is about to end the test.
fn limit(full: bool) -> io::Result<Duration> {
    if runner::to_the_last() {
        let seconds = runner::watchdog_seconds()?.unsigned_abs();
        return Ok(Duration::from_secs(seconds.into()) * 2 / 5);
    }
    Ok(if full { FULL_LIMIT } else { LIMIT })
}

/// Steps, of which each is a call, from one fork to the next, on average.
const FORK_EVERY: usize = 600;
/// From one move of a descriptor to the next.
const MOVE_EVERY: usize = 25;
/// From one removal or creation of a cgroup to the next.
const GROUP_EVERY: usize = 2000;

/// Processes of one kind.
struct Process {
    name: &'static str,
    /// Which of the cgroups; else that of the test.
    group: Option<usize>,
    world: World,
    threads: &'static [(Model, Rank)],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum World {
    Same,
    NewPids,
    NewUsers,
}

/// What a thread knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Model {
    /// It arms descriptors that only it has: which is armed, and which a fork takes, is known.
    Exact,
    /// It arms those that others have, too.
    Loose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// CAP_SYS_ADMIN.
    Root,
    /// May open the device, but not enrol.
    NoAdmin,
    /// Has its descriptors from others.
    Nobody,
}

/// Sets of errnos; number 0 is success.
const fn set(errno: i32) -> u64 {
    1 << errno
}

const OK: u64 = set(0);
const PERM: u64 = set(libc::EPERM);
const NOENT: u64 = set(libc::ENOENT);
const TOOBIG: u64 = set(libc::E2BIG);
const BADF: u64 = set(libc::EBADF);
const FAULT: u64 = set(libc::EFAULT);
const BUSY: u64 = set(libc::EBUSY);
const INVAL: u64 = set(libc::EINVAL);
const NOTTY: u64 = set(libc::ENOTTY);
const NOSPC: u64 = set(libc::ENOSPC);
/// Of all that take a struct.
const BAD: u64 = FAULT | INVAL | TOOBIG;

const ERRNOS: [(i32, &str); 11] = [
    (0, "ok"),
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::E2BIG, "E2BIG"),
    (libc::EBADF, "EBADF"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EFAULT, "EFAULT"),
    (libc::EBUSY, "EBUSY"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENOSPC, "ENOSPC"),
];

fn names(errnos: u64) -> String {
    let names = ERRNOS.iter().filter(|(e, _)| errnos & set(*e) != 0);
    names.map(|(_, n)| *n).collect::<Vec<_>>().join(" or ")
}

/// An ioctl, and all that it gives beside success and ENOMEM.
struct Ioctl {
    name: &'static str,
    number: u32,
    /// Bytes of its struct when it came.
    least: usize,
    /// And now.
    size: usize,
    reads: bool,
    fills: bool,
    errnos: u64,
}

const fn ioctl<T>(name: &'static str, number: u32, errnos: u64) -> Ioctl {
    Ioctl {
        name,
        number,
        least: size_of::<T>(),
        size: size_of::<T>(),
        reads: true,
        fills: false,
        errnos: BAD | errnos,
    }
}

impl Ioctl {
    const fn least(mut self, least: usize) -> Self {
        self.least = least;
        self
    }

    /// Reads no more than the size.
    const fn fills_only(mut self) -> Self {
        self.reads = false;
        self.fills = true;
        self
    }

    const fn fills(mut self) -> Self {
        self.fills = true;
        self
    }
}

const VERSION: usize = 0;
const ARM: usize = 1;
const REPORT: usize = 2;
const RECENT: usize = 4;
const ENROLL: usize = 5;
const UNENROLL: usize = 6;
const ENROLLED: usize = 7;

const IOCTLS: [Ioctl; 8] = [
    ioctl::<abi::Version>("VERSION", abi::IOC_VERSION, 0)
        .least(offset_of!(abi::Version, oldest))
        .fills_only(),
    ioctl::<abi::Arm>("ARM", abi::IOC_ARM, BUSY),
    ioctl::<Report>("REPORT", abi::IOC_REPORT, 0)
        .least(LEAST_REPORT)
        .fills_only(),
    ioctl::<abi::Stats>("STATS", abi::IOC_STATS, 0)
        .least(offset_of!(abi::Stats, enrolled))
        .fills_only(),
    ioctl::<abi::Recent>("RECENT", abi::IOC_RECENT, 0)
        .least(offset_of!(abi::Recent, after_seq))
        .fills(),
    ioctl::<abi::Enroll>("ENROLL", abi::IOC_ENROLL, PERM | BADF | NOENT | NOSPC),
    ioctl::<abi::Unenroll>("UNENROLL", abi::IOC_UNENROLL, PERM | BADF | NOENT),
    ioctl::<abi::Enrolled>("ENROLLED", abi::IOC_ENROLLED, 0).fills(),
];

/// Rows of the tally beside those: numbers that are no ioctl, descriptors that are no open device.
const UNKNOWN: usize = 8;
const ELSEWHERE: usize = 9;
const ROWS: usize = 10;

/// How often each is called.
const SHARES: [usize; UNKNOWN + 1] = [8, 18, 12, 8, 9, 14, 12, 9, 8];

const LEAST_REPORT: usize = offset_of!(Report, seq);
/// Threads that one fork may ask for.
const HELPERS: u32 = 8;
/// Larger than any process, and smaller than all.
const NEVER: u64 = 1 << 40;
const ALWAYS: u64 = 1 << 20;

/// What all processes count, in shared memory.
#[repr(C)]
struct Tally {
    /// By row and errno.
    calls: [[AtomicU64; 64]; ROWS],
    forks: AtomicU64,
    /// Of them, such that an ARM was known to take, and were asynchronous.
    armed: AtomicU64,
    asynchronous: AtomicU64,
    execs: AtomicU64,
    killed: AtomicU64,
    /// Descriptors out of a socket.
    received: AtomicU64,
    /// Something is wrong: all are to end.
    stop: AtomicBool,
}

impl Tally {
    fn new() -> io::Result<&'static Self> {
        // SAFETY: zeros are a valid Tally, for it is atomics only.
        unsafe { sys::shared() }
    }

    fn count(&self, row: usize, errno: i32) {
        self.calls[row][errno as usize & 63].fetch_add(1, Relaxed);
    }

    fn of(&self, row: usize, errno: i32) -> u64 {
        self.calls[row][errno as usize].load(Relaxed)
    }

    fn row(&self, row: usize) -> u64 {
        self.calls[row].iter().map(|n| n.load(Relaxed)).sum()
    }

    /// One line for each row.
    fn table(&self) -> Vec<String> {
        let rows = IOCTLS.iter().map(|i| i.name);
        let rows = rows.chain(["unknown number", "no device"]).enumerate();
        let line = |(row, name): (usize, &str)| {
            let errnos = ERRNOS.iter().filter(|(e, _)| self.of(row, *e) > 0);
            let errnos = errnos.map(|(e, n)| format!("{n} {}", self.of(row, *e)));
            let errnos = errnos.collect::<Vec<_>>().join(", ");
            format!("{name}: {} calls, {errnos}", self.row(row))
        };
        let all = |errno| (0..ROWS).map(|row| self.of(row, errno)).sum::<u64>();
        let errnos = ERRNOS.iter().map(|(e, n)| format!("{n} {}", all(*e)));
        let errnos = errnos.collect::<Vec<_>>().join(", ");
        rows.map(line).chain([format!("all: {errnos}")]).collect()
    }
}

/// What all processes have from the one that starts them.
struct Plan<'a> {
    ctx: &'a Ctx,
    tally: &'static Tally,
    board: Board,
    /// Descriptors on their way from one to another.
    mail: (OwnedFd, OwnedFd),
    /// Above all other cgroups here.
    top: Cgroup,
    groups: Vec<Cgroup>,
    /// Directories of cgroups that stay, and their ids.
    dirs: Vec<OwnedFd>,
    ids: Vec<u64>,
    root: OwnedFd,
    removed: OwnedFd,
    removed_id: u64,
    /// Of no cgroup.
    others: Vec<OwnedFd>,
    /// The device's node without the device, and what is no such device.
    path: OwnedFd,
    null: OwnedFd,
    /// The table is full.
    full: bool,
    /// A machine that is too busy makes fewer calls.
    until: Instant,
}

/// A number that is open nowhere.
const CLOSED: i32 = 900;
/// The first of the numbers that the threads of a process share. What open() gives is below.
const SHARED: i32 = 200;
const SHARES_OF_ALL: usize = 4;
/// Descriptors that a thread has for itself.
const SLOTS: usize = 6;

/// A thread's own descriptor.
#[derive(Clone, Copy)]
struct Slot {
    fd: i32,
    /// Which open file it refers to: another number for each.
    file: u32,
    /// A parent has it as well.
    lent: bool,
}

/// What a child does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Look,
    Call,
    Exec,
    Leave,
    Sleep,
    Close,
}

const DEEDS: [(Deed, usize); 6] = [
    (Deed::Look, 5),
    (Deed::Call, 5),
    (Deed::Exec, 1),
    (Deed::Leave, 2),
    (Deed::Sleep, 2),
    (Deed::Close, 2),
];

/// Memory for arguments, in pages of a span. What is not named is not mapped.
const ARGUMENTS: std::ops::Range<usize> = 0..3;
const WRITABLE: std::ops::Range<usize> = 4..6;
/// The same memory, read-only.
const READ_ONLY: std::ops::Range<usize> = 8..10;
const LIST: std::ops::Range<usize> = 12..44;
const DESK: usize = 48;
/// Pages of the memory that forks share; those behind MODEL are for arguments.
const PAGES: usize = 1024;
const MODEL: usize = 992;

/// Bytes behind an argument that nobody may touch.
const GUARD: usize = 16;
const UNTOUCHED: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// Where an argument lies.
struct Place {
    addr: usize,
    readable: usize,
    writable: usize,
    /// Others write there, too.
    racy: bool,
}

/// An argument.
struct Draft {
    /// The size that it says.
    given: u64,
    /// Bytes of the image that are in use.
    used: usize,
    /// The first byte that is not 0 of what the module does not know.
    dirty: Option<usize>,
    /// What the call gives if the struct can be read and filled.
    fields: u64,
    list: Option<List>,
}

/// Where an argument wants entries.
#[derive(Clone, Copy)]
struct List {
    addr: usize,
    room: usize,
    stride: usize,
    count: u32,
    /// Nothing else is there.
    plain: bool,
}

/// A cgroup of a thread's own, which comes and goes.
struct Own {
    path: PathBuf,
    dir: OwnedFd,
    id: u64,
    live: bool,
}

struct Fuzzer<'a> {
    plan: &'a Plan<'a>,
    name: String,
    model: Model,
    rank: Rank,
    rng: Rng,
    slots: Vec<Slot>,
    files: u32,
    /// The files that this thread has armed, the newest last, and the least size that it asked for.
    arms: Vec<(u32, u64)>,
    /// What the last ARM asked for.
    asked: u64,
    desk: Span,
    racy: Span,
    arena: Span,
    seed: u64,
    gens: Vec<u32>,
    image: Vec<u8>,
    own: Option<Own>,
    /// The cgroups that the process is in.
    chain: Vec<u64>,
    children: VecDeque<(i32, Deed)>,
    /// Forks from the thread to here.
    depth: u32,
    step: usize,
}

/// The errno of a call; 0 if it succeeded.
fn call(fd: i32, number: u64, arg: usize) -> i32 {
    // SAFETY: the kernel writes to memory of spans only, where no Rust object lives, or to a struct that the caller has;
    // other addresses are not mapped.
    match unsafe { libc::ioctl(fd, number, arg) } {
        0 => 0,
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
        // No errno of the device's.
        _ => 63,
    }
}

fn close(fd: i32) {
    // SAFETY: a number of this file's; nobody else owns it.
    unsafe { libc::close(fd) };
}

fn dup(fd: i32) -> io::Result<i32> {
    // SAFETY: no memory is involved.
    cvt(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })
}

/// `fd` under the number `to`, in the place of what that was.
fn dup_to(fd: i32, to: i32) -> io::Result<()> {
    // SAFETY: no memory is involved; `to` is a number of this file's.
    cvt(unsafe { libc::dup3(fd, to, libc::O_CLOEXEC) }).map(drop)
}

fn open_device() -> io::Result<i32> {
    Ok(raw_open()?.into_raw_fd())
}

fn poke(addr: usize, bytes: &[u8]) {
    // SAFETY: the caller has mapped it, in a span, where no Rust object lives.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, bytes.len()) };
}

fn peek<T: Copy>(addr: usize) -> T {
    // SAFETY: as in poke(); integers only.
    unsafe { (addr as *const T).read_unaligned() }
}

/// The struct's bytes.
fn bytes<T: AbiArgument>(value: &T) -> &[u8] {
    // SAFETY: such a struct has no padding.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}

const CMSG_WORDS: usize = 3;

/// With room for a descriptor. It points to both.
fn message(iov: &mut libc::iovec, control: &mut [u64; CMSG_WORDS]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    message
}

/// Sends a descriptor; it does not wait for room.
fn send(socket: &OwnedFd, fd: i32, mut tag: u8) -> io::Result<()> {
    let mut control = [0u64; CMSG_WORDS];
    let mut iov = libc::iovec {
        iov_base: (&raw mut tag).cast(),
        iov_len: 1,
    };
    let mut message = message(&mut iov, &mut control);
    // SAFETY: the lengths fit the buffer, and all of it lives across the call.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<i32>() as u32) as _;
        assert!(message.msg_controllen <= size_of_val(&control));
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        cvt(libc::sendmsg(socket.as_raw_fd(), &message, flags)).map(drop)
    }
}

/// Receives a descriptor, if there is one.
fn receive(socket: &OwnedFd) -> Option<(i32, u8)> {
    let (mut control, mut tag) = ([0u64; CMSG_WORDS], 0u8);
    let mut iov = libc::iovec {
        iov_base: (&raw mut tag).cast(),
        iov_len: 1,
    };
    let mut message = message(&mut iov, &mut control);
    // SAFETY: the kernel fills the buffers, which live across the calls, no further than their lengths.
    unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        cvt(libc::recvmsg(socket.as_raw_fd(), &mut message, flags)).ok()?;
        let header = libc::CMSG_FIRSTHDR(&message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return None;
        }
        let fd = libc::CMSG_DATA(header).cast::<i32>().read_unaligned();
        Some((fd, tag))
    }
}

/// Only the receiver will have it.
const ALONE: u8 = b'a';
/// Others have it, too, and may have armed it.
const WITH_OTHERS: u8 = b'o';

/// Takes CAP_SYS_ADMIN from the calling thread.
fn drop_admin() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const SYS_ADMIN: u32 = 21;
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; twice 32 bits.
    let mut data = [0u32; 6];
    // SAFETY: header and data are as the calls want them.
    unsafe {
        cvt(libc::syscall(
            libc::SYS_capget,
            header.as_ptr(),
            data.as_mut_ptr(),
        ))?;
        data[0] &= !(1 << SYS_ADMIN);
        data[1] &= !(1 << SYS_ADMIN);
        cvt(libc::syscall(
            libc::SYS_capset,
            header.as_ptr(),
            data.as_ptr(),
        ))
        .map(drop)
    }
}

/// Takes all privileges from the calling thread, and from no other.
fn thread_becomes_nobody() -> io::Result<()> {
    const NOBODY: u32 = 65534;
    // SAFETY: the calls change the thread's identity only.
    unsafe {
        cvt(libc::syscall(
            libc::SYS_setgroups,
            0,
            std::ptr::null::<u32>(),
        ))?;
        cvt(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY))?;
        cvt(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY)).map(drop)
    }
}

/// The id of a cgroup and of those above.
fn chain_of(group: &Cgroup) -> io::Result<Vec<u64>> {
    let root = Path::new("/sys/fs/cgroup");
    let above = group.path().ancestors().take_while(|p| p.starts_with(root));
    above.map(|p| Ok(fs::metadata(p)?.ino())).collect()
}

impl<'a> Fuzzer<'a> {
    fn new(
        plan: &'a Plan<'a>,
        name: String,
        (model, rank): (Model, Rank),
        racy: Span,
        chain: Vec<u64>,
    ) -> TestResult<Self> {
        let mut rng = Rng::new(plan.ctx.rng().next(), &format!("{name} {}", plan.full));
        let desk = Span::reserve(DESK * PAGE)?;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        for pages in [ARGUMENTS, LIST] {
            desk.page_range(pages).map(both, libc::MAP_PRIVATE)?;
        }
        let shared = sys::memfd(WRITABLE.len() * PAGE)?;
        for (pages, prot) in [(WRITABLE, both), (READ_ONLY, libc::PROT_READ)] {
            let pages = desk.page_range(pages);
            pages.map_fd(prot, libc::MAP_SHARED, shared.as_fd(), 0)?;
        }
        let arena = Span::reserve(PAGES * PAGE)?;
        arena.map(both, libc::MAP_PRIVATE)?;
        arena.advise(libc::MADV_NOHUGEPAGE)?;
        let own = match rank {
            Rank::Root => Some(Own::new(plan.top.path().join(&name))?),
            _ => None,
        };
        let mut this = Self {
            plan,
            name,
            model,
            rank,
            seed: rng.next(),
            rng,
            slots: Vec::new(),
            files: 0,
            arms: Vec::new(),
            asked: 0,
            desk,
            racy,
            arena,
            gens: vec![0; MODEL],
            image: vec![0; PAGE + 2 * GUARD],
            own,
            chain,
            children: VecDeque::new(),
            depth: 0,
            step: 0,
        };
        for _ in 0..SLOTS {
            let (fd, file) = (open_device()?, this.new_file());
            this.slots.push(Slot {
                fd,
                file,
                lent: false,
            });
        }
        for page in 0..MODEL {
            this.write(page);
        }
        this.discard()?;
        match rank {
            Rank::Root => {}
            // The root of a user namespace has it there, and not here.
            Rank::NoAdmin => drop_admin().at("drop CAP_SYS_ADMIN")?,
            Rank::Nobody => thread_becomes_nobody().at("become nobody")?,
        }
        Ok(this)
    }

    fn run(mut self, calls: usize) -> TestResult {
        let mut late = false;
        let result = (0..calls).try_for_each(|step| {
            self.step = step;
            late |= step.is_multiple_of(64) && Instant::now() > self.plan.until;
            if late || self.plan.tally.stop.load(Relaxed) {
                return Ok(());
            }
            self.step()
        });
        if result.is_err() {
            self.plan.tally.stop.store(true, Relaxed);
        }
        let reaped = self.reap(0);
        self.slots.iter().for_each(|s| close(s.fd));
        let own = self.own.take().map_or(Ok(()), Own::end);
        result.and(reaped).and(own).map_err(|v| self.blame(v))?;
        self.verify(true).map_err(|v| self.blame(v))
    }

    fn blame(&self, v: Verdict) -> Verdict {
        v.at(format!(
            "{}, step {}, depth {}",
            self.name, self.step, self.depth
        ))
    }

    fn step(&mut self) -> TestResult {
        if self.rng.one_in(FORK_EVERY) && self.depth == 0 {
            self.fork()?;
        }
        if self.rng.one_in(MOVE_EVERY) {
            self.shuffle()?;
        }
        if self.rng.one_in(GROUP_EVERY) && self.depth == 0 {
            if let Some(own) = &mut self.own {
                own.turn()?;
            }
        }
        self.random_call()
    }

    fn new_file(&mut self) -> u32 {
        self.files += 1;
        self.files
    }

    fn may_open(&self) -> bool {
        self.rank != Rank::Nobody
    }

    fn admin(&self) -> bool {
        self.rank == Rank::Root
    }

    /// This thread has closed a descriptor of the file.
    fn closed(&mut self, file: u32) {
        self.arms.retain(|(f, _)| *f != file);
    }

    // Memory.

    fn key(&self, page: usize) -> u64 {
        mix(self.seed ^ (page as u64) << 32 ^ u64::from(self.gens[page]))
    }

    fn word(page: usize) -> usize {
        page * PAGE + page % (PAGE / 8) * 8
    }

    fn write(&mut self, page: usize) {
        self.gens[page] += 1;
        self.arena.store(Self::word(page), self.key(page));
    }

    /// Compares the memory with the model: all pages, or a few.
    fn verify(&mut self, all: bool) -> TestResult {
        let few = if all { MODEL } else { 8 };
        for n in 0..few {
            let page = if all { n } else { self.rng.below(MODEL) };
            let (got, want) = (self.arena.load(Self::word(page)), self.key(page));
            claim!(
                got == want,
                "page {page} of generation {} holds {got:#x}, want {want:#x}",
                self.gens[page]
            );
        }
        Ok(())
    }

    /// The part of the arena that is for arguments.
    fn scratch(&self) -> Span {
        self.arena.page_range(MODEL..PAGES)
    }

    fn discard(&self) -> io::Result<()> {
        self.scratch().advise(libc::MADV_DONTNEED)
    }

    // Descriptors.

    fn some_slot(&mut self) -> usize {
        self.rng.below(self.slots.len())
    }

    fn some_shared(&mut self) -> i32 {
        SHARED + self.rng.below(SHARES_OF_ALL) as i32
    }

    /// A new descriptor in the place of a slot's.
    fn renew(&mut self, slot: usize, fd: i32) {
        let old = self.slots[slot];
        close(old.fd);
        self.closed(old.file);
        self.slots[slot] = Slot {
            fd,
            file: self.new_file(),
            lent: false,
        };
    }

    /// Closing any of its descriptors takes the ARM of a file back.
    fn disarm(&mut self, slot: usize) -> io::Result<()> {
        let Slot { fd, file, .. } = self.slots[slot];
        close(dup(fd)?);
        self.closed(file);
        Ok(())
    }

    fn shuffle(&mut self) -> TestResult {
        let (slot, other, way) = (self.some_slot(), self.some_slot(), self.rng.below(11));
        let (shared, from, armed) = (
            self.some_shared(),
            self.some_shared(),
            self.rng.one_in(2) && self.depth == 0,
        );
        let mail = if self.rng.one_in(2) {
            (&self.plan.mail.0, &self.plan.mail.1)
        } else {
            (&self.plan.mail.1, &self.plan.mail.0)
        };
        let open = self.may_open();
        match way {
            0 | 1 if open => self.renew(slot, open_device()?),
            2 => self.disarm(slot)?,
            3 if slot != other => {
                let (old, new) = (self.slots[slot], self.slots[other]);
                dup_to(new.fd, old.fd)?;
                self.closed(old.file);
                self.slots[slot] = Slot { fd: old.fd, ..new };
            }
            4 if open => {
                let (old, fd) = (self.slots[slot], open_device()?);
                dup_to(fd, old.fd)?;
                close(fd);
                self.closed(old.file);
                self.slots[slot].file = self.new_file();
                self.slots[slot].lent = false;
            }
            5 => close(shared),
            6 if open => {
                let fd = open_device()?;
                dup_to(fd, shared)?;
                close(fd);
            }
            // It may be closed just now.
            6 if shared != from => drop(dup_to(from, shared)),
            7 | 8 if open => {
                let fd = open_device()?;
                let mut tag = ALONE;
                if armed {
                    self.arm(fd)?;
                    tag = WITH_OTHERS;
                }
                // There may be no room.
                let _ = send(mail.0, fd, tag);
                // Who has armed it takes that back here.
                close(fd);
            }
            7 => drop(send(mail.0, shared, WITH_OTHERS)),
            9 => self.discard()?,
            _ => {
                if let Some((fd, tag)) = receive(mail.1) {
                    self.plan.tally.received.fetch_add(1, Relaxed);
                    if tag == ALONE {
                        let lent = self.slots[slot].lent;
                        self.renew(slot, fd);
                        // Whether one comes must not matter for what is chosen later.
                        self.slots[slot].lent = lent;
                    } else {
                        dup_to(fd, shared)?;
                        close(fd);
                    }
                }
            }
        }
        Ok(())
    }

    /// Arms a descriptor that nobody else has armed, nor can.
    fn arm(&self, fd: i32) -> TestResult {
        let all = abi::Arm::default();
        let errno = call(fd, abi::IOC_ARM.into(), &raw const all as usize);
        self.plan.tally.count(ARM, errno);
        claim!(errno == 0, "ARM of a fresh descriptor gives errno {errno}");
        Ok(())
    }

    fn report(&self, fd: i32) -> TestResult<Report> {
        let mut report = Report::default();
        let errno = call(fd, abi::IOC_REPORT.into(), &raw mut report as usize);
        self.plan.tally.count(REPORT, errno);
        claim!(errno == 0, "REPORT gives errno {errno}");
        Ok(report)
    }

    // Forks.

    fn fork(&mut self) -> TestResult {
        let shares = DEEDS.map(|(_, share)| share);
        let (deed, seed) = (DEEDS[self.rng.weighted(&shares)].0, self.rng.next());
        if self.rng.one_in(3) {
            for slot in 0..self.slots.len() {
                self.disarm(slot)?;
            }
        }
        let armed = match self.model {
            Model::Exact => self.arms.pop(),
            Model::Loose => None,
        };
        // SAFETY: the child runs child() only and never returns; the C library makes malloc usable in it.
        let pid = cvt(unsafe { libc::fork() }).at("fork")?;
        if pid == 0 {
            self.child(deed, seed);
        }
        self.children.push_back((pid, deed));
        self.plan.tally.forks.fetch_add(1, Relaxed);
        if let Some((file, min_rss)) = armed {
            self.expect_fork(pid, file, min_rss)?;
        }
        for _ in 0..4 + self.rng.below(40) {
            let page = self.rng.below(MODEL);
            self.write(page);
        }
        self.reap(2)
    }

    /// The ARM of `file` was the newest.
    fn expect_fork(&self, pid: i32, file: u32, min_rss: u64) -> TestResult {
        let slot = self.slots.iter().find(|s| s.file == file);
        let Some(slot) = slot else {
            return Err(Verdict::Broken("an armed file has no descriptor".into()));
        };
        let r = self.report(slot.fd)?;
        let (fate, reason, child) = match min_rss {
            ..=ALWAYS => (Fate::Async, Reason::None, pid),
            _ => (Fate::Stock, Reason::MinRss, 0),
        };
        claim!(
            (r.outcome(), r.reason(), r.by()) == (fate, reason, By::Arm)
                && (r.parent_pid, r.child_pid) == (sys::pid(), child),
            "outcome {}, reason {}, by {}, child {} of {}; want {fate}, {reason}, child {child} of {}",
            r.outcome(),
            r.reason(),
            r.by(),
            r.child_pid,
            r.parent_pid,
            sys::pid()
        );
        self.plan.tally.armed.fetch_add(1, Relaxed);
        if fate == Fate::Async {
            self.plan.tally.asynchronous.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Waits for all children but the `left` youngest.
    fn reap(&mut self, left: usize) -> TestResult {
        while self.children.len() > left {
            let Some((pid, deed)) = self.children.pop_front() else {
                break;
            };
            if deed == Deed::Sleep {
                sys::kill(pid, libc::SIGKILL).at("kill")?;
                self.plan.tally.killed.fetch_add(1, Relaxed);
            }
            let exit = sys::wait(pid).at("wait")?;
            let expected = match deed {
                Deed::Sleep => matches!(
                    exit,
                    Exit::Signal {
                        signal: libc::SIGKILL,
                        ..
                    }
                ),
                _ => exit == Exit::Code(0),
            };
            claim!(expected, "a child ended with {exit:?}");
        }
        Ok(())
    }

    fn child(&mut self, deed: Deed, seed: u64) -> ! {
        self.rng = Rng::new(seed, "child");
        self.children.clear();
        self.arms.clear();
        self.depth += 1;
        self.slots.iter_mut().for_each(|s| s.lent = true);
        let result = board::guarded(|| self.act(deed));
        if let Err(v) = &result {
            self.plan.tally.stop.store(true, Relaxed);
            let v = self.blame(v.clone());
            self.plan.board.post("child", &Err(v));
        }
        sys::exit_now(i32::from(result.is_err()));
    }

    fn act(&mut self, deed: Deed) -> TestResult {
        match deed {
            Deed::Look => self.verify(true),
            Deed::Call => {
                self.verify(false)?;
                if self.may_open() {
                    for slot in 0..2 {
                        self.renew(slot, open_device()?);
                    }
                }
                if self.depth == 1 && self.rng.one_in(4) {
                    self.fork()?;
                }
                for _ in 0..self.rng.below(80) {
                    self.step()?;
                }
                self.reap(0)?;
                self.verify(true)
            }
            Deed::Exec => self.exec(),
            Deed::Leave => Ok(()),
            Deed::Sleep => loop {
                // SAFETY: no memory is involved.
                unsafe { libc::pause() };
            },
            Deed::Close => {
                self.slots.iter().for_each(|s| close(s.fd));
                (SHARED..SHARED + SHARES_OF_ALL as i32).for_each(close);
                self.verify(true)
            }
        }
    }

    /// Armed, with descriptors that stay open or not, it becomes another program, which may fork.
    fn exec(&mut self) -> TestResult {
        let mut fds = vec![self.slots[0].fd];
        if self.may_open() {
            let fd = open_device()?;
            self.arm(fd)?;
            fds.push(fd);
        }
        if self.rng.one_in(2) {
            for fd in fds {
                // SAFETY: plain numbers; without FD_CLOEXEC from now on.
                cvt(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
            }
        }
        self.plan.tally.execs.fetch_add(1, Relaxed);
        let (program, arguments) = if self.rng.one_in(3) {
            (c"/bin/sh", [c"sh", c"-c", c"(:); (:)"].as_slice())
        } else {
            (c"/bin/true", [c"true"].as_slice())
        };
        let mut argv: Vec<_> = arguments.iter().map(|a| a.as_ptr()).collect();
        argv.push(std::ptr::null());
        let env = [std::ptr::null()];
        // SAFETY: C strings, and arrays of them that end with a null pointer.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        Err(io::Error::last_os_error()).at("exec")
    }

    // Calls.

    fn random_call(&mut self) -> TestResult {
        let mut kind = self.rng.weighted(&SHARES);
        let own: Vec<usize> = (0..self.slots.len())
            .filter(|&s| kind != ARM || !self.slots[s].lent)
            .collect();
        let which = self.rng.below(32);
        let (slot, shared, odd) = (self.rng.below(SLOTS), self.some_shared(), self.rng.below(7));
        let loose = kind != ARM || self.model == Model::Loose;
        // Number, and what it gives if it is no open device.
        let (fd, slot, elsewhere) = if which == 0 {
            let null = self.plan.null.as_raw_fd();
            let other = self.plan.others[odd % self.plan.others.len()].as_raw_fd();
            let (fd, errnos) = [
                (-1, BADF),
                (CLOSED, BADF),
                (i32::MAX, BADF),
                (i32::MIN, BADF),
                (self.plan.path.as_raw_fd(), BADF),
                (null, NOTTY),
                (other, NOTTY),
            ][odd];
            (fd, None, Some(errnos))
        } else if loose && (which < 7 || own.is_empty()) {
            (shared, None, None)
        } else {
            if own.is_empty() {
                kind = REPORT;
            }
            let slot = own.get(slot % own.len().max(1)).copied().unwrap_or(slot);
            (self.slots[slot].fd, Some(slot), None)
        };
        if kind == UNKNOWN {
            return self.unknown_number(fd, slot.is_some(), elsewhere);
        }

        let ioctl = &IOCTLS[kind];
        let racy = self.rng.one_in(24) && loose;
        let (draft, place) = if racy {
            self.racy_argument(ioctl)
        } else {
            let draft = self.draft(kind);
            let place = self.place(ioctl, &draft);
            (draft, place)
        };
        let mut want = self.wanted(kind, &draft, &place);
        if kind == ARM && want == OK {
            want = match (slot, self.model) {
                (Some(slot), Model::Exact) => {
                    let file = self.slots[slot].file;
                    let armed = self.arms.iter().any(|(f, _)| *f == file);
                    if armed {
                        BUSY
                    } else {
                        OK
                    }
                }
                _ => OK | BUSY,
            };
        }
        want = match (slot, elsewhere) {
            (_, Some(errnos)) => errnos,
            (None, None) => want | BADF,
            _ => want,
        };
        // The kernel looks at 32 bits.
        let number = u64::from(ioctl.number) | u64::from(self.rng.one_in(50)) << 40;
        let errno = call(fd, number, place.addr);
        let nowhere = slot.is_none() && errno == libc::EBADF || elsewhere.is_some();
        let row = if nowhere { ELSEWHERE } else { kind };
        self.plan.tally.count(row, errno);
        claim!(
            want & set(errno & 63) != 0,
            "{} gives errno {errno}, want {}: descriptor {fd}, size {}, at {:#x} of which {:#x} bytes can be read and {:#x} written, image {:x?}",
            ioctl.name,
            names(want),
            draft.given,
            place.addr,
            place.readable,
            place.writable,
            &self.image[..ioctl.size.min(40)]
        );
        if errno != 0 {
            return Ok(());
        }
        if kind == ARM && self.model == Model::Exact {
            if let Some(slot) = slot {
                self.arms.push((self.slots[slot].file, self.asked));
            }
        }
        if place.racy {
            return Ok(());
        }
        self.expect_filled(kind, &draft, &place)
    }

    /// A number near those that there are, or any.
    fn unknown_number(&mut self, fd: i32, own: bool, elsewhere: Option<u64>) -> TestResult {
        let near = IOCTLS[self.rng.below(IOCTLS.len())].number;
        let bits = self.rng.next() as u32;
        let number = match self.rng.below(6) {
            0 => near & !0xff | bits & 0xff,
            1 => near ^ (bits & 0x3fff) << 16,
            2 => near ^ bits & 0xc000_0000,
            3 => near ^ 0x100 << (bits % 8),
            4 => near + 8,
            _ => 0x0000_af00 | bits & 0xffff_00ff,
        };
        let addr = match bits % 3 {
            0 => 0,
            1 => self.desk.addr(),
            _ => self.bad_address(),
        };
        if IOCTLS.iter().any(|i| i.number == number) {
            return Ok(());
        }
        let errno = call(fd, number.into(), addr);
        let want = match (own, elsewhere) {
            (_, Some(errnos)) => errnos,
            (true, None) => NOTTY,
            (false, None) => NOTTY | BADF,
        };
        let row = if own { UNKNOWN } else { ELSEWHERE };
        self.plan.tally.count(row, errno);
        claim!(
            want & set(errno & 63) != 0,
            "number {number:#x} gives errno {errno}, want {}",
            names(want)
        );
        Ok(())
    }

    /// What is mapped nowhere, or not a user's.
    fn bad_address(&mut self) -> usize {
        let near = self.rng.below(PAGE);
        match self.rng.below(10) {
            0 | 1 => 0,
            2 => near,
            3 => self.desk.page(WRITABLE.end).addr() + near,
            4 => self.arena.end() + near,
            // The end of what a user may have, and beyond.
            5 => 0x7fff_ffff_f000 - near % 32,
            6 => 0x8000_0000_0000 + near,
            // The kernel's direct map and its text.
            7 => 0xffff_8880_0000_0000 + near * PAGE,
            8 => 0xffff_ffff_8100_0000 + near,
            _ => usize::MAX - near,
        }
    }

    fn given(&mut self, ioctl: &Ioctl) -> u64 {
        let (size, least) = (ioctl.size as u64, ioctl.least as u64);
        let n = self.rng.next();
        match self.rng.below(20) {
            0 => least,
            1 => least + n % (size - least + 1),
            2 | 3 => size + 1 + n % 64,
            4 => [4096, 4095, 4088, 2048][n as usize % 4].max(size),
            5 => [0, 8, least - 1, least - 8][n as usize % 4],
            6 => [4097, 8192, 1 << 32, u64::MAX, 1 << 63][n as usize % 5],
            7 if n.is_multiple_of(4) => n,
            _ => size,
        }
    }

    /// An argument in the image.
    fn draft(&mut self, kind: usize) -> Draft {
        let ioctl = &IOCTLS[kind];
        let given = self.given(ioctl);
        let within = if given <= PAGE as u64 {
            given as usize
        } else {
            ioctl.size
        };
        let used = within.max(ioctl.size) + GUARD;
        self.image[..used].fill(UNTOUCHED as u8);
        let tail = within.saturating_sub(ioctl.size);
        let (dirty, at) = (self.rng.one_in(3), self.rng.below(tail.max(1)));
        let dirty = (dirty && tail > 0).then_some(ioctl.size + at);
        if ioctl.reads {
            self.image[ioctl.size..ioctl.size + tail].fill(0);
            if let Some(at) = dirty {
                self.image[at] = 1;
            }
        }
        let (fields, list) = match kind {
            ARM => (self.draft_arm(), None),
            ENROLL => (self.draft_enroll(), None),
            UNENROLL => (self.draft_unenroll(), None),
            RECENT => self.draft_recent(),
            ENROLLED => self.draft_enrolled(),
            _ => (OK, None),
        };
        self.image[..8].copy_from_slice(&given.to_ne_bytes());
        Draft {
            given,
            used,
            dirty,
            fields,
            list,
        }
    }

    fn put<T: AbiArgument>(&mut self, value: &T) {
        self.image[..size_of::<T>()].copy_from_slice(bytes(value));
    }

    fn some_flags(&mut self) -> u32 {
        let bit = self.rng.below(32);
        u32::from(self.rng.one_in(14)) << bit
    }

    fn some_helpers(&mut self) -> u32 {
        let n = self.rng.below(100) as u32;
        match self.rng.below(14) {
            0 => HELPERS + 1 + n,
            1 => u32::MAX - n,
            2 => HELPERS,
            3 | 4 => n % HELPERS,
            _ => 0,
        }
    }

    fn some_min_rss(&mut self) -> u64 {
        [0, 0, 0, 1, 4096, ALWAYS, NEVER, u64::MAX][self.rng.below(8)]
    }

    fn draft_arm(&mut self) -> u64 {
        let arm = abi::Arm {
            flags: self.some_flags(),
            helpers: self.some_helpers(),
            min_rss: self.some_min_rss(),
            ..abi::Arm::default()
        };
        self.put(&arm);
        self.asked = arm.min_rss;
        if arm.flags != 0 || arm.helpers > HELPERS {
            INVAL
        } else {
            OK
        }
    }

    /// A descriptor that is a cgroup's directory or not, and what enrolling that gives.
    fn some_cgroup(&mut self) -> (i32, u64) {
        let room = if self.plan.full { OK | NOSPC } else { OK };
        let n = self.rng.below(1 << 16);
        let slot = self.some_slot();
        match (self.rng.below(16), &self.own) {
            (0 | 1, Some(own)) => {
                let errnos = match (self.depth, own.live) {
                    (0, true) => room,
                    (0, false) => NOENT,
                    // The parent may turn it.
                    _ => room | NOENT,
                };
                (own.dir.as_raw_fd(), errnos)
            }
            (2, _) => (self.plan.removed.as_raw_fd(), NOENT),
            (3, _) => (self.plan.root.as_raw_fd(), INVAL),
            (4, _) => {
                let numbers = [-1, -2, libc::AT_FDCWD, CLOSED, i32::MIN, i32::MAX];
                (numbers[n % numbers.len()], BADF)
            }
            (5, _) => {
                let others = &self.plan.others;
                (others[n % others.len()].as_raw_fd(), BADF)
            }
            (6, _) => (self.slots[slot].fd, BADF),
            _ => {
                let dirs = &self.plan.dirs;
                (dirs[n % dirs.len()].as_raw_fd(), room)
            }
        }
    }

    fn draft_enroll(&mut self) -> u64 {
        let (cgroup_fd, errnos) = self.some_cgroup();
        let enroll = abi::Enroll {
            cgroup_fd,
            flags: self.some_flags(),
            min_rss: self.some_min_rss(),
            helpers: self.some_helpers(),
            reserved: self.some_flags(),
            ..abi::Enroll::default()
        };
        self.put(&enroll);
        if enroll.flags != 0 || enroll.reserved != 0 || enroll.helpers > HELPERS {
            INVAL
        } else {
            errnos
        }
    }

    /// An id, and whether it may be enrolled.
    fn some_id(&mut self) -> (u64, bool) {
        let n = self.rng.next();
        match (self.rng.below(10), &self.own) {
            (0 | 1, Some(own)) => (own.id, true),
            (2, _) => (self.plan.removed_id, false),
            (3, _) => (1, false),
            (4, _) => (n | 1 << 63, false),
            _ => (self.plan.ids[n as usize % self.plan.ids.len()], true),
        }
    }

    fn draft_unenroll(&mut self) -> u64 {
        let (fd, errnos) = self.some_cgroup();
        let (id, enrolled) = self.some_id();
        let (cgroup_id, cgroup_fd, mut want) = match self.rng.below(10) {
            // Both, and none.
            0 if fd != -1 => (id, fd, INVAL),
            1 => (0, -1, INVAL),
            0..=5 if fd == -1 => (0, fd, INVAL),
            0..=5 if errnos & OK != 0 => (0, fd, errnos & !NOSPC | NOENT),
            0..=5 => (0, fd, errnos),
            _ => (id, -1, if enrolled { OK | NOENT } else { NOENT }),
        };
        let flags = self.some_flags();
        if flags != 0 {
            want = INVAL;
        }
        self.put(&abi::Unenroll {
            cgroup_id,
            cgroup_fd,
            flags,
            ..abi::Unenroll::default()
        });
        want
    }

    /// Room for entries of `size` bytes, which once were `least`, and what asking for them gives.
    fn some_list(&mut self, least: usize, size: usize) -> (u64, List) {
        let n = self.rng.below(1000);
        let stride = match self.rng.below(16) {
            0 => [0, 1, 8, least - 1][n % 4],
            1 => [PAGE + 1, 1 << 16, u32::MAX as usize][n % 3],
            2 => least,
            3 => least + n % 200,
            4 => PAGE,
            _ => size,
        };
        let count = match self.rng.below(16) {
            0 | 1 => 0,
            2 => u32::MAX - n as u32,
            3 => 256 + n as u32,
            4 => 4096,
            _ => 1 + n as u32 % 5,
        };
        let list = self.desk.page_range(LIST);
        let (addr, room, plain) = match self.rng.below(20) {
            0 => (list.addr() + 1 + n % 7, list.len() - 8, true),
            1 | 2 => (list.end() - n, n, false),
            3 => (self.bad_address(), 0, false),
            4 => (self.desk.page_range(READ_ONLY).addr(), 0, false),
            // In the way of the argument.
            5 => (self.desk.addr() + n, 0, false),
            6 | 7 => {
                let half = self.arena.page_range(MODEL + 16..PAGES);
                (half.addr() + n, half.len() - n, true)
            }
            _ => (list.addr(), list.len(), true),
        };
        let list = List {
            addr,
            room,
            stride,
            count,
            plain,
        };
        let overlap = self.desk.page_range(ARGUMENTS);
        let want = if stride < least {
            INVAL
        } else if stride > PAGE {
            TOOBIG
        } else if count > 0 && (overlap.addr()..overlap.end()).contains(&addr) {
            OK | BAD
        } else if count == 0 || list.end().is_some() {
            OK
        } else {
            OK | FAULT
        };
        if let (true, Some(end)) = (plain, list.end()) {
            poke(end, &UNTOUCHED.to_ne_bytes());
        }
        (want, list)
    }

    fn draft_recent(&mut self) -> (u64, Option<List>) {
        let (want, list) = self.some_list(LEAST_REPORT, size_of::<Report>());
        let after_seq = match self.rng.below(8) {
            0 => u64::MAX,
            1 => self.rng.next(),
            2 | 3 => self.rng.below(2000) as u64,
            _ => 0,
        };
        self.put(&abi::Recent {
            entries: list.addr as u64,
            entry_size: list.stride as u32,
            count: list.count,
            after_seq,
            ..abi::Recent::default()
        });
        (want, Some(list))
    }

    fn draft_enrolled(&mut self) -> (u64, Option<List>) {
        let size = size_of::<abi::Entry>();
        let (want, list) = self.some_list(size, size);
        self.put(&abi::Enrolled {
            entries: list.addr as u64,
            entry_size: list.stride as u32,
            count: list.count,
            ..abi::Enrolled::default()
        });
        (want, Some(list))
    }

    /// Puts the image somewhere.
    fn place(&mut self, ioctl: &Ioctl, draft: &Draft) -> Place {
        let near = self.rng.below(512);
        let arguments = self.desk.page_range(ARGUMENTS);
        let scratch = self.scratch();
        let whole = |addr| Place {
            addr,
            readable: usize::MAX,
            writable: usize::MAX,
            racy: false,
        };
        let edge = near % (ioctl.size + 24);
        let at_end = |end: usize| Place {
            addr: end - edge,
            readable: edge,
            writable: edge,
            racy: false,
        };
        let place = match self.rng.below(24) {
            0..=2 => whole(arguments.addr() + near),
            3..=6 => whole(scratch.addr() + near * 64 + near % 9),
            7 => at_end(arguments.end()),
            8 => at_end(self.arena.end()),
            // A child writes to its parent's.
            9 if self.depth == 0 => {
                poke(
                    self.desk.page_range(WRITABLE).addr(),
                    &self.image[..draft.used],
                );
                return Place {
                    writable: 0,
                    ..whole(self.desk.page_range(READ_ONLY).addr())
                };
            }
            10 => {
                return Place {
                    addr: self.bad_address(),
                    readable: 0,
                    writable: 0,
                    racy: false,
                }
            }
            _ => whole(arguments.addr() + near / 8 * 8),
        };
        poke(place.addr, &self.image[..draft.used.min(place.readable)]);
        place
    }

    /// An argument that other threads change meanwhile. Whatever they make of it, entries go nowhere else.
    fn racy_argument(&mut self, ioctl: &Ioctl) -> (Draft, Place) {
        let given = self.given(ioctl);
        let target = self.racy.page(1).addr() as u64;
        let second = [target, 0, 1, self.plan.ids[0]][self.rng.below(4)];
        let words = [given, second, scribble(&mut self.rng), 0];
        for (i, word) in words.iter().enumerate() {
            self.racy.store(i * 8, *word);
        }
        let place = Place {
            addr: self.racy.addr(),
            readable: usize::MAX,
            writable: usize::MAX,
            racy: true,
        };
        let draft = Draft {
            given,
            used: 0,
            dirty: None,
            fields: OK,
            list: None,
        };
        (draft, place)
    }

    /// What a call on an open device may give.
    fn wanted(&self, kind: usize, draft: &Draft, place: &Place) -> u64 {
        let ioctl = &IOCTLS[kind];
        if !self.admin() && matches!(kind, ENROLL | UNENROLL) {
            return PERM;
        }
        if place.racy {
            return OK | ioctl.errnos & !PERM;
        }
        if place.readable < 8 {
            return FAULT;
        }
        if draft.given < ioctl.least as u64 {
            return INVAL;
        }
        if draft.given > PAGE as u64 {
            return TOOBIG;
        }
        let given = draft.given as usize;
        if ioctl.reads {
            let mut bad = 0;
            if given > place.readable {
                bad |= FAULT;
            }
            if draft.dirty.is_some_and(|at| at < place.readable) {
                bad |= TOOBIG;
            }
            if bad != 0 {
                return bad;
            }
        }
        if draft.fields & OK != 0 && ioctl.fills && place.writable < given {
            return FAULT | draft.fields & BAD;
        }
        draft.fields
    }

    /// What a call has filled in, and what it has left alone.
    fn expect_filled(&self, kind: usize, draft: &Draft, place: &Place) -> TestResult {
        let ioctl = &IOCTLS[kind];
        let given = draft.given as usize;
        // What entries have run over says nothing.
        if !ioctl.fills || draft.fields & INVAL != 0 {
            return Ok(());
        }
        let filled = peek::<u64>(place.addr);
        claim!(
            filled == given.min(ioctl.size) as u64,
            "{} of {given} bytes says that it filled {filled}",
            ioctl.name
        );
        if given > ioctl.size {
            let last = peek::<u8>(place.addr + given - 1);
            claim!(
                last == 0,
                "{} of {given} bytes ends in {last:#x}",
                ioctl.name
            );
        }
        if place.readable >= draft.used {
            let behind: [u64; 2] = peek(place.addr + given.max(ioctl.size));
            claim!(
                behind == [UNTOUCHED; 2],
                "{} of {given} bytes wrote {behind:x?} behind",
                ioctl.name
            );
        }
        if kind == VERSION {
            let abi = peek::<u32>(place.addr + offset_of!(abi::Version, abi));
            let new = given >= offset_of!(abi::Version, reserved);
            let want = if new {
                abi::ABI_VERSION
            } else {
                abi::ABI_OLDEST
            };
            claim!(abi == want, "VERSION of {given} bytes says {abi}");
        }
        match draft.list {
            Some(list) => self.expect_entries(kind, &list, place),
            None => Ok(()),
        }
    }

    fn expect_entries(&self, kind: usize, list: &List, place: &Place) -> TestResult {
        // Both structs have it there.
        let count = peek::<u32>(place.addr + offset_of!(abi::Enrolled, count));
        claim!(
            count <= list.count,
            "{count} entries where there is room for {}",
            list.count
        );
        if !list.plain {
            return Ok(());
        }
        if let Some(end) = list.end() {
            let behind = peek::<u64>(end);
            claim!(
                behind == UNTOUCHED,
                "{} entries of {} bytes, and {behind:#x} behind",
                list.count,
                list.stride
            );
        }
        let known = if kind == RECENT {
            size_of::<Report>()
        } else {
            size_of::<abi::Entry>()
        };
        for entry in (0..count as usize).map(|n| list.addr + n * list.stride) {
            let size = peek::<u64>(entry);
            claim!(
                size == list.stride.min(known) as u64,
                "an entry of {} bytes says {size}",
                list.stride
            );
            if self.admin() {
                break;
            }
            if kind == ENROLLED {
                let id = peek::<u64>(entry + offset_of!(abi::Entry, cgroup_id));
                claim!(
                    self.chain.contains(&id),
                    "cgroup {id} is told to one of {:?}",
                    self.chain
                );
            } else {
                let parent = peek::<i32>(entry + offset_of!(Report, parent_pid));
                claim!(parent > 0, "a fork of process {parent} is told");
            }
        }
        Ok(())
    }
}

impl List {
    /// The address behind, if there is room for all and for a word more.
    fn end(&self) -> Option<usize> {
        let need = self.stride.checked_mul(self.count as usize)?;
        (need + 8 <= self.room).then_some(self.addr + need)
    }
}

impl Own {
    fn new(path: PathBuf) -> TestResult<Self> {
        fs::create_dir(&path).at("create a cgroup")?;
        let dir: OwnedFd = File::open(&path)?.into();
        let id = fs::metadata(&path)?.ino();
        Ok(Self {
            path,
            dir,
            id,
            live: true,
        })
    }

    /// Removes it, or makes another one. The directory of one that is gone stays open, and its id is kept.
    fn turn(&mut self) -> TestResult {
        if self.live {
            fs::remove_dir(&self.path).at("remove a cgroup")?;
            self.live = false;
        } else {
            *self = Self::new(std::mem::take(&mut self.path))?;
        }
        Ok(())
    }

    fn end(self) -> TestResult {
        if self.live {
            fs::remove_dir(&self.path).at("remove a cgroup")?;
        }
        Ok(())
    }
}

/// Size and number of entries, neither large.
fn scribble(rng: &mut Rng) -> u64 {
    let size = [0, 48, 440, 456, 4096, 4097][rng.below(6)];
    (rng.below(6) as u64) << 32 | size
}

/// Changes the arguments that all threads use, until `working` is 0.
fn scribbler(mut rng: Rng, racy: Span, working: &AtomicUsize) {
    while working.load(Relaxed) > 0 {
        for _ in 0..200 {
            let size = [0, 24, 28, 32, 48, 440, 456, 2000, 4096, 4097, 1 << 20][rng.below(11)];
            racy.store(0, size);
            racy.store(16, scribble(&mut rng));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Process {
    /// Runs all threads of it.
    fn run(&self, plan: &Plan, calls: usize) -> TestResult {
        hold::run_anywhere()?;
        let group = self.group.map(|n| &plan.groups[n]);
        if let Some(group) = group {
            group.enter()?;
        }
        // The test's own processes are in a group below its own.
        let main = plan.ctx.cgroup.child("main")?;
        let chain = chain_of(group.unwrap_or(&main))?;
        match self.world {
            World::Same => self.threads(plan, calls, &chain),
            World::NewPids => in_new_namespace(plan.ctx, || self.threads(plan, calls, &chain)),
            World::NewUsers => {
                // SAFETY: no memory is involved.
                cvt(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).at("unshare")?;
                self.threads(plan, calls, &chain)
            }
        }
    }

    fn threads(&self, plan: &Plan, calls: usize, chain: &[u64]) -> TestResult {
        let racy = Span::reserve(4 * PAGE)?;
        racy.page_range(0..3)
            .map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        let working = AtomicUsize::new(self.threads.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .threads
                .iter()
                .enumerate()
                .map(|(n, &thread)| {
                    let (name, working) = (format!("{}-{n}", self.name), &working);
                    let body = move || {
                        let result = board::guarded(|| {
                            Fuzzer::new(plan, name, thread, racy, chain.to_vec())?.run(calls)
                        });
                        if result.is_err() {
                            plan.tally.stop.store(true, Relaxed);
                        }
                        working.fetch_sub(1, Relaxed);
                        result
                    };
                    scope.spawn(body)
                })
                .collect();
            if self.threads.len() > 1 {
                let rng = Rng::new(plan.ctx.seed, self.name);
                scope.spawn(|| scribbler(rng, racy, &working));
            }
            crew::join(threads)
        })
    }
}

/// A pair of sockets that keep each message apart.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = std::os::unix::net::UnixDatagram::pair()?;
    Ok((one.into(), other.into()))
}

impl<'a> Plan<'a> {
    fn new(
        ctx: &'a Ctx,
        tally: &'static Tally,
        top: &Cgroup,
        full: Option<&[u64]>,
    ) -> TestResult<Self> {
        // More than there is room for when the table is full.
        let number = if full.is_some() { 30 } else { 6 };
        let removed = top.child("removed")?;
        let (removed_dir, removed_id) = (removed.open()?, fs::metadata(removed.path())?.ino());
        removed.remove()?;
        let mut groups = Vec::new();
        for n in 0..number {
            groups.push(top.child(&format!("g{n}"))?);
        }
        let (mut dirs, mut ids) = (Vec::new(), Vec::new());
        for group in groups.iter().chain([top, &ctx.cgroup]) {
            dirs.push(group.open()?);
            let path = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open(group.path())?;
            dirs.push(path.into());
            ids.push(fs::metadata(group.path())?.ino());
        }
        ids.extend(full.unwrap_or_default().iter().take(2));
        let node = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/dev/asyncfork")?;
        let others = vec![
            File::open(top.path().join("cgroup.procs"))?.into(),
            File::open(&ctx.scratch)?.into(),
            sys::memfd(PAGE)?,
            sys::pipe()?.0,
        ];
        Ok(Self {
            ctx,
            tally,
            board: Board::new()?,
            mail: socket_pair()?,
            top: top.clone(),
            groups,
            dirs,
            ids,
            root: File::open("/sys/fs/cgroup")?.into(),
            removed: removed_dir,
            removed_id,
            others,
            path: node.into(),
            null: File::open("/dev/null")?.into(),
            full: full.is_some(),
            until: Instant::now() + limit(full.is_some())?,
        })
    }

    /// Runs all processes.
    fn run(self, size: &Size, calls: usize) -> TestResult {
        let threads: usize = size.processes.iter().map(|p| p.threads.len()).sum();
        let mut pids = Vec::new();
        for process in size.processes {
            let body = || process.run(&self, calls / threads);
            pids.push(self.ctx.helper(&self.board, process.name, body)?);
        }
        let names: Vec<&str> = size.processes.iter().map(|p| p.name).collect();
        let result = self.board.collect(&names);
        for pid in pids {
            sys::wait(pid)?;
        }
        result
    }
}

/// Enrols new cgroups until there is no room; their ids.
fn fill_table(top: &Cgroup) -> TestResult<Vec<u64>> {
    let (device, many) = (open()?, top.child("many")?);
    let mut ids = Vec::new();
    for n in 0..=abi::MAX_ENTRIES {
        let group = many.child(&format!("m{n}"))?;
        let dir = group.open()?;
        // SAFETY: it is open as long as the result is in use.
        let fd = unsafe { abi::BorrowedFd::borrow_raw(dir.as_raw_fd()) };
        match device.enroll(fd, NEVER, 0) {
            Ok(()) => ids.push(fs::metadata(group.path())?.ino()),
            Err(abi::Error::Ioctl(_, abi::Errno::NOSPC)) => return Ok(ids),
            Err(e) => return Err(device_error(e).into()),
        }
    }
    Err(Verdict::Failed(format!(
        "more than {} cgroups can be enrolled",
        abi::MAX_ENTRIES
    )))
}

/// Takes all entries and cgroups away.
fn clean(ctx: &Ctx, top: &Cgroup) -> TestResult {
    let device = open()?;
    let entries = module::enrolled(&device)?;
    let counted = ctx.stats()?.enrolled;
    claim!(
        counted == entries.len() as u64,
        "{counted} entries are counted, {} are there",
        entries.len()
    );
    for entry in entries {
        device.unenroll_id(entry.cgroup_id).map_err(device_error)?;
    }
    claim!(
        ctx.stats()?.enrolled == 0 && module::enrolled(&device)?.is_empty(),
        "entries are left"
    );
    // The last ones' processes may be on their way out.
    let removed = sys::poll_until(|| Ok::<_, ()>(top.remove().ok()));
    claim!(removed == Ok(Some(())), "the cgroups cannot be removed");
    Ok(())
}

fn fuzz(ctx: &Ctx, size: &Size) -> TestResult<String> {
    let start = Instant::now();
    let tally = Tally::new()?;
    let before = ctx.stats()?;
    let top = ctx.cgroup.child("fuzz")?;
    Plan::new(ctx, tally, &top, None)?.run(size, size.calls)?;
    let first = start.elapsed().as_secs_f32();
    if size.full > 0 {
        let ids = fill_table(&top)?;
        Plan::new(ctx, tally, &top, Some(&ids))?.run(size, size.full)?;
    }
    clean(ctx, &top)?;

    let over =
        sys::poll_until(|| -> TestResult<_> { Ok((ctx.stats()?.running == 0).then_some(())) })?;
    claim!(over.is_some(), "a session runs on without its processes");
    let state = ctx.module.get("state")?;
    claim!(state == "on", "the state is {state:?}");
    let after = ctx.stats()?;
    let armed = after.armed - before.armed;
    claim!(
        armed == tally.of(ARM, 0),
        "{armed} ARMs are counted, {} were made",
        tally.of(ARM, 0)
    );
    let (asynchronous, stock) = (after.r#async - before.r#async, after.stock - before.stock);
    let by_entry = after.async_how(By::Enrolled) - before.async_how(By::Enrolled);
    let known = |n: &AtomicU64| n.load(Relaxed);
    claim!(
        asynchronous >= known(&tally.asynchronous)
            && asynchronous + stock >= known(&tally.armed)
            && after.failed == before.failed,
        "{asynchronous} asynchronous forks, {stock} stock, {} failed",
        after.failed - before.failed
    );
    ctx.module.expect_unused()?;
    // After all that. Before anything is printed: 9p may pin what it writes (Linux 7.3), and then forks are stock.
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(4)?;

    let calls: u64 = (0..ROWS).map(|row| tally.row(row)).sum();
    let good: u64 = (0..ROWS).map(|row| tally.of(row, 0)).sum();
    tally.table().iter().for_each(|line| println!("  {line}"));
    println!(
        "  {} forks, {asynchronous} asynchronous, {by_entry} of them by an entry, {stock} stock; {} forks by a known ARM, {} execs, {} killed, {} descriptors received",
        known(&tally.forks),
        known(&tally.armed),
        known(&tally.execs),
        known(&tally.killed),
        known(&tally.received)
    );
    for (row, ioctl) in IOCTLS.iter().enumerate() {
        let wanted = if size.full > 0 {
            ioctl.errnos
        } else {
            ioctl.errnos & !NOSPC
        };
        let missing = ERRNOS
            .iter()
            .filter(|(e, _)| (wanted | OK) & set(*e) != 0 && tally.of(row, *e) == 0);
        let missing: Vec<_> = missing.map(|(_, n)| *n).collect();
        require!(
            missing.is_empty(),
            "{} never gave {}",
            ioctl.name,
            missing.join(", ")
        );
    }
    let wanted = (size.calls + size.full) as u64;
    if runner::to_the_last() && size.full > 0 && calls < wanted {
        return Err(Verdict::Broken(format!(
            "{calls} of {wanted} calls in {first:.0} s"
        )));
    }
    require!(
        tally.of(UNKNOWN, libc::ENOTTY) > 0 && good * 10 >= calls,
        "{good} of {calls} calls succeeded"
    );
    require!(
        asynchronous * 10 >= known(&tally.forks) && by_entry > 0 && known(&tally.received) > 0,
        "{asynchronous} asynchronous forks, {by_entry} by an entry, {} descriptors received",
        known(&tally.received)
    );

    Ok(format!(
        "{calls} calls, {good} succeeded, {} forks, {asynchronous} asynchronous, {first:.0} s before the table was full",
        known(&tally.forks)
    ))
}
