// SPDX-License-Identifier: MIT OR Apache-2.0
//! A child that is held back in the middle of a copy does not hold up its parent, who waits for that copy: until it is through
//! the child stays on its processor, whatever is to run there.
//!
//! The child lingers in the copy of its first chunk (fault injection). Meanwhile something comes up that keeps it from running,
//! and the parent touches that chunk. Nothing lets the child go before the parent is back, or is late.

use super::common::Linger;
use super::huge::folios_of_64_kib;
use super::swap::page_out;
use super::uffd::poison;
use super::Test;
use crate::board::Board;
use crate::cgroup::Cgroup;
use crate::ctx::Ctx;
use crate::hold::{self, Hold};
use crate::mem::{Arena, Span, Want, PAGE};
use crate::procfs::Setting;
use crate::rng::Rng;
use crate::session::{summary, Session};
use crate::swap::Swap;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::State;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new(
        "parent_meets_a_copy_whose_child_is_throttled_inside_it",
        throttled,
    )
    .faults(),
    Test::new(
        "parent_meets_a_copy_whose_child_has_the_least_share_of_its_cpu",
        |ctx| every_kind(ctx, Way::LeastShare),
    )
    .faults(),
    Test::new(
        "parent_meets_a_copy_whose_child_is_starved_by_a_real_time_task",
        |ctx| every_kind(ctx, Way::Starved),
    )
    .faults(),
];

/// The child's processor.
const CPU: usize = 0;
/// Milliseconds of its own that the child spends in a copy. Held back in there it takes much longer than the limit.
const LINGER_MS: u32 = 500;
/// How long a child is held back if the parent does not come back.
const LIMIT: Duration = Duration::from_secs(20);
/// Less real-time than the parent while it holds the child.
const HOG_PRIORITY: i32 = 10;
const MIB: usize = 4;

/// How the child is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its cgroup has used up what it may run.
    Throttled,
    /// SCHED_IDLE beside an ordinary task.
    LeastShare,
    /// Ordinary beside a real-time task.
    Starved,
}

/// What the chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Folios,
    Swap,
    Guards,
    Poison,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Plain,
        Self::Folios,
        Self::Swap,
        Self::Guards,
        Self::Poison,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain pages",
            Self::Folios => "folios of 64 KiB",
            Self::Swap => "swap entries",
            Self::Guards => "guard markers",
            Self::Poison => "poison markers",
        }
    }

    /// Memory whose first chunk is of this kind as long as the settings live; its first page is ordinary or in swap.
    fn arena(self, rng: &mut Rng) -> TestResult<(Arena, Option<[Setting; 2]>)> {
        match self {
            Self::Folios => {
                let (arena, settings) = folios_of_64_kib(rng, MIB)?;
                return Ok((arena, Some(settings)));
            }
            Self::Guards => skip_unless!(
                asyncfork_host::kernel::kernel_since(6, 13)?,
                "no guard markers in this kernel (Linux 6.13)"
            ),
            Self::Poison => skip_unless!(
                asyncfork_host::kernel::kernel_since(6, 6)?,
                "no UFFDIO_POISON in this kernel (Linux 6.6)"
            ),
            Self::Plain | Self::Swap => {}
        }
        let mut arena = Arena::new(rng, MIB)?;
        if self == Self::Swap {
            page_out(&arena, arena.chunk(0))?;
        }
        if matches!(self, Self::Guards | Self::Poison) {
            for page in arena.chunk(0).skip(5).step_by(50) {
                let span = arena.part(page..page + 1);
                self.mark(span)?;
                arena.expect(page..page + 1, Want::Fault);
            }
        }
        Ok((arena, None))
    }

    fn mark(self, page: Span) -> TestResult {
        const MADV_GUARD_INSTALL: i32 = 102;
        if self == Self::Guards {
            return page.advise(MADV_GUARD_INSTALL).at("MADV_GUARD_INSTALL");
        }
        page.advise(libc::MADV_DONTNEED)?;
        poison(page)
    }
}

/// Where the two processes of a brake talk: byte offsets in their shared page.
const WANTED: usize = 0;
const STATE: usize = 8;
const READY: u64 = 1;
const ON: u64 = 2;
const GAVE_UP: u64 = 3;

/// Keeps the child from running, and lets it go if the parent does not come back: a process that occupies the child's
/// processor, or only looks at the clock where the child's cgroup is what holds it back.
struct Brake {
    way: Way,
    page: Span,
    group: Cgroup,
    board: Option<Board>,
    pid: i32,
}

impl Brake {
    /// Ready, but off. To be made before the test's memory exists.
    fn new(ctx: &Ctx, way: Way, name: &str) -> TestResult<Self> {
        let page = Span::reserve(PAGE)?;
        page.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?;
        let group = ctx.cgroup.child(name)?;
        let board = Board::new()?;
        let pid = ctx.helper(&board, "brake", || run_brake(way, page, &group))?;
        let brake = Self {
            way,
            page,
            group,
            board: Some(board),
            pid,
        };
        wait_for(|| Ok(page.load(STATE) == READY), "no brake")?;
        if way == Way::Throttled {
            // One millisecond a second.
            brake.group.set("cpu.max", "1000 1000000")?;
        }
        Ok(brake)
    }

    fn put_on(&self) {
        self.page.store(WANTED, 1);
    }

    fn gave_up(&self) -> bool {
        self.page.load(STATE) == GAVE_UP
    }

