// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tasks inside a hook
 *
 * One that sleeps there has passed a quiescent state of RCU tasks with a return
 * address into this module on its stack, so unload waits for the count as well.
 * Summed up over CPUs: a task may migrate.
 */
#include <linux/percpu.h>

#include "busy.h"

static DEFINE_PER_CPU(long, in_hook);

void af_hook_enter(void)
{
	this_cpu_inc(in_hook);
}

void af_hook_leave(void)
{
	this_cpu_dec(in_hook);
}

/* Is a task inside a hook? */
bool af_hooks_busy(void)
{
	long n = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		n += READ_ONCE(per_cpu(in_hook, cpu));
	return n;
}
