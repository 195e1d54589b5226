/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernel versions, one API for the core
 *
 * Nothing outside this directory may look at LINUX_VERSION_CODE.
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

/* A stable series, whatever its point release. */
#define AF_SERIES(major, minor)	((major) << 8 | (minor))
#define AF_THIS_SERIES		(LINUX_VERSION_CODE >> 8)

#if AF_THIS_SERIES != AF_SERIES(6, 1) && AF_THIS_SERIES != AF_SERIES(6, 12) && \
	AF_THIS_SERIES != AF_SERIES(7, 2)
#if AF_THIS_SERIES < AF_SERIES(7, 2)
#error "asyncfork: kernels 6.1, 6.12 and 7.2 are known, those between are not"
#elif !defined(AF_ALLOW_UNTESTED)
#error "asyncfork: kernel series not audited; AF_ALLOW_UNTESTED=1 builds as for 7.2"
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
#ifndef CONFIG_MEMCG
#error "asyncfork: needs CONFIG_MEMCG (mm->owner)"
#endif
#ifndef CONFIG_HAVE_STATIC_CALL_INLINE
#error "asyncfork: needs inline static calls"
#endif

/*
 * Has the whole test suite passed on a kernel of this series from Debian? A module
 * made for fault injection is for tests and counts as untested everywhere.
 */
static inline bool af_release_tested(const char *release)
{
#if defined(AF_FAULTS)
	return false;
#elif AF_THIS_SERIES == AF_SERIES(6, 1)
	return glob_match("6.1.0-[0-9][0-9]-amd64", release);
#elif AF_THIS_SERIES == AF_SERIES(6, 12)
	return glob_match("6.12.[0-9]*[0-9]+deb13-amd64", release) ||
	       glob_match("6.12.[0-9]*[0-9]+deb13.[0-9]-amd64", release);
#elif AF_THIS_SERIES == AF_SERIES(7, 2)
	return glob_match("7.2.[0-9]*[0-9]+deb1[34]-amd64", release);
#else
	return false;
#endif
}

/* VM flags that make a VMA ineligible, beyond those every version has. */
#ifdef VM_SHADOW_STACK
#define AF_VM_INELIGIBLE_COMPAT	(VM_SHADOW_STACK | VM_DROPPABLE)
#else
#define AF_VM_INELIGIBLE_COMPAT	0UL
#endif

/* How far before a function a call of it may enter (call depth tracking). */
#ifdef CONFIG_CALL_THUNKS
#define AF_CALL_PADDING	CONFIG_FUNCTION_PADDING_BYTES
#else
#define AF_CALL_PADDING	0
#endif

static inline void af_vm_flags_init(struct vm_area_struct *vma,
				    unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_init(vma, flags);
#else
	vma->vm_flags = flags;
#endif
}

static inline bool af_mm_pinned(struct mm_struct *mm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
	return mm_flags_test(MMF_HAS_PINNED, mm);
#else
	return test_bit(MMF_HAS_PINNED, &mm->flags);
#endif
}

/*
 * RSS counters: per CPU since 6.2. Not add_mm_counter(): it calls
 * mm_trace_rss_stat(), which is not exported. A trampoline mm is made with a
 * chunk BUSY, hence GFP_NOWAIT: the allocator's mutex may be held in reclaim.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
static inline void af_rss_add(struct mm_struct *mm, int member, long n)
{
	percpu_counter_add(&mm->rss_stat[member], n);
}

static inline int af_rss_init(struct mm_struct *mm)
{
	return percpu_counter_init_many(mm->rss_stat, 0,
					GFP_NOWAIT | __GFP_NOWARN,
					NR_MM_COUNTERS);
}

static inline void af_rss_destroy(struct mm_struct *mm)
{
	percpu_counter_destroy_many(mm->rss_stat, NR_MM_COUNTERS);
}

static inline long af_rss_take(struct mm_struct *mm, int member)
{
	long n = percpu_counter_sum(&mm->rss_stat[member]);

	percpu_counter_sub(&mm->rss_stat[member], n);
	return n;
}
#else
static inline void af_rss_add(struct mm_struct *mm, int member, long n)
{
	atomic_long_add(n, &mm->rss_stat.count[member]);
}

static inline int af_rss_init(struct mm_struct *mm)
{
	memset(&mm->rss_stat, 0, sizeof(mm->rss_stat));
	return 0;
}

static inline void af_rss_destroy(struct mm_struct *mm)
{
}

static inline long af_rss_take(struct mm_struct *mm, int member)
{
	return atomic_long_xchg(&mm->rss_stat.count[member], 0);
}
#endif

static inline void af_mmap_init_lock(struct mm_struct *mm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	init_rwsem(&mm->mmap_lock);
	mm_lock_seqcount_init(mm);
#else
	mmap_init_lock(mm);
#endif
}

/* Without lockdep a lockdep_map is empty. */
#ifdef CONFIG_LOCKDEP
#define AF_LOCKDEP_MAP_INIT		STATIC_LOCKDEP_MAP_INIT
#else
#define AF_LOCKDEP_MAP_INIT(...)	{ }
#endif

