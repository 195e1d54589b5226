// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel functions that must not meet a parked chunk
 *
 * Each hook runs before its function, in the caller's context, and may sleep.
 * Invariant: when the function goes on, no chunk of its range is parked, and
 * no fork can park it again: the caller holds mmap_lock, the VMA's lock or the
 * anon_vma root lock, or nobody else has this mm (exit, core dump), or a guard
 * (poison.c).
 */
#include <linux/sched.h>
#include <linux/sched/mm.h>

#include "active.h"
#include "compat/compat.h"
#include "compat/private.h"
#include "fault.h"
#include "fork.h"
#include "hooks.h"
#include "park.h"
#include "pull.h"
#include "session.h"

/**
 * af_hook_sync - what most hooks do: pull what is parked of [start, end)
 * @mm: parent or child of any number of sessions
 * @start: first address
 * @end: end address
 * @hook: who asks
 * @locked: mmap_lock of @mm is held, or the lock of the VMA with this range
 */
void af_hook_sync(struct mm_struct *mm, unsigned long start, unsigned long end,
		  enum asyncfork_hook hook, bool locked)
{
	af_hook_enter();
	af_sync_range(mm, start, end, hook, locked);
	af_hook_leave();
}

AF_HOOK_FN(struct af_verdict, copy_page_range, struct vm_area_struct *dst,
	   struct vm_area_struct *src)
{
	struct af_verdict v = {};

	af_hook_enter();
	v.skip = af_park(dst, src, &v.ret);
	af_hook_leave();
	return v;
}

/*
 * Under mmap_write_lock(oldmm), before the first VMA is copied. Without sessions
 * and armed threads only while forks may be asynchronous that nobody has armed;
 * if this is one of them, its session lets the other hooks in (af_active).
 */
AF_HOOK_FN(void, uprobe_dup_mmap, struct mm_struct *oldmm,
	   struct mm_struct *newmm)
{
	struct af_session *s;

	af_hook_enter();
	s = af_session_find(oldmm, AF_PARENT, true);
	if (s) {
		af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_FORK, true);
		af_session_put(s);
	}
	af_fork_begin(oldmm, newmm);
	af_hook_leave();
}

AF_HOOK_FN(void, handle_mm_fault, struct vm_area_struct *vma,
	   unsigned long addr)
{
	/* As handle_mm_fault() does first; a pull may sleep. */
	__set_current_state(TASK_RUNNING);
	af_hook_sync(vma->vm_mm, addr, addr + 1, ASYNCFORK_HOOK_FAULT,
		     true);
}

/* mm_users is 0: nobody can fork this mm any more. */
AF_HOOK_FN(void, exit_mmap, struct mm_struct *mm)
{
	struct af_session *s;

	af_hook_enter();
	s = af_session_find(mm, AF_CHILD, false);
	if (s) {
		if (test_bit(AF_CLOSED, &s->flags))
			af_pull_abort(s);
		else
			af_fork_failed(s);
		af_session_put(s);
	}
	/*
	 * The child is entitled to its image, whatever the parent does. No
	 * thread of it is in a fork, which is as good as its mmap_lock.
	 */
	af_sync_range(mm, 0, ULONG_MAX, ASYNCFORK_HOOK_EXIT, true);
	af_hook_leave();
}

/* The mm may be a child whose fork fails: some kernels clean up there. */
void af_hook_unmap(struct mm_struct *mm, unsigned long start,
		   unsigned long end)
{
	struct af_session *s;

	af_hook_enter();
	s = af_session_find(mm, AF_CHILD, true);
	if (s) {
		if (!test_bit(AF_CLOSED, &s->flags))
			af_pull_abort(s);
		af_session_put(s);
	}
	af_sync_range(mm, start, end, ASYNCFORK_HOOK_UNMAP, true);
	af_hook_leave();
}

