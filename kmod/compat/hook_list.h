/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hooked functions, by their names in this kernel: AF_HOOK(kind, function).
 * Included for their trampolines and tables, with another AF_HOOK each time: no
 * include guard.
 *
 * BEFORE: runs before the function; FORK: the same, also while forks may be
 * asynchronous that nobody has armed; VERDICT: may also replace it; ALWAYS: the
 * same, even without sessions.
 *
 * copy_page_range() is last to come and first to go: it lets chunks be parked.
 */
#include "compat/features.h"

/* A function that the kernel has only with an option of its configuration. */
#ifndef AF_NO_HOOK
#define AF_NO_HOOK(fn, option)
#endif

AF_HOOK(FORK, uprobe_dup_mmap)
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
#else
AF_NO_HOOK(madvise_collapse, CONFIG_TRANSPARENT_HUGEPAGE)
#endif
#if AF_HAS_FOLIO_WALK
AF_HOOK(BEFORE, folio_walk_start)
#else
AF_HOOK(BEFORE, follow_page)
#endif
#if AF_HAS_WALK_UNSAFE
/* walk_page_range() and walk_page_range_vma() end in these. */
AF_HOOK(BEFORE, walk_page_range_mm_unsafe)
AF_HOOK(BEFORE, walk_page_range_vma_unsafe)
#else
AF_HOOK(BEFORE, walk_page_range)
#endif
#if AF_HAS_ZAP_VMA_RANGE
AF_HOOK(BEFORE, zap_vma_range_batched)
#else
AF_HOOK(BEFORE, zap_page_range_single)
#endif
AF_HOOK(BEFORE, userfaultfd_ioctl)
#if AF_HAS_UFFD_MOVE
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
AF_HOOK(VERDICT, move_pages_huge_pmd)
#else
AF_NO_HOOK(move_pages_huge_pmd, CONFIG_TRANSPARENT_HUGEPAGE)
#endif
#endif
AF_HOOK(BEFORE, __pte_alloc)
#ifdef CONFIG_MEMORY_FAILURE
AF_HOOK(ALWAYS, memory_failure)
#else
AF_NO_HOOK(memory_failure, CONFIG_MEMORY_FAILURE)
#endif
AF_HOOK(VERDICT, copy_page_range)

#undef AF_NO_HOOK
