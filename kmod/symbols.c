// SPDX-License-Identifier: GPL-2.0-only
/*
 * Find unexported symbols, check what the module relies on
 *
 * Called once from module init. kallsyms_lookup_name() is found with a kprobe
 * that is registered and removed at once, everything else with it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bpf.h>
#include <linux/btf.h>
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
DEFINE_STATIC_CALL_NULL(get_btf, bpf_get_btf_vmlinux);
DEFINE_STATIC_CALL_NULL(btf_find, btf_find_by_name_kind);
DEFINE_STATIC_CALL_NULL(btf_name, btf_name_by_offset);

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

	if (!AF_RESOLVE(lookup_size, "kallsyms_lookup_size_offset") ||
	    !AF_RESOLVE(get_btf, "bpf_get_btf_vmlinux") ||
	    !AF_RESOLVE(btf_find, "btf_find_by_name_kind") ||
	    !AF_RESOLVE(btf_name, "btf_name_by_offset") ||
	    !AF_RESOLVE(af_copy_page_range, "copy_page_range") ||
	    !AF_RESOLVE(af_p4d_alloc, "__p4d_alloc") ||
	    !AF_RESOLVE(af_pud_alloc, "__pud_alloc") ||
	    !AF_RESOLVE(af_pmd_alloc, "__pmd_alloc") ||
	    !AF_RESOLVE(af_flush_tlb_mm_range, "flush_tlb_mm_range") ||
	    !AF_RESOLVE(af_userfaultfd_ioctl, "userfaultfd_ioctl"))
		return -ENOENT;

	af_mmlist_lock = (spinlock_t *)af_symbol("mmlist_lock");
	return af_mmlist_lock ? af_ptlock_resolve() : -ENOENT;
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
		/*
		 * A direct call may be linked to behind the ENDBR, and call
		 * depth tracking makes it go through the padding before.
		 */
		if (target >= callee - AF_CALL_PADDING && target <= callee + 4)
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

static bool member_fits(const struct btf *btf, const struct af_member *m)
{
	s32 id = static_call(btf_find)(btf, m->type, BTF_KIND_STRUCT);
	const struct btf_member *member;
	const struct btf_type *t;
	const char *name;
	u32 i;

	if (id < 0)
		return false;
	t = btf_type_by_id(btf, id);
	for_each_member(i, t, member) {
		name = static_call(btf_name)(btf, member->name_off);
		if (!strcmp(name, m->member))
			return __btf_member_bit_offset(t, member) ==
			       m->offset * BITS_PER_BYTE;
	}
	return false;
}

/**
 * af_symbols_check_members - are the kernel's structs like our copies?
 *
 * A point release may change what its headers do not show. The kernel's own
 * type information (BTF) tells.
 *
 * Return: 0, or -ENOEXEC after naming what differs.
 */
int af_symbols_check_members(void)
{
	const struct af_member *m = af_expected_members;
	struct btf *btf;

	if (!m->type)
		return 0;
	btf = static_call(get_btf)();
	if (IS_ERR_OR_NULL(btf)) {
		pr_err("this kernel has no type information (CONFIG_DEBUG_INFO_BTF)\n");
		return -ENOEXEC;
	}
	for (; m->type; m++)
		if (!member_fits(btf, m)) {
			pr_err("struct %s, member %s is not where it was in the tested kernels\n",
			       m->type, m->member);
			return -ENOEXEC;
		}
	return 0;
}
