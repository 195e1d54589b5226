// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who takes part, and which rule is dropped.

use crate::state::Pc;

/// A thread of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Armed fork number 0 or 1; the second one starts after the first one's `dup_mmap()`.
    Fork(u8),
    /// The child of that fork.
    Child(u8),
    /// A thread of the parent writes to this chunk: through its TLB, or with a fault. The hooks of unmap,
    /// zap, protect, move and walk take the same steps as the fault's.
    Write(u8),
    /// A fault of the parent on this chunk, as a page of it is not mapped yet, under its VMA's lock.
    VmaFault(u8),
    /// A migration ends on a page of this chunk in the parent.
    Migrate(u8),
    /// A migration ends on a page of this chunk in the first child, which it does not keep alive.
    MigrateChild(u8),
    /// A userfaultfd ioctl of the parent fills this chunk's memory.
    Uffd(u8),
    /// A memory failure in a page of this chunk.
    Poison(u8),
    /// GUP-fast of the parent on this chunk.
    Gup(u8),
    /// Another process looks at this chunk of the first child (`process_vm_readv()`).
    Peek(u8),
    /// Helper thread of the first session: the second half.
    Helper,
    /// Timeout of the first session.
    Timer,
    /// Somebody may send SIGKILL to the first child.
    Kill,
    /// The parent exits once all its threads are done.
    Exit,
    /// The scheduler: takes the first child off its CPU unless it has preemption off, and lets it go on
    /// only once everybody else is done; with a timeout, once nothing is parked.
    Hog,
}

impl Role {
    /// First step, session, chunk.
    pub(crate) fn start(self) -> (Pc, u8, u8) {
        match self {
            Role::Fork(s) => (Pc::ForkLock, s, 0),
            Role::Child(s) => (Pc::ChildStart, s, 0),
            Role::Write(c) => (Pc::Write, 0, c),
            Role::VmaFault(c) => (Pc::HookLock, 0, c),
            Role::Migrate(c) | Role::MigrateChild(c) => (Pc::MigrateLock, 0, c),
            Role::Uffd(c) => (Pc::UffdActive, 0, c),
            Role::Poison(c) => (Pc::PoisonGuard, 0, c),
            Role::Gup(c) => (Pc::GupRead, 0, c),
            Role::Peek(c) => (Pc::PeekStart, 0, c),
            Role::Helper => (Pc::HelperStart, 0, 0),
            Role::Timer => (Pc::TimerStart, 0, 0),
            Role::Kill => (Pc::Kill, 0, 0),
            Role::Exit => (Pc::ExitStart, 0, 0),
            Role::Hog => (Pc::HogHold, 0, 0),
        }
    }

    /// Does it keep `mm_users` of the parent?
    pub(crate) fn of_parent(self) -> bool {
        matches!(
            self,
            Role::Fork(_) | Role::Write(_) | Role::VmaFault(_) | Role::Uffd(_) | Role::Gup(_)
        )
    }
}

/// A small world.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// For reports.
    pub name: &'static str,
    /// At most [`crate::state::ACTORS`].
    pub roles: &'static [Role],
    /// Both chunks in one VMA; else in two with a lock and an anon_vma root each.
    pub one_vma: bool,
    /// A pull may get no PTE table, not even a reserve.
    pub no_memory: bool,
    /// The copy of a mixed chunk may fail.
    pub mixed_fails: bool,
    /// The fork may fail after parking.
    pub fork_fails: bool,
}

use Role::*;

const PLAIN: Scenario = Scenario {
    name: "",
    roles: &[],
    one_vma: false,
    no_memory: false,
    mixed_fails: false,
    fork_fails: false,
};

