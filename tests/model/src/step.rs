// SPDX-License-Identifier: MIT OR Apache-2.0
//! One step of one thread: dispatch, waiting, and helpers of the files named after the module's.

use std::fmt;

use crate::checker::Model;
use crate::scenario::{Mutation, Role, Scenario};
use crate::state::*;

/// `Err` names the rule that the step breaks.
pub(crate) type Rule = Result<(), &'static str>;

/// The protocol in one scenario, with at most one rule dropped.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Who takes part.
    pub scenario: &'static Scenario,
    /// The rule to do without.
    pub dropped: Option<Mutation>,
}

/// A step of a trace.
#[derive(Clone, Copy)]
pub struct Step {
    /// Number of the thread in [`Scenario::roles`].
    pub thread: usize,
    /// What the thread is.
    pub role: Role,
    /// Its step.
    pub pc: Pc,
    /// Which of several outcomes; 0 is the good one.
    pub choice: u8,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = format!("{} {:?}", self.thread, self.role);
        write!(f, "{who:14} {:?}", self.pc)?;
        match self.choice {
            0 => Ok(()),
            n => write!(f, " -> {n}"),
        }
    }
}

/// A thread about to make its step.
pub(crate) struct Thread<'a> {
    pub p: &'a Protocol,
    pub st: &'a mut State,
    pub a: Actor,
    pub choice: u8,
}

impl Thread<'_> {
    pub fn dropped(&self, m: Mutation) -> bool {
        self.p.dropped == Some(m)
    }

    pub fn go(&mut self, pc: Pc) {
        self.a.pc = pc;
    }

    /// The session, which must not be freed.
    pub fn ses(&mut self) -> Result<&mut Session, &'static str> {
        let s = &mut self.st.ses[usize::from(self.a.s)];
        if s.freed {
            return Err("session used after its last reference was put");
        }
        Ok(s)
    }

    pub fn chunk(&self) -> usize {
        usize::from(self.a.chunk)
    }

    pub fn range_of(&self, chunk: u8) -> u8 {
        if self.p.scenario.one_vma {
            0
        } else {
            chunk
        }
    }

    /// The thread is done; its locals do not tell states apart.
    pub fn done(&mut self) {
        self.a = Actor::default();
    }
}

impl Protocol {
    /// Number of outcomes of the next step; 0: it has to wait.
    fn choices(&self, st: &State, a: &Actor, role: Role) -> u8 {
        let s = &st.ses[usize::from(a.s)];
        let sc = self.scenario;
        let c = usize::from(a.chunk);
        let vma = if sc.one_vma { 0 } else { c };
        let anon = st.anon_lock[vma];
        let dropped = |m| self.dropped == Some(m);
        let over = s.failed || s.child_gone;
        let wait = |ready: bool| u8::from(ready);
        if st.held && role == Role::Child(0) {
            return 0;
        }
        match a.pc {
            Pc::Done => 0,
            Pc::ForkLock => wait(st.mmap_lock == 0 && (a.s == 0 || st.ses[0].cut)),
            Pc::ForkVma => wait(st.vma_lock[vma] == 0),
            Pc::ParkLock => wait(anon == 0 || dropped(Mutation::ParkNoLock)),
            Pc::ParkRest | Pc::ForkUnlock if sc.fork_fails && !a.flag => 2,
            Pc::PullWait => {
                let word = s.word[usize::from(a.pull.chunk)];
                wait(word != Word::Busy || dropped(Mutation::NoWait))
            }
            Pc::PullAlloc => 1 + u8::from(sc.no_memory),
            Pc::PullCopy => 1 + u8::from(sc.mixed_fails),
            Pc::SyncIpi => wait(st.gup.is_none()),
            Pc::ChildStart if s.failed => 1,
            Pc::ChildStart => wait(s.woken) * (1 + u8::from(s.sigkill && s.child_work)),
            Pc::ChildLive => 2,
            Pc::ChildExit => wait(s.peekers == 0),
            Pc::HookLock if a.flag => wait(st.vma_lock[vma] >= 0),
            Pc::HookLock | Pc::UffdLock => wait(st.mmap_lock >= 0),
            Pc::PoisonWait => wait(!st.parking || dropped(Mutation::PoisonNoWait)),
            Pc::MigrateLock => wait(anon >= 0 || dropped(Mutation::MigrateNoLock)),
            Pc::PeekStart => wait(s.visible || over),
            Pc::HelperStart => wait(s.helper_queued || self.fork_done(st)),
            Pc::TimerStart => wait(s.timer != Timer::Never || self.fork_done(st)),
            Pc::HogHold => wait(self.child_preemptible(st) || dropped(Mutation::BusyPreemptible)),
            Pc::HogRelease => wait(self.hog_gives_up(st)),
            Pc::Kill => wait(s.visible || over) * 2,
            Pc::ExitStart => {
                let mut users = sc.roles.iter().zip(&st.actor);
                debug_assert_eq!(role, Role::Exit);
                wait(users.all(|(r, a)| !r.of_parent() || a.pc == Pc::Done))
            }
            _ => 1,
        }
    }

