// SPDX-License-Identifier: MIT OR Apache-2.0
//! `pull.c`: the only way out of the parked state.

use crate::scenario::Mutation;
use crate::state::*;
use crate::step::{Rule, Thread};

impl Thread<'_> {
    /// `af_pull_range()` on chunks [`first`, `end`), then on to `ret`.
    pub fn start_pull(&mut self, first: u8, end: u8, child: bool, ret: Pc) {
        self.a.ret = ret;
        self.a.pull = Pull {
            chunk: first,
            end,
            child,
            ..Pull::default()
        };
        self.go(Pc::PullParked);
    }

    /// af_sync_range() of the parent: finds its session, pulls chunks [`first`, `end`) and goes on to
    /// `ret` to put it. `locked`: the caller holds mmap_lock or the VMA's.
    pub fn pull_parent(&mut self, first: u8, end: u8, locked: bool, ret: Pc, not_found: Pc) {
        self.start_pull(first, end, false, ret);
        self.a.pull.locked = locked;
        self.find(false, false, Pc::PullParked, not_found);
    }

    /// The same of the child, this chunk.
    pub fn pull_of_child(&mut self, ret: Pc, not_found: Pc) {
        self.start_pull(self.a.chunk, self.a.chunk + 1, false, ret);
        self.find(true, false, Pc::PullParked, not_found);
    }

    pub fn start_pull_all(&mut self, ret: Pc) {
        self.start_pull(0, CHUNKS, false, ret);
    }

    fn at(&self) -> usize {
        usize::from(self.a.pull.chunk)
    }

    fn word(&mut self) -> Result<&mut Word, &'static str> {
        let at = self.at();
        Ok(&mut self.ses()?.word[at])
    }

    /// The loop over ranges: `parked`, then af_ranges_find().
    pub fn pull_parked(&mut self) -> Rule {
        let range = self.range_of(self.a.pull.chunk);
        let unseen = self.a.pull.locked && self.dropped(Mutation::FlushedUnseen);
        let s = self.ses()?;
        s.flushed |= unseen;
        if s.parked == 0 || range >= s.ranges {
            self.pull_return();
        } else {
            self.this_chunk();
        }
        Ok(())
    }

    fn this_chunk(&mut self) {
        self.go(if self.a.pull.child {
            Pc::PullFatal
        } else {
            Pc::PullWord
        });
    }

    pub fn next_chunk(&mut self) {
        let range = self.range_of(self.a.pull.chunk);
        self.a.pull = Pull {
            chunk: self.a.pull.chunk + 1,
            end: self.a.pull.end,
            child: self.a.pull.child,
            locked: self.a.pull.locked,
            outer: self.a.pull.outer,
            ..Pull::default()
        };
        if self.a.pull.chunk == self.a.pull.end {
            self.pull_return();
        } else if self.range_of(self.a.pull.chunk) == range {
            self.this_chunk();
        } else {
            self.go(Pc::PullParked);
        }
    }

    fn pull_return(&mut self) {
        let outer = self.a.pull.outer;
        self.a.pull = Pull::default();
        if let Some((chunk, end, child, locked)) = outer {
            // Back in pull_chunk(), after its abort.
            self.a.pull.chunk = chunk;
            self.a.pull.end = end;
            self.a.pull.child = child;
            self.a.pull.locked = locked;
            self.go(Pc::PullWord);
        } else {
            let ret = std::mem::take(&mut self.a.ret);
            self.go(ret);
        }
    }

    pub fn pull_fatal(&mut self) -> Rule {
        let s = self.ses()?;
        let abort = s.sigkill && !s.aborted;
        self.go(if abort { Pc::PullAbort } else { Pc::PullWord });
        Ok(())
    }

    pub fn pull_abort(&mut self) -> Rule {
        self.ses()?.aborted = true;
        let ret = self.a.ret;
        self.start_pull_all(ret);
        Ok(())
    }

    pub fn pull_word(&mut self) -> Rule {
        match *self.word()? {
            Word::None | Word::Done => self.next_chunk(),
            Word::Busy => self.go(Pc::PullWait),
            Word::Parked => self.go(Pc::PullAborted),
        }
        Ok(())
    }

    pub fn pull_next(&mut self) -> Rule {
        self.ses()?;
        self.next_chunk();
        Ok(())
    }

    pub fn pull_aborted(&mut self) -> Rule {
        self.a.pull.copy = !self.ses()?.aborted;
        self.go(if !self.a.pull.copy {
            Pc::PullClaim
        } else if self.a.pull.table {
            Pc::SyncLook
        } else {
            Pc::PullAlloc
        });
        Ok(())
    }

    pub fn pull_alloc(&mut self) -> Rule {
        self.ses()?;
        self.a.pull.table = self.choice == 0;
        self.go(if self.choice == 0 {
            Pc::SyncLook
        } else {
            Pc::PullAgain
        });
        Ok(())
    }

    pub fn pull_again(&mut self) -> Rule {
        if *self.word()? == Word::Parked {
            self.start_doom();
        } else {
            self.go(Pc::PullWord);
        }
        Ok(())
    }

    /// After af_session_doom(): of a copied chunk, or of one without memory.
    pub fn doomed(&mut self) {
        if self.a.pull.partial {
            let late = self.dropped(Mutation::DoomLate);
            self.go(if late {
                Pc::PullCount
            } else {
                Pc::PullSlotChild
            });
            return;
        }
        // af_pull_abort(): AF_ABORTED is set already.
        let p = self.a.pull;
        self.a.pull = Pull {
            chunk: 0,
            end: CHUNKS,
            outer: Some((p.chunk, p.end, p.child, p.locked)),
            ..Pull::default()
        };
        self.go(Pc::PullParked);
    }

    pub fn sync_look(&mut self) -> Rule {
        let synced = self.ses()?.synced;
        self.go(if synced {
            Pc::PullClaim
        } else {
            Pc::SyncFlushed
        });
        Ok(())
    }

    /// Who holds a lock that the fork holds until its flush, and finds a chunk parked, comes after it.
    pub fn sync_flushed(&mut self) -> Rule {
        let locked = self.a.pull.locked;
        let s = self.ses()?;
        s.flushed |= locked;
        let flushed = s.flushed;
        self.a.pull.flushed = flushed;
        self.go(if flushed || self.dropped(Mutation::NoFlush) {
            self.ipi()
        } else {
            Pc::SyncFlush
        });
        Ok(())
    }

    fn ipi(&self) -> Pc {
        if self.dropped(Mutation::NoIpi) {
            Pc::SyncSet
        } else {
            Pc::SyncIpi
        }
    }

    /// Not an IPI to a GUP-fast walker: a flush need not be one.
    pub fn sync_flush(&mut self) -> Rule {
        self.st.tlb = Default::default();
        self.go(self.ipi());
        Ok(())
    }

    pub fn sync_ipi(&mut self) -> Rule {
        self.go(
            if self.a.pull.flushed || self.dropped(Mutation::SyncedEarly) {
                Pc::SyncSet
            } else {
                Pc::PullClaim
            },
        );
        Ok(())
    }

    pub fn sync_set(&mut self) -> Rule {
        self.ses()?.synced = true;
        self.go(Pc::PullClaim);
        Ok(())
    }

    pub fn pull_claim(&mut self) -> Rule {
        let store = self.dropped(Mutation::ClaimByStore);
        let word = self.word()?;
        if *word != Word::Parked && !store {
            self.go(Pc::PullWord);
            return Ok(());
        }
        *word = Word::Busy;
        if !self.a.pull.copy {
            self.ses()?.reattached = true;
        }
        let first = self.dropped(Mutation::DoneFirst);
        self.go(match (self.a.pull.copy, first) {
            (true, _) => Pc::PullCopy,
            (false, true) => Pc::PullDone,
            (false, false) => self.slot_parent(),
        });
        Ok(())
    }

    /// Nobody else must be able to reach the table: its entries are one step here.
    pub fn pull_copy(&mut self) -> Rule {
        let at = self.at();
        if self.st.tlb[at] {
            return Err("a chunk is copied under a writable TLB entry");
        }
        if self.st.gup == Some(at as u8) {
            return Err("a chunk is copied under a GUP-fast walk");
        }
        if self.ses()?.written[at] {
            return Err("the child gets what the parent wrote after the fork");
        }
        self.st.wp[at] = true;
        self.ses()?.shared[at] = true;
        self.a.pull.partial = self.choice == 1;
        if self.choice == 1 && !self.dropped(Mutation::DoomLate) {
            self.start_doom();
        } else {
            self.go(Pc::PullSlotChild);
        }
        Ok(())
    }

    fn slot_parent(&self) -> Pc {
        if self.dropped(Mutation::NoReattach) {
            Pc::PullDone
        } else {
            Pc::PullSlotParent
        }
    }

    pub fn pull_slot_child(&mut self) -> Rule {
        let at = self.at();
        let partial = self.a.pull.partial;
        let s = self.ses()?;
        if s.child_gone {
            return Err("a table is attached to the freed page tables of the child");
        }
        if s.slot[at] != Slot::Empty {
            return Err("the child's slot is not empty");
        }
        s.slot[at] = if partial { Slot::Partial } else { Slot::Whole };
        let first = self.dropped(Mutation::DoneFirst);
        self.go(if first {
            Pc::PullDone
        } else {
            self.slot_parent()
        });
        Ok(())
    }

    pub fn pull_slot_parent(&mut self) -> Rule {
        let at = self.at();
        self.ses()?;
        if self.st.parent_gone {
            return Err("a table is attached to the freed page tables of the parent");
        }
        if self.st.slot[at] {
            return Err("the parent's slot is not empty");
        }
        self.st.slot[at] = true;
        let first = self.dropped(Mutation::DoneFirst);
        self.go(if first { Pc::PullCount } else { Pc::PullDone });
        Ok(())
    }

    pub fn pull_done(&mut self) -> Rule {
        *self.word()? = Word::Done;
        if self.dropped(Mutation::DoneFirst) {
            self.go(Pc::PullSlotParent);
        } else if self.a.pull.partial && self.dropped(Mutation::DoomLate) {
            self.start_doom();
        } else {
            self.go(Pc::PullCount);
        }
        Ok(())
    }

    /// `af_session_chunk_done()`
    pub fn pull_count(&mut self) -> Rule {
        let s = self.ses()?;
        s.parked -= 1;
        if s.parked == 0 {
            self.a.fin = Pc::PullNext;
            self.go(Pc::FinishClosed);
        } else {
            self.next_chunk();
        }
        Ok(())
    }
}
