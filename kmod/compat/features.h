/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between kernels, each with the version in which it came: read in
 * the sources of 6.1 to 6.9, 6.11 to 6.14, and 6.17 to 7.3. "By" a version: there,
 * and not yet in the one that is named. Of 6.16 only the kernel's type information
 * was seen.
 *
 * Asked for by its macro wherever it matters, and nowhere else by the version.
 * What the headers tell themselves (#ifdef VM_DROPPABLE) has no macro here. For
 * assembly as well: nothing but macros.
 */
#ifndef _AF_FEATURES_H
#define _AF_FEATURES_H

#include <linux/version.h>

/* mm->rss_stat is an array of percpu_counter. */
#define AF_HAS_RSS_PERCPU	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0))

/* change_protection() takes no pgprot_t. */
#define AF_HAS_PROT_OF_VMA	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0))

/* register_ftrace_direct() takes a struct ftrace_ops, not an address. */
#define AF_HAS_DIRECT_OPS	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0))

/* unmap_vmas() takes a ma_state, and behind the range two arguments more. */
#define AF_HAS_UNMAP_STATE	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0))

/* A page table's page is a struct ptdesc. */
#define AF_HAS_PTDESC		(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0))

/* move_page_tables() takes one argument more: for_stack. */
#define AF_HAS_MOVE_FOR_STACK	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0))

/* folio_try_dup_anon_rmap_pte() in the place of page_try_dup_anon_rmap() */
#define AF_HAS_FOLIO_RMAP	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0))

/* UFFDIO_MOVE, and so move_pages_huge_pmd() */
#define AF_HAS_UFFD_MOVE	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0))

/* struct userfaultfd_ctx is in a header. */
#define AF_HAS_UFFD_CTX		(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0))

/* folio_walk_start() in the place of follow_page() */
#define AF_HAS_FOLIO_WALK	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0))

/* munmap() calls unmap_vmas() in vms_clear_ptes(). */
#define AF_HAS_VMS_CLEAR_PTES	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0))

/* __pagetable_ctor(), pagetable_dtor() */
#define AF_HAS_PAGETABLE_CTOR	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0))

/* move_page_tables() takes a struct pagetable_move_control: by 6.16 (6.14). */
#define AF_HAS_MOVE_CONTROL	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0))

/* get_dump_page() takes one argument more, locked: by 6.16 (6.14). */
#define AF_HAS_DUMP_LOCKED	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0))

/*
 * MADV_DONTNEED zaps by zap_vma_range_batched(). By 6.16 (6.14) to 7.0, by
 * zap_page_range_single_batched(), which no known series has.
 */
#define AF_HAS_ZAP_VMA_RANGE	(LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0))

/* folio_try_dup_anon_rmap_pte() takes one argument more, dst_vma: by 6.17 (6.14). */
#define AF_HAS_RMAP_DST_VMA	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0))

/* madvise_collapse() takes no prev: in 6.17, says the type information (6.16). */
#define AF_HAS_COLLAPSE_NO_PREV	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0))

/* mm_flags_test() in the place of mm->flags */
#define AF_HAS_MM_FLAGS		(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0))

/* softleaf_*() in the place of functions of a swp_entry_t */
#define AF_HAS_SOFTLEAF		(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0))

/*
 * walk_page_range() ends in walk_page_range_mm_unsafe(), which others call as
 * well; so does walk_page_range_vma(). From 6.13 to 6.18 the first was called
 * walk_page_range_mm(), which no known series has.
 */
#define AF_HAS_WALK_UNSAFE	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0))

/* unmap_vmas() takes a struct unmap_desc; munmap() calls it in unmap_region(). */
#define AF_HAS_UNMAP_DESC	(LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0))

/* swap_dup_entry_direct() in the place of swap_duplicate() */
#define AF_HAS_SWAP_DUP_DIRECT	(LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0))

/* A VMA has a page offset of its own for anonymous memory: by 7.3 (7.2). */
#define AF_HAS_ANON_PGOFF	(LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0))

#endif /* _AF_FEATURES_H */
