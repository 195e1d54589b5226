// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load, unload, module parameters, the off switch
 *
 * Loading either attaches every hook or refuses with one line that says why.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/utsname.h>
#include <asm/cpufeature.h>

#include "compat/compat.h"
#include "hooks.h"
#include "session.h"
#include "symbols.h"

bool af_enabled = true;
module_param_named(enabled, af_enabled, bool, 0644);
MODULE_PARM_DESC(enabled, "0: every fork is a stock fork; may be changed at any time");

bool af_park_partial;
module_param_named(park_partial, af_park_partial, bool, 0644);
MODULE_PARM_DESC(park_partial, "1: also park chunks that a VMA covers in part (for tests)");

unsigned int af_max_sessions = 1024;
module_param_named(max_sessions, af_max_sessions, uint, 0644);
MODULE_PARM_DESC(max_sessions, "asynchronous forks at a time; more fork as ever");

unsigned int af_max_helpers = AF_MAX_HELPERS;
module_param_named(max_helpers, af_max_helpers, uint, 0644);
MODULE_PARM_DESC(max_helpers, "helper threads that one fork may ask for (up to 8)");

unsigned int af_pull_after = 30;
module_param_named(pull_after, af_pull_after, uint, 0644);
MODULE_PARM_DESC(pull_after, "seconds after which a worker pulls what the child has not; 0: never");

static bool allow_untested;
module_param(allow_untested, bool, 0444);
MODULE_PARM_DESC(allow_untested, "1: load on a kernel that the test suite has not passed on");

bool af_off;

/**
 * af_switch_off - an invariant is broken: no fork is asynchronous from now on
 * @why: what was seen
 * @addr: user address it was seen at
 *
 * Running sessions are finished. Only a reload switches on again.
 */
void af_switch_off(const char *why, unsigned long addr)
{
	WRITE_ONCE(af_off, true);
	WARN_ONCE(1, "asyncfork: %s (at %lx); switched off\n", why, addr);
}

static int __init af_init(void)
{
	int ret;

	if (cpu_feature_enabled(X86_FEATURE_XENPV)) {
		pr_err("Xen PV guests pin page tables: not supported\n");
		return -EOPNOTSUPP;
	}
	if (!af_release_tested(init_utsname()->release) && !allow_untested) {
		pr_err("not tested on kernel %s (allow_untested=1 loads anyway, if the self-check passes)\n",
		       init_utsname()->release);
		return -EOPNOTSUPP;
	}

	ret = af_symbols_init();
	if (ret)
		return ret;
	ret = af_symbols_check_calls();
	if (ret)
		return ret;
	af_copy_init();
	ret = af_session_init();
	if (ret)
		return ret;
	ret = af_hooks_init();
	if (ret)
		goto exit_session;
	ret = af_device_init();
	if (ret)
		goto exit_hooks;

	pr_info("loaded, ABI version %d\n", ASYNCFORK_ABI_VERSION);
	return 0;

exit_hooks:
	af_hooks_exit();
exit_session:
	af_session_exit();
	return ret;
}

/* Sessions and open descriptors hold the module. */
static void __exit af_exit(void)
{
	af_device_exit();
	af_hooks_exit();
	af_session_exit();
}

module_init(af_init);
module_exit(af_exit);

MODULE_DESCRIPTION("fork() without the page table copy: the child copies, the parent pulls on demand");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
