// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a fork does to its session: begin, succeed, fail
 *
 * Decides which forks are asynchronous.
 */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/signal.h>

#include "compat/compat.h"
#include "device.h"
#include "enroll.h"
#include "fork.h"
#include "params.h"
#include "pull.h"
#include "session.h"
#include "stats.h"
#include "workers.h"

/* Threads of current that have this mm, if nobody else has: its users. */
static bool only_threads(struct mm_struct *mm)
{
	/* current's own cannot go away. */
	struct sighand_struct *sighand =
		rcu_dereference_protected(current->sighand, true);
	struct task_struct *t;
	int users, own = 0;

	/*
	 * Users first, then the threads that are among them. One that ends
	 * meanwhile gives up its mm before it gives up its use of it, and a new
	 * one is listed under siglock: there are never too many threads.
	 */
	spin_lock_irq(&sighand->siglock);
	users = atomic_read(&mm->mm_users);
	/* Not nr_threads: a leader that has ended has no mm, but counts. */
	for_each_thread(current, t)
		own += READ_ONCE(t->mm) == mm;
	spin_unlock_irq(&sighand->siglock);
	return users <= own;
}

/*
 * Is the mm shared with another process (CLONE_VM without CLONE_THREAD)? Then
 * it could fork while this one is being dumped. Its users are often threads and
 * nothing else; somebody may also look at it through /proc.
 */
static bool mm_is_shared(struct mm_struct *mm)
{
	struct task_struct *p, *t;
	bool shared = false;

	if (only_threads(mm))
		return false;
	rcu_read_lock();
	for_each_process_thread(p, t)
		shared |= READ_ONCE(t->mm) == mm &&
			  !same_thread_group(t, current);
	rcu_read_unlock();
	return shared;
}

static enum asyncfork_reason stock_reason(struct mm_struct *mm,
					  const struct af_ask *ask)
{
	if (!READ_ONCE(af_enabled))
		return ASYNCFORK_REASON_DISABLED;
	if (READ_ONCE(af_off))
		return ASYNCFORK_REASON_SWITCHED_OFF;
	if (af_mm_rss(mm) < ask->min_rss)
		return ASYNCFORK_REASON_MIN_RSS;
	if (af_mm_pinned(mm))
		return ASYNCFORK_REASON_PINNED;
	if (mm_has_notifiers(mm))
		return ASYNCFORK_REASON_NOTIFIER;
	if (mm_is_shared(mm))
		return ASYNCFORK_REASON_SHARED;
	if (af_mm_uffd_moves(mm))
		return ASYNCFORK_REASON_UFFD;
	if (ask->by != ASYNCFORK_BY_ARM && af_enroll_marked(mm))
		return ASYNCFORK_REASON_LIBRARY;
	return ASYNCFORK_REASON_NONE;
}

static struct af_session *start_session(struct mm_struct *parent,
					struct mm_struct *child,
					const struct af_ask *ask,
					enum asyncfork_reason *reason)
{
	struct af_session *s;

	*reason = stock_reason(parent, ask);
	if (*reason)
		return NULL;

	s = af_session_create(parent, child, ask, &af_worker_fns);
	if (IS_ERR(s)) {
		*reason = PTR_ERR(s) == -EMFILE ? ASYNCFORK_REASON_LIMIT :
						  ASYNCFORK_REASON_NO_MEMORY;
		return NULL;
	}
	return s;
}

/**
 * af_fork_begin - start a session if the fork is to be asynchronous
 * @parent: mm being forked
 * @child: mm being made
 *
 * Context: the hook of uprobe_dup_mmap(), mmap_write_lock(@parent).
 */
void af_fork_begin(struct mm_struct *parent, struct mm_struct *child)
{
	struct asyncfork_report stock = {};
	enum asyncfork_reason reason;
	struct af_session *s;
	struct af_file *f;
	struct af_ask ask;

	f = af_device_take(&ask);
	if (!f) {
		if (!af_enroll_ask(parent, &ask))
			return;
		if (af_mm_rss(parent) < ask.min_rss) {
			af_stats_small(&ask);
			return;
		}
	}
	s = start_session(parent, child, &ask, &reason);
	if (!s)
		af_stats_stock(reason, &ask, &stock);
	/* The pin goes to the descriptor. */
	if (f)
		af_device_tell(f, s, &stock);
	else if (s)
		af_session_unpin(s);
}

/**
 * af_fork_done - the fork has succeeded
 * @s: session
 * @child: new task, not woken up yet
 *
 * Context: any; the caller's task is in kernel_clone().
 */
void af_fork_done(struct af_session *s, struct task_struct *child)
{
	if (af_session_forked(s, child))
		af_workers_start(s, child);
	af_session_close(s);
}

/**
 * af_fork_failed - the fork has failed: exit_mmap() of the half-made child
 * @s: session
 *
 * Context: may sleep.
 */
void af_fork_failed(struct af_session *s)
{
	af_session_close(s);
	af_pull_abort(s);
}
