/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hooks whose prototype differs between kernel versions: that of the
 * hooked function, without the arguments at its end that nobody needs.
 */
#ifndef _AF_COMPAT_HOOKS_H
#define _AF_COMPAT_HOOKS_H

#include <linux/mm_types.h>
#include <linux/version.h>

struct mmu_gather;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
struct unmap_desc;

void af_hook_unmap_vmas(struct mmu_gather *tlb, struct unmap_desc *unmap);
void af_hook_zap_vma_range_batched(struct mmu_gather *tlb,
				   struct vm_area_struct *vma,
				   unsigned long addr, unsigned long size);
#else
/* @tree: of one type in 6.1 and another in 6.12 */
void af_hook_unmap_vmas(struct mmu_gather *tlb, void *tree,
			struct vm_area_struct *vma, unsigned long start,
			unsigned long end);
void af_hook_zap_page_range_single(struct vm_area_struct *vma,
				   unsigned long addr, unsigned long size);
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
void af_hook_walk_page_range_mm_unsafe(struct mm_struct *mm,
				       unsigned long start, unsigned long end);
void af_hook_walk_page_range_vma_unsafe(struct vm_area_struct *vma,
					unsigned long start, unsigned long end);
#else
void af_hook_walk_page_range(struct mm_struct *mm, unsigned long start,
			     unsigned long end);
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
struct pagetable_move_control;

void af_hook_move_page_tables(struct pagetable_move_control *pmc);
#else
void af_hook_move_page_tables(struct vm_area_struct *vma, unsigned long old,
			      struct vm_area_struct *new_vma, unsigned long new,
			      unsigned long len);
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
void af_hook_madvise_collapse(struct vm_area_struct *vma, unsigned long start,
			      unsigned long end);
#else
void af_hook_madvise_collapse(struct vm_area_struct *vma,
			      struct vm_area_struct **prev,
			      unsigned long start, unsigned long end);
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
struct folio_walk;

void af_hook_folio_walk_start(struct folio_walk *fw, struct vm_area_struct *vma,
			      unsigned long addr);
#else
void af_hook_follow_page(struct vm_area_struct *vma, unsigned long addr);
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
void af_hook_change_protection(struct mmu_gather *tlb,
			       struct vm_area_struct *vma, unsigned long start,
			       unsigned long end, unsigned long cp_flags);
#else
void af_hook_change_protection(struct mmu_gather *tlb,
			       struct vm_area_struct *vma, unsigned long start,
			       unsigned long end, pgprot_t newprot,
			       unsigned long cp_flags);
#endif

#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
struct af_verdict af_hook_move_pages_huge_pmd(struct mm_struct *mm, pmd_t *dst,
					      pmd_t *src);
#endif

#endif /* _AF_COMPAT_HOOKS_H */
