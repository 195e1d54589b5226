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
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/tracepoint.h>

#include "compat/compat.h"
#include "hooks.h"
#include "session.h"
#include "symbols.h"

/*
 * Tasks inside a hook. One that sleeps there has passed a quiescent state of
 * RCU tasks with a return address into this module on its stack, so unload
 * waits for the count as well. Summed up over CPUs: a task may migrate.
 */
static DEFINE_PER_CPU(long, in_hook);

void af_hook_enter(void)
{
	this_cpu_inc(in_hook);
}

void af_hook_leave(void)
{
	this_cpu_dec(in_hook);
}

static bool tasks_in_hooks(void)
{
	long n = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		n += READ_ONCE(per_cpu(in_hook, cpu));
	return n;
}

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

struct af_verdict af_hook_copy_page_range(struct vm_area_struct *dst,
					  struct vm_area_struct *src)
{
	struct af_verdict v;

	af_hook_enter();
	v = af_park(dst, src);
	af_hook_leave();
	return v;
}

/* Under mmap_write_lock(oldmm), before the first VMA is copied. */
void af_hook_uprobe_dup_mmap(struct mm_struct *oldmm, struct mm_struct *newmm)
{
	struct af_session *s;

	af_hook_enter();
	s = af_session_find(oldmm, AF_PARENT, true);
	if (s) {
		af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_FORK, true);
		af_session_put(s);
	}
	af_device_fork(oldmm, newmm);
	af_hook_leave();
}

void af_hook_handle_mm_fault(struct vm_area_struct *vma, unsigned long addr)
{
	/* As handle_mm_fault() does first; a pull may sleep. */
	__set_current_state(TASK_RUNNING);
	af_hook_sync(vma->vm_mm, addr, addr + 1, ASYNCFORK_HOOK_FAULT,
		     true);
}

/* mm_users is 0: nobody can fork this mm any more. */
void af_hook_exit_mmap(struct mm_struct *mm)
{
	struct af_session *s;

	af_hook_enter();
	s = af_session_find(mm, AF_CHILD, false);
	if (s) {
		if (test_bit(AF_CLOSED, &s->flags))
			af_session_abort(s);
		else
			af_session_failed(s);
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
			af_session_abort(s);
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

void af_hook_walk_page_vma(struct vm_area_struct *vma)
{
	af_hook_walk(vma->vm_mm, vma->vm_start, vma->vm_end);
}

/*
 * A migration entry made before the park is looked for now, and only once.
 * The anon_vma root lock of the caller's rmap walk excludes parking. It may
 * be held for write: no reclaim. Nor more memory than anybody else gets:
 * table_alloc().
 */
void af_hook_remove_migration_pte(struct folio *folio,
				  struct vm_area_struct *vma,
				  unsigned long addr)
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
void af_hook_get_dump_page(unsigned long addr)
{
	af_hook_sync(current->mm, addr, addr + 1, ASYNCFORK_HOOK_DUMP, false);
}

/*
 * The ioctl would take a parked page for a hole. It takes mmap_lock itself, so
 * that a fork may park in between: what the ioctl fills then it gets by
 * __pte_alloc(), and with memory that it may move pages to no fork parks
 * (stock_reason()).
 */
void af_hook_userfaultfd_ioctl(struct file *file)
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
void af_hook___pte_alloc(struct mm_struct *mm, pmd_t *slot)
{
	if (af_fault())
		return;
	af_hook_enter();
	af_sync_slot(mm, slot);
	af_hook_leave();
}

struct hook {
	const char *name;
	void (*tramp)(void);		/* address only, never called */
	struct ftrace_ops ops;
	unsigned long ip;
};

#define AF_HOOK(fn)		{ .name = #fn, .tramp = af_tramp_##fn },
#define AF_HOOK_VERDICT(fn)	AF_HOOK(fn)
#define AF_HOOK_ALWAYS(fn)	AF_HOOK(fn)

static struct hook hooks[] = {
#include "compat/hook_list.h"
};

/* Is the ftrace site of the function patched to a call? */
static bool hook_is_live(const struct hook *h)
{
	const u8 *p = (const u8 *)h->ip;

	return p[0] == 0xe8 || p[4] == 0xe8;
}

static int hook_attach(struct hook *h)
{
	int ret;

	h->ip = af_symbol(h->name);
	if (!h->ip)
		return -ENOENT;

	ret = af_ftrace_attach(&h->ops, h->ip, (unsigned long)h->tramp);
	if (ret == -EBUSY)
		pr_err("%s is taken by a livepatch or BPF, or kernel.ftrace_enabled is 0\n",
		       h->name);
	else if (ret)
		pr_err("cannot hook %s: error %d\n", h->name, ret);
	return ret;
}

/*
 * After all are attached: on some kernels a hook can be lost between its
 * registration and the next one's. A lost copy_page_range() parks nothing.
 */
static int hooks_check(void)
{
	struct hook *h;

	for (h = hooks; h < hooks + ARRAY_SIZE(hooks); h++)
		if (!hook_is_live(h)) {
			pr_err("the hook of %s has no effect: is kernel.ftrace_enabled 0?\n",
			       h->name);
			return -ENODEV;
		}
	return 0;
}

/* The hook cannot be taken away: its text is called, and has to stay. */
static void stay(const struct hook *h)
{
	pr_crit_once("cannot unhook %s: ftrace is dead; the module stays until the machine is booted again\n",
		     h->name);
	schedule_timeout_idle(HZ / 4);
}

static void hook_detach(struct hook *h)
{
	while (af_fault())
		stay(h);
	if (af_ftrace_detach(&h->ops, h->ip, (unsigned long)h->tramp))
		for (;;)
			stay(h);
}

static void hooks_detach(unsigned int n)
{
	while (n--)
		hook_detach(&hooks[n]);

	/*
	 * First everybody who is in a trampoline gets as far as the count or
	 * out, then the count drains, then the last instructions are left.
	 */
	synchronize_rcu_tasks();
	while (tasks_in_hooks())
		msleep(20);
	synchronize_rcu_tasks();
}

/* In kernel_clone(), before the child may run; must not sleep. */
static void probe_fork(void *data, struct task_struct *parent,
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
		af_session_forked(s, child);
	af_session_put(s);
}

static struct tracepoint *fork_tracepoint;

static void match_fork(struct tracepoint *tp, void *priv)
{
	if (!strcmp(tp->name, "sched_process_fork"))
		fork_tracepoint = tp;
}

static int probe_attach(void)
{
	for_each_kernel_tracepoint(match_fork, NULL);
	if (!fork_tracepoint) {
		pr_err("tracepoint sched_process_fork not found\n");
		return -ENOENT;
	}
	return tracepoint_probe_register(fork_tracepoint, probe_fork, NULL);
}

static void probe_detach(void)
{
	tracepoint_probe_unregister(fork_tracepoint, probe_fork, NULL);
	tracepoint_synchronize_unregister();
}

/**
 * af_hooks_init - attach every hook, or none
 *
 * Return: 0, or an errno after a line that says what is in the way.
 */
int af_hooks_init(void)
{
	unsigned int n;
	int ret;

	ret = probe_attach();
	if (ret)
		return ret;

	for (n = 0; n < ARRAY_SIZE(hooks); n++) {
		ret = hook_attach(&hooks[n]);
		if (ret)
			goto detach;
	}
	ret = hooks_check();
	if (!ret)
		return 0;

detach:
	hooks_detach(n);
	probe_detach();
	return ret;
}

/* No session and no armed thread is left: they hold the module. */
void af_hooks_exit(void)
{
	hooks_detach(ARRAY_SIZE(hooks));
	probe_detach();
}
