// SPDX-License-Identifier: GPL-2.0-only
/*
 * What goes into the child's PTE table
 *
 * Two ways. The plain loop takes none, zero page and order-0 anonymous entries
 * and stops at anything else. From there on the kernel's own copy_page_range()
 * works on a trampoline: two private page tables under two fake mms, one whose
 * PMD slot holds the parked table, one with the child's new table.
 *
 * Caller: the owner of a BUSY chunk. A parked table is reachable for nobody
 * else, see sync_cpus().
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/wait.h>

#include "compat/compat.h"
#include "session.h"
#include "symbols.h"

#define PREFETCH_AHEAD	8

/* One private page table with room for one chunk at a time. */
struct tree {
	struct mm_struct mm;	/* fake: fields of the copy path only */
	pgd_t *pgd;
	p4d_t *p4d;		/* used with five levels only */
	pud_t *pud;
	pmd_t *pmd;
};

struct af_tramp {
	struct list_head node;
	struct tree src, dst;
	struct list_head mmlist;	/* makes dst.mm.mmlist non-empty */
};

/* Trampolines that are not in use. */
static LIST_HEAD(idle);
static unsigned int nr_idle;
static DEFINE_SPINLOCK(idle_lock);	/* guards idle and nr_idle */
static DECLARE_WAIT_QUEUE_HEAD(idle_wait);

#define MAX_IDLE	4

/* For af_dup_anon_rmap(): an mm that never had a page pinned. */
static struct mm_struct unpinned_mm;
static struct vm_area_struct unpinned_vma = { .vm_mm = &unpinned_mm };

/**
 * af_copy_plain - copy entries until the first one that is not plain
 * @child: mm that gets the pages
 * @saved: PMD of the parked table; its entries get write-protected
 * @table: the child's new table, not published yet
 * @addr: address of the chunk
 *
 * Context: preemption off, bounded.
 * Return: number of entries dealt with; the rest is for af_copy_odd().
 */
unsigned int af_copy_plain(struct mm_struct *child, pmd_t saved,
			   pgtable_t table, unsigned long addr)
{
	pte_t *src = (pte_t *)pmd_page_vaddr(saved);
	pte_t *dst = page_address(table);
	struct page *page;
	unsigned int i;
	long anon = 0;
	pte_t pte;

	for (i = 0; i < PTRS_PER_PTE; i++, addr += PAGE_SIZE) {
		pte = READ_ONCE(src[i]);
		if (pte_none(pte))
			continue;
		if (!pte_present(pte) || af_pte_devmap(pte))
			break;
		if (pte_special(pte)) {
			if (!is_zero_pfn(pte_pfn(pte)))
				break;
		} else {
			page = pfn_to_page(pte_pfn(pte));
			/* Not present: a wild address, harmless here. */
			if (i + PREFETCH_AHEAD < PTRS_PER_PTE)
				prefetchw(pfn_to_page(pte_pfn(src[i + PREFETCH_AHEAD])));
			if (!af_page_plain(page))
				break;
			get_page(page);
			if (af_dup_anon_rmap(page, &unpinned_vma)) {
				put_page(page);
				break;
			}
			anon++;
		}
		/* As copy_present_pte() does it for a private mapping. */
		if (pte_write(pte)) {
			pte = pte_wrprotect(pte);
			set_pte(&src[i], pte);
		}
		pte = pte_clear_uffd_wp(pte_mkold(pte));
		set_pte_at(child, addr, &dst[i], pte);
	}
	if (anon)
		af_rss_add(child, MM_ANONPAGES, anon);
	return i;
}

static struct af_tramp *tramp_try_get(void)
{
	struct af_tramp *t;

	spin_lock(&idle_lock);
	t = list_first_entry_or_null(&idle, struct af_tramp, node);
	if (t) {
		list_del(&t->node);
		nr_idle--;
	}
	spin_unlock(&idle_lock);
	return t;
}

