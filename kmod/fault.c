// SPDX-License-Identifier: GPL-2.0-only
/*
 * Make an allocation of the module fail. For tests: built with AF_FAULTS=1.
 */
#include <linux/module.h>
#include <linux/spinlock.h>

#include "session.h"

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
