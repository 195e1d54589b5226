// SPDX-License-Identifier: GPL-2.0-only
/*
 * Userfaultfd ioctls fill page tables without a fault
 *
 * The hook wraps userfaultfd_ioctl(): it pulls all of the mm before the call,
 * and while the call lasts no fork of that mm parks anything (the ioctl takes
 * mmap_lock itself, so a fork could slip in between).
 */
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/spinlock.h>

#include "compat/compat.h"
#include "hooks.h"
#include "session.h"
#include "symbols.h"

struct guard {
	struct hlist_node node;
	struct mm_struct *mm;
	struct task_struct *task;
};

static DEFINE_HASHTABLE(guards, 6);
static DEFINE_SPINLOCK(guard_lock);	/* for the hash */

/* A guard of @mm, by @task or by anybody? */
static bool guard_exists(struct mm_struct *mm, struct task_struct *task)
{
	struct guard *g;
	bool found = false;

	spin_lock(&guard_lock);
	hash_for_each_possible(guards, g, node, (unsigned long)mm)
		found |= g->mm == mm && (!task || g->task == task);
	spin_unlock(&guard_lock);
	return found;
}

/**
 * af_uffd_guarded - is a userfaultfd ioctl under way on this mm?
 * @mm: mm about to be forked, its session already visible in the hash
 */
bool af_uffd_guarded(struct mm_struct *mm)
{
	/* Session first, then this look; the ioctl does it the other way. */
	smp_mb();
	return guard_exists(mm, NULL);
}

static void sync_all(struct mm_struct *mm)
{
	if (!READ_ONCE(af_active) || !mmget_not_zero(mm))
		return;
	/* A fork that has not seen the guard is over once we get the lock. */
	mmap_read_lock(mm);
	mmap_read_unlock(mm);
	af_sync_range(mm, 0, ULONG_MAX, ASYNCFORK_HOOK_UFFD);
	mmput(mm);
}

struct af_verdict af_hook_userfaultfd_ioctl(struct file *file, unsigned int cmd,
					    unsigned long arg)
{
	struct userfaultfd_ctx *ctx = file->private_data;
	struct guard g = { .mm = ctx->mm, .task = current };
	struct af_verdict v = { .skip = 0 };

	/*
	 * The original may sleep for long with our frame on the stack. A load
	 * that fails frees the module whoever holds it: it waits for the count.
	 */
	af_hook_enter();
	/*
	 * A guard of ours: this is the call below. Else hold the module, so
	 * that rmmod is refused and need not wait. If it is on its way out
	 * there are no sessions.
	 */
	if (guard_exists(g.mm, current) || !try_module_get(THIS_MODULE))
		goto leave;

	spin_lock(&guard_lock);
	hash_add(guards, &g.node, (unsigned long)g.mm);
	spin_unlock(&guard_lock);
	/* Guard first, then the look for sessions: see af_uffd_guarded(). */
	smp_mb();

	sync_all(g.mm);
	v.ret = static_call(af_userfaultfd_ioctl)(file, cmd, arg);
	v.skip = 1;

	spin_lock(&guard_lock);
	hash_del(&g.node);
	spin_unlock(&guard_lock);
	module_put(THIS_MODULE);
leave:
	af_hook_leave();
	return v;
}
