/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The prototypes that the module was written for, of every function that it
 * hooks or calls through a static call: a kernel with backports may have
 * others, whatever its version says. Included for several tables, with another
 * AF_PROTO each time: no include guard. A hook or a call without a row does not
 * compile.
 *
 * Types as put_type() (symbols.c) writes those of the kernel:
 * - typedefs, const and the like are seen through: what counts is what is
 *   passed. A struct without a tag goes by its typedef.
 * - struct, union and enum are left out before the tag.
 * - integers by sign and bits; "char" is any of one byte but a bool.
 * - "-" is any one type: a parameter behind the last that is used. Earlier ones
 *   are spelled out: one that takes two registers would shift those after it.
 */
#include "compat/features.h"

/* Find and read the type information. */
AF_PROTO(kallsyms_lookup_name, "u64(char *)")
AF_PROTO(kallsyms_lookup_size_offset, "s32(u64, u64 *, u64 *)")
AF_PROTO(bpf_get_btf_vmlinux, "btf *()")
AF_PROTO(btf_find_by_name_kind, "s32(btf *, char *, char)")
AF_PROTO(btf_name_by_offset, "char *(btf *, u32)")

/* Called, some hooked as well */
AF_PROTO(copy_page_range, "s32(vm_area_struct *, vm_area_struct *)")
AF_PROTO(__p4d_alloc, "s32(mm_struct *, pgd_t *, u64)")
AF_PROTO(__pud_alloc, "s32(mm_struct *, p4d_t *, u64)")
AF_PROTO(__pmd_alloc, "s32(mm_struct *, pud_t *, u64)")
AF_PROTO(flush_tlb_mm_range, "void(mm_struct *, u64, u64, u32, bool)")
#if AF_HAS_SWAP_DUP_DIRECT
AF_PROTO(swap_dup_entry_direct, "s32(swp_entry_t)")
#else
AF_PROTO(swap_duplicate, "s32(swp_entry_t)")
#endif
#ifdef CONFIG_MEMORY_FAILURE
AF_PROTO(memory_failure, "s32(u64, s32)")
#endif
#if ALLOC_SPLIT_PTLOCKS
AF_PROTO(pte_alloc_one, "page *(mm_struct *)")
AF_PROTO(ptlock_alloc, "bool(ptdesc *)")
AF_PROTO(ptlock_free, "void(ptdesc *)")
#endif

/* Hooked */
AF_PROTO(userfaultfd_ioctl, "s64(file *, u32, u64)")
AF_PROTO(__pte_alloc, "s32(mm_struct *, pmd_t *)")
#if AF_HAS_UFFD_MOVE && defined(CONFIG_TRANSPARENT_HUGEPAGE)
AF_PROTO(move_pages_huge_pmd,
	 "s32(mm_struct *, pmd_t *, pmd_t *, -, -, -, -, -)")
#endif
AF_PROTO(uprobe_dup_mmap, "void(mm_struct *, mm_struct *)")
AF_PROTO(handle_mm_fault, "u32(vm_area_struct *, u64, -, -)")
AF_PROTO(exit_mmap, "void(mm_struct *)")
AF_PROTO(walk_page_vma, "s32(vm_area_struct *, -, -)")
AF_PROTO(remove_migration_pte, "bool(folio *, vm_area_struct *, u64, -)")
#if AF_HAS_UNMAP_DESC
AF_PROTO(unmap_vmas, "void(mmu_gather *, unmap_desc *)")
#elif AF_HAS_UNMAP_STATE
AF_PROTO(unmap_vmas,
	 "void(mmu_gather *, ma_state *, vm_area_struct *, u64, u64, -, -)")
#else
AF_PROTO(unmap_vmas,
	 "void(mmu_gather *, maple_tree *, vm_area_struct *, u64, u64)")
#endif
#if AF_HAS_ZAP_VMA_RANGE
AF_PROTO(zap_vma_range_batched,
	 "void(mmu_gather *, vm_area_struct *, u64, u64, -)")
#else
AF_PROTO(zap_page_range_single, "void(vm_area_struct *, u64, u64, -)")
#endif
#if AF_HAS_PROT_OF_VMA
AF_PROTO(change_protection, "s64(mmu_gather *, vm_area_struct *, u64, u64, u64)")
#else
AF_PROTO(change_protection,
	 "s64(mmu_gather *, vm_area_struct *, u64, u64, pgprot, u64)")
#endif
#if AF_HAS_MOVE_CONTROL
AF_PROTO(move_page_tables, "u64(pagetable_move_control *)")
#elif AF_HAS_MOVE_FOR_STACK
AF_PROTO(move_page_tables,
	 "u64(vm_area_struct *, u64, vm_area_struct *, u64, u64, -, -)")
#else
AF_PROTO(move_page_tables,
	 "u64(vm_area_struct *, u64, vm_area_struct *, u64, u64, -)")
#endif
#if AF_HAS_WALK_UNSAFE
AF_PROTO(walk_page_range_mm_unsafe, "s32(mm_struct *, u64, u64, -, -)")
AF_PROTO(walk_page_range_vma_unsafe, "s32(vm_area_struct *, u64, u64, -, -)")
#else
AF_PROTO(walk_page_range, "s32(mm_struct *, u64, u64, -, -)")
#endif
#if AF_HAS_FOLIO_WALK
AF_PROTO(folio_walk_start, "folio *(folio_walk *, vm_area_struct *, u64, -)")
#else
AF_PROTO(follow_page, "page *(vm_area_struct *, u64, -)")
#endif
#if AF_HAS_DUMP_LOCKED
AF_PROTO(get_dump_page, "page *(u64, -)")
#else
AF_PROTO(get_dump_page, "page *(u64)")
#endif
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
#if AF_HAS_COLLAPSE_NO_PREV
AF_PROTO(madvise_collapse, "s32(vm_area_struct *, u64, u64, -)")
#else
AF_PROTO(madvise_collapse, "s32(vm_area_struct *, vm_area_struct **, u64, u64)")
#endif
#endif

/* What its tracepoint hands to af_probe_fork() */
AF_PROTO(__traceiter_sched_process_fork, "s32(void *, task_struct *, task_struct *)")
