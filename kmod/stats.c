// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counters: of a session, summed up when it ends, and the ring of
 * recent forks
 */
#include <linux/cgroup.h>
#include <linux/log2.h>
#include <linux/mm_types.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

#include "session.h"
#include "stats.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static DEFINE_SPINLOCK(stats_lock);	/* guards all below */
static struct asyncfork_stats total;
static struct asyncfork_report ring[AF_RECENT];
static u64 ring_count;			/* of all that were put there */

static u64 count(const struct af_session *s, enum af_count c)
{
	return atomic_long_read(&s->count[c]);
}

void af_stats_armed(void)
{
	spin_lock(&stats_lock);
	total.armed++;
	spin_unlock(&stats_lock);
}

/* The cgroup of the calling thread in the default hierarchy. */
u64 af_current_cgroup(void)
{
	u64 id;

	rcu_read_lock();
	id = cgroup_id(task_dfl_cgroup(current));
	rcu_read_unlock();
	return id;
}

static void histogram_add(struct asyncfork_histogram *h, u64 ns)
{
	unsigned int i = ns ? ilog2(ns) : 0;

	h->bucket[min_t(unsigned int, i, ASYNCFORK_BUCKETS - 1)]++;
}

static struct asyncfork_report *ring_slot(void)
{
	return &ring[ring_count++ % AF_RECENT];
}

static void outcome_add(enum asyncfork_outcome outcome,
			enum asyncfork_reason reason)
{
	switch (outcome) {
	case ASYNCFORK_OUTCOME_ASYNC:
		total.async++;
		break;
	case ASYNCFORK_OUTCOME_STOCK:
		total.stock++;
		total.stock_by_reason[reason]++;
		break;
	default:
		total.failed++;
	}
}

/**
 * af_stats_stock - count a stock fork that never had a session
 * @reason: why
 * @rep: the ABI's view of it, as seen from the init namespace
 *
 * Context: the forking thread.
 */
void af_stats_stock(enum asyncfork_reason reason, struct asyncfork_report *rep)
{
	memset(rep, 0, sizeof(*rep));
	rep->outcome = ASYNCFORK_OUTCOME_STOCK;
	rep->reason = reason;
	rep->parent_pid = task_tgid_nr(current);
	get_task_comm(rep->comm, current);
	rep->cgroup_id = af_current_cgroup();
	rep->cpus = current->nr_cpus_allowed;
	rep->start_ns = ktime_get_ns();

	spin_lock(&stats_lock);
	outcome_add(rep->outcome, reason);
	*ring_slot() = *rep;
	spin_unlock(&stats_lock);
}

void af_stats_killed(void)
{
	spin_lock(&stats_lock);
	total.killed++;
	spin_unlock(&stats_lock);
}

void af_stats_merged(void)
{
	spin_lock(&stats_lock);
	total.merged++;
	spin_unlock(&stats_lock);
}

void af_stats_begin(struct af_session *s)
{
	trace_asyncfork_begin(s->id, pid_nr(s->parent_pid));
}

void af_stats_parent_pull(struct af_session *s, unsigned long addr,
			  enum asyncfork_hook hook, u64 ns)
{
	spin_lock(&stats_lock);
	af_count_add(s, AF_N_PARENT_NS, ns);
	s->parent_max_ns = max(s->parent_max_ns, ns);
	histogram_add(&total.parent_pull, ns);
	if (s->summed) {
		/* It waited for the chunk that ended the session. */
		total.parent_pull_ns += ns;
		total.parent_pull_max_ns = max(total.parent_pull_max_ns, ns);
	}
	spin_unlock(&stats_lock);
	trace_asyncfork_parent_pull(s->id, addr, hook, ns);
}

static enum asyncfork_outcome session_outcome(const struct af_session *s)
{
	if (!test_bit(AF_CLOSED, &s->flags))
		return ASYNCFORK_OUTCOME_NONE;
	if (!test_bit(AF_FORKED, &s->flags))
		return ASYNCFORK_OUTCOME_FAILED;
	return count(s, AF_N_PARKED) ? ASYNCFORK_OUTCOME_ASYNC :
				       ASYNCFORK_OUTCOME_STOCK;
}

static enum asyncfork_reason session_reason(const struct af_session *s)
{
	if (session_outcome(s) != ASYNCFORK_OUTCOME_STOCK)
		return ASYNCFORK_REASON_NONE;
	return s->reason ?: ASYNCFORK_REASON_NOTHING;
}

static bool session_aborted(const struct af_session *s)
{
	return count(s, AF_N_REATTACHED) || test_bit(AF_KILLED, &s->flags);
}

static enum asyncfork_state session_state(const struct af_session *s)
{
	if (!test_bit(AF_FINISHED, &s->flags))
		return ASYNCFORK_STATE_RUNNING;
	return session_aborted(s) ? ASYNCFORK_STATE_ABORTED :
				    ASYNCFORK_STATE_DONE;
}

