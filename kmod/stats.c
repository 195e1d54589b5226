// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counters: of a session, summed up when it ends, and the ring of
 * recent sessions
 */
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
static struct asyncfork_recent ring;
static unsigned int ring_next;

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

void af_stats_outcome(enum asyncfork_outcome outcome,
		      enum asyncfork_reason reason)
{
	spin_lock(&stats_lock);
	outcome_add(outcome, reason);
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

/**
 * af_session_report - the ABI's view of a session
 * @s: session, pinned
 * @ns: whose numbers of the processes are wanted; they are 0 where it has none
 * @rep: all fields are filled in
 */
void af_session_report(struct af_session *s, struct pid_namespace *ns,
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
	rep->start_ns = s->start_ns;
	rep->parked = count(s, AF_N_PARKED);
	rep->eager = count(s, AF_N_EAGER);
	rep->reattached = count(s, AF_N_REATTACHED);
	rep->odd = count(s, AF_N_ODD);
	rep->by_child = count(s, AF_N_BY_CHILD);
	rep->by_parent = count(s, AF_N_BY_PARENT);
	rep->by_helper = count(s, AF_N_BY_HELPER);
	rep->by_other = count(s, AF_N_BY_OTHER);
	rep->park_ns = s->park_ns;
	rep->parent_pull_ns = count(s, AF_N_PARENT_NS);
	rep->parent_pull_max_ns = READ_ONCE(s->parent_max_ns);
	rep->copy_ns = session_copy_ns(s);
	rep->meta_bytes = s->meta_bytes;
	rep->cpus = s->cpus;
	for (i = 0; i < ASYNCFORK_HOOK_MAX; i++)
		rep->pulls[i] = count(s, AF_N_PULLS + i);
}

void af_stats_add(struct asyncfork_stats *st, struct af_session *s)
{
	unsigned int i;

	st->parked += count(s, AF_N_PARKED);
	st->eager += count(s, AF_N_EAGER);
	st->reattached += count(s, AF_N_REATTACHED);
	st->odd += count(s, AF_N_ODD);
	st->by_child += count(s, AF_N_BY_CHILD);
	st->by_parent += count(s, AF_N_BY_PARENT);
	st->by_helper += count(s, AF_N_BY_HELPER);
	st->by_other += count(s, AF_N_BY_OTHER);
	st->parent_pull_ns += count(s, AF_N_PARENT_NS);
	st->parent_pull_max_ns = max_t(u64, st->parent_pull_max_ns,
				       READ_ONCE(s->parent_max_ns));
	st->copy_ns += session_copy_ns(s);
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
	if (count(s, AF_N_PARKED)) {
		total.aborted += session_aborted(s);
		af_session_report(s, &init_pid_ns, &ring.entry[ring_next]);
		ring_next = (ring_next + 1) % ASYNCFORK_RECENT_MAX;
		if (ring.count < ASYNCFORK_RECENT_MAX)
			ring.count++;
	}
	spin_unlock(&stats_lock);
	trace_asyncfork_end(s->id, count(s, AF_N_PARKED),
			    count(s, AF_N_REATTACHED), session_copy_ns(s));
}

void af_stats_fill(struct asyncfork_stats *st)
{
	spin_lock(&stats_lock);
	*st = total;
	spin_unlock(&stats_lock);
}

void af_stats_recent(struct asyncfork_recent *recent)
{
	unsigned int i, from;

	spin_lock(&stats_lock);
	recent->count = ring.count;
	for (i = 0; i < ring.count; i++) {
		from = (ring_next + 2 * ASYNCFORK_RECENT_MAX - 1 - i) %
		       ASYNCFORK_RECENT_MAX;
		recent->entry[i] = ring.entry[from];
	}
	spin_unlock(&stats_lock);
}
