// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module expects to find in this kernel, beyond prototypes; symbols.c
 * looks
 */
#include "compat.h"
#include "private.h"
#include "../symbols.h"

/* Where dup_mmap() is, inlined or not: compilers with sanitizers inline less. */
#if AF_THIS_SERIES != AF_SERIES(6, 12)
#define DUP_MMAP	"dup_mmap"
#elif defined(CONFIG_KASAN) || defined(CONFIG_KCSAN)
#define DUP_MMAP	"copy_mm"
#else
#define DUP_MMAP	"copy_process"
#endif

/*
 * Hooked functions whose caller sits in the same source file, where a later
 * compiler may inline them, and the callers that matter most of the others.
 */
const struct af_expected_call af_expected_calls[] = {
	{ "mprotect_fixup",	"change_protection" },
	{ "unmap_region",	"unmap_vmas" },
	{ "exit_mmap",		"unmap_vmas" },
	{ "dump_user_range",	"get_dump_page" },
	{ "do_user_addr_fault",	"handle_mm_fault" },
	{ "__get_user_pages",	"handle_mm_fault" },
	{ DUP_MMAP,		"copy_page_range" },
	{ DUP_MMAP,		"uprobe_dup_mmap" },
#if AF_THIS_SERIES == AF_SERIES(6, 12)
	{ "vms_clear_ptes",	"unmap_vmas" },
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	{ "copy_vma_and_data",	"move_page_tables" },
	{ "madvise_vma_behavior",	"zap_vma_range_batched" },
	{ "zap_vma_range",	"zap_vma_range_batched" },
	{ "walk_page_range",	"walk_page_range_mm_unsafe" },
	{ "walk_page_range_vma",	"walk_page_range_vma_unsafe" },
	{ "madvise_guard_install",	"walk_page_range_mm_unsafe" },
	{ "madvise_guard_install",	"walk_page_range_vma_unsafe" },
#else
	{ "move_vma",		"move_page_tables" },
	{ "do_madvise",		"zap_page_range_single" },
#endif
	{ }
};

#define MEMBER(type, member)	{ #type, #member, offsetof(struct type, member) }

const struct af_expected_member af_expected_members[] = {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	MEMBER(unmap_desc, vma_start),
	MEMBER(unmap_desc, vma_end),
	MEMBER(pagetable_move_control, old),
	MEMBER(pagetable_move_control, old_addr),
	MEMBER(pagetable_move_control, old_end),
	MEMBER(pagetable_move_control, new_addr),
#endif
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	MEMBER(userfaultfd_ctx, mm),
#endif
	{ }
};