    /// Waits until the child, out of its copy, is indeed held back.
    fn wait_until_it_holds(&self) -> TestResult {
        let holds = || -> TestResult<bool> {
            let throttled = || self.group.get_key("cpu.stat", "nr_throttled ");
            Ok(self.page.load(STATE) == ON && (self.way != Way::Throttled || throttled()? > 0))
        };
        wait_for(holds, "nothing holds the child back")
    }

    /// Lets the child go.
    fn stop(&mut self) -> TestResult {
        self.group.set("cpu.max", "max")?;
        let Some(board) = self.board.take() else {
            return Ok(());
        };
        sys::kill(self.pid, libc::SIGKILL)?;
        sys::wait(self.pid)?;
        board.collect(&[])
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        // One that is throttled cannot even be killed.
        let _ = self.stop();
    }
}

/// The brake's life; it is killed in the end.
fn run_brake(way: Way, page: Span, group: &Cgroup) -> TestResult {
    const TICK: Duration = Duration::from_millis(1);
    if way != Way::Throttled {
        sys::set_affinity(&[CPU])?;
    }
    if way == Way::Starved {
        sys::set_fifo(HOG_PRIORITY)?;
    }
    page.store(STATE, READY);
    while page.load(WANTED) == 0 {
        std::thread::sleep(TICK);
    }
    page.store(STATE, ON);
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if way == Way::Throttled {
            std::thread::sleep(TICK);
        }
    }
    page.store(STATE, GAVE_UP);
    group.set("cpu.max", "max")?;
    loop {
        std::thread::sleep(LIMIT);
    }
}

fn wait_for(done: impl Fn() -> TestResult<bool>, otherwise: &str) -> TestResult {
    let met = sys::poll_until(|| -> TestResult<Option<()>> { Ok(done()?.then_some(())) })?;
    require!(met.is_some(), "{otherwise}");
    Ok(())
}

/// Gives a process the policy SCHED_IDLE.
fn set_idle(pid: i32) -> TestResult {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives across the call.
    cvt(unsafe { libc::sched_setscheduler(pid, libc::SCHED_IDLE, &param) }).at("SCHED_IDLE")?;
    Ok(())
}

/// Demands that the parent has waited for the child's copy of a chunk, and that the child has come no further.
fn expect_one_chunk(session: &Session, kind: Kind) -> TestResult {
    session.expect_async()?;
    let Some(r) = session.report()? else {
        return Ok(());
    };
    require!(
        r.parent_pull_ns > 0 && r.chunks.by_parent == 0,
        "the parent did not meet the child's copy: {}",
        summary(&r)
    );
    require!(
        r.chunks.by_child == 1 && r.state() == State::Running,
        "the child was to be held back after one chunk: {}",
        summary(&r)
    );
    claim!(
        r.chunks.mixed == u64::from(kind != Kind::Plain),
        "a chunk with {}: {}",
        kind.name(),
        summary(&r)
    );
    Ok(())
}

fn meet(ctx: &Ctx, way: Way, kind: Kind) -> TestResult {
    let mut rng = ctx.rng();
    let mut brake = Brake::new(ctx, way, &format!("slow-{kind:?}"))?;
    let _swap = (kind == Kind::Swap).then(Swap::new).transpose()?;
    let (mut arena, _settings) = kind.arena(&mut rng)?;

    let hold = Hold::new()?;
    let mut fork = ctx.fork();
    if way == Way::Throttled {
        fork = fork.into_cgroup(&brake.group)?;
    }
    let session = fork.start(|| arena.verify())?;
    session.expect_running()?;
    let linger = Linger::new(ctx, session.pid, "af_copy", LINGER_MS)?;
    if way == Way::LeastShare {
        set_idle(session.pid)?;
    }
    hold::run_elsewhere()?;
    wait_for(|| linger.is_inside(), "the child does not begin to copy")?;
    brake.put_on();
    require!(linger.is_inside()?, "the child's copy is over");
    arena.write(0, 1);
    claim!(
        !brake.gave_up(),
        "the parent waited for a child that was held back"
    );
    brake.wait_until_it_holds()?;
    // It would be through with the next chunk long before.
    drop(linger);
    for _ in 0..2 {
        expect_one_chunk(&session, kind)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    require!(!brake.gave_up(), "the test took longer than its limit");
    brake.stop()?;
    drop(hold);
    let ended = session.finish()?;
    arena.verify().at("parent")?;
    ended
        .whole(arena.chunks())?
        .holds("the child has pulled all of it", |r| {
            r.chunks.by_child >= arena.chunks()
        })?;
    Ok(arena.span().unmap()?)
}

fn throttled(ctx: &Ctx) -> TestResult<String> {
    skip_unless!(
        !asyncfork_host::kernel::kernel_since(6, 18)?,
        "throttled tasks go on to user mode here (since Linux 6.18)"
    );
    every_kind(ctx, Way::Throttled)
}

fn every_kind(ctx: &Ctx, way: Way) -> TestResult<String> {
    let (mut met, mut lacking) = (vec![], vec![]);
    for kind in Kind::ALL {
        match meet(ctx, way, kind) {
            Ok(()) => met.push(kind.name()),
            Err(Verdict::Skip(_)) => lacking.push(kind.name()),
            Err(v) => return Err(v.at(kind.name())),
        }
    }
    claim!(met.contains(&Kind::Plain.name()), "nothing was copied");
    let mut detail = met.join(", ");
    if !lacking.is_empty() {
        detail += &format!("; not here: {}", lacking.join(", "));
    }
    Ok(detail)
}
