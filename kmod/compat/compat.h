/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernel versions, one API for the core
 *
 * Nothing but features.h, and the release here, may look at LINUX_VERSION_CODE.
 */
#ifndef _AF_COMPAT_H
#define _AF_COMPAT_H

#include <linux/ftrace.h>
#include <linux/glob.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/percpu_counter.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <asm/pgalloc.h>
#include <asm/tlbflush.h>

/* <asm/tlbflush.h> hides it from modules, <asm/tlb.h> needs the prototype. */
void flush_tlb_mm_range(struct mm_struct *mm, unsigned long start,
			unsigned long end, unsigned int stride_shift,
			bool freed_tables);
#include <asm/tlb.h>

#include "compat/features.h"

/* A stable series, whatever its point release. */
#define AF_SERIES(major, minor)	((major) << 8 | (minor))
#define AF_THIS_SERIES		(LINUX_VERSION_CODE >> 8)

#if AF_THIS_SERIES != AF_SERIES(6, 1) && AF_THIS_SERIES != AF_SERIES(6, 12) && \
	AF_THIS_SERIES != AF_SERIES(7, 2) && AF_THIS_SERIES != AF_SERIES(7, 3)
#if AF_THIS_SERIES < AF_SERIES(7, 3)
#error "asyncfork: kernels 6.1, 6.12, 7.2 and 7.3 are known, those between are not"
#elif !defined(AF_ALLOW_UNTESTED)
#error "asyncfork: kernel series not audited; AF_ALLOW_UNTESTED=1 builds as for 7.3"
#endif
#endif

#if !defined(CONFIG_X86_64) || !defined(CONFIG_MMU)
#error "asyncfork: x86-64 only"
#endif
#ifdef CONFIG_PREEMPT_RT
#error "asyncfork: page table locks sleep on PREEMPT_RT, a pull must not"
#endif
#ifndef CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS
#error "asyncfork: needs CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"
#endif
#ifndef CONFIG_SPARSEMEM_VMEMMAP
#error "asyncfork: needs CONFIG_SPARSEMEM_VMEMMAP (a prefetch of any entry's page)"
#endif
#ifndef CONFIG_MEMCG
#error "asyncfork: needs CONFIG_MEMCG (mm->owner)"
#endif
#ifndef CONFIG_HAVE_STATIC_CALL_INLINE
#error "asyncfork: needs inline static calls"
#endif

/*
 * Is it a release of kernels.h: Debian's, of a series on which the whole test
 * suite has passed? A module made for fault injection is for tests and counts as
 * untested everywhere.
 */
static inline bool af_release_tested(const char *release)
{
#ifndef AF_FAULTS
#define AF_KERNEL(name, build, major, minor, flavour, suite, root, ...) \
	{ AF_SERIES(major, minor), { __VA_ARGS__ } },
	static const struct {
		unsigned int series;
		const char *releases[4];
	} kernels[] = {
#include "compat/kernels.h"
	};
#undef AF_KERNEL
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		if (kernels[i].series != AF_THIS_SERIES)
			continue;
		for (j = 0; j < ARRAY_SIZE(kernels[i].releases); j++)
			if (kernels[i].releases[j] &&
			    glob_match(kernels[i].releases[j], release))
				return true;
	}
#endif
	return false;
}

/* VM flags that make a VMA ineligible, beyond those every version has. */
#ifndef VM_SHADOW_STACK
#define VM_SHADOW_STACK		0UL
#endif
#ifndef VM_DROPPABLE
#define VM_DROPPABLE		0UL
#endif
#define AF_VM_INELIGIBLE_COMPAT	(VM_SHADOW_STACK | VM_DROPPABLE)

/* How far before a function a call of it may enter (call depth tracking). */
#ifdef CONFIG_CALL_THUNKS
#define AF_CALL_PADDING	CONFIG_FUNCTION_PADDING_BYTES
#else
#define AF_CALL_PADDING	0
#endif

static inline bool af_mm_pinned(struct mm_struct *mm)
{
#if AF_HAS_MM_FLAGS
	return mm_flags_test(MMF_HAS_PINNED, mm);
#else
	return test_bit(MMF_HAS_PINNED, &mm->flags);
#endif
}

/* Resident bytes. */
static inline u64 af_mm_rss(struct mm_struct *mm)
{
	return (u64)get_mm_rss(mm) << PAGE_SHIFT;
}

/*
 * Not add_mm_counter(): it calls mm_trace_rss_stat(), which is not exported.
 */
static inline void af_rss_add(struct mm_struct *mm, int member, long n)
{
#if AF_HAS_RSS_PERCPU
	percpu_counter_add(&mm->rss_stat[member], n);
#else
	atomic_long_add(n, &mm->rss_stat.count[member]);
#endif
}

/*
 * Let @vma, a copy that is in no tree, cover [start, end) alone. Its offsets say
 * where an rmap walk finds a page that is mapped new.
 */
