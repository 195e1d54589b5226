// SPDX-License-Identifier: GPL-2.0-only
/*
 * What goes into the child's PTE table
 *
 * One loop for whatever a private anonymous VMA may hold: pages of any folio,
 * the zero page, and entries that map nothing (swap, migration, markers,
 * poison, device memory). Each is treated as copy_page_range() treats it there,
 * but without memory, without a lock that sleeps, and without rescheduling: a
 * waiter for the chunk waits for 512 entries at most, whoever copies them and
 * whatever the scheduler thinks of him.
 *
 * Caller: the owner of a BUSY chunk. A parked table is reachable for nobody
 * else, see sync_cpus().
 */
#include <linux/mm.h>
#include <linux/swap.h>

#include "compat/compat.h"
#include "copy.h"
#include "fault.h"
#include "session.h"
#include "symbols.h"

#define PREFETCH_AHEAD	8

/*
 * For af_dup_anon_rmap(): an mm that never had a page pinned. Nor can the parent
 * have one here: parking saw that it had none, and nobody can pin what is parked.
 */
static struct mm_struct unpinned_mm;
static struct vm_area_struct unpinned_vma = { .vm_mm = &unpinned_mm };

/**
 * struct copy - one chunk's copy
 * @dst_vma: has the child's mm, and no more
 * @anon: pages that the child maps now
 * @swap: swap entries that it has now
 * @mixed: there was something else than plain pages
 */
struct copy {
	struct vm_area_struct dst_vma;
	long anon, swap;
	bool mixed;
};

/* As copy_present_ptes() does it for a private mapping. */
static int copy_present(struct copy *c, pte_t *src, pte_t *dst, pte_t pte,
			unsigned long addr)
{
	struct page *page;
	struct folio *folio;

	if (pte_special(pte)) {
		/* The zero page, or a PFN without a struct page: not counted. */
		c->mixed |= !is_zero_pfn(pte_pfn(pte));
	} else {
		page = pfn_to_page(pte_pfn(pte));
		folio = page_folio(page);
		if (!folio_test_anon(folio))
			return -EINVAL;
		c->mixed |= folio_test_large(folio) || folio_test_ksm(folio);
		folio_get(folio);
		/* Cannot fail: see unpinned_vma. */
		if (af_dup_anon_rmap(page, &c->dst_vma, &unpinned_vma)) {
			folio_put(folio);
			return -EINVAL;
		}
		c->anon++;
	}
	if (pte_write(pte)) {
		pte = pte_wrprotect(pte);
		set_pte(src, pte);
	}
	/* A mark of userfaultfd may outlive its registration. */
	pte = pte_clear_uffd(pte_mkold(pte));
	set_pte_at(c->dst_vma.vm_mm, addr, dst, pte);
	return 0;
}

/* As copy_nonpresent_pte() does it for a private mapping without userfaultfd. */
static int copy_leaf(struct copy *c, pte_t *src, pte_t *dst, pte_t pte,
		     unsigned long addr)
{
	struct page *page;
	pte_t shared = pte;

	c->mixed = true;
	switch (af_leaf_kind(pte)) {
	case AF_LEAF_SWAP:
		/* Fails where a count of sharers needs memory and gets none. */
		if (af_fault() || af_swap_dup(pte))
			return -ENOMEM;
		c->swap++;
		shared = pte_swp_clear_exclusive(pte);
		break;
	case AF_LEAF_MIGRATION:
		/* Its end finds both entries: see the hook. */
		c->anon++;
		shared = af_migration_read(pte);
		break;
	case AF_LEAF_DEVICE:
		page = softleaf_to_page(softleaf_from_pte(pte));
		folio_get(page_folio(page));
		if (af_dup_anon_rmap(page, &c->dst_vma, &unpinned_vma)) {
			folio_put(page_folio(page));
			return -EINVAL;
		}
		c->anon++;
		shared = af_device_read(pte);
		break;
	case AF_LEAF_MARKER:
		pte = af_marker_copy(pte);
		if (!pte_none(pte))
			set_pte_at(c->dst_vma.vm_mm, addr, dst, pte);
		return 0;
	case AF_LEAF_POISON:
		break;
	default:
		return -EINVAL;
	}
	/* Nobody has it alone any more. */
	if (pte_val(shared) != pte_val(pte))
		set_pte(src, shared);
	set_pte_at(c->dst_vma.vm_mm, addr, dst, pte_swp_clear_uffd(shared));
	return 0;
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
 * af_copy - copy a chunk's entries
 * @s: session
 * @saved: PMD of the parked table; its entries get write-protected
 * @table: the child's new table, not published yet
 * @addr: address of the chunk
 *
 * Context: preemption off, bounded; takes spinlocks only.
 * Return: 0; -ENOMEM, or -EINVAL for an entry that such memory cannot have: then
 * the copy is partial and the session must abort.
 */
int af_copy(struct af_session *s, pmd_t saved, pgtable_t table,
	    unsigned long addr)
{
	struct mm_struct *child = af_mm(s, AF_CHILD);
	struct copy c = { .dst_vma.vm_mm = child };
	pte_t *src = (pte_t *)pmd_page_vaddr(saved);
	pte_t *dst = page_address(table);
	unsigned int i;
	int ret = 0;
	pte_t pte;

	for (i = 0; i < PTRS_PER_PTE && !ret; i++, addr += PAGE_SIZE) {
		pte = READ_ONCE(src[i]);
		if (pte_none(pte))
			continue;
		/* Not present: a wild address, harmless here. */
		if (i + PREFETCH_AHEAD < PTRS_PER_PTE)
			prefetchw(pfn_to_page(pte_pfn(src[i + PREFETCH_AHEAD])));
		if (pte_present(pte))
			ret = copy_present(&c, &src[i], &dst[i], pte, addr);
		else
			ret = copy_leaf(&c, &src[i], &dst[i], pte, addr);
	}
	if (c.anon)
		af_rss_add(child, MM_ANONPAGES, c.anon);
	if (c.swap) {
		af_rss_add(child, MM_SWAPENTS, c.swap);
		mmlist_add(child, af_mm(s, AF_PARENT));
	}
	if (c.mixed)
		af_count_add(s, AF_N_MIXED, 1);
	af_linger();
	return ret;
}

void af_copy_init(void)
{
	seqcount_init(&unpinned_mm.write_protect_seq);
	/* Always inside a write section, as a copy expects it. */
	raw_write_seqcount_begin(&unpinned_mm.write_protect_seq);
}