/// Small worlds that together make every thread meet every other.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "child against parent and helper",
        roles: &[Fork(0), Child(0), Write(1), Helper],
        ..PLAIN
    },
    Scenario {
        name: "SIGKILL",
        roles: &[Fork(0), Child(0), Write(1), Helper, Kill],
        ..PLAIN
    },
    Scenario {
        name: "no memory",
        roles: &[Fork(0), Child(0), Write(0), Helper],
        no_memory: true,
        ..PLAIN
    },
    Scenario {
        name: "mixed copies fail",
        roles: &[Fork(0), Child(0), Write(0), Helper],
        mixed_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "migration in a fork that may fail",
        roles: &[Fork(0), Child(0), Migrate(0), Write(0), Gup(1)],
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "migration, one VMA",
        roles: &[Fork(0), Child(0), Migrate(0), Migrate(1), Gup(1)],
        one_vma: true,
        ..PLAIN
    },
    Scenario {
        name: "migration without memory in a fork",
        roles: &[Fork(0), Child(0), Migrate(0), Migrate(0)],
        no_memory: true,
        ..PLAIN
    },
    Scenario {
        name: "migration in the child",
        roles: &[Fork(0), Child(0), MigrateChild(0), Kill, Gup(1)],
        mixed_fails: true,
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "mixed copies fail in a fork",
        roles: &[Fork(0), Child(0), Migrate(0), Migrate(1)],
        mixed_fails: true,
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "second fork",
        roles: &[Fork(0), Child(0), Fork(1), Child(1), Write(0)],
        ..PLAIN
    },
    Scenario {
        name: "userfaultfd",
        roles: &[Fork(0), Child(0), Uffd(0), Migrate(1)],
        ..PLAIN
    },
    Scenario {
        name: "second fork, migration",
        roles: &[Fork(0), Child(0), Fork(1), Child(1), Migrate(1)],
        ..PLAIN
    },
    Scenario {
        name: "second fork, no memory",
        roles: &[Fork(0), Child(0), Fork(1), Child(1)],
        no_memory: true,
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "reader of the child, exits",
        roles: &[Fork(0), Child(0), Peek(0), Exit],
        ..PLAIN
    },
    Scenario {
        name: "faults under VMA locks",
        roles: &[Fork(0), Child(0), VmaFault(1), Migrate(0)],
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "second fork, fault under a VMA lock",
        roles: &[Fork(0), Child(0), Fork(1), Child(1), VmaFault(1)],
        ..PLAIN
    },
    Scenario {
        name: "second fork, timeout",
        roles: &[Fork(0), Child(0), Fork(1), Child(1), Timer],
        one_vma: true,
        ..PLAIN
    },
    Scenario {
        name: "memory failure",
        roles: &[Fork(0), Child(0), Poison(0), Write(1)],
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "memory failure, one VMA",
        roles: &[Fork(0), Child(0), Poison(0), Migrate(1), Gup(0)],
        one_vma: true,
        ..PLAIN
    },
    Scenario {
        name: "memory failure between two forks",
        roles: &[Fork(0), Child(0), Fork(1), Child(1), Poison(1)],
        one_vma: true,
        ..PLAIN
    },
    Scenario {
        name: "child held back",
        roles: &[Fork(0), Child(0), Write(0), Write(1), Hog],
        mixed_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "child held back, second fork",
        roles: &[Fork(0), Child(0), Fork(1), Child(1), Hog],
        one_vma: true,
        ..PLAIN
    },
    Scenario {
        name: "child held back for the timeout",
        roles: &[Fork(0), Child(0), Timer, Hog],
        ..PLAIN
    },
    Scenario {
        name: "timeout",
        roles: &[Fork(0), Child(0), Write(0), Timer],
        ..PLAIN
    },
    Scenario {
        name: "timeout in a fork that may fail",
        roles: &[Fork(0), Child(0), Timer, Gup(1)],
        fork_fails: true,
        ..PLAIN
    },
    Scenario {
        name: "timeout without memory, SIGKILL",
        roles: &[Fork(0), Child(0), Timer, Kill],
        no_memory: true,
        mixed_fails: true,
        ..PLAIN
    },
];

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule of the protocol that is dropped, or two accesses that change places.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation { $($(#[$doc])* $name,)* }

        impl Mutation {
            /// Every mutation.
            pub const ALL: &'static [Mutation] = &[$(Mutation::$name,)*];
        }
    };
}

mutations! {
    /// The word of a chunk is published before the parent's slot is cleared.
    ParkWordFirst,
    /// `parked` is raised once the words are set, not before.
    ParkCountLate,
    /// Parking does not look for a memory failure.
    ParkNoGuardLook,
    /// Parking looks for a memory failure before it makes the seqcount odd.
    ParkGuardEarly,
    /// Parking does not take the anon_vma root lock.
    ParkNoLock,
    /// The migration hook's caller holds no anon_vma root lock.
    MigrateNoLock,
    /// DONE before the parent has its table back.
    DoneFirst,
    /// The parent does not get its table back.
    NoReattach,
    /// The claim is a plain store.
    ClaimByStore,
    /// A pull that meets BUSY goes on.
    NoWait,
    /// No TLB flush before a copy that the fork's flush has not covered.
    NoFlush,
    /// No IPI before a copy.
    NoIpi,
    /// AF_SYNCED although the fork still parks chunks.
    SyncedEarly,
    /// AF_FLUSHED already when the session is created.
    FlushedEarly,
    /// A pull under a lock takes the flush as done before it has found a chunk parked.
    FlushedUnseen,
    /// The migration hook says that it holds mmap_lock.
    LockedMigration,
    /// The copy of a chunk can be preempted.
    BusyPreemptible,
    /// A failed copy of a mixed chunk dooms the session after the chunk is DONE.
    DoomLate,
    /// af_session_doom() looks at the task before it sets AF_ABORTED.
    DoomLooksFirst,
    /// af_session_forked() looks at AF_ABORTED before it sets the task.
    ForkedLooksFirst,
    /// af_session_forked() does not look at AF_ABORTED.
    ForkedNoLook,
    /// The child does not look at AF_ABORTED after its last chunk.
    ChildNoLook,
    /// The child's exit does not abort.
    ExitNoAbort,
    /// The parent's exit does not pull.
    ExitNoPull,
    /// A failed fork does not abort.
    FailNoAbort,
    /// A failed fork does not close.
    FailNoClose,
    /// af_session_close() looks at `parked` before it sets AF_CLOSED.
    CloseLooksFirst,
    /// af_session_close() leaves the finish to the last puller.
    CloseNoFinish,
    /// try_finish() does not look at AF_CLOSED.
    FinishUnclosed,
    /// try_finish() only tests AF_FINISHED and sets it later.
    FinishNoTas,
    /// A cancelled timeout keeps its reference.
    CancelNoPut,
    /// try_finish() puts the timeout's reference even if it has started.
    CancelPutAlways,
    /// The child's task work has no reference.
    WorkNoHold,
    /// A helper has no reference.
    HelperNoHold,
    /// The timeout has no reference.
    TimerNoHold,
    /// The timeout is queued with every range that parks.
    TimerTwice,
    /// The timeout does not queue itself again while the fork may park more.
    TimerOnce,
    /// The timeout looks at AF_CLOSED after it has pulled.
    TimerClosedLate,
    /// The timeout puts its reference even if it queues itself again.
    TimerAgainPuts,
    /// af_session_find() takes no reference, though its callers put one.
    FindNoHold,
    /// af_session_find() takes a reference of a session that has none left.
    FindFromZero,
    /// af_session_find() sees the older session first.
    FindOldFirst,
    /// A fork does not pull the session before.
    ForkNoPull,
    /// __pte_alloc() is not hooked.
    NoPteAlloc,
    /// A memory failure does not keep forks from parking.
    PoisonNoGuard,
    /// A memory failure keeps forks from parking only after it has pulled.
    PoisonGuardLate,
    /// A memory failure does not wait for a fork that is parking.
    PoisonNoWait,
    /// A memory failure looks at no session that has nothing parked.
    PoisonParkedOnly,
}