    /// Is the first fork over, one way or the other?
    fn fork_done(&self, st: &State) -> bool {
        let mut actors = self.scenario.roles.iter().zip(&st.actor);
        actors.all(|(r, a)| *r != Role::Fork(0) || a.pc == Pc::Done)
    }

    /// From the claim of a chunk to its DONE the first child's thread has preemption off.
    fn child_preemptible(&self, st: &State) -> bool {
        let mut actors = self.scenario.roles.iter().zip(&st.actor);
        actors.all(|(r, a)| *r != Role::Child(0) || !in_copy(a))
    }

    /// The child is held until everybody else is done, and the timeout, if there is one, has left nothing
    /// parked.
    fn hog_gives_up(&self, st: &State) -> bool {
        let roles = self.scenario.roles;
        let others = |r: &Role| !matches!(r, Role::Child(0) | Role::Hog);
        let mut actors = roles.iter().zip(&st.actor);
        actors.all(|(r, a)| !others(r) || a.pc == Pc::Done)
            && !(roles.contains(&Role::Timer) && pending(&st.ses[0]))
    }
}

impl Model for Protocol {
    type State = State;
    type Step = Step;

    fn init(&self) -> State {
        let roles = self.scenario.roles;
        let forks = roles.iter().filter(|r| matches!(r, Role::Fork(_)));
        let mut st = State {
            ses: Default::default(),
            actor: Default::default(),
            slot: [true; CHUNKS as usize],
            wp: Default::default(),
            tlb: [true; CHUNKS as usize],
            gup: None,
            mmap_lock: 0,
            vma_lock: Default::default(),
            anon_lock: Default::default(),
            active: forks.count() as u8,
            guards: 0,
            parking: false,
            held: false,
            parent_gone: false,
        };
        for (a, role) in st.actor.iter_mut().zip(roles) {
            (a.pc, a.s, a.chunk) = role.start();
            a.flag = matches!(role, Role::MigrateChild(_) | Role::VmaFault(_));
        }
        st
    }

