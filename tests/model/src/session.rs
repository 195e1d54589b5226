// SPDX-License-Identifier: MIT OR Apache-2.0
//! `session.c`: find, put, close, finish, doom.

use crate::scenario::Mutation;
use crate::state::*;
use crate::step::{Rule, Thread};

impl Thread<'_> {
    /// `af_session_find()`; sessions that do not exist yet are not in the bucket.
    pub fn find(&mut self, child_role: bool, any: bool, found: Pc, not_found: Pc) {
        self.a.child_role = child_role;
        self.a.any = any;
        self.a.found = found;
        self.a.not_found = not_found;
        if !child_role {
            let old_first = self.dropped(Mutation::FindOldFirst);
            let second = self.st.ses[1].in_hash && !old_first;
            self.a.s = u8::from(second);
        }
        self.go(Pc::FindLook);
    }

    pub fn find_look(&mut self) -> Rule {
        let s = &self.st.ses[usize::from(self.a.s)];
        if s.in_hash && (self.a.any || s.parked != 0) {
            self.go(Pc::FindGet);
        } else {
            self.find_more();
        }
        Ok(())
    }

    pub fn find_get(&mut self) -> Rule {
        let from_zero = self.dropped(Mutation::FindFromZero);
        let no_hold = self.dropped(Mutation::FindNoHold);
        let s = &mut self.st.ses[usize::from(self.a.s)];
        if s.users == 0 && !from_zero {
            self.find_more();
            return Ok(());
        }
        s.users += u8::from(!no_hold);
        let found = self.a.found;
        self.found(found);
        Ok(())
    }

    fn find_more(&mut self) {
        let last = u8::from(self.dropped(Mutation::FindOldFirst));
        if !self.a.child_role && self.a.s != last && self.st.ses[1].in_hash | (last == 0) {
            self.a.s = last;
            return self.go(Pc::FindLook);
        }
        let not_found = self.a.not_found;
        self.a.pull = Pull::default();
        self.a.ret = Pc::Done;
        self.found(not_found);
    }

    fn found(&mut self, pc: Pc) {
        self.a.found = Pc::Done;
        self.a.not_found = Pc::Done;
        self.a.child_role = false;
        self.a.any = false;
        self.go(pc);
        if pc == Pc::Done {
            self.done();
        }
    }

    /// `af_session_put()`; the worker frees at once, nobody must notice.
    fn put(&mut self) -> Rule {
        let s = self.ses()?;
        if s.users == 0 {
            return Err("more references put than taken");
        }
        s.users -= 1;
        if s.users == 0 {
            if s.in_hash {
                return Err("last reference put while in the hash");
            }
            s.freed = true;
        }
        Ok(())
    }

    pub fn put_then(&mut self, pc: Pc) -> Rule {
        self.put()?;
        self.go(pc);
        if pc == Pc::Done {
            self.done();
        }
        Ok(())
    }

    /// `af_session_close()`, then on to `after`.
    pub fn start_close(&mut self, after: Pc) {
        self.a.fin = after;
        let look = self.dropped(Mutation::CloseLooksFirst);
        self.go(if look { Pc::CloseLook } else { Pc::Close });
    }

    pub fn close_look(&mut self) -> Rule {
        self.a.n = u8::from(self.ses()?.parked != 0);
        self.go(Pc::Close);
        Ok(())
    }

    pub fn close(&mut self) -> Rule {
        self.ses()?.closed = true;
        if self.dropped(Mutation::CloseNoFinish) {
            self.finish_return();
        } else if self.dropped(Mutation::CloseLooksFirst) {
            match std::mem::take(&mut self.a.n) {
                0 => self.go(Pc::FinishFlag),
                _ => self.finish_return(),
            }
        } else {
            self.go(Pc::FinishClosed);
        }
        Ok(())
    }

    fn finish_return(&mut self) {
        match std::mem::take(&mut self.a.fin) {
            Pc::PullNext => self.next_chunk(),
            pc => self.go(pc),
        }
    }

    pub fn finish_closed(&mut self) -> Rule {
        if self.ses()?.closed || self.dropped(Mutation::FinishUnclosed) {
            self.go(Pc::FinishParked);
        } else {
            self.finish_return();
        }
        Ok(())
    }

    pub fn finish_parked(&mut self) -> Rule {
        if self.ses()?.parked == 0 {
            self.go(Pc::FinishFlag);
        } else {
            self.finish_return();
        }
        Ok(())
    }

    pub fn finish_flag(&mut self) -> Rule {
        let tas = !self.dropped(Mutation::FinishNoTas);
        let s = self.ses()?;
        if s.finished {
            self.finish_return();
        } else {
            s.finished = tas;
            self.go(Pc::FinishHash);
        }
        Ok(())
    }

    pub fn finish_hash(&mut self) -> Rule {
        let s = self.ses()?;
        s.finished = true;
        s.finishes += 1;
        s.in_hash = false;
        if s.finishes > 1 {
            return Err("a session finishes twice");
        }
        if s.word.contains(&Word::Parked) || s.word.contains(&Word::Busy) {
            return Err("a session finishes with a chunk parked");
        }
        if s.forked && s.slot.contains(&Slot::Partial) && !s.killed && !s.reattached {
            return Err("a lost image is reported as a snapshot");
        }
        self.go(Pc::FinishTimer);
        Ok(())
    }

    pub fn finish_timer(&mut self) -> Rule {
        let no_put = self.dropped(Mutation::CancelNoPut);
        let always = self.dropped(Mutation::CancelPutAlways);
        let s = self.ses()?;
        let cancelled = s.timer == Timer::Queued;
        if cancelled {
            s.timer = Timer::Cancelled;
        }
        let put = (cancelled && !no_put) || (always && s.timer == Timer::Started);
        self.go(if put {
            Pc::FinishTimerPut
        } else {
            Pc::FinishActive
        });
        Ok(())
    }

    pub fn finish_active(&mut self) -> Rule {
        self.st.active -= 1;
        self.go(Pc::FinishPut);
        Ok(())
    }

    pub fn finish_put(&mut self) -> Rule {
        self.put()?;
        self.finish_return();
        Ok(())
    }

    pub fn start_doom(&mut self) {
        let look = self.dropped(Mutation::DoomLooksFirst);
        self.go(if look { Pc::DoomTask } else { Pc::DoomSet });
    }

    pub fn doom_set(&mut self) -> Rule {
        self.ses()?.aborted = true;
        if !self.dropped(Mutation::DoomLooksFirst) {
            self.go(Pc::DoomTask);
        } else if std::mem::take(&mut self.a.pull.task) {
            self.go(Pc::DoomKill);
        } else {
            self.doomed();
        }
        Ok(())
    }

    pub fn doom_task(&mut self) -> Rule {
        let task = self.ses()?.task;
        if self.dropped(Mutation::DoomLooksFirst) {
            self.a.pull.task = task;
            self.go(Pc::DoomSet);
        } else if task {
            self.go(Pc::DoomKill);
        } else {
            self.doomed();
        }
        Ok(())
    }

    /// `kill_child()`; AF_KILLED is for the report only.
    pub fn doom_kill(&mut self) -> Rule {
        let s = self.ses()?;
        s.sigkill = true;
        s.killed = true;
        self.doomed();
        Ok(())
    }
}
