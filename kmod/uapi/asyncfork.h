/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * User ABI of /dev/asyncfork
 *
 * One descriptor serves one thread: ARM, fork(), REPORT, close. A fork of a thread
 * that has not ARMed may be asynchronous by ENROLL, or by the module parameter
 * policy. An ARM comes first: with a min_rss that no process has it makes the
 * thread's next fork a stock fork.
 *
 * Every struct that an ioctl takes begins with its size, which the caller sets,
 * and grows only at its end. What an older module does not know has to be 0
 * where it is read (E2BIG otherwise) and is set to 0 where it is written; what
 * an older caller does not know is left out. A struct that is filled says in its
 * size how much of it was. EINVAL: smaller than in version 2, or in the one that
 * the struct came with; E2BIG: larger than a page. No struct has holes; 32-bit
 * programs have the same. Times are nanoseconds, points in time of the initial
 * namespace's CLOCK_MONOTONIC, sizes are bytes, a chunk is what one PTE table maps
 * (2 MiB).
 */
#ifndef _UAPI_ASYNCFORK_H
#define _UAPI_ASYNCFORK_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define ASYNCFORK_ABI_VERSION	3
#define ASYNCFORK_ABI_OLDEST	2	/* whose callers are served as well */
#define ASYNCFORK_DEVICE	"/dev/asyncfork"

/*
 * A process that must not be served unless it ARMs: it has a private mapping of
 * one page of a memfd with this name (MFD_CLOEXEC, the descriptor closed again;
 * mapped without access, and the file is empty). That needs neither the device nor
 * a privilege, fork() passes it on, and exec() takes it away. The library makes it
 * where its settings say "off" or "require". The module looks for it when
 * enrolment or policy would make a fork asynchronous, which is then stock:
 * REASON_LIBRARY.
 */
#define ASYNCFORK_MARK		"asyncfork:stock"

/* What became of a fork: struct asyncfork_report.outcome. */
enum asyncfork_outcome {
	ASYNCFORK_OUTCOME_NONE		= 0,	/* no fork, or it is under way */
	ASYNCFORK_OUTCOME_ASYNC		= 1,	/* at least one chunk parked */
	ASYNCFORK_OUTCOME_STOCK		= 2,	/* see reason */
	ASYNCFORK_OUTCOME_FAILED	= 3,	/* fork() failed, in a session */
};

/* Why a fork was stock: struct asyncfork_report.reason. */
enum asyncfork_reason {
	ASYNCFORK_REASON_NONE		= 0,
	ASYNCFORK_REASON_DISABLED	= 1,	/* module parameter enabled=0 */
	ASYNCFORK_REASON_SWITCHED_OFF	= 2,	/* off after an inconsistency */
	ASYNCFORK_REASON_MIN_RSS	= 3,	/* below the caller's min_rss */
	ASYNCFORK_REASON_PINNED		= 4,	/* mm has or had pinned pages */
	ASYNCFORK_REASON_NOTIFIER	= 5,	/* mm has mmu notifiers */
	ASYNCFORK_REASON_UFFD		= 6,	/* userfaultfd may move pages */
	ASYNCFORK_REASON_NO_MEMORY	= 7,	/* no memory for the session */
	ASYNCFORK_REASON_LIMIT		= 8,	/* max_sessions reached */
	ASYNCFORK_REASON_NOTHING	= 9,	/* no parkable chunk */
	ASYNCFORK_REASON_SHARED		= 10,	/* mm shared with a process */
	ASYNCFORK_REASON_POISON		= 11,	/* memory failure under way */
	ASYNCFORK_REASON_LIBRARY	= 12,	/* ASYNCFORK_MARK, and no ARM */
	ASYNCFORK_REASON_MAX		= 32
};