static void *zeroed_page(void)
{
	return (void *)get_zeroed_page(GFP_KERNEL | __GFP_NOWARN);
}

static void tree_exit(struct tree *t)
{
	free_page((unsigned long)t->pgd);
	free_page((unsigned long)t->p4d);
	free_page((unsigned long)t->pud);
	free_page((unsigned long)t->pmd);
	af_rss_destroy(&t->mm);
}

static int tree_init(struct tree *t)
{
	t->pgd = zeroed_page();
	t->p4d = zeroed_page();
	t->pud = zeroed_page();
	t->pmd = zeroed_page();
	if (!t->pgd || !t->p4d || !t->pud || !t->pmd)
		return -ENOMEM;

	t->mm.pgd = t->pgd;
	atomic_set(&t->mm.mm_users, 1);
	atomic_set(&t->mm.mm_count, 1);
	af_mmap_init_lock(&t->mm);
	spin_lock_init(&t->mm.page_table_lock);
	seqcount_init(&t->mm.write_protect_seq);
	INIT_LIST_HEAD(&t->mm.mmlist);
	return af_rss_init(&t->mm);
}

static void tramp_free(struct af_tramp *t)
{
	tree_exit(&t->src);
	tree_exit(&t->dst);
	kfree(t);
}

static struct af_tramp *tramp_alloc(void)
{
	struct af_tramp *t = kzalloc(sizeof(*t), GFP_KERNEL | __GFP_NOWARN);

	if (!t)
		return NULL;
	if (tree_init(&t->src) || tree_init(&t->dst)) {
		tramp_free(t);
		return NULL;
	}
	/* The copy would put a list_empty() mm on the parent's mmlist. */
	INIT_LIST_HEAD(&t->mmlist);
	list_add(&t->dst.mm.mmlist, &t->mmlist);
	return t;
}

/*
 * The chunk is BUSY: no reclaim. Without memory wait for a trampoline to come
 * back; whoever has one only copies, it takes no chunk.
 */
static struct af_tramp *tramp_get(void)
{
	struct af_tramp *t = tramp_try_get();

	if (!t && !af_fault())
		t = tramp_alloc();
	if (!t)
		wait_event(idle_wait, (t = tramp_try_get()));
	return t;
}

static void tramp_put(struct af_tramp *t)
{
	spin_lock(&idle_lock);
	if (nr_idle < MAX_IDLE) {
		list_add(&t->node, &idle);
		nr_idle++;
		t = NULL;
	}
	spin_unlock(&idle_lock);
	if (t)
		tramp_free(t);
	else
		wake_up(&idle_wait);
}

/*
 * The entries are raw words: set_pgd() would mirror into a PTI user table that
 * does not exist here.
 */
static void tree_set(struct tree *t, unsigned long addr, pmdval_t entry)
{
	WRITE_ONCE(t->pmd[pmd_index(addr)].pmd, entry);
	WRITE_ONCE(t->pud[pud_index(addr)].pud, __pa(t->pmd) | _PAGE_TABLE);
	if (pgtable_l5_enabled()) {
		WRITE_ONCE(t->p4d[p4d_index(addr)].p4d,
			   __pa(t->pud) | _PAGE_TABLE);
		WRITE_ONCE(t->pgd[pgd_index(addr)].pgd,
			   __pa(t->p4d) | _PAGE_TABLE);
	} else {
		WRITE_ONCE(t->pgd[pgd_index(addr)].pgd,
			   __pa(t->pud) | _PAGE_TABLE);
	}
}

static void tree_clear(struct tree *t, unsigned long addr)
{
	WRITE_ONCE(t->pmd[pmd_index(addr)].pmd, 0);
	WRITE_ONCE(t->pud[pud_index(addr)].pud, 0);
	WRITE_ONCE(t->p4d[p4d_index(addr)].p4d, 0);
	WRITE_ONCE(t->pgd[pgd_index(addr)].pgd, 0);
}

