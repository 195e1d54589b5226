// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forking thread: `fork.c` and `park.c`.

use crate::scenario::{Mutation, Role};
use crate::state::*;
use crate::step::{Rule, Thread};

impl Thread<'_> {
    /// mmap_write_lock(), then the hook of uprobe_dup_mmap().
    pub fn fork_lock(&mut self) -> Rule {
        self.st.mmap_lock = -1;
        self.a.n = self.a.s;
        if self.dropped(Mutation::ForkNoPull) {
            self.go(Pc::ForkDisarm);
        } else {
            self.pull_parent(0, CHUNKS, true, Pc::ForkPutOld, Pc::ForkDisarm);
        }
        Ok(())
    }

    pub fn fork_put_old(&mut self) -> Rule {
        self.put_then(Pc::ForkDisarm)
    }

    pub fn fork_disarm(&mut self) -> Rule {
        self.a.s = std::mem::take(&mut self.a.n);
        self.st.active -= 1;
        self.go(Pc::ForkHash);
        Ok(())
    }

    /// The thread pins the struct and, as nobody else can close it, the session.
    pub fn fork_hash(&mut self) -> Rule {
        let flushed = self.dropped(Mutation::FlushedEarly);
        let s = self.ses()?;
        s.in_hash = true;
        s.users = 1;
        s.flushed = flushed;
        self.go(Pc::ForkActive);
        Ok(())
    }

    pub fn fork_active(&mut self) -> Rule {
        self.st.active += 1;
        self.go(Pc::ForkVma);
        Ok(())
    }

    /// dup_mmap(): vma_start_write()
    pub fn fork_vma(&mut self) -> Rule {
        let r = self.range_of(self.a.chunk);
        self.st.vma_lock[usize::from(r)] = -1;
        self.go(Pc::ParkRange);
        Ok(())
    }

    fn anon_lock(&mut self) -> &mut i8 {
        let r = self.range_of(self.a.chunk);
        &mut self.st.anon_lock[usize::from(r)]
    }

    /// af_ranges_add()
    pub fn park_range(&mut self) -> Rule {
        let range = self.range_of(self.a.chunk);
        self.ses()?.ranges = range + 1;
        let early = self.dropped(Mutation::ParkGuardEarly);
        self.go(if early { Pc::ParkGuard } else { Pc::ParkSeq });
        Ok(())
    }

    /// raw_write_seqcount_begin()
    pub fn park_seq(&mut self) -> Rule {
        self.st.parking = true;
        self.go(Pc::ParkLock);
        Ok(())
    }

    pub fn park_lock(&mut self) -> Rule {
        if !self.dropped(Mutation::ParkNoLock) {
            *self.anon_lock() = -1;
        }
        if !self.dropped(Mutation::ParkGuardEarly) {
            self.go(Pc::ParkGuard);
        } else if std::mem::take(&mut self.a.flag) {
            self.park_nothing();
        } else {
            self.park_something();
        }
        Ok(())
    }

    /// `flag`, for the mutation only: there is a guard.
    pub fn park_guard(&mut self) -> Rule {
        let guarded = self.st.guards != 0 && !self.dropped(Mutation::ParkNoGuardLook);
        if self.dropped(Mutation::ParkGuardEarly) {
            self.a.flag = guarded;
            self.go(Pc::ParkSeq);
        } else if guarded {
            self.park_nothing();
        } else {
            self.park_something();
        }
        Ok(())
    }

    /// The original copies this range.
    fn park_nothing(&mut self) {
        self.a.chunk += self.most_chunks() as u8 - 1;
        self.go(Pc::ParkUnlock);
    }

    /// `AF_TIMED`: the timeout is queued once, with the first range that parks.
    fn park_something(&mut self) {
        let timer = self.st.ses[usize::from(self.a.s)].timer;
        let first = timer == Timer::Never || self.dropped(Mutation::TimerTwice);
        let starts = self.starts(Role::Timer) && first;
        self.go(if starts { Pc::ParkTimer } else { Pc::ParkRaise });
    }

    pub fn park_timer(&mut self) -> Rule {
        let hold = !self.dropped(Mutation::TimerNoHold);
        let s = self.ses()?;
        s.users += u8::from(hold);
        s.timer = Timer::Queued;
        self.go(Pc::ParkRaise);
        Ok(())
    }

    pub fn park_raise(&mut self) -> Rule {
        let most = self.most_chunks();
        if !self.dropped(Mutation::ParkCountLate) {
            self.ses()?.parked += most;
        }
        self.start_chunk();
        Ok(())
    }

    /// Of the range that is being parked.
    fn most_chunks(&self) -> i8 {
        let range = self.range_of(self.a.chunk);
        (0..CHUNKS).filter(|&c| self.range_of(c) == range).count() as i8
    }

    fn start_chunk(&mut self) {
        let first = self.dropped(Mutation::ParkWordFirst);
        self.go(if first { Pc::ParkWord } else { Pc::ParkSlot });
    }

    pub fn park_slot(&mut self) -> Rule {
        let c = self.chunk();
        let first = self.dropped(Mutation::ParkWordFirst);
        if !first && !self.st.slot[c] {
            // Not a table: nothing to park.
            self.chunk_parked();
        } else if first {
            self.st.slot[c] = false;
            self.a.n += 1;
            self.chunk_parked();
        } else {
            self.st.slot[c] = false;
            self.go(Pc::ParkWord);
        }
        Ok(())
    }

    pub fn park_word(&mut self) -> Rule {
        let c = self.chunk();
        if self.dropped(Mutation::ParkWordFirst) {
            if self.st.slot[c] {
                self.ses()?.word[c] = Word::Parked;
                self.go(Pc::ParkSlot);
            } else {
                self.chunk_parked();
            }
            return Ok(());
        }
        self.ses()?.word[c] = Word::Parked;
        self.a.n += 1;
        self.chunk_parked();
        Ok(())
    }

    fn chunk_parked(&mut self) {
        let next = self.a.chunk + 1;
        if next < CHUNKS && self.range_of(next) == self.range_of(self.a.chunk) {
            self.a.chunk = next;
            self.start_chunk();
        } else {
            self.go(Pc::ParkCount);
        }
    }

    /// What was counted too much is taken off.
    pub fn park_count(&mut self) -> Rule {
        let n = std::mem::take(&mut self.a.n);
        let late = self.dropped(Mutation::ParkCountLate);
        let counted = if late { 0 } else { self.most_chunks() };
        let s = self.ses()?;
        s.parked += n as i8 - counted;
        s.n_parked += n;
        self.go(Pc::ParkUnlock);
        Ok(())
    }

    pub fn park_unlock(&mut self) -> Rule {
        if !self.dropped(Mutation::ParkNoLock) {
            *self.anon_lock() = 0;
        }
        self.st.parking = false;
        self.go(Pc::ParkRest);
        Ok(())
    }

    /// copy_rest(), or the original: may fail; Linux 7.2 then calls unmap_vmas() for the child.
    pub fn park_rest(&mut self) -> Rule {
        self.a.flag = self.choice == 1;
        let next = self.a.chunk + 1;
        let more = next < CHUNKS && self.choice == 0;
        self.a.chunk = if more { next } else { 0 };
        self.go(match (self.choice, more) {
            (0, true) => Pc::ForkVma,
            (0, false) => Pc::ForkFlush,
            _ => Pc::ParkAbort,
        });
        Ok(())
    }

    pub fn park_abort(&mut self) -> Rule {
        self.ses()?.aborted = true;
        self.start_pull_all(Pc::ForkFlush);
        Ok(())
    }

    /// End of dup_mmap(): flush_tlb_mm(). What was never parked is copied here, in one step.
    pub fn fork_flush(&mut self) -> Rule {
        self.st.tlb = Default::default();
        self.ses()?.cut = true;
        let fails = self.a.flag;
        for c in 0..usize::from(CHUNKS) {
            if fails || self.ses()?.word[c] != Word::None {
                continue;
            }
            if !self.st.slot[c] {
                return Err("copy_page_range() meets a parked chunk");
            }
            self.st.wp[c] = true;
            let s = self.ses()?;
            s.slot[c] = Slot::Whole;
            s.shared[c] = true;
        }
        self.go(Pc::ForkUnlock);
        Ok(())
    }

    /// The VMA locks go with mmap_lock. Then the rest of copy_process() fails, or the child is in the pid hash.
    pub fn fork_unlock(&mut self) -> Rule {
        self.st.mmap_lock = 0;
        self.st.vma_lock.iter_mut().for_each(|l| *l = (*l).max(0));
        self.a.flag |= self.choice == 1;
        if self.a.flag {
            // CLOSED is not set: af_fork_failed().
            let first = match self.p.dropped {
                Some(Mutation::FailNoClose) => Pc::FailAbort,
                Some(Mutation::CloseLooksFirst) => Pc::CloseLook,
                _ => Pc::Close,
            };
            self.find(true, true, first, Pc::FailFree);
            self.a.fin = Pc::FailAbort;
        } else {
            self.ses()?.visible = true;
            self.find(true, true, Pc::ForkedFlushed, Pc::ForkWake);
        }
        Ok(())
    }

    pub fn fail_abort(&mut self) -> Rule {
        self.a.fin = Pc::Done;
        self.ses()?.aborted = true;
        if self.dropped(Mutation::FailNoAbort) {
            self.go(Pc::FailPut);
        } else {
            self.start_pull_all(Pc::FailPut);
        }
        Ok(())
    }

    pub fn fail_free(&mut self) -> Rule {
        let s = &mut self.st.ses[usize::from(self.a.s)];
        s.failed = true;
        s.child_gone = true;
        s.slot = Default::default();
        s.shared = Default::default();
        self.done();
        Ok(())
    }

    /// af_probe_fork() has found the session: nobody but this thread closes it.
    pub fn forked_flushed(&mut self) -> Rule {
        let s = self.ses()?;
        s.forked = true;
        s.flushed = true;
        let parked = s.n_parked != 0;
        if !parked {
            self.start_close(Pc::ForkPut);
        } else if self.dropped(Mutation::ForkedLooksFirst) {
            self.go(Pc::ForkedLook);
        } else {
            self.go(Pc::ForkedTask);
        }
        Ok(())
    }

    pub fn forked_task(&mut self) -> Rule {
        self.ses()?.task = true;
        let aborted = std::mem::take(&mut self.a.n) == 1;
        self.go(match self.p.dropped {
            Some(Mutation::ForkedLooksFirst) if aborted => Pc::ForkedKill,
            Some(Mutation::ForkedLooksFirst | Mutation::ForkedNoLook) => Pc::ForkedWork,
            _ => Pc::ForkedLook,
        });
        Ok(())
    }

    pub fn forked_look(&mut self) -> Rule {
        let aborted = self.ses()?.aborted;
        if self.dropped(Mutation::ForkedLooksFirst) {
            self.a.n = u8::from(aborted);
            self.go(Pc::ForkedTask);
        } else {
            self.go(if aborted {
                Pc::ForkedKill
            } else {
                Pc::ForkedWork
            });
        }
        Ok(())
    }

    pub fn forked_kill(&mut self) -> Rule {
        let s = self.ses()?;
        s.sigkill = true;
        s.killed = true;
        self.go(Pc::ForkedWork);
        Ok(())
    }

    pub fn forked_work(&mut self) -> Rule {
        let no_hold = self.dropped(Mutation::WorkNoHold);
        let s = self.ses()?;
        s.users += u8::from(!no_hold);
        s.child_work = true;
        self.go(Pc::ForkedHelper);
        Ok(())
    }

    fn starts(&self, role: Role) -> bool {
        self.a.s == 0 && self.p.scenario.roles.contains(&role)
    }

    pub fn forked_helper(&mut self) -> Rule {
        let starts = self.starts(Role::Helper);
        let hold = starts && !self.dropped(Mutation::HelperNoHold);
        let s = self.ses()?;
        s.users += u8::from(hold);
        s.helper_queued = starts;
        self.start_close(Pc::ForkPut);
        Ok(())
    }

    /// wake_up_new_task()
    pub fn fork_wake(&mut self) -> Rule {
        self.st.ses[usize::from(self.a.s)].woken = true;
        self.done();
        Ok(())
    }
}