/* Why a fork was to be asynchronous: struct asyncfork_report.by. */
enum asyncfork_by {
	ASYNCFORK_BY_NONE		= 0,	/* no fork */
	ASYNCFORK_BY_ARM		= 1,	/* whatever the others say */
	ASYNCFORK_BY_ENROLLED		= 2,	/* a cgroup's entry */
	ASYNCFORK_BY_POLICY		= 3,	/* module parameter policy=all */
	ASYNCFORK_BY_MAX		= 8
};

/* Life of a session: struct asyncfork_report.state. */
enum asyncfork_state {
	ASYNCFORK_STATE_NONE		= 0,	/* never had a session */
	ASYNCFORK_STATE_RUNNING		= 1,	/* chunks may be parked */
	ASYNCFORK_STATE_DONE		= 2,	/* nothing left; whole image */
	ASYNCFORK_STATE_ABORTED		= 3,	/* re-attached uncopied */
};

/* Who asked for a pull: index of asyncfork_report.pulls and of the statistics. */
enum asyncfork_hook {
	ASYNCFORK_HOOK_CHILD		= 0,	/* the child's own copy loop */
	ASYNCFORK_HOOK_HELPER		= 1,	/* a helper, or pull_after */
	ASYNCFORK_HOOK_FAULT		= 2,	/* handle_mm_fault */
	ASYNCFORK_HOOK_UNMAP		= 3,	/* unmap_vmas */
	ASYNCFORK_HOOK_ZAP		= 4,	/* MADV_DONTNEED */
	ASYNCFORK_HOOK_PROTECT		= 5,	/* change_protection */
	ASYNCFORK_HOOK_MREMAP		= 6,	/* move_page_tables */
	ASYNCFORK_HOOK_WALK		= 7,	/* page walkers */
	ASYNCFORK_HOOK_MIGRATION	= 8,	/* remove_migration_pte */
	ASYNCFORK_HOOK_UFFD		= 9,	/* userfaultfd_ioctl */
	ASYNCFORK_HOOK_DUMP		= 10,	/* get_dump_page */
	ASYNCFORK_HOOK_FORK		= 11,	/* a further fork */
	ASYNCFORK_HOOK_EXIT		= 12,	/* exit_mmap of the parent */
	ASYNCFORK_HOOK_POISON		= 13,	/* memory_failure */
	ASYNCFORK_HOOK_PTE_ALLOC	= 14,	/* __pte_alloc, past all others */
	ASYNCFORK_HOOK_MAX		= 32
};

/* What became of the chunks of a session, or of all. */
struct asyncfork_chunks {
	__u64 parked;			/* taken out of the parent's page table */
	__u64 eager;			/* of such memory, copied in the fork */
	__u64 reattached;		/* given back uncopied */
	__u64 mixed;			/* had more than plain pages */
	__u64 by_child;			/* pulled, by the puller's mm */
	__u64 by_parent;
	__u64 by_helper;
	__u64 by_other;
};

/*
 * ASYNCFORK_IOC_VERSION: a caller of version 2, which served no other, is told
 * that the module speaks that; its struct ends before oldest.
 */
struct asyncfork_version {
	__u64 size;
	__u32 abi;			/* ASYNCFORK_ABI_VERSION */
	__u32 max_helpers;		/* upper bound of asyncfork_arm.helpers */
	__u64 features;			/* none defined yet: 0 */
	__u32 oldest;			/* ASYNCFORK_ABI_OLDEST */
	__u32 reserved;			/* 0 */
};

/*
 * ASYNCFORK_IOC_ARM: the calling thread's next fork may be asynchronous.
 * A thread may be armed by several descriptors: a fork consumes the newest ARM,
 * so one made inside fork(), by an atfork or signal handler, has its own.
 * The armed thread's close of a descriptor takes back its own ARM, and so does
 * the last close. EINVAL: unknown flags, too many helpers. EBUSY: the descriptor
 * is armed already.
 */
struct asyncfork_arm {
	__u64 size;
	__u32 flags;			/* none defined yet: must be 0 */
	__u32 helpers;			/* threads that help the child copy */
	__u64 min_rss;			/* smaller processes use a stock fork */
};

