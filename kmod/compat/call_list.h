/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The functions without export that the module calls, each through a static call:
 * AF_CALL(stage, function). Included for their declarations, definitions and
 * table, with another AF_CALL each time: no include guard.
 *
 * TYPES: find and read the type information that tells whether it is safe to
 * call a function, so they are called before they are checked themselves. The
 * prototypes are from the headers of the very build of the kernel that the
 * module's vermagic ties it to, and have not changed from 6.1 to 7.3.
 * CHECKED: nobody calls them before that. Each has a row in proto_list.h.
 */
#include "compat/features.h"

AF_CALL(TYPES, kallsyms_lookup_name)
AF_CALL(TYPES, kallsyms_lookup_size_offset)
AF_CALL(TYPES, bpf_get_btf_vmlinux)
AF_CALL(TYPES, btf_find_by_name_kind)
AF_CALL(TYPES, btf_name_by_offset)

AF_CALL(CHECKED, copy_page_range)
AF_CALL(CHECKED, __p4d_alloc)
AF_CALL(CHECKED, __pud_alloc)
AF_CALL(CHECKED, __pmd_alloc)
AF_CALL(CHECKED, flush_tlb_mm_range)
#if AF_HAS_SWAP_DUP_DIRECT
AF_CALL(CHECKED, swap_dup_entry_direct)
#else
AF_CALL(CHECKED, swap_duplicate)
#endif
#ifdef CONFIG_MEMORY_FAILURE
AF_CALL(CHECKED, memory_failure)
#endif
#if ALLOC_SPLIT_PTLOCKS
AF_CALL(CHECKED, pte_alloc_one)
AF_CALL(CHECKED, ptlock_alloc)
AF_CALL(CHECKED, ptlock_free)
#endif
