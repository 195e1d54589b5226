// SPDX-License-Identifier: GPL-2.0-only
/*
 * PTE tables on kernels with lock debugging
 *
 * There the lock of a table does not fit into its struct page: the kernel makes
 * it with functions that are not exported. Empty for all other kernels.
 */
#include <linux/sched/mm.h>

#include "compat.h"
#include "../symbols.h"

#if ALLOC_SPLIT_PTLOCKS
#if !AF_HAS_PTDESC || AF_HAS_PAGETABLE_CTOR
#error "asyncfork: kernels with lock debugging: 6.12 only"
#endif

#ifdef CONFIG_DEBUG_LOCK_ALLOC
/* The kernel's own class: a table may outlive the module. */
static struct lockdep_map lock_map;

static void set_class(struct ptdesc *table)
{
	lockdep_copy_map(&ptlock_ptr(table)->dep_map, &lock_map);
}

static int learn_class(void)
{
	pgtable_t table = af_call(pte_alloc_one)(current->mm);

	if (!table)
		return -ENOMEM;
	lockdep_copy_map(&lock_map, &ptlock_ptr(page_ptdesc(table))->dep_map);
	af_pte_free(current->mm, table);
	return 0;
}
#else
static void set_class(struct ptdesc *table)
{
}

static int learn_class(void)
{
	return 0;
}
#endif

/* As pagetable_pte_ctor() and pagetable_pte_dtor() do it. */
pgtable_t af_pte_alloc(struct mm_struct *mm, gfp_t gfp)
{
	struct page *page = alloc_page(gfp | __GFP_COMP);
	unsigned int noreclaim = 0;
	bool locked;

	if (!page)
		return NULL;
	/* It asks for memory with GFP_KERNEL, whatever we may. */
	if (!gfpflags_allow_blocking(gfp))
		noreclaim = memalloc_noreclaim_save();
	locked = af_call(ptlock_alloc)(page_ptdesc(page));
	if (!gfpflags_allow_blocking(gfp))
		memalloc_noreclaim_restore(noreclaim);
	if (!locked) {
		__free_page(page);
		return NULL;
	}
	spin_lock_init(ptlock_ptr(page_ptdesc(page)));
	set_class(page_ptdesc(page));
	__folio_set_pgtable(page_folio(page));
	lruvec_stat_add_folio(page_folio(page), NR_PAGETABLE);
	return page;
}

void af_pte_free(struct mm_struct *mm, pgtable_t table)
{
	af_call(ptlock_free)(page_ptdesc(table));
	__folio_clear_pgtable(page_folio(table));
	lruvec_stat_sub_folio(page_folio(table), NR_PAGETABLE);
	__free_page(table);
}

/**
 * af_ptlock_init - learn what af_pte_alloc() needs to know
 *
 * Return: 0 or -ENOMEM.
 */
int af_ptlock_init(void)
{
	return learn_class();
}
#endif
