/* SPDX-License-Identifier: GPL-2.0-only */
/* The hooks that tramp.S calls, and the trampolines whose address is taken. */
#ifndef _AF_HOOKS_H
#define _AF_HOOKS_H

#include <linux/mm_types.h>

#include "session.h"

struct file;
struct folio;
struct mmu_gather;

struct af_verdict af_hook_copy_page_range(struct vm_area_struct *dst,
					  struct vm_area_struct *src);
struct af_verdict af_hook_userfaultfd_ioctl(struct file *file, unsigned int cmd,
					    unsigned long arg);
void af_hook_uprobe_dup_mmap(struct mm_struct *oldmm, struct mm_struct *newmm);
void af_hook_handle_mm_fault(struct vm_area_struct *vma, unsigned long addr);
void af_hook_exit_mmap(struct mm_struct *mm);
void af_hook_walk_page_range(struct mm_struct *mm, unsigned long start,
			     unsigned long end);
void af_hook_walk_page_vma(struct vm_area_struct *vma);
void af_hook_remove_migration_pte(struct folio *folio,
				  struct vm_area_struct *vma,
				  unsigned long addr);
void af_hook_get_dump_page(unsigned long addr);

/* compat/hooks.c */
void af_hook_unmap_vmas(struct mmu_gather *tlb, struct maple_tree *mt,
			struct vm_area_struct *vma, unsigned long start,
			unsigned long end);
void af_hook_zap_page_range_single(struct vm_area_struct *vma,
				   unsigned long addr, unsigned long size);
void af_hook_change_protection(struct mmu_gather *tlb,
			       struct vm_area_struct *vma, unsigned long start,
			       unsigned long end, pgprot_t newprot,
			       unsigned long cp_flags);
void af_hook_move_page_tables(struct vm_area_struct *vma, unsigned long old,
			      struct vm_area_struct *new_vma, unsigned long new,
			      unsigned long len);

void af_tramp_copy_page_range(void);
void af_tramp_uprobe_dup_mmap(void);
void af_tramp_handle_mm_fault(void);
void af_tramp_exit_mmap(void);
void af_tramp_unmap_vmas(void);
void af_tramp_zap_page_range_single(void);
void af_tramp_change_protection(void);
void af_tramp_move_page_tables(void);
void af_tramp_walk_page_range(void);
void af_tramp_walk_page_vma(void);
void af_tramp_remove_migration_pte(void);
void af_tramp_userfaultfd_ioctl(void);
void af_tramp_get_dump_page(void);

/* hooks.c */
void af_hook_enter(void);
void af_hook_leave(void);
void af_hook_sync(struct mm_struct *mm, unsigned long start, unsigned long end,
		  enum asyncfork_hook hook);
int af_hooks_init(void);
void af_hooks_exit(void);

#endif /* _AF_HOOKS_H */