    fn steps(&self, state: &State, f: &mut dyn FnMut(Step, Result<State, &'static str>)) {
        for (i, &role) in self.scenario.roles.iter().enumerate() {
            let a = state.actor[i];
            for choice in 0..self.choices(state, &a, role) {
                let mut st = *state;
                let mut t = Thread {
                    p: self,
                    st: &mut st,
                    a,
                    choice,
                };
                let rule = t.step();
                let after = t.a;
                st.actor[i] = after;
                let step = Step {
                    thread: i,
                    role,
                    pc: a.pc,
                    choice,
                };
                f(step, rule.and_then(|()| always(&st)).map(|()| st));
            }
        }
    }

    fn end(&self, st: &State) -> Option<Rule> {
        if st.actor.iter().any(|a| a.pc != Pc::Done) {
            return None;
        }
        Some(end_rules(st))
    }
}

/// Has it claimed a chunk that is not DONE?
fn in_copy(a: &Actor) -> bool {
    match a.pc {
        Pc::PullCopy | Pc::PullSlotChild | Pc::PullSlotParent | Pc::PullDone => true,
        Pc::DoomSet | Pc::DoomTask | Pc::DoomKill => a.pull.partial,
        _ => false,
    }
}

/// Has it a chunk that is parked or being pulled?
fn pending(s: &Session) -> bool {
    let pending = |w: &Word| matches!(w, Word::Parked | Word::Busy);
    s.word.iter().any(pending)
}

/// What must hold after each step: by `parked` the hooks know whether to look.
fn always(st: &State) -> Rule {
    if st.ses.iter().any(|s| pending(s) && s.parked <= 0) {
        return Err("a chunk is parked that is not counted");
    }
    Ok(())
}

/// What must hold once everybody is done.
fn end_rules(st: &State) -> Rule {
    if st.ses.iter().any(pending) {
        return Err("a chunk is parked for ever");
    }
    if !st.parent_gone && st.slot.contains(&false) {
        return Err("the parent has lost a table");
    }
    for s in st.ses.iter().filter(|s| s.cut) {
        if s.finishes != 1 || s.in_hash {
            return Err("a session has not finished");
        }
        if s.parked != 0 {
            return Err("parked chunks do not balance");
        }
        if s.users != 0 || !s.freed {
            return Err("a session is never freed");
        }
        if s.woken && s.aborted && s.slot.contains(&Slot::Partial) && !s.sigkill {
            return Err("a doomed child lives");
        }
    }
    let locks = [st.vma_lock, st.anon_lock];
    if st.active != 0 || st.guards != 0 || st.parking || st.mmap_lock != 0 || locks != [[0; 2]; 2] {
        return Err("a counter or lock does not balance");
    }
    Ok(())
}

impl Thread<'_> {
    fn step(&mut self) -> Rule {
        match self.a.pc {
            Pc::Done => Ok(()),
            Pc::FindLook => self.find_look(),
            Pc::FindGet => self.find_get(),
            Pc::ForkLock => self.fork_lock(),
            Pc::ForkPutOld => self.fork_put_old(),
            Pc::ForkDisarm => self.fork_disarm(),
            Pc::ForkHash => self.fork_hash(),
            Pc::ForkActive => self.fork_active(),
            Pc::ForkVma => self.fork_vma(),
            Pc::ParkRange => self.park_range(),
            Pc::ParkSeq => self.park_seq(),
            Pc::ParkLock => self.park_lock(),
            Pc::ParkGuard => self.park_guard(),
            Pc::ParkTimer => self.park_timer(),
            Pc::ParkRaise => self.park_raise(),
            Pc::ParkWord => self.park_word(),
            Pc::ParkSlot => self.park_slot(),
            Pc::ParkCount => self.park_count(),
            Pc::ParkUnlock => self.park_unlock(),
            Pc::ParkRest => self.park_rest(),
            Pc::ParkAbort => self.park_abort(),
            Pc::ForkFlush => self.fork_flush(),
            Pc::ForkUnlock => self.fork_unlock(),
            Pc::ForkedFlushed => self.forked_flushed(),
            Pc::ForkedTask => self.forked_task(),
            Pc::ForkedLook => self.forked_look(),
            Pc::ForkedKill => self.forked_kill(),
            Pc::ForkedWork => self.forked_work(),
            Pc::ForkedHelper => self.forked_helper(),
            Pc::ForkPut => self.put_then(Pc::ForkWake),
            Pc::ForkWake => self.fork_wake(),
            Pc::FailAbort => self.fail_abort(),
            Pc::FailPut => self.put_then(Pc::FailFree),
            Pc::FailFree => self.fail_free(),
            Pc::CloseLook => self.close_look(),
            Pc::Close => self.close(),
            Pc::FinishClosed => self.finish_closed(),
            Pc::FinishParked => self.finish_parked(),
            Pc::FinishFlag => self.finish_flag(),
            Pc::FinishHash => self.finish_hash(),
            Pc::FinishTimer => self.finish_timer(),
            Pc::FinishTimerPut => self.put_then(Pc::FinishActive),
            Pc::FinishActive => self.finish_active(),
            Pc::FinishPut => self.finish_put(),
            Pc::PullParked => self.pull_parked(),
            Pc::PullFatal => self.pull_fatal(),
            Pc::PullAbort => self.pull_abort(),
            Pc::PullWord => self.pull_word(),
            Pc::PullWait | Pc::PullNext => self.pull_next(),
            Pc::PullAborted => self.pull_aborted(),
            Pc::PullAlloc => self.pull_alloc(),
            Pc::PullAgain => self.pull_again(),
            Pc::PullClaim => self.pull_claim(),
            Pc::PullCopy => self.pull_copy(),
            Pc::PullSlotChild => self.pull_slot_child(),
            Pc::PullSlotParent => self.pull_slot_parent(),
            Pc::PullDone => self.pull_done(),
            Pc::PullCount => self.pull_count(),
            Pc::SyncLook => self.sync_look(),
            Pc::SyncFlushed => self.sync_flushed(),
            Pc::SyncFlush => self.sync_flush(),
            Pc::SyncIpi => self.sync_ipi(),
            Pc::SyncSet => self.sync_set(),
            Pc::DoomSet => self.doom_set(),
            Pc::DoomTask => self.doom_task(),
            Pc::DoomKill => self.doom_kill(),
            Pc::ChildStart => self.child_start(),
            Pc::ChildLook => self.child_look(),
            Pc::ChildKill => self.child_kill(),
            Pc::ChildPut => self.put_then(Pc::ChildUser),
            Pc::ChildUser => self.child_user(),
            Pc::ChildLive => self.child_live(),
            Pc::ChildExit => self.child_exit(),
            Pc::ChildAbort => self.child_abort(Pc::ChildExitPut),
            Pc::ChildExitPut => self.put_then(Pc::ChildFree),
            Pc::ChildFree => self.child_free(),
            Pc::ChildLateAbort => self.child_abort(Pc::ChildLatePut),
            Pc::Write => self.write(),
            Pc::HookLock => self.hook_lock(),
            Pc::HookActive => self.hook_active(),
            Pc::HookPut => self.put_then(Pc::HookBody),
            Pc::HookBody => self.hook_body(),
            Pc::HookUnlock => self.hook_unlock(),
            Pc::MigrateLock => self.migrate_lock(),
            Pc::MigrateActive => self.migrate_active(),
            Pc::MigratePut => self.put_then(Pc::MigrateBody),
            Pc::MigrateBody => self.migrate_body(),
            Pc::MigrateUnlock => self.migrate_unlock(),
            Pc::UffdActive => self.uffd_active(),
            Pc::UffdPut => self.put_then(Pc::UffdLock),
            Pc::UffdLock => self.uffd_lock(),
            Pc::UffdSlot => self.uffd_slot(),
            Pc::UffdAlloc => self.uffd_alloc(),
            Pc::UffdAllocPut => self.put_then(Pc::UffdBody),
            Pc::UffdBody => self.uffd_body(),
            Pc::UffdUnlock => self.uffd_unlock(),
            Pc::PoisonGuard => self.poison_guard(),
            Pc::PoisonWait => self.poison_wait(),
            Pc::PoisonPut => self.put_then(Pc::PoisonNext),
            Pc::PoisonNext => self.poison_next(),
            Pc::PoisonLate => self.poison_late(),
            Pc::PoisonBody => self.poison_body(),
            Pc::PoisonUnguard => self.poison_unguard(),
            Pc::PeekStart => self.peek_start(),
            Pc::PeekActive => self.peek_active(),
            Pc::PeekPut => self.put_then(Pc::PeekBody),
            Pc::PeekBody => self.peek_body(),
            Pc::ExitStart => self.exit_start(),
            Pc::ExitPut => self.put_then(Pc::ExitFree),
            Pc::ExitFree => self.exit_free(),
            Pc::HelperStart => self.helper_start(),
            Pc::TimerStart => self.timer_start(),
            Pc::TimerClosed => self.timer_closed(),
            Pc::TimerAgain => self.timer_again(),
            Pc::HelperPut | Pc::TimerPut | Pc::ChildLatePut => self.put_then(Pc::Done),
            Pc::GupRead => self.gup_read(),
            Pc::GupLeave => self.gup_leave(),
            Pc::Kill => self.kill(),
            Pc::HogHold => self.hog_hold(),
            Pc::HogRelease => self.hog_release(),
        }
    }
}
