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
struct af_verdict af_hook_memory_failure(unsigned long pfn, int flags);
void af_hook_uprobe_dup_mmap(struct mm_struct *oldmm, struct mm_struct *newmm);
void af_hook_handle_mm_fault(struct vm_area_struct *vma, unsigned long addr);
void af_hook_exit_mmap(struct mm_struct *mm);
void af_hook_walk_page_vma(struct vm_area_struct *vma);
void af_hook_remove_migration_pte(struct folio *folio,
				  struct vm_area_struct *vma,
				  unsigned long addr);
void af_hook_get_dump_page(unsigned long addr);
void af_hook_userfaultfd_ioctl(struct file *file);
void af_hook___pte_alloc(struct mm_struct *mm, pmd_t *slot);

/* tramp.S: addresses only, never called from C */
#define AF_HOOK(fn)		void af_tramp_##fn(void);
#define AF_HOOK_VERDICT(fn)	AF_HOOK(fn)
#define AF_HOOK_ALWAYS(fn)	AF_HOOK(fn)
#include "compat/hook_list.h"
#undef AF_HOOK
#undef AF_HOOK_VERDICT
#undef AF_HOOK_ALWAYS

/* hooks.c */
void af_hook_enter(void);
void af_hook_leave(void);
void af_hook_sync(struct mm_struct *mm, unsigned long start, unsigned long end,
		  enum asyncfork_hook hook, bool locked);
void af_hook_unmap(struct mm_struct *mm, unsigned long start,
		   unsigned long end);
void af_hook_zap(struct vm_area_struct *vma, unsigned long addr,
		 unsigned long size);
void af_hook_move(struct mm_struct *mm, unsigned long old, unsigned long new,
		  unsigned long len);
void af_hook_walk(struct mm_struct *mm, unsigned long start,
		  unsigned long end);
int af_hooks_init(void);
void af_hooks_exit(void);

#endif /* _AF_HOOKS_H */