/*
 * ASYNCFORK_IOC_ENROLL: from now on every fork of a process in this cgroup, or
 * below it, may be asynchronous without an ARM; of several entries that of the
 * nearest cgroup counts. Enrolling a cgroup again changes its values. Entries go
 * with UNENROLL and with the module; they hold neither the cgroup nor the module,
 * and a cgroup made anew under an old name is another one. Those of cgroups that
 * are gone make room when the table is full. Without effect while the module
 * parameter policy is "armed". Small programs fork as well, and an asynchronous
 * fork interrupts each CPU once: give a min_rss. Those below it are counted, as
 * stock, and neither traced nor listed by RECENT.
 *
 * Both calls: EPERM without CAP_SYS_ADMIN in the initial user namespace. EBADF: not
 * the directory of a cgroup of the default hierarchy. ENOENT: that cgroup is gone.
 * EINVAL: the root cgroup, unknown flags, too many helpers. ENOSPC: there are
 * ASYNCFORK_MAX_ENTRIES.
 */
#define ASYNCFORK_MAX_ENTRIES	4096

struct asyncfork_enroll {
	__u64 size;
	__s32 cgroup_fd;		/* its directory */
	__u32 flags;			/* none defined yet: must be 0 */
	__u64 min_rss;			/* as in asyncfork_arm */
	__u32 helpers;			/* as in asyncfork_arm */
	__u32 reserved;			/* must be 0 */
};

/*
 * ASYNCFORK_IOC_UNENROLL: by directory, or by id, which is the way for a cgroup that
 * is gone; EINVAL: both, or none. ENOENT also: not enrolled.
 */
struct asyncfork_unenroll {
	__u64 size;
	__u64 cgroup_id;		/* 0: see cgroup_fd */
	__s32 cgroup_fd;		/* its directory; -1: see cgroup_id */
	__u32 flags;			/* none defined yet: must be 0 */
};

/* An enrolled cgroup. */
struct asyncfork_entry {
	__u64 size;
	__u64 cgroup_id;		/* in the default hierarchy */
	__u64 min_rss;			/* as ENROLL asked for */
	__u32 helpers;			/* as ENROLL asked for */
	__u32 flags;			/* none defined yet: 0 */
	__u64 async;			/* forks that the entry counted for */
	__u64 stock;
};

/*
 * ASYNCFORK_IOC_ENROLLED: the entries, in no order; to a caller without
 * CAP_SYS_ADMIN in the initial user namespace those of its own cgroup and of
 * the ones above that.
 */
struct asyncfork_enrolled {
	__u64 size;
	__u64 entries;			/* address of structs asyncfork_entry */
	__u32 entry_size;		/* size of each; the caller's is not read */
	__u32 count;			/* in: room for; out: filled */
};

/*
 * ASYNCFORK_IOC_REPORT: the last fork that consumed this descriptor's ARM.
 * The counters of a running session are a snapshot. The pids are thread group
 * ids in the caller's pid namespace, also of processes that are gone, and 0
 * where that does not show them: to the parent, child_pid of a fork with a
 * session is what fork() returned.
 */
struct asyncfork_report {
	__u64 size;
	__u64 id;			/* session number, 0: no session */
	__u32 outcome;			/* enum asyncfork_outcome */
	__u32 reason;			/* enum asyncfork_reason */
	__u32 state;			/* enum asyncfork_state */
	__u32 helpers;			/* as was asked for */
	__s32 parent_pid;
	__s32 child_pid;		/* 0 also: no session, or no child yet */
	char comm[16];			/* the parent's */
	__u64 cgroup_id;		/* the parent's, in the default hierarchy */
	__u64 cpus;			/* CPUs that the parent may run on */
	__u64 start_ns;			/* point in time: parking began */
	__u64 park_ns;			/* time spent parking, in fork() */
	__u64 parent_pull_ns;		/* parent's time in pulls: total */
	__u64 parent_pull_max_ns;	/* and the longest of them */
	__u64 copy_ns;			/* end of fork to end of session */
	__u64 meta_bytes;		/* memory of the side arrays */
	struct asyncfork_chunks chunks;
	__u64 pulls[ASYNCFORK_HOOK_MAX];
	__u64 seq;			/* see RECENT; 0: not there yet */
	__u64 entry_id;			/* of the cgroup whose entry counted, or 0 */
	__u32 by;			/* enum asyncfork_by */
	__u32 reserved;			/* 0 */
};

