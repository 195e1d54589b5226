/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls of kernel functions that are not exported
 *
 * Always through a static call: the call is patched to a direct one. Calling
 * through a plain pointer is a fatal #CP on kernels that seal the ENDBR of
 * functions whose address is never taken (CONFIG_X86_KERNEL_IBT).
 */
#ifndef _AF_SYMBOLS_H
#define _AF_SYMBOLS_H

#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/kallsyms.h>
#include <linux/mm.h>
#include <linux/static_call.h>
#include <linux/stringify.h>

#include "compat/compat.h"

#define AF_CALL(stage, fn)	DECLARE_STATIC_CALL(af_call_##fn, fn);
#include "compat/call_list.h"
#undef AF_CALL

/* @fn: a function of compat/call_list.h, or a macro for its name */
#define af_call(fn)	static_call(__PASTE(af_call_, fn))

extern spinlock_t *af_mmlist_lock;

/* One more sharer of a swap entry; 0 or an errno. Takes spinlocks only. */
static inline int af_swap_dup(pte_t pte)
{
	return af_call(AF_SWAP_DUP)(softleaf_from_pte(pte));
}

/*
 * A direct call that the hooks rely on, in one of the callers: which of them the
 * compiler inlined into which differs. The list ends with an empty entry.
 */
struct af_expected_call {
	const char *callers[3], *callee;
};

extern const struct af_expected_call af_expected_calls[];

/*
 * A member of a struct that the kernel keeps to itself and the module has a
 * copy of; the list ends with an empty entry.
 */
struct af_expected_member {
	const char *type, *member;
	unsigned int offset;	/* bytes, in the copy */
};

extern const struct af_expected_member af_expected_members[];

unsigned long af_symbol(const char *name);
int af_symbols_init(void);
int af_symbols_check_calls(void);

#endif /* _AF_SYMBOLS_H */
