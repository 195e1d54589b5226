/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernel versions, one API for the core
 *
 * The only file of the module that may look at LINUX_VERSION_CODE.
 */
#ifndef _AF_COMPAT_H
#define _AF_COMPAT_H

#include <linux/ftrace.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <asm/pgalloc.h>
#include <asm/tlbflush.h>

/* <asm/tlbflush.h> hides it from modules, <asm/tlb.h> needs the prototype. */
void flush_tlb_mm_range(struct mm_struct *mm, unsigned long start,
			unsigned long end, unsigned int stride_shift,
			bool freed_tables);
#include <asm/tlb.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0) || \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#error "asyncfork: page table code was audited for Linux 6.1 only"
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

/* uname -r of the builds that the whole test suite has passed on. */
#define AF_TESTED_RELEASES	"6.1.0-"

/* VM flags that make a VMA ineligible, beyond those every version has. */
#define AF_VM_INELIGIBLE_COMPAT	0UL

static inline bool af_mm_pinned(struct mm_struct *mm)
{
	return test_bit(MMF_HAS_PINNED, &mm->flags);
}

/*
 * Not add_mm_counter(): it calls mm_trace_rss_stat(), which is not exported.
 */
static inline void af_rss_add(struct mm_struct *mm, int member, long n)
{
	atomic_long_add(n, &mm->rss_stat.count[member]);
}

/* Counters of a trampoline mm. */
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

/* Duplicate the rmap of an order-0 anonymous page; nonzero: pinned. */
static inline int af_dup_anon_rmap(struct page *page,
				   struct vm_area_struct *src_vma)
{
	return page_try_dup_anon_rmap(page, false, src_vma);
}

/*
 * Not pte_alloc_one(): it would rather call the OOM killer than fail, and the
 * parent would be the victim. We have a reserve, and can give up.
 */
static inline pgtable_t af_pte_alloc(struct mm_struct *mm)
{
	struct page *page = alloc_page(GFP_PGTABLE_USER | __GFP_RETRY_MAYFAIL |
				       __GFP_NOWARN);

	if (page && !pgtable_pte_page_ctor(page)) {
		__free_page(page);
		page = NULL;
	}
	return page;
}

static inline void af_pte_free(struct mm_struct *mm, pgtable_t table)
{
	pte_free(mm, table);
}

/* Order-0 anonymous and not KSM: all that the plain loop takes. */
static inline bool af_page_plain(struct page *page)
{
	return !PageCompound(page) &&
	       ((unsigned long)READ_ONCE(page->mapping) &
		PAGE_MAPPING_FLAGS) == PAGE_MAPPING_ANON;
}

/* fs/userfaultfd.c keeps this private; we read ->mm only. */
struct af_userfaultfd_ctx {
	wait_queue_head_t wqh[4];
	seqcount_spinlock_t refile_seq;
	refcount_t refcount;
	unsigned int flags;
	unsigned int features;
	bool released;
	atomic_t mmap_changing;
	struct mm_struct *mm;
};

/*
 * Direct call hooks. This version's register_ftrace_direct() goes through one
 * ftrace_ops of the kernel that is FTRACE_OPS_FL_PERMANENT, so writing 0 to
 * kernel.ftrace_enabled cannot take the hooks away. @ops is for later versions.
 */
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

#endif /* _AF_COMPAT_H */