/*
 * How long something took, how often: bucket i counts from 2^i ns up to, but not
 * including, 2^(i + 1); the first also 0, the last all that is longer.
 */
#define ASYNCFORK_BUCKETS	40

struct asyncfork_histogram {
	__u64 bucket[ASYNCFORK_BUCKETS];
};

/* ASYNCFORK_IOC_STATS: totals since the module was loaded. */
struct asyncfork_stats {
	__u64 size;
	__u64 enabled;			/* module parameter */
	__u64 switched_off;		/* 1: off after an inconsistency */
	__u64 running;			/* sessions now */
	__u64 armed;			/* ARM calls that succeeded */
	__u64 async;			/* forks by outcome */
	__u64 stock;
	__u64 failed;
	__u64 aborted;			/* sessions that were aborted */
	__u64 killed;			/* children killed by an abort */
	__u64 merged;			/* unexpected slots that were merged */
	__u64 park_ns;			/* as in asyncfork_report */
	__u64 parent_pull_ns;
	__u64 parent_pull_max_ns;
	__u64 copy_ns;
	struct asyncfork_chunks chunks;
	__u64 stock_by_reason[ASYNCFORK_REASON_MAX];
	__u64 pulls[ASYNCFORK_HOOK_MAX];
	struct asyncfork_histogram park;	/* asynchronous forks */
	struct asyncfork_histogram parent_pull;	/* each pull by a parent */
	struct asyncfork_histogram copy;	/* those whose session ended */
	__u64 enrolled;				/* entries now */
	__u64 async_by_how[ASYNCFORK_BY_MAX];	/* async, by enum asyncfork_by */
	__u64 stock_by_how[ASYNCFORK_BY_MAX];	/* stock */
};

/*
 * ASYNCFORK_IOC_RECENT: the last forks that were to be asynchronous, newest first;
 * one with a session when that has ended. The module numbers them, from 1 on in
 * asyncfork_report.seq, and keeps at least the last 32. A caller with CAP_SYS_ADMIN
 * in the initial user namespace sees all, with the pids of the initial pid namespace;
 * another one those whose parent was in its own pid namespace, or below, with
 * the pids that they had there, and none in a namespace nested 8 deep. In
 * version 2 everybody saw all, and there were only forks with an ARM.
 */
struct asyncfork_recent {
	__u64 size;
	__u64 entries;			/* address of structs asyncfork_report */
	__u32 entry_size;		/* size of each; the caller's is not read */
	__u32 count;			/* in: room for; out: filled */
	__u64 after_seq;		/* only forks with a greater number */
};

/*
 * The argument is the address of the struct. The size that the number carries is
 * that of its first member, so it stays when a struct grows.
 */
#define ASYNCFORK_IOC_MAGIC	0xAF
#define ASYNCFORK_IOC_VERSION	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA0, __u64)
#define ASYNCFORK_IOC_ARM	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA1, __u64)
#define ASYNCFORK_IOC_REPORT	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA2, __u64)
#define ASYNCFORK_IOC_STATS	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA3, __u64)
#define ASYNCFORK_IOC_RECENT	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA4, __u64)
#define ASYNCFORK_IOC_ENROLL	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA5, __u64)
#define ASYNCFORK_IOC_UNENROLL	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA6, __u64)
#define ASYNCFORK_IOC_ENROLLED	_IOWR(ASYNCFORK_IOC_MAGIC, 0xA7, __u64)

#endif /* _UAPI_ASYNCFORK_H */
