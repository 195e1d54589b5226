/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share
 *
 * A session is one asynchronous fork: (parent mm, child mm) while chunks of
 * the parent are parked. A chunk is what one PTE table maps, 2 MiB; its word
 * in the side array goes
 *
 *	NONE --park--> saved PMD --claim--> BUSY --pull or re-attach--> DONE
 *
 * and is the only lock that a pull takes.
 *
 * Lock order (outer to inner):
 *
 *	mmap_lock of the parent, written by the fork	(park)
 *	  anon_vma root rwsem, written			(park: no allocation)
 *	    hash_lock
 *	folio lock, anon_vma rwsem			(migration hook)
 *	  chunk BUSY				(preemption off)
 *	    swap's cluster locks, mmlist_lock
 *	    pmd_lock of the child, then of the parent	(never both)
 *	sweep_mutex
 *	armed_lock, then active_lock
 *	hash_lock, then stats_lock
 *	af_file.lock, guard_lock, reserve_lock: leaves
 */
#ifndef _AF_SESSION_H
#define _AF_SESSION_H

#include <linux/atomic.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/task_work.h>
#include <linux/workqueue.h>

#include "uapi/asyncfork.h"

#define AF_WORD_NONE	0UL	/* never parked */
#define AF_WORD_BUSY	1UL	/* a saved PMD is never this small */
#define AF_WORD_DONE	2UL

#define AF_MAX_HELPERS	8
#define AF_RESERVE	2	/* PTE tables kept for a pull without memory */

/**
 * struct af_block - chunks under one PMD table
 * @word:	their words; NULL where there was no table
 * @slot:	the parent's entry of the first; not dereferenced, and valid only as
 *		long as one of them is parked
 */
struct af_block {
	unsigned long *word;
	const pmd_t *slot;
};

/**
 * struct af_range - the parkable part of one VMA, as it was at the fork
 * @start:	first address, chunk aligned
 * @end:	end address, chunk aligned
 * @vm_start:	start of the VMA; above @start in a partial chunk
 * @vm_end:	end of the VMA
 * @first:	number of chunks in the ranges before this one
 * @nr_blocks:	entries of @block
 * @block:	one PMD table each
 */
struct af_range {
	unsigned long start, end;
	unsigned long vm_start, vm_end;
	unsigned long first;
	unsigned long nr_blocks;
	struct af_block block[];
};

/* Ranges by ascending address; only the forking thread adds. */
struct af_ranges {
	struct rcu_head rcu;
	unsigned long nr, max;
	struct af_range *range[];
};

enum af_role { AF_PARENT, AF_CHILD };

struct af_link {
	struct hlist_node node;
	struct mm_struct *mm;
	enum af_role role;
};

/* Bits of af_session.flags */
enum {
	AF_CLOSED,	/* the fork parks no more: done or failed */
	AF_FORKED,	/* the fork succeeded */
	AF_FLUSHED,	/* dup_mmap() is over, and with it its TLB flush */
	AF_SYNCED,	/* no CPU can still use a parked table */
	AF_ABORTED,	/* re-attach, do not copy */
	AF_KILLED,	/* SIGKILL was sent to the child */
	AF_FINISHED,	/* left the hash */
	AF_TIMED,	/* the timeout has been started */
};

/* Counters of a session and, summed up, of the module. */
enum af_count {
	AF_N_PARKED, AF_N_EAGER, AF_N_REATTACHED, AF_N_ODD,
	AF_N_BY_CHILD, AF_N_BY_PARENT, AF_N_BY_HELPER, AF_N_BY_OTHER,
	AF_N_PARENT_NS,
	AF_N_PULLS,
	AF_N_MAX = AF_N_PULLS + ASYNCFORK_HOOK_MAX
};

struct af_helper {
	struct work_struct work;
	struct af_session *session;
	unsigned int nr;
};

/**
 * struct af_session - one asynchronous fork
 * @link:	parent's and child's entry of the hash; each holds an mm_count
 * @users:	hash, child's task work, helpers, timeout, hooks at work; the
 *		last one frees all but this struct
 * @ref:	this struct and its counters: the users together, descriptors
 * @flags:	AF_CLOSED ...
 * @parked:	chunks neither NONE nor DONE
 * @ranges:	side arrays
 * @forker:	thread inside the fork; @bypass is its own
 * @bypass:	the next copy_page_range() is our call of the original
 * @task:	the child, for SIGKILL
 * @swept:	the last memory failure that has looked at it
 */
struct af_session {
	struct af_link link[2];
	refcount_t users;
	refcount_t ref;
	unsigned long flags;
	atomic_long_t parked;
	struct af_ranges __rcu *ranges;
	struct task_struct *forker;
	bool bypass;
	struct task_struct *task;
	u64 swept;

	/* Guards reserve. */
	spinlock_t reserve_lock;
	pgtable_t reserve[AF_RESERVE];

	u64 id;
	enum asyncfork_reason reason;	/* why nothing was parked */
	unsigned int helpers;
	struct pid *parent_pid, *child_pid;	/* thread groups, referenced */
	char comm[TASK_COMM_LEN];
	u64 start_ns, park_ns, forked_ns, end_ns;
	u64 meta_bytes;
	unsigned int cpus;
	atomic_long_t count[AF_N_MAX];
	/* Guarded by stats_lock, as is summed: the totals have it. */
	u64 parent_max_ns;
	bool summed;

