// SPDX-License-Identifier: GPL-2.0-only
/*
 * Module parameters, and the switch that the module throws itself
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bug.h>
#include <linux/module.h>
#include <linux/printk.h>

#include "params.h"

bool af_enabled = true;
module_param_named(enabled, af_enabled, bool, 0644);
MODULE_PARM_DESC(enabled, "0: every fork is a stock fork; may be changed at any time");

bool af_park_partial;
module_param_named(park_partial, af_park_partial, bool, 0644);
MODULE_PARM_DESC(park_partial, "1: also park chunks that a VMA covers in part (for tests)");

unsigned int af_max_sessions = 1024;
module_param_named(max_sessions, af_max_sessions, uint, 0644);
MODULE_PARM_DESC(max_sessions, "asynchronous forks at a time; further ones are stock forks");

unsigned int af_max_helpers = AF_MAX_HELPERS;
module_param_named(max_helpers, af_max_helpers, uint, 0644);
MODULE_PARM_DESC(max_helpers, "helper threads that one fork may ask for (up to 8)");

unsigned int af_pull_after = 30;
module_param_named(pull_after, af_pull_after, uint, 0644);
MODULE_PARM_DESC(pull_after, "seconds after which a worker pulls what the child has not; 0: never");

bool af_allow_untested;
module_param_named(allow_untested, af_allow_untested, bool, 0444);
MODULE_PARM_DESC(allow_untested, "1: load on a kernel that the test suite has not passed on");

const char *af_off;

static int state_set(const char *val, const struct kernel_param *kp)
{
	/* Given at load: there is no file to write to. */
	return -EPERM;
}

static int state_get(char *buffer, const struct kernel_param *kp)
{
	const char *why = READ_ONCE(af_off);

	if (why)
		return scnprintf(buffer, PAGE_SIZE, "switched off: %s\n", why);
	return scnprintf(buffer, PAGE_SIZE, "%s\n",
			 READ_ONCE(af_enabled) ? "on" : "off");
}

static const struct kernel_param_ops state_ops = {
	.set	= state_set,
	.get	= state_get,
};

module_param_cb(state, &state_ops, NULL, 0444);
MODULE_PARM_DESC(state, "on, off (enabled=0), or \"switched off: \" and why");

/**
 * af_switch_off - an invariant is broken: no fork is asynchronous from now on
 * @why: what was seen, a literal
 * @addr: user address it was seen at, or 0
 *
 * Running sessions are finished. Only a reload switches on again.
 *
 * Context: any.
 */
void af_switch_off(const char *why, unsigned long addr)
{
	/* The first one says it. */
	if (cmpxchg(&af_off, NULL, why))
		return;
	/*
	 * Not a WARN, which takes the machine down where panic_on_warn is set: what
	 * is broken is contained.
	 */
	pr_crit("%s (at %lx); switched off\n", why, addr);
	dump_stack();
}
