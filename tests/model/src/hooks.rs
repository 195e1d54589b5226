// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everybody but the fork: `hooks.c`, works, what the CPU does by itself, and the scheduler.

use crate::scenario::{Mutation, Role};
use crate::state::*;
use crate::step::{Rule, Thread};

impl Thread<'_> {
    /// The rule of hooks.c: the hooked function goes on with this chunk.
    fn no_parked_chunk(&self, chunk: usize) -> Rule {
        let pending =
            |s: &Session| matches!(s.word[chunk], Word::Parked | Word::Busy) && !s.child_gone;
        if !self.st.slot[chunk] || self.st.ses.iter().any(pending) {
            return Err("a hooked function meets a parked chunk");
        }
        Ok(())
    }

    /// The parent's content of this chunk changes.
    fn store(&mut self) -> Rule {
        let c = self.chunk();
        for s in &mut self.st.ses {
            if s.shared[c] {
                return Err("the parent writes to a page of the child's image");
            }
            s.written[c] |= s.cut;
        }
        Ok(())
    }

    /// An instruction of the parent: a TLB hit, a page table walk, or a fault.
    pub fn write(&mut self) -> Rule {
        let c = self.chunk();
        if self.st.tlb[c] || (self.st.slot[c] && !self.st.wp[c]) {
            self.st.tlb[c] = true;
            self.store()?;
            self.done();
        } else {
            self.go(Pc::HookLock);
        }
        Ok(())
    }

    /// `flag`: the VMA's lock, otherwise mmap_lock.
    pub fn hook_lock(&mut self) -> Rule {
        *self.hook_readers() += 1;
        self.go(Pc::HookActive);
        Ok(())
    }

    fn hook_readers(&mut self) -> &mut i8 {
        let r = self.range_of(self.a.chunk);
        if self.a.flag {
            &mut self.st.vma_lock[usize::from(r)]
        } else {
            &mut self.st.mmap_lock
        }
    }

    pub fn hook_active(&mut self) -> Rule {
        if self.st.active == 0 {
            self.go(Pc::HookBody);
        } else {
            self.pull_this(true, Pc::HookPut, Pc::HookBody);
        }
        Ok(())
    }

    fn pull_this(&mut self, locked: bool, ret: Pc, not_found: Pc) {
        let c = self.a.chunk;
        self.pull_parent(c, c + 1, locked, ret, not_found);
    }

    /// The fault itself. A write-protected page is copied: the children keep theirs.
    pub fn hook_body(&mut self) -> Rule {
        let c = self.chunk();
        self.no_parked_chunk(c)?;
        if self.st.wp[c] {
            self.st.wp[c] = false;
            for s in &mut self.st.ses {
                s.shared[c] = false;
            }
        }
        self.st.tlb[c] = true;
        self.store()?;
        self.go(Pc::HookUnlock);
        Ok(())
    }

    pub fn hook_unlock(&mut self) -> Rule {
        *self.hook_readers() -= 1;
        self.done();
        Ok(())
    }

    fn anon_readers(&mut self) -> &mut i8 {
        let r = self.range_of(self.a.chunk);
        &mut self.st.anon_lock[usize::from(r)]
    }

    pub fn migrate_lock(&mut self) -> Rule {
        if !self.dropped(Mutation::MigrateNoLock) {
            *self.anon_readers() += 1;
        }
        self.go(Pc::MigrateActive);
        Ok(())
    }

    /// `flag`: in the child's page table.
    pub fn migrate_active(&mut self) -> Rule {
        if self.st.active == 0 {
            self.go(Pc::MigrateBody);
        } else if self.a.flag {
            self.pull_of_child(Pc::MigratePut, Pc::MigrateBody);
        } else {
            let locked = self.dropped(Mutation::LockedMigration);
            self.pull_this(locked, Pc::MigratePut, Pc::MigrateBody);
        }
        Ok(())
    }

    fn migrate_rule(&self) -> Rule {
        let c = self.chunk();
        let s = &self.st.ses[0];
        if !self.a.flag {
            return if self.st.parent_gone {
                Ok(())
            } else {
                self.no_parked_chunk(c)
            };
        }
        if !s.child_gone && matches!(s.word[c], Word::Parked | Word::Busy) {
            return Err("a hooked function meets a parked chunk");
        }
        Ok(())
    }

    pub fn migrate_body(&mut self) -> Rule {
        self.migrate_rule()?;
        self.go(Pc::MigrateUnlock);
        Ok(())
    }

    /// Looks once more: nothing was parked while the function ran.
    pub fn migrate_unlock(&mut self) -> Rule {
        self.migrate_rule()?;
        if !self.dropped(Mutation::MigrateNoLock) {
            *self.anon_readers() -= 1;
        }
        self.done();
        Ok(())
    }

    /// Before the ioctl, without a lock: what an earlier fork has parked.
    pub fn uffd_active(&mut self) -> Rule {
        if self.st.active == 0 {
            self.go(Pc::UffdLock);
        } else {
            self.pull_parent(0, CHUNKS, false, Pc::UffdPut, Pc::UffdLock);
        }
        Ok(())
    }

    pub fn uffd_lock(&mut self) -> Rule {
        self.st.mmap_lock += 1;
        self.go(Pc::UffdSlot);
        Ok(())
    }

    /// An empty slot leads to __pte_alloc(), which is hooked.
    pub fn uffd_slot(&mut self) -> Rule {
        let hook = !self.st.slot[self.chunk()] && !self.dropped(Mutation::NoPteAlloc);
        self.go(if hook { Pc::UffdAlloc } else { Pc::UffdBody });
        Ok(())
    }

    pub fn uffd_alloc(&mut self) -> Rule {
        if self.st.active == 0 {
            self.go(Pc::UffdBody);
        } else {
            self.pull_this(true, Pc::UffdAllocPut, Pc::UffdBody);
        }
        Ok(())
    }

    /// A table in the slot is the parent's own, even if the puller has yet to say DONE.
    pub fn uffd_body(&mut self) -> Rule {
        if !self.st.slot[self.chunk()] {
            return Err("a hooked function meets a parked chunk");
        }
        self.go(Pc::UffdUnlock);
        Ok(())
    }

    pub fn uffd_unlock(&mut self) -> Rule {
        self.st.mmap_lock -= 1;
        self.done();
        Ok(())
    }

    pub fn poison_guard(&mut self) -> Rule {
        if !self.dropped(Mutation::PoisonNoGuard) && !self.dropped(Mutation::PoisonGuardLate) {
            self.st.guards += 1;
        }
        self.poison_sweep();
        Ok(())
    }

    /// Any session: one that counts nothing yet may be parking.
    fn poison_sweep(&mut self) {
        let any = !self.dropped(Mutation::PoisonParkedOnly);
        self.find(true, any, Pc::PoisonWait, Pc::PoisonNext);
    }

    /// write_protect_seq is even.
    pub fn poison_wait(&mut self) -> Rule {
        self.ses()?;
        self.start_pull_all(Pc::PoisonPut);
        Ok(())
    }

    pub fn poison_next(&mut self) -> Rule {
        if self.a.s == 0 && self.p.scenario.roles.contains(&Role::Fork(1)) {
            self.a.s = 1;
            self.poison_sweep();
        } else {
            let late = self.dropped(Mutation::PoisonGuardLate);
            self.a.s = 0;
            self.go(if late { Pc::PoisonLate } else { Pc::PoisonBody });
        }
        Ok(())
    }

    pub fn poison_late(&mut self) -> Rule {
        self.st.guards += 1;
        self.go(Pc::PoisonBody);
        Ok(())
    }

    /// Looks by rmap who maps the page, once.
    pub fn poison_body(&mut self) -> Rule {
        self.no_parked_chunk(self.chunk())?;
        self.go(Pc::PoisonUnguard);
        Ok(())
    }

    /// Looks once more, as a migration does.
    pub fn poison_unguard(&mut self) -> Rule {
        self.no_parked_chunk(self.chunk())?;
        if !self.dropped(Mutation::PoisonNoGuard) {
            self.st.guards -= 1;
        }
        self.done();
        Ok(())
    }

    /// Takes mm_users of the child, unless it is too late.
    pub fn peek_start(&mut self) -> Rule {
        let s = &mut self.st.ses[0];
        if s.child_exits || !s.visible {
            self.done();
        } else {
            s.peekers += 1;
            self.go(Pc::PeekActive);
        }
        Ok(())
    }

    pub fn peek_active(&mut self) -> Rule {
        if self.st.active == 0 {
            self.go(Pc::PeekBody);
        } else {
            self.pull_of_child(Pc::PeekPut, Pc::PeekBody);
        }
        Ok(())
    }

    pub fn peek_body(&mut self) -> Rule {
        let c = self.chunk();
        let s = &mut self.st.ses[0];
        if matches!(s.word[c], Word::Parked | Word::Busy) {
            return Err("a hooked function meets a parked chunk");
        }
        if s.slot[c] != Slot::Whole && !s.aborted {
            return Err("a chunk of the child is lost");
        }
        s.peekers -= 1;
        self.done();
        Ok(())
    }

    pub fn exit_start(&mut self) -> Rule {
        if self.st.active == 0 || self.dropped(Mutation::ExitNoPull) {
            self.go(Pc::ExitFree);
        } else {
            self.pull_parent(0, CHUNKS, true, Pc::ExitPut, Pc::ExitFree);
        }
        Ok(())
    }

    pub fn exit_free(&mut self) -> Rule {
        if !self.dropped(Mutation::ExitNoPull) {
            (0..usize::from(CHUNKS)).try_for_each(|c| self.no_parked_chunk(c))?;
        }
        self.st.parent_gone = true;
        self.done();
        Ok(())
    }

    pub fn helper_start(&mut self) -> Rule {
        if self.ses_unchecked().helper_queued {
            self.start_pull(CHUNKS / 2, CHUNKS, false, Pc::HelperPut);
        } else {
            self.done();
        }
        Ok(())
    }

    /// Its first run, or the next one; or it is cancelled, or was never queued.
    pub fn timer_start(&mut self) -> Rule {
        let s = self.ses_unchecked();
        if s.timer == Timer::Queued {
            s.timer = Timer::Started;
            if self.dropped(Mutation::TimerClosedLate) {
                self.start_pull_all(Pc::TimerClosed);
            } else {
                self.go(Pc::TimerClosed);
            }
        } else {
            self.done();
        }
        Ok(())
    }

    /// Before it pulls: is nothing going to be parked any more?
    pub fn timer_closed(&mut self) -> Rule {
        let closed = self.ses()?.closed;
        let puts = closed || self.dropped(Mutation::TimerOnce);
        let after = if puts { Pc::TimerPut } else { Pc::TimerAgain };
        if self.dropped(Mutation::TimerClosedLate) {
            self.go(after);
        } else {
            self.start_pull_all(after);
        }
        Ok(())
    }

    /// Queues itself again, and does not touch the session any more: the reference goes along.
    pub fn timer_again(&mut self) -> Rule {
        self.ses()?.timer = Timer::Queued;
        let puts = self.dropped(Mutation::TimerAgainPuts);
        self.go(if puts { Pc::TimerPut } else { Pc::TimerStart });
        Ok(())
    }

    fn ses_unchecked(&mut self) -> &mut Session {
        &mut self.st.ses[usize::from(self.a.s)]
    }

    pub fn gup_read(&mut self) -> Rule {
        if self.st.slot[self.chunk()] {
            self.st.gup = Some(self.a.chunk);
            self.go(Pc::GupLeave);
        } else {
            self.done();
        }
        Ok(())
    }

    pub fn gup_leave(&mut self) -> Rule {
        self.st.gup = None;
        self.done();
        Ok(())
    }

    pub fn kill(&mut self) -> Rule {
        if self.choice == 1 {
            self.ses_unchecked().sigkill = true;
        }
        self.done();
        Ok(())
    }

    pub fn hog_hold(&mut self) -> Rule {
        self.st.held = true;
        self.go(Pc::HogRelease);
        Ok(())
    }

    pub fn hog_release(&mut self) -> Rule {
        self.st.held = false;
        self.done();
        Ok(())
    }
}
