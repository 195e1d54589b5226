// SPDX-License-Identifier: GPL-2.0-only
/*
 * Userfaultfd ioctls fill page tables without a fault
 *
 * The hook wraps userfaultfd_ioctl(): it pulls all of the mm before the call,
 * and while the call lasts no fork of that mm parks anything (the ioctl takes
 * mmap_lock itself, so a fork could slip in between).
 */
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/spinlock.h>

#include "compat/compat.h"
#include "hooks.h"
#include "session.h"
#include "symbols.h"

struct guard {
	struct list_head node;
	struct mm_struct *mm;
	struct task_struct *task;
};

static LIST_HEAD(guards);
static DEFINE_SPINLOCK(guard_lock);

/* Is this our own call of the original? */
static bool is_nested(void)
{
	struct guard *g;
	bool nested = false;

	spin_lock(&guard_lock);
	list_for_each_entry(g, &guards, node)
		nested |= g->task == current;
	spin_unlock(&guard_lock);
	return nested;
}

/**
 * af_uffd_guarded - is a userfaultfd ioctl under way on this mm?
 * @mm: mm about to be forked, its session already visible in the hash
 */
bool af_uffd_guarded(struct mm_struct *mm)
{
	struct guard *g;
	bool found = false;

	/* Session first, then this look; the ioctl does it the other way. */
	smp_mb();
	spin_lock(&guard_lock);
	list_for_each_entry(g, &guards, node)
		found |= g->mm == mm;
	spin_unlock(&guard_lock);
	return found;
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
	struct af_userfaultfd_ctx *ctx = file->private_data;
	struct guard g = { .mm = ctx->mm, .task = current };
	struct af_verdict v = { .skip = 0 };

	/*
	 * The original may sleep for long with our frame on the stack: hold
	 * the module. If it is on its way out there are no sessions.
	 */
	if (is_nested() || !try_module_get(THIS_MODULE))
		return v;

	spin_lock(&guard_lock);
	list_add(&g.node, &guards);
	spin_unlock(&guard_lock);
	/* Guard first, then the look for sessions: see af_uffd_guarded(). */
	smp_mb();

	sync_all(g.mm);
	v.ret = static_call(af_userfaultfd_ioctl)(file, cmd, arg);
	v.skip = 1;

	spin_lock(&guard_lock);
	list_del(&g.node);
	spin_unlock(&guard_lock);
	module_put(THIS_MODULE);
	return v;
}
