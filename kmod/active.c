// SPDX-License-Identifier: GPL-2.0-only
/*
 * Is the module at work? Sessions and armed threads, and tasks inside a hook
 */
#include <linux/spinlock.h>

#include "active.h"

/*
 * Sessions plus armed threads: zero lets every hook return at once. A hook
 * that must see a session is ordered after its creation by mmap_lock, the VMA's
 * lock or the anon_vma root lock; nothing else needs this counter to be exact.
 */
int af_active __read_mostly;
/*
 * The same for the hook in which sessions begin, and one more while forks that
 * nobody has armed may have one. No other hook pays for that.
 */
int af_fork_active __read_mostly;
static bool unarmed;
static DEFINE_SPINLOCK(active_lock);	/* guards all of them for writers */

static void active_add(int n)
{
	spin_lock(&active_lock);
	WRITE_ONCE(af_active, af_active + n);
	WRITE_ONCE(af_fork_active, af_fork_active + n);
	spin_unlock(&active_lock);
}

void af_active_inc(void)
{
	active_add(1);
}

void af_active_dec(void)
{
	active_add(-1);
}

/**
 * af_active_set_unarmed - may forks that nobody has armed be asynchronous?
 * @on: they may
 */
void af_active_set_unarmed(bool on)
{
	spin_lock(&active_lock);
	WRITE_ONCE(af_fork_active, af_fork_active + on - unarmed);
	unarmed = on;
	spin_unlock(&active_lock);
}

/*
 * Tasks inside a hook. One that sleeps there has passed a quiescent state of
 * RCU tasks with a return address into this module on its stack, so unload
 * waits for the count as well. Summed up over CPUs: a task may migrate.
 */
DEFINE_PER_CPU(long, af_in_hook);

bool af_tasks_in_hooks(void)
{
	long n = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		n += READ_ONCE(per_cpu(af_in_hook, cpu));
	return n;
}
