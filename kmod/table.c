// SPDX-License-Identifier: GPL-2.0-only
/*
 * PTE tables for the child: from the system, or from the session's reserve
 */
#include <linux/memcontrol.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>

#include "compat/compat.h"
#include "fault.h"
#include "table.h"

/**
 * af_reserve_fill - prepare for pulls without memory
 * @r: reserve, zeroed
 *
 * Context: the forking thread; may sleep.
 * Return: false: not even one table.
 */
bool af_reserve_fill(struct af_reserve *r)
{
	unsigned int i;

	spin_lock_init(&r->lock);
	for (i = 0; i < AF_RESERVE && !af_fault(); i++)
		r->table[i] = af_pte_alloc(current->mm, AF_GFP_PTE);
	return r->table[0];
}

/**
 * af_reserve_free - give back what was not used
 * @r: reserve
 * @mm: the child
 */
void af_reserve_free(struct af_reserve *r, struct mm_struct *mm)
{
	unsigned int i;

	for (i = 0; i < AF_RESERVE; i++)
		if (r->table[i])
			af_pte_free(mm, r->table[i]);
}

static pgtable_t reserve_take(struct af_reserve *r)
{
	pgtable_t table = NULL;
	unsigned int i;

	spin_lock(&r->lock);
	for (i = 0; i < AF_RESERVE && !table && !af_fault(); i++)
		swap(table, r->table[i]);
	spin_unlock(&r->lock);
	return table;
}

/* Not inlined: the one function that calls through a pointer, percpu_ref's. */
static noinline void memcg_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

/*
 * PF_MEMALLOC says that reclaim must not be entered: we are in it, or hold what
 * it takes. It also opens the system's reserves and lifts memcg's limits, which
 * is not for us.
 */
static pgtable_t table_alloc(struct mm_struct *mm)
{
	unsigned int memalloc = current->flags & PF_MEMALLOC;
	gfp_t gfp = AF_GFP_PTE;
	pgtable_t table;

	if (memalloc)
		gfp &= ~(__GFP_DIRECT_RECLAIM | __GFP_RETRY_MAYFAIL);
	current->flags &= ~PF_MEMALLOC;
	table = af_pte_alloc(mm, gfp);
	current->flags |= memalloc;
	return table;
}

/**
 * af_table_get - a PTE table for the child
 * @r: the session's reserve
 * @mm: the child
 * @outsider: the caller is neither parent nor child: charge the child's memcg
 *
 * Context: may sleep, and reclaim if the caller may.
 * Return: the table, or NULL: no memory, and nothing left in the reserve.
 */
pgtable_t af_table_get(struct af_reserve *r, struct mm_struct *mm,
		       bool outsider)
{
	struct mem_cgroup *memcg = NULL, *old;
	pgtable_t table = NULL;

	if (outsider) {
		memcg = get_mem_cgroup_from_mm(mm);
		old = set_active_memcg(memcg);
	}
	if (!af_fault())
		table = table_alloc(mm);
	if (memcg) {
		set_active_memcg(old);
		memcg_put(memcg);
	}
	return table ?: reserve_take(r);
}
