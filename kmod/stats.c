// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counters: of a session, summed up when it ends, and the ring of
 * recent forks
 */
#include <linux/capability.h>
#include <linux/lockdep.h>
#include <linux/log2.h>
#include <linux/mm_types.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/user_namespace.h>

#include "cgroups.h"
#include "enroll.h"
#include "session.h"
#include "stats.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* Levels of nested pid namespaces, from the initial one on, that see a fork. */
#define PID_LEVELS	8

/* A process as a pid namespace and those below it had it, by the namespace's number. */
struct seen {
	unsigned int ns;
	pid_t parent, child;
};

/**
 * struct recent - a fork in the ring
 * @report: with the pids of the initial namespace
 * @levels: entries of @seen
 * @seen: by level, the namespaces of the parent. No references: it would keep them
 */
struct recent {
	struct asyncfork_report report;
	unsigned int levels;
	struct seen seen[PID_LEVELS];
};

static DEFINE_SPINLOCK(stats_lock);	/* guards all below */
static struct asyncfork_stats total;
static struct recent ring[AF_RECENT];	/* 142 KiB */
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

static void histogram_add(struct asyncfork_histogram *h, u64 ns)
{
	unsigned int i = ns ? ilog2(ns) : 0;

	h->bucket[min_t(unsigned int, i, ASYNCFORK_BUCKETS - 1)]++;
}

/* The next one, with all but the report. @child may be NULL. */
static struct recent *ring_slot(struct pid *parent, struct pid *child)
{
	struct recent *r = &ring[ring_count++ % AF_RECENT];
	/* Held by the pid. */
	struct pid_namespace *ns = ns_of_pid(parent);

	r->levels = min_t(unsigned int, ns->level + 1, PID_LEVELS);
	for (; ns; ns = ns->parent)
		if (ns->level < PID_LEVELS)
			r->seen[ns->level] = (struct seen) {
				.ns = ns->ns.inum,
				.parent = pid_nr_ns(parent, ns),
				.child = pid_nr_ns(child, ns),
			};
	return r;
}

static void outcome_add(enum asyncfork_outcome outcome,
			enum asyncfork_reason reason, enum asyncfork_by by,
			u64 entry)
{
	switch (outcome) {
	case ASYNCFORK_OUTCOME_ASYNC:
		total.async++;
		total.async_by_how[by]++;
		break;
	case ASYNCFORK_OUTCOME_STOCK:
		total.stock++;
		total.stock_by_how[by]++;
		total.stock_by_reason[reason]++;
		break;
	default:
		total.failed++;
		return;
	}
	if (entry)
		af_enroll_count(entry, outcome == ASYNCFORK_OUTCOME_ASYNC);
}

/**
 * af_stats_small - count a fork of a process that is too small for what nobody armed
 * @ask: what it was to be
 *
 * Any small program forks there: the ring has room for those that matter.
 *
 * Context: the forking thread.
 */
void af_stats_small(const struct af_ask *ask)
{
	spin_lock(&stats_lock);
	outcome_add(ASYNCFORK_OUTCOME_STOCK, ASYNCFORK_REASON_MIN_RSS, ask->by,
		    ask->entry);
	spin_unlock(&stats_lock);
}

/**
 * af_stats_stock - count a stock fork that never had a session
 * @reason: why
 * @ask: what it was to be
 * @rep: the ABI's view of it, as seen from the init namespace
 *
 * Context: the forking thread.
 */
void af_stats_stock(enum asyncfork_reason reason, const struct af_ask *ask,
		    struct asyncfork_report *rep)
{
	/* Only exec() changes it, and not under a thread that forks. */
	struct pid *parent = task_tgid(current);
	struct recent *slot;

	memset(rep, 0, sizeof(*rep));
	rep->outcome = ASYNCFORK_OUTCOME_STOCK;
	rep->reason = reason;
	rep->parent_pid = task_tgid_nr(current);
	get_task_comm(rep->comm, current);
	rep->cgroup_id = af_cgroup_current();
	rep->cpus = current->nr_cpus_allowed;
	rep->start_ns = ktime_get_ns();
	rep->entry_id = ask->entry;
	rep->by = ask->by;

