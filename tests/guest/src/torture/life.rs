// SPDX-License-Identifier: MIT OR Apache-2.0
//! A parent's life: threads that work on its memory, forks, and an end that is not always orderly.

use super::ops::{Mix, OPS};
use super::slot::Slot;
use super::tally::{add, Tally, BAD, GOOD, SCARCE};
use crate::board;
use crate::cases::common::pause;
use crate::claim;
use crate::crew::{self, lock, nap, Crew, Held};
use crate::mem::{probe, Arena, Shape};
use crate::module;
use crate::rng::Rng;
use crate::session;
use crate::sys::{self, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::{Arm, Device, Outcome as Fate, Reason, Report, State};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

/// Most threads that work on memory, each on its own.
const THREADS: usize = 3;
/// Most microseconds between two operations of a thread, and between two forks.
const REST: usize = 3000;
/// Most forks of a life.
const FORKS: usize = 40;
/// Ends a process with a core dump; no library raises it.
const DUMP_SIGNAL: i32 = libc::SIGQUIT;
/// Most children at a time.
const KIDS: usize = 3;

/// A parent, or one of its children.
#[derive(Clone)]
pub struct Life {
    /// What the failure report calls it; with the seed it decides what it does.
    pub name: String,
    /// The run's.
    pub seed: u64,
    /// Shared by all.
    pub tally: &'static Tally,
    /// Where it lives.
    pub slot: Slot,
    /// What its threads do.
    pub mix: Mix,
    /// Whether memory may be short: its limit, or allocations that are made to fail.
    pub short: bool,
}

impl Life {
    /// Lives and ends the process.
    pub fn live(&self) -> ! {
        let mut end = End::Exit;
        let result = board::guarded(|| {
            end = self.parent()?;
            Ok(())
        });
        let status = self.exit_status(&self.name, &result);
        if status == GOOD {
            add(&self.tally.full_lives, 1);
            end.commit();
        }
        sys::exit_now(status);
    }

    /// What a process ends with; a bad verdict is noted. Want of memory is none, but where there is enough mlock(2) calls a
    /// page by that name that it could not fault in.
    fn exit_status(&self, who: &str, result: &TestResult) -> i32 {
        // At the end all limits are lifted; orphans may meet that of their parent's successor.
        let short = self.short || self.tally.stopped() || self.slot.is_limited().unwrap_or(true);
        self.tally.exit_status(who, result, short)
    }

    /// Works and forks until its time is over: what to end with.
    fn parent(&self) -> TestResult<End> {
        self.slot.main.enter()?;
        sys::allow_huge_pages(true)?;
        probe::install()?;
        let mut rng = Rng::new(self.seed, &self.name);
        let arenas = (0..1 + rng.below(THREADS))
            .map(|_| {
                let shape = some_shape(&mut rng);
                Ok(Mutex::new(Plot::new(&mut rng, shape)?))
            })
            .collect::<TestResult<Vec<_>>>()?;
        let work = Work {
            life: self,
            crew: Crew::new(&arenas, REST),
        };
        let operate = |plot: &mut Plot, rng: &mut Rng, gen| self.operate(plot, rng, gen);
        std::thread::scope(|scope| {
            let result = work
                .crew
                .start(scope, &mut rng, operate)
                .and_then(|threads| {
                    let kids = work.forks(&mut rng)?;
                    if rng.one_in(4) {
                        // With threads at work, and a child that has hardly run yet; on the same processor not at all.
                        if rng.one_in(2) {
                            let _ = sys::set_affinity(&[rng.below(sys::cpus())]);
                        }
                        work.fork(&mut rng)?;
                        add(&self.tally.full_lives, 1);
                        End::any(&mut rng).commit();
                    }
                    work.crew.stop();
                    crew::join(threads)?;
                    kids.into_iter().try_for_each(|kid| kid.reap(self))
                });
            work.crew.stop();
            result
        })?;
        for arena in &arenas {
            lock(arena).arena.verify().at("at the end")?;
        }
        Ok(End::some(&mut rng))
    }

    /// What a child does. `held` is all of the parent's memory, as it was at the fork.
    fn child(&self, mut held: Held<'_, Plot>, mut rng: Rng) -> TestResult {
        self.verify(&held)?;
        if rng.one_in(2) {
            for arena in held.iter_mut() {
                for n in 0..8 {
                    self.operate(arena, &mut rng, 1000 + n)?;
                }
            }
            self.verify(&held).at("own changes")?;
        }
        if rng.one_in(6) {
            let device = self.arm(&mut rng)?;
            if let Some(kid) = self.fork(device, || self.verify(&held).at("grandchild"))? {
                for arena in held.iter_mut() {
                    self.operate(arena, &mut rng, 2000)?;
                }
                kid.reap(self)?;
            }
            self.verify(&held).at("after a fork of its own")?;
        }
        if rng.one_in(60) {
            add(&self.tally.whole, 1);
            End::Dump.commit();
        }
        Ok(())
    }

    fn operate(&self, plot: &mut Plot, rng: &mut Rng, gen: u32) -> TestResult {
        let done = self.mix.operate(&mut plot.arena, rng, gen);
        add(&self.tally.ops[done.number], 1);
        plot.note(format!("{gen} {} {:?}", OPS[done.number].0, done.pages));
        done.result.map_err(|v| v.at(plot))
    }

    fn verify(&self, held: &[MutexGuard<'_, Plot>]) -> TestResult {
        for plot in held {
            plot.arena.verify().map_err(|v| v.at(&**plot))?;
            add(&self.tally.pages, plot.arena.pages() as u64);
        }
        Ok(())
    }

    /// A descriptor for the next fork; nothing if the module is away just now, or that fork is not to be armed.
    fn arm(&self, rng: &mut Rng) -> TestResult<Option<Device>> {
        // An entry may take the fork then.
        let unarmed = rng.one_in(3);
        let device = match Device::open() {
            Ok(device) if !unarmed && !self.tally.unarmed_only() => device,
            _ => return Ok(None),
        };
        let helped = Arm {
            helpers: 1,
            ..Arm::default()
        };
        // The limit of helpers is 0 at times.
        if !(rng.one_in(4) && device.arm(&helped).is_ok()) {
            device.arm(&Arm::default()).map_err(module::device_error)?;
        }
        Ok(Some(device))
    }

    /// Forks; nothing if there was no child to be had.
    fn fork(
        &self,
        device: Option<Device>,
        child: impl FnOnce() -> TestResult,
    ) -> TestResult<Option<Kid>> {
        // SAFETY: the child runs this closure's code only and ends; the C library makes malloc usable in it.
        match sys::cvt(unsafe { libc::fork() }) {
            Ok(0) => {
                drop(device);
                let result = board::guarded(child);
                if result.is_ok() {
                    add(&self.tally.whole, 1);
                }
                sys::exit_now(self.exit_status(&format!("child of {}", self.name), &result));
            }
            Ok(pid) => {
                add(&self.tally.forks, 1);
                add(&self.tally.unarmed, u64::from(device.is_none()));
                Ok(Some(Kid { pid, device }))
            }
            // At the limit of processes, or of memory.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM)) => {
                add(&self.tally.failed_forks, 1);
                if let Some(device) = device {
                    failed_report(&device)?;
                }
                Ok(None)
            }
            Err(e) => Err(Verdict::from(e).at("fork")),
        }
    }
}

/// A parent's forks, with threads at work beside them.
struct Work<'a> {
    life: &'a Life,
    crew: Crew<'a, Plot>,
}

