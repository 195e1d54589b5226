// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module expects to find in this kernel, beyond prototypes; symbols.c
 * looks
 */
#include "compat.h"
#include "private.h"
#include "../symbols.h"

/* What calls for dup_mmap(): compilers inline it, up to here. */
#define DUP_MMAP	{ "dup_mmap", "copy_mm", "copy_process" }

/*
 * Hooked functions whose caller sits in the same source file, where a later
 * compiler may inline them, and the callers that matter most of the others.
 */
const struct af_expected_call af_expected_calls[] = {
	{ { "mprotect_fixup" },		"change_protection" },
	{ { "unmap_region" },		"unmap_vmas" },
	{ { "exit_mmap" },		"unmap_vmas" },
	{ { "dump_user_range" },	"get_dump_page" },
	{ { "do_user_addr_fault" },	"handle_mm_fault" },
	{ { "__get_user_pages" },	"handle_mm_fault" },
	{ DUP_MMAP,			"copy_page_range" },
	{ DUP_MMAP,			"uprobe_dup_mmap" },
#if AF_HAS_VMS_CLEAR_PTES && !AF_HAS_UNMAP_DESC
	{ { "vms_clear_ptes" },		"unmap_vmas" },
#endif
#if AF_HAS_MOVE_CONTROL
	{ { "copy_vma_and_data" },	"move_page_tables" },
#else
	{ { "move_vma" },		"move_page_tables" },
#endif
#if AF_HAS_ZAP_VMA_RANGE
	{ { "madvise_vma_behavior" },	"zap_vma_range_batched" },
	{ { "zap_vma_range" },		"zap_vma_range_batched" },
#else
	{ { "do_madvise" },		"zap_page_range_single" },
#endif
#if AF_HAS_WALK_UNSAFE
	{ { "walk_page_range" },	"walk_page_range_mm_unsafe" },
	{ { "walk_page_range_vma" },	"walk_page_range_vma_unsafe" },
	{ { "madvise_guard_install" },	"walk_page_range_mm_unsafe" },
	{ { "madvise_guard_install" },	"walk_page_range_vma_unsafe" },
#endif
	{ }
};

#define MEMBER(type, member)	{ #type, #member, offsetof(struct type, member) }

const struct af_expected_member af_expected_members[] = {
#if AF_HAS_UNMAP_DESC
	MEMBER(unmap_desc, vma_start),
	MEMBER(unmap_desc, vma_end),
#endif
#if AF_HAS_MOVE_CONTROL
	MEMBER(pagetable_move_control, old),
	MEMBER(pagetable_move_control, old_addr),
	MEMBER(pagetable_move_control, old_end),
	MEMBER(pagetable_move_control, new_addr),
#endif
#if !AF_HAS_UFFD_CTX
	MEMBER(userfaultfd_ctx, mm),
#endif
	{ }
};
