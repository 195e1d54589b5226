/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hooked functions, by their names in this kernel. Included for their
 * trampolines, prototypes and table, with other AF_HOOK macros each time: no
 * include guard.
 *
 * AF_HOOK: pre-work; AF_HOOK_VERDICT: may replace the function; AF_HOOK_ALWAYS:
 * the same, even without sessions.
 *
 * copy_page_range() is last to come and first to go: it lets chunks be parked.
 */
#include <linux/version.h>

AF_HOOK(uprobe_dup_mmap)
AF_HOOK(handle_mm_fault)
AF_HOOK(exit_mmap)
AF_HOOK(unmap_vmas)
AF_HOOK(change_protection)
AF_HOOK(move_page_tables)
AF_HOOK(walk_page_vma)
AF_HOOK(remove_migration_pte)
AF_HOOK(get_dump_page)
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
AF_HOOK(madvise_collapse)
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
AF_HOOK(folio_walk_start)
#else
AF_HOOK(follow_page)
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
/* walk_page_range() and walk_page_range_vma() end in these. */
AF_HOOK(walk_page_range_mm_unsafe)
AF_HOOK(walk_page_range_vma_unsafe)
AF_HOOK(zap_vma_range_batched)
#else
AF_HOOK(walk_page_range)
AF_HOOK(zap_page_range_single)
#endif
AF_HOOK(userfaultfd_ioctl)
#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
AF_HOOK_VERDICT(move_pages_huge_pmd)
#endif
AF_HOOK(__pte_alloc)
#ifdef CONFIG_MEMORY_FAILURE
AF_HOOK_ALWAYS(memory_failure)
#endif
AF_HOOK_VERDICT(copy_page_range)