impl Work<'_> {
    fn over(&self) -> bool {
        self.crew.stopped() || self.life.tally.stopped()
    }

    /// Forks again and again: the children that are left.
    fn forks(&self, rng: &mut Rng) -> TestResult<Vec<Kid>> {
        let mut kids = Vec::new();
        for _ in 0..1 + rng.below(FORKS) {
            if self.over() {
                break;
            }
            nap(rng, REST);
            let Some(kid) = self.fork(rng)? else {
                continue;
            };
            if rng.one_in(8) {
                pause(rng);
                sys::kill(kid.pid, libc::SIGKILL)?;
            } else if rng.one_in(3) {
                // It may be over already.
                let _ = self.life.slot.kids.set("cgroup.procs", kid.pid);
            }
            kids.push(kid);
            // Often none is left to run beside the next fork, at times several.
            let leave = rng.below(KIDS);
            while kids.len() > leave {
                kids.swap_remove(rng.below(kids.len())).reap(self.life)?;
            }
        }
        Ok(kids)
    }

    /// One fork of all memory, while nobody is in the middle of an operation: the models are true.
    fn fork(&self, rng: &mut Rng) -> TestResult<Option<Kid>> {
        let device = self.life.arm(rng)?;
        let mut held = self.crew.hold();
        for plot in held.iter_mut() {
            plot.note("fork".into());
        }
        let for_child = Rng::new(rng.next(), "child");
        self.life
            .fork(device, move || self.life.child(held, for_child))
    }
}

/// An arena, and what was last done to it.
struct Plot {
    arena: Arena,
    history: VecDeque<String>,
}

impl Plot {
    /// Most entries that are kept.
    const HISTORY: usize = 60;

    fn new(rng: &mut Rng, shape: Shape) -> TestResult<Self> {
        Ok(Self {
            arena: Arena::shaped(rng, shape)?,
            history: VecDeque::new(),
        })
    }

    fn note(&mut self, what: String) {
        if self.history.len() == Self::HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(what);
    }
}

