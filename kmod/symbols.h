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

#include "compat/compat.h"

DECLARE_STATIC_CALL(af_copy_page_range, copy_page_range);
DECLARE_STATIC_CALL(af_p4d_alloc, __p4d_alloc);
DECLARE_STATIC_CALL(af_pud_alloc, __pud_alloc);
DECLARE_STATIC_CALL(af_pmd_alloc, __pmd_alloc);
DECLARE_STATIC_CALL(af_flush_tlb_mm_range, flush_tlb_mm_range);

typedef long af_userfaultfd_ioctl_t(struct file *file, unsigned int cmd,
				    unsigned long arg);
DECLARE_STATIC_CALL(af_userfaultfd_ioctl, af_userfaultfd_ioctl_t);

extern spinlock_t *af_mmlist_lock;

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

/* Point a static call at the kernel's function; false: there is none. */
#define AF_RESOLVE(key, name)						\
({									\
	unsigned long addr_ = af_symbol(name);				\
									\
	if (addr_)							\
		static_call_update(key, (void *)addr_);			\
	addr_;								\
})

unsigned long af_symbol(const char *name);
int af_symbols_init(void);
int af_symbols_check_calls(void);
int af_symbols_check_members(void);

#endif /* _AF_SYMBOLS_H */
