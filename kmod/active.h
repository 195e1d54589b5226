/* SPDX-License-Identifier: GPL-2.0-only */
/* Is the module at work? Sessions and armed threads, and tasks inside a hook */
#ifndef _AF_ACTIVE_H
#define _AF_ACTIVE_H

#include <linux/percpu.h>

extern int af_active;
extern int af_fork_active;
DECLARE_PER_CPU(long, af_in_hook);

static inline void af_hook_enter(void)
{
	this_cpu_inc(af_in_hook);
}

static inline void af_hook_leave(void)
{
	this_cpu_dec(af_in_hook);
}

void af_active_inc(void);
void af_active_dec(void);
void af_active_set_unarmed(bool on);
bool af_tasks_in_hooks(void);

#endif /* _AF_ACTIVE_H */