impl fmt::Display for Plot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history: Vec<&str> = self.history.iter().map(String::as_str).collect();
        write!(f, "after {}", history.join("; "))
    }
}

fn some_shape(rng: &mut Rng) -> Shape {
    match rng.below(8) {
        0 | 1 => Shape::Partial(1 + rng.below(8)),
        2 => Shape::Whole(2 + rng.below(30)),
        _ => Shape::Whole(2 + rng.below(4)),
    }
}

/// A child and the descriptor its fork was armed with.
struct Kid {
    pid: i32,
    device: Option<Device>,
}

impl Kid {
    /// Waits for its end and checks the module's report.
    fn reap(self, life: &Life) -> TestResult {
        let exit = sys::wait(self.pid).at("wait for a child")?;
        let whole = count_end(life.tally, exit).at("child")?;
        match self.device {
            Some(device) => check(&final_report(&device)?, whole),
            None => Ok(()),
        }
    }
}

/// Books how a process ended: whether it found its image whole. Its own failure is noted already, by itself.
pub fn count_end(tally: &Tally, exit: Exit) -> TestResult<bool> {
    match exit {
        Exit::Code(GOOD) => Ok(true),
        Exit::Code(SCARCE) => Ok(false),
        Exit::Code(BAD) => Err(Verdict::Failed("has failed, see above".into())),
        Exit::Signal {
            signal: libc::SIGKILL,
            ..
        } => {
            add(&tally.killed, 1);
            Ok(false)
        }
        Exit::Signal {
            signal: DUMP_SIGNAL,
            ..
        } => {
            add(&tally.dumps, 1);
            Ok(true)
        }
        other => Err(Verdict::Failed(format!("ended with {other:?}"))),
    }
}

/// The report of a session that is over, or of a fork that never had one.
fn final_report(device: &Device) -> TestResult<Report> {
    let read = || device.report().map_err(module::device_error);
    let over = sys::poll_until(|| -> TestResult<Option<Report>> {
        Ok(Some(read()?).filter(|r| r.state() != State::Running))
    })?;
    match over {
        Some(report) => Ok(report),
        None => Err(Verdict::Failed(format!(
            "the child is gone and its session never ends: {}",
            session::summary(&read()?)
        ))),
    }
}

/// Every chunk is accounted for, and a child that has seen its whole image has been given it.
fn check(report: &Report, whole: bool) -> TestResult {
    match (report.outcome(), report.reason()) {
        (Fate::Async, _) => {}
        (
            Fate::Stock,
            Reason::Disabled
            | Reason::NoMemory
            | Reason::Limit
            | Reason::Nothing
            | Reason::Shared
            | Reason::Poison,
        ) => return Ok(()),
        (fate, reason) => {
            return Err(Verdict::Failed(format!(
                "a fork was {fate}, reason {reason}"
            )))
        }
    }
    session::balanced(report)
        .map_err(|why| Verdict::Failed(format!("{why}; session {}", session::summary(report))))?;
    claim!(
        !whole || (report.state() == State::Done && report.chunks.reattached == 0),
        "the child found its image whole, but its session says otherwise: {}",
        session::summary(report)
    );
    Ok(())
}

/// A fork that failed has given everything back.
fn failed_report(device: &Device) -> TestResult {
    let report = final_report(device)?;
    claim!(
        report.chunks.reattached + report.chunks.by_parent + report.chunks.by_other
            >= report.chunks.parked,
        "fork() failed, but not all chunks are back: {}",
        session::summary(&report)
    );
    Ok(())
}

/// The end of a process.
#[derive(Clone, Copy)]
enum End {
    /// Exits.
    Exit,
    /// Replaces its memory by a program's.
    Exec,
    /// Dumps core.
    Dump,
}

impl End {
    fn any(rng: &mut Rng) -> Self {
        [Self::Exit, Self::Exec, Self::Dump][rng.below(3)]
    }

    /// Mostly quiet: a core dump of much memory takes long.
    fn some(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 => Self::Dump,
            1 | 2 => Self::Exec,
            _ => Self::Exit,
        }
    }

    fn commit(self) -> ! {
        // SAFETY: plain calls that end this process or its program; the strings are literals, the array ends in null.
        unsafe {
            match self {
                Self::Exit => {}
                Self::Exec => {
                    let args = [c"true".as_ptr(), std::ptr::null()];
                    libc::execv(c"/bin/true".as_ptr(), args.as_ptr());
                }
                Self::Dump => {
                    let all = libc::rlimit {
                        rlim_cur: libc::RLIM_INFINITY,
                        rlim_max: libc::RLIM_INFINITY,
                    };
                    libc::setrlimit(libc::RLIMIT_CORE, &all);
                    libc::raise(DUMP_SIGNAL);
                }
            }
        }
        sys::exit_now(GOOD);
    }
}
