// SPDX-License-Identifier: GPL-2.0-only
/*
 * Life of a session: created inside a fork, found by hooks through
 * an RCU hash of mms, finished when its last chunk is DONE
 *
 * A session holds mm_count of both mms, never mm_users: it must not keep a
 * dead process's memory. Its users hold the module. A descriptor that reports
 * on it pins the struct only.
 */
#include <linux/hash.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/rculist.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

#include "active.h"
#include "cgroups.h"
#include "fault.h"
#include "params.h"
#include "range.h"
#include "session.h"
#include "stats.h"

#define HASH_BITS	8

static struct hlist_head hash[1 << HASH_BITS];
static DEFINE_SPINLOCK(hash_lock);	/* guards hash for writers, running */
static unsigned int running;
static u64 last_id;
struct workqueue_struct *af_wq;

static struct hlist_head *bucket(struct mm_struct *mm)
{
	return &hash[hash_ptr(mm, HASH_BITS)];
}

static void session_free(struct work_struct *work)
{
	struct af_session *s = container_of(work, struct af_session, free_work);

	/* Last reference: nobody adds, nobody looks. */
	af_ranges_free(rcu_dereference_protected(s->ranges, true));
	af_reserve_free(&s->reserve, af_mm(s, AF_CHILD));
	if (s->task)
		put_task_struct(s->task);
	mmdrop(af_mm(s, AF_CHILD));
	mmdrop(af_mm(s, AF_PARENT));
	af_session_unpin(s);
	module_put(THIS_MODULE);
}

void af_session_hold(struct af_session *s)
{
	refcount_inc(&s->users);
}

/* Any context: the memory goes in a worker, mmdrop() may be heavy. */
void af_session_put(struct af_session *s)
{
	if (refcount_dec_and_test(&s->users))
		queue_work(af_wq, &s->free_work);
}

/* Keep the counters, for af_stats_report(). */
void af_session_pin(struct af_session *s)
{
	refcount_inc(&s->ref);
}

void af_session_unpin(struct af_session *s)
{
	if (!refcount_dec_and_test(&s->ref))
		return;
	/* Readers that found it in the hash, under RCU, do not use these. */
	put_pid(s->parent_pid);
	put_pid(s->child_pid);
	kfree_rcu(s, rcu);
}

static void timeout_cancel(struct af_session *s)
{
	if (cancel_delayed_work(&s->timeout))
		af_session_put(s);
}

/**
 * af_session_start_timeout - let a worker pull what is parked then
 * @s: session
 * @seconds: from now on
 *
 * Context: any.
 */
void af_session_start_timeout(struct af_session *s, unsigned long seconds)
{
	af_session_hold(s);
	queue_delayed_work(af_wq, &s->timeout, seconds * HZ);
	/* Either try_finish() sees the work, or we see that it has run. */
	if (test_bit(AF_FINISHED, &s->flags))
		timeout_cancel(s);
}

static void link_init(struct af_session *s, enum af_role role,
		      struct mm_struct *mm)
{
	s->link[role].mm = mm;
	s->link[role].role = role;
	mmgrab(mm);
}

/**
 * af_session_create - a new session, visible in the hash
 * @parent: mm being forked, mmap_lock held for write by current
 * @child: mm being made
 * @ask: what it is to be
 * @fns: what works on it without being asked
 *
 * Return: the session, pinned for the caller; -EMFILE: max_sessions; -ENOMEM;
 * -ENODEV: the module is on its way out.
 */
