// SPDX-License-Identifier: GPL-2.0-only
/*
 * Make an allocation of the module fail, a task stay where it is, the module switch
 * itself off, speak another ABI, or miss a hook. For tests: built with AF_FAULTS=1.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "fault.h"
#include "params.h"

static DEFINE_SPINLOCK(fault_lock);	/* guards the two below */
static unsigned int skip;
static unsigned int fail;

module_param_named(fault_skip, skip, uint, 0644);
MODULE_PARM_DESC(fault_skip, "allocations that still succeed");
module_param_named(fault_count, fail, uint, 0644);
MODULE_PARM_DESC(fault_count, "allocations that fail after those");

/**
 * af_fault - shall the allocation that the caller is about to make fail?
 */
bool af_fault(void)
{
	bool ret = false;

	spin_lock(&fault_lock);
	if (fail && skip) {
		skip--;
	} else if (fail) {
		fail--;
		ret = true;
	}
	spin_unlock(&fault_lock);
	return ret;
}

static int switch_off_set(const char *val, const struct kernel_param *kp)
{
	af_switch_off("a test asked for it", 0);
	return 0;
}

static const struct kernel_param_ops switch_off_ops = {
	.set	= switch_off_set,
};

module_param_cb(fault_switch_off, &switch_off_ops, NULL, 0200);
MODULE_PARM_DESC(fault_switch_off, "written to: the module switches itself off");

static unsigned int abi;
static unsigned int oldest;

module_param_named(fault_abi, abi, uint, 0444);
MODULE_PARM_DESC(fault_abi, "ABI that the module says it speaks; 2: and does");
module_param_named(fault_abi_oldest, oldest, uint, 0444);
MODULE_PARM_DESC(fault_abi_oldest, "oldest ABI whose callers it says it serves");

/**
 * af_fault_abi - which ABI is the module to speak?
 * @own: its own
 */
unsigned int af_fault_abi(unsigned int own)
{
	return abi ?: own;
}

/**
 * af_fault_oldest - of which ABI are the oldest callers that it is to serve?
 * @own: of those that it does
 */
unsigned int af_fault_oldest(unsigned int own)
{
	return oldest ?: own;
}

static int dead_hook = -1;

module_param_named(fault_hook, dead_hook, int, 0444);
MODULE_PARM_DESC(fault_hook, "number in enum asyncfork_hook of one that does nothing");

/**
 * af_fault_hook - shall this hook do nothing?
 * @hook: enum asyncfork_hook
 */
bool af_fault_hook(int hook)
{
	return hook == dead_hook;
}

static int linger_pid;
static unsigned int linger_ms;
static char linger_in[32];
static int lingering;

module_param_string(fault_linger_in, linger_in, sizeof(linger_in), 0644);
MODULE_PARM_DESC(fault_linger_in, "function of the module in which a task lingers");
module_param_named(fault_linger_pid, linger_pid, int, 0644);
MODULE_PARM_DESC(fault_linger_pid, "task that lingers, by its number in the first pid namespace");
module_param_named(fault_linger_ms, linger_ms, uint, 0644);
MODULE_PARM_DESC(fault_linger_ms, "most milliseconds of its own time that it lingers");
module_param_named(fault_lingering, lingering, int, 0444);
MODULE_PARM_DESC(fault_lingering, "the task that lingers now, or 0");

/**
 * af_linger_in - a place in which a test wants a task to be for a while
 * @place: the function
 *
 * Processor time counts, not the clock: a task that is not scheduled stays. It
 * reschedules where preemption is allowed. The test ends it early by naming another task, or none.
 */
void af_linger_in(const char *place)
{
	int pid = task_pid_nr(current);
	unsigned int ms;

	if (pid != READ_ONCE(linger_pid) || !sysfs_streq(place, linger_in))
		return;
	WRITE_ONCE(lingering, pid);
	for (ms = READ_ONCE(linger_ms); ms && pid == READ_ONCE(linger_pid); ms--) {
		mdelay(1);
		if (preemptible())
			cond_resched();
	}
	WRITE_ONCE(lingering, 0);
}
