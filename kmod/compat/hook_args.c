// SPDX-License-Identifier: GPL-2.0-only
/*
 * The hooks of functions whose prototype differs between kernel versions: they
 * find mm and range in the arguments, the rest is the same for all. And the one
 * of a function that only some have, with its lock: move_pages_huge_pmd().
 */
#include "compat.h"
#include "private.h"
#include "../active.h"
#include "../hooks.h"
#include "../pull.h"

/* The VMAs may be out of the tree already: the range only. */
#if AF_HAS_UNMAP_DESC
AF_HOOK_FN(void, unmap_vmas, struct mmu_gather *tlb, struct unmap_desc *unmap)
{
	af_hook_unmap(tlb->mm, unmap->vma_start, unmap->vma_end);
}
#else
/* @tree: of one type or another, see AF_HAS_UNMAP_STATE */
AF_HOOK_FN(void, unmap_vmas, struct mmu_gather *tlb, void *tree,
	   struct vm_area_struct *vma, unsigned long start, unsigned long end)
{
	af_hook_unmap(tlb->mm, start, end);
}
#endif

#if AF_HAS_ZAP_VMA_RANGE
AF_HOOK_FN(void, zap_vma_range_batched, struct mmu_gather *tlb,
	   struct vm_area_struct *vma, unsigned long addr, unsigned long size)
#else
AF_HOOK_FN(void, zap_page_range_single, struct vm_area_struct *vma,
	   unsigned long addr, unsigned long size)
#endif
{
	af_hook_zap(vma, addr, size);
}

#if AF_HAS_PROT_OF_VMA
AF_HOOK_FN(void, change_protection, struct mmu_gather *tlb,
	   struct vm_area_struct *vma, unsigned long start, unsigned long end,
	   unsigned long cp_flags)
#else
AF_HOOK_FN(void, change_protection, struct mmu_gather *tlb,
	   struct vm_area_struct *vma, unsigned long start, unsigned long end,
	   pgprot_t newprot, unsigned long cp_flags)
#endif
{
	/* A missed NUMA hint costs nothing; a pull under its scan would. */
	if (!(cp_flags & MM_CP_PROT_NUMA))
		af_hook_sync(vma->vm_mm, start, end, ASYNCFORK_HOOK_PROTECT,
			     true);
}

#if AF_HAS_MOVE_CONTROL
AF_HOOK_FN(void, move_page_tables, struct pagetable_move_control *pmc)
{
	af_hook_move(pmc->old->vm_mm, pmc->old_addr, pmc->new_addr,
		     pmc->old_end - pmc->old_addr);
}
#else
AF_HOOK_FN(void, move_page_tables, struct vm_area_struct *vma,
	   unsigned long old, struct vm_area_struct *new_vma, unsigned long new,
	   unsigned long len)
{
	af_hook_move(vma->vm_mm, old, new, len);
}
#endif

/* It would call an empty PMD an error of the caller. */
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
#if AF_HAS_COLLAPSE_NO_PREV
AF_HOOK_FN(void, madvise_collapse, struct vm_area_struct *vma,
	   unsigned long start, unsigned long end)
#else
AF_HOOK_FN(void, madvise_collapse, struct vm_area_struct *vma,
	   struct vm_area_struct **prev, unsigned long start, unsigned long end)
#endif
{
	af_hook_walk(vma->vm_mm, start, end);
}
#endif

struct folio_walk;

/* One page, for move_pages(2). */
#if AF_HAS_FOLIO_WALK
AF_HOOK_FN(void, folio_walk_start, struct folio_walk *fw,
	   struct vm_area_struct *vma, unsigned long addr)
#else
AF_HOOK_FN(void, follow_page, struct vm_area_struct *vma, unsigned long addr)
#endif
{
	af_hook_walk(vma->vm_mm, addr, addr + 1);
}

#if AF_HAS_WALK_UNSAFE
AF_HOOK_FN(void, walk_page_range_mm_unsafe, struct mm_struct *mm,
	   unsigned long start, unsigned long end)
#else
AF_HOOK_FN(void, walk_page_range, struct mm_struct *mm, unsigned long start,
	   unsigned long end)
#endif
{
	af_hook_walk(mm, start, end);
}

#if AF_HAS_WALK_UNSAFE
AF_HOOK_FN(void, walk_page_range_vma_unsafe, struct vm_area_struct *vma,
	   unsigned long start, unsigned long end)
{
	af_hook_walk(vma->vm_mm, start, end);
}
#endif

#if AF_HAS_UFFD_MOVE && defined(CONFIG_TRANSPARENT_HUGEPAGE)
/*
 * UFFDIO_MOVE puts a huge page into an empty slot, and holds the lock of its old
 * one already: make it try again, until the slot has its table.
 */
AF_HOOK_FN(struct af_verdict, move_pages_huge_pmd, struct mm_struct *mm,
	   pmd_t *dst, pmd_t *src)
{
	spinlock_t *ptl = pmd_lockptr(mm, src);
	struct af_verdict v = { .skip = 0 };

	af_hook_enter();
	if (af_slot_pending(mm, dst)) {
		spin_unlock(ptl);
		/* The caller's, says sparse. */
		__acquire(ptl);
		v.ret = -EAGAIN;
		v.skip = 1;
	}
	af_hook_leave();
	return v;
}
#endif
