// SPDX-License-Identifier: MIT OR Apache-2.0
//! Structs, values and ioctl numbers, in the header's order.

use core::ffi::CStr;

use rustix::ioctl::{opcode, Opcode};

/// ABI version this crate speaks; see [`Version::abi`].
pub const ABI_VERSION: u32 = 3;
/// The oldest one, of modules that it works with as well.
pub const ABI_OLDEST: u32 = 2;
/// Default path of the device.
pub const DEVICE: &CStr = c"/dev/asyncfork";
/// Name of the memfd of which a process maps one page, privately, that is to be served
/// by an ARM only: not as a member of an enrolled cgroup, nor by policy.
pub const MARK: &CStr = c"asyncfork:stock";
/// Cgroups that can be enrolled.
pub const MAX_ENTRIES: usize = 4096;
/// Length of the per-hook arrays: room for more hooks than [`Hook`] names.
pub const HOOK_MAX: usize = 32;
/// Length of [`Stats::async_by_how`] and [`Stats::stock_by_how`]: room for more than
/// [`By`] names.
pub const BY_MAX: usize = 8;
/// Length of [`Stats::stock_by_reason`]: room for more than [`Reason`] names.
pub const REASON_MAX: usize = 32;
/// Length of a [`Histogram`].
pub const BUCKETS: usize = 40;

/// Type byte of every ioctl of the device.
pub const IOC_MAGIC: u8 = 0xAF;
/// Fills a [`Version`].
pub const IOC_VERSION: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA0);
/// Takes an [`Arm`].
pub const IOC_ARM: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA1);
/// Fills a [`Report`].
pub const IOC_REPORT: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA2);
/// Fills a [`Stats`].
pub const IOC_STATS: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA3);
/// Fills the reports that a [`Recent`] names.
pub const IOC_RECENT: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA4);
/// Takes an [`Enroll`].
pub const IOC_ENROLL: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA5);
/// Takes an [`Unenroll`].
pub const IOC_UNENROLL: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA6);
/// Fills the entries that an [`Enrolled`] names.
pub const IOC_ENROLLED: Opcode = opcode::read_write::<u64>(IOC_MAGIC, 0xA7);

/// The header's numeric `#define`s and array bounds, by their C names.
pub const CONSTANTS: &[(&str, u64)] = &[
    ("ASYNCFORK_ABI_VERSION", ABI_VERSION as u64),
    ("ASYNCFORK_ABI_OLDEST", ABI_OLDEST as u64),
    ("ASYNCFORK_MAX_ENTRIES", MAX_ENTRIES as u64),
    ("ASYNCFORK_BY_MAX", BY_MAX as u64),
    ("ASYNCFORK_REASON_MAX", REASON_MAX as u64),
    ("ASYNCFORK_HOOK_MAX", HOOK_MAX as u64),
    ("ASYNCFORK_BUCKETS", BUCKETS as u64),
    ("ASYNCFORK_IOC_MAGIC", IOC_MAGIC as u64),
    ("ASYNCFORK_IOC_VERSION", IOC_VERSION as u64),
    ("ASYNCFORK_IOC_ARM", IOC_ARM as u64),
    ("ASYNCFORK_IOC_REPORT", IOC_REPORT as u64),
    ("ASYNCFORK_IOC_STATS", IOC_STATS as u64),
    ("ASYNCFORK_IOC_RECENT", IOC_RECENT as u64),
    ("ASYNCFORK_IOC_ENROLL", IOC_ENROLL as u64),
    ("ASYNCFORK_IOC_UNENROLL", IOC_UNENROLL as u64),
    ("ASYNCFORK_IOC_ENROLLED", IOC_ENROLLED as u64),
];