static inline void af_vma_narrow(struct vm_area_struct *vma,
				 unsigned long start, unsigned long end)
{
	unsigned long pages = (start - vma->vm_start) >> PAGE_SHIFT;
#if AF_HAS_ANON_PGOFF
	unsigned long anon = vma_start_anon_pgoff(vma) + pages;

	vma->__vm_anon_pgoff_hi = upper_32_bits(anon);
	vma->__vm_anon_pgoff_lo = lower_32_bits(anon);
#endif
	vma->vm_pgoff += pages;
	vma->vm_start = start;
	vma->vm_end = end;
}

/* Without lockdep a lockdep_map is empty. */
#ifdef CONFIG_LOCKDEP
#define AF_LOCKDEP_MAP_INIT		STATIC_LOCKDEP_MAP_INIT
#else
#define AF_LOCKDEP_MAP_INIT(...)	{ }
#endif

/* Since 7.x the kernel keeps its own to mm/. */
static inline void af_anon_vma_lock_write(struct anon_vma *anon_vma)
{
	down_write(&anon_vma->root->rwsem);
}

static inline void af_anon_vma_unlock_write(struct anon_vma *anon_vma)
{
	up_write(&anon_vma->root->rwsem);
}

/*
 * Duplicate the rmap of an anonymous page; nonzero: pinned. @dst_vma: a large
 * folio counts its mappings per mm, in some versions.
 */
static inline int af_dup_anon_rmap(struct page *page,
				   struct vm_area_struct *dst_vma,
				   struct vm_area_struct *src_vma)
{
#if AF_HAS_RMAP_DST_VMA
	return folio_try_dup_anon_rmap_pte(page_folio(page), page, dst_vma,
					   src_vma);
#elif AF_HAS_FOLIO_RMAP
	return folio_try_dup_anon_rmap_pte(page_folio(page), page, src_vma);
#else
	return page_try_dup_anon_rmap(page, false, src_vma);
#endif
}

/* What an entry that maps nothing stands for. */
enum af_leaf {
	AF_LEAF_UNKNOWN,
	AF_LEAF_SWAP,
	AF_LEAF_MIGRATION,
	AF_LEAF_DEVICE,		/* a page in a device's memory */
	AF_LEAF_MARKER,
	AF_LEAF_POISON,
};

#if !AF_HAS_SOFTLEAF
/* By the names of later kernels. 6.12's stable releases have some already. */
#define softleaf_t			swp_entry_t
#define softleaf_from_pte(pte)		pte_to_swp_entry(pte)
#define softleaf_to_page(entry)		pfn_swap_entry_to_page(entry)
#define softleaf_to_marker(entry)	pte_marker_get(entry)
#define softleaf_is_swap(entry)		(!non_swap_entry(entry))
#define softleaf_is_migration(entry)	is_migration_entry(entry)
#define softleaf_is_migration_read(entry)	\
	is_readable_migration_entry(entry)
#define softleaf_is_device_private(entry)	is_device_private_entry(entry)
#define softleaf_is_device_private_write(entry)	\
	is_writable_device_private_entry(entry)
#define softleaf_is_marker(entry)	is_pte_marker_entry(entry)
#define softleaf_is_hwpoison(entry)	is_hwpoison_entry(entry)
#endif

/* A header has it since the bit is not only for write protection. */
#ifndef pgtable_supports_uffd
#define pte_clear_uffd(pte)		pte_clear_uffd_wp(pte)
#define pte_swp_uffd(pte)		pte_swp_uffd_wp(pte)
#define pte_swp_mkuffd(pte)		pte_swp_mkuffd_wp(pte)
#define pte_swp_clear_uffd(pte)		pte_swp_clear_uffd_wp(pte)
#endif

/* What a child without userfaultfd gets of a marker. */
#ifdef PTE_MARKER_GUARD
#define AF_MARKERS	(PTE_MARKER_POISONED | PTE_MARKER_GUARD)
#elif defined(PTE_MARKER_POISONED)
#define AF_MARKERS	PTE_MARKER_POISONED
#else
#define AF_MARKERS	0
#endif

static inline enum af_leaf af_leaf_kind(pte_t pte)
{
	softleaf_t entry = softleaf_from_pte(pte);

	if (softleaf_is_swap(entry))
		return AF_LEAF_SWAP;
	if (softleaf_is_migration(entry))
		return AF_LEAF_MIGRATION;
	if (softleaf_is_device_private(entry))
		return AF_LEAF_DEVICE;
	if (softleaf_is_marker(entry))
		return AF_LEAF_MARKER;
#ifdef SWP_SWAPIN_ERROR
	/* Later a marker. */
	if (is_swapin_error_entry(entry))
		return AF_LEAF_POISON;
#endif
	return softleaf_is_hwpoison(entry) ? AF_LEAF_POISON : AF_LEAF_UNKNOWN;
}

/* May be none. */
static inline pte_t af_marker_copy(pte_t pte)
{
	pte_marker marker = softleaf_to_marker(softleaf_from_pte(pte)) &
			    AF_MARKERS;

	return marker ? make_pte_marker(marker) : __pte(0);
}