	struct callback_head child_work;
	struct delayed_work timeout;
	struct work_struct free_work;
	struct rcu_head rcu;
	struct af_helper helper[];
};

static inline struct mm_struct *af_mm(const struct af_session *s,
				      enum af_role role)
{
	return s->link[role].mm;
}

static inline void af_count_add(struct af_session *s, enum af_count c, long n)
{
	atomic_long_add(n, &s->count[c]);
}

static inline unsigned long af_next_pud(unsigned long addr, unsigned long end)
{
	return min((addr & PUD_MASK) + PUD_SIZE, end);
}

/* Address of the first chunk of a block. */
static inline unsigned long af_block_start(const struct af_range *r,
					   unsigned long block)
{
	return max(r->start, (r->start & PUD_MASK) + (block << PUD_SHIFT));
}

/* Word of the chunk at @addr (inside @r), NULL where nothing was parked. */
static inline unsigned long *af_range_word(const struct af_range *r,
					   unsigned long addr)
{
	unsigned long block = (addr >> PUD_SHIFT) - (r->start >> PUD_SHIFT);
	unsigned long *word = r->block[block].word;

	return word ? &word[(addr - af_block_start(r, block)) >> PMD_SHIFT] :
		      NULL;
}

/* A PMD entry that points to a PTE table; one that maps a page is bad. */
static inline bool af_pmd_is_table(pmd_t pmd)
{
	return pmd_present(pmd) && !pmd_bad(pmd);
}

/* The entry that pmd_populate() would make. */
static inline pmd_t af_table_entry(pgtable_t table)
{
	return __pmd(((pmdval_t)page_to_pfn(table) << PAGE_SHIFT) |
		     _PAGE_TABLE);
}

/* session.c */
extern int af_active;
struct af_session *af_session_create(struct mm_struct *parent,
				     struct mm_struct *child,
				     unsigned int helpers);
struct af_session *af_session_find(struct mm_struct *mm, enum af_role role,
				   bool parked_only);
void af_session_forked(struct af_session *s, struct task_struct *child);
void af_session_failed(struct af_session *s);
void af_session_doom(struct af_session *s);
void af_session_abort(struct af_session *s);
void af_session_parked(struct af_session *s, long n);
void af_session_chunk_done(struct af_session *s);
void af_session_put(struct af_session *s);
void af_session_pin(struct af_session *s);
void af_session_unpin(struct af_session *s);
struct af_session *af_session_unswept(u64 sweep);
unsigned int af_session_running(void);
void af_session_sum(struct asyncfork_stats *st);
void af_active_inc(void);
void af_active_dec(void);
int af_session_init(void);
void af_session_exit(void);

/* park.c */
struct af_verdict {
	long ret;		/* RAX: what the hooked function returns */
	unsigned long skip;	/* RDX: nonzero: do not run it */
};

struct af_verdict af_park(struct vm_area_struct *dst,
			  struct vm_area_struct *src);
void af_ranges_free(struct af_session *s);

/* pull.c */
void af_pull_range(struct af_session *s, unsigned long start,
		   unsigned long end, enum asyncfork_hook hook, bool locked);
void af_sync_range(struct mm_struct *mm, unsigned long start,
		   unsigned long end, enum asyncfork_hook hook, bool locked);
void af_sync_slot(struct mm_struct *mm, const pmd_t *slot);
bool af_slot_pending(struct mm_struct *mm, const pmd_t *slot);
void af_pull_child(struct af_session *s);
void af_pull_helper(struct af_session *s, unsigned int nr);
void af_reserve_fill(struct af_session *s);
void af_reserve_free(struct af_session *s);

/* copy.c */
int af_copy(struct af_session *s, pmd_t saved, pgtable_t table,
	    unsigned long addr);
void af_copy_init(void);

/* poison.c */
bool af_poison_under_way(void);

/* device.c */
void af_device_fork(struct mm_struct *parent, struct mm_struct *child);
int af_device_init(void);
void af_device_exit(void);

/* stats.c */
void af_stats_armed(void);
void af_stats_outcome(enum asyncfork_outcome outcome,
		      enum asyncfork_reason reason);
void af_stats_killed(void);
void af_stats_merged(void);
void af_stats_begin(struct af_session *s);
void af_stats_end(struct af_session *s);
void af_stats_parent_pull(struct af_session *s, unsigned long addr,
			  enum asyncfork_hook hook, u64 ns);
void af_stats_add(struct asyncfork_stats *st, struct af_session *s);
void af_stats_fill(struct asyncfork_stats *st);
void af_stats_recent(struct asyncfork_recent *recent);
void af_session_report(struct af_session *s, struct pid_namespace *ns,
		       struct asyncfork_report *rep);

/* fault.c; compiled out unless built with AF_FAULTS=1 */
#ifdef AF_FAULTS
bool af_fault(void);
void af_linger(void);
#else
static inline bool af_fault(void)
{
	return false;
}

static inline void af_linger(void)
{
}
#endif

/* main.c */
extern bool af_enabled;
extern bool af_park_partial;
extern unsigned int af_max_sessions;
extern unsigned int af_max_helpers;
extern unsigned int af_pull_after;
extern bool af_off;
void af_switch_off(const char *why, unsigned long addr);

#endif /* _AF_SESSION_H */
