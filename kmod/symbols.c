// SPDX-License-Identifier: GPL-2.0-only
/*
 * Find unexported symbols, check what the hooks rely on
 *
 * Called once from module init. kallsyms_lookup_name() is found with a kprobe
 * that is registered and removed at once, everything else with it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/sizes.h>

#include "compat/compat.h"
#include "symbols.h"

typedef unsigned long lookup_name_t(const char *name);
typedef int lookup_size_t(unsigned long addr, unsigned long *size,
			  unsigned long *offset);

DEFINE_STATIC_CALL_NULL(lookup_name, lookup_name_t);
DEFINE_STATIC_CALL_NULL(lookup_size, lookup_size_t);

DEFINE_STATIC_CALL_NULL(af_copy_page_range, copy_page_range);
DEFINE_STATIC_CALL_NULL(af_p4d_alloc, __p4d_alloc);
DEFINE_STATIC_CALL_NULL(af_pud_alloc, __pud_alloc);
DEFINE_STATIC_CALL_NULL(af_pmd_alloc, __pmd_alloc);
DEFINE_STATIC_CALL_NULL(af_flush_tlb_mm_range, flush_tlb_mm_range);
DEFINE_STATIC_CALL_NULL(af_userfaultfd_ioctl, af_userfaultfd_ioctl_t);

/* The kernel's list of mms with swap entries. */
spinlock_t *af_mmlist_lock;

/**
 * af_symbol - address of a kernel symbol
 * @name: its name
 *
 * Return: the address, 0 with a line in the log if there is none.
 */
unsigned long af_symbol(const char *name)
{
	unsigned long addr = static_call(lookup_name)(name);

	if (!addr)
		pr_err("kernel symbol %s not found\n", name);
	return addr;
}

static unsigned long kprobe_address(const char *name)
{
	struct kprobe kp = { .symbol_name = name };
	unsigned long addr;
	int ret;

	ret = register_kprobe(&kp);
	if (ret) {
		pr_err("kprobe on %s: error %d\n", name, ret);
		return 0;
	}
	addr = (unsigned long)kp.addr;
	unregister_kprobe(&kp);
	/* The probe may have been placed behind the ENDBR. */
	return ALIGN_DOWN(addr, 16);
}

#define RESOLVE(key, name)						\
({									\
	unsigned long addr_ = af_symbol(name);				\
									\
	if (addr_)							\
		static_call_update(key, (void *)addr_);			\
	addr_;								\
})

/**
 * af_symbols_init - resolve every symbol that the module calls
 *
 * Return: 0, or -ENOENT after naming the symbol that is missing.
 */
int af_symbols_init(void)
{
	unsigned long addr = kprobe_address("kallsyms_lookup_name");

	if (!addr)
		return -ENOENT;
	static_call_update(lookup_name, (void *)addr);

	if (!RESOLVE(lookup_size, "kallsyms_lookup_size_offset") ||
	    !RESOLVE(af_copy_page_range, "copy_page_range") ||
	    !RESOLVE(af_p4d_alloc, "__p4d_alloc") ||
	    !RESOLVE(af_pud_alloc, "__pud_alloc") ||
	    !RESOLVE(af_pmd_alloc, "__pmd_alloc") ||
	    !RESOLVE(af_flush_tlb_mm_range, "flush_tlb_mm_range") ||
	    !RESOLVE(af_userfaultfd_ioctl, "userfaultfd_ioctl"))
		return -ENOENT;

	af_mmlist_lock = (spinlock_t *)af_symbol("mmlist_lock");
	return af_mmlist_lock ? 0 : -ENOENT;
}

/* Does @caller hold a CALL or JMP rel32 to @callee? */
static bool calls(unsigned long caller, unsigned long callee)
{
	unsigned long size, offset, ip, target;
	s32 offset32;

	if (!static_call(lookup_size)(caller, &size, &offset) ||
	    offset || size > SZ_64K)
		return false;

	for (ip = caller; ip + 5 <= caller + size; ip++) {
		u8 op = *(u8 *)ip;

		if (op != 0xe8 && op != 0xe9)
			continue;
		memcpy(&offset32, (void *)(ip + 1), sizeof(offset32));
		target = ip + 5 + offset32;
		/* A direct call may be linked to behind the ENDBR. */
		if (target == callee || target == callee + 4)
			return true;
	}
	return false;
}

/**
 * af_symbols_check_calls - do the hooked functions get called where expected?
 *
 * A caller into which the compiler inlined the hooked function would bypass
 * the hook, and memory would be lost.
 *
 * Return: 0, or -ENOEXEC after naming the call that is missing.
 */
int af_symbols_check_calls(void)
{
	const struct af_call *c;
	unsigned long caller, callee;

	for (c = af_expected_calls; c->caller; c++) {
		caller = af_symbol(c->caller);
		callee = af_symbol(c->callee);
		if (!caller || !callee)
			return -ENOENT;
		if (!calls(caller, callee)) {
			pr_err("%s does not call %s in this kernel\n",
			       c->caller, c->callee);
			return -ENOEXEC;
		}
	}
	return 0;
}