	spin_lock(&stats_lock);
	outcome_add(rep->outcome, reason, ask->by, ask->entry);
	slot = ring_slot(parent, NULL);
	rep->seq = ring_count;
	slot->report = *rep;
	spin_unlock(&stats_lock);
	trace_asyncfork_stock(rep->parent_pid, reason);
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
	rep->seq = READ_ONCE(s->seq);
	rep->entry_id = s->entry;
	rep->by = s->by;
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
	enum asyncfork_outcome outcome = session_outcome(s);
	enum asyncfork_reason reason = session_reason(s);
	struct recent *slot;

	spin_lock(&stats_lock);
	af_stats_add(&total, s);
	s->summed = true;
	outcome_add(outcome, reason, s->by, s->entry);
	total.aborted += session_aborted(s);
	if (outcome == ASYNCFORK_OUTCOME_ASYNC) {
		histogram_add(&total.park, s->park_ns);
		histogram_add(&total.copy, session_copy_ns(s));
	}
	/* Pairs with af_session_forked(); NULL: no child. */
	slot = ring_slot(s->parent_pid, smp_load_acquire(&s->child_pid));
	WRITE_ONCE(s->seq, ring_count);
	af_stats_report(s, &init_pid_ns, &slot->report);
	spin_unlock(&stats_lock);
	if (outcome == ASYNCFORK_OUTCOME_STOCK)
		trace_asyncfork_stock(pid_nr(s->parent_pid), reason);
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
 * af_view_current - what the caller may see of the ring
 * @v: filled in
 */
void af_view_current(struct af_view *v)
{
	struct pid_namespace *ns = task_active_pid_ns(current);

	/* Not for all is no failure: nothing for the audit. */
	v->all = ns_capable_noaudit(&init_user_ns, CAP_SYS_ADMIN);
	v->level = ns->level;
	v->ns = ns->ns.inum;
	/*
	 * Its first process is there as long as we are, but maybe another thread of
	 * it is the reaper by now: younger, so that less is seen.
	 */
	rcu_read_lock();
	v->since = READ_ONCE(ns->child_reaper)->start_time;
	rcu_read_unlock();
}

/*
 * Was the parent in the caller's pid namespace, or below? The number of a
 * namespace that is gone may be another's by now, which is younger than the fork.
 */
static bool is_visible(const struct recent *r, const struct af_view *v)
{
	if (v->all)
		return true;
	return v->level < r->levels && r->seen[v->level].ns == v->ns &&
	       r->report.start_ns >= v->since;
}

/* Fork number @i, if the ring has it still and the caller may see it. */
static bool ring_read(u64 i, const struct af_view *v,
		      struct asyncfork_report *rep)
{
	const struct recent *r = &ring[(i - 1) % AF_RECENT];

	lockdep_assert_held(&stats_lock);
	if (i + AF_RECENT <= ring_count || !is_visible(r, v))
		return false;
	*rep = r->report;
	if (!v->all) {
		rep->parent_pid = r->seen[v->level].parent;
		rep->child_pid = r->seen[v->level].child;
	}
	return true;
}

/**
 * af_stats_recent - the next of the last forks, from the newest back
 * @v: whose view
 * @after: number of the fork before the last one that is wanted
 * @seq: number of the fork before which to go on; then that of this one
 * @rep: filled in
 *
 * Return: whether there was one.
 */
bool af_stats_recent(const struct af_view *v, u64 after, u64 *seq,
		     struct asyncfork_report *rep)
{
	unsigned int n;
	bool found;
	u64 i;

	spin_lock(&stats_lock);
	i = min(*seq - 1, ring_count);
	spin_unlock(&stats_lock);
	/* Those that the ring has lost meanwhile are the last to be looked at. */
	for (n = 0; n < AF_RECENT && i > after; n++, i--) {
		/* One at a time: pulls wait for the lock. */
		spin_lock(&stats_lock);
		found = ring_read(i, v, rep);
		spin_unlock(&stats_lock);
		if (found) {
			*seq = i;
			return true;
		}
	}
	return false;
}