static u64 session_copy_ns(const struct af_session *s)
{
	u64 begin = READ_ONCE(s->forked_ns);
	/* Not AF_FINISHED: that is set a moment before. */
	u64 end = READ_ONCE(s->end_ns);

	if (!begin)
		return 0;
	return (end ?: ktime_get_ns()) - begin;
}

/* They come in the ABI's order. */
static_assert(AF_N_BY_OTHER + 1 ==
	      sizeof(struct asyncfork_chunks) / sizeof(u64));
static_assert(AF_N_MIXED ==
	      offsetof(struct asyncfork_chunks, mixed) / sizeof(u64));

static void chunks_add(struct asyncfork_chunks *chunks,
		       const struct af_session *s)
{
	u64 *n = &chunks->parked;
	enum af_count c;

	for (c = AF_N_PARKED; c <= AF_N_BY_OTHER; c++)
		n[c] += count(s, c);
}

/**
 * af_stats_report - the ABI's view of a session
 * @s: session, pinned
 * @ns: whose numbers of the processes are wanted; they are 0 where it has none
 * @rep: all fields are filled in
 */
void af_stats_report(struct af_session *s, struct pid_namespace *ns,
		     struct asyncfork_report *rep)
{
	unsigned int i;

	memset(rep, 0, sizeof(*rep));
	rep->id = s->id;
	rep->outcome = session_outcome(s);
	rep->reason = session_reason(s);
	rep->state = session_state(s);
	rep->helpers = s->helpers;
	rep->parent_pid = pid_nr_ns(s->parent_pid, ns);
	/* Pairs with af_session_forked(); NULL until then. */
	rep->child_pid = pid_nr_ns(smp_load_acquire(&s->child_pid), ns);
	memcpy(rep->comm, s->comm, sizeof(rep->comm));
	rep->cgroup_id = s->cgroup_id;
	rep->cpus = s->cpus;
	rep->start_ns = s->start_ns;
	rep->park_ns = s->park_ns;
	rep->parent_pull_ns = count(s, AF_N_PARENT_NS);
	rep->parent_pull_max_ns = READ_ONCE(s->parent_max_ns);
	rep->copy_ns = session_copy_ns(s);
	rep->meta_bytes = s->meta_bytes;
	chunks_add(&rep->chunks, s);
	for (i = 0; i < ASYNCFORK_HOOK_MAX; i++)
		rep->pulls[i] = count(s, AF_N_PULLS + i);
}

/**
 * af_stats_add - add a session to totals
 * @st: totals
 * @s: session
 */
void af_stats_add(struct asyncfork_stats *st, struct af_session *s)
{
	unsigned int i;

	st->park_ns += s->park_ns;
	st->parent_pull_ns += count(s, AF_N_PARENT_NS);
	st->parent_pull_max_ns = max_t(u64, st->parent_pull_max_ns,
				       READ_ONCE(s->parent_max_ns));
	st->copy_ns += session_copy_ns(s);
	chunks_add(&st->chunks, s);
	for (i = 0; i < ASYNCFORK_HOOK_MAX; i++)
		st->pulls[i] += count(s, AF_N_PULLS + i);
}

/* Under hash_lock, AF_FINISHED set: from now on the totals hold the session. */
void af_stats_end(struct af_session *s)
{
	spin_lock(&stats_lock);
	af_stats_add(&total, s);
	s->summed = true;
	outcome_add(session_outcome(s), session_reason(s));
	total.aborted += session_aborted(s);
	if (session_outcome(s) == ASYNCFORK_OUTCOME_ASYNC) {
		histogram_add(&total.park, s->park_ns);
		histogram_add(&total.copy, session_copy_ns(s));
	}
	af_stats_report(s, &init_pid_ns, ring_slot());
	spin_unlock(&stats_lock);
	trace_asyncfork_end(s->id, count(s, AF_N_PARKED),
			    count(s, AF_N_REATTACHED), session_copy_ns(s));
}

/**
 * af_stats_totals - the totals of what has ended
 * @st: filled in; running sessions are to be added, and the module's state
 */
void af_stats_totals(struct asyncfork_stats *st)
{
	spin_lock(&stats_lock);
	*st = total;
	spin_unlock(&stats_lock);
}

/**
 * af_stats_recent - the last forks
 * @entries: filled in, newest first
 * @max: how many there is room for
 *
 * Return: how many were filled in.
 */
unsigned int af_stats_recent(struct asyncfork_report *entries,
			     unsigned int max)
{
	unsigned int i, n;

	spin_lock(&stats_lock);
	n = min3(ring_count, (u64)AF_RECENT, (u64)max);
	for (i = 0; i < n; i++)
		entries[i] = ring[(ring_count - 1 - i) % AF_RECENT];
	spin_unlock(&stats_lock);
	return n;
}