struct af_session *af_session_create(struct mm_struct *parent,
				     struct mm_struct *child,
				     const struct af_ask *ask,
				     const struct af_worker_fns *fns)
{
	struct af_session *s;
	unsigned int i;
	int ret = -ENOMEM;

	if (!try_module_get(THIS_MODULE))
		return ERR_PTR(-ENODEV);

	s = af_fault() ? NULL :
			 kzalloc(struct_size(s, helper, ask->helpers),
				 GFP_KERNEL_ACCOUNT);
	if (!s)
		goto put_module;

	/* The hash; the users, the caller. */
	refcount_set(&s->users, 1);
	refcount_set(&s->ref, 2);
	INIT_WORK(&s->free_work, session_free);
	/* All before the session can be found: try_finish() cancels the timeout. */
	INIT_DELAYED_WORK(&s->timeout, fns->timeout);
	init_task_work(&s->child_work, fns->child);
	s->forker = current;
	s->parent_pid = get_task_pid(current, PIDTYPE_TGID);
	get_task_comm(s->comm, current);
	s->cgroup_id = af_cgroup_current();
	s->cpus = current->nr_cpus_allowed;
	s->by = ask->by;
	s->entry = ask->entry;
	s->helpers = ask->helpers;
	for (i = 0; i < s->helpers; i++) {
		INIT_WORK(&s->helper[i].work, fns->helper);
		s->helper[i].session = s;
		s->helper[i].nr = i;
	}
	s->start_ns = ktime_get_ns();
	if (!af_reserve_fill(&s->reserve))
		goto free_session;

	link_init(s, AF_PARENT, parent);
	link_init(s, AF_CHILD, child);

	spin_lock(&hash_lock);
	if (running >= READ_ONCE(af_max_sessions)) {
		spin_unlock(&hash_lock);
		ret = -EMFILE;
		goto drop_mms;
	}
	running++;
	s->id = ++last_id;
	hlist_add_head_rcu(&s->link[AF_PARENT].node, bucket(parent));
	hlist_add_head_rcu(&s->link[AF_CHILD].node, bucket(child));
	spin_unlock(&hash_lock);

	af_active_inc();
	af_stats_begin(s);
	return s;

drop_mms:
	mmdrop(child);
	mmdrop(parent);
free_session:
	af_reserve_free(&s->reserve, child);
	put_pid(s->parent_pid);
	kfree(s);
put_module:
	module_put(THIS_MODULE);
	return ERR_PTR(ret);
}

/**
 * af_session_find - the session in which @mm plays @role
 * @mm: key; may be any pointer value
 * @role: AF_PARENT or AF_CHILD
 * @parked_only: only if a chunk may still be parked
 *
 * At most one session a mm and role has parked chunks: a fork first pulls
 * those of the one before. That one may still count the chunk it has just
 * done, but the newer session comes first in its bucket.
 *
 * Return: a referenced session or NULL.
 */
