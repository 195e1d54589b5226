// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attach the hooks to the kernel, and take them away
 *
 * All of them or none. After a hook is taken away tasks may still be inside its
 * code: hooks_detach().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/tracepoint.h>

#include "active.h"
#include "attach.h"
#include "compat/compat.h"
#include "fault.h"
#include "hooks.h"
#include "symbols.h"

/* tramp.S: addresses only, never called from C. */
#define AF_HOOK(kind, fn)	void af_tramp_##fn(void);
#include "compat/hook_list.h"
#undef AF_HOOK

struct hook {
	const char *name;
	void (*tramp)(void);		/* address only, never called */
	struct ftrace_ops ops;
	unsigned long ip;
};

#define AF_HOOK(kind, fn)	{ .name = #fn, .tramp = af_tramp_##fn },

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
	while (af_tasks_in_hooks())
		msleep(20);
	synchronize_rcu_tasks();
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
	return tracepoint_probe_register(fork_tracepoint, af_probe_fork, NULL);
}

static void probe_detach(void)
{
	tracepoint_probe_unregister(fork_tracepoint, af_probe_fork, NULL);
	tracepoint_synchronize_unregister();
}

/**
 * af_hooks_attach - attach every hook, or none
 *
 * Return: 0, or an errno after a line that says what is in the way.
 */
int af_hooks_attach(void)
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

/*
 * No session and no armed thread is left: they hold the module. None can begin any
 * more either: of a module that goes, af_session_create() gets no reference; and of
 * a load that is given up there was no device, and af_enroll_start() has not run.
 */
void af_hooks_detach(void)
{
	hooks_detach(ARRAY_SIZE(hooks));
	probe_detach();
}
