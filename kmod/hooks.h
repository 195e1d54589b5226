/* SPDX-License-Identifier: GPL-2.0-only */
/* What runs before the kernel functions that must not meet a parked chunk */
#ifndef _AF_HOOKS_H
#define _AF_HOOKS_H

#include <linux/mm_types.h>

#include "uapi/asyncfork.h"

/* Of a hook that may run in place of its function. */
struct af_verdict {
	long ret;		/* RAX: what the hooked function returns */
	unsigned long skip;	/* RDX: nonzero: do not run it */
};

/*
 * Defines af_hook_FN(). Only tramp.S calls it, so the prototype is given here and
 * in no header.
 */
#define AF_HOOK_FN(type, fn, ...)					\
	type af_hook_##fn(__VA_ARGS__);					\
	type af_hook_##fn(__VA_ARGS__)

struct task_struct;

void af_probe_fork(void *data, struct task_struct *parent,
		   struct task_struct *child);
void af_hook_sync(struct mm_struct *mm, unsigned long start, unsigned long end,
		  enum asyncfork_hook hook, bool locked);
void af_hook_unmap(struct mm_struct *mm, unsigned long start,
		   unsigned long end);
void af_hook_zap(struct vm_area_struct *vma, unsigned long addr,
		 unsigned long size);
void af_hook_move(struct mm_struct *mm, unsigned long old, unsigned long new,
		  unsigned long len);
void af_hook_walk(struct mm_struct *mm, unsigned long start,
		  unsigned long end);

#endif /* _AF_HOOKS_H */
