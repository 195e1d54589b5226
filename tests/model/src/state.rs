// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shared memory of the module and what each thread keeps to itself.

/// Number of chunks.
pub const CHUNKS: u8 = 2;
/// Most threads in a scenario.
pub const ACTORS: usize = 5;

/// A chunk's word in the side array of a session.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Word {
    #[default]
    None,
    Parked,
    Busy,
    Done,
}

/// A chunk's slot in a child's page table.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Slot {
    #[default]
    Empty,
    Whole,
    /// A copy that ran out of memory.
    Partial,
}

/// The delayed work of a session.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Timer {
    #[default]
    Never,
    Queued,
    Started,
    Cancelled,
}

/// `struct af_session`, its side array, its child, and notes of the checker.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Session {
    pub in_hash: bool,
    pub users: u8,
    pub closed: bool,
    pub forked: bool,
    pub flushed: bool,
    pub synced: bool,
    pub aborted: bool,
    pub killed: bool,
    pub finished: bool,
    pub parked: i8,
    /// `AF_N_PARKED`.
    pub n_parked: u8,
    /// `AF_N_REATTACHED`, as far as it matters.
    pub reattached: bool,
    /// Is `task` set?
    pub task: bool,
    /// Ranges that a reader can see.
    pub ranges: u8,
    pub word: [Word; CHUNKS as usize],
    pub timer: Timer,
    pub helper_queued: bool,
    pub child_work: bool,

    /// The child: in the pid hash, woken up, SIGKILL pending, no `mm_users` left, page tables freed.
    pub visible: bool,
    pub woken: bool,
    pub sigkill: bool,
    pub child_exits: bool,
    pub child_gone: bool,
    pub slot: [Slot; CHUNKS as usize],
    /// Readers of the child's mm in another process.
    pub peekers: u8,

    /// Notes: `dup_mmap()` is over, from here on the images differ.
    pub cut: bool,
    /// The child maps the page that the parent maps now.
    pub shared: [bool; CHUNKS as usize],
    /// The parent has written since the cut.
    pub written: [bool; CHUNKS as usize],
    pub failed: bool,
    pub finishes: u8,
    pub freed: bool,
}

/// What a pull keeps on its stack.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Pull {
    pub chunk: u8,
    pub end: u8,
    /// Looks for a fatal signal: the child's own pull.
    pub child: bool,
    pub table: bool,
    pub copy: bool,
    /// The caller holds mmap_lock of the parent, or the VMA's lock.
    pub locked: bool,
    pub flushed: bool,
    pub partial: bool,
    /// Has seen a task ([`crate::Mutation::DoomLooksFirst`]).
    pub task: bool,
    /// The pull that an abort interrupts: chunk, end, child, locked.
    pub outer: Option<(u8, u8, bool, bool)>,
}

/// A thread: where it is and its local variables.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Actor {
    pub pc: Pc,
    /// Session it holds or looks at.
    pub s: u8,
    pub chunk: u8,
    pub n: u8,
    pub flag: bool,
    pub found: Pc,
    pub not_found: Pc,
    pub child_role: bool,
    pub any: bool,
    pub ret: Pc,
    pub fin: Pc,
    pub pull: Pull,
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub ses: [Session; 2],
    pub actor: [Actor; ACTORS],
    /// Does the parent's slot hold its table?
    pub slot: [bool; CHUNKS as usize],
    /// Is the parent's PTE write-protected?
    pub wp: [bool; CHUNKS as usize],
    /// A TLB of the parent has a writable entry.
    pub tlb: [bool; CHUNKS as usize],
    /// GUP-fast, interrupts off, has read the slot of this chunk.
    pub gup: Option<u8>,
    /// `mmap_lock` of the parent: -1 written, otherwise the number of readers.
    pub mmap_lock: i8,
    /// The lock of each VMA, likewise.
    pub vma_lock: [i8; CHUNKS as usize],
    /// The anon_vma root lock of each range, likewise.
    pub anon_lock: [i8; CHUNKS as usize],
    /// `af_active`.
    pub active: u8,
    /// Memory failures under way: no fork parks.
    pub guards: u8,
    /// `write_protect_seq` of the parent is odd.
    pub parking: bool,
    /// The first child is off its CPU, and stays so.
    pub held: bool,
    pub parent_gone: bool,
}

