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

#include <linux/mm.h>
#include <linux/static_call.h>
#include <linux/stringify.h>

#include "compat/compat.h"

DECLARE_STATIC_CALL(af_copy_page_range, copy_page_range);
DECLARE_STATIC_CALL(af_p4d_alloc, __p4d_alloc);
DECLARE_STATIC_CALL(af_pud_alloc, __pud_alloc);
DECLARE_STATIC_CALL(af_pmd_alloc, __pmd_alloc);
DECLARE_STATIC_CALL(af_flush_tlb_mm_range, flush_tlb_mm_range);

DECLARE_STATIC_CALL(af_swap_dup_entry, AF_SWAP_DUP);
#ifdef CONFIG_MEMORY_FAILURE
DECLARE_STATIC_CALL(af_memory_failure, memory_failure);
#endif

extern spinlock_t *af_mmlist_lock;

/* One more sharer of a swap entry; 0 or an errno. Takes spinlocks only. */
static inline int af_swap_dup(pte_t pte)
{
	return static_call(af_swap_dup_entry)(softleaf_from_pte(pte));
}

/* A direct call that the hooks rely on; the list ends with an empty entry. */
struct af_call {
	const char *caller, *callee;
};

extern const struct af_call af_expected_calls[];

/*
 * A member of a struct that the kernel keeps to itself and the module has a
 * copy of; the list ends with an empty entry.
 */
struct af_member {
	const char *type, *member;
	unsigned int offset;	/* bytes, in the copy */
};

extern const struct af_member af_expected_members[];

/* AF_PROTO_name: compat/proto_list.h has a row for it. */
#define AF_PROTO(fn, text)	AF_PROTO_##fn,

enum af_proto_row {
#include "compat/proto_list.h"
};

#undef AF_PROTO

/*
 * Point a static call at the kernel's function; false: there is none. @fn: its
 * name, or a macro for it.
 */
#define AF_RESOLVE(key, fn)						\
({									\
	static_assert(__PASTE(AF_PROTO_, fn) >= 0);			\
	unsigned long addr_ = af_symbol(__stringify(fn));		\
									\
	if (addr_)							\
		static_call_update(key, (void *)addr_);			\
	addr_;								\
})

unsigned long af_symbol(const char *name);
int af_symbols_init(void);
int af_symbols_check_calls(void);

#endif /* _AF_SYMBOLS_H */
