/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A session is one asynchronous fork: (parent mm, child mm) while chunks of
 * the parent are parked (range.h)
 *
 * Lock order (outer to inner):
 *
 *	mmap_lock of the parent, written by the fork	(park)
 *	  hash_lock
 *	  write_protect_seq
 *	    anon_vma root rwsem, written		(park: no allocation)
 *	folio lock, anon_vma rwsem			(migration hook)
 *	sweep_mutex					(memory failure)
 *	  chunk BUSY					(preemption off)
 *	    swap's cluster locks, mmlist_lock
 *	    pmd_lock of the child, then of the parent	(never both)
 *	    siglock; stats_lock
 *	armed_lock, then active_lock
 *	enroll_mutex, then active_lock
 *	hash_lock, then stats_lock
 *	af_file.lock, guard_lock, af_reserve.lock: leaves
 */
#ifndef _AF_SESSION_H
#define _AF_SESSION_H

#include <linux/atomic.h>
#include <linux/mm_types.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/task_work.h>
#include <linux/workqueue.h>

#include "range.h"
#include "table.h"
#include "uapi/asyncfork.h"

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

/* Counters of a session; up to AF_N_BY_OTHER as in struct asyncfork_chunks. */
enum af_count {
	AF_N_PARKED, AF_N_EAGER, AF_N_REATTACHED, AF_N_MIXED,
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
 * @reserve:	tables for pulls without memory
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

	struct af_reserve reserve;

	u64 id;
	enum asyncfork_reason reason;	/* why nothing was parked */
	unsigned int helpers;
	enum asyncfork_by by;
	u64 entry;			/* cgroup whose entry asked for it */
	struct pid *parent_pid, *child_pid;	/* thread groups, referenced */
	char comm[TASK_COMM_LEN];
	u64 cgroup_id;
	u64 start_ns, park_ns, forked_ns, end_ns;
	u64 meta_bytes;
	unsigned int cpus;
	atomic_long_t count[AF_N_MAX];
	/* Guarded by stats_lock. summed: the totals have it, the ring has it as seq. */
	u64 parent_max_ns;
	u64 seq;
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

/**
 * struct af_ask - what a fork was to be, and who said so
 * @by: who
 * @helpers: threads that help the child copy
 * @min_rss: smaller processes use a stock fork
 * @entry: id of the cgroup whose entry it is, or 0
 */
struct af_ask {
	enum asyncfork_by by;
	unsigned int helpers;
	u64 min_rss;
	u64 entry;
};

/* Who pulls without being asked: workers.c. */
struct af_worker_fns {
	task_work_func_t child;
	work_func_t helper;
	work_func_t timeout;
};

extern struct workqueue_struct *af_wq;

struct af_session *af_session_create(struct mm_struct *parent,
				     struct mm_struct *child,
				     const struct af_ask *ask,
				     const struct af_worker_fns *fns);
struct af_session *af_session_find(struct mm_struct *mm, enum af_role role,
				   bool parked_only);
struct af_session *af_session_unswept(u64 sweep);
void af_session_hold(struct af_session *s);
void af_session_put(struct af_session *s);
void af_session_pin(struct af_session *s);
void af_session_unpin(struct af_session *s);
void af_session_parked(struct af_session *s, long n);
void af_session_chunk_done(struct af_session *s);
bool af_session_forked(struct af_session *s, struct task_struct *child);
void af_session_close(struct af_session *s);
void af_session_doom(struct af_session *s);
void af_session_start_timeout(struct af_session *s, unsigned long seconds);
unsigned int af_session_running(void);
void af_session_sum(struct asyncfork_stats *st);
int af_session_init(void);
void af_session_exit(void);

#endif /* _AF_SESSION_H */