/// Declares one of the header's enums. Numbers that it does not name, such as
/// those of a newer module, are kept in `Unknown`.
macro_rules! abi_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$vmeta:meta])* $variant:ident = $value:literal, $c_name:literal, $label:literal; )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[$vmeta])* $variant, )+
            /// A number that this version of the crate does not know.
            Unknown(u32),
        }

        impl $name {
            /// The known variants, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )+];
            /// The C names and their numbers.
            pub const VALUES: &'static [(&'static str, u32)] = &[$( ($c_name, $value), )+];

            /// Converts a number from the kernel; never fails.
            pub const fn from_raw(raw: u32) -> Self {
                match raw {
                    $( $value => Self::$variant, )+
                    other => Self::Unknown(other),
                }
            }

            /// The number as the kernel knows it.
            pub const fn raw(self) -> u32 {
                match self {
                    $( Self::$variant => $value, )+
                    Self::Unknown(raw) => raw,
                }
            }

            /// Short lower-case name for logs and metrics.
            pub const fn label(self) -> &'static str {
                match self {
                    $( Self::$variant => $label, )+
                    Self::Unknown(_) => "unknown",
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {
                    Self::Unknown(raw) => write!(f, "unknown({raw})"),
                    known => f.write_str(known.label()),
                }
            }
        }
    };
}

abi_enum! {
    /// What became of a fork.
    pub enum Outcome {
        /// No fork consumed the ARM, or it is under way.
        None = 0, "ASYNCFORK_OUTCOME_NONE", "none";
        /// At least one chunk was parked.
        Async = 1, "ASYNCFORK_OUTCOME_ASYNC", "async";
        /// The kernel's own copy; the [`Reason`] says why.
        Stock = 2, "ASYNCFORK_OUTCOME_STOCK", "stock";
        /// `fork()` itself failed, in a session.
        Failed = 3, "ASYNCFORK_OUTCOME_FAILED", "failed";
    }
}

abi_enum! {
    /// Why a fork was stock.
    pub enum Reason {
        /// No reason given.
        None = 0, "ASYNCFORK_REASON_NONE", "none";
        /// The module parameter `enabled` is 0.
        Disabled = 1, "ASYNCFORK_REASON_DISABLED", "disabled";
        /// The module switched itself off after an inconsistency.
        SwitchedOff = 2, "ASYNCFORK_REASON_SWITCHED_OFF", "switched_off";
        /// The process is below [`Arm::min_rss`], or that of the [`Entry`].
        MinRss = 3, "ASYNCFORK_REASON_MIN_RSS", "min_rss";
        /// The memory has or had pinned pages.
        Pinned = 4, "ASYNCFORK_REASON_PINNED", "pinned";
        /// The memory has mmu notifiers.
        Notifier = 5, "ASYNCFORK_REASON_NOTIFIER", "notifier";
        /// A userfaultfd may move pages of the memory.
        Uffd = 6, "ASYNCFORK_REASON_UFFD", "uffd";
        /// No kernel memory for the session.
        NoMemory = 7, "ASYNCFORK_REASON_NO_MEMORY", "no_memory";
        /// As many sessions run as the module allows.
        Limit = 8, "ASYNCFORK_REASON_LIMIT", "limit";
        /// No chunk that may be parked.
        Nothing = 9, "ASYNCFORK_REASON_NOTHING", "nothing";
        /// The memory is shared with another process.
        Shared = 10, "ASYNCFORK_REASON_SHARED", "shared";
        /// A memory failure was being dealt with.
        Poison = 11, "ASYNCFORK_REASON_POISON", "poison";
        /// The process has the [`MARK`], and no ARM.
        Library = 12, "ASYNCFORK_REASON_LIBRARY", "library";
    }
}

