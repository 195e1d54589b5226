// SPDX-License-Identifier: MIT OR Apache-2.0
//! The child: its task work, the way to user mode, its exit.

use crate::scenario::Mutation;
use crate::state::*;
use crate::step::{Rule, Thread};

impl Thread<'_> {
    fn raw(&mut self) -> &mut Session {
        &mut self.st.ses[usize::from(self.a.s)]
    }

    /// On the way to user mode; or (`flag`) killed before, then the task work runs after exit_mm().
    pub fn child_start(&mut self) -> Rule {
        let no_look = self.dropped(Mutation::ChildNoLook);
        let s = self.raw();
        if s.failed {
            self.done();
        } else if !s.child_work {
            self.go(Pc::ChildUser);
        } else if self.choice == 1 {
            self.a.flag = true;
            self.go(Pc::ChildExit);
        } else {
            let ret = if no_look { Pc::ChildPut } else { Pc::ChildLook };
            self.start_pull(0, CHUNKS, true, ret);
        }
        Ok(())
    }

    pub fn child_look(&mut self) -> Rule {
        let aborted = self.ses()?.aborted;
        self.go(if aborted { Pc::ChildKill } else { Pc::ChildPut });
        Ok(())
    }

    pub fn child_kill(&mut self) -> Rule {
        self.ses()?.sigkill = true;
        self.go(Pc::ChildPut);
        Ok(())
    }

    pub fn child_user(&mut self) -> Rule {
        let s = self.raw();
        if s.sigkill {
            self.go(Pc::ChildExit);
        } else if s.slot != [Slot::Whole; CHUNKS as usize] {
            return Err("the child gets to user mode without its whole image");
        } else {
            self.go(Pc::ChildLive);
        }
        Ok(())
    }

    /// Lives on, or exits.
    pub fn child_live(&mut self) -> Rule {
        if self.choice == 0 {
            self.done();
        } else {
            self.go(Pc::ChildExit);
        }
        Ok(())
    }

    pub fn child_exit(&mut self) -> Rule {
        self.raw().child_exits = true;
        if self.st.active == 0 || self.dropped(Mutation::ExitNoAbort) {
            self.go(Pc::ChildFree);
        } else {
            // CLOSED is set: the child has been woken up.
            self.find(true, true, Pc::ChildAbort, Pc::ChildFree);
        }
        Ok(())
    }

    pub fn child_abort(&mut self, ret: Pc) -> Rule {
        self.ses()?.aborted = true;
        self.start_pull_all(ret);
        Ok(())
    }

    pub fn child_free(&mut self) -> Rule {
        let s = self.raw();
        s.child_gone = true;
        s.slot = Default::default();
        s.shared = Default::default();
        if self.a.flag {
            self.go(Pc::ChildLateAbort);
        } else {
            self.done();
        }
        Ok(())
    }
}