/* The VMA as it was at the fork: it may have been split, merged, unmapped. */
static void part_init(struct vm_area_struct *vma, const struct af_range *r,
		      struct mm_struct *mm, unsigned long flags,
		      unsigned long start, unsigned long end)
{
	memset(vma, 0, sizeof(*vma));
	vma->vm_mm = mm;
	vma->vm_start = start;
	vma->vm_end = end;
	vma->vm_page_prot = r->prot;
	af_vm_flags_init(vma, flags);
	/* A partial chunk may start below the VMA. */
	vma->vm_pgoff = r->pgoff + (start >> PAGE_SHIFT) -
			(r->vm_start >> PAGE_SHIFT);
	vma->anon_vma = r->anon_vma;
}

/* Swapoff finds the entries of mms on this list only. */
static void mmlist_add(struct mm_struct *child, struct mm_struct *parent)
{
	if (!list_empty(&child->mmlist))
		return;
	spin_lock(af_mmlist_lock);
	if (list_empty(&child->mmlist))
		list_add(&child->mmlist, &parent->mmlist);
	spin_unlock(af_mmlist_lock);
}

/**
 * af_copy_odd - copy the rest of a chunk with copy_page_range()
 * @s: session
 * @r: range of the chunk
 * @addr: address of the chunk
 * @first: first entry to copy
 * @saved: PMD of the parked table
 * @table: the child's new table, not published yet
 *
 * Context: may sleep, but never reclaims: a waiter for this chunk may hold an
 * anon_vma lock.
 * Return: 0 or -ENOMEM; then the copy is partial and the session must abort.
 */
int af_copy_odd(struct af_session *s, const struct af_range *r,
		unsigned long addr, unsigned int first, pmd_t saved,
		pgtable_t table)
{
	unsigned long start = addr + first * PAGE_SIZE, end = addr + PMD_SIZE;
	struct mm_struct *child = af_mm(s, AF_CHILD);
	unsigned int noreclaim = memalloc_noreclaim_save();
	struct af_tramp *t = tramp_get();
	struct vm_area_struct src, dst;
	int ret, member;
	long n;

	tree_set(&t->src, addr, pmd_val(saved));
	tree_set(&t->dst, addr, pmd_val(af_table_entry(table)));
	af_mm_id_copy(&t->dst.mm, child);
	part_init(&src, r, &t->src.mm, r->src_flags, start, end);
	part_init(&dst, r, &t->dst.mm, r->dst_flags, start, end);

	mmap_write_lock(&t->src.mm);
	af_vma_set_write_locked(&src);
	ret = af_fault() ? -ENOMEM :
			   static_call(af_copy_page_range)(&dst, &src);
	mmap_write_unlock(&t->src.mm);

	for (member = 0; member < NR_MM_COUNTERS; member++) {
		n = af_rss_take(&t->dst.mm, member);
		if (n)
			af_rss_add(child, member, n);
		if (n && member == MM_SWAPENTS)
			mmlist_add(child, af_mm(s, AF_PARENT));
	}
	tree_clear(&t->src, addr);
	tree_clear(&t->dst, addr);
	tramp_put(t);
	memalloc_noreclaim_restore(noreclaim);
	af_count_add(s, AF_N_ODD, 1);
	return ret;
}

/* At least one trampoline at any time: a wait for one comes to an end. */
int af_copy_init(void)
{
	struct af_tramp *t = tramp_alloc();

	if (!t)
		return -ENOMEM;
	tramp_put(t);

	seqcount_init(&unpinned_mm.write_protect_seq);
	/* Always inside a write section, as a copy expects it. */
	raw_write_seqcount_begin(&unpinned_mm.write_protect_seq);
	return 0;
}

void af_copy_exit(void)
{
	struct af_tramp *t;

	while ((t = tramp_try_get()))
		tramp_free(t);
}