impl Reason {
    /// One sentence for an operator: what it means and what helps.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::None => "the module gave no reason",
            Self::Disabled => "the module is disabled (module parameter enabled=0)",
            Self::SwitchedOff => {
                "the module switched itself off after an inconsistency; see the kernel log"
            }
            Self::MinRss => "the process is smaller than the minimum resident size",
            Self::Pinned => {
                "the process has or had pinned pages (RDMA, io_uring buffers, O_DIRECT, vfio)"
            }
            Self::Notifier => "the process has mmu notifiers (KVM, RDMA or a GPU driver)",
            Self::Uffd => {
                "memory is registered with userfaultfd, which may move other pages (UFFDIO_MOVE)"
            }
            Self::NoMemory => "no kernel memory for the session",
            Self::Limit => {
                "too many sessions at once; raise the module's limit if that is normal here"
            }
            Self::Nothing => {
                "no chunk can be parked (huge pages and file or shared mappings are copied at once)"
            }
            Self::Shared => "another process shares the memory (CLONE_VM, vfork)",
            Self::Poison => "a memory failure was being dealt with; see the kernel log",
            Self::Library => {
                "the process's library says that its cgroup's enrolment is not for it \
                 (ASYNCFORK=off or require)"
            }
            Self::Unknown(_) => {
                "the module has a reason that this library does not know; update it"
            }
        }
    }
}

abi_enum! {
    /// Why a fork was to be asynchronous.
    pub enum By {
        /// No fork, or a module that does not tell.
        None = 0, "ASYNCFORK_BY_NONE", "none";
        /// An ARM, which comes before all others.
        Arm = 1, "ASYNCFORK_BY_ARM", "arm";
        /// A cgroup is enrolled.
        Enrolled = 2, "ASYNCFORK_BY_ENROLLED", "enrolled";
        /// The module parameter `policy` is `all`.
        Policy = 3, "ASYNCFORK_BY_POLICY", "policy";
    }
}

abi_enum! {
    /// Life of a session.
    pub enum State {
        /// Never had a session.
        None = 0, "ASYNCFORK_STATE_NONE", "none";
        /// Chunks may be parked.
        Running = 1, "ASYNCFORK_STATE_RUNNING", "running";
        /// Nothing is left to pull: the child, if there is one, has its whole image.
        Done = 2, "ASYNCFORK_STATE_DONE", "done";
        /// Re-attached uncopied.
        Aborted = 3, "ASYNCFORK_STATE_ABORTED", "aborted";
    }
}

abi_enum! {
    /// Who asked for a pull: index of [`Report::pulls`] and [`Stats::pulls`].
    pub enum Hook {
        /// The child's own copy loop.
        Child = 0, "ASYNCFORK_HOOK_CHILD", "child";
        /// A helper thread.
        Helper = 1, "ASYNCFORK_HOOK_HELPER", "helper";
        /// `handle_mm_fault`.
        Fault = 2, "ASYNCFORK_HOOK_FAULT", "fault";
        /// `unmap_vmas`.
        Unmap = 3, "ASYNCFORK_HOOK_UNMAP", "unmap";
        /// `MADV_DONTNEED`.
        Zap = 4, "ASYNCFORK_HOOK_ZAP", "zap";
        /// `change_protection`.
        Protect = 5, "ASYNCFORK_HOOK_PROTECT", "protect";
        /// `move_page_tables`.
        Mremap = 6, "ASYNCFORK_HOOK_MREMAP", "mremap";
        /// Page walkers.
        Walk = 7, "ASYNCFORK_HOOK_WALK", "walk";
        /// `remove_migration_pte`.
        Migration = 8, "ASYNCFORK_HOOK_MIGRATION", "migration";
        /// `userfaultfd_ioctl`.
        Uffd = 9, "ASYNCFORK_HOOK_UFFD", "uffd";
        /// `get_dump_page`.
        Dump = 10, "ASYNCFORK_HOOK_DUMP", "dump";
        /// A further fork.
        Fork = 11, "ASYNCFORK_HOOK_FORK", "fork";
        /// `exit_mmap` of the parent.
        Exit = 12, "ASYNCFORK_HOOK_EXIT", "exit";
        /// `memory_failure`.
        Poison = 13, "ASYNCFORK_HOOK_POISON", "poison";
        /// `__pte_alloc`, for those that no other hook has met.
        PteAlloc = 14, "ASYNCFORK_HOOK_PTE_ALLOC", "pte_alloc";
    }
}