struct af_session *af_session_find(struct mm_struct *mm, enum af_role role,
				   bool parked_only)
{
	struct af_session *s, *found = NULL;
	struct af_link *l;

	rcu_read_lock();
	hlist_for_each_entry_rcu(l, bucket(mm), node) {
		if (l->mm != mm || l->role != role)
			continue;
		s = container_of(l, struct af_session, link[role]);
		if (parked_only && !atomic_long_read(&s->parked))
			continue;
		if (refcount_inc_not_zero(&s->users)) {
			found = s;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/* Once no chunk is parked and none will be. */
static void try_finish(struct af_session *s)
{
	if (!test_bit(AF_CLOSED, &s->flags) || atomic_long_read(&s->parked) ||
	    test_and_set_bit(AF_FINISHED, &s->flags))
		return;

	WRITE_ONCE(s->end_ns, ktime_get_ns());
	spin_lock(&hash_lock);
	hlist_del_rcu(&s->link[AF_PARENT].node);
	hlist_del_rcu(&s->link[AF_CHILD].node);
	running--;
	af_stats_end(s);
	spin_unlock(&hash_lock);

	timeout_cancel(s);
	af_active_dec();
	af_session_put(s);
}

/**
 * af_session_parked - @n chunks are about to be parked
 * @s: session
 * @n: chunks, at least
 *
 * From the first one on a worker sees to it that they do not stay parked: user
 * space can make a fork last, between its dup_mmap() and its end.
 *
 * Context: the forking thread; may hold an anon_vma lock.
 */
void af_session_parked(struct af_session *s, long n)
{
	unsigned long timeout = READ_ONCE(af_pull_after);

	if (timeout && !test_and_set_bit(AF_TIMED, &s->flags))
		af_session_start_timeout(s, timeout);
	atomic_long_add(n, &s->parked);
}

/* The caller holds a reference and has set one chunk to DONE. */
void af_session_chunk_done(struct af_session *s)
{
	/* Full barrier; pairs with the one in af_session_close(). */
	if (atomic_long_dec_and_test(&s->parked))
		try_finish(s);
}

/**
 * af_session_close - the fork parks no more: it is done or has failed
 * @s: session
 *
 * Context: any.
 */
void af_session_close(struct af_session *s)
{
	set_bit(AF_CLOSED, &s->flags);
	/* Either we see parked == 0, or the last puller sees AF_CLOSED. */
	smp_mb__after_atomic();
	try_finish(s);
}

static void kill_child(struct af_session *s)
{
	send_sig(SIGKILL, s->task, 1);
	if (!test_and_set_bit(AF_KILLED, &s->flags))
		af_stats_killed();
}

/**
 * af_session_forked - the fork has succeeded
 * @s: session, not closed yet
 * @child: new task, not woken up yet
 *
 * Context: any; the caller's task is in kernel_clone().
 * Return: was anything parked?
 */
bool af_session_forked(struct af_session *s, struct task_struct *child)
{
	/* Pairs with af_stats_report(), which may look from now on. */
	smp_store_release(&s->child_pid, get_task_pid(child, PIDTYPE_TGID));
	WRITE_ONCE(s->forked_ns, ktime_get_ns());
	set_bit(AF_FORKED, &s->flags);
	set_bit(AF_FLUSHED, &s->flags);
	if (!atomic_long_read(&s->count[AF_N_PARKED]))
		return false;

	WRITE_ONCE(s->task, get_task_struct(child));
	/* Pairs with af_session_doom(): one of us sees the other. */
	smp_mb();
	if (test_bit(AF_ABORTED, &s->flags))
		kill_child(s);
	return true;
}

/**
 * af_session_doom - the child's image is lost, the child must not see it
 * @s: session
 *
 * To be called before the first chunk that is DONE and not copied whole: the
 * child looks at AF_ABORTED after its last chunk, so it cannot get to user
 * mode even if the signal comes late.
 *
 * Context: any.
 */
void af_session_doom(struct af_session *s)
{
	set_bit(AF_ABORTED, &s->flags);
	/* Pairs with af_session_forked(): one of us sees the other. */
	smp_mb__after_atomic();
	if (READ_ONCE(s->task))
		kill_child(s);
}

/**
 * af_session_unswept - a session that a sweep has not seen yet
 * @sweep: number of the sweep; one at a time
 *
 * Return: a referenced session, now seen, or NULL.
 */
struct af_session *af_session_unswept(u64 sweep)
{
	struct af_session *s, *found = NULL;
	struct af_link *l;
	unsigned int i;

	rcu_read_lock();
	for (i = 0; i < ARRAY_SIZE(hash) && !found; i++)
		hlist_for_each_entry_rcu(l, &hash[i], node) {
			if (l->role != AF_PARENT)
				continue;
			s = container_of(l, struct af_session, link[AF_PARENT]);
			if (s->swept == sweep ||
			    !refcount_inc_not_zero(&s->users))
				continue;
			s->swept = sweep;
			found = s;
			break;
		}
	rcu_read_unlock();
	return found;
}

unsigned int af_session_running(void)
{
	return READ_ONCE(running);
}

/* Adds every running session to @st. */
void af_session_sum(struct asyncfork_stats *st)
{
	struct af_link *l;
	unsigned int i;

	spin_lock(&hash_lock);
	for (i = 0; i < ARRAY_SIZE(hash); i++)
		hlist_for_each_entry(l, &hash[i], node)
			if (l->role == AF_PARENT)
				af_stats_add(st, container_of(l, struct af_session,
							      link[AF_PARENT]));
	spin_unlock(&hash_lock);
}

int af_session_init(void)
{
	af_wq = alloc_workqueue("asyncfork", WQ_UNBOUND, 0);
	return af_wq ? 0 : -ENOMEM;
}

void af_session_exit(void)
{
	destroy_workqueue(af_wq);
	rcu_barrier();
}