macro_rules! steps {
    ($($name:ident,)*) => {
        /// The next shared access of a thread, by the function of the module that makes it.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum Pc {
            /// Nothing left to do.
            #[default]
            Done,
            $($name,)*
        }

        impl Pc {
            /// Every step.
            pub const ALL: &'static [Pc] = &[$(Pc::$name,)*];
        }
    };
}

steps! {
    // af_session_find()
    FindLook,
    FindGet,

    // af_hook_uprobe_dup_mmap(), af_fork_begin(), af_session_create()
    ForkLock,
    ForkPutOld,
    ForkDisarm,
    ForkHash,
    ForkActive,
    // dup_mmap(), for each VMA
    ForkVma,
    // af_park()
    ParkRange,
    ParkSeq,
    ParkLock,
    ParkGuard,
    ParkTimer,
    ParkRaise,
    ParkWord,
    ParkSlot,
    ParkCount,
    ParkUnlock,
    ParkRest,
    ParkAbort,
    // dup_mmap() and its caller
    ForkFlush,
    ForkUnlock,
    // af_probe_fork(), af_session_forked()
    ForkedFlushed,
    ForkedTask,
    ForkedLook,
    ForkedKill,
    ForkedWork,
    ForkedHelper,
    ForkPut,
    ForkWake,
    // af_hook_exit_mmap() of the half-made child, af_fork_failed()
    FailAbort,
    FailPut,
    FailFree,

    // af_session_close()
    CloseLook,
    Close,
    // try_finish()
    FinishClosed,
    FinishParked,
    FinishFlag,
    FinishHash,
    FinishTimer,
    FinishTimerPut,
    FinishActive,
    FinishPut,

    // af_pull_range()
    PullParked,
    PullFatal,
    PullAbort,
    // pull_chunk()
    PullWord,
    PullWait,
    PullAborted,
    PullAlloc,
    PullAgain,
    PullClaim,
    PullCopy,
    PullSlotChild,
    PullSlotParent,
    PullDone,
    PullCount,
    PullNext,
    // sync_cpus()
    SyncLook,
    SyncFlushed,
    SyncFlush,
    SyncIpi,
    SyncSet,
    // af_session_doom()
    DoomSet,
    DoomTask,
    DoomKill,

    // child_work(), pull_child(), return to user mode
    ChildStart,
    ChildLook,
    ChildKill,
    ChildPut,
    ChildUser,
    ChildLive,
    // af_hook_exit_mmap() of the child; task work of an exiting task
    ChildExit,
    ChildAbort,
    ChildExitPut,
    ChildFree,
    ChildLateAbort,
    ChildLatePut,

    // a write of the parent; its fault, or any other hook under mmap_lock
    Write,
    HookLock,
    HookActive,
    HookPut,
    HookBody,
    HookUnlock,
    // af_hook_remove_migration_pte()
    MigrateLock,
    MigrateActive,
    MigratePut,
    MigrateBody,
    MigrateUnlock,
    // af_hook_userfaultfd_ioctl(), the ioctl, in it the hook of __pte_alloc()
    UffdActive,
    UffdPut,
    UffdLock,
    UffdSlot,
    UffdAlloc,
    UffdAllocPut,
    UffdBody,
    UffdUnlock,
    // the hook around memory_failure()
    PoisonGuard,
    PoisonWait,
    PoisonPut,
    PoisonNext,
    PoisonLate,
    PoisonBody,
    PoisonUnguard,
    // a hook on the child's mm, called by another process
    PeekStart,
    PeekActive,
    PeekPut,
    PeekBody,
    // af_hook_exit_mmap() of the parent
    ExitStart,
    ExitPut,
    ExitFree,

    HelperStart,
    HelperPut,
    TimerStart,
    TimerClosed,
    TimerAgain,
    TimerPut,
    GupRead,
    GupLeave,
    Kill,
    HogHold,
    HogRelease,
}
