// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load and unload
 *
 * Loading either attaches every hook or refuses with one line that says why.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/utsname.h>
#include <asm/cpufeature.h>

#include "attach.h"
#include "compat/compat.h"
#include "copy.h"
#include "device.h"
#include "enroll.h"
#include "params.h"
#include "session.h"
#include "symbols.h"

/* The hooks that this kernel cannot have, as words for the log. */
#define AF_HOOK(kind, fn)
#define AF_NO_HOOK(fn, option)	"; no " #fn " hook: " #option " is off"

static const char left_out[] __initconst = ""
#include "compat/hook_list.h"
	;

#undef AF_HOOK

static int __init af_init(void)
{
	int ret;

	if (cpu_feature_enabled(X86_FEATURE_XENPV)) {
		pr_err("Xen PV guests pin page tables: not supported\n");
		return -EOPNOTSUPP;
	}
	if (!af_release_tested(init_utsname()->release) &&
	    !af_allow_untested) {
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
	ret = af_ptlock_init();
	if (ret)
		return ret;
	af_copy_init();
	ret = af_session_init();
	if (ret)
		return ret;
	ret = af_hooks_attach();
	if (ret)
		goto exit_session;
	ret = af_device_init();
	if (ret)
		goto detach;
	/* Nothing fails any more. */
	af_enroll_start();

	pr_info("loaded, ABI version %d%s\n", ASYNCFORK_ABI_VERSION, left_out);
	return 0;

detach:
	af_hooks_detach();
exit_session:
	af_session_exit();
	return ret;
}

/* Sessions and open descriptors hold the module; enrolled cgroups do not. */
static void __exit af_exit(void)
{
	af_enroll_stop();
	af_device_exit();
	af_hooks_detach();
	af_session_exit();
}

module_init(af_init);
module_exit(af_exit);

MODULE_DESCRIPTION("fork() without the page table copy: the child copies, the parent pulls on demand");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
