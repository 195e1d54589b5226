// SPDX-License-Identifier: GPL-2.0-only
/*
 * The hooks of functions whose prototype differs between kernel versions:
 * they find mm and range in the arguments, the rest is the same for all.
 */
#include <linux/sched/mm.h>

#include "compat.h"
#include "../hooks.h"
#include "../session.h"
#include "../symbols.h"

/*
 * Hooked functions whose caller sits in the same source file, where a later
 * compiler may inline them, and the callers that matter most of the others.
 */
const struct af_call af_expected_calls[] = {
	{ "mprotect_fixup",	"change_protection" },
	{ "move_vma",		"move_page_tables" },
	{ "unmap_region",	"unmap_vmas" },
	{ "dup_mmap",		"copy_page_range" },
	{ "dup_mmap",		"uprobe_dup_mmap" },
	{ "dump_user_range",	"get_dump_page" },
	{ "do_user_addr_fault",	"handle_mm_fault" },
	{ "__get_user_pages",	"handle_mm_fault" },
	{ "do_madvise",		"zap_page_range_single" },
	{ }
};

/* The VMAs may be out of the tree already: the range only. */
void af_hook_unmap_vmas(struct mmu_gather *tlb, struct maple_tree *mt,
			struct vm_area_struct *vma, unsigned long start,
			unsigned long end)
{
	af_hook_sync(tlb->mm, start, end, ASYNCFORK_HOOK_UNMAP);
}

void af_hook_zap_page_range_single(struct vm_area_struct *vma,
				   unsigned long addr, unsigned long size)
{
	unsigned int noreclaim = 0;

	/*
	 * A file's truncation holds i_mmap_rwsem, which reclaim takes. Such a
	 * VMA is never parked, but a partial chunk may reach into it.
	 */
	if (!vma_is_anonymous(vma))
		noreclaim = memalloc_noreclaim_save();
	af_hook_sync(vma->vm_mm, addr, addr + size, ASYNCFORK_HOOK_ZAP);
	if (!vma_is_anonymous(vma))
		memalloc_noreclaim_restore(noreclaim);
}

void af_hook_change_protection(struct mmu_gather *tlb,
			       struct vm_area_struct *vma, unsigned long start,
			       unsigned long end, pgprot_t newprot,
			       unsigned long cp_flags)
{
	/* A missed NUMA hint costs nothing; a pull under its scan would. */
	if (!(cp_flags & MM_CP_PROT_NUMA))
		af_hook_sync(vma->vm_mm, start, end, ASYNCFORK_HOOK_PROTECT);
}

/* The target as well: a partial chunk may reach into it. */
void af_hook_move_page_tables(struct vm_area_struct *vma, unsigned long old,
			      struct vm_area_struct *new_vma, unsigned long new,
			      unsigned long len)
{
	af_hook_sync(vma->vm_mm, old, old + len, ASYNCFORK_HOOK_MREMAP);
	af_hook_sync(vma->vm_mm, new, new + len, ASYNCFORK_HOOK_MREMAP);
}
