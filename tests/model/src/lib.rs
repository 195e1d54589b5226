// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module's protocol, small enough to visit every state it can be in.
//!
//! Two chunks, one or two forks, and in each scenario up to five threads. A step of a thread is one
//! access to memory that another thread can see: a load, store, cmpxchg or bit operation of a shared
//! word, or taking or dropping a lock. The [checker](mod@checker) visits all interleavings, breadth
//! first, so a counterexample is a shortest one.
//!
//! `cargo test -p asyncfork-model` shows that no rule is broken in any scenario, that every step is
//! taken in some, and that the protocol needs each of its rules: for each
//! [`Mutation`], one rule dropped or two accesses swapped, a counterexample is found.
//!
//! # Where to find a function of the module
//!
//! | here | there |
//! |---|---|
//! | `park.rs` | `park.c`; `fork.c`: af_fork_begin(), af_fork_done(), af_fork_failed(); `session.c`: af_session_create(), af_session_parked(), af_session_forked(); `hooks.c`: af_hook_uprobe_dup_mmap(), af_probe_fork() |
//! | `pull.rs` | `pull.c`: af_sync_range(), af_pull_range(), pull_chunk(), claim(), finish(), sync_cpus(), attach(), af_pull_abort(); `session.c`: af_session_chunk_done() |
//! | `session.rs` | `session.c`: af_session_find(), af_session_put(), af_session_close(), try_finish(), af_session_doom() |
//! | `child.rs` | `workers.c`: pull_child(); `hooks.c`: af_hook_exit_mmap() of a child |
//! | `hooks.rs` | `hooks.c`: the other hooks; `poison.c`; helper and timeout of `workers.c`; TLB, GUP-fast and scheduler |
//! | [`state::Pc`] | the steps in the order of the code |
//!
//! # Rules
//!
//! In every state:
//! - A table goes into an empty slot only, and never into page tables that have been freed.
//! - No chunk is copied while a writable TLB entry or a GUP-fast walk can still reach its table.
//! - The child gets what the parent had when dup_mmap() ended, and no write of the parent gets there later.
//! - The child does not reach user mode without its whole image; a lost image is never reported as a snapshot.
//! - As long as a chunk is parked `parked` is above 0, or the hooks would not look for it.
//! - A hooked function that goes on meets no parked chunk in its range, neither at its start nor at its
//!   end (migration, memory failure), nor does the fork where it copies itself.
//! - A session finishes once, with nothing parked; nobody uses it after its last put; no put is one too many.
//! - From every state an end can be reached: nobody is stuck, nothing spins for ever. Not even if the scheduler
//!   keeps the child off its CPU until all others are done ([`Role::Hog`]); the timeout then leaves nothing parked.
//!
//! At the end: every table is back in the parent, `parked`, users, `af_active`, guards and locks balance,
//! every session is finished and freed.
//!
//! # What is simpler than the code
//!
//! - **Memory is sequentially consistent.** Where the code has a barrier, a mutation swaps the two
//!   accesses ([`Mutation::CloseLooksFirst`], `DoomLooksFirst`, `ForkedLooksFirst`, `ParkGuardEarly`,
//!   `PoisonGuardLate`). The comments in the code argue the rest.
//! - A chunk has one page. Its copy is one step: nobody else may reach the table then, which is a rule.
//!   A copy is whole or, if one of its entries needs memory and gets none, partial.
//! - The last put frees at once, without the worker and RCU; af_session_find() may look at a freed
//!   session, as under RCU, and nobody else.
//! - kill_child() is one step, and so are af_session_forked()'s two flags, taking a reference together with
//!   queueing its work, dropping the anon_vma lock together with the seqcount's end, and dropping mmap_lock
//!   together with the VMAs' locks: nobody can tell.
//! - What a fork does not park it copies in one step at its end: it holds the locks until then.
//! - A fault that does not get its VMA's lock waits for it, where the kernel's waits for mmap_lock.
//! - The timeout's delay may be over at once, any number of times, also in the middle of the fork.
//! - Any thread may stop anywhere, for as long as it likes, but not for ever. A child that is frozen or gets no
//!   CPU ([`Role::Hog`]) does stop for ever, as others see it, wherever it has preemption on.
//!
//! Left out: pinned pages and the seqcount against GUP-fast that pins (`park_range()`), merging into a slot
//! that is not empty (here that breaks a rule), PTE locks, the growth of the range array, pins by descriptors,
//! unload, a chunk that is not parked in a range that is (`NONE`; a range that is not parked as a whole is
//! there, with a memory failure), the mutex between two memory failures, and a parent that is itself
//! somebody's child. Two chunks and two sessions are an assumption, not a proof: the code treats all
//! chunks alike.
//!
//! A fork of a process that has memory registered with userfaultfd is a stock fork. That is for UFFDIO_MOVE,
//! which takes an empty slot for a hole and asks nobody. No such fork has anything to do with the rest, so it is
//! not here; the ioctls that fill memory are, with a fork that comes between their hook and their lock.
//!
//! Some rules are belt and braces: without the look of af_session_forked() at AF_ABORTED, or of
//! af_session_doom() at the task, the child still kills itself after its last chunk. Only the
//! report would be wrong, and that is the rule that notices.
//!
//! # What it has found
//!
//! `park_chunks()` must clear the parent's slot before it publishes the word ([`Mutation::ParkWordFirst`]). An abort
//! by a migration hook without memory, in the middle of the fork, goes through all words, also those of a VMA whose
//! anon_vma lock it does not hold: in the other order it can claim a chunk whose slot still has its table.
//!
//! # Size
//!
//! 8.8 million states and 26 million steps in all scenarios. The checker is our own: it stores whole states,
//! not hashes of them, and looks for states from which no end can be reached, which
//! `stateright` cannot express ("eventually" there is per path, and documented as incomplete).

pub mod checker;
mod child;
mod hooks;
mod park;
mod pull;
pub mod scenario;
mod session;
pub mod state;
pub mod step;

pub use checker::{check, Counterexample, Model, Visited};
pub use scenario::{Mutation, Role, Scenario, SCENARIOS};
pub use state::Pc;
pub use step::Protocol;
