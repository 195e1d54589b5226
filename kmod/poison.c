// SPDX-License-Identifier: GPL-2.0-only
/*
 * A memory failure finds who has the page by rmap, and looks once
 *
 * The hook wraps memory_failure(): it pulls all that any process has parked, and
 * while the call lasts no fork parks anything. Both are rare enough for that.
 */
#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/seqlock.h>
#include <linux/spinlock.h>

#include "active.h"
#include "fault.h"
#include "hooks.h"
#include "poison.h"
#include "pull.h"
#include "session.h"
#include "symbols.h"

#ifdef CONFIG_MEMORY_FAILURE
struct guard {
	struct list_head node;
	struct task_struct *task;
};

static LIST_HEAD(guards);
static DEFINE_SPINLOCK(guard_lock);	/* for guards */
static atomic_t under_way;		/* their number */

static DEFINE_MUTEX(sweep_mutex);	/* guards sweep and af_session.swept */
static u64 sweep;

static bool guarded_by(struct task_struct *task)
{
	struct guard *g;
	bool found = false;

	spin_lock(&guard_lock);
	list_for_each_entry(g, &guards, node)
		found |= g->task == task;
	spin_unlock(&guard_lock);
	return found;
}

static void guard_add(struct guard *g)
{
	spin_lock(&guard_lock);
	list_add(&g->node, &guards);
	spin_unlock(&guard_lock);
	atomic_inc(&under_way);
}

static void guard_del(struct guard *g)
{
	atomic_dec(&under_way);
	spin_lock(&guard_lock);
	list_del(&g->node);
	spin_unlock(&guard_lock);
}

/*
 * A park_range() that missed the guard had made the seqcount odd before it looked:
 * wait until it is even. Parking takes microseconds; a large copy in the fork, which makes it
 * odd as well, may take longer.
 */
static void wait_for_parking(struct mm_struct *mm)
{
	unsigned int seq = raw_read_seqcount(&mm->write_protect_seq);

	while ((seq & 1) && raw_read_seqcount(&mm->write_protect_seq) == seq)
		schedule_timeout_uninterruptible(1);
}

static void pull_everything(void)
{
	struct af_session *s;

	mutex_lock(&sweep_mutex);
	sweep++;
	while ((s = af_session_unswept(sweep))) {
		wait_for_parking(af_mm(s, AF_PARENT));
		af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_POISON, false);
		af_session_put(s);
	}
	mutex_unlock(&sweep_mutex);
}

AF_HOOK_FN(struct af_verdict, memory_failure, unsigned long pfn, int flags)
{
	struct guard g = { .task = current };
	struct af_verdict v = { .skip = 0 };

	/* A guard of ours: this is the call below. */
	if (guarded_by(current))
		return v;

	/* Our frame stays: an unload waits for the count. */
	af_hook_enter();
	guard_add(&g);
	/* Guard first, then the look at seqcounts: pairs with park_range(). */
	smp_mb__after_atomic();
	pull_everything();
	af_linger();
	v.ret = af_call(memory_failure)(pfn, flags);
	v.skip = 1;
	guard_del(&g);
	af_hook_leave();
	return v;
}

/**
 * af_poison_under_way - may nothing be parked now?
 *
 * To be asked with write_protect_seq odd, behind a full barrier.
 */
bool af_poison_under_way(void)
{
	return atomic_read(&under_way);
}
#else
bool af_poison_under_way(void)
{
	return false;
}
#endif
