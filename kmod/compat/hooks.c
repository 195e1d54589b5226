// SPDX-License-Identifier: GPL-2.0-only
/*
 * The hooks of functions whose prototype differs between kernel versions:
 * they find mm and range in the arguments, the rest is the same for all.
 */
#include "compat.h"
#include "hooks.h"
#include "../hooks.h"
#include "../session.h"
#include "../symbols.h"

/* Where dup_mmap() is, inlined or not: compilers with sanitizers inline less. */
#if AF_THIS_SERIES != AF_SERIES(6, 12)
#define DUP_MMAP	"dup_mmap"
#elif defined(CONFIG_KASAN) || defined(CONFIG_KCSAN)
#define DUP_MMAP	"copy_mm"
#else
#define DUP_MMAP	"copy_process"
#endif

/*
 * Hooked functions whose caller sits in the same source file, where a later
 * compiler may inline them, and the callers that matter most of the others.
 */
const struct af_call af_expected_calls[] = {
	{ "mprotect_fixup",	"change_protection" },
	{ "unmap_region",	"unmap_vmas" },
	{ "exit_mmap",		"unmap_vmas" },
	{ "dump_user_range",	"get_dump_page" },
	{ "do_user_addr_fault",	"handle_mm_fault" },
	{ "__get_user_pages",	"handle_mm_fault" },
	{ DUP_MMAP,		"copy_page_range" },
	{ DUP_MMAP,		"uprobe_dup_mmap" },
#if AF_THIS_SERIES == AF_SERIES(6, 12)
	{ "vms_clear_ptes",	"unmap_vmas" },
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	{ "copy_vma_and_data",	"move_page_tables" },
	{ "madvise_vma_behavior",	"zap_vma_range_batched" },
	{ "zap_vma_range",	"zap_vma_range_batched" },
	{ "walk_page_range",	"walk_page_range_mm_unsafe" },
	{ "walk_page_range_vma",	"walk_page_range_vma_unsafe" },
	{ "madvise_guard_install",	"walk_page_range_mm_unsafe" },
	{ "madvise_guard_install",	"walk_page_range_vma_unsafe" },
#else
	{ "move_vma",		"move_page_tables" },
	{ "do_madvise",		"zap_page_range_single" },
#endif
	{ }
};

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
/* mm/vma.h and mm/internal.h keep these private. */
struct unmap_desc {
	struct ma_state *mas;
	struct vm_area_struct *first;
	unsigned long pg_start, pg_end;
	unsigned long vma_start, vma_end;
};

struct pagetable_move_control {
	struct vm_area_struct *old, *new;
	unsigned long old_addr, old_end, new_addr;
};
#endif

#define MEMBER(type, member)	{ #type, #member, offsetof(struct type, member) }

const struct af_member af_expected_members[] = {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	MEMBER(unmap_desc, vma_start),
	MEMBER(unmap_desc, vma_end),
	MEMBER(pagetable_move_control, old),
	MEMBER(pagetable_move_control, old_addr),
	MEMBER(pagetable_move_control, old_end),
	MEMBER(pagetable_move_control, new_addr),
#endif
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	MEMBER(userfaultfd_ctx, mm),
#endif
	{ }
};

/* The VMAs may be out of the tree already: the range only. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
void af_hook_unmap_vmas(struct mmu_gather *tlb, struct unmap_desc *unmap)
{
	af_hook_unmap(tlb->mm, unmap->vma_start, unmap->vma_end);
}

void af_hook_zap_vma_range_batched(struct mmu_gather *tlb,
				   struct vm_area_struct *vma,
				   unsigned long addr, unsigned long size)
{
	af_hook_zap(vma, addr, size);
}
#else
void af_hook_unmap_vmas(struct mmu_gather *tlb, void *tree,
			struct vm_area_struct *vma, unsigned long start,
			unsigned long end)
{
	af_hook_unmap(tlb->mm, start, end);
}

void af_hook_zap_page_range_single(struct vm_area_struct *vma,
				   unsigned long addr, unsigned long size)
{
	af_hook_zap(vma, addr, size);
}
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
void af_hook_change_protection(struct mmu_gather *tlb,
			       struct vm_area_struct *vma, unsigned long start,
			       unsigned long end, unsigned long cp_flags)
#else
void af_hook_change_protection(struct mmu_gather *tlb,
			       struct vm_area_struct *vma, unsigned long start,
			       unsigned long end, pgprot_t newprot,
			       unsigned long cp_flags)
#endif
{
	/* A missed NUMA hint costs nothing; a pull under its scan would. */
	if (!(cp_flags & MM_CP_PROT_NUMA))
		af_hook_sync(vma->vm_mm, start, end, ASYNCFORK_HOOK_PROTECT,
			     true);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
void af_hook_move_page_tables(struct pagetable_move_control *pmc)
{
	af_hook_move(pmc->old->vm_mm, pmc->old_addr, pmc->new_addr,
		     pmc->old_end - pmc->old_addr);
}
#else
void af_hook_move_page_tables(struct vm_area_struct *vma, unsigned long old,
			      struct vm_area_struct *new_vma, unsigned long new,
			      unsigned long len)
{
	af_hook_move(vma->vm_mm, old, new, len);
}
#endif

/* It would call an empty PMD an error of the caller. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
void af_hook_madvise_collapse(struct vm_area_struct *vma, unsigned long start,
			      unsigned long end)
#else
void af_hook_madvise_collapse(struct vm_area_struct *vma,
			      struct vm_area_struct **prev,
			      unsigned long start, unsigned long end)
#endif
{
	af_hook_walk(vma->vm_mm, start, end);
}

/* One page, for move_pages(2). */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
void af_hook_folio_walk_start(struct folio_walk *fw, struct vm_area_struct *vma,
			      unsigned long addr)
#else
void af_hook_follow_page(struct vm_area_struct *vma, unsigned long addr)
#endif
{
	af_hook_walk(vma->vm_mm, addr, addr + 1);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
void af_hook_walk_page_range_mm_unsafe(struct mm_struct *mm,
				       unsigned long start, unsigned long end)
{
	af_hook_walk(mm, start, end);
}

void af_hook_walk_page_range_vma_unsafe(struct vm_area_struct *vma,
					unsigned long start, unsigned long end)
{
	af_hook_walk(vma->vm_mm, start, end);
}
#else
void af_hook_walk_page_range(struct mm_struct *mm, unsigned long start,
			     unsigned long end)
{
	af_hook_walk(mm, start, end);
}
#endif

#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
/*
 * UFFDIO_MOVE puts a huge page into an empty slot, and holds the lock of its old
 * one by now: it shall try again, until the slot has its table.
 */
struct af_verdict af_hook_move_pages_huge_pmd(struct mm_struct *mm, pmd_t *dst,
					      pmd_t *src)
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
