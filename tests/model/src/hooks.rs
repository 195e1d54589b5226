// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everybody but the fork: `hooks.c`, `uffd.c`, works, and what the CPU does by itself.

use crate::scenario::Mutation;
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

    pub fn hook_lock(&mut self) -> Rule {
        self.st.mmap_lock += 1;
        self.go(Pc::HookActive);
        Ok(())
    }

    pub fn hook_active(&mut self) -> Rule {
        if self.st.active == 0 {
            self.go(Pc::HookBody);
        } else {
            self.find(false, false, Pc::HookPut, Pc::HookBody);
            self.pull_if_found(Pc::HookPut);
        }
        Ok(())
    }

    /// af_sync_range() of this chunk: `found` starts the pull, which returns to `ret`.
    fn pull_if_found(&mut self, ret: Pc) {
        self.a.found = Pc::PullParked;
        self.a.ret = ret;
        self.a.pull.chunk = self.a.chunk;
        self.a.pull.end = self.a.chunk + 1;
    }

    fn pull_all_if_found(&mut self, ret: Pc) {
        self.pull_if_found(ret);
        self.a.pull.chunk = 0;
        self.a.pull.end = CHUNKS;
    }

    /// The fault itself. A write-protected page is copied: the children keep theirs.
    pub fn hook_body(&mut self) -> Rule {
        let c = self.chunk();
        self.a.pull = Pull::default();
        self.a.ret = Pc::Done;
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
        self.st.mmap_lock -= 1;
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
        } else {
            self.find(self.a.flag, false, Pc::MigratePut, Pc::MigrateBody);
            self.pull_if_found(Pc::MigratePut);
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
        self.a.pull = Pull::default();
        self.a.ret = Pc::Done;
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

    pub fn uffd_guard(&mut self) -> Rule {
        if !self.dropped(Mutation::GuardLate) {
            self.st.guards += 1;
        }
        self.go(Pc::UffdActive);
        Ok(())
    }

    pub fn uffd_active(&mut self) -> Rule {
        let next = self.uffd_go_on();
        self.go(if self.st.active == 0 {
            next
        } else {
            Pc::UffdSync
        });
        Ok(())
    }

    pub fn uffd_go_on(&self) -> Pc {
        if self.dropped(Mutation::GuardLate) {
            Pc::UffdLate
        } else {
            Pc::UffdLock
        }
    }

    /// mmap_read_lock() and unlock, then af_sync_range().
    pub fn uffd_sync(&mut self) -> Rule {
        let next = self.uffd_go_on();
        self.find(false, false, Pc::UffdPut, next);
        self.pull_all_if_found(Pc::UffdPut);
        Ok(())
    }

    pub fn uffd_late(&mut self) -> Rule {
        self.st.guards += 1;
        self.go(Pc::UffdLock);
        Ok(())
    }

    /// The ioctl takes mmap_lock itself.
    pub fn uffd_lock(&mut self) -> Rule {
        self.a = Actor {
            pc: Pc::UffdUnlock,
            ..Actor::default()
        };
        self.st.mmap_lock += 1;
        (0..usize::from(CHUNKS)).try_for_each(|c| self.no_parked_chunk(c))
    }

    pub fn uffd_unlock(&mut self) -> Rule {
        self.st.mmap_lock -= 1;
        self.go(Pc::UffdUnguard);
        Ok(())
    }

    pub fn uffd_unguard(&mut self) -> Rule {
        self.st.guards -= 1;
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
            self.find(true, false, Pc::PeekPut, Pc::PeekBody);
            self.pull_if_found(Pc::PeekPut);
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
            self.find(false, false, Pc::ExitPut, Pc::ExitFree);
            self.pull_all_if_found(Pc::ExitPut);
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

    pub fn timer_start(&mut self) -> Rule {
        let s = self.ses_unchecked();
        if s.timer == Timer::Queued {
            s.timer = Timer::Started;
            self.start_pull_all(Pc::TimerPut);
        } else {
            self.done();
        }
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
}
