// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who pulls without being asked: the child, helpers, the timeout
 *
 * The child by task work, before its first instruction in user mode; helpers and
 * the timeout by work queue. Each has a reference of the session.
 */
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/task_work.h>
#include <linux/workqueue.h>

#include "params.h"
#include "pull.h"
#include "range.h"
#include "session.h"
#include "workers.h"

static void pull_child(struct af_session *s)
{
	/* In do_exit(), after exit_mm(). */
	if (current->flags & PF_EXITING) {
		af_pull_abort(s);
		return;
	}
	af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_CHILD, false);
	/* After the last chunk; pairs with set_done(), see af_session_doom(). */
	smp_rmb();
	if (test_bit(AF_ABORTED, &s->flags))
		send_sig(SIGKILL, current, 1);
}

static void child_work(struct callback_head *work)
{
	struct af_session *s = container_of(work, struct af_session,
					    child_work);

	pull_child(s);
	af_session_put(s);
}

/* Helper @nr of n starts (nr + 1) / (n + 1) of the way; chunks met are DONE. */
static void helper_work(struct work_struct *work)
{
	struct af_helper *h = container_of(work, struct af_helper, work);
	struct af_session *s = h->session;
	/* The fork is over: nobody replaces s->ranges. */
	struct af_ranges *rs = rcu_dereference_protected(s->ranges, true);

	af_pull_range(s, af_ranges_part(rs, h->nr + 1, s->helpers + 1),
		      ULONG_MAX, ASYNCFORK_HOOK_HELPER, false);
	af_session_put(s);
}

/*
 * The child has not got to it, or there is none: do not keep memory parked
 * without bound. While the fork may still park more, come again.
 */
static void timeout_work(struct work_struct *work)
{
	struct af_session *s = container_of(to_delayed_work(work),
					    struct af_session, timeout);
	/* Before the pull: it pulls all that was parked until then. */
	bool closed = test_bit(AF_CLOSED, &s->flags);
	unsigned long timeout = READ_ONCE(af_pull_after);

	af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_HELPER, false);
	if (!closed && timeout)
		af_session_start_timeout(s, timeout);
	af_session_put(s);
}

const struct af_worker_fns af_worker_fns = {
	.child		= child_work,
	.helper		= helper_work,
	.timeout	= timeout_work,
};

/**
 * af_workers_start - let the child and the helpers pull
 * @s: session, with chunks parked and not closed yet
 * @child: new task, not woken up yet
 *
 * Context: any; the caller's task is in kernel_clone().
 */
void af_workers_start(struct af_session *s, struct task_struct *child)
{
	unsigned int i;

	af_session_hold(s);
	/* Cannot fail: the child has not run, so it is not exiting. */
	if (task_work_add(child, &s->child_work, TWA_RESUME)) {
		af_switch_off("a new child takes no work", 0);
		af_session_put(s);
		af_session_doom(s);
	}
	for (i = 0; i < s->helpers; i++) {
		af_session_hold(s);
		queue_work(af_wq, &s->helper[i].work);
	}
}