/// A struct that the kernel reads or fills.
///
/// # Safety
/// The type is `#[repr(C)]`, has no padding, and any bit pattern is a valid
/// value of it.
pub unsafe trait AbiStruct: Copy + Default {
    /// Name in the header, without `struct`.
    const C_NAME: &'static str;
    /// The fields, in order.
    const FIELDS: &'static [Field];
}

/// An argument of an ioctl: begins with its size, which [`Default`] sets.
///
/// # Safety
/// The first field is `size: u64`, and [`Default`] makes it the type's size.
pub unsafe trait AbiArgument: AbiStruct {}

/// One field of an [`AbiStruct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name, the same in Rust and in C.
    pub name: &'static str,
    /// Rust type as written.
    pub ty: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

// Rust 1.85 does not count the uses in a `const _`.
#[allow(dead_code)]
const fn sum_of_sizes(fields: &[Field]) -> usize {
    let mut sum = 0;
    let mut i = 0;
    while i < fields.len() {
        sum += fields[i].size;
        i += 1;
    }
    sum
}

/// Declares one of the header's structs together with its list of fields.
macro_rules! abi_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident = $c_name:literal {
            $( $(#[$fmeta:meta])* pub $field:ident: $ty:ty = $default:expr, )+
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$fmeta])* pub $field: $ty, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        // SAFETY: repr(C); only integers, arrays of them, or other AbiStructs;
        // the assertion below rules padding out.
        unsafe impl AbiStruct for $name {
            const C_NAME: &'static str = $c_name;
            const FIELDS: &'static [Field] = &[$(
                Field {
                    name: stringify!($field),
                    ty: stringify!($ty),
                    offset: core::mem::offset_of!($name, $field),
                    size: core::mem::size_of::<$ty>(),
                },
            )+];
        }

        const _: () = assert!(
            sum_of_sizes(<$name as AbiStruct>::FIELDS) == core::mem::size_of::<$name>(),
            "the ABI has no holes"
        );
    };
    (
        $(#[$meta:meta])*
        pub struct $name:ident = $c_name:literal {
            $( $(#[$fmeta:meta])* pub $field:ident: $ty:ty, )+
        }
    ) => {
        abi_struct! {
            $(#[$meta])*
            pub struct $name = $c_name {
                $( $(#[$fmeta])* pub $field: $ty = <$ty as Zero>::ZERO, )+
            }
        }
    };
}

/// Declares one that an ioctl takes.
macro_rules! abi_argument {
    (
        $(#[$meta:meta])*
        pub struct $name:ident = $c_name:literal {
            $( $(#[$fmeta:meta])* pub $field:ident: $ty:ty, )+
        }
    ) => {
        abi_struct! {
            $(#[$meta])*
            pub struct $name = $c_name {
                /// Bytes of this struct; from the module, those that it filled.
                pub size: u64 = core::mem::size_of::<Self>() as u64,
                $( $(#[$fmeta])* pub $field: $ty = <$ty as Zero>::ZERO, )+
            }
        }

        // SAFETY: right above.
        unsafe impl AbiArgument for $name {}
    };
}

/// What a field is before anybody has filled it. The arrays are longer than those
/// that have a [`Default`].
trait Zero {
    const ZERO: Self;
}

macro_rules! zero {
    ($($ty:ty)+) => { $( impl Zero for $ty { const ZERO: Self = 0; } )+ };
}

zero!(u8 u32 i32 u64);

impl<T: Zero + Copy, const N: usize> Zero for [T; N] {
    const ZERO: Self = [T::ZERO; N];
}

abi_struct! {
    /// What became of the chunks of a session, or of all.
    pub struct Chunks = "asyncfork_chunks" {
        /// Taken out of the parent's page table.
        pub parked: u64,
        /// Of the memory that may be parked, copied during the fork.
        pub eager: u64,
        /// Given back uncopied.
        pub reattached: u64,
        /// Had more than plain pages.
        pub mixed: u64,
        /// Pulled by the child.
        pub by_child: u64,
        /// Pulled by the parent.
        pub by_parent: u64,
        /// Pulled by helper threads.
        pub by_helper: u64,
        /// Pulled by anybody else.
        pub by_other: u64,
    }
}

abi_struct! {
    /// How long something took, how often.
    pub struct Histogram = "asyncfork_histogram" {
        /// Number `i` counts from 2^i ns up to, but not including, 2^(i + 1); the
        /// first also 0, the last all that is longer.
        pub bucket: [u64; BUCKETS],
    }
}

impl Chunks {
    /// Pulled, by whomever.
    pub const fn pulled(&self) -> u64 {
        self.by_child + self.by_parent + self.by_helper + self.by_other
    }
}

impl Zero for Chunks {
    const ZERO: Self = Self {
        parked: 0,
        eager: 0,
        reattached: 0,
        mixed: 0,
        by_child: 0,
        by_parent: 0,
        by_helper: 0,
        by_other: 0,
    };
}

impl Zero for Histogram {
    const ZERO: Self = Self {
        bucket: [0; BUCKETS],
    };
}

impl Histogram {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.bucket.iter().sum()
    }
}

abi_argument! {
    /// What the module speaks.
    pub struct Version = "asyncfork_version" {
        /// The module's [`ABI_VERSION`]. A caller of version 2, whose struct ends before
        /// [`Version::oldest`], is told 2.
        pub abi: u32,
        /// Upper bound of [`Arm::helpers`].
        pub max_helpers: u32,
        /// None defined yet: 0.
        pub features: u64,
        /// The oldest ABI whose callers the module serves; 0 from one of version 2.
        pub oldest: u32,
        /// 0.
        pub reserved: u32,
    }
}

impl Version {
    /// Whether this crate works with the module.
    pub const fn is_usable(&self) -> bool {
        let oldest = if self.oldest == 0 {
            self.abi
        } else {
            self.oldest
        };
        self.abi >= ABI_OLDEST && oldest <= ABI_VERSION
    }
}

abi_argument! {
    /// What the caller asks of its next fork. A fork consumes the newest ARM of
    /// its thread.
    pub struct Arm = "asyncfork_arm" {
        /// None defined yet: must be 0.
        pub flags: u32,
        /// Threads that help the child copy.
        pub helpers: u32,
        /// Bytes resident; smaller processes use a stock fork.
        pub min_rss: u64,
    }
}

abi_argument! {
    /// Every fork of a process in a cgroup, or below it, may be asynchronous without an
    /// ARM; see [`Device::enroll`].
    ///
    /// [`Device::enroll`]: crate::Device::enroll
    pub struct Enroll = "asyncfork_enroll" {
        /// The cgroup's directory, in the default hierarchy.
        pub cgroup_fd: i32,
        /// None defined yet: must be 0.
        pub flags: u32,
        /// Bytes resident; smaller processes use a stock fork.
        pub min_rss: u64,
        /// Threads that help the child copy.
        pub helpers: u32,
        /// Must be 0.
        pub reserved: u32,
    }
}

abi_argument! {
    /// The entry to take away; see [`Device::unenroll`].
    ///
    /// [`Device::unenroll`]: crate::Device::unenroll
    pub struct Unenroll = "asyncfork_unenroll" {
        /// The cgroup's id, 0: that of `cgroup_fd`.
        pub cgroup_id: u64,
        /// The cgroup's directory, -1: see `cgroup_id`.
        pub cgroup_fd: i32,
        /// None defined yet: must be 0.
        pub flags: u32,
    }
}

abi_argument! {
    /// An enrolled cgroup.
    pub struct Entry = "asyncfork_entry" {
        /// In the default hierarchy: its directory's inode number.
        pub cgroup_id: u64,
        /// As in [`Enroll`].
        pub min_rss: u64,
        /// As in [`Enroll`].
        pub helpers: u32,
        /// None defined yet: 0.
        pub flags: u32,
        /// Asynchronous forks that the entry counted for.
        pub r#async: u64,
        /// Stock forks that it counted for.
        pub stock: u64,
    }
}

abi_argument! {
    /// Where the entries go; see [`Device::enrolled`].
    ///
    /// [`Device::enrolled`]: crate::Device::enrolled
    pub struct Enrolled = "asyncfork_enrolled" {
        /// Address of an array of [`Entry`].
        pub entries: u64,
        /// Bytes of each.
        pub entry_size: u32,
        /// Room for so many; from the module: how many it filled.
        pub count: u32,
    }
}

abi_argument! {
    /// The last fork that consumed a descriptor's ARM, or a past one.
    /// The counters of a running session are a snapshot. The pids are thread
    /// group ids in the pid namespace of who asked, also of processes that are
    /// gone, and 0 where that does not show them; from [`Device::recent_after`] those
    /// of the initial namespace to a caller with CAP_SYS_ADMIN there.
    ///
    /// [`Device::recent_after`]: crate::Device::recent_after
    pub struct Report = "asyncfork_report" {
        /// Session number, 0: no session.
        pub id: u64,
        /// See [`Report::outcome()`].
        pub outcome: u32,
        /// See [`Report::reason()`].
        pub reason: u32,
        /// See [`Report::state()`].
        pub state: u32,
        /// Helper threads, as was asked for.
        pub helpers: u32,
        /// The process that forked.
        pub parent_pid: i32,
        /// To the parent, what `fork()` returned; 0 without a session, or before that.
        pub child_pid: i32,
        /// The parent's name, padded with NULs; see [`Report::comm()`].
        pub comm: [u8; 16],
        /// The parent's cgroup in the default hierarchy: its directory's inode number.
        pub cgroup_id: u64,
        /// CPUs that the forking thread might run on; the child may run on no others.
        pub cpus: u64,
        /// When parking began.
        pub start_ns: u64,
        /// Nanoseconds spent parking, inside `fork()`.
        pub park_ns: u64,
        /// Nanoseconds the parent spent in pulls: total.
        pub parent_pull_ns: u64,
        /// Nanoseconds of the parent's longest pull.
        pub parent_pull_max_ns: u64,
        /// Nanoseconds from the end of the fork to the end of the session.
        pub copy_ns: u64,
        /// Bytes of the side arrays.
        pub meta_bytes: u64,
        /// Chunks.
        pub chunks: Chunks,
        /// Pulls by who asked; see [`Report::pulls_by()`].
        pub pulls: [u64; HOOK_MAX],
        /// Number among the forks of [`Recent`], from 1 on; 0: not there yet.
        pub seq: u64,
        /// The cgroup whose [`Entry`] counted, or 0.
        pub entry_id: u64,
        /// See [`Report::by()`].
        pub by: u32,
        /// 0.
        pub reserved: u32,
    }
}

impl Report {
    /// Why it was to be asynchronous.
    pub const fn by(&self) -> By {
        By::from_raw(self.by)
    }

    /// What became of the fork.
    pub const fn outcome(&self) -> Outcome {
        Outcome::from_raw(self.outcome)
    }

    /// Why it was stock.
    pub const fn reason(&self) -> Reason {
        Reason::from_raw(self.reason)
    }

    /// State of the session.
    pub const fn state(&self) -> State {
        State::from_raw(self.state)
    }

    /// The parent's name without its padding, not necessarily UTF-8.
    pub fn comm(&self) -> &[u8] {
        let end = self.comm.iter().position(|&b| b == 0);
        &self.comm[..end.unwrap_or(self.comm.len())]
    }

    /// Pulls that `hook` asked for; 0 for a number beyond the array.
    pub fn pulls_by(&self, hook: Hook) -> u64 {
        slot(&self.pulls, hook.raw())
    }
}

abi_argument! {
    /// Totals since the module was loaded.
    pub struct Stats = "asyncfork_stats" {
        /// Module parameter `enabled`.
        pub enabled: u64,
        /// 1: off after an inconsistency.
        pub switched_off: u64,
        /// Sessions running now.
        pub running: u64,
        /// ARM calls that succeeded.
        pub armed: u64,
        /// Forks by outcome.
        pub r#async: u64,
        /// Forks by outcome.
        pub stock: u64,
        /// Forks by outcome.
        pub failed: u64,
        /// Sessions that were aborted.
        pub aborted: u64,
        /// Children killed by an abort.
        pub killed: u64,
        /// Unexpected slots that were merged.
        pub merged: u64,
        /// Nanoseconds spent parking.
        pub park_ns: u64,
        /// Nanoseconds parents spent in pulls: total.
        pub parent_pull_ns: u64,
        /// Nanoseconds of the longest of them.
        pub parent_pull_max_ns: u64,
        /// Nanoseconds of copying, summed over sessions.
        pub copy_ns: u64,
        /// Chunks.
        pub chunks: Chunks,
        /// Stock forks; see [`Stats::stock_by()`].
        pub stock_by_reason: [u64; REASON_MAX],
        /// Pulls by who asked; see [`Stats::pulls_by()`].
        pub pulls: [u64; HOOK_MAX],
        /// Parking, of asynchronous forks.
        pub park: Histogram,
        /// Each pull by a parent.
        pub parent_pull: Histogram,
        /// From the end of the fork to the end of the session, of those that ended.
        pub copy: Histogram,
        /// Enrolled cgroups now.
        pub enrolled: u64,
        /// Asynchronous forks; see [`Stats::async_how()`].
        pub async_by_how: [u64; BY_MAX],
        /// Stock forks; see [`Stats::stock_how()`].
        pub stock_by_how: [u64; BY_MAX],
    }
}

impl Stats {
    /// Stock forks for `reason`; 0 for a number beyond the array.
    pub fn stock_by(&self, reason: Reason) -> u64 {
        slot(&self.stock_by_reason, reason.raw())
    }

    /// Pulls that `hook` asked for; 0 for a number beyond the array.
    pub fn pulls_by(&self, hook: Hook) -> u64 {
        slot(&self.pulls, hook.raw())
    }

    /// Asynchronous forks by `by`; 0 for a number beyond the array.
    pub fn async_how(&self, by: By) -> u64 {
        slot(&self.async_by_how, by.raw())
    }

    /// Stock forks by `by`; 0 for a number beyond the array.
    pub fn stock_how(&self, by: By) -> u64 {
        slot(&self.stock_by_how, by.raw())
    }
}

abi_argument! {
    /// Where the last forks go; see [`Device::recent_after`].
    ///
    /// [`Device::recent_after`]: crate::Device::recent_after
    pub struct Recent = "asyncfork_recent" {
        /// Address of an array of [`Report`].
        pub entries: u64,
        /// Bytes of each.
        pub entry_size: u32,
        /// Room for so many; from the module: how many it filled.
        pub count: u32,
        /// Only forks with a greater [`Report::seq`].
        pub after_seq: u64,
    }
}

fn slot(array: &[u64], index: u32) -> u64 {
    array.get(index as usize).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_are_kept() {
        for raw in 0..40 {
            assert_eq!(Outcome::from_raw(raw).raw(), raw);
            assert_eq!(Reason::from_raw(raw).raw(), raw);
            assert_eq!(State::from_raw(raw).raw(), raw);
            assert_eq!(Hook::from_raw(raw).raw(), raw);
            assert_eq!(By::from_raw(raw).raw(), raw);
        }
        assert_eq!(Outcome::from_raw(9), Outcome::Unknown(9));
        assert_eq!(Outcome::from_raw(9).to_string(), "unknown(9)");
        assert_eq!(Reason::from_raw(u32::MAX), Reason::Unknown(u32::MAX));
    }

    #[test]
    fn variants_are_listed_under_their_numbers() {
        for (variant, &(c_name, raw)) in Hook::ALL.iter().zip(Hook::VALUES) {
            assert_eq!(variant.raw(), raw, "{c_name}");
            assert_eq!(
                c_name,
                format!("ASYNCFORK_HOOK_{}", variant.label().to_uppercase())
            );
        }
        for (variant, &(c_name, raw)) in Reason::ALL.iter().zip(Reason::VALUES) {
            assert_eq!(variant.raw(), raw, "{c_name}");
            assert_eq!(
                c_name,
                format!("ASYNCFORK_REASON_{}", variant.label().to_uppercase())
            );
        }
        for (variant, &(c_name, raw)) in By::ALL.iter().zip(By::VALUES) {
            assert_eq!(variant.raw(), raw, "{c_name}");
            assert_eq!(
                c_name,
                format!("ASYNCFORK_BY_{}", variant.label().to_uppercase())
            );
        }
    }

    #[test]
    fn indexes_beyond_the_arrays_are_zero() {
        let stats = Stats {
            stock_by_reason: [3; REASON_MAX],
            pulls: [5; HOOK_MAX],
            async_by_how: [7; BY_MAX],
            stock_by_how: [9; BY_MAX],
            ..Stats::default()
        };
        assert_eq!(stats.async_how(By::Enrolled), 7);
        assert_eq!(stats.stock_how(By::Policy), 9);
        assert_eq!(stats.async_how(By::Unknown(8)), 0);
        assert_eq!(stats.stock_how(By::Unknown(8)), 0);
        assert_eq!(stats.stock_by(Reason::Pinned), 3);
        assert_eq!(stats.stock_by(Reason::Unknown(32)), 0);
        assert_eq!(stats.pulls_by(Hook::Exit), 5);
        assert_eq!(stats.pulls_by(Hook::Unknown(u32::MAX)), 0);
    }

    #[test]
    fn an_argument_begins_with_its_size() {
        fn check<T: AbiArgument>() {
            let value = T::default();
            assert_eq!(T::FIELDS[0].name, "size", "{}", T::C_NAME);
            assert_eq!(T::FIELDS[0].offset, 0, "{}", T::C_NAME);
            // SAFETY: repr(C) with a u64 first, as just seen.
            let size = unsafe { *core::ptr::from_ref(&value).cast::<u64>() };
            assert_eq!(size, size_of::<T>() as u64, "{}", T::C_NAME);
        }
        check::<Version>();
        check::<Arm>();
        check::<Report>();
        check::<Stats>();
        check::<Recent>();
        check::<Enroll>();
        check::<Unenroll>();
        check::<Entry>();
        check::<Enrolled>();
    }

    #[test]
    fn modules_of_this_abi_and_of_the_one_before_are_usable() {
        let usable = |abi, oldest| {
            Version {
                abi,
                oldest,
                ..Version::default()
            }
            .is_usable()
        };
        assert!(usable(2, 0) && usable(3, 2) && usable(4, 2) && usable(4, 3));
        assert!(!usable(0, 0) && !usable(1, 0) && !usable(3, 4) && !usable(4, 0));
        assert!(!usable(5, 4));
    }

    #[test]
    fn comm_ends_at_the_first_nul() {
        let mut report = Report::default();
        assert_eq!(report.comm(), b"");
        report.comm[..5].copy_from_slice(b"redis");
        assert_eq!(report.comm(), b"redis");
        report.comm = [b'x'; 16];
        assert_eq!(report.comm().len(), 16);
    }
}