/*
 * A VMA that nobody else can find, under mmap_write_lock() of its mm, counts as
 * write-locked: copy_page_range() asserts that of its source.
 */
static inline void af_vma_set_write_locked(struct vm_area_struct *vma)
{
#ifdef CONFIG_PER_VMA_LOCK
	vma->vm_lock_seq = vma->vm_mm->mm_lock_seq.sequence;
#endif
}

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
 * A large folio counts its mappings per mm, by mm_id: what is mapped through a
 * trampoline must count for the mm that gets the table.
 */
static inline void af_mm_id_copy(struct mm_struct *to,
				 const struct mm_struct *from)
{
#ifdef CONFIG_MM_ID
	to->mm_id = from->mm_id;
#endif
}

/* Order-0 anonymous and not KSM: all that the plain loop takes. */
static inline bool af_page_plain(struct page *page)
{
	struct folio *folio = page_folio(page);

	return !folio_test_large(folio) && folio_test_anon(folio) &&
	       !folio_test_ksm(folio);
}

/* Duplicate the rmap of a plain page; nonzero: pinned. */
static inline int af_dup_anon_rmap(struct page *page,
				   struct vm_area_struct *src_vma)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
	/* The target matters for large folios only. */
	return folio_try_dup_anon_rmap_pte(page_folio(page), page, src_vma,
					   src_vma);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	return folio_try_dup_anon_rmap_pte(page_folio(page), page, src_vma);
#else
	return page_try_dup_anon_rmap(page, false, src_vma);
#endif
}

static inline bool af_pte_devmap(pte_t pte)
{
#ifdef CONFIG_ARCH_HAS_PTE_DEVMAP
	return pte_devmap(pte);
#else
	return false;
#endif
}

/*
 * Not pte_alloc_one(): it would rather call the OOM killer than fail, and the
 * parent would be the victim. We have a reserve, and can give up.
 */
#define AF_GFP_PTE	(GFP_PGTABLE_USER | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
/* The inline functions of the kernel need symbols that are not exported. */
static inline pgtable_t af_pte_alloc(struct mm_struct *mm)
{
	struct page *page = alloc_page(AF_GFP_PTE | __GFP_COMP);

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
pgtable_t af_pte_alloc(struct mm_struct *mm);
void af_pte_free(struct mm_struct *mm, pgtable_t table);
#else
static inline pgtable_t af_pte_alloc(struct mm_struct *mm)
{
	return __pte_alloc_one(mm, AF_GFP_PTE);
}

static inline void af_pte_free(struct mm_struct *mm, pgtable_t table)
{
	pte_free(mm, table);
}
#endif

#if ALLOC_SPLIT_PTLOCKS
int af_ptlock_resolve(void);
#else
static inline int af_ptlock_resolve(void)
{
	return 0;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
/* fs/userfaultfd.c keeps this private; we read ->mm only. */
struct userfaultfd_ctx {
	wait_queue_head_t wqh[4];
	seqcount_spinlock_t refile_seq;
	refcount_t refcount;
	unsigned int flags;
	unsigned int features;
	bool released;
	atomic_t mmap_changing;
	struct mm_struct *mm;
};
#endif

/*
 * Direct call hooks. FTRACE_OPS_FL_PERMANENT keeps kernel.ftrace_enabled from
 * taking them away. 6.1 has one ftrace_ops for all of them, which has the flag.
 * 6.12's register_ftrace_direct() overwrites the flags, so it is set again;
 * af_hooks_init() looks afterwards whether all hooks are still live.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
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

static inline void af_ftrace_detach(struct ftrace_ops *ops, unsigned long ip,
				    unsigned long tramp)
{
	int ret = unregister_ftrace_direct(ops, tramp, true);

	WARN_ON_ONCE(ret);
}
#else
static inline int af_ftrace_attach(struct ftrace_ops *ops, unsigned long ip,
				   unsigned long tramp)
{
	return register_ftrace_direct(ip, tramp);
}

static inline void af_ftrace_detach(struct ftrace_ops *ops, unsigned long ip,
				    unsigned long tramp)
{
	int ret = unregister_ftrace_direct(ip, tramp);

	WARN_ON_ONCE(ret);
}
#endif

#endif /* _AF_COMPAT_H */
