/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hooked functions, by their names in this kernel: AF_HOOK(kind, function).
 * Included for their trampolines and tables, with another AF_HOOK each time: no
 * include guard.
 *
 * BEFORE: runs before the function; VERDICT: may also replace it; ALWAYS: the
 * same, even without sessions.
 *
 * copy_page_range() is last to come and first to go: it lets chunks be parked.
 */
#include <linux/version.h>

AF_HOOK(BEFORE, uprobe_dup_mmap)
AF_HOOK(BEFORE, handle_mm_fault)
AF_HOOK(BEFORE, exit_mmap)
AF_HOOK(BEFORE, unmap_vmas)
AF_HOOK(BEFORE, change_protection)
AF_HOOK(BEFORE, move_page_tables)
AF_HOOK(BEFORE, walk_page_vma)
AF_HOOK(BEFORE, remove_migration_pte)
AF_HOOK(BEFORE, get_dump_page)
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
AF_HOOK(BEFORE, madvise_collapse)
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
AF_HOOK(BEFORE, folio_walk_start)
#else
AF_HOOK(BEFORE, follow_page)
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
/* walk_page_range() and walk_page_range_vma() end in these. */
AF_HOOK(BEFORE, walk_page_range_mm_unsafe)
AF_HOOK(BEFORE, walk_page_range_vma_unsafe)
AF_HOOK(BEFORE, zap_vma_range_batched)
#else
AF_HOOK(BEFORE, walk_page_range)
AF_HOOK(BEFORE, zap_page_range_single)
#endif
AF_HOOK(BEFORE, userfaultfd_ioctl)
#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
AF_HOOK(VERDICT, move_pages_huge_pmd)
#endif
AF_HOOK(BEFORE, __pte_alloc)
#ifdef CONFIG_MEMORY_FAILURE
AF_HOOK(ALWAYS, memory_failure)
#endif
AF_HOOK(VERDICT, copy_page_range)