/* @entry in the place of @pte, whose bits it keeps. */
static inline pte_t af_leaf_like(pte_t pte, swp_entry_t entry)
{
	pte_t leaf = swp_entry_to_pte(entry);

	if (pte_swp_soft_dirty(pte))
		leaf = pte_swp_mksoft_dirty(leaf);
	if (pte_swp_uffd(pte))
		leaf = pte_swp_mkuffd(leaf);
	return leaf;
}

/* The entry of a page that is shared from now on. */
static inline pte_t af_migration_read(pte_t pte)
{
	softleaf_t entry = softleaf_from_pte(pte);

	if (softleaf_is_migration_read(entry))
		return pte;
	return af_leaf_like(pte,
			    make_readable_migration_entry(swp_offset(entry)));
}

static inline pte_t af_device_read(pte_t pte)
{
	softleaf_t entry = softleaf_from_pte(pte);
	unsigned long offset = swp_offset(entry);

	if (!softleaf_is_device_private_write(entry))
		return pte;
	return af_leaf_like(pte, make_readable_device_private_entry(offset));
}

/* Adds a sharer of a swap entry, without sleeping. */
#if AF_HAS_SWAP_DUP_DIRECT
#define AF_SWAP_DUP	swap_dup_entry_direct
#else
#define AF_SWAP_DUP	swap_duplicate
#endif

/*
 * Not pte_alloc_one(): it would rather call the OOM killer than fail, and the
 * parent would be the victim. We have a reserve, and can give up; so the system's
 * own reserves are not for us, even if the caller may use them (an OOM victim).
 */
#define AF_GFP_PTE	(GFP_PGTABLE_USER | __GFP_RETRY_MAYFAIL | \
			 __GFP_NOWARN | __GFP_NOMEMALLOC)

#if AF_HAS_PAGETABLE_CTOR
/* The inline functions of the kernel need symbols that are not exported. */
static inline pgtable_t af_pte_alloc(struct mm_struct *mm, gfp_t gfp)
{
	struct page *page = alloc_page(gfp | __GFP_COMP);

	if (!page)
		return NULL;
	if (!ptlock_init(page_ptdesc(page))) {
		__free_page(page);
		return NULL;
	}
	__pagetable_ctor(page_ptdesc(page));
	return page;
}

static inline void af_pte_free(struct mm_struct *mm, pgtable_t table)
{
	pagetable_dtor(page_ptdesc(table));
	__free_page(table);
}
#elif ALLOC_SPLIT_PTLOCKS
/* Lock debugging makes the lock of a table an object of its own: ptlock.c. */
pgtable_t af_pte_alloc(struct mm_struct *mm, gfp_t gfp);
void af_pte_free(struct mm_struct *mm, pgtable_t table);
#else
static inline pgtable_t af_pte_alloc(struct mm_struct *mm, gfp_t gfp)
{
	return __pte_alloc_one(mm, gfp);
}

static inline void af_pte_free(struct mm_struct *mm, pgtable_t table)
{
	pte_free(mm, table);
}
#endif

#if ALLOC_SPLIT_PTLOCKS
int af_ptlock_init(void);
#else
static inline int af_ptlock_init(void)
{
	return 0;
}
#endif

/*
 * May a userfaultfd move pages of the mm (UFFDIO_MOVE)? To memory that is
 * registered, whatever features were asked for. Under mmap_write_lock().
 */
static inline bool af_mm_uffd_moves(struct mm_struct *mm)
{
#if AF_HAS_UFFD_MOVE
	struct vm_area_struct *vma;
	struct vma_iterator vmi;

	vma_iter_init(&vmi, mm, 0);
	for_each_vma(vmi, vma)
		if (vma->vm_userfaultfd_ctx.ctx)
			return true;
#endif
	return false;
}

/*
 * Direct call hooks. FTRACE_OPS_FL_PERMANENT keeps kernel.ftrace_enabled from
 * taking them away. 6.1 has one ftrace_ops for all of them, which has the flag.
 * 6.12's register_ftrace_direct() overwrites the flags, so it is set again;
 * af_hooks_attach() looks afterwards whether all hooks are still live.
 */
#if AF_HAS_DIRECT_OPS
static inline int af_ftrace_attach(struct ftrace_ops *ops, unsigned long ip,
				   unsigned long tramp)
{
	int ret = ftrace_set_filter_ip(ops, ip, 0, 0);

	if (ret)
		return ret;
	ops->flags |= FTRACE_OPS_FL_PERMANENT;
	ret = register_ftrace_direct(ops, tramp);
	if (ret)
		ftrace_free_filter(ops);
	else
		ops->flags |= FTRACE_OPS_FL_PERMANENT;
	return ret;
}

static inline int af_ftrace_detach(struct ftrace_ops *ops, unsigned long ip,
				   unsigned long tramp)
{
	return unregister_ftrace_direct(ops, tramp, true);
}
#else
static inline int af_ftrace_attach(struct ftrace_ops *ops, unsigned long ip,
				   unsigned long tramp)
{
	return register_ftrace_direct(ip, tramp);
}

static inline int af_ftrace_detach(struct ftrace_ops *ops, unsigned long ip,
				   unsigned long tramp)
{
	return unregister_ftrace_direct(ip, tramp);
}
#endif

#endif /* _AF_COMPAT_H */