void af_hook_zap(struct vm_area_struct *vma, unsigned long addr,
		 unsigned long size)
{
	bool locked = vma_is_anonymous(vma);
	unsigned int noreclaim = 0;

	/*
	 * A file's truncation holds i_mmap_rwsem, which reclaim takes, and no
	 * lock of the mm. Such a VMA is never parked, but a partial chunk may
	 * reach into it.
	 */
	if (!locked)
		noreclaim = memalloc_noreclaim_save();
	af_hook_sync(vma->vm_mm, addr, addr + size, ASYNCFORK_HOOK_ZAP, locked);
	if (!locked)
		memalloc_noreclaim_restore(noreclaim);
}

/* The target as well: a partial chunk may reach into it. */
void af_hook_move(struct mm_struct *mm, unsigned long old, unsigned long new,
		  unsigned long len)
{
	af_hook_sync(mm, old, old + len, ASYNCFORK_HOOK_MREMAP, true);
	af_hook_sync(mm, new, new + len, ASYNCFORK_HOOK_MREMAP, true);
}

/* Reclaim's walks (MGLRU aging) may skip parked chunks and must not allocate. */
static bool walk_is_reclaim(void)
{
	return current->flags & PF_MEMALLOC;
}

void af_hook_walk(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	if (!walk_is_reclaim())
		af_hook_sync(mm, start, end, ASYNCFORK_HOOK_WALK, true);
}

AF_HOOK_FN(void, walk_page_vma, struct vm_area_struct *vma)
{
	af_hook_walk(vma->vm_mm, vma->vm_start, vma->vm_end);
}

/*
 * The end of a migration: an entry made before the park is searched for once, now.
 * The anon_vma root lock of the caller's rmap walk excludes parking. It may
 * be held for write: no reclaim. Nor more memory than anybody else gets:
 * table_alloc().
 */
AF_HOOK_FN(void, remove_migration_pte, struct folio *folio,
	   struct vm_area_struct *vma, unsigned long addr)
{
	unsigned int noreclaim = memalloc_noreclaim_save();

	af_hook_sync(vma->vm_mm, addr, addr + folio_size(folio),
		     ASYNCFORK_HOOK_MIGRATION, false);
	memalloc_noreclaim_restore(noreclaim);
}

/*
 * FOLL_DUMP takes an empty PMD for a hole, without a fault. The other threads
 * are stopped, and an mm that other processes share is never parked.
 */
AF_HOOK_FN(void, get_dump_page, unsigned long addr)
{
	af_hook_sync(current->mm, addr, addr + 1, ASYNCFORK_HOOK_DUMP, false);
}

/*
 * The ioctl would take a parked page for a hole. It takes mmap_lock itself, so
 * that a fork may park in between: what the ioctl fills then it gets by
 * __pte_alloc(), and with memory that it may move pages to no fork parks
 * (stock_reason()).
 */
AF_HOOK_FN(void, userfaultfd_ioctl, struct file *file)
{
	struct userfaultfd_ctx *ctx = file->private_data;
	struct mm_struct *mm = ctx->mm;

	if (af_fault() || !mmget_not_zero(mm))
		return;
	af_hook_enter();
	af_sync_range(mm, 0, ULONG_MAX, ASYNCFORK_HOOK_UFFD, false);
	mmput(mm);
	af_hook_leave();
}

/*
 * Whoever puts a table into an empty slot, a driver's mmap or somebody that the
 * other hooks do not know, gets the parked one: the function looks again.
 */
AF_HOOK_FN(void, __pte_alloc, struct mm_struct *mm, pmd_t *slot)
{
	if (af_fault())
		return;
	af_hook_enter();
	af_sync_slot(mm, slot);
	af_hook_leave();
}

/*
 * Of the tracepoint sched_process_fork: in kernel_clone(), before the child may
 * run; must not sleep.
 */
void af_probe_fork(void *data, struct task_struct *parent,
		   struct task_struct *child)
{
	struct af_session *s;

	if (!READ_ONCE(af_active) || !child->mm)
		return;
	s = af_session_find(child->mm, AF_CHILD, false);
	if (!s)
		return;
	af_linger();
	if (!test_bit(AF_CLOSED, &s->flags))
		af_fork_done(s, child);
	af_session_put(s);
}
